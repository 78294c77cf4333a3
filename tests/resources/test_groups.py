"""Consecutive calls of an execution group share a worker thread; everything else is as without a group."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from treadle import Engine, Retry, current, pipeline, step
from treadle.errors import UpstreamFailed


class Diary:
    """Which thread began what, in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.pages: list[tuple[int, str]] = []

    def note(self, name: str) -> None:
        with self._lock:
            self.pages.append((threading.get_ident(), name))

    def thread_of(self, name: str) -> int:
        return next(thread for thread, what in self.pages if what == name)

    def on(self, thread: int) -> list[str]:
        return [what for who, what in self.pages if who == thread]


@pytest.mark.asyncio
@pytest.mark.parametrize("threads", [1, 2, 4])
async def test_a_consumer_follows_its_producer_on_the_thread_with_nothing_in_between(place: str, threads: int) -> None:
    diary = Diary()

    @step(execution_group="etl", cache=False)
    def link(x: int) -> int:
        diary.note(f"link {x}")
        return x + 1

    @step(cache=False, persist=False)
    def noise(x: int) -> int:
        diary.note("noise")
        return sum(range(500))

    @pipeline
    async def chain() -> int:
        noises = noise.map(range(300))
        last = link.submit(0)
        for _ in range(11):
            last = link.submit(last)
        await noises
        return await last

    async with Engine(place, threads=threads) as engine:
        assert (await engine.run(chain)).value == 12
    thread = diary.thread_of("link 0")
    there = diary.on(thread)
    begun = there.index("link 0")
    assert there[begun : begun + 12] == [f"link {n}" for n in range(12)]
    assert [what for _, what in diary.pages].count("noise") == 300


@pytest.mark.asyncio
async def test_awaited_calls_of_a_group_use_the_same_thread_as_well(place: str) -> None:
    diary = Diary()

    @step(execution_group="etl", cache=False)
    def load() -> int:
        diary.note("load")
        return 1

    @step(execution_group="etl", cache=False)
    def clean(x: int) -> int:
        diary.note("clean")
        return x

    @step(cache=False)
    def other(x: int) -> int:
        diary.note("other")
        return x

    @pipeline
    async def etl() -> int:
        loaded = await load()
        between = await other(loaded)
        return await clean(between)

    async with Engine(place, threads=4) as engine:
        assert (await engine.run(etl)).value == 1
    assert diary.thread_of("load") == diary.thread_of("clean")


@pytest.mark.asyncio
async def test_calls_of_a_group_that_can_run_at_once_do() -> None:
    together = threading.Barrier(3)

    @step(execution_group="etl", cache=False)
    def meet(x: int) -> int:
        together.wait(20)
        return x

    @pipeline
    async def three() -> list[int]:
        return await meet.map(range(3))

    async with Engine("memory://", threads=3) as engine:
        assert (await engine.run(three)).value == [0, 1, 2]


@pytest.mark.asyncio
async def test_threads_kept_for_a_group_serve_others_when_they_are_needed(place: str) -> None:
    @step(execution_group="etl", cache=False)
    def grouped(x: int) -> int:
        return x

    together = threading.Barrier(3)

    @step(cache=False)
    def meet(x: int) -> int:
        together.wait(20)
        return x

    @pipeline
    async def mixed() -> int:
        await grouped.map(range(10))
        return sum(await meet.map(range(3))) + sum(await grouped.map(range(10)))

    async with Engine(place, threads=3) as engine, asyncio.timeout(30):
        results = await asyncio.gather(*[engine.run(mixed.with_options(max_concurrency=3))])
        assert [result.value for result in results] == [48]
        assert not engine.pool._idle, "a run that is over keeps no thread"


@pytest.mark.asyncio
async def test_many_runs_with_groups_on_few_threads_do_not_deadlock(place: str) -> None:
    @step(execution_group="a", cache=False, resources={"cpu": 1})
    def first(x: int) -> int:
        return x + 1

    @step(execution_group="a", cache=False, max_in_flight=1)
    def second(x: int, y: int = 0) -> int:
        return x + y

    @step(execution_group="b", cache=False, rate="10000/s")
    async def third(x: int) -> int:
        return x

    @pipeline
    async def run() -> int:
        total = 0
        firsts = [first.submit(n) for n in range(6)]
        seconds = [second.submit(future, firsts[0]) for future in firsts]
        thirds = third.map(seconds)
        for value in await second.map(thirds):
            total += value
        return total

    async with Engine(place, threads=2, resources={"cpu": 1}, max_concurrency=3) as engine, asyncio.timeout(30):
        results = await asyncio.gather(*[engine.run(run) for _ in range(6)])
    assert [result.value for result in results] == [27] * 6


# -- as without a group -------------------------------------------------------------------


def build(group: str | None) -> tuple[Any, Callable[[], None]]:
    """A pipeline with retries, a failure, hits, a map and a timeout; and what resets it."""
    failures: list[int] = []

    @step(execution_group=group)
    def load(n: int) -> list[int]:
        return list(range(n))

    @step(execution_group=group, retry=Retry(3, delay=0), cache=False)
    def shaky(rows: list[int]) -> int:
        failures.append(1)
        if current().attempt < 3:
            raise ConnectionError("not yet")
        return len(rows)

    @step(execution_group=group)
    def double(x: int) -> int:
        return 2 * x

    @step(execution_group=group, cache=False)
    def broken(x: int) -> int:
        raise ValueError(f"{x} is not right")

    @step(execution_group=group)
    def after(x: int) -> int:
        return x

    @pipeline(name="same", failure_mode="continue")
    async def same() -> int:
        rows = load.submit(4)
        count = shaky.submit(rows)
        doubled = double.map(rows)
        again = double.submit(count)
        lost = after.submit(broken.submit(count))
        with pytest.raises(UpstreamFailed):
            await lost
        return sum(await doubled) + await again

    return same, failures.clear


Fact = tuple[Any, ...]


async def facts(group: str | None, home: str) -> tuple[list[dict[str, list[Fact]]], list[Any]]:
    """Per run, the events of each call, and the results."""
    target, reset = build(group)
    found: list[dict[str, list[Fact]]] = []
    values: list[Any] = []
    async with Engine(home, threads=2) as engine:
        for _ in range(2):
            reset()
            result = await engine.run(target)
            values.append((result.status, result.value, str(result.step_results["broken"].error)))
            calls: dict[str, list[Fact]] = {}
            async for event in engine.events(result.run_id):
                failure = getattr(event, "failure", None)
                calls.setdefault(event.call, []).append(
                    (event.kind, event.step, event.attempt, failure and (failure.type_name, failure.message))
                )
            found.append(calls)
    return found, values


@pytest.mark.asyncio
async def test_results_retries_caching_errors_and_log_are_the_same_with_and_without(tmp_path: Any) -> None:
    grouped, values = await facts("etl", str(tmp_path / "grouped"))
    plain, expected = await facts(None, str(tmp_path / "plain"))
    assert values == expected
    assert grouped == plain
    assert [kind for kind, *_ in grouped[0]["shaky"]].count("CallRetrying") == 2
    assert grouped[1]["load"][-1][0] == "CallCached"
    assert grouped[0]["after"][-1][0] == "CallSkipped"


@pytest.mark.asyncio
async def test_what_is_stuck_in_a_group_is_left_behind_and_the_group_goes_on(place: str, until: Any) -> None:
    let_go = threading.Event()

    @step(execution_group="g", timeout=0.05, cache=False)
    def stuck(x: int) -> int:
        let_go.wait(20)
        return x

    @step(execution_group="g", cache=False)
    def fine(x: int) -> int:
        return x

    @pipeline
    async def run() -> int:
        try:
            await stuck(1)
        except TimeoutError:
            pass
        return await fine(await fine(2))

    async with Engine(place, threads=2) as engine:
        assert (await engine.run(run)).value == 2
        assert engine.pool.abandoned == 1
        let_go.set()
        await until(lambda: engine.pool.abandoned == 0)


@pytest.mark.asyncio
async def test_a_consumer_that_is_cancelled_while_its_producer_is_committed_keeps_no_thread(place: str) -> None:
    @step(execution_group="g", cache=False)
    def work(x: int) -> int:
        return x

    @pipeline(failure_mode="continue")
    async def run() -> int:
        for n in range(20):
            first = work.submit(n)
            second = work.submit(first)
            second.cancel()
            assert await first == n
        return await work(1)

    async with Engine(place, threads=1) as engine, asyncio.timeout(30):
        result = await engine.run(run)
        assert result.value == 1
        assert engine.scheduler.running == 0
        assert engine.thread_limit.used == 0


@pytest.mark.asyncio
async def test_no_thread_of_a_group_outlives_its_engine(place: str, until: Any) -> None:
    def ours() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("treadle-step")]

    before = len(ours())
    busy = threading.Event()

    @step(execution_group="g", cache=False)
    def work(x: int) -> int:
        busy.wait(20)
        return x

    @pipeline
    async def run() -> list[int]:
        return await work.map(range(3))

    async with Engine(place, threads=3, close_timeout=0) as engine:
        await engine.start(run)
        await until(lambda: engine.scheduler.running == 3)
    busy.set()
    await until(lambda: len(ours()) == before)


@pytest.mark.asyncio
async def test_debug_runs_a_group_on_the_caller_s_thread() -> None:
    diary = Diary()

    @step(execution_group="g")
    def work(x: int) -> int:
        diary.note(f"work {x}")
        return x

    @pipeline
    async def run() -> int:
        return await work.submit(work.submit(1))

    async with Engine("memory://") as engine:
        assert (await engine.run(run.with_options(debug=True))).value == 1
    assert {thread for thread, _ in diary.pages} == {threading.get_ident()}


@pytest.mark.asyncio
async def test_the_plan_of_a_run_knows_the_group_for_executors_to_come() -> None:
    @step(execution_group="g")
    async def work(x: int) -> str | None:
        return current_group()

    def current_group() -> str | None:
        from treadle._runtime.context import active_call

        call = active_call.get()
        return None if call is None else call.plan.execution_group

    @pipeline
    async def run() -> list[str | None]:
        return [
            await work(1),
            await work.with_options(execution_group="h")(2),
            await work.with_options(execution_group=None)(3),
        ]

    async with Engine("memory://", cache=False) as engine:
        assert (await engine.run(run)).value == ["g", "h", None]
