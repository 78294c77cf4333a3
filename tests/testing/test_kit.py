"""The public test kit: an engine that keeps nothing, and a clock that every delay and timeout of an engine follows."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from treadle import Retry, current, pipeline, step
from treadle.contracts import Clock
from treadle.errors import RunNotFound, RunTimeout, StepTimeout
from treadle.events import CallFailed, CallRetrying, CallStarted, Logged, MetadataLogged, Progressed
from treadle.testing import VirtualClock, memory_engine

HOUR = 3600.0
calls: list[int] = []


@step(cache=False, retry=Retry(max_attempts=3, delay="1m", max_delay="5m", jitter=False))
async def third_time_lucky(x: int) -> int:
    calls.append(x)
    if len(calls) < 3:
        raise ConnectionError(f"attempt {len(calls)}")
    return x


@pipeline
async def lucky(x: int) -> int:
    return await third_time_lucky(x)


@step(timeout="1h")
async def endless() -> None:
    await asyncio.Event().wait()


@pipeline
async def hangs() -> None:
    await endless()


@pytest.fixture(autouse=True)
def _no_calls_yet() -> None:
    calls.clear()


# -- the clock -----------------------------------------------------------------------------


def test_the_virtual_clock_is_a_clock() -> None:
    clock: Clock = VirtualClock(start=100.0)
    assert (clock.time(), clock.monotonic()) == (100.0, 0.0)


@pytest.mark.asyncio
async def test_time_passes_only_when_a_test_says_so() -> None:
    clock = VirtualClock(start=100.0)
    sleeper = asyncio.ensure_future(clock.sleep(HOUR))
    assert await clock.wait_for_timer() == HOUR
    await clock.advance(HOUR - 1)
    assert not sleeper.done()
    await clock.advance(1)
    await sleeper
    assert (clock.time(), clock.monotonic()) == (100.0 + HOUR, HOUR)


@pytest.mark.asyncio
async def test_timers_fire_in_the_order_of_their_times_and_at_those_times() -> None:
    clock = VirtualClock(start=0.0)
    fired: list[tuple[str, float]] = []

    def fire(name: str) -> None:
        fired.append((name, clock.time()))
        if name == "first":
            clock.call_later(1, fire, "made by the first")

    clock.call_later(3, fire, "last")
    clock.call_later(1, fire, "first")
    clock.call_later(1, fire, "equal, made later")
    clock.call_later(9, fire, "not yet")
    await clock.advance(5)
    expected = [("first", 1.0), ("equal, made later", 1.0), ("made by the first", 2.0), ("last", 3.0)]
    assert fired == expected
    assert clock.time() == 5.0


@pytest.mark.asyncio
async def test_a_cancelled_timer_never_fires_and_is_not_waited_for() -> None:
    clock = VirtualClock()
    fired: list[str] = []
    clock.call_later(1, fired.append, "cancelled").cancel()
    clock.call_later(2, fired.append, "kept")
    sleeper = asyncio.ensure_future(clock.sleep(1.5))
    await asyncio.sleep(0)
    sleeper.cancel()
    await asyncio.wait([sleeper])
    assert await clock.wait_for_timer() == 2.0
    await clock.advance(3)
    assert fired == ["kept"]


def test_chance_is_the_same_for_the_same_seed() -> None:
    def draws(seed: int) -> list[float]:
        clock = VirtualClock(seed=seed)
        return [clock.random() for _ in range(3)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert all(0 <= number < 1 for number in draws(3))


# -- an engine on it -----------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_waits_between_attempts_follow_the_clock() -> None:
    clock = VirtualClock(start=0.0)
    async with memory_engine(clock=clock) as engine:
        run = await engine.start(lucky, 7)
        for attempts, delay in ((1, 60.0), (2, 120.0)):
            assert await clock.wait_for_timer() == delay
            assert len(calls) == attempts
            await clock.advance(delay)
        result = await run.wait()
        assert result.value == 7
        assert result.step_results["third_time_lucky"].attempts == 3
        assert result.duration_seconds == 180.0
        retries = [event async for event in engine.events(run.id) if isinstance(event, CallRetrying)]
        assert [(event.at, event.delay_s) for event in retries] == [(0.0, 60.0), (60.0, 120.0)]


@pytest.mark.asyncio
async def test_jitter_is_drawn_from_the_clocks_chance() -> None:
    clock = VirtualClock(seed=5)
    expected = 60.0 * VirtualClock(seed=5).random()
    shaky = third_time_lucky.with_options(retry=Retry(delay=60, jitter=True))

    @pipeline
    async def jittery() -> int:
        return await shaky(1)

    async with memory_engine(clock=clock) as engine:
        run = await engine.start(jittery)
        assert await clock.wait_for_timer() == pytest.approx(expected)
        await run.cancel()


@pytest.mark.asyncio
async def test_a_timeout_of_an_hour_takes_no_time() -> None:
    clock = VirtualClock(start=0.0)
    async with memory_engine(clock=clock) as engine:
        run = await engine.start(hangs)
        assert await clock.wait_for_timer() == HOUR
        await clock.advance(HOUR)
        result = await run.wait()
        with pytest.raises(StepTimeout):
            result.raise_for_failure()
        events = [event async for event in engine.events(run.id)]
        assert [event.at for event in events if isinstance(event, CallStarted)] == [0.0]
        assert [event.at for event in events if isinstance(event, CallFailed)] == [HOUR]


@pytest.mark.asyncio
async def test_the_timeout_of_a_step_in_a_thread_follows_the_clock_too() -> None:
    let_go = threading.Event()

    @step(timeout=HOUR, cache=False)
    def stuck() -> None:
        let_go.wait()

    @pipeline
    async def waits() -> None:
        await stuck()

    clock = VirtualClock()
    async with memory_engine(clock=clock) as engine:
        run = await engine.start(waits)
        assert await clock.wait_for_timer() == HOUR
        await clock.advance(HOUR)
        result = await run.wait()
        let_go.set()
        assert isinstance(result.error, StepTimeout)


@pytest.mark.asyncio
async def test_the_timeout_of_a_run_follows_the_clock() -> None:
    clock = VirtualClock()
    async with memory_engine(clock=clock) as engine:
        run = await engine.start(hangs.with_options(timeout="30m"))
        while (due := await clock.wait_for_timer()) != HOUR / 2:
            assert due == HOUR
        await clock.advance(HOUR / 2)
        assert isinstance((await run.wait()).error, RunTimeout)


@pytest.mark.asyncio
async def test_a_step_sees_its_deadline_on_the_clock() -> None:
    seen: list[float | None] = []

    @step(timeout=30, cache=False)
    async def looks() -> None:
        seen.append(current().deadline)
        current().log_metadata(rows=3)
        current().progress(1, 2)
        logging.getLogger("mine").warning("looked")

    @pipeline
    async def looking() -> None:
        await looks()

    async with memory_engine(clock=VirtualClock(start=500.0)) as engine:
        result = await engine.run(looking)
        assert seen == [530.0]
        events = [event async for event in engine.events(result.run_id)]
        assert {type(event) for event in events} >= {MetadataLogged, Progressed, Logged}
        assert {event.at for event in events} == {500.0}


# -- an engine that keeps nothing ------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_memory_engine_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    calls[:] = [0, 0]
    async with memory_engine() as engine:
        assert (await engine.run(lucky, 3)).value == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.asyncio
async def test_memory_engines_know_nothing_of_each_other() -> None:
    calls[:] = [0, 0]
    async with memory_engine() as one, memory_engine() as other:
        result = await one.run(lucky, 3)
        assert [run.run_id for run in await one.runs()] == [result.run_id]
        assert await other.runs() == []
        with pytest.raises(RunNotFound):
            await other.get_run(result.run_id)


@pytest.mark.asyncio
async def test_a_memory_engine_takes_the_options_of_an_engine() -> None:
    @step
    async def counted(x: int) -> int:
        calls.append(x)
        return x

    @pipeline
    async def counting() -> None:
        await counted(1)
        await counted(1)

    async with memory_engine(cache=False) as engine:
        assert (await engine.run(counting)).success
    assert calls == [1, 1]
