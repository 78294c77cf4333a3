"""Step timeouts: the answer comes in time, whatever the body does."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from treadle import Engine, current, pipeline, step
from treadle.errors import OptionError, StepTimeout, ThreadsExhausted

Drive = Callable[[Any], Any]

SOON_S = 0.5
"""How late an answer may come on a busy machine."""


@pytest.mark.asyncio
async def test_a_body_that_blocks_the_loop_past_its_deadline_has_timed_out(home: str) -> None:
    attempts: list[float] = []

    @step(timeout=0.01, retry=1, cache=False)
    async def blocking() -> int:
        attempts.append(1)
        time.sleep(0.02)  # noqa: ASYNC251  # that is what it does wrong
        return 1

    @step(timeout=10, cache=False)
    async def in_time() -> int:
        time.sleep(0.02)  # noqa: ASYNC251
        return 2

    @pipeline
    async def two() -> tuple[int, int]:
        return await in_time(), await blocking()

    async with Engine(home) as engine:
        result = await engine.run(two)
    assert isinstance(result.error, StepTimeout)
    assert {name: call.status for name, call in result.step_results.items()} == {
        "in_time": "succeeded",
        "blocking": "failed",
    }
    assert len(attempts) == 2


def test_an_async_body_is_cancelled_at_its_deadline(drive: Drive, home: str) -> None:
    cleaned: list[bool] = []

    @step(timeout=0.1, cache=False)
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    @pipeline
    async def one() -> None:
        await slow()

    async def main() -> None:
        async with Engine(home) as engine:
            begun = time.monotonic()
            with pytest.raises(StepTimeout, match=r"slow.*0\.1 s") as caught:
                await one()
            assert 0.1 <= time.monotonic() - begun < 0.1 + SOON_S
            assert isinstance(caught.value, TimeoutError)
            assert caught.value.timeout_s == 0.1
            assert cleaned == [True]
            (run,) = await engine.runs()
            assert run.status == "failed"
            assert run.step_results["slow"].status == "failed"
            assert isinstance(run.step_results["slow"].error, StepTimeout)

    drive(main())


def test_a_thread_is_left_behind_at_the_deadline_and_its_late_result_dropped(
    drive: Drive, home: str, until: Any
) -> None:
    release = threading.Event()

    @step(timeout=0.1, cache=False)
    def stuck() -> str:
        release.wait(20)
        return "late"

    @step(cache=False)
    def quick() -> str:
        return "quick"

    @pipeline
    async def one() -> None:
        await stuck()

    @pipeline
    async def another() -> str:
        return await quick()

    async def main() -> None:
        async with Engine(home, threads=1) as engine:
            begun = time.monotonic()
            with pytest.raises(StepTimeout):
                await one()
            assert time.monotonic() - begun < 0.1 + SOON_S
            assert engine.metrics()["threads_abandoned"] == 1
            with pytest.raises(ThreadsExhausted, match="1 worker thread"):
                await another()
            assert engine.health()["status"] == "degraded"
            release.set()
            await until(lambda: not engine.metrics()["threads_abandoned"])
            assert engine.metrics()["late_results"] == 1
            assert await another() == "quick"
            assert engine.health()["status"] == "ok"
            assert (await engine.runs(pipeline="one"))[0].step_results["stuck"].status == "failed"

    drive(main())


def test_a_body_that_swallows_its_cancellation_does_not_delay_the_answer(drive: Drive, home: str, until: Any) -> None:
    async def main() -> None:
        release = asyncio.Event()

        @step(timeout=0.1, cache=False)
        async def stubborn() -> str:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
            return "late"

        @pipeline
        async def one() -> str:
            return await stubborn()

        async with Engine(home) as engine:
            begun = time.monotonic()
            with pytest.raises(StepTimeout):
                await one()
            assert time.monotonic() - begun < 0.1 + SOON_S
            assert engine.metrics()["bodies_abandoned"] == 1
            release.set()
            await until(lambda: not engine.metrics()["bodies_abandoned"])
            assert (await engine.runs())[0].step_results["stubborn"].status == "failed"

    drive(main())


@pytest.mark.asyncio
async def test_a_timeout_is_for_each_attempt(home: str) -> None:
    waited: list[float] = []

    @step(timeout=0.2, cache=False, retry=2)
    async def slow() -> None:
        assert current().deadline is not None
        waited.append(current().deadline - time.time())  # type: ignore[operator]  # asserted above
        await asyncio.Event().wait()

    @pipeline
    async def one() -> None:
        await slow()

    async with Engine(home) as engine:
        result = await engine.run(one)
        assert isinstance(result.error, StepTimeout)
        assert len(waited) == 3
        assert all(0 < left <= 0.2 for left in waited)
        assert result.step_results["slow"].attempts == 3


@pytest.mark.asyncio
async def test_waiting_for_inputs_or_a_slot_uses_up_no_timeout(home: str) -> None:
    @step(cache=False)
    async def slow(x: int) -> int:
        await asyncio.sleep(0.3)
        return x

    @step(timeout=0.25, cache=False)
    async def quick(x: int) -> int:
        return x

    @pipeline(max_concurrency=1)
    async def both() -> list[int]:
        after = quick.submit(slow.submit(1))
        in_line = quick.submit(2)
        return [await after, await in_line]

    async with Engine(home):
        assert await both() == [1, 2]


@pytest.mark.asyncio
async def test_the_bodys_own_timeout_error_is_its_own(home: str) -> None:
    @step(timeout=10, cache=False)
    async def gives_up() -> None:
        raise TimeoutError("the other side")

    @pipeline
    async def one() -> None:
        await gives_up()

    async with Engine(home):
        with pytest.raises(TimeoutError, match="the other side") as caught:
            await one()
        assert not isinstance(caught.value, StepTimeout)


@pytest.mark.asyncio
async def test_result_in_a_thread_gives_up_after_its_own_timeout_and_the_call_goes_on(home: str) -> None:
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    @step(cache=False)
    async def slow() -> str:
        await release.wait()
        return "done"

    @pipeline
    def impatient() -> str:
        future = slow.submit()
        with pytest.raises(TimeoutError):
            future.result(timeout=0.05)
        loop.call_soon_threadsafe(release.set)
        return future.result(timeout=10)

    async with Engine(home):
        assert await impatient() == "done"


@pytest.mark.parametrize("timeout", [0, -1, "soon", float("nan"), True, float("inf")])
def test_a_timeout_has_to_be_a_duration_above_zero(timeout: Any) -> None:
    with pytest.raises(OptionError, match="timeout"):
        step(timeout=timeout)
    with pytest.raises(OptionError, match="timeout"):
        pipeline(timeout=timeout)
