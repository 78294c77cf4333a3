"""Who gets whose object: a consumer may do what it wants to its own copy, and nobody else ever sees it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from treadle import pipeline, step, unmapped


@dataclasses.dataclass
class Box:
    items: list[int]


SMALL = {
    "list": [1, 2],
    "dict": {"a": [1]},
    "nested": ({"a": [1, {2}]}, [3]),
    "set": {1, 2},
    "dataclass": Box([1]),
    "array": np.arange(4),
    "bytearray": bytearray(b"ab"),
}


def spoil(value: Any) -> None:
    """Change a value in place, as deep as it goes."""
    if isinstance(value, dict):
        for item in list(value.values()):
            spoil(item)
        value["spoiled"] = True
    elif isinstance(value, tuple):
        for item in value:
            spoil(item)
    elif isinstance(value, list):
        for item in value:
            spoil(item)
        value.append("spoiled")
    elif isinstance(value, set):
        value.add("spoiled")
    elif isinstance(value, Box):
        spoil(value.items)
    elif isinstance(value, np.ndarray):
        value[...] = 99
    elif isinstance(value, bytearray):
        value += b"spoiled"


@step
async def make(kind: str) -> Any:
    return SMALL[kind]


@step
async def make_unstored(kind: str) -> Any:
    return SMALL[kind]


make_unstored = make_unstored.with_options(persist=False)


@step(cache=False)
async def spoiler(value: Any) -> str:
    spoil(value)
    return repr(value)


@step(cache=False)
def spoiler_in_thread(value: Any) -> str:
    spoil(value)
    return repr(value)


@step(cache=False)
async def look(value: Any) -> str:
    return repr(value)


@pytest.mark.parametrize("spoil_with", [spoiler, spoiler_in_thread], ids=["async", "thread"])
@pytest.mark.parametrize("source", [make, make_unstored], ids=["stored", "unstored"])
@pytest.mark.parametrize("kind", SMALL)
def test_what_a_consumer_does_to_its_input_nobody_else_sees(home: Any, kind: str, source: Any, spoil_with: Any) -> None:
    expected = repr(SMALL[kind])

    @pipeline
    async def p() -> None:
        future = source.submit(kind)
        spoiled = await spoil_with(future)
        assert "spoiled" in spoiled or "99" in spoiled
        assert await look(future) == expected
        assert repr(await future) == expected
        assert repr(future.result()) == expected
        assert await look({"in": [future]}) == repr({"in": [SMALL[kind]]})
        await spoil_with([future])
        assert await look(future) == expected
        awaited = await future
        await spoil_with(awaited)
        assert repr(awaited) == expected
        if future.artifacts:
            await spoil_with(future.artifact)
            assert repr(future.artifact.read()) == expected

    home.value(p)
    home.value(p)  # the same with what comes from the cache
    assert repr(SMALL[kind]) == expected


def test_items_of_a_map_and_what_they_share_are_each_callees_own(home: Any) -> None:
    @step(cache=False)
    async def append(item: list[int], shared: list[int]) -> tuple[int, int]:
        item.append(0)
        shared.append(0)
        return len(item), len(shared)

    items, shared = [[1], [2], [3]], [1]

    @pipeline
    async def p() -> Any:
        return await append.map(items, unmapped(shared))

    assert home.value(p) == [(2, 2)] * 3
    assert (items, shared) == ([[1], [2], [3]], [1])


def test_a_map_taken_whole_is_the_consumers_own(home: Any) -> None:
    @step(cache=False)
    async def one(x: int) -> list[int]:
        return [x]

    @pipeline
    async def p() -> Any:
        mapped = one.map([1, 2])
        await spoiler(mapped)
        return await look(mapped), await mapped

    assert home.value(p) == ("[[1], [2]]", [[1], [2]])


def test_a_followers_value_is_not_its_leaders(home: Any) -> None:
    @pipeline
    async def p() -> Any:
        one, two = make.submit("list"), make.submit("list")
        first, second = await one, await two
        first.append(9)
        return second

    assert home.value(p) == [1, 2]


# -- large ones are shared, and cannot be written to ---------------------------------------


@step
def large() -> Any:
    return np.zeros(100_000)


@step(cache=False)
def write(array: Any) -> None:
    array[0] = 1


@step(cache=False)
def is_writeable(array: Any) -> bool:
    return bool(array.flags.writeable)


@pytest.mark.parametrize("cached", [False, True])
def test_a_large_array_is_handed_over_read_only(home: Any, cached: bool) -> None:
    @pipeline(failure_mode="continue")
    async def p() -> list[bool]:
        future = large.submit()
        array = await future
        given = [future, array, future.artifact]
        failed = await write.map(given).settled()
        assert [type(result.error) for result in failed] == [ValueError] * 3
        assert (await future)[0] == 0
        return await is_writeable.map(given)

    if cached:
        home.value(p)
    result = home.result(p)
    assert result.value == [False] * 3
    assert result.step_results["large"].status == ("cached" if cached else "succeeded")


def test_an_array_of_the_caller_stays_writeable_for_the_caller(home: Any) -> None:
    mine = np.zeros(100_000)

    @pipeline
    async def p() -> bool:
        return await is_writeable(mine)

    assert home.value(p) is False
    assert mine.flags.writeable


def test_a_small_array_is_the_consumers_to_write(home: Any) -> None:
    @pipeline
    async def p() -> bool:
        return await is_writeable(make.submit("array"))

    assert home.value(p) is True
