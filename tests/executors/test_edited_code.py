"""Files that are edited while the program runs: a worker imports them anew, and is not taken for the old code."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from treadle import CachePolicy, Engine, RunResult, pipeline
from treadle.errors import StepEdited
from treadle_adapters.process import ProcessExecutor

LIMIT_S = 40.0
STEPS = '''
from treadle import step
from edited_parts import part

OFFSET = 10

class Scale:
    factor = 2

    def of(self, number):
        return number * self.factor

@step(runtime="process")
def answer(number):
    """What it does."""
    return Scale().of(part(number)) + OFFSET

@step(runtime="process")
def other(number):
    return number
'''
PARTS = """
def part(number):
    return number + 1
"""


@pytest.fixture
def code(tmp_path: Path) -> Iterator[Callable[..., ModuleType]]:
    """Writes two modules, and imports them the first time."""
    folder = tmp_path / "code"
    folder.mkdir()
    sys.path.insert(0, str(folder))
    names = ("edited_steps_of_two", "edited_parts")

    def write(steps: str = STEPS, parts: str = PARTS) -> ModuleType:
        for name, text in zip(names, (steps, parts), strict=True):
            path = folder / f"{name}.py"
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
                # The clock of a file system may lag behind, and a compiled file counts as fresh within one second.
                os.utime(path, (time.time() + 5 + len(text), time.time() + 5 + len(text)))
        importlib.invalidate_caches()
        return importlib.import_module(names[0])

    yield write
    sys.path.remove(str(folder))
    for name in names:
        sys.modules.pop(name, None)


def run(home: Path, *scenes: Callable[[], Any], workers: int = 1) -> list[RunResult[Any]]:
    """Run flows one after another on one engine, every call in a process of its own."""

    async def main() -> list[RunResult[Any]]:
        executors = {"process": ProcessExecutor(workers=workers, fresh=True)}
        async with asyncio.timeout(LIMIT_S), Engine(home, executors=executors) as engine:
            return [await engine.run(scene()) for scene in scenes]

    return asyncio.run(main())


EDITS: dict[str, tuple[str, str]] = {
    "its own body": (STEPS.replace("return Scale()", "return 5 * Scale()"), PARTS),
    "a function that it calls": (STEPS, PARTS.replace("+ 1", "+ 2")),
    "a class that it uses": (STEPS.replace("factor = 2", "factor = 3"), PARTS),
    "a value that it reads": (STEPS.replace("OFFSET = 10", "OFFSET = 11"), PARTS),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_worker_that_imports_edited_code_says_so_and_runs_nothing(
    tmp_path: Path, code: Callable[..., ModuleType], edit: str
) -> None:
    steps = code()

    def flow_of(number: int) -> Callable[[], Any]:
        def scene() -> Any:
            if number:
                code(*EDITS[edit])

            @pipeline
            async def flow() -> Any:
                return await steps.answer.with_options(retry=2)(number), await steps.other(number)

            return flow

        return scene

    before, after = run(tmp_path / "home", flow_of(0), flow_of(1))
    assert before.value == (12, 0)
    assert isinstance(after.error, StepEdited)
    assert after.error.files
    assert all("edited_" in file for file in after.error.files)
    assert after.step_results["answer"].attempts == 1


def test_what_does_not_count_may_be_edited(tmp_path: Path, code: Callable[..., ModuleType]) -> None:
    steps = code()

    def flow_of(number: int) -> Callable[[], Any]:
        def scene() -> Any:
            if number:
                code(
                    "# a comment"
                    + STEPS.replace("What it does", "What it is for").replace("return number\n", "return 0\n")
                )

            @pipeline
            async def flow() -> Any:
                return await steps.answer(number)

            return flow

        return scene

    assert [result.value for result in run(tmp_path / "home", flow_of(0), flow_of(1))] == [12, 14]


def test_what_it_depends_on_by_declaration_alone_is_none_of_the_workers_business(
    tmp_path: Path, code: Callable[..., ModuleType]
) -> None:
    steps = code()

    @pipeline
    async def flow() -> Any:
        policy = CachePolicy(depends_on=(steps.other, time))
        return await steps.answer.with_options(cache=policy)(1)

    assert run(tmp_path / "home", lambda: flow)[0].value == 14


def test_a_module_that_is_imported_anew_here_is_the_one_that_counts(
    tmp_path: Path, code: Callable[..., ModuleType]
) -> None:
    def flow_of(number: int) -> Callable[[], Any]:
        def scene() -> Any:
            steps = code(STEPS.replace("OFFSET = 10", f"OFFSET = {number}"))
            steps = importlib.reload(steps)

            @pipeline
            async def flow() -> Any:
                return await steps.answer(1)

            return flow

        return scene

    assert [result.value for result in run(tmp_path / "home", flow_of(10), flow_of(20))] == [14, 24]


PROGRAM = """
import os, time
from treadle import pipeline, step

LIMIT = 3

def inner(x):
    return x + LIMIT

@step(runtime="process")
def answer(x):
    return inner(x)

@pipeline
async def flow():
    return await answer(1)

if __name__ == "__main__":
    os.utime(__file__, (time.time() + 5, time.time() + 5))
    print(flow.run().value)
"""


@pytest.mark.parametrize("as_module", [False, True])
def test_the_steps_of_a_program_that_was_only_touched_are_the_same(tmp_path: Path, as_module: bool) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, *(("-m", "program") if as_module else (str(tmp_path / "program.py"),))]
    environment = {**os.environ, "TREADLE_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4\n"
