"""Maps that are taken one result after another: order of completion, back-pressure, bounded memory, leaving early."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from treadle import StepFuture, pipeline, step


@step
async def inc(x: int) -> int:
    return x + 1


@step(persist=False, cache=False)
async def same(x: int) -> int:
    return x


class Counted:
    """An input that says how much of it has been read."""

    def __init__(self, items: Any) -> None:
        self.read, self._items = 0, iter(items)

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        item = next(self._items)
        self.read += 1
        return item


async def turns(count: int) -> None:
    """Let the loop go round, and a log on the disk answer."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_async_for_gives_finished_futures_in_the_order_of_completion(stage: Any) -> None:
    gates = [asyncio.Event() for _ in range(3)]
    gates[2].set()

    @step
    async def held(i: int) -> int:
        await gates[i].wait()
        return i

    @pipeline
    async def streams() -> list[Any]:
        seen: list[Any] = []
        async for future in held.map(range(3)):
            seen.append((future.index, future.done(), future.result()))
            gates[{2: 0, 0: 1, 1: 1}[future.result()]].set()
        return seen

    assert stage.value(streams) == [(2, True, 2), (0, True, 0), (1, True, 1)]


@pytest.mark.parametrize("make", [lambda n: range(n), lambda n: iter(range(n))], ids=["sized", "unsized"])
def test_a_failed_call_comes_in_the_stream_like_any_other(stage: Any, make: Any) -> None:
    @step
    async def picky(x: int) -> int:
        if x == 2:
            raise ValueError(f"no {x}")
        return x

    @pipeline
    async def streams() -> tuple[int, list[str]]:
        good, bad = 0, []
        async for future in picky.map(make(5)):
            if future.exception() is None:
                good += future.result()
            else:
                bad.append(f"{future.name}: {future.exception()}")
        return good, bad

    assert stage.value(streams) == (8, ["picky[2]: no 2"])


@pytest.mark.parametrize("window", [1, 3, 10])
def test_running_plus_finished_and_not_taken_never_exceeds_the_window(stage: Any, window: int) -> None:
    """One item at most is read beyond the window, however slowly the results are taken."""
    source = Counted(range(60))
    started = 0

    @step
    async def work(x: int) -> int:
        nonlocal started
        started += 1
        return x

    @pipeline
    async def streams() -> tuple[int, int, int]:
        taken = most_started = most_read = 0
        async for future in work.with_options(max_in_flight=window).map(source):
            most_started = max(most_started, started - taken)
            most_read = max(most_read, source.read - taken)
            taken += 1
            await future
            await turns(window * 10)
            most_started = max(most_started, started - taken)
            most_read = max(most_read, source.read - taken)
        return taken, most_started, most_read

    assert stage.value(streams) == (60, window, window + 1)


def test_the_window_is_a_thousand_where_nothing_else_is_said(stage: Any) -> None:
    source = Counted(itertools.count())

    @pipeline
    async def streams() -> int:
        m = inc.map(source)
        known = -1
        while known != source.read:
            known = source.read
            await asyncio.sleep(0.05)
        m.cancel()
        await m.settled()
        return known

    assert stage.value(streams) == 1001


def _known_futures() -> int:
    return sum(isinstance(thing, StepFuture) for thing in gc.get_objects())


@pytest.mark.slow
def test_two_hundred_thousand_items_run_in_bounded_memory(stage: Any) -> None:
    """No future, call or event of an ended call is kept: the number alive stays far below the number of items."""
    if stage.kind == "uvloop":
        pytest.skip("the longest test of this file runs once")
    most = 0
    gc.collect()
    before = _known_futures()

    @pipeline
    async def streams(count: int) -> int:
        nonlocal most
        sum_, seen = 0, 0
        async for future in same.with_options(max_in_flight=500).map(iter(range(count))):
            sum_ += future.result()
            seen += 1
            if seen % 40_000 == 0:
                gc.collect()
                most = max(most, _known_futures() - before)
        return sum_

    count = 200_000
    result = stage.result(streams, count, durability="memory")
    assert result.value == count * (count - 1) // 2
    assert 0 < most < 2_000


def test_a_sized_input_that_is_streamed_keeps_nothing_either(stage: Any) -> None:
    most = 0
    gc.collect()
    before = _known_futures()  # of other runs in this process, whose results somebody may still hold

    @pipeline
    async def streams() -> int:
        nonlocal most
        seen = 0
        async for future in same.with_options(max_in_flight=50).map(range(5_000)):
            seen += future.done()
            if seen % 1_000 == 0:
                most = max(most, _known_futures() - before)
        return seen

    assert stage.value(streams, durability="memory") == 5_000
    assert most < 500


def test_an_endless_input_can_be_left(stage: Any) -> None:
    source = Counted(itertools.count())

    @pipeline
    async def streams() -> int:
        async for future in inc.with_options(max_in_flight=4).map(source):
            if future.result() > 20:
                return future.result()
        return 0

    assert stage.value(streams) >= 21
    assert source.read < 40


def test_an_endless_chain_can_be_left_and_its_first_input_is_no_longer_read(stage: Any) -> None:
    closed: list[bool] = []

    async def endless() -> AsyncIterator[int]:
        try:
            for i in itertools.count():
                yield i
        finally:
            closed.append(True)

    @pipeline
    async def streams() -> int:
        first = inc.with_options(max_in_flight=4).map(endless())
        async for future in inc.map(first):
            if await future > 30:
                break
        return 1

    assert stage.value(streams) == 1
    gc.collect()
    assert closed == [True]


def test_a_stream_that_was_left_can_be_taken_up_again(stage: Any) -> None:
    @pipeline
    async def streams() -> tuple[int, int]:
        m = inc.map(iter(range(10)))
        first = 0
        async for _ in m:
            first += 1
            if first == 4:
                break
        return first, len([future async for future in m])

    assert stage.value(streams) == (4, 6)


@pytest.mark.parametrize("make", [lambda n: range(n), lambda n: iter(range(n))], ids=["sized", "unsized"])
def test_a_map_that_nobody_takes_is_performed_to_its_end(stage: Any, make: Any) -> None:
    done: list[int] = []

    @step
    async def note(x: int) -> None:
        done.append(x)

    @pipeline
    async def forgets() -> str:
        note.with_options(max_in_flight=3).map(make(50))
        return "returned"

    assert stage.value(forgets) == "returned"
    assert sorted(done) == list(range(50))


def test_a_returned_map_is_resolved_to_its_list(stage: Any) -> None:
    @pipeline
    async def returns() -> Any:
        return {"sized": inc.map([1, 2]), "unsized": [inc.with_options(max_in_flight=2).map(iter(range(9)))]}

    assert stage.value(returns) == {"sized": [2, 3], "unsized": [list(range(1, 10))]}


def test_an_await_lifts_the_window(stage: Any) -> None:
    @pipeline
    async def awaits() -> int:
        return sum(await inc.with_options(max_in_flight=2).map(iter(range(100))))

    assert stage.value(awaits) == 5050


def test_a_chain_of_unsized_maps_is_read_only_as_far_as_its_end_is_taken(stage: Any) -> None:
    source = Counted(range(100))

    @pipeline
    async def streams() -> tuple[int, int]:
        small = {"max_in_flight": 2}
        chain = inc.with_options(**small).map(inc.with_options(**small).map(source))
        most = taken = 0
        async for future in chain:
            await turns(50)
            most = max(most, source.read - taken)
            taken += 1
            assert future.done()
        return taken, most

    taken, most = stage.value(streams)
    assert taken == 100
    assert most <= 2 * (2 + 1) + 1
