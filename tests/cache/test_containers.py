"""Several outputs come in a container, and a miss, a hit and a resume give it back with the same type."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle import Engine, pipeline, step
from treadle._core.outputs import split
from treadle._runtime.views.shapes import join
from treadle.errors import DecodeError

NAMES = ("low", "high")


class Range(NamedTuple):
    low: Any
    high: Any


class Narrow(Range):
    __slots__ = ()


class Pair(tuple[Any, Any]):
    pass


class Items(list[Any]):
    pass


class ByName(dict[str, Any]):
    pass


class Counting(dict[str, Any]):
    """It holds more than its items."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.used = 0


def ordered(low: Any, high: Any) -> Any:
    return collections.OrderedDict(high=high, low=low)


def by_name(low: Any, high: Any) -> Any:
    return ByName(high=high, low=low)


MAKERS = {
    "tuple": lambda low, high: (low, high),
    "list": lambda low, high: [low, high],
    "dict": lambda low, high: {"high": high, "low": low},
    "named tuple": Range,
    "derived named tuple": Narrow,
    "tuple of a class": lambda low, high: Pair((low, high)),
    "list of a class": lambda low, high: Items([low, high]),
    "dict of a class": by_name,
    "ordered dict": ordered,
    "default dict": lambda low, high: collections.defaultdict(list, low=low, high=high),
    "dict with more in it": lambda low, high: Counting({"low": low, "high": high}),
}


SEEN: list[Any] = []
PERFORMED: list[str] = []
FAILS: list[bool] = []


@step(outputs=NAMES, version=1)
async def bounds(name: str, low: Any, high: Any) -> Any:
    PERFORMED.append(name)
    return MAKERS[name](low, high)


@step(cache=False)
async def stumble() -> None:
    if FAILS.pop():
        raise ValueError("once")


@pipeline
async def flow(name: str, low: Any, high: Any) -> None:
    SEEN.append(await bounds(name, low, high))
    SEEN.append(await bounds(name, low, high))
    await stumble()


@given(name=st.sampled_from(sorted(MAKERS)), low=st.integers() | st.text(), high=st.lists(st.booleans()))
@settings(deadline=None, max_examples=25)
@pytest.mark.asyncio
async def test_miss_hit_and_resume_give_equal_containers_of_equal_types(name: str, low: Any, high: Any) -> None:
    SEEN.clear()
    PERFORMED.clear()
    async with Engine("memory://") as engine:
        FAILS.append(True)
        first = await engine.run(flow, name, low, high)
        assert not first.success
        FAILS.append(False)
        assert (await engine.resume(first.run_id)).success
        FAILS.append(False)
        assert (await engine.run(flow, name, low, high)).success
    check(name, SEEN, low, high)


def check(name: str, seen: list[Any], low: Any, high: Any) -> None:
    miss, *others = seen
    assert len(others) == 5
    assert len(PERFORMED) == 1
    for other in others:
        assert type(other) is type(miss)
        assert other == miss
        assert list(other) == list(miss)
    plain = {"default dict": dict, "dict with more in it": dict}
    assert type(miss) is plain.get(name, type(MAKERS[name](low, high)))


@pytest.mark.parametrize(
    "shape",
    ["set", "tuple:builtins:list", "dict:os:_Environ:0,1", "dict:collections:OrderedDict:0,0", "tuple:nowhere:Thing",
     "dict:collections:OrderedDict:0,x", "dict:collections:defaultdict:0,1", "list:builtins"],
)  # fmt: skip
def test_a_shape_that_no_step_has_returned_is_refused(shape: str) -> None:
    with pytest.raises(DecodeError):
        join([1, 2], shape, NAMES)


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_taking_apart_and_putting_together_are_reverse(make: Any) -> None:
    values, shape = split("bounds", NAMES, make(1, 2))
    assert values == [1, 2]
    assert split("bounds", NAMES, join(values, shape, NAMES)) == (values, shape)
