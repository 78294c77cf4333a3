"""A rate spaces the starts of a step over an engine's time, and nothing else."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from treadle import Engine, Retry, pipeline, step, unmapped
from treadle.testing import VirtualClock, memory_engine


class Starts:
    """The times at which bodies began."""

    def __init__(self, clock: VirtualClock, until: Any) -> None:
        self.clock, self._until = clock, until
        self.times: list[float] = []
        self.names: list[Any] = []

    def note(self, name: Any = None) -> None:
        self.times.append(round(self.clock.monotonic(), 6))
        self.names.append(name)

    async def reach(self, count: int) -> None:
        """Let so many start, from timer to timer."""
        while len(self.times) < count:
            had = len(self.times)
            async with asyncio.timeout(20):
                wait = await self.clock.wait_for_timer()
            await self.clock.advance(wait)
            if wait:  # else it was the delay of a retry
                await self._until(lambda had=had: len(self.times) > had)

    async def at_once(self, count: int) -> None:
        """Let so many start, and see that no more do."""
        await self._until(lambda: len(self.times) == count)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(self.times) == count


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def starts(clock: VirtualClock, until: Any) -> Starts:
    return Starts(clock, until)


@pytest.mark.asyncio
async def test_starts_are_evenly_spaced_after_one_second_s_worth_at_once(clock: VirtualClock, starts: Starts) -> None:
    @step(rate="10/s", cache=False, persist=False)
    async def ask(x: int) -> int:
        starts.note(x)
        return x

    @pipeline
    async def asking() -> list[int]:
        return await ask.map(range(25))

    async with memory_engine(clock=clock) as engine:
        handle = await engine.start(asking)
        await starts.at_once(10)
        await starts.reach(25)
        assert await handle == list(range(25))
    assert starts.times == [0.0] * 10 + [round(0.1 * n, 6) for n in range(1, 16)]
    assert starts.names == list(range(25)), "first come, first served"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("rate", "spaced"),
    [("10/h", [0.0, 360.0, 720.0]), ("90/min", [0.0, 0.666667, 1.333333]), ("0.5/s", [0.0, 2.0, 4.0])],
)
async def test_what_is_slower_than_one_a_second_starts_one_at_a_time(
    rate: str, spaced: list[float], clock: VirtualClock, starts: Starts
) -> None:
    @step(rate=rate, cache=False, persist=False)
    def ask(x: int) -> None:
        starts.note(x)

    @pipeline
    async def asking() -> None:
        await ask.map(range(3))

    async with memory_engine(clock=clock) as engine:
        handle = await engine.start(asking)
        await starts.at_once(1)
        await starts.reach(3)
        await handle
    assert starts.times == spaced


@pytest.mark.asyncio
async def test_a_pause_saves_up_one_second_s_worth_and_no_more(clock: VirtualClock, starts: Starts) -> None:
    @step(rate="5/s", cache=False, persist=False)
    async def ask(x: int) -> None:
        starts.note(x)

    @pipeline
    async def asking(count: int) -> None:
        await ask.map(range(count))

    async with memory_engine(clock=clock) as engine:
        await engine.run(asking, 5)
        await clock.advance(3600)
        handle = await engine.start(asking, 7)
        await starts.at_once(10)
        await starts.reach(12)
        await handle
    assert starts.times == [0.0] * 5 + [3600.0] * 5 + [3600.2, 3600.4]


@pytest.mark.asyncio
async def test_a_rate_holds_over_all_runs_of_an_engine_and_for_each_engine(clock: VirtualClock, starts: Starts) -> None:
    @step(rate="1/s", cache=False, persist=False)
    async def ask(name: str) -> None:
        starts.note(name)

    @pipeline
    async def asking(name: str) -> None:
        await ask.map(unmapped(name).value for _ in range(2))

    async with memory_engine(clock=clock) as first, memory_engine(clock=clock) as second:
        handles = [await first.start(asking, "a"), await first.start(asking, "b"), await second.start(asking, "c")]
        await starts.at_once(2)
        assert sorted(starts.names) == ["a", "c"]
        await starts.reach(6)
        for handle in handles:
            await handle
    assert [time for time, name in zip(starts.times, starts.names, strict=True) if name != "c"] == [0, 1, 2, 3]
    assert [time for time, name in zip(starts.times, starts.names, strict=True) if name == "c"] == [0, 1]


@pytest.mark.asyncio
async def test_a_retry_is_a_start_too(clock: VirtualClock, starts: Starts) -> None:
    @step(rate="1/s", retry=Retry(3, delay=0), cache=False)
    async def shaky(x: int) -> None:
        starts.note(x)
        if starts.names.count(x) < 3:
            raise ConnectionError

    @pipeline
    async def run() -> None:
        await shaky.map([1, 2])

    async with memory_engine(clock=clock) as engine:
        handle = await engine.start(run)
        await starts.at_once(1)
        await starts.reach(6)
        result = await handle.wait()
    assert result.success
    assert starts.times == [0, 1, 2, 3, 4, 5]


@step(rate="1/h")
async def square(x: int) -> int:
    return x * x


@pipeline
async def squaring(n: int) -> list[int]:
    return await square.map([7] * n)


@pytest.mark.asyncio
async def test_what_the_cache_has_is_no_start(home: str, clock: VirtualClock) -> None:
    engine = Engine(home)
    engine.use_clock(clock)
    async with engine:
        assert (await engine.run(squaring, 1)).value == [49]
        again = await engine.run(squaring, 500)  # no hour has passed
        assert again.value == [49] * 500
        assert {call.status for call in again.step_results.values()} == {"cached"}


@pytest.mark.asyncio
async def test_equal_calls_that_follow_another_one_are_no_starts(clock: VirtualClock) -> None:
    async with memory_engine(clock=clock) as engine:
        result = await engine.run(squaring, 50)
        assert result.value == [49] * 50
    assert sorted(call.status for call in result.step_results.values()) == ["cached"] * 49 + ["succeeded"]


@pytest.mark.asyncio
async def test_who_waits_for_its_rate_holds_no_slot_and_is_in_nobody_s_way(starts: Starts, clock: VirtualClock) -> None:
    @step(rate="1/h", cache=False, resources={"cpu": 1}, max_in_flight=1)
    async def slow(x: int) -> None:
        starts.note(x)

    @step(cache=False, resources={"cpu": 1})
    def other(x: int) -> int:
        return x

    @pipeline
    async def both() -> int:
        waiting = slow.map(range(3))
        done = len(await other.map(range(20)))
        waiting.cancel()
        return done

    async with memory_engine(clock=clock, max_concurrency=1, threads=1, resources={"cpu": 1}) as engine:
        handle = await engine.start(both)
        await starts.at_once(1)
        result = await handle.wait()
        assert result.outputs["other"] == list(range(20))
        assert engine.scheduler.running == 0
    assert starts.names == [0]
    assert clock.monotonic() == 0


@pytest.mark.asyncio
async def test_who_is_cancelled_while_it_waits_uses_up_no_start(
    starts: Starts, clock: VirtualClock, until: Any
) -> None:
    @step(rate="1/s", cache=False)
    async def ask(x: int) -> int:
        starts.note(x)
        return x

    calls: list[Any] = []

    @pipeline
    async def asking() -> list[Any]:
        calls.extend(ask.submit(x) for x in range(5))
        return await asyncio.gather(*calls, return_exceptions=True)

    async with memory_engine(clock=clock) as engine:
        handle = await engine.start(asking)
        await starts.at_once(1)
        await until(lambda: len(engine.scheduler) == 4)
        calls[1].cancel()
        calls[2].cancel()
        await starts.reach(3)
        result = await handle.wait()
        assert [call.status for call in result.step_results.values()] == [
            "succeeded", "cancelled", "cancelled", "succeeded", "succeeded",
        ]  # fmt: skip
    assert list(zip(starts.names, starts.times, strict=True)) == [(0, 0), (3, 1), (4, 2)]


@pytest.mark.asyncio
async def test_a_cancelled_run_leaves_no_timer_behind(starts: Starts, clock: VirtualClock, until: Any) -> None:
    @step(rate="1/h", cache=False)
    async def ask(x: int) -> int:
        starts.note(x)
        return x

    @pipeline
    async def asking() -> list[int]:
        return await ask.map(range(5))

    async with memory_engine(clock=clock) as engine:
        handle = await engine.start(asking)
        await starts.at_once(1)
        await until(lambda: len(engine.scheduler) == 4)
        await handle.cancel()
        assert (await handle.wait()).status == "cancelled"
        await until(lambda: engine.scheduler._alarm is None)
        assert len(engine.scheduler) == 0


@pytest.mark.asyncio
async def test_a_copy_has_a_rate_of_its_own_or_none(starts: Starts, clock: VirtualClock) -> None:
    @step(rate="1/h", cache=False)
    async def ask(x: int) -> int:
        starts.note(x)
        return x

    @pipeline
    async def asking() -> None:
        free, slow = ask.with_options(rate=None), ask.with_options(rate="2/s")
        await free.map(range(30))
        await slow.map(range(2))
        await ask.with_options(timeout=9)(0)

    async with memory_engine(clock=clock) as engine:
        assert (await engine.run(asking)).success
    assert starts.times == [0.0] * 33


@pytest.mark.asyncio
async def test_a_wide_map_that_waits_for_its_rate_is_not_as_many_tasks(starts: Starts, clock: VirtualClock) -> None:
    @step(rate="100/s", cache=False, persist=False)
    async def ask(x: int) -> None:
        starts.note(x)

    @pipeline
    async def asking() -> None:
        await ask.map(range(4_000))

    async with memory_engine(clock=clock) as engine:
        handle = await engine.start(asking)
        await starts.at_once(100)
        while len(engine.scheduler) < 3_900:
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) < 1_200
        for second in range(1, 40):
            for _ in range(100):
                await clock.advance(0.01)
            await starts.at_once(100 * (second + 1))
        await handle
    gc.collect()
    assert len(starts.times) == 4_000


@pytest.mark.asyncio
async def test_the_log_shows_a_waiting_call_as_pending(
    starts: Starts, clock: VirtualClock, until: Any, home: str
) -> None:
    @step(rate="1/s", cache=False)
    async def ask(x: int) -> int:
        starts.note(x)
        return x

    futures: list[Any] = []

    @pipeline
    async def asking() -> int:
        futures.extend([ask.submit(1), ask.submit(2)])
        return sum(await asyncio.gather(*futures))

    engine = Engine(home)
    engine.use_clock(clock)
    async with engine:
        handle = await engine.start(asking)
        await until(lambda: len(starts.times) == 1 and len(engine.scheduler) == 1)
        assert futures[1].status == "pending"
        await starts.reach(2)
        assert await handle == 3
        kinds = [event.kind async for event in engine.events(handle.id) if event.call == "ask_2"]
    assert kinds == ["CallScheduled", "CallStarted", "CallCompleted"]
