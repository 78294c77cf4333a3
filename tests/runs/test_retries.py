"""Attempts: how many, how far apart, after which errors, and what is recorded of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from treadle import EncodeError, Engine, Retry, pipeline, step
from treadle.errors import CircuitOpen, StepTimeout
from treadle.events import CallRetrying

Drive = Callable[[Any], Any]


class Flaky:
    """A step that fails a number of times, and a pipeline of it."""

    def __init__(self, failures: int, error: BaseException | None = None, **options: Any) -> None:
        self.attempts = 0

        @step(name="flaky", cache=False, **options)
        async def flaky(x: int) -> int:
            self.attempts += 1
            if self.attempts <= failures:
                raise error or ConnectionError(f"attempt {self.attempts}")
            return x

        @pipeline(name="flaky_pipeline")
        async def flaky_pipeline(x: int) -> int:
            return await flaky(x)

        self.step, self.pipeline = flaky, flaky_pipeline


QUICK = Retry(max_attempts=4, delay=0.001, jitter=False)


async def retries(engine: Engine, run_id: str) -> list[CallRetrying]:
    return [event async for event in engine.events(run_id) if isinstance(event, CallRetrying)]


def test_a_failed_attempt_is_tried_again_and_every_failure_is_recorded(drive: Drive, home: str) -> None:
    async def main() -> None:
        flaky = Flaky(2, retry=QUICK)
        async with Engine(home) as engine:
            result = await engine.run(flaky.pipeline, 5)
            assert result.value == 5
            assert flaky.attempts == 3
            call = result.step_results["flaky"]
            assert (call.status, call.attempts, call.error) == ("succeeded", 3, None)
            found = await retries(engine, result.run_id)
            assert [event.attempt for event in found] == [1, 2]
            assert [event.delay_s for event in found] == [0.001, 0.002]
            assert [event.failure.message for event in found] == ["attempt 1", "attempt 2"]

    drive(main())


@pytest.mark.asyncio
async def test_the_last_failure_is_raised_as_itself_with_run_call_and_attempt(home: str) -> None:
    flaky = Flaky(9, retry=Retry(max_attempts=3, delay=0))
    async with Engine(home) as engine:
        with pytest.raises(ConnectionError, match="attempt 3") as caught:
            await flaky.pipeline(1)
        (run,) = await engine.runs()
        notes = "\n".join(caught.value.__notes__)
        assert "flaky" in notes
        assert run.run_id in notes
        assert "attempt 3" in notes
        assert run.step_results["flaky"].attempts == 3
        assert flaky.attempts == 3


@pytest.mark.asyncio
async def test_the_number_given_to_retry_is_of_extra_attempts(home: str) -> None:
    flaky = Flaky(9, retry=1)
    async with Engine(home) as engine:
        assert (await engine.run(flaky.pipeline, 1)).status == "failed"
        assert flaky.attempts == 2
        none = Flaky(9)
        assert (await engine.run(none.pipeline, 1)).status == "failed"
        assert none.attempts == 1


@pytest.mark.asyncio
async def test_only_the_named_errors_are_retried(home: str) -> None:
    policy = Retry(max_attempts=3, delay=0, on=(ConnectionError,))
    async with Engine(home) as engine:
        other = Flaky(9, ValueError("no"), retry=policy)
        assert (await engine.run(other.pipeline, 1)).status == "failed"
        assert other.attempts == 1
        derived = Flaky(9, ConnectionResetError("no"), retry=policy)
        assert (await engine.run(derived.pipeline, 1)).status == "failed"
        assert derived.attempts == 3


@pytest.mark.parametrize(
    "error", [EncodeError("no"), CircuitOpen("no"), asyncio.CancelledError()], ids=lambda error: type(error).__name__
)
@pytest.mark.asyncio
async def test_some_errors_are_never_retried(home: str, error: BaseException) -> None:
    flaky = Flaky(9, error, retry=QUICK)
    async with Engine(home) as engine:
        result = await engine.run(flaky.pipeline, 1)
        assert result.status in ("failed", "cancelled")
        assert flaky.attempts == 1


@pytest.mark.asyncio
async def test_what_cannot_be_stored_is_not_performed_again(home: str) -> None:
    performed: list[int] = []

    @step(retry=QUICK, cache=False)
    async def makes_a_lock() -> Any:
        import threading

        performed.append(1)
        return threading.Lock()

    @pipeline
    async def locks() -> Any:
        return await makes_a_lock()

    async with Engine(home) as engine:
        result = await engine.run(locks)
        assert isinstance(result.error, EncodeError)
        assert "persist=False" in str(result.error)
        assert performed == [1]


@pytest.mark.asyncio
async def test_a_timeout_is_retried_whatever_the_named_errors_are(home: str) -> None:
    attempts: list[int] = []

    @step(cache=False, timeout=0.05, retry=Retry(max_attempts=2, delay=0, on=(KeyError,)))
    async def slow_at_first() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            await asyncio.Event().wait()
        return "at last"

    @pipeline
    async def one() -> str:
        return await slow_at_first()

    async with Engine(home) as engine:
        result = await engine.run(one)
        assert result.value == "at last"
        (event,) = await retries(engine, result.run_id)
        assert event.failure.type_name.endswith("StepTimeout")


@pytest.mark.asyncio
async def test_max_time_ends_the_attempts(home: str) -> None:
    flaky = Flaky(9, retry=Retry(max_attempts=9, delay="10s", jitter=False, max_time="5s"))
    async with Engine(home) as engine:
        assert (await engine.run(flaky.pipeline, 1)).status == "failed"
        assert flaky.attempts == 1


@pytest.mark.asyncio
async def test_a_call_that_waits_for_its_next_attempt_holds_no_slot(home: str) -> None:
    order: list[str] = []

    @step(cache=False, retry=Retry(max_attempts=2, delay=0.2, jitter=False))
    async def fails_once() -> None:
        order.append("fails_once")
        if len(order) == 1:
            raise ConnectionError

    @step(cache=False)
    async def quick() -> None:
        order.append("quick")

    @pipeline
    async def both() -> None:
        await asyncio.gather(fails_once(), quick())

    async with Engine(home, max_concurrency=1, threads=1) as engine:
        assert (await engine.run(both)).success
        assert order == ["fails_once", "quick", "fails_once"]


@pytest.mark.asyncio
async def test_a_call_can_be_cancelled_between_two_attempts(home: str) -> None:
    flaky = Flaky(9, retry=Retry(max_attempts=3, delay="1h", jitter=False))
    async with Engine(home) as engine:
        handle = flaky.pipeline.start(1)
        async for event in handle.events():
            if event.kind == "CallRetrying":
                break
        await handle.cancel()
        result = await engine.get_run(handle.id)
        assert result.status == "cancelled"
        assert result.step_results["flaky"].status == "cancelled"
        assert flaky.attempts == 1


@pytest.mark.asyncio
async def test_sync_steps_are_retried_alike(home: str) -> None:
    attempts: list[int] = []

    @step(cache=False, retry=QUICK)
    def flaky() -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError
        return len(attempts)

    @pipeline
    def one() -> int:
        return flaky()

    async with Engine(home) as engine:
        result = await engine.run(one)
        assert (result.value, result.step_results["flaky"].attempts) == (3, 3)


@pytest.mark.asyncio
async def test_a_waiting_time_is_drawn_from_zero_to_its_length(home: str) -> None:
    flaky = Flaky(3, retry=Retry(max_attempts=4, delay=0.01, backoff=1, jitter=True))
    async with Engine(home) as engine:
        result = await engine.run(flaky.pipeline, 1)
        delays = [event.delay_s for event in await retries(engine, result.run_id)]
        assert all(0 <= delay <= 0.01 for delay in delays)
        assert len(set(delays)) == 3


def test_a_step_timeout_is_a_timeout_error() -> None:
    assert issubclass(StepTimeout, TimeoutError)
