"""A run keeps nothing per call once it is over: the garbage collector does not see calls, so a circle would leak."""

from __future__ import annotations

import asyncio
import gc
import inspect
import tracemalloc
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from treadle import Engine, MapFuture, Retry, StepFuture, pipeline, step
from treadle._core.machine import CallState
from treadle._runtime import lifecycle

CALLS = 60


@step(cache=False)
async def good(x: int) -> int:
    return x


@step(cache=False)
async def bad(x: int) -> int:
    raise ValueError(x)


@step(cache=False)
def threaded(x: int) -> int:
    return x


@step(outputs=("a", "b"), cache=False)
async def pair(x: int) -> tuple[int, int]:
    return x, x


@step(cache=False)
async def forever(x: int) -> int:
    await asyncio.Event().wait()
    return x


@pipeline
async def succeeds() -> None:
    await good.map(threaded.map(range(CALLS)))


@pipeline(failure_mode="continue")
async def fails() -> None:
    await asyncio.gather(*[good.submit(bad.submit(x)) for x in range(CALLS)], return_exceptions=True)


@pipeline
async def fails_fast() -> None:
    await asyncio.gather(*[forever.submit(x) for x in range(CALLS)], bad.submit(0))


@pipeline
async def splits() -> None:
    for x in range(CALLS):
        await pair.submit(x).output("a")


@pipeline
async def cancels() -> None:
    futures = [forever.submit(x) for x in range(CALLS)]
    await asyncio.sleep(0.01)
    for future in futures:
        future.cancel()
    await asyncio.wait(futures)


@pipeline
async def retries() -> None:
    for x in range(10):
        with pytest.raises(ValueError, match="0"):
            await bad.with_options(retry=1)(x * 0)


async def _observe(engine: Engine, target: Any, *args: Any) -> None:
    result = await engine.run(target, *args)
    assert result.status in ("succeeded", "failed")
    del result


@pytest.mark.parametrize(
    "target", [succeeds, fails, fails_fast, splits, cancels, retries], ids=lambda target: target.name
)
def test_no_call_survives_its_run(target: Any, tmp_path: Path) -> None:
    async def main() -> int:
        async with Engine(tmp_path) as engine:
            await _observe(engine, target)
            gc.collect()
            tracemalloc.start()
            try:
                await _settled(lambda: _observe(engine, target))
                return _live_calls()
            finally:
                tracemalloc.stop()

    assert asyncio.run(main()) < CALLS / 20


@step(cache=False, persist=False, timeout="1h")
async def takes_async(thing: Any) -> None:
    return None


@step(cache=False, persist=False, timeout="1h")
def takes_sync(thing: Any) -> None:
    return None


@step(cache=False, persist=False, retry=Retry(max_attempts=2, delay="1h"))
async def fails_and_waits(thing: Any) -> None:
    raise ValueError


@pipeline(timeout="1h")
async def gives(thing: Any) -> None:
    await takes_async(thing)
    await takes_sync(thing)
    waiting = fails_and_waits.submit(thing)
    while waiting._call.state is not CallState.DELAYED:
        await asyncio.sleep(0)
    waiting.cancel()


class Thing:
    """Something that a weak reference can watch."""


@pytest.mark.asyncio
async def test_timers_called_off_hold_no_run_until_their_time(tmp_path: Path) -> None:
    async with Engine(tmp_path) as engine:
        await engine.run(gives, Thing())
        thing = Thing()
        watch = weakref.ref(thing)
        await _observe(engine, gives.with_options(name="again"), thing)
        del thing
        for _ in range(5):
            await asyncio.sleep(0.01)
            gc.collect()
        assert watch() is None


async def _settled(act: Callable[[], Awaitable[None]]) -> None:
    await act()
    for _ in range(5):
        await asyncio.sleep(0.005)
    gc.collect()


def _live_calls() -> int:
    """Blocks that a call or its future was made of and that are still there."""
    source, first = inspect.getsourcelines(lifecycle.bind)
    binding = range(first, first + len(source))
    only = [tracemalloc.Filter(True, f"*/_runtime/{name}.py") for name in ("calls/call", "lifecycle")]
    lines = tracemalloc.take_snapshot().filter_traces(only).statistics("lineno")
    places = [(line.traceback[0].filename, line.traceback[0].lineno, line.count) for line in lines]
    return sum(count for name, number, count in places if name.endswith("call.py") or number in binding)


@pytest.mark.parametrize(("are_asked_for", "limit"), [(True, 1600), (False, 600)])
def test_the_collector_sees_no_call_that_waits_and_one_future_of_each_asked_for(
    are_asked_for: bool, limit: int, tmp_path: Path
) -> None:
    async def main() -> int:
        hold = asyncio.Event()

        @step(max_in_flight=1, cache=False)
        async def held(x: int) -> int:
            await hold.wait()
            return x

        @pipeline
        async def waits() -> int:
            gc.collect()
            before = len(gc.get_objects())
            futures: MapFuture[int] = held.map(range(1000))
            kept: list[StepFuture[int]] = list(futures) if are_asked_for else []
            for _ in range(50):
                await asyncio.sleep(0)
            gc.collect()
            seen = len(gc.get_objects()) - before
            hold.set()
            assert await futures == list(range(1000))
            del kept
            return seen

        async with Engine(tmp_path) as engine:
            return (await engine.run(waits)).value

    seen = asyncio.run(main())
    assert seen < limit, seen
