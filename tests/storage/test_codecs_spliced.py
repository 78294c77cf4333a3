"""The digest of a container around stored parts is the digest of the container with its values."""

from __future__ import annotations

import datetime
import os
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.storage import codecs


class Hole:
    """Stands for a stored value."""

    def __init__(self, value: Any) -> None:
        self.value = value


def stored(hole: Hole) -> codecs.Stored:
    encoded = codecs.encode(hole.value)

    def pieces() -> Generator[memoryview, None, None]:
        view = memoryview(encoded.data)
        for start in range(0, len(view), 7_001):
            yield view[start : start + 7_001]

    return codecs.Stored(encoded.codec, encoded.digest, encoded.checksum, len(encoded.data), pieces)


def filled(value: Any) -> Any:
    """The value with what its holes stand for."""
    if isinstance(value, Hole):
        return value.value
    if type(value) in (list, tuple):
        return type(value)(map(filled, value))
    if type(value) is dict:
        return {key: filled(item) for key, item in value.items()}
    return value


LARGE: dict[str, Any] = {
    "bytes": bytes(range(256)) * 300,
    "text": "ä€" * 40_000,
    "more text": "x" * 70_000,
    "array": np.arange(20_000.0).reshape(100, -1),
    "dates": np.arange(20_000).astype("M8[us]"),
    "records": np.ones(20_000, np.dtype([("a", "i1"), ("b", "f8", (2,))], align=True)),
    "list": list(range(30_000)),
    "tuple": (*range(30_000), datetime.date(2024, 1, 2)),
    "dict": {f"key {number}": [number] for number in range(9_000)},
    "nested array": {"x": np.arange(20_000)},
}
SMALL = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.dates()
KEYS = st.text(max_size=40) | st.integers(-(2**40), 2**40) | st.tuples(st.integers())
HOLES = st.sampled_from(list(LARGE)).map(lambda name: Hole(LARGE[name]))
VALUES = st.recursive(
    SMALL | HOLES,
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=int(os.environ.get("TREADLE_TEST_EXAMPLES", "20")), deadline=None)
@given(VALUES)
def test_it_is_the_digest_of_the_whole(value: Any) -> None:
    found = codecs.spliced_digest(value, Hole, stored)
    assert found is None or found == codecs.digest(filled(value))


@pytest.mark.parametrize(
    ("name", "count"), [*((name, 1) for name in LARGE), ("list", 15), ("list", 16), ("text", 70_000)]
)
def test_every_kind_of_part_counts_in_every_kind_of_container(name: str, count: int) -> None:
    part = Hole(LARGE[name])
    fill = list(range(count - 1))
    for value in (
        [*fill, part],
        (part, *fill),
        {**dict.fromkeys(fill, 0), "x": part},
        {(1,): part},
        [[{"k": (part,)}]],
    ):
        assert codecs.spliced_digest(value, Hole, stored) == codecs.digest(filled(value))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames_count_by_their_own_digest(library: str) -> None:
    frame = pytest.importorskip(library).DataFrame({"a": range(10_000), "b": ["x"] * 10_000})
    assert codecs.spliced_digest([Hole(frame), 1], Hole, stored) == codecs.digest([frame, 1])
    assert codecs.spliced_digest([[frame], frame, Hole(b"")], Hole, stored) == codecs.digest([[frame], frame, b""])
    for value in (frame, [frame, 1]):
        assert codecs.digest(value) == codecs.encode(value).digest


class Pickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return Pickled, ()


@pytest.mark.parametrize("value", [[Hole(Pickled())], {1: [Hole([Pickled()])]}])
def test_what_is_not_its_bytes_is_left_to_others(value: Any) -> None:
    assert codecs.spliced_digest(value, Hole, stored) is None


@pytest.mark.parametrize("rare", [2**70, "\ud800"])
def test_what_makes_a_difference_to_its_surroundings_is_left_to_others(rare: Any) -> None:
    assert codecs.spliced_digest([rare, {"": Hole(LARGE["bytes"])}], Hole, stored) is None


def test_sets_are_left_to_others() -> None:
    assert codecs.spliced_digest([{Hole(LARGE["bytes"])}], Hole, stored) is None
    assert codecs.spliced_digest([{1}, Hole(LARGE["bytes"])], Hole, stored) == codecs.digest([{1}, LARGE["bytes"]])
