"""``debug=True``: one step at a time, in this thread, without timeout, retry or cache."""

from __future__ import annotations

import asyncio
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest

from treadle import Engine, pipeline, step

THREADS: list[int] = []
RUNNING: list[int] = []
ATTEMPTS: list[int] = []


class Count:
    """No plain data, so that its changes are no part of any cache key."""

    number = 0


COUNT = Count()


@step(timeout=0.05)
def slow(x: int) -> int:
    THREADS.append(threading.get_ident())
    threading.Event().wait(0.1)
    return x


@step
async def one_at_a_time(x: int) -> int:
    RUNNING.append(x)
    assert len(RUNNING) == 1
    await asyncio.sleep(0)
    RUNNING.remove(x)
    return x


@step(retry=5)
def fails() -> None:
    ATTEMPTS.append(1)
    raise ValueError("the original")


@pipeline
async def steps_in(x: int) -> int:
    return await slow(x)


@pipeline
def steps_in_sync(x: int) -> int:
    return slow(x)


@pipeline
async def many() -> list[int]:
    return await one_at_a_time.map(range(10))


@pipeline
async def failing() -> None:
    await fails()


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    for record in (THREADS, RUNNING, ATTEMPTS):
        record.clear()


def test_steps_run_in_the_calling_thread_without_timeout() -> None:
    assert steps_in.with_options(debug=True).run(3).value == 3
    assert set(THREADS) == {threading.get_ident()}


def test_the_steps_of_a_def_pipeline_run_in_the_calling_thread_too() -> None:
    assert steps_in_sync.with_options(debug=True).run(3).value == 3
    assert set(THREADS) == {threading.get_ident()}


def test_steps_run_one_at_a_time() -> None:
    assert many.with_options(debug=True).run().value == list(range(10))


def test_run_raises_the_steps_own_exception_after_one_attempt() -> None:
    with pytest.raises(ValueError, match="the original") as caught:
        failing.with_options(debug=True).run()
    assert len(ATTEMPTS) == 1
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-1] == "fails"
    assert "failing" in frames


def test_nothing_is_taken_from_the_cache_or_put_there() -> None:
    @step
    def counts() -> int:
        COUNT.number += 1
        return COUNT.number

    @pipeline
    async def counting() -> int:
        return await counts()

    debugged = counting.with_options(debug=True)
    assert debugged.run().value == 1
    assert debugged.run().value == 2
    assert counting.run().value == 3
    assert counting.run().value == 3
    assert debugged.run().value == 4


@pytest.mark.asyncio
async def test_debugged_runs_are_recorded_like_others(home: str) -> None:
    async with Engine(home) as engine:
        result = await engine.run(steps_in.with_options(debug=True), 2)
        assert result.step_results["slow"].status == "succeeded"
        assert (await engine.get_run(result.run_id)).value == 2


@pytest.mark.asyncio
async def test_children_of_a_debugged_run_are_debugged(home: str) -> None:
    @pipeline
    async def parent() -> int:
        return await steps_in(4)

    async with Engine(home):
        assert await parent.with_options(debug=True)() == 4
        assert set(THREADS) == {threading.get_ident()}


@pytest.mark.asyncio
async def test_logs_of_debugged_steps_are_kept(home: str) -> None:
    import logging

    @step
    def says() -> None:
        logging.getLogger("x").warning("while debugging")

    @pipeline
    async def one() -> None:
        await says()

    async with Engine(home) as engine:
        result: Any = await engine.run(one.with_options(debug=True))
        assert [record.message for record in await engine.logs(result.run_id)] == ["while debugging"]  # type: ignore[attr-defined]  # a log record
