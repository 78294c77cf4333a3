"""``@when`` and ``@unless``: what a predicate gets, and what becomes of a call that it leaves out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from treadle import Engine, current, on_failure, pipeline, retry, step, unless, when
from treadle.errors import OptionError, TreadleError
from treadle.events import CallSkipped, CallStarted
from treadle.testing import memory_engine

Calling = Callable[..., Any]

WORLD: dict[str, list[Any]] = {}
"""What steps and predicates leave traces in where it must not be part of them: what they close over is."""


def deciding(predicate: Callable[..., Any], wanted: bool = True) -> Any:
    """A step with parameters of every ordinary kind."""

    @step(cache=False)
    @(when if wanted else unless)(predicate)
    async def decide(data: Any, limit: int = 10, *, mode: str = "m") -> str:
        return "performed"

    return decide


async def outcome(step_: Any, calling: Calling, *args: Any, **kwargs: Any) -> Any:
    async with memory_engine() as engine:
        return await engine.run(calling(step_), *args, **kwargs)


# -- what a predicate gets ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicate", "expected"),
    [
        (lambda x: x == 1, True),
        (lambda x, y: (x, y) == (1, 2), True),
        (lambda x, y, z: (x, y, z) == (1, 2, "m"), True),
        (lambda limit: limit == 2, True),
        (lambda limit, data: (limit, data) == (2, 1), True),
        (lambda mode: mode == "m", True),
        (lambda *, limit: limit == 2, True),
        (lambda limit, /: limit == 2, True),
        (lambda data, other: (data, other) == (1, 2), True),
        (lambda: True, True),
        (lambda *values: values == (1, 2, "m"), True),
        (lambda **values: values == {"data": 1, "limit": 2, "mode": "m"}, True),
        (lambda limit, **others: others == {"data": 1, "mode": "m"}, True),
        (lambda x, bound=1: x == bound, True),
        (lambda limit, bound=1: limit == bound, False),
        (partial(lambda least, x: x >= least, 1), True),
        (bool, True),
        (callable, False),
    ],
)
@pytest.mark.asyncio
async def test_a_predicate_is_bound_by_name_if_all_its_names_match_else_by_position(
    calling: Calling, predicate: Callable[..., Any], expected: bool
) -> None:
    result = await outcome(deciding(predicate), calling, 1, 2)
    assert result.value == ("performed" if expected else None)
    result = await outcome(deciding(predicate, wanted=False), calling, 1, limit=2)
    assert result.value == (None if expected else "performed")


@pytest.mark.asyncio
async def test_a_predicate_sees_defaults_and_collected_arguments(calling: Calling) -> None:
    seen: list[Any] = []

    @step(cache=False)
    @when(lambda items, limit, more: seen.append((items, limit, more)) or True)
    def collects(first: int, *items: int, limit: int = 5, **more: int) -> None: ...

    await outcome(collects, calling, 1)
    await outcome(collects, calling, 1, 2, 3, limit=4, x=6)
    assert seen == [((), 5, {}), ((2, 3), 4, {"x": 6})]


@pytest.mark.parametrize(
    ("predicate", "text"),
    [
        (lambda a, b, c: True, "it takes 3 and the step has 2"),
        (lambda x, *, other: True, "keyword-only"),
    ],
)
def test_a_predicate_that_cannot_be_bound_is_refused_at_decoration(predicate: Callable[..., Any], text: str) -> None:
    for mark, word in ((when, "when"), (unless, "unless")):
        with pytest.raises(OptionError, match=text) as caught:

            @step
            @mark(predicate)
            def narrow(data: int, limit: int) -> None: ...

        assert caught.value.option == word
        assert "narrow" in str(caught.value)


@pytest.mark.asyncio
async def test_a_predicate_gets_the_values_of_futures(home: str) -> None:
    @step
    async def load(x: int) -> list[int]:
        return [x]

    @step
    @when(lambda data: data == [3])
    async def use(data: list[int]) -> list[int]:
        return data

    @pipeline
    async def both() -> Any:
        return await use.submit(load.submit(3)), await use.submit(load.submit(4)), await use(load.submit(3))

    async with Engine(home) as engine:
        assert (await engine.run(both)).value == ([3], None, [3])


@pytest.mark.asyncio
async def test_several_conditions_have_to_hold_all_and_the_highest_is_asked_first(calling: Calling) -> None:
    asked: list[str] = []

    def ask(name: str, answer: bool) -> bool:
        asked.append(name)
        return answer

    @when(lambda data: ask("top", data is not None))
    @step(cache=False)
    @unless(lambda data: ask("middle", data < 0))
    @when(lambda data: ask("bottom", data < 10))
    async def narrow(data: int | None) -> int | None:
        return data

    found = [(await outcome(narrow, calling, value)).value for value in (None, -1, 11, 5)]
    assert found == [None, None, None, 5]
    assert asked == ["top", "top", "middle", "top", "middle", "bottom", "top", "middle", "bottom"]


# -- when and where it is asked -------------------------------------------------------------


@pytest.mark.asyncio
async def test_an_async_predicate_is_awaited_and_no_coroutine_counts_as_true(calling: Calling) -> None:
    async def is_large(x: int) -> bool:
        await asyncio.sleep(0)
        return x > 100

    class IsLarge:
        async def __call__(self, x: int) -> bool:
            return x > 100

    for predicate in (is_large, lambda x: is_large(x), IsLarge()):

        @step(cache=False)
        @when(predicate)
        async def on_the_loop(data: int) -> int:
            return data

        @step(cache=False)
        @when(predicate)
        def in_a_thread(data: int) -> int:
            return data

        for step_ in (on_the_loop, in_a_thread):
            assert (await outcome(step_, calling, 5)).value is None
            assert (await outcome(step_, calling, 500)).value == 500


@pytest.mark.asyncio
async def test_the_predicate_of_a_sync_step_does_not_block_the_loop(calling: Calling) -> None:
    loop_went_on, idents = threading.Event(), []

    def waits(x: int) -> bool:
        idents.append(threading.get_ident())
        return loop_went_on.wait(20) and current().call == "decide"

    @step
    @when(waits)
    def decide(x: int) -> int:
        return x

    async with memory_engine() as engine:
        run = asyncio.create_task(engine.run(calling(decide), 4))
        while not idents:
            await asyncio.sleep(0)
        loop_went_on.set()
        assert (await run).value == 4
    assert idents != [threading.get_ident()]


@pytest.mark.asyncio
async def test_a_predicate_that_raises_fails_the_call_with_its_error(home: str, calling: Calling) -> None:
    performed: list[int] = []

    @step
    @retry(max_attempts=3, delay=0)
    @on_failure(lambda: "fallback")
    @when(lambda x: 1 / x)
    async def decide(x: int) -> str:
        performed.append(x)
        return "performed"

    async with Engine(home) as engine:
        result = await engine.run(calling(decide), 0)
        assert isinstance(result.error, ZeroDivisionError)
        call = result.step_results["decide"]
        assert (call.status, call.attempts, call.fallback) == ("failed", 0, False)
        assert performed == []
        assert (await engine.run(calling(decide), 2)).value == "performed"


@pytest.mark.asyncio
async def test_a_predicate_is_asked_before_the_cache_and_a_skip_is_never_cached(home: str, calling: Calling) -> None:
    is_wanted = WORLD.setdefault("is_wanted", [])
    performed = WORLD.setdefault("performed", [])

    @step(version="1")
    @when(lambda: WORLD["is_wanted"][-1])
    async def decide(x: int) -> int:
        WORLD["performed"].append(x)
        return x

    async with Engine(home) as engine:
        told = []
        for wanted in (False, True, False, True):
            is_wanted.append(wanted)
            result = await engine.run(calling(decide), 1)
            told.append((result.value, result.step_results["decide"].status))
    assert told == [(None, "skipped"), (1, "succeeded"), (None, "skipped"), (1, "cached")]
    assert performed == [1]


@pytest.mark.asyncio
async def test_equal_calls_are_each_asked_for_themselves_and_performed_once(home: str) -> None:
    asked, performed = [], []

    @step
    @when(lambda x: asked.append(x) or True)
    async def decide(x: int) -> int:
        performed.append(x)
        await asyncio.sleep(0)
        return x

    @pipeline
    async def five() -> list[int]:
        return await asyncio.gather(*[decide(1) for _ in range(5)])

    async with Engine(home) as engine:
        assert (await engine.run(five)).value == [1] * 5
    assert (len(asked), len(performed)) == (5, 1)


# -- what becomes of a call that is left out -------------------------------------------------


@pytest.mark.asyncio
async def test_the_steps_page_examples_run_as_they_are_written(home: str) -> None:
    @step
    @when(lambda x: x > 100)
    def expensive_path(data: int) -> str:
        return "expensive"

    @step
    @unless(lambda x: x is None)
    def process_if_exists(data: Any) -> str:
        return "processed"

    @pipeline
    async def paths() -> list[Any]:
        return [
            await expensive_path(99), await expensive_path(101),
            await process_if_exists(None), await process_if_exists(0),
        ]  # fmt: skip

    async with Engine(home) as engine:
        result = await engine.run(paths)
    assert result.value == [None, "expensive", None, "processed"]
    assert result.success


@pytest.mark.asyncio
async def test_a_call_that_is_left_out_is_skipped_and_a_success(home: str, calling: Calling) -> None:
    async with Engine(home) as engine:
        result = await engine.run(calling(deciding(lambda x: False)), 1)
        assert (result.status, result.value) == ("succeeded", None)
        call = result.step_results["decide"]
        assert (call.status, call.skipped, call.skip_reason, call.success) == ("skipped", True, "condition", True)
        assert (call.error, call.attempts, call.cached, call.artifacts) == (None, 0, False, {})
        assert "decide" not in result.outputs
        assert "skipped" in str(result)
        events = [event async for event in engine.events(result.run_id)]
        (skipped,) = [event for event in events if isinstance(event, CallSkipped)]
        assert (skipped.reason, skipped.upstream) == ("condition", "")
        assert [given.name for given in skipped.inputs] == ["data"]
        assert not [event for event in events if isinstance(event, CallStarted)]


@pytest.mark.asyncio
async def test_its_future_gives_none_and_has_no_artifact(home: str) -> None:
    @step(outputs=["left", "right"])
    @when(lambda x: x > 0)
    async def halves(x: int) -> tuple[int, int]:
        return x, -x

    @pipeline
    async def looks() -> list[Any]:
        future = halves.submit(0)
        early = future.output("left")
        found: list[Any] = [
            await future,
            await early,
            await future.output("right"),
            future.result(),
            future.exception(),
        ]
        for look in (lambda: future.artifact, lambda: future.output("left").artifact):
            with pytest.raises(TreadleError, match="was skipped, so it has no artifact"):
                look()
        return [*found, future.artifacts, future.status, await asyncio.gather(future, halves(0))]

    async with Engine(home) as engine:
        result = await engine.run(looks)
    assert result.value == [None, None, None, None, None, {}, "skipped", [None, None]]


@pytest.mark.asyncio
async def test_none_is_an_ordinary_value(home: str) -> None:
    @step
    async def nothing() -> None:
        return None

    @step
    async def takes(x: Any, default: str | None = "default") -> Any:
        return x, default

    @step
    @when(lambda x: x is None)
    async def wants_none(x: int | None) -> str:
        return "performed"

    @pipeline
    async def ordinary() -> list[Any]:
        none = nothing.submit()
        return [
            await none, await takes.submit(none, default=none), await wants_none.submit(none),
            await takes.submit([none]), await takes.map([none, None]), none.artifact.read(), none.status,
        ]  # fmt: skip

    async with Engine(home) as engine:
        for _ in range(2):
            result = await engine.run(ordinary)
            assert result.value[:5] == [None, (None, None), "performed", ([None], "default"), [(None, "default")] * 2]
            assert result.value[5] is None
            assert result.outputs["nothing"] is None
        assert result.step_results["nothing"].status == "cached"


def test_a_def_pipeline_gets_none_too() -> None:
    @step
    @when(lambda x: x > 0)
    def positive(x: int) -> int:
        return x

    @pipeline
    def both() -> list[Any]:
        return [positive(-1), positive(1), positive.submit(-2).result(), positive.map([-1, 1]).result()]

    assert both.run().value == [None, 1, None, [None, 1]]


@pytest.mark.asyncio
async def test_debug_asks_the_conditions(home: str, calling: Calling) -> None:
    idents: list[int] = []

    @step
    @when(lambda x: idents.append(threading.get_ident()) or x > 0)
    def positive(x: int) -> int:
        return x

    async with Engine(home):
        debugging = calling(positive).with_options(debug=True)
        assert await debugging(-1) is None
        assert await debugging(1) == 1
    assert idents == [threading.get_ident()] * 2


@pytest.mark.asyncio
async def test_a_stream_may_leave_most_of_its_items_out(home: str) -> None:
    @step
    @when(lambda x: x % 1000 == 0)
    async def rarely(x: int) -> int:
        return x

    @pipeline
    async def streams() -> int:
        total = 0
        async for future in rarely.map(iter(range(5000))):
            total += await future or 0
        return total

    async with memory_engine() as engine:
        result = await engine.run(streams)
        assert result.value == 10_000
        counts = [call.status for call in result.step_results.values()]
        assert counts.count("skipped") == 4995
