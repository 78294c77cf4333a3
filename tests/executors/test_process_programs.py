"""Steps of a program itself, however it was started: workers find them in it, and run as its interpreter does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

LIMIT_S = 60

PROGRAM = """
import dataclasses
from beside import told
from treadle import pipeline, step

@dataclasses.dataclass
class Point:
    x: int

@step(runtime="process")
def moved(point):
    if point.x < 0:
        raise ValueError(f"{told()}: {point.x}")
    return Point(point.x + 1)

@pipeline
async def flow(x):
    return await moved(Point(x))

if __name__ == "__main__":
    import traceback
    result = flow.run(1)
    assert type(result.value) is Point, result
    print(result.value)
    try:
        flow.run(-1).value
    except ValueError as error:
        print(error)
        print("raise ValueError" in "".join(traceback.format_exception(error)))
"""

BESIDE = """
def told():
    return "it is negative"
"""


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with what this one imports, and a home of its own."""
    known = {"TREADLE_HOME": str(folder / "home"), "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(
        [sys.executable, *command], env={**os.environ, **known}, cwd=folder, capture_output=True, text=True,
        timeout=LIMIT_S,
    )  # fmt: skip


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "__main__.py").write_text(PROGRAM)
    (folder / "beside.py").write_text(BESIDE)
    return tmp_path


EXPECTED = ["Point(x=2)", "it is negative: -1", "True"]


def test_the_steps_of_a_program_that_is_a_folder_are_found_in_it(sources: Path) -> None:
    done = run(["app/"], sources)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == EXPECTED


@pytest.mark.parametrize("is_compiled", [False, True])
def test_the_steps_of_a_program_that_is_a_zip_file_are_found_in_it(sources: Path, is_compiled: bool) -> None:
    folder = sources / "app"
    if is_compiled:
        subprocess.run([sys.executable, "-m", "compileall", "-q", "-b", str(folder)], check=True, timeout=LIMIT_S)
    with zipfile.ZipFile(sources / "app.pyz", "w") as file:
        for path in folder.glob("*.pyc" if is_compiled else "*.py"):
            file.write(path, path.name)
    (sources / "app").rename(sources / "away")
    done = run(["app.pyz"], sources)
    assert done.returncode == 0, done.stderr
    has_lines = str(not is_compiled)
    assert done.stdout.splitlines() == [*EXPECTED[:2], has_lines]


def test_the_steps_of_a_package_are_found_in_it(sources: Path) -> None:
    (sources / "app" / "__init__.py").touch()
    main = sources / "app" / "__main__.py"
    main.write_text(PROGRAM.replace("from beside", "from .beside"))
    done = run(["-m", "app"], sources)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == EXPECTED


# -- the interpreter ----------------------------------------------------------------------

FLAGS = """
import asyncio
import json
import sys
import warnings
from treadle import Engine, pipeline, step

def flags():
    try:
        assert False
    except AssertionError:
        asserts = True
    else:
        asserts = False
    try:
        warnings.warn("old", DeprecationWarning)
    except DeprecationWarning:
        is_error = True
    else:
        is_error = False
    names = ("optimize", "utf8_mode", "dev_mode", "bytes_warning", "int_max_str_digits")
    names += ("dont_write_bytecode", "no_user_site", "ignore_environment")
    return [asserts, is_error, [getattr(sys.flags, name) for name in names], sys.warnoptions]

@step(runtime="process", cache=False)
def there():
    return flags()

@pipeline
async def flow():
    return await there()

async def main():
    async with Engine("memory://") as engine:
        result = await engine.run(flow)
        said = await engine.logs(result.run_id)
    print(json.dumps([flags(), result.value, [line.message for line in said]]))

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize(
    "given",
    [
        ["-OO", "-X", "utf8", "-W", "error::DeprecationWarning", "-W", "ignore::ImportWarning"],
        ["-W", "error", "-bb", "-s"],
        ["-X", "dev", "-W", "error", "-X", "int_max_str_digits=5000"],
    ],
    ids=" ".join,
)
def test_a_worker_runs_as_the_interpreter_of_the_engine_was_told_to(tmp_path: Path, given: list[str]) -> None:
    (tmp_path / "program.py").write_text(FLAGS)
    done = run([*given, "program.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    here, there, said = json.loads(done.stdout)
    assert there == here
    assert said == []
    assert "Warning" not in done.stderr


def test_what_variables_have_told_the_interpreter_holds_in_workers_too(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(FLAGS)
    done = run(["program.py"], tmp_path, PYTHONOPTIMIZE="1", PYTHONWARNINGS="error::DeprecationWarning", PYTHONUTF8="1")
    assert done.returncode == 0, done.stderr
    here, there, _ = json.loads(done.stdout)
    assert there == here
    assert here[:2] == [False, True]
