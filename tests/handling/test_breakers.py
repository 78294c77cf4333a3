"""Circuit breakers of steps: their state across calls, runs, engines and threads, in events and in ``health()``."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from treadle import CircuitBreaker, Engine, RunResult, on_failure, pipeline, retry, step
from treadle.errors import CircuitOpen, StepTimeout, ThreadsExhausted
from treadle.events import BreakerClosed, BreakerHalfOpened, BreakerOpened, CallStarted
from treadle.testing import VirtualClock, memory_engine

Calling = Callable[..., Any]
Until = Callable[[Callable[[], object]], Awaitable[None]]
EventsOf = Callable[..., Awaitable[list[Any]]]
VISITED: list[str] = []
"""Not in the closure of a step, whose content would be part of its identity."""

BREAKER_EVENTS = (BreakerOpened, BreakerHalfOpened, BreakerClosed)


class Service:
    """Something that a step asks; it counts, fails while it is down, and answers when it may."""

    def __init__(self) -> None:
        self.is_down = True
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def ask(self) -> str:
        self.asked += 1
        await self.may_answer.wait()
        if self.is_down:
            raise ConnectionError("down")
        return "answer"

    def __reduce__(self) -> Any:
        raise TypeError("has no digest")


async def errors_of(engine: Engine, target: Any, times: int = 1) -> list[type[BaseException]]:
    return [type((await engine.run(target)).error) for _ in range(times)]


@pytest.mark.asyncio
async def test_it_opens_probes_and_closes_on_the_engines_clock(calling: Calling, events_of: EventsOf) -> None:
    service = Service()

    @step(cache=False)
    @CircuitBreaker(failure_threshold=3, recovery_timeout=30)
    async def ask() -> str:
        return await service.ask()

    asking, clock = calling(ask), VirtualClock()
    async with memory_engine(clock=clock) as engine:
        assert await errors_of(engine, asking, 3) == [ConnectionError] * 3
        assert engine.health()["breakers"]["ask"] == {"state": "open", "failures": 3, "retry_after_s": 30.0}
        assert engine.health()["status"] == "ok"
        await clock.advance(12)
        refused = await engine.run(asking)
        error = refused.error
        assert isinstance(error, CircuitOpen)
        assert (error.retry_after_s, error.step, error.failures) == (18.0, "ask", 3)
        assert "ConnectionError: down" in str(error)
        assert refused.step_results["ask"].attempts == 0
        assert service.asked == 3
        await clock.advance(18)
        assert engine.health()["breakers"]["ask"]["state"] == "half_open"
        reopened = await engine.run(asking)
        assert isinstance(reopened.error, ConnectionError)
        assert [type(event) for event in await events_of(engine, reopened, *BREAKER_EVENTS)] == [
            BreakerHalfOpened,
            BreakerOpened,
        ]
        assert await errors_of(engine, asking) == [CircuitOpen]
        service.is_down = False
        await clock.advance(30)
        closed = await engine.run(asking)
        assert closed.value == "answer"
        told = await events_of(engine, closed, *BREAKER_EVENTS, CallStarted)
        assert [type(event) for event in told] == [BreakerHalfOpened, CallStarted, BreakerClosed]
        assert {(event.call, event.step) for event in told} == {("ask", "ask")}
        assert engine.health()["breakers"]["ask"] == {"state": "closed", "failures": 0, "retry_after_s": 0.0}
        assert (await engine.run(asking)).value == "answer"


@pytest.mark.asyncio
async def test_the_event_of_opening_says_how_many_failed_and_for_how_long(
    home: str, calling: Calling, events_of: EventsOf
) -> None:
    service = Service()

    @step(cache=False)
    @retry(max_attempts=5, delay=0)
    @CircuitBreaker(failure_threshold=2, recovery_timeout="1m")
    async def ask() -> str:
        return await service.ask()

    async with Engine(home) as engine:
        result = await engine.run(calling(ask))
        assert isinstance(result.error, CircuitOpen)  # an open circuit is not retried
        (opened,) = await events_of(engine, result, BreakerOpened)
        assert (opened.call, opened.attempt, opened.failures, opened.recovery_s) == ("ask", 2, 2, 60.0)
        assert result.step_results["ask"].attempts == 2
    assert service.asked == 2


@pytest.mark.asyncio
async def test_a_success_in_between_begins_the_count_anew(calling: Calling) -> None:
    service = Service()

    @step(cache=False)
    @CircuitBreaker(failure_threshold=2)
    async def ask() -> str:
        return await service.ask()

    asking = calling(ask)
    async with memory_engine() as engine:
        for _ in range(5):
            service.is_down = True
            assert await errors_of(engine, asking) == [ConnectionError]
            service.is_down = False
            assert (await engine.run(asking)).value == "answer"
        assert engine.health()["breakers"]["ask"]["state"] == "closed"


@pytest.mark.asyncio
async def test_of_a_thousand_concurrent_callers_none_comes_through_an_open_breaker_and_one_is_the_probe(
    events_of: EventsOf, until: Until
) -> None:
    service = Service()
    service.may_answer.clear()

    @step(cache=False)
    @CircuitBreaker(failure_threshold=5, recovery_timeout=30)
    async def ask(x: int) -> str:
        return await service.ask()

    @pipeline
    async def thousand() -> dict[str, int]:
        calls = ask.map(range(1000))
        counts: dict[str, int] = {}
        for result in await calls.settled():
            kind = type(result.error).__name__ if result.error is not None else "answer"
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    clock = VirtualClock()
    async with memory_engine(clock=clock) as engine:
        run = asyncio.create_task(engine.run(thousand))
        await until(lambda: service.asked == 1000)  # all of them are let through while it is closed
        service.may_answer.set()
        first = await run
        assert first.value == {"ConnectionError": 1000}
        assert [event.failures for event in await events_of(engine, first, *BREAKER_EVENTS)] == [5]

        second = await engine.run(thousand)
        assert second.value == {"CircuitOpen": 1000}
        assert service.asked == 1000

        await clock.advance(30)
        service.may_answer.clear()
        run = asyncio.create_task(engine.run(thousand))
        await until(lambda: service.asked == 1001 and engine.metrics()["calls_active"] == 1)
        service.is_down = False
        service.may_answer.set()
        third = await run
        assert third.value == {"answer": 1, "CircuitOpen": 999}
        assert [type(event) for event in await events_of(engine, third, *BREAKER_EVENTS)] == [
            BreakerHalfOpened,
            BreakerClosed,
        ]
        assert engine.health()["breakers"]["ask"]["state"] == "closed"


def test_it_is_one_for_engines_on_several_threads_and_exact_with_sync_steps() -> None:
    lock, counts = threading.Lock(), {"asked": 0}
    is_down = threading.Event()
    is_down.set()

    @step(cache=False)
    @CircuitBreaker(failure_threshold=5, recovery_timeout=30)
    def ask(x: int) -> int:
        with lock:
            counts["asked"] += 1
        if is_down.is_set():
            raise ConnectionError
        return x

    @pipeline
    async def many() -> list[str]:
        return [type(result.error).__name__ for result in await ask.map(range(250)).settled()]

    clock = VirtualClock()
    results: list[RunResult[list[str]]] = []

    def work() -> None:
        async def main() -> None:
            async with memory_engine(clock=clock, threads=4) as engine:
                results.append(await engine.run(many))

        asyncio.run(main())

    def on_four_threads() -> list[str]:
        results.clear()
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return [name for result in results for name in result.value]

    found = on_four_threads()
    assert len(found) == 1000
    # at most what was under way on 16 threads when the fifth one failed came through
    assert 5 <= counts["asked"] == found.count("ConnectionError") <= 5 + 16
    assert found.count("CircuitOpen") == 1000 - counts["asked"]

    asyncio.run(clock.advance(30))
    counts["asked"] = 0
    found = on_four_threads()
    assert counts["asked"] == 1
    assert (found.count("ConnectionError"), found.count("CircuitOpen")) == (1, 999)


@pytest.mark.asyncio
async def test_its_state_outlives_runs_and_engines(calling: Calling) -> None:
    service = Service()

    @step(cache=False)
    @CircuitBreaker(failure_threshold=2)
    async def ask() -> str:
        return await service.ask()

    async with memory_engine() as engine:
        assert await errors_of(engine, calling(ask)) == [ConnectionError]
    async with memory_engine() as engine:
        assert await errors_of(engine, calling(ask), 2) == [ConnectionError, CircuitOpen]


@pytest.mark.asyncio
async def test_each_step_of_a_factory_has_its_own_and_equal_ones_share_it(calling: Calling) -> None:
    VISITED.clear()

    def make(host: str) -> Any:
        @step(cache=False)
        @CircuitBreaker(failure_threshold=1)
        async def ask() -> str:
            VISITED.append(host)
            if host == "a":
                raise ConnectionError
            return host

        return ask

    async with memory_engine() as engine:
        assert await errors_of(engine, calling(make("a"))) == [ConnectionError]
        assert (await engine.run(calling(make("b")))).value == "b"
        assert await errors_of(engine, calling(make("a"))) == [CircuitOpen]
        assert [told["state"] for told in engine.health()["breakers"].values()] == ["open", "closed"]
    assert VISITED == ["a", "b"]


@pytest.mark.asyncio
async def test_a_step_keeps_its_breaker_while_what_it_closes_over_changes(calling: Calling) -> None:
    asked: list[int] = []

    @step(cache=False)
    @CircuitBreaker(failure_threshold=3)
    async def ask() -> None:
        asked.append(1)
        raise ConnectionError

    async with memory_engine() as engine:
        assert await errors_of(engine, calling(ask), 5) == [*[ConnectionError] * 3, *[CircuitOpen] * 2]
    assert len(asked) == 3


@pytest.mark.asyncio
async def test_steps_that_close_over_what_has_no_digest_do_not_share_one(calling: Calling) -> None:
    def make(service: Service) -> Any:
        @step(cache=False)
        @CircuitBreaker(failure_threshold=1)
        async def ask() -> str:
            return await service.ask()

        return ask

    well = Service()
    well.is_down = False
    broken, sound = make(Service()), make(well)
    async with memory_engine() as engine:
        assert await errors_of(engine, calling(broken), 2) == [ConnectionError, CircuitOpen]
        assert (await engine.run(calling(sound))).value == "answer"
        copy = broken.with_options(tags=["copy"])
        assert await errors_of(engine, calling(copy)) == [CircuitOpen]


@pytest.mark.asyncio
async def test_a_cancelled_probe_gives_its_place_to_the_next(until: Until, calling: Calling) -> None:
    service = Service()

    @step(cache=False)
    @CircuitBreaker(failure_threshold=1, recovery_timeout=30)
    async def ask() -> str:
        return await service.ask()

    @pipeline(failure_mode="continue")
    async def cancels() -> str:
        future = ask.submit()
        await until(lambda: service.asked == 2)
        future.cancel()
        await asyncio.wait([future])
        return str(future.status)

    clock = VirtualClock()
    async with memory_engine(clock=clock) as engine:
        assert await errors_of(engine, calling(ask)) == [ConnectionError]
        await clock.advance(30)
        service.may_answer.clear()
        assert (await engine.run(cancels)).value == "cancelled"
        assert engine.health()["breakers"]["ask"]["state"] == "half_open"
        service.is_down = False
        service.may_answer.set()
        assert (await engine.run(calling(ask))).value == "answer"
        assert engine.health()["breakers"]["ask"]["state"] == "closed"


@pytest.mark.asyncio
async def test_a_probe_that_swallows_its_cancellation_is_given_up(until: Until, calling: Calling) -> None:
    service, may_end = Service(), asyncio.Event()

    @step(cache=False)
    @CircuitBreaker(failure_threshold=1, recovery_timeout=30)
    async def ask() -> str:
        if service.asked == 1:
            service.asked += 1
            while not may_end.is_set():
                try:
                    await may_end.wait()
                except asyncio.CancelledError:
                    continue
        return await service.ask()

    @pipeline(failure_mode="continue")
    async def cancels() -> str:
        future = ask.submit()
        await until(lambda: service.asked == 2)
        future.cancel()
        await asyncio.wait([future])
        return str(future.status)

    clock = VirtualClock()
    async with memory_engine(clock=clock) as engine:
        assert await errors_of(engine, calling(ask)) == [ConnectionError]
        await clock.advance(30)
        run = asyncio.create_task(engine.run(cancels))
        for wait_s in (1, 4):
            assert await clock.wait_for_timer() == wait_s
            await clock.advance(wait_s)
        assert (await run).value == "cancelled"
        service.is_down = False
        assert (await engine.run(calling(ask))).value == "answer"
        may_end.set()


@pytest.mark.asyncio
async def test_timeouts_count_and_cancellations_do_not(until: Until, calling: Calling) -> None:
    service = Service()
    service.may_answer.clear()

    @step(cache=False, timeout=5)
    @CircuitBreaker(failure_threshold=2)
    async def ask() -> str:
        return await service.ask()

    @pipeline
    async def cancels() -> None:
        future = ask.submit()
        asked = service.asked
        await until(lambda: service.asked > asked)
        future.cancel()
        await asyncio.wait([future])

    clock = VirtualClock()
    async with memory_engine(clock=clock) as engine:
        for _ in range(3):
            assert (await engine.run(cancels)).status != "running"
        assert engine.health()["breakers"]["ask"]["failures"] == 0
        for _ in range(2):
            run = asyncio.create_task(engine.run(calling(ask)))
            assert await clock.wait_for_timer() == 5
            await clock.advance(5)
            assert isinstance((await run).error, StepTimeout)
        assert await errors_of(engine, calling(ask)) == [CircuitOpen]


@pytest.mark.asyncio
async def test_what_the_engine_refuses_or_cannot_store_is_no_failure_of_the_step(
    calling: Calling, until: Until
) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    @step(cache=False, name="lock")
    @CircuitBreaker(failure_threshold=1)
    async def gives_a_lock() -> Any:
        return threading.Lock()

    @step(cache=False, timeout=5)
    def stuck() -> None:
        has_begun.set()
        may_end.wait(30)

    @step(cache=False, name="sync")
    @CircuitBreaker(failure_threshold=1)
    def in_a_thread() -> None: ...

    clock = VirtualClock()
    async with memory_engine(clock=clock, threads=1) as engine:
        assert [error.__name__ for error in await errors_of(engine, calling(gives_a_lock), 2)] == ["EncodeError"] * 2
        run = asyncio.create_task(engine.run(calling(stuck)))
        await until(has_begun.is_set)
        await clock.advance(5)
        assert isinstance((await run).error, StepTimeout)
        assert await errors_of(engine, calling(in_a_thread), 2) == [ThreadsExhausted] * 2
        may_end.set()
        assert {told["state"] for told in engine.health()["breakers"].values()} == {"closed"}


@pytest.mark.asyncio
async def test_debug_neither_asks_nor_tells_the_breaker(home: str, calling: Calling) -> None:
    service = Service()

    @step(cache=False)
    @CircuitBreaker(failure_threshold=1)
    async def ask() -> str:
        return await service.ask()

    debugging = calling(ask).with_options(debug=True)
    async with Engine(home) as engine:
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await debugging()
        assert engine.health()["breakers"]["ask"]["state"] == "closed"
        assert await errors_of(engine, calling(ask), 2) == [ConnectionError, CircuitOpen]


@pytest.mark.asyncio
async def test_an_open_breaker_answers_from_the_fallback_and_from_the_cache(home: str, calling: Calling) -> None:
    VISITED.clear()

    @step(version="1")
    @CircuitBreaker(failure_threshold=1)
    @on_failure(lambda error: type(error).__name__)
    async def ask(x: int) -> str:
        VISITED.append(str(x))
        if x < 0:
            raise ConnectionError
        return "answer"

    async with Engine(home) as engine:
        found = [(await engine.run(calling(ask), x)).value for x in (1, -1, 2, 1)]
    assert found == ["answer", "ConnectionError", "CircuitOpen", "answer"]
    assert VISITED == ["1", "-1"]


def test_a_closed_engine_tells_of_no_breakers() -> None:
    assert memory_engine().health()["breakers"] == {}


@pytest.mark.asyncio
async def test_refusals_keep_nothing_alive(calling: Calling) -> None:
    import weakref

    class Payload:
        pass

    payload = Payload()
    watch = weakref.ref(payload)

    @step(cache=False, persist=False)
    @CircuitBreaker(failure_threshold=1)
    async def ask(x: Any) -> None:
        raise ConnectionError

    async with memory_engine() as engine:
        for _ in range(3):
            assert (await engine.run(calling(ask), payload)).error is not None
        del payload
        await asyncio.sleep(0)
        gc.collect()
        assert watch() is None
