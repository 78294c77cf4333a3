"""``@on_failure``: when it stands in, what it gets, where it runs, and what becomes of what it gives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from treadle import Engine, current, on_failure, pipeline, retry, step
from treadle.errors import EncodeError, OptionError, StepTimeout
from treadle.events import CallCompleted, CallFellBack
from treadle.testing import VirtualClock, memory_engine

Calling = Callable[..., Any]
Until = Callable[[Callable[[], object]], Awaitable[None]]
ATTEMPTS: list[int] = []
"""Not in the closure of a step, whose content would be part of its identity."""

EventsOf = Callable[..., Awaitable[list[Any]]]


async def value_of(step_: Any, calling: Calling, *args: Any, **kwargs: Any) -> Any:
    async with memory_engine(cache=False) as engine:
        return (await engine.run(calling(step_), *args, **kwargs)).value


# -- what it gets ---------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_fallback_without_parameters_is_called_plainly(calling: Calling) -> None:
    @step
    @on_failure(lambda: "plain")
    async def fails(x: int) -> str:
        raise ValueError(x)

    assert await value_of(fails, calling, 1) == "plain"


@pytest.mark.asyncio
async def test_a_fallback_whose_names_are_the_steps_gets_these_inputs_defaults_included(calling: Calling) -> None:
    @step
    @on_failure(lambda b, a: ("inputs", a, b))
    async def fails(a: int, b: int = 7, *, c: int = 8) -> tuple[str, int, int]:
        raise ValueError

    assert await value_of(fails, calling, 1) == ("inputs", 1, 7)
    assert await value_of(fails, calling, b=2, a=1, c=3) == ("inputs", 1, 2)


@pytest.mark.asyncio
async def test_a_fallback_with_one_other_name_gets_the_error_itself(calling: Calling) -> None:
    error = ConnectionError("the one")

    @step
    @on_failure(lambda problem: problem is error)
    def fails(x: int) -> bool:
        raise error

    assert await value_of(fails, calling, 1) is True


@pytest.mark.asyncio
async def test_a_name_of_the_step_counts_for_more_than_what_an_error_is_often_called(calling: Calling) -> None:
    @step
    @on_failure(lambda error: error)
    async def fails(error: str) -> str:
        raise ValueError

    assert await value_of(fails, calling, "input") == "input"


@pytest.mark.asyncio
async def test_parameters_with_a_default_that_are_not_the_steps_are_left_alone(calling: Calling) -> None:
    made = []
    for number in (1, 2):

        @step(name=f"fails_{number}")
        @on_failure(lambda number=number: number)
        async def fails(x: int) -> int:
            raise ValueError

        @step(name=f"fails_too_{number}")
        @on_failure(lambda x, number=number: (x, number))
        def fails_too(x: int) -> Any:
            raise ValueError

        made += [fails, fails_too]
    assert [await value_of(made_step, calling, 5) for made_step in made] == [1, (5, 1), 2, (5, 2)]


@pytest.mark.asyncio
async def test_a_fallback_may_collect_the_inputs(calling: Calling) -> None:
    @step
    @on_failure(lambda *args: args)
    async def by_position(a: int, *rest: int, b: int = 3) -> Any:
        raise ValueError

    @step
    @on_failure(lambda **kwargs: kwargs)
    async def by_name(a: int, b: int = 3, **more: int) -> Any:
        raise ValueError

    @step
    @on_failure(lambda a, /, **others: (a, others))
    async def mixed(a: int, b: int = 3) -> Any:
        raise ValueError

    assert await value_of(by_position, calling, 1, 2) == (1, (2,), 3)
    assert await value_of(by_name, calling, 1, c=4) == {"a": 1, "b": 3, "c": 4}
    assert await value_of(mixed, calling, 1) == (1, {"b": 3})


@pytest.mark.asyncio
async def test_classes_partials_objects_and_steps_may_be_fallbacks(calling: Calling) -> None:
    from functools import partial

    class Sorry:
        async def __call__(self, x: int) -> str:
            return f"sorry {x}"

    @step
    async def other(x: int) -> int:
        return x + 100

    fallbacks: list[Callable[..., Any]] = [dict, partial(max, 3, 4), Sorry(), other]
    found = []
    for fallback in fallbacks:

        @step
        @on_failure(fallback)
        def fails(x: int) -> Any:
            raise ValueError

        found.append(await value_of(fails, calling, 5))
    assert found == [{}, 4, "sorry 5", 105]


@pytest.mark.parametrize(
    "fallback",
    [lambda a, error: 0, lambda one, two: 0, lambda x, *, error: 0, lambda error, other, a=1: 0],
    ids=["mixed", "two others", "keyword", "two and one"],
)
def test_a_fallback_that_cannot_be_bound_is_refused_at_decoration(fallback: Callable[..., Any]) -> None:
    with pytest.raises(OptionError, match="which step fails cannot give") as caught:

        @step
        @on_failure(fallback)
        def fails(a: int, x: int) -> int:
            return a

    assert caught.value.option == "on_failure"


# -- when it stands in ----------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_log_says_that_a_fallback_stood_in_and_for_which_error(
    home: str, calling: Calling, events_of: EventsOf
) -> None:
    @step
    @retry(max_attempts=2, delay=0)
    @on_failure(lambda: 1)
    async def fails() -> int:
        raise ConnectionError("no answer")

    async with Engine(home) as engine:
        result = await engine.run(calling(fails))
        fell_back, completed = await events_of(engine, result, CallFellBack, CallCompleted)
        assert (fell_back.attempt, fell_back.failure.message) == (2, "no answer")
        assert fell_back.seq < completed.seq
        call = (await engine.get_run(result.run_id)).step_results["fails"]
        assert (call.status, call.success, call.fallback) == ("succeeded", True, True)
        assert (call.cached, call.error) == (False, None)
        assert result.outputs["fails"] == 1
        assert call.artifacts["fails"].read() == 1


@pytest.mark.asyncio
async def test_a_step_that_succeeds_asks_no_fallback(calling: Calling) -> None:
    asked: list[int] = []

    @step
    @retry(max_attempts=2, delay=0)
    @on_failure(lambda: asked.append(1))
    async def second_time(x: int) -> int:
        if current().attempt == 1:
            raise ValueError
        return x

    async with memory_engine() as engine:
        result = await engine.run(calling(second_time), 4)
    assert (result.value, asked, result.step_results["second_time"].fallback) == (4, [], False)


@pytest.mark.asyncio
async def test_a_timeout_falls_back_and_the_fallback_has_the_timeout_for_itself(calling: Calling, until: Until) -> None:
    under_way: list[str] = []

    async def slow() -> str:
        under_way.append("fallback")
        await asyncio.Event().wait()
        return "never"

    @step(timeout=5, name="gentle")
    @on_failure(lambda error: type(error).__name__)
    async def gentle() -> str:
        under_way.append("body")
        await asyncio.Event().wait()
        return "never"

    @step(timeout=5, name="harsh")
    @on_failure(slow)
    async def harsh() -> str:
        raise ValueError("first")

    clock = VirtualClock()
    async with memory_engine(clock=clock) as engine:
        run = asyncio.create_task(engine.run(calling(gentle)))
        await until(lambda: under_way == ["body"])
        await clock.advance(5)
        assert (await run).value == "StepTimeout"
        run = asyncio.create_task(engine.run(calling(harsh)))
        await until(lambda: under_way[-1] == "fallback")
        await clock.advance(5)
        error = (await run).error
        assert isinstance(error, StepTimeout)
        assert isinstance(error.__context__, ValueError)


@pytest.mark.asyncio
async def test_what_cannot_be_stored_falls_back_too(home: str, calling: Calling) -> None:
    @step
    @on_failure(lambda error: type(error).__name__)
    def gives_a_lock() -> Any:
        return threading.Lock()

    async with Engine(home) as engine:
        assert (await engine.run(calling(gives_a_lock))).value == EncodeError.__name__


@pytest.mark.asyncio
async def test_a_step_that_exits_falls_back(calling: Calling) -> None:
    @step
    @on_failure(lambda error: repr(error.__cause__))
    def exits() -> str:
        raise SystemExit(3)

    @step(timeout=30)
    @on_failure(lambda error: repr(error.__cause__))
    async def exits_in_time() -> str:
        raise SystemExit(4)

    assert await value_of(exits, calling) == "SystemExit(3)"
    assert await value_of(exits_in_time, calling) == "SystemExit(4)"


@pytest.mark.asyncio
async def test_a_cancelled_call_asks_no_fallback(home: str, until: Until) -> None:
    asked: list[int] = []
    started: list[int] = []

    @step
    @on_failure(lambda: asked.append(1))
    async def waits() -> None:
        started.append(1)
        await asyncio.Event().wait()

    @step
    @on_failure(lambda: asked.append(1))
    async def turns_it_into_an_error() -> None:
        started.append(1)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("stopped") from None

    @pipeline(failure_mode="continue")
    async def cancels(step_: Any) -> str:
        future = step_.submit()
        await until(lambda: started)
        future.cancel()
        await asyncio.wait([future])
        return str(future.status)

    async with Engine(home) as engine:
        assert (await engine.run(cancels, waits)).value == "cancelled"
        started.clear()
        result = await engine.run(cancels, turns_it_into_an_error)
        assert result.status != "running"
        assert not result.step_results["turns_it_into_an_error"].fallback
    assert asked == []


@pytest.mark.asyncio
async def test_a_call_whose_input_failed_asks_no_fallback(home: str) -> None:
    asked: list[int] = []

    @step
    async def fails() -> int:
        raise ValueError

    @step
    @on_failure(lambda: asked.append(1))
    async def takes(x: int) -> None: ...

    @pipeline
    async def both() -> None:
        await takes.submit(fails.submit())

    async with Engine(home) as engine:
        result = await engine.run(both)
    assert (result.status, result.step_results["takes"].skip_reason) == ("failed", "upstream")
    assert asked == []


# -- when it fails itself -------------------------------------------------------------------


@pytest.mark.parametrize("place", ["loop", "thread"])
@pytest.mark.asyncio
async def test_a_fallback_that_raises_fails_the_call_and_the_first_error_is_its_context(
    home: str, calling: Calling, place: str
) -> None:
    def gives_up() -> None:
        raise LookupError("second")

    async def on_the_loop() -> None:
        raise ConnectionError("first")

    def in_a_thread() -> None:
        raise ConnectionError("first")

    fails = step(name="fails")(on_failure(gives_up)(on_the_loop if place == "loop" else in_a_thread))
    async with Engine(home) as engine:
        result = await engine.run(calling(fails))
        error = result.error
        assert isinstance(error, LookupError)
        assert isinstance(error.__context__, ConnectionError)
        call = result.step_results["fails"]
        assert (call.status, call.attempts, call.error) == ("failed", 1, error)
        assert any("fails" in note for note in error.__notes__)


@pytest.mark.asyncio
async def test_a_fallback_that_raises_the_error_again_fails_the_call_with_it(calling: Calling) -> None:
    def again(error: Exception) -> None:
        raise error

    @step
    @on_failure(again)
    async def fails() -> None:
        raise ConnectionError("first")

    async with memory_engine() as engine:
        error = (await engine.run(calling(fails))).error
    assert isinstance(error, ConnectionError)
    assert error.__context__ is None
    assert len(error.__notes__) == 1


@pytest.mark.asyncio
async def test_a_fallbacks_outputs_are_counted_like_the_steps_own(home: str) -> None:
    @step(outputs=["left", "right"])
    @on_failure(lambda x: {"right": x, "left": -x} if x else (1, 2, 3))
    async def halves(x: int) -> tuple[int, int]:
        raise ValueError("no halves")

    @pipeline
    async def pair(x: int) -> Any:
        future = halves.submit(x)
        return await future.output("left"), await future

    async with Engine(home) as engine:
        assert (await engine.run(pair, 3)).value == (-3, {"left": -3, "right": 3})
        failed = await engine.run(pair, 0)
        assert isinstance(failed.error, OptionError)
        assert "declares 2 outputs" in str(failed.error)
        assert isinstance(failed.error.__context__, ValueError)


@pytest.mark.asyncio
async def test_a_fallback_may_be_cancelled(until: Until) -> None:
    begun: list[int] = []

    async def waits() -> None:
        begun.append(1)
        await asyncio.Event().wait()

    @step
    @on_failure(waits)
    def fails() -> None:
        raise ValueError

    @pipeline
    async def cancels() -> str:
        future = fails.submit()
        await until(lambda: begun)
        future.cancel()
        await asyncio.wait([future])
        return str(future.status)

    async with memory_engine() as engine:
        assert (await engine.run(cancels)).value == "cancelled"


# -- where it runs --------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_fallback_of_a_sync_step_does_not_block_the_loop(calling: Calling) -> None:
    loop_went_on = threading.Event()

    def waits_for_the_loop() -> tuple[bool, str]:
        return loop_went_on.wait(20), current().call

    @step
    @on_failure(waits_for_the_loop)
    def fails() -> tuple[bool, str]:
        raise ValueError

    async with memory_engine() as engine:
        run = asyncio.create_task(engine.run(calling(fails)))
        while not engine.metrics()["calls_running"]:
            await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
        loop_went_on.set()
        assert (await run).value == (True, "fails")


@pytest.mark.asyncio
async def test_a_fallback_runs_where_its_step_does_and_an_async_one_on_the_loop(calling: Calling) -> None:
    def where() -> int:
        return threading.get_ident()

    async def where_async() -> int:
        return threading.get_ident()

    async def fails() -> int:
        raise ValueError

    def fails_in_a_thread() -> int:
        raise ValueError

    here = threading.get_ident()
    found = [
        await value_of(step(name="fails")(on_failure(fallback)(body)), calling) == here
        for body in (fails, fails_in_a_thread)
        for fallback in (where, where_async)
    ]
    assert found == [True, True, False, True]


@pytest.mark.asyncio
async def test_steps_called_in_a_fallback_are_plain_functions(calling: Calling) -> None:
    @step
    async def other(x: int) -> int:
        return x + 1

    async def fallback(x: int) -> int:
        return await other(x)

    @step
    @on_failure(fallback)
    async def fails(x: int) -> int:
        raise ValueError

    async with memory_engine() as engine:
        result = await engine.run(calling(fails), 1)
    assert result.value == 2
    assert list(result.step_results) == ["fails"]


@pytest.mark.asyncio
async def test_debug_keeps_the_fallback(calling: Calling) -> None:
    @step
    @retry(max_attempts=3, delay=0)
    @on_failure(lambda: threading.get_ident())
    def fails() -> int:
        raise ValueError

    result = await asyncio.to_thread(calling(fails).with_options(debug=True).run)
    assert result.step_results["fails"].attempts == 1
    assert result.step_results["fails"].fallback


# -- cache, single flight, resume -----------------------------------------------------------


@pytest.mark.asyncio
async def test_what_a_fallback_gives_is_stored_and_never_cached(home: str, calling: Calling) -> None:
    @step(version="1")
    @on_failure(lambda: "fallback")
    async def ask(x: int) -> str:
        ATTEMPTS.append(x)
        if len(ATTEMPTS) == 1:
            raise ConnectionError
        return "answer"

    async with Engine(home) as engine:
        first = await engine.run(calling(ask), 1)
        assert (first.value, first.step_results["ask"].status) == ("fallback", "succeeded")
        assert first.step_results["ask"].artifacts["ask"].read() == "fallback"
        explained = ask.explain_cache(1)
        assert not explained.hit
        assert "fallback" in str(explained)
        assert (await engine.run(calling(ask), 1)).value == "answer"
        third = await engine.run(calling(ask), 1)
        assert (third.value, third.step_results["ask"].status) == ("answer", "cached")
    assert ATTEMPTS == [1, 1]


@pytest.mark.asyncio
async def test_a_leader_that_falls_back_serves_no_followers(home: str) -> None:
    attempts: list[int] = []

    async def at_once() -> str:
        return "fallback"

    @step
    @on_failure(at_once)
    async def ask(x: int) -> str:
        attempts.append(x)
        if len(attempts) == 1:
            await asyncio.sleep(0)
            raise ConnectionError
        return "answer"

    @pipeline
    async def five() -> list[str]:
        return await asyncio.gather(*[ask(1) for _ in range(5)])

    async with Engine(home) as engine:
        result = await engine.run(five)
    assert sorted(result.value) == ["answer"] * 4 + ["fallback"]
    assert len(attempts) == 2
    told = sorted((call.status, call.fallback) for call in result.step_results.values())
    assert told == [("cached", False)] * 3 + [("succeeded", False), ("succeeded", True)]


@pytest.mark.asyncio
async def test_followers_do_not_wait_for_the_leaders_fallback() -> None:
    attempts: list[int] = []
    may_end = asyncio.Event()

    async def slow() -> str:
        await may_end.wait()
        return "fallback"

    @step
    @on_failure(slow)
    async def ask(x: int) -> str:
        attempts.append(x)
        if len(attempts) == 1:
            raise ConnectionError
        may_end.set()
        return "answer"

    @pipeline
    async def two() -> list[str]:
        return await asyncio.gather(ask(1), ask(1))

    async with memory_engine() as engine:
        assert sorted((await engine.run(two)).value) == ["answer", "fallback"]
