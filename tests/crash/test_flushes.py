"""Strict durability costs one flush for each awaited step, and not more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from treadle import Engine, pipeline, step

STEPS = 50


@step(cache=False)
async def on_loop(x: int) -> int:
    return x + 1


@step(cache=False)
def in_thread(x: int) -> int:
    return x + 1


@pipeline
async def async_chain(x: int) -> int:
    for _ in range(STEPS):
        x = await on_loop(x)
    return x


@pipeline
async def sync_chain(x: int) -> int:
    for _ in range(STEPS):
        x = await in_thread(x)
    return x


@pipeline
async def wide(x: int) -> int:
    return sum(await asyncio.gather(*[on_loop(x) for _ in range(STEPS)]))


async def flushes(home: Path, target: object) -> float:
    async with Engine(home) as engine:
        before = engine.metrics()["log_flushes"]
        (await engine.run(target, 0)).raise_for_failure()  # type: ignore[arg-type]
        return engine.metrics()["log_flushes"] - before


@pytest.mark.asyncio
async def test_an_awaited_async_step_takes_one_flush(tmp_path: Path) -> None:
    # Besides the steps': the acceptance, which the first step shares at best, and the end of the run.
    assert await flushes(tmp_path / "home", async_chain) <= STEPS + 2


@pytest.mark.asyncio
async def test_an_awaited_sync_step_takes_one_flush(tmp_path: Path) -> None:
    # A thread that takes longer than 5 ms to answer lets its start be written before its end.
    assert await flushes(tmp_path / "home", sync_chain) <= STEPS + 10


@pytest.mark.asyncio
async def test_steps_that_run_at_once_share_flushes(tmp_path: Path) -> None:
    assert await flushes(tmp_path / "home", wide) <= 6
