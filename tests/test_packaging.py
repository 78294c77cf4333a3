"""The package as a whole: what it needs, what an import of it costs, and which way its modules depend on each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (ROOT / "engine", ROOT / "adapters")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def _python(code: str) -> str:
    """What a fresh interpreter prints which has just these sources on its path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
    command = [sys.executable, "-X", "utf8", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _cycle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _imports(package: str) -> dict[str, set[str]]:
    # What only annotations need is no dependency: two classes may speak of each other.
    graph = grimp.build_graph(package, cache_dir=None, exclude_type_checking_imports=True)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


@pytest.mark.parametrize("package", ["treadle", "treadle_adapters"])
def test_no_module_imports_itself_in_a_circle(package: str) -> None:
    assert _cycle(_imports(package)) == []


def test_a_circle_of_imports_would_be_seen() -> None:
    assert set(_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def test_importing_treadle_imports_no_adapter_and_nothing_slow() -> None:
    unwanted = {"treadle_adapters", "structlog", "fsspec", "aiosqlite", "numpy", "pandas", "torch"}
    loaded = _python("import sys, treadle; print(*{name.partition('.')[0] for name in sys.modules})")
    assert unwanted.isdisjoint(loaded.split())


HEAVY = (
    # the loop and what it brings
    "asyncio", "concurrent.futures", "logging", "selectors", "socket", "ssl", "subprocess",
    # what only an open engine needs
    "blake3", "hashlib", "msgspec", "pathlib", "pickle", "queue", "random", "secrets", "shutil", "sqlite3", "tempfile",
    "uuid", "zlib",
    # what only some programs need
    "datetime", "decimal", "difflib", "importlib.metadata", "sysconfig", "zoneinfo",
    "treadle.events", "treadle.storage", "treadle._runtime.run", "treadle._runtime.views.results",
)  # fmt: skip


@pytest.mark.parametrize("line", ["import treadle", "from treadle import Engine, context, current, pipeline, step"])
def test_defining_steps_needs_neither_loop_nor_log(line: str) -> None:
    program = f"""
import sys
before = set(sys.modules)
{line}
@treadle.step(retry=2, timeout="30s", cache=treadle.CachePolicy(expires_after="12h"))
async def one(x: int) -> int:
    return x
@treadle.pipeline
async def all_of_it() -> int:
    return await one(1)
treadle.Engine("somewhere")
print(*(set(sys.modules) - before))
""".replace(line, f"import treadle\n{line}")
    loaded = set(_python(program).split())
    assert {"treadle", "treadle.options"} <= loaded
    assert loaded.isdisjoint(HEAVY), sorted(loaded.intersection(HEAVY))


def test_an_import_of_treadle_loads_few_of_its_modules() -> None:
    program = "import sys, treadle; print(*(name for name in sys.modules if name.partition('.')[0] == 'treadle'))"
    assert len(_python(program).split()) <= 30


def test_every_public_name_is_there_when_it_is_asked_for() -> None:
    program = (
        "import treadle; print(*(n for n in treadle.__all__ if n in dir(treadle) and getattr(treadle, n) is not None))"
    )
    names = _python(program).split()
    assert names == sorted(names)
    assert names == _python("from treadle import *; print(*(n for n in sorted(globals()) if n[0] != '_'))").split()


def test_a_name_that_treadle_does_not_have_is_an_attribute_error() -> None:
    program = "import treadle\ntry: treadle.nothing\nexcept AttributeError as error: print(error)"
    assert _python(program).strip() == "module 'treadle' has no attribute 'nothing'"


def test_importing_the_adapters_imports_none_of_their_libraries() -> None:
    unwanted = {"docker", "dask", "distributed"}
    loaded = _python("import sys, treadle_adapters; print(*{name.partition('.')[0] for name in sys.modules})")
    assert unwanted.isdisjoint(loaded.split())


def test_importing_treadle_starts_no_thread_and_opens_no_file() -> None:
    # Socket, thread and database events of the interpreter's own audit log, and files opened to be written.
    code = """
import sys
seen = []
def note(event, args):
    if event in {"socket.__new__", "sqlite3.connect", "_thread.start_new_thread", "_thread.start_joinable_thread"}:
        seen.append(event)
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append(f"open {args[0]}")
sys.dont_write_bytecode = True
sys.addaudithook(note)
import treadle
print(seen)
"""
    assert _python(code).strip() == "[]"


def test_the_run_time_dependencies_are_the_six_agreed_ones() -> None:
    names = {re.split(r"[^A-Za-z0-9_-]", requirement, maxsplit=1)[0] for requirement in PROJECT["dependencies"]}
    assert names == {"anyio", "msgspec", "aiosqlite", "fsspec", "structlog", "blake3"}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_a_source_root_is_no_package(source: Path) -> None:
    # With an __init__.py here `engine.treadle` would be a regular package, and a second copy of every class.
    assert not (source / "__init__.py").exists()


def test_the_wheel_holds_both_typed_packages_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the wheel is built with hatchling, which the dev extra installs")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "treadle",
        "treadle_adapters",
        f"treadle-{PROJECT['version']}.dist-info",
    }
    assert {"treadle/py.typed", "treadle_adapters/py.typed"} <= set(names)
    sources = {str(path.relative_to(root)) for root in SOURCES for path in root.rglob("*.py")}
    assert sources <= set(names)


def _make_environment(place: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "-C", str(ROOT), "--no-print-directory", f"VENV={place}", f"PYTHON={sys.executable}"]
    return subprocess.run([*command, f"{place}/.made"], capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_leaves_a_folder_that_it_did_not_make_as_it_is(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "pyvenv.cfg").write_text("home = /usr/bin\n")
    done = _make_environment(mine)
    assert done.returncode != 0
    assert f"{mine} is there and was not made by make, so it is left as it is." in done.stderr
    assert "VENV=" in done.stderr
    assert [entry.name for entry in mine.iterdir()] == ["pyvenv.cfg"]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.mkdir()
    (half / ".making").touch()
    (half / "rubble").touch()
    done = _make_environment(half)
    assert done.returncode == 0, done.stderr
    assert {"bin", ".made"} <= {entry.name for entry in half.iterdir()}
    assert not {".making", "rubble"} & {entry.name for entry in half.iterdir()}


FIRST_RUN = """
import sys, asyncio, treadle
@treadle.step
async def one() -> int:
    return 1
@treadle.pipeline
async def flow() -> int:
    return await one()
async def main() -> None:
    async with treadle.Engine(HOME) as engine:
        (await engine.run(flow)).raise_for_failure()
        print(*sys.modules)
asyncio.run(main())
"""


def test_the_first_run_loads_what_it_needs_and_no_more(tmp_path: Path) -> None:
    program = FIRST_RUN.replace("HOME", repr(str(tmp_path / "home")))
    loaded = set(_python(program).split())
    assert {"asyncio", "msgspec", "sqlite3", "treadle._runtime.lifecycle"} <= loaded
    unneeded = {"aiosqlite", "fsspec", "structlog", "anyio", "shutil", "tempfile", "difflib", "sysconfig", "secrets"}
    late = {
        "treadle._runtime.static.program",
        "treadle._runtime.static.wired",
        "treadle._core.wiring",
        "treadle._runtime.parallel.items",
    }
    assert loaded.isdisjoint(unneeded | late), sorted(loaded.intersection(unneeded | late))
