"""The decorators beside ``@step``: any order, above and below it, and what they refuse."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from treadle import CircuitBreaker, Engine, Retry, on_failure, pipeline, retry, step, unless, when
from treadle.errors import CircuitOpen, OptionError
from treadle.testing import memory_engine, reset_breakers

MARKS: dict[str, Callable[[], Any]] = {
    "retry": lambda: retry(max_attempts=3, delay=0),
    "fallback": lambda: on_failure(lambda: "fallback"),
    "breaker": lambda: CircuitBreaker(failure_threshold=5, recovery_timeout=30),
    "when": lambda: when(lambda x: x > 0),
    "step": lambda: step(cache=False),
}


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_the_order_of_the_decorators_makes_no_difference(kind: str) -> None:
    """Breaker around each attempt, retry around it, fallback last: 5 attempts in two calls, then refused."""

    async def outcome(engine: Engine, order: tuple[str, ...]) -> Any:
        attempts: list[int] = []

        async def on_the_loop(x: int) -> str:
            attempts.append(x)
            raise ConnectionError("down")

        def in_a_thread(x: int) -> str:
            attempts.append(x)
            raise ConnectionError("down")

        target: Any = on_the_loop if kind == "async" else in_a_thread
        for name in order:
            target = MARKS[name]()(target)

        @pipeline
        async def three() -> list[Any]:
            return [await target(x) for x in (0, 1, 2, 3)]

        reset_breakers()
        result = await engine.run(three)
        told = [(call.status, call.attempts, call.fallback) for call in result.step_results.values()]
        return result.value, attempts, told

    async def main() -> None:
        expected = (
            [None, "fallback", "fallback", "fallback"],
            [1, 1, 1, 2, 2],
            [("skipped", 0, False), ("succeeded", 3, True), ("succeeded", 2, True), ("succeeded", 0, True)],
        )
        async with memory_engine() as engine:
            for order in itertools.islice(itertools.permutations(MARKS), 0, None, 1 if kind == "async" else 5):
                assert await outcome(engine, order) == expected, order

    asyncio.run(main())


@pytest.mark.asyncio
async def test_the_steps_page_example_runs_as_it_is_written(home: str) -> None:
    calls: list[int] = []

    class external_api:
        @staticmethod
        def get_data() -> dict[str, str]:
            calls.append(1)
            raise ConnectionError("no answer")

    def fallback_data() -> dict[str, str]:
        return {"status": "unavailable"}

    @step
    @retry(max_attempts=3, backoff=2.0)
    @on_failure(fallback_data)
    @CircuitBreaker(failure_threshold=5)
    def fetch_data() -> dict[str, str]:
        return external_api.get_data()

    @pipeline
    async def fetching() -> dict[str, str]:
        return await fetch_data()

    async with Engine(home) as engine:
        result = await engine.run(fetching)
    assert result.value == {"status": "unavailable"}
    assert len(calls) == 3
    assert result.success
    call = result.step_results["fetch_data"]
    assert (call.status, call.success, call.fallback, call.attempts) == ("succeeded", True, True, 3)


def test_outside_of_a_run_a_decorated_step_is_its_plain_function() -> None:
    @on_failure(lambda: -1)
    @step
    @retry(max_attempts=3)
    @CircuitBreaker(failure_threshold=1)
    @when(lambda x: x > 100)
    def half(x: int) -> float:
        return 1 / x

    assert half(2) == 0.5
    assert half.fn(4) == 0.25
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            half(0)


def test_a_decorator_above_a_step_gives_a_changed_copy_and_leaves_the_step_alone() -> None:
    @step
    async def ask(x: int) -> int:
        raise ValueError(x)

    kept = on_failure(lambda x: -x)(ask)
    assert kept is not ask
    assert type(kept) is type(ask)
    assert kept.name == "ask"

    @pipeline
    async def both() -> tuple[int, BaseException | None]:
        other = ask.submit(3)
        await asyncio.wait([other])
        return await kept(2), other.exception()

    value, error = both.run().value
    assert value == -2
    assert isinstance(error, ValueError)


@pytest.mark.asyncio
async def test_a_copy_with_other_options_keeps_what_the_decorators_said() -> None:
    @step
    @on_failure(lambda: "fallback")
    @when(lambda x: x > 0)
    async def ask(x: int) -> str:
        raise ValueError(x)

    other = ask.with_options(name="other", retry=Retry(2, delay=0))

    @pipeline
    async def both() -> list[Any]:
        return [await other(1), await other(0)]

    async with memory_engine() as engine:
        result = await engine.run(both)
    assert result.value == ["fallback", None]
    assert result.step_results["other"].attempts == 2


@pytest.mark.asyncio
async def test_retry_as_a_decorator_is_the_option(home: str) -> None:
    class Refused(Exception):
        pass

    attempts: list[int] = []

    @retry(max_attempts=4, delay=0, on=ConnectionError)
    @step
    async def ask(kind: str) -> str:
        attempts.append(1)
        raise ConnectionError if kind == "c" else Refused

    @pipeline(retry=7)
    async def asking(kind: str) -> str:
        return await ask(kind)

    async with Engine(home) as engine:
        assert isinstance((await engine.run(asking, "c")).error, ConnectionError)
        assert len(attempts) == 4
        assert isinstance((await engine.run(asking, "r")).error, Refused)
        assert len(attempts) == 5
        # the options of one call count for more than those of the step
        override = ask.with_options(retry=0)

        @pipeline
        async def once() -> str:
            return await override("c")

        assert isinstance((await engine.run(once)).error, ConnectionError)
        assert len(attempts) == 6


def _def(x: int) -> int:
    return x


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "retry beside step(retry=)": (lambda: step(retry=2)(retry()(lambda x: x)), "given two of retry"),
    "retry above step(retry=)": (lambda: retry()(step(retry=Retry(2))(lambda x: x)), "given two of retry"),
    "retry twice": (lambda: step(retry()(retry()(lambda x: x))), "given two of retry"),
    "retry above and below": (lambda: retry()(step(retry()(lambda x: x))), "given two of retry"),
    "two fallbacks": (lambda: step(on_failure(_def)(on_failure(_def)(lambda x: x))), "given two of on_failure"),
    "two breakers": (lambda: CircuitBreaker()(step(CircuitBreaker()(lambda x: x))), "given two of CircuitBreaker"),
    "attempts": (lambda: retry(max_attempts=0), "max_attempts=0"),
    "delay": (lambda: retry(delay="soon"), "delay='soon'"),
    "backoff": (lambda: retry(backoff=0.5), "backoff=0.5"),
    "on": (lambda: retry(on=KeyboardInterrupt), "on=<class 'KeyboardInterrupt'>"),  # type: ignore[arg-type]
    "threshold": (lambda: CircuitBreaker(failure_threshold=0), "failure_threshold=0"),
    "threshold flag": (lambda: CircuitBreaker(failure_threshold=True), "failure_threshold=True"),
    "recovery": (lambda: CircuitBreaker(recovery_timeout=-1), "recovery_timeout=-1"),
    "fallback value": (lambda: on_failure({"a": 1}), "not a function"),  # type: ignore[call-overload]
    "predicate value": (lambda: when(True), "not a function"),  # type: ignore[call-overload]
    "unless value": (lambda: unless(None), "not a function"),  # type: ignore[call-overload]
    "retry without parentheses": (lambda: retry(_def), "with parentheses: @retry"),  # type: ignore[arg-type]
    "breaker without parentheses": (lambda: CircuitBreaker(_def), "with parentheses: @CircuitBreaker"),  # type: ignore[arg-type]
    "on_failure without parentheses": (lambda: step(on_failure(_def)), "with parentheses: @on_failure"),
    "when without parentheses": (lambda: step(when(_def)), "with parentheses: @when"),
    "a class": (lambda: retry()(dict), "belongs to a step"),
    "a pipeline": (lambda: on_failure(_def)(pipeline(_def)), "belongs to a step"),
    "no function": (lambda: when(_def)(3), "belongs to a step"),
    "a builtin": (lambda: retry()(len), "cannot mark"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_where_it_is_written(case: str) -> None:
    write, text = REFUSED[case]
    with pytest.raises(OptionError) as caught:
        write()
    assert text in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("mark", [when, unless, on_failure])
def test_a_generator_is_refused_since_what_it_gives_is_never_an_answer(mark: Callable[[Any], Any]) -> None:
    def yields(x: int) -> Iterator[bool]:
        yield x > 0

    async def yields_later(x: int) -> AsyncIterator[bool]:
        yield x > 0

    for generator in (yields, yields_later):
        with pytest.raises(OptionError, match=rf"got the generator .*{generator.__name__}"):
            mark(generator)


def test_a_refused_option_names_itself() -> None:
    with pytest.raises(OptionError) as caught:
        CircuitBreaker(recovery_timeout="soon")
    assert caught.value.option == "recovery_timeout"
    assert CircuitBreaker(recovery_timeout="2m").recovery_timeout == 120.0
    assert repr(CircuitBreaker()) == "CircuitBreaker(failure_threshold=5, recovery_timeout=30)"


@pytest.mark.asyncio
async def test_circuit_open_encode_errors_and_ends_are_never_retried(calling: Callable[..., Any]) -> None:
    from treadle.errors import EncodeError, LogUnavailable

    attempts: list[str] = []

    @step
    @retry(max_attempts=3, delay=0, on=(Exception,))
    async def ends(kind: str) -> Any:
        attempts.append(kind)
        match kind:
            case "open":
                raise CircuitOpen("elsewhere")
            case "log":
                raise LogUnavailable("elsewhere")
            case "encode":
                return lambda: 0
            case "exit":
                raise SystemExit(3)
            case _:
                raise asyncio.CancelledError

    async with memory_engine() as engine:
        errors: dict[str, type[BaseException]] = {
            "open": CircuitOpen, "log": LogUnavailable, "encode": EncodeError, "exit": RuntimeError,
        }  # fmt: skip
        for kind, error in errors.items():
            assert isinstance((await engine.run(calling(ends), kind)).error, error)
        assert (await engine.run(calling(ends), "cancel")).status == "cancelled"
    assert attempts == ["open", "log", "encode", "exit", "cancel"]
