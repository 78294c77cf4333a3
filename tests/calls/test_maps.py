"""One call per item: over every kind of input, chained, reduced, multiplied, cancelled and settled."""

from __future__ import annotations

import asyncio
import collections
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from treadle import MapFuture, pipeline, step, unmapped
from treadle.errors import ForeignFuture, MapLengthError, OptionError, ResultNotReady, UpstreamFailed


@step
async def inc(x: int) -> int:
    return x + 1


@step
def double(x: int) -> int:
    return 2 * x


@step
async def add(x: int, y: int = 0, *, z: int = 0) -> int:
    return x + y + z


@step
async def total(xs: list[int]) -> int:
    return sum(xs)


@step
async def numbers(n: int) -> list[int]:
    return list(range(n))


@step
async def odd_ones_fail(x: int) -> int:
    if x % 2:
        raise ValueError(f"odd {x}")
    return x


def count_to(n: int) -> Iterator[int]:
    yield from range(n)


async def count_slowly_to(n: int) -> AsyncIterator[int]:
    for i in range(n):
        await asyncio.sleep(0)
        yield i


# -- what it goes over --------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: [0, 1, 2],
        lambda: (0, 1, 2),
        lambda: range(3),
        lambda: {0: "a", 1: "b", 2: "c"},
        lambda: {0: "a", 1: "b", 2: "c"}.keys(),
        lambda: {"a": 0, "b": 1, "c": 2}.values(),
        lambda: collections.deque([0, 1, 2]),
        lambda: count_to(3),
        lambda: iter([0, 1, 2]),
        lambda: (i for i in range(3)),
        lambda: map(int, "012"),
        lambda: count_slowly_to(3),
        lambda: numbers.submit(3),
        lambda: numbers(3),
        lambda: inc.map([-1, 0, 1]),
        lambda: inc.map(iter([-1, 0, 1])),
    ],
    ids=lambda make: make.__code__.co_firstlineno,
)
def test_a_map_goes_over_any_kind_of_input_in_order(stage: Any, make: Any) -> None:
    @pipeline
    async def maps() -> list[int]:
        return await inc.map(make())

    assert stage.value(maps) == [1, 2, 3]


@pytest.mark.parametrize(
    "make",
    [
        list,
        lambda: range(0),
        lambda: iter([]),
        lambda: count_slowly_to(0),
        lambda: numbers.submit(0),
        lambda: inc.map([]),
    ],
)
def test_no_items_give_an_empty_list_and_a_reduce_of_nothing(stage: Any, make: Any) -> None:
    @pipeline
    async def maps() -> tuple[Any, ...]:
        nothing = inc.map(make())
        values = await nothing
        return (
            values,
            len(nothing),
            list(nothing),
            nothing.status,
            await total(inc.map(make())),
            await inc.map([]).settled(),
        )

    assert stage.value(maps) == ([], 0, [], "succeeded", 0, [])


def test_a_sized_map_has_a_length_and_can_be_indexed_and_iterated_at_once(stage: Any) -> None:
    @pipeline
    async def maps() -> tuple[Any, ...]:
        m = double.map(range(200))
        facts = len(m), m[0].name, m[-1].name, m[150].index, [f.name for f in m[2:8:3]], len(list(m)), m.done()
        for index in (200, -201):
            with pytest.raises(IndexError):
                m[index]
        return facts, await m[7], await m[-1], m[3] is m[3], sum(await m)

    facts, seventh, last, same, everything = stage.value(maps)
    assert facts == (200, "double[0]", "double[199]", 150, ["double[2]", "double[5]"], 200, False)
    assert (seventh, last, same, everything) == (14, 398, True, 39800)


def test_an_unsized_map_has_no_length_until_it_was_awaited(stage: Any) -> None:
    @pipeline
    async def maps() -> tuple[str, int, int]:
        m = inc.map(count_to(5))
        try:
            len(m)
        except TypeError as error:
            text = str(error)
        await m
        return text, len(m), await m[-1]

    text, length, last = stage.value(maps)
    assert "without a length" in text
    assert (length, last) == (5, 5)


def test_positions_names_and_unmapped_arguments(stage: Any) -> None:
    @pipeline
    async def maps() -> list[list[int]]:
        return [
            await add.map([1, 2], [10, 20]),
            await add.map([1, 2], unmapped(10)),
            await add.map([1, 2], y=[10, 20], z=unmapped(100)),
            await add.map(x=[1, 2], z=iter([5, 6])),
            await add.map(iter([1, 2]), unmapped(7), z=count_slowly_to(2)),
        ]

    assert stage.value(maps) == [[11, 22], [11, 12], [111, 122], [6, 8], [8, 10]]


def test_an_unmapped_list_is_given_whole_and_each_call_has_its_own_copy(stage: Any) -> None:
    @step
    async def consume(x: int, rest: list[int]) -> list[int]:
        rest.append(x)
        return rest

    @pipeline
    async def maps() -> tuple[Any, ...]:
        shared = [0]
        future = numbers.submit(2)
        return await consume.map([1, 2, 3], unmapped(shared)), shared, await consume.map([5, 6], unmapped(future))

    result = stage.value(maps)
    assert result == ([[0, 1], [0, 2], [0, 3]], [0], [[0, 1, 5], [0, 1, 6]])


def test_unequal_lengths_are_an_error_at_the_call(stage: Any) -> None:
    @pipeline
    async def maps() -> tuple[str, dict[str, int]]:
        try:
            add.map([1, 2, 3], y=[1, 2])
        except MapLengthError as error:
            return str(error), error.lengths
        return "", {}

    result = stage.result(maps)
    text, lengths = result.value
    assert "argument 1 has 3, y has 2" in text
    assert lengths == {"argument 1": 3, "y": 2}
    assert list(result.step_results) == []


def test_unsized_inputs_of_unequal_lengths_are_an_error_of_the_map(stage: Any) -> None:
    @pipeline
    async def maps() -> str:
        try:
            await add.map(count_to(3), y=count_to(2))
        except MapLengthError as error:
            return str(error)
        return ""

    assert "one ended before the others" in stage.value(maps)


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("abc", "is of type str, and a map goes over items"),
        (b"abc", "is of type bytes"),
        (5, "is of type int, which has no items"),
        (None, "NoneType"),
    ],
)
def test_what_has_no_items_is_refused_at_the_call(stage: Any, argument: Any, text: str) -> None:
    @pipeline
    async def maps() -> str:
        try:
            inc.map(argument)
        except OptionError as error:
            return str(error)
        return ""

    said = stage.value(maps)
    assert text in said
    assert "unmapped(...)" in said


def test_a_map_of_nothing_but_unmapped_arguments_is_refused(stage: Any) -> None:
    @pipeline
    async def maps() -> None:
        inc.map(unmapped(1))

    with pytest.raises(OptionError, match="needs an input to go over"):
        stage.value(maps)


def test_a_future_that_is_no_list_is_an_error_of_the_map(stage: Any) -> None:
    @pipeline
    async def maps() -> str:
        try:
            await inc.map(inc.submit(1))
        except OptionError as error:
            return str(error)
        return ""

    assert "a future whose value is of type int" in stage.value(maps)


def test_wrong_arguments_of_a_map_fail_its_calls(stage: Any) -> None:
    @pipeline
    async def maps() -> list[int]:
        return await inc.map([1], [2])

    with pytest.raises(TypeError, match="inc"):
        stage.value(maps)


# -- maps of maps, reductions, products ---------------------------------------------------


def test_chained_maps_go_item_by_item(stage: Any) -> None:
    events: list[str] = []
    gate = asyncio.Event()

    @step
    async def first(x: int) -> int:
        if x == 1:
            await gate.wait()
        events.append(f"first {x}")
        return x

    @step
    async def second(x: int) -> int:
        events.append(f"second {x}")
        if x == 0:
            gate.set()
        return x

    @pipeline
    async def maps() -> list[int]:
        return await second.map(first.map([0, 1]))

    assert stage.value(maps) == [0, 1]
    assert events == ["first 0", "second 0", "first 1", "second 1"]


@pytest.mark.parametrize(
    "make", [lambda: [1, 2, 3], lambda: iter([1, 2, 3]), lambda: count_slowly_to(4)], ids=["list", "iter", "async"]
)
def test_chains_of_three_maps_and_a_reduce(stage: Any, make: Any) -> None:
    @pipeline
    async def maps() -> int:
        return await total(double.map(inc.map(double.map(make()))))

    assert stage.value(maps) in (30, 32)


def test_a_map_of_two_maps_zips_them(stage: Any) -> None:
    @pipeline
    async def maps() -> list[int]:
        xs = inc.map([1, 2, 3])
        return await add.map(xs, double.map(xs))

    assert stage.value(maps) == [6, 9, 12]


@pytest.mark.parametrize(
    "place", [lambda m: m, lambda m: [m, m], lambda m: {"k": (m,)}], ids=["bare", "list", "nested"]
)
def test_passing_a_map_whole_passes_the_list(stage: Any, place: Any) -> None:
    @step
    async def show(value: Any) -> str:
        return repr(value)

    @pipeline
    async def maps() -> list[str]:
        return [await show(place(inc.map([1, 2]))), await show(place(inc.map(iter([1, 2]))))]

    expected = repr(place([2, 3]))
    assert stage.value(maps) == [expected, expected]


def test_a_reduce_waits_for_every_call_of_the_map(stage: Any) -> None:
    gates = [asyncio.Event() for _ in range(3)]

    @step
    async def held(i: int) -> int:
        await gates[i].wait()
        return i

    @pipeline
    async def maps() -> tuple[list[str], int]:
        reduced = total.submit(held.map(range(3)))
        seen = []
        for gate in gates:
            seen.append(reduced.status)
            gate.set()
            for _ in range(5):
                await asyncio.sleep(0)
        return seen, await reduced

    assert stage.value(maps) == (["pending"] * 3, 3)


def test_a_reduce_of_a_failed_map_is_skipped_and_its_awaiter_has_seen_every_failure(stage: Any) -> None:
    @pipeline
    async def maps() -> str:
        try:
            await total(odd_ones_fail.map(range(6)))
        except UpstreamFailed as error:
            return repr(error.__cause__)
        return ""

    result = stage.result(maps)
    assert result.value == "ValueError('odd 1')"
    assert [r.status for r in result.step_results.values()].count("failed") == 3
    assert result.step_results["total"].status == "skipped"


@pytest.mark.parametrize("count", [0, 3, 3000])
def test_a_map_over_a_generator_in_a_thread_is_refused_a_length_however_short_it_is(stage: Any, count: int) -> None:
    @pipeline
    def maps() -> tuple[list[str], int, int]:
        m, texts = inc.map(iter(range(count))), []
        inc.submit(1).result()  # by now a short input was read to its end
        for use in (len, list, lambda m: m[0]):
            try:
                use(m)
            except TypeError as error:
                texts.append(str(error))
        values = m.result()
        return texts, len(values), len(m)

    texts, *lengths = stage.value(maps)
    assert lengths == [count, count]
    assert len(texts) == 3
    assert all("before it was awaited: `await` it" in text and ".result()" in text for text in texts)


def test_product_makes_a_call_per_combination_the_last_input_fastest(stage: Any) -> None:
    @pipeline
    async def maps() -> tuple[Any, ...]:
        m = add.product([1, 2], [10, 20, 30])
        named = add.product(x=[1, 2], z=(100, 200), y=unmapped(5))
        return await m, len(m), await named, await add.product([], [1]), await add.product(range(2), inc.map([1, 2]))

    assert stage.value(maps) == ([11, 21, 31, 12, 22, 32], 6, [106, 206, 107, 207], [], [2, 3, 3, 4])


def test_product_reads_inputs_without_a_length_first(stage: Any) -> None:
    @pipeline
    async def maps() -> list[int]:
        return await add.product(numbers.submit(2), iter([10, 20]), z=count_slowly_to(2))

    assert stage.value(maps) == [10, 11, 20, 21, 11, 12, 21, 22]


# -- failures -----------------------------------------------------------------------------


def test_awaiting_a_map_raises_the_first_error_and_handles_them_all(stage: Any) -> None:
    @pipeline(failure_mode="continue")
    async def maps() -> str:
        try:
            await odd_ones_fail.map(range(10))
        except ValueError as error:
            return str(error)
        return ""

    result = stage.result(maps)
    assert result.value == "odd 1"
    assert sum(r.status == "failed" for r in result.step_results.values()) == 5


def test_settled_gives_a_result_per_item_and_counts_as_handling(stage: Any) -> None:
    @pipeline
    async def maps() -> list[tuple[str, str, str]]:
        return [(r.name, r.status, repr(r.error)) for r in await odd_ones_fail.map(range(3)).settled()]

    ok, bad = ("succeeded", "None"), ("failed", "ValueError('odd 1')")
    assert stage.value(maps) == [("odd_ones_fail[0]", *ok), ("odd_ones_fail[1]", *bad), ("odd_ones_fail[2]", *ok)]


def test_settled_works_on_unsized_maps_and_on_the_end_of_a_chain(stage: Any) -> None:
    @pipeline
    async def maps() -> list[str]:
        return [r.status for r in await inc.map(odd_ones_fail.map(count_to(4))).settled()]

    assert stage.value(maps) == ["succeeded", "skipped", "succeeded", "skipped"]


@pytest.mark.parametrize("handled", [True, False])
def test_an_input_that_raises_is_the_error_of_the_map(stage: Any, handled: bool) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("broken input")

    @pipeline
    async def maps() -> str:
        m = inc.map(broken())
        if handled:
            try:
                await m
            except KeyError as error:
                return f"{error} {m.status}"
        return "not looked at"

    result = stage.result(maps)
    assert result.success is handled
    if handled:
        assert result.value == "'broken input' failed"
    else:
        assert isinstance(result.error, KeyError)
        assert "while the input of map inc was read" in result.error.__notes__


@pytest.mark.parametrize("how", ["reduce", "map", "async for"])
def test_what_depends_on_a_map_whose_input_raised_does_not_go_on_with_a_part(stage: Any, how: str) -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise KeyError("broken input")

    @pipeline
    async def maps() -> str:
        m = inc.map(broken())
        try:
            if how == "reduce":
                return str(await total(m))
            if how == "map":
                return str(await double.map(m))
            return str([await f async for f in m])
        except KeyError:
            return "itself"
        except UpstreamFailed as error:
            return f"caused by {error.__cause__!r}"

    expected = "caused by KeyError('broken input')" if how == "reduce" else "itself"
    assert stage.value(maps) == expected


@pytest.mark.parametrize("how", ["whole", "chained", "late"])
def test_what_takes_a_map_whole_is_skipped_by_the_first_failure_and_waits_for_no_other_call(
    stage: Any, how: str
) -> None:
    @step
    async def first_fails(x: int) -> int:
        if x == 0:
            raise ValueError("the first")
        await asyncio.Event().wait()
        return x

    @pipeline
    async def maps() -> int:
        m = first_fails.map(range(100))
        if how == "late":
            while m.status != "failed":
                await asyncio.sleep(0)
        return await total.submit(inc.map(m) if how == "chained" else m)

    result = stage.result(maps)
    assert isinstance(result.error, UpstreamFailed)
    assert str(result.error.__cause__) == "the first"
    statuses = {name: call.status for name, call in result.step_results.items()}
    assert statuses.pop("total") == "skipped"
    assert [statuses.pop(f"first_fails[{index}]") for index in range(100)] == ["failed", *["cancelled"] * 99]


def test_who_sees_that_a_map_taken_whole_has_failed_has_seen_the_failures_that_came_later(stage: Any) -> None:
    later = asyncio.Event()

    @step
    async def all_fail(x: int) -> int:
        if x:
            await later.wait()
        raise ValueError(f"number {x}")

    @pipeline
    async def maps() -> str:
        m = all_fail.map(range(5))
        try:
            await total.submit(m)
        except UpstreamFailed as error:
            later.set()
            return str(error.__cause__)
        return "not reached"

    assert stage.value(maps) == "number 0"


# -- cancelling, status, other runs -------------------------------------------------------


def test_cancelling_a_map_cancels_its_calls_and_makes_no_more(stage: Any) -> None:
    @step
    async def forever(x: int) -> None:
        await asyncio.Event().wait()

    @pipeline
    async def maps() -> tuple[Any, ...]:
        m = forever.with_options(max_in_flight=2).map(count_to(100))
        while m.status == "pending" or m._next < 2:
            await asyncio.sleep(0)
        before = m.status
        first, again = m.cancel(), None
        try:
            await m
        except asyncio.CancelledError:
            await m.settled()
            again = m.cancel()
        return before, first, again, m.status, m.done(), asyncio.current_task().cancelling()  # type: ignore[union-attr]

    result = stage.result(maps)
    assert result.value == ("running", True, False, "cancelled", True, 0)
    assert {r.status for r in result.step_results.values()} == {"cancelled"}
    assert len(result.step_results) == 2


def test_what_a_cancelled_map_did_not_make_is_not_made_for_who_asks_for_it(stage: Any) -> None:
    @pipeline(failure_mode="continue")
    async def maps() -> tuple[Any, ...]:
        m = inc.map(range(100))
        first = m.cancel()
        assert (m[99].name, m[99].status, m[99].cancelled()) == ("inc[99]", "cancelled", True)
        with pytest.raises(asyncio.CancelledError, match="map inc was cancelled"):
            await m[99]
        statuses = {result.status for result in await m.settled()}
        ends = first, m.cancel(), m.status, statuses
        assert [future.status for future in m] == ["cancelled"] * 100
        return *ends, m.done()

    assert stage.value(maps) == (True, False, "cancelled", {"cancelled"}, True)


def test_a_call_that_takes_an_item_of_a_cancelled_map_is_skipped_whether_the_item_was_made_or_not(stage: Any) -> None:
    @pipeline(failure_mode="continue")
    async def maps() -> list[str]:
        m = inc.map(range(100))
        m.cancel()
        takers = [double.submit(m[0]), double.submit(m[99]), double.submit([m[98]])]
        await asyncio.wait(takers)
        for taker in takers:
            taker.exception()
        return [taker.status for taker in takers]

    assert stage.value(maps) == ["skipped"] * 3


def test_async_for_over_a_cancelled_map_ends_with_its_cancellation_and_not_as_if_that_were_all(stage: Any) -> None:
    @step(cache=False)
    async def first_only(x: int) -> int:
        if x:
            await asyncio.Event().wait()
        return x

    @pipeline(failure_mode="continue")
    async def maps() -> tuple[int, str]:
        m, seen = first_only.map(range(5000)), 0  # of which the window lets 1,000 be made

        async def consume() -> None:
            nonlocal seen
            async for future in m:
                if not future.cancelled():
                    seen += 1
                m.cancel()

        with pytest.raises(asyncio.CancelledError, match="map first_only was cancelled"):
            await consume()
        return seen, m.status

    assert stage.value(maps) == (1, "cancelled")


def test_a_map_over_a_map_that_was_cancelled_is_cancelled_too_and_has_a_result_for_every_item(stage: Any) -> None:
    @pipeline(failure_mode="continue")
    async def maps() -> tuple[Any, ...]:
        m = inc.map(range(1000))
        doubled = double.map(m)
        summed = add.map(doubled, [1] * 1000)
        m[40]
        m.cancel()
        counts = [len(await each.settled()) for each in (m, doubled, summed)]
        return counts, doubled.status, {result.status for result in (await summed.settled())[100:]}

    result = stage.result(maps)
    assert result.value[0] == [1000, 1000, 1000]
    assert result.value[1] in ("skipped", "cancelled")
    assert result.value[2] == {"cancelled"}
    assert result.success
    assert len(result.step_results) == 3000


def test_who_takes_a_map_over_a_cancelled_one_whole_gets_no_shorter_list(stage: Any) -> None:
    @pipeline(failure_mode="continue")
    async def maps() -> tuple[Any, ...]:
        m = inc.map(count_to(10))
        doubled = double.map(m)
        whole = total.submit(doubled)
        m.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doubled
        with pytest.raises(UpstreamFailed):
            await whole
        return whole.status, doubled.status

    assert stage.value(maps) == ("skipped", "cancelled")


def test_cancelling_works_from_a_thread_and_for_a_wide_map(stage: Any) -> None:
    @step
    async def forever(x: int) -> None:
        await asyncio.Event().wait()

    @pipeline(max_concurrency=5)
    async def maps() -> tuple[bool, set[str]]:
        m = forever.map(range(5000))
        while m._next < 5000:
            await asyncio.sleep(0)
        cancelled = await asyncio.to_thread(m.cancel)
        return cancelled, {result.status for result in await m.settled()}

    assert stage.value(maps) == (True, {"cancelled"})


def test_cancelling_the_await_of_a_map_cancels_the_map(stage: Any) -> None:
    @step
    async def forever(x: int) -> None:
        await asyncio.Event().wait()

    @pipeline
    async def maps() -> tuple[str, set[str]]:
        m = forever.map(range(3))
        try:
            async with asyncio.timeout(0.01):
                await m
        except TimeoutError:
            pass
        return m.status, {result.status for result in await m.settled()}

    assert stage.value(maps) == ("cancelled", {"cancelled"})


def test_cancelling_one_call_of_a_map_leaves_the_others(stage: Any) -> None:
    gate = asyncio.Event()

    @step
    async def held(x: int) -> int:
        await gate.wait()
        return x

    @pipeline
    async def maps() -> list[str]:
        m = held.map(range(3))
        m[1].cancel()
        gate.set()
        return [result.status for result in await m.settled()]

    assert stage.value(maps) == ["succeeded", "cancelled", "succeeded"]


def test_the_repr_of_a_map_says_how_far_it_is(stage: Any) -> None:
    @pipeline
    async def maps() -> list[str]:
        sized, unsized = inc.map([1, 2]), double.map(iter([1]))
        before = [repr(sized), repr(unsized)]
        await sized
        return [*before, repr(sized)]

    assert stage.value(maps) == [
        "<MapFuture inc 0 of 2 ended>", "<MapFuture double 0 of ? ended>", "<MapFuture inc 2 of 2 ended>"
    ]  # fmt: skip


def test_a_map_in_a_def_pipeline_is_iterated_indexed_and_awaited_by_result(stage: Any) -> None:
    @pipeline
    def script() -> tuple[Any, ...]:
        m = double.map(range(150))
        lazy = inc.map(count_to(5))
        return (
            sum(f.result() for f in m),
            m[-1].result(),
            m.result(timeout=10)[3],
            lazy.result(),
            isinstance(m, MapFuture),
        )

    assert stage.value(script) == (22350, 298, 6, [1, 2, 3, 4, 5], True)


def test_result_of_a_map_on_the_loop_never_waits(stage: Any) -> None:
    @pipeline
    async def maps() -> tuple[str, list[int]]:
        m = inc.map([1, 2])
        try:
            m.result()
        except ResultNotReady as error:
            text = error.fix
        await m
        return text, m.result()

    assert stage.value(maps) == ("`await` the map instead", [2, 3])


@pytest.mark.parametrize("what", ["future", "map", "in a list", "as items", "as an input", "after"])
def test_futures_of_another_run_are_refused(stage: Any, what: str) -> None:
    kept: list[Any] = []
    gate = threading.Event()

    @pipeline
    async def owner() -> int:
        kept.extend([inc.submit(1), inc.map([1, 2])])
        await asyncio.to_thread(gate.wait, 10)
        return 1

    @pipeline
    async def thief() -> str:
        future, mapped = kept
        try:
            if what == "future":
                inc.submit(future)
            elif what == "map":
                total.submit(mapped)
            elif what == "in a list":
                total.submit([future])
            elif what == "as items":
                await inc.map([1, future])
            elif what == "as an input":
                inc.map(mapped)
            else:
                inc.with_options(after=future).submit(1)
        except ForeignFuture as error:
            return error.fix
        return "accepted"

    async def main() -> tuple[str, int]:
        async with stage.engine() as engine:
            first = await engine.start(owner)
            while not kept:
                await asyncio.sleep(0)
            said = (await engine.run(thief)).value
            gate.set()
            return said, await first

    said, value = stage.drive(main())
    assert said.startswith("await it")
    assert value == 1


# -- outputs of maps ----------------------------------------------------------------------


def test_unpack_gives_one_list_of_futures_per_output(stage: Any) -> None:
    @step(outputs=("low", "high"))
    async def ends(xs: list[int]) -> tuple[int, int]:
        return min(xs), max(xs)

    @pipeline
    async def maps() -> tuple[Any, ...]:
        m = ends.map([[1, 2], [5, 3]])
        lows, highs = m.unpack()
        return await total(lows), await total(highs), await inc.map(highs), repr(lows[1]), await m

    assert stage.value(maps) == (4, 7, [3, 6], "<StepFuture ends[1].low succeeded>", [(1, 2), (3, 5)])


def test_a_map_used_by_two_others_gives_both_all_of_it(stage: Any) -> None:
    @pipeline
    async def maps() -> tuple[Any, ...]:
        sized, unsized = inc.map([1, 2, 3]), inc.map(count_to(3))
        both = double.map(sized), inc.map(sized), double.map(unsized), inc.map(unsized)
        return [await m for m in both]

    assert stage.value(maps) == [[4, 6, 8], [3, 4, 5], [2, 4, 6], [2, 3, 4]]


def test_an_unsized_map_can_be_passed_on_and_awaited_before_anything_was_read(stage: Any) -> None:
    @pipeline
    async def maps() -> tuple[Any, ...]:
        pages = inc.map(count_to(50))
        rows = double.map(pages)
        return sum(await pages), sum(await rows)

    assert stage.value(maps) == (1275, 2550)


def test_what_was_given_away_cannot_be_awaited_as_a_list_and_says_so(stage: Any) -> None:
    @pipeline
    async def maps() -> list[str]:
        texts = []
        streamed = inc.map([1, 2])
        async for future in streamed:
            await future
        passed = inc.map(count_to(3))
        await double.map(passed)
        for ask in (lambda: streamed, lambda: passed, lambda: total(passed), streamed.settled):
            try:
                await ask()
            except ResultNotReady as error:
                texts.append(error.what)
        return texts

    texts = stage.value(maps)
    assert len(texts) == 4
    assert all("was given away" in text for text in texts)


@step
async def waits_for_ever(x: int) -> int:
    await asyncio.Event().wait()
    return x


def test_a_wait_for_a_map_that_takes_too_long_says_which_map_and_how_long(stage: Any) -> None:
    @pipeline(failure_mode="continue")
    def p() -> str:
        m = waits_for_ever.map(range(3))
        with pytest.raises(TimeoutError) as caught:
            m.result(timeout=0.01)
        m.cancel()
        with pytest.raises(asyncio.CancelledError):
            m.result()
        return str(caught.value)

    assert stage.value(p) == "map waits_for_ever has not ended after 0.01 s"


def test_a_wait_for_a_child_run_that_takes_too_long_says_which_run_and_how_long(stage: Any) -> None:
    @pipeline
    async def child() -> None:
        await waits_for_ever(1)

    @pipeline(failure_mode="continue")
    async def p() -> str:
        handle = child.start()
        with pytest.raises(TimeoutError) as caught:
            await asyncio.to_thread(handle.result, 0.01)
        await handle.cancel()
        return str(caught.value)

    assert "of child has not ended after 0.01 s" in stage.value(p)


def test_a_time_out_of_a_step_is_told_from_one_of_the_wait(stage: Any) -> None:
    @step
    def raises(x: int) -> int:
        raise TimeoutError

    @pipeline
    def p() -> str:
        with pytest.raises(TimeoutError) as caught:
            raises.map(range(2)).result(timeout=30)
        return str(caught.value)

    assert stage.value(p) == ""
