"""A value is the same value of the same types from a miss, from a hit and from a resume, whatever runs the step."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime
import enum
import fractions
import ipaddress
import pathlib
import struct
import tempfile
import uuid
from decimal import Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from treadle import Engine, pipeline, step


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Box:
    content: Any
    label: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    content: Any


class Pair(NamedTuple):
    left: Any
    right: Any


class Record(msgspec.Struct):
    content: Any
    count: int = 0


class Odd:
    """A plain object: nothing but pickle can store it."""

    def __init__(self, content: Any) -> None:
        self.content = content


class Number(int):
    """A subclass is not its base."""


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(1 << 200), max_value=1 << 200),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=20),
    st.sampled_from(["\ud800", "a\x00b", "é", "🐍"]),
    st.binary(max_size=20),
    st.decimals(),
    st.fractions(),
    st.dates(),
    st.times(),
    st.datetimes(),
    st.datetimes(timezones=st.sampled_from([datetime.UTC, ZoneInfo("Europe/Berlin")])),
    st.timedeltas(),
    st.uuids(),
    st.ip_addresses(),
    st.sampled_from([Colour.RED, Colour.BLUE, Mode.READ, Mode.READ | Mode.WRITE, Mode(0), Level.LOW, Ellipsis]),
    st.builds(Number, st.integers()),
    st.builds(pathlib.PurePosixPath, st.sampled_from(["a/b", "/x", "."])),
    st.builds(pathlib.PureWindowsPath, st.just("c:\\x")),
    st.builds(pathlib.Path, st.just("some/where")),
    st.builds(range, st.integers(-9, 9), st.integers(-9, 9)),
    st.sampled_from(
        [Box, Colour, len, ipaddress.ip_address, fractions.Fraction, np.float32(1.5), np.int8(-3), np.bool_(True)]
    ),
)
hashable = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.binary(max_size=5), st.dates(),
    st.sampled_from([Colour.RED, Mode.READ]), st.tuples(st.integers(), st.text(max_size=3)),
    st.frozensets(st.integers()),
)  # fmt: skip
dtypes = st.sampled_from(
    ["?", "i1", "<i8", ">i4", "u2", "f2", "f4", "f8", "c8", "S3", "U2", "M8[s]", "m8[ms]", "i4,f8"]
)
shapes = st.sampled_from([(), (0,), (1,), (3,), (2, 3), (2, 0, 2)])


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    dtype, shape = np.dtype(draw(dtypes)), draw(shapes)
    size = int(np.prod(shape)) * dtype.itemsize
    data = (
        bytes(draw(st.integers(0, 1)) for _ in range(size))
        if dtype.kind in "?bU"
        else draw(st.binary(min_size=size, max_size=size))
    )
    if dtype.kind == "U":
        return np.full(shape, "é", dtype)
    return np.frombuffer(data, dtype).reshape(shape).copy() if size else np.zeros(shape, dtype)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(hashable, inner, max_size=4),
        st.sets(hashable, max_size=4),
        st.frozensets(hashable, max_size=4),
        st.lists(inner, max_size=3).map(collections.deque),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(collections.OrderedDict),
        st.dictionaries(st.text(max_size=3), st.lists(inner, max_size=2), max_size=3).map(
            lambda content: collections.defaultdict(list, content)
        ),
        st.lists(st.text(max_size=2), max_size=4).map(collections.Counter),
        st.builds(Box, inner, st.text(max_size=3)),
        st.builds(Frozen, inner),
        st.builds(Pair, inner, inner),
        st.builds(Record, inner, st.integers(0, 9)),
        st.builds(Odd, inner),
        st.binary(max_size=5).map(bytearray),
    )


values = st.recursive(st.one_of(scalars, arrays()), containers, max_leaves=8)


def difference(one: Any, two: Any, path: str = "value") -> str | None:
    """Where two values differ, types counted at every depth; None if nowhere."""
    if type(one) is not type(two):
        return f"{path}: {type(one).__name__} became {type(two).__name__}"
    match one:
        case float():
            return (
                None
                if struct.pack("d", one) == struct.pack("d", two) or (one != one and two != two)
                else f"{path}: {one} {two}"
            )
        case complex():
            return difference(one.real, two.real, path) or difference(one.imag, two.imag, path)
        case Decimal():
            return None if one.as_tuple() == two.as_tuple() else f"{path}: {one} {two}"
        case np.ndarray():
            same = one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()
            return None if same else f"{path}: {one!r} {two!r}"
        case np.generic():
            return None if one.dtype == two.dtype and one.tobytes() == two.tobytes() else f"{path}: {one!r} {two!r}"
        case set() | frozenset():
            return None if _sorted(one) == _sorted(two) else f"{path}: {one} {two}"
        case datetime.datetime() | datetime.time():
            return None if repr(one) == repr(two) and one.fold == two.fold else f"{path}: {one!r} {two!r}"
        case _:
            return _inner_difference(one, two, path)


def _inner_difference(one: Any, two: Any, path: str) -> str | None:
    parts = [_parts(one), _parts(two)]
    if parts[0] is None or parts[1] is None:
        return None if one == two else f"{path}: {one!r} became {two!r}"
    if len(parts[0]) != len(parts[1]):
        return f"{path}: {one!r} became {two!r}"
    pairs = enumerate(zip(parts[0], parts[1], strict=True))
    return next((found for index, (a, b) in pairs if (found := difference(a, b, f"{path}[{index}]"))), None)


def _sorted(value: Any) -> Any:
    """What tells a hashable value from others, whatever the order in its sets."""
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, map(_sorted, value)))
    return tuple(map(_sorted, value)) if isinstance(value, tuple) else repr(value)


def _parts(value: Any) -> list[Any] | None:
    if isinstance(value, collections.defaultdict):
        return [value.default_factory, *(part for pair in value.items() for part in pair)]
    if isinstance(value, dict):
        return [part for pair in value.items() for part in pair]
    if isinstance(value, (list, tuple, collections.deque)):
        return list(value)
    if isinstance(value, (Box, Frozen)):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, Record):
        return [value.content, value.count]
    return [vars(value)] if isinstance(value, Odd) else None


# What the steps return; what tells the calls apart is the batch, which is an argument of theirs.
stock: list[Any] = []
received: list[list[Any]] = []


@step(version="1")
async def on_the_loop(batch: int, index: int) -> Any:
    return stock[index]


@step(version="1")
def in_a_thread(batch: int, index: int) -> Any:
    return stock[index]


@step(cache=False)
async def pass_on(value: Any) -> Any:
    return value


@pipeline
async def deliver(batch: int) -> None:
    """Receive each value as its producer gives it, as a consumer gets it, and as the artifact has it."""
    received.clear()
    for producer in (on_the_loop, in_a_thread):
        for index in range(len(stock)):
            future = producer.submit(batch, index)
            received.append([index, await future, await pass_on(future), future.artifact.read()])


told_to_wait = False
arrived: asyncio.Event


@step(cache=False)
async def wait_if_told() -> None:
    if told_to_wait:
        arrived.set()
        await asyncio.Event().wait()


def check(how: str) -> None:
    assert len(received) == 2 * len(stock)
    for index, *forms in received:
        for form, value in zip(("awaited", "consumed", "stored"), forms, strict=True):
            found = difference(stock[index], value)
            assert found is None, f"{how}, {form}: {found}"


batches = iter(range(1_000_000))


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(values, min_size=1, max_size=12))
def test_a_miss_a_hit_and_a_resume_give_the_same_value_of_the_same_types(content: list[Any]) -> None:
    stock[:] = content
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(three_ways(folder, next(batches)))


async def three_ways(folder: str, batch: int) -> None:
    global told_to_wait, arrived
    async with asyncio.timeout(30):
        async with Engine(folder) as engine:
            result = await engine.run(deliver, batch)
            result.raise_for_failure()
            check("miss")
        async with Engine(folder) as engine:
            result = await engine.run(deliver, batch)
            producers = [call for call in result.step_results.values() if call.step != "pass_on"]
            assert {call.status for call in producers} == {"cached"}
            check("hit")
        told_to_wait, arrived = True, asyncio.Event()
        async with Engine(folder, cache=False, close_timeout=0) as engine:
            handle = await engine.start(resumable, batch)
            await arrived.wait()
        told_to_wait = False
        async with Engine(folder, cache=False) as engine:
            resumed = await engine.resume(handle.id)
            resumed.raise_for_failure()
            producers = [call for call in resumed.step_results.values() if call.step != "wait_if_told"]
            assert all(call.reused for call in producers)
            check("resume")


@pipeline(cache=False)
async def resumable(batch: int) -> None:
    received.clear()
    for producer in (on_the_loop, in_a_thread):
        uncached = producer.with_options(cache=False)
        for index in range(len(stock)):
            future = uncached.submit(batch, index)
            received.append([index, await future, await pass_on(future), future.artifact.read()])
    await wait_if_told()


@pytest.mark.parametrize("size", [20_000, 70_000, 300_000])
def test_large_values_come_back_as_they_were(size: int, tmp_path: pathlib.Path) -> None:
    stock[:] = [
        b"x" * size, "é" * size, list(range(1_000_000, 1_000_000 + size // 40)),
        np.arange(size // 8), np.arange(size // 8).astype("f4").reshape(-1, 2),
        {"a": np.arange(size // 8), "b": [b"y" * size]}, tuple(range(size // 40)), bytearray(size), Odd(b"z" * size),
        {str(n): (n, {n}) for n in range(size // 400)}, Box(list(range(1_000_000, 1_000_000 + size // 40))),
        uuid.UUID(int=size),
    ]  # fmt: skip
    asyncio.run(three_ways(str(tmp_path / "home"), next(batches)))
