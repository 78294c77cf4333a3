"""What a step changes of its process is put back for the next one; what a module changes when it is imported stays."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import leaving_steps as steps
import pytest

from treadle import Engine, RunResult, pipeline
from treadle.errors import StepTimeout
from treadle_adapters.process import ProcessExecutor

sys.path.remove(steps.ADDED)  # this process is no worker
del os.environ["ADDED_BY_IMPORTING"]

LIMIT_S = 40

said: list[tuple[str, str]] = []


def run(home: Path, flow: Any, *args: Any) -> RunResult[Any]:
    async def main() -> RunResult[Any]:
        executors = {"process": ProcessExecutor(workers=1, grace=0.5)}
        async with asyncio.timeout(LIMIT_S), Engine(home, executors=executors) as engine:
            result = await engine.run(flow, *args)
            said[:] = [(line.stream, line.message) for line in await engine.logs(result.run_id)]
            return result

    return asyncio.run(main())


@pytest.mark.parametrize("fails", [False, True])
def test_a_step_finds_what_the_one_before_it_has_found(tmp_path: Path, fails: bool) -> None:
    @pipeline
    async def flow() -> tuple[Any, Any, Any]:
        before = await steps.sees_what_is_around()
        (left,) = await asyncio.gather(steps.leaves_all_of_it_changed(fails), return_exceptions=True)
        return before, left, await steps.sees_what_is_around()

    before, left, after = run(tmp_path / "home", flow).value
    assert type(left) is (ValueError if fails else int)
    assert after == before
    assert said.count(("stdout", "it is heard")) == 2
    assert said.count(("log", "it is logged")) == 2


def test_a_worker_that_cannot_be_put_back_is_replaced(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> list[int]:
        return [await steps.changes_for_ever(), (await steps.sees_what_is_around())["process"]]

    first, second = run(tmp_path / "home", flow).value
    assert first != second
    assert any("the worker is replaced" in message for _, message in said)


def test_nonsense_in_the_place_of_streams_and_paths_is_cleared_away(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> tuple[Any, int, Any]:
        before = await steps.sees_what_is_around()
        return before, await steps.puts_nonsense_in_their_place(), await steps.says_where_it_is()

    before, process, after = run(tmp_path / "home", flow).value
    assert after == process == before["process"]
    assert ("stdout", "here") in said


def test_what_importing_a_module_changes_stays(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> list[Any]:
        return [await steps.sees_what_is_around() for _ in range(2)]

    for seen in run(tmp_path / "home", flow).value:
        assert steps.ADDED in seen["path"]
        assert seen["environment"]["ADDED_BY_IMPORTING"] == "1"


def test_a_folder_that_is_gone_is_left_for_the_one_before(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> tuple[Any, Any]:
        await steps.goes_where_there_is_nothing(str(tmp_path / "gone"))
        return (await steps.sees_what_is_around())["folder"], os.getcwd()

    there, here = run(tmp_path / "home", flow).value
    assert there == here


def test_a_worker_can_be_asked_to_end_after_a_step_that_would_not(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> None:
        await steps.leaves_all_of_it_changed(False)
        await steps.is_asked_to_end(str(tmp_path))

    assert type(run(tmp_path / "home", flow).error) is StepTimeout
    assert (tmp_path / "asked").exists()
