"""The package as a whole: what it needs, what an import of it costs, and which way its modules depend on each other."""

from __future__ import annotations

import os
import re
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
