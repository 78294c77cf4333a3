"""What a call that a condition left out is to the calls that take its output."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from treadle import Engine, StepFuture, pipeline, step, unmapped, when
from treadle.events import CallSkipped
from treadle.testing import memory_engine


@step(cache=False)
@when(lambda x: x > 0)
async def positive(x: int) -> int:
    return x


@step(cache=False)
async def needs(x: Any) -> Any:
    return ("needs", x)


@step(cache=False)
def has_default(x: Any, y: Any = "default") -> Any:
    return (x, y)


@step(cache=False)
async def many(a: Any, b: Any = "b", c: Any = "c", *rest: Any, d: Any = "d", **more: Any) -> Any:
    return (a, b, c, rest, d, more)


async def value_of(target: Any) -> Any:
    async with memory_engine() as engine:
        return (await engine.run(target)).value


@pytest.mark.asyncio
async def test_a_consumer_without_a_default_is_skipped_for_the_same_reason_and_so_on(home: str) -> None:
    @pipeline
    async def chain() -> list[Any]:
        first = positive.submit(0)
        second = needs.submit(first)
        third = needs.submit(second)
        return [await first, await second, await third, second.status, third.exception()]

    async with Engine(home) as engine:
        result = await engine.run(chain)
        assert result.value == [None, None, None, "skipped", None]
        assert result.success
        for name in ("positive", "needs", "needs_2"):
            call = result.step_results[name]
            assert (call.status, call.skip_reason, call.success, call.error) == ("skipped", "condition", True, None)
        skips = {event.call: event.upstream async for event in engine.events(result.run_id) if _is_skip(event)}
        assert skips == {"positive": "", "needs": "positive", "needs_2": "needs"}
        assert "because positive was skipped" in str(result)


def _is_skip(event: Any) -> bool:
    return isinstance(event, CallSkipped)


@pytest.mark.asyncio
async def test_a_consumer_with_a_default_for_that_input_runs_with_it() -> None:
    @pipeline
    async def defaults() -> list[Any]:
        skipped = positive.submit(0)
        return [
            await has_default.submit(1, skipped),
            await has_default.submit(1, y=skipped),
            await has_default.submit(x=1, y=skipped),
            await has_default.submit(skipped),
            await has_default.submit(skipped, skipped),
            await has_default.submit(1, unmapped(skipped)),
        ]

    assert await value_of(defaults) == [(1, "default"), (1, "default"), (1, "default"), None, None, (1, "default")]


@pytest.mark.asyncio
async def test_what_follows_a_dropped_argument_keeps_its_place() -> None:
    @pipeline
    async def places() -> list[Any]:
        skipped, given = positive.submit(0), positive.submit(7)
        return [
            await many.submit(1, skipped, 3),
            await many.submit(1, skipped, given, d=skipped),
            await many.submit(1, skipped, skipped, d=4, e=5),
            await many.submit(1, skipped, 3, 4, 5),
            await many.submit(given, c=skipped),
        ]

    assert await value_of(places) == [
        (1, "b", 3, (), "d", {}),
        (1, "b", 7, (), "d", {}),
        (1, "b", "c", (), 4, {"e": 5}),
        (1, "b", 3, (4, 5), "d", {}),
        (7, "b", "c", (), "d", {}),
    ]


@pytest.mark.asyncio
async def test_collected_arguments_are_a_container_too() -> None:
    @pipeline
    async def collected() -> Any:
        skipped = positive.submit(0)
        return await many.submit(1, 2, 3, skipped, e=skipped, f=[skipped])

    assert await value_of(collected) == (1, 2, 3, (None,), "d", {"e": None, "f": [None]})


@pytest.mark.asyncio
async def test_positional_only_parameters_have_defaults_as_well() -> None:
    @step(cache=False)
    async def fixed(a: Any, b: Any = "b", c: Any = "c", /) -> Any:
        return (a, b, c)

    @pipeline
    async def positions() -> list[Any]:
        skipped = positive.submit(0)
        return [await fixed.submit(1, skipped), await fixed.submit(1, skipped, 3), await fixed.submit(1, 2, skipped)]

    assert await value_of(positions) == [(1, "b", "c"), (1, "b", 3), (1, 2, "c")]


@pytest.mark.asyncio
async def test_the_functions_own_default_object_is_used() -> None:
    missing = object()

    @step(cache=False)
    async def is_default(x: int, y: Any = missing) -> bool:
        return y is missing

    @pipeline
    async def identical() -> list[bool]:
        skipped = positive.submit(0)
        return [await is_default.submit(1, skipped), await is_default.submit(1, y=skipped)]

    assert await value_of(identical) == [True, True]


@pytest.mark.asyncio
async def test_a_default_makes_the_same_cache_key_as_leaving_the_argument_out(home: str) -> None:
    @step
    async def cached(x: int, y: int = 5) -> int:
        return x + y

    @pipeline
    async def twice() -> list[int]:
        return [await cached(1), await cached.submit(1, positive.submit(0))]

    async with Engine(home) as engine:
        result = await engine.run(twice)
    assert result.value == [6, 6]
    assert result.step_results["cached_2"].status == "cached"


@pytest.mark.asyncio
async def test_inside_a_container_a_skipped_item_is_none() -> None:
    @pipeline
    async def containers() -> Any:
        skipped, given = positive.submit(0), positive.submit(2)
        return await needs.submit([skipped, given, {"a": (skipped,), "b": given}])

    assert await value_of(containers) == ("needs", [None, 2, {"a": (None,), "b": 2}])


@pytest.mark.asyncio
async def test_an_argument_of_its_own_counts_for_more_than_the_same_call_in_a_container() -> None:
    @pipeline
    async def both() -> Any:
        skipped = positive.submit(0)
        return [await has_default.submit([skipped], skipped), await has_default.submit(skipped, [skipped])]

    assert await value_of(both) == [([None], "default"), None]


@pytest.mark.asyncio
async def test_order_without_data_is_kept_and_skips_nobody() -> None:
    @pipeline
    async def ordered() -> Any:
        return await needs.with_options(after=positive.submit(0))(1)

    assert await value_of(ordered) == ("needs", 1)


@pytest.mark.asyncio
async def test_single_outputs_of_a_skipped_call_are_skipped_inputs() -> None:
    @step(outputs=["left", "right"], cache=False)
    @when(lambda x: x > 0)
    async def halves(x: int) -> tuple[int, int]:
        return x, -x

    @pipeline
    async def parts() -> list[Any]:
        future = halves.submit(0)
        await future
        return [
            await needs.submit(future.output("left")),
            await has_default.submit(1, future.output("right")),
            await needs.submit([future.output("left")]),
        ]

    assert await value_of(parts) == [None, (1, "default"), ("needs", [None])]


@pytest.mark.asyncio
async def test_items_of_a_map_are_left_out_one_by_one(home: str) -> None:
    @pipeline
    async def maps() -> Any:
        first = positive.map([-1, 1, -2, 2])
        second = needs.map(first)
        third = has_default.map([1, 2, 3, 4], first)
        whole = needs.submit(first)
        return [await first, await second, await third, await whole, first.status, len(first)]

    async with Engine(home) as engine:
        result = await engine.run(maps)
        assert result.value == [
            [None, 1, None, 2],
            [None, ("needs", 1), None, ("needs", 2)],
            [(1, "default"), (2, 1), (3, "default"), (4, 2)],
            ("needs", [None, 1, None, 2]),
            "succeeded",
            4,
        ]
        assert result.step_results["needs[0]"].skip_reason == "condition"


@pytest.mark.asyncio
async def test_a_map_over_a_list_that_was_left_out_has_no_calls() -> None:
    @step(cache=False)
    @when(lambda n: n > 0)
    async def numbers(n: int) -> list[int]:
        return list(range(n))

    @pipeline
    async def over() -> Any:
        return [await needs.map(numbers.submit(0)), await needs.map(numbers.submit(2))]

    assert await value_of(over) == [[], [("needs", 0), ("needs", 1)]]


@pytest.mark.asyncio
async def test_skipped_calls_stream_and_may_be_returned() -> None:
    @pipeline
    async def streams() -> Any:
        found = sorted([repr(await future) async for future in positive.map(iter([-1, 1]))])
        return {"found": found, "future": positive.submit(0), "map": positive.map([0, 3])}

    assert await value_of(streams) == {"found": ["1", "None"], "future": None, "map": [None, 3]}


@pytest.mark.parametrize("order", ["failure first", "skip first"])
@pytest.mark.asyncio
async def test_a_failed_input_counts_for_more_than_one_that_was_left_out(home: str, order: str) -> None:
    @step(cache=False)
    async def fails(before: Any = None) -> None:
        raise ValueError

    @pipeline(failure_mode="continue")
    async def both() -> Any:
        skipped, failed = positive.submit(0), fails.submit()
        if order == "failure first":
            await asyncio.wait([failed])
        else:
            await asyncio.wait([skipped])
            failed = fails.submit([skipped])
        consumer: StepFuture[Any] = has_default.submit(failed, skipped)
        other: StepFuture[Any] = needs.submit(skipped)
        await asyncio.wait([consumer, other])
        return None

    async with Engine(home) as engine:
        result = await engine.run(both)
        assert result.status == "failed"
        assert result.step_results["has_default"].skip_reason == "upstream"
        assert result.step_results["needs"].skip_reason == "condition"


@pytest.mark.asyncio
async def test_a_consumer_waits_for_its_other_inputs_before_it_is_skipped() -> None:
    may_go = asyncio.Event()

    @step(cache=False, persist=False)
    async def slow() -> int:
        await may_go.wait()
        return 1

    @step(cache=False)
    async def takes(x: Any, y: Any) -> Any:
        return (x, y)

    @pipeline
    async def waits() -> Any:
        skipped = positive.submit(0)
        consumer = takes.submit(skipped, slow.submit())
        await skipped
        before = consumer.done()
        may_go.set()
        return before, await consumer

    assert await value_of(waits) == (False, None)


@pytest.mark.asyncio
async def test_a_consumer_that_waits_may_be_cancelled() -> None:
    @step(cache=False, persist=False)
    async def slow() -> int:
        await asyncio.Event().wait()
        return 1

    @step(cache=False)
    async def takes(x: Any, y: Any) -> Any:
        return (x, y)

    @pipeline(failure_mode="continue")
    async def cancels() -> Any:
        skipped, other = positive.submit(0), slow.submit()
        consumer = takes.submit(skipped, other)
        await skipped
        consumer.cancel()
        other.cancel()
        await asyncio.wait([consumer, other])
        return consumer.status

    assert await value_of(cancels) == "cancelled"


@pytest.mark.asyncio
async def test_the_reproduction_of_a_failed_reduce_has_none_for_what_was_left_out(home: str) -> None:
    @step(cache=False)
    async def fails(items: list[Any]) -> None:
        raise ValueError

    @pipeline
    async def reduces() -> None:
        await fails.submit(positive.map([-1, 1]))

    async with Engine(home) as engine:
        result = await engine.run(reduces)
        assert result.status == "failed"
        assert result.step_results["fails"].load_inputs() == {"items": [None, 1]}
