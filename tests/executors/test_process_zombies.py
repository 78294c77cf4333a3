"""What a step leaves behind and ends: nobody asks how it ended, and yet its process ids are not used up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import leftover_steps as steps
import pytest

from treadle import Engine, pipeline
from treadle_adapters.process import ProcessExecutor

LIMIT_S = 60
pytestmark = pytest.mark.linux


def run(home: Path, flow: Any) -> Any:
    async def main() -> Any:
        executors = {"process": ProcessExecutor(workers=1)}
        async with asyncio.timeout(LIMIT_S), Engine(home, executors=executors) as engine:
            return (await engine.run(flow)).value

    return asyncio.run(main())


def test_a_worker_whose_steps_leave_processes_behind_is_replaced_in_time(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> list[tuple[int, int]]:
        return [await steps.leaves_processes_that_end(5) for _ in range(64)]

    seen = run(tmp_path / "home", flow)
    assert max(zombies for _, zombies in seen) <= 160
    assert 2 <= len({pid for pid, _ in seen}) <= 8


def test_a_worker_keeps_a_few_of_them_and_goes_on(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> list[tuple[int, int]]:
        return [await steps.leaves_processes_that_end(1) for _ in range(40)]

    assert len({pid for pid, _ in run(tmp_path / "home", flow)}) == 1


def test_how_a_process_of_its_own_has_ended_is_left_for_the_module_to_ask(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> Any:
        for _ in range(20):
            await steps.starts_and_remembers()
        for _ in range(20):
            await steps.nothing()
        return await steps.asks_how_they_ended()

    assert run(tmp_path / "home", flow) == [7] * 20
