"""What a resumed run takes over of fallbacks and conditions, and what it finds out again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from treadle import CircuitBreaker, Engine, on_failure, pipeline, retry, step, when
from treadle.events import CallReused, CallSkipped


class World:
    """What the steps look at and leave traces in; a test changes it between a run and its resume."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.failing = {"end", "ask"}
        self.is_wanted = False

    def visit(self, label: str) -> None:
        self.asked[label] += 1
        if label in self.failing:
            raise ConnectionError(label)

    def fallback(self) -> str:
        self.asked["fallback"] += 1
        return "fallback"

    def predicate(self) -> bool:
        self.asked["predicate"] += 1
        return self.is_wanted


WORLD = World()


@pytest.fixture(autouse=True)
def world() -> World:
    WORLD.__init__()  # type: ignore[misc]  # the steps hold this object
    return WORLD


@step
@on_failure(lambda: WORLD.fallback())
async def ask(x: int) -> str:
    WORLD.visit("ask")
    return "answer"


@step
@when(lambda: WORLD.predicate())
async def maybe(x: int) -> int:
    WORLD.visit("maybe")
    return x


@step
async def after(x: int) -> int:
    WORLD.visit("after")
    return x


@step(cache=False)
async def end(*given: Any) -> tuple[Any, ...]:
    WORLD.visit("end")
    return given


@pipeline
async def asking() -> Any:
    return await end(await ask(1))


@pipeline
async def deciding() -> Any:
    skipped = maybe.submit(1)
    return await end(await maybe(2), skipped, after.submit(skipped))


@step
@retry(max_attempts=2, delay=0)
@CircuitBreaker(failure_threshold=1)
@on_failure(lambda: WORLD.fallback())
async def guarded(x: int) -> str:
    WORLD.visit("ask")
    return "answer"


@pipeline
async def guarding() -> Any:
    return await end(await guarded(1), await guarded(2))


async def fails_and_is_resumed(engine: Engine, target: Any) -> Any:
    failed = await engine.run(target)
    assert failed.status == "failed"
    WORLD.failing = set()
    return await engine.resume(failed.run_id)


@pytest.mark.asyncio
async def test_a_resume_takes_what_a_fallback_gave(home: str) -> None:
    async with Engine(home) as engine:
        result = await fails_and_is_resumed(engine, asking)
        assert result.value == ("fallback",)
        call = result.step_results["ask"]
        assert (call.status, call.reused, call.fallback, call.success) == ("succeeded", True, True, True)
        assert WORLD.asked == {"ask": 1, "fallback": 1, "end": 2}
        assert result.reused == 1
        # and it is still not for the cache
        WORLD.asked.clear()
        assert (await engine.run(asking)).value == ("answer",)
        assert WORLD.asked == {"ask": 1, "end": 1}


@pytest.mark.asyncio
async def test_a_resume_takes_a_fallback_that_stood_in_for_a_refused_call(home: str) -> None:
    async with Engine(home) as engine:
        result = await fails_and_is_resumed(engine, guarding)
        assert result.value == ("fallback", "fallback")
        first, second = result.step_results["guarded"], result.step_results["guarded_2"]
        assert (first.attempts, first.reused, first.fallback) == (1, True, True)
        assert (second.attempts, second.reused, second.fallback) == (0, True, True)
        assert WORLD.asked == {"ask": 1, "fallback": 2, "end": 2}


@pytest.mark.asyncio
async def test_a_resume_does_not_ask_a_condition_again_that_left_a_call_out(home: str) -> None:
    async with Engine(home) as engine:
        failed = await engine.run(deciding)
        assert failed.status == "failed"
        assert WORLD.asked == {"predicate": 2, "end": 1}
        WORLD.failing, WORLD.is_wanted = set(), True
        result = await engine.resume(failed.run_id)
        assert result.value == (None, None, None)
        assert WORLD.asked == {"predicate": 2, "end": 2}
        told = {name: (call.status, call.skip_reason, call.reused) for name, call in result.step_results.items()}
        assert told["maybe"] == told["maybe_2"] == ("skipped", "condition", True)
        assert told["after"][:2] == ("skipped", "condition")
        events = [event async for event in engine.events(result.run_id)]
        assert [event.call for event in events if isinstance(event, CallReused)] == ["maybe_2", "maybe"] or [
            event.call for event in events if isinstance(event, CallReused)
        ] == ["maybe", "maybe_2"]
        skips = [event for event in events if isinstance(event, CallSkipped)]
        assert {event.call: bool(event.identity) for event in skips} == {"maybe": True, "maybe_2": True, "after": False}


@pytest.mark.asyncio
async def test_a_recovery_leaves_the_same_calls_out(home: str) -> None:
    async with Engine(home, close_timeout=0) as engine:
        failed = await engine.run(deciding)
        assert failed.status == "failed"
        WORLD.failing, WORLD.is_wanted = set(), True
        result = await engine.resume(failed.run_id, changed="keep")
        assert result.value == (None, None, None)
    assert WORLD.asked == {"predicate": 2, "end": 2}
