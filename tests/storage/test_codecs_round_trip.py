"""A value that was stored comes back equal, with the same types at every depth."""

from __future__ import annotations

import datetime as dt
import enum
import math
import struct
import sys
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.storage.codecs import Encoded, decode, digest, encode

T = TypeVar("T")


class Color(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796  # an alias is the point
    GREEN = (2, "g")


class Level(enum.IntEnum):
    LOW = 1


class Mode(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


class Bits(enum.IntFlag):
    A = 1
    B = 2


class Word(enum.StrEnum):
    YES = "yes"


class Point(NamedTuple):
    x: Any
    y: Any = 0


class Point3(Point):
    """A subclass with a ``__dict__``."""


@dataclass
class Plain:
    a: Any
    b: Any = None


@dataclass(frozen=True, slots=True)
class Slotted:
    a: Any


@dataclass(frozen=True)
class Counted(Generic[T]):
    """Its constructor must not run again."""

    value: Any
    double: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "double", [self.value, self.value])


@dataclass
class _Base:
    one: Any


@dataclass(slots=True)
class Derived(_Base):
    two: Any


@dataclass
class NeverEqual:
    a: Any

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


class Record(msgspec.Struct):
    a: Any
    b: Any = None


class FrozenRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag=True):
    some_field: Any


class Text(str):
    """A subclass of a builtin type."""

    __slots__ = ()


class Custom:
    """A class that only pickle can store."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Custom) and self.value == other.value

    def __hash__(self) -> int:
        return 1


class Outer:
    @dataclass
    class Inner:
        a: Any


def function() -> int:
    return 1


def same(a: Any, b: Any) -> bool:
    """Equal in value and type at every depth, bit for bit; written without a look at the codecs."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, (Plain, Slotted, Counted, Derived, NeverEqual, Record, FrozenRecord, Outer.Inner)):
        names = getattr(a, "__struct_fields__", None) or a.__dataclass_fields__
        return all(same(getattr(a, name), getattr(b, name)) for name in names)
    if isinstance(a, defaultdict) and a.default_factory is not b.default_factory:
        return False
    if isinstance(a, deque) and a.maxlen != b.maxlen:
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(same, a.keys(), b.keys())) and all(map(same, a.values(), b.values()))
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, set | frozenset):
        rest = list(b)
        for item in a:
            found = next((place for place, other in enumerate(rest) if same(item, other)), None)
            if found is None:
                return False
            del rest[found]
        return not rest
    if isinstance(a, Decimal):
        return a.as_tuple() == b.as_tuple()
    if isinstance(a, dt.datetime | dt.time):
        return (
            a.replace(tzinfo=None) == b.replace(tzinfo=None) and a.fold == b.fold and repr(a.tzinfo) == repr(b.tzinfo)
        )
    if isinstance(a, slice):
        return same((a.start, a.stop, a.step), (b.start, b.stop, b.step))
    return bool(a == b)


ZONES = st.sampled_from(
    [None, dt.UTC, dt.timezone(dt.timedelta(hours=-3)), dt.timezone(dt.timedelta(0), "named"), ZoneInfo("Europe/Paris")]
)
INTS = st.integers() | st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 2**200])
HASHABLE_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    INTS,
    st.floats(allow_nan=False),
    st.text(),
    st.text(st.characters(codec=None, categories=None), max_size=5),
    st.binary(),
    st.complex_numbers(allow_nan=False),
    st.builds(range, INTS, INTS, st.integers(1, 9)),
    st.dates(),
    st.datetimes(timezones=ZONES, allow_imaginary=True),
    st.times(),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.uuids(),
    st.sampled_from([Path("/a/b"), Path(), PurePosixPath("x/y"), PureWindowsPath("C:/x"), ..., NotImplemented]),
    st.sampled_from([msgspec.UNSET, Color.RED, Color.GREEN, Level.LOW, Mode.READ | Mode.WRITE, Mode(0), Word.YES]),
    st.sampled_from([Bits.A | Bits.B, Bits(8), int, Plain, Color, Outer.Inner, len, math.sqrt, function]),
)
LEAVES = st.one_of(
    HASHABLE_LEAVES,
    st.floats(),
    st.complex_numbers(),
    st.decimals(allow_nan=True),
    st.binary().map(bytearray),
    st.builds(slice, INTS, INTS),
    st.sampled_from([math.nan, -0.0, math.inf, Decimal("sNaN7"), Decimal("-0E-5"), Decimal("1E+400")]),
)
KEYS = st.recursive(
    HASHABLE_LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner), st.frozensets(inner, max_size=3), inner.map(Point), inner.map(Slotted)
    ),
    max_leaves=4,
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(inner, max_size=4)
    dicts = st.dictionaries(KEYS, inner, max_size=4)
    return st.one_of(
        lists,
        lists.map(tuple),
        dicts,
        st.dictionaries(st.text(max_size=4), inner, max_size=4),
        st.sets(KEYS, max_size=4),
        st.frozensets(KEYS, max_size=4),
        dicts.map(OrderedDict),
        dicts.map(lambda items: defaultdict(list, items)),
        dicts.map(lambda items: defaultdict(None, items)),
        st.dictionaries(KEYS, INTS, max_size=3).map(Counter),
        st.builds(deque, lists, st.none() | st.integers(4, 9)),
        *(inner.map(kind) for kind in (Point, Plain, Slotted, Counted, NeverEqual, Record, Outer.Inner)),
        inner.map(lambda value: FrozenRecord(some_field=value)),
        st.tuples(inner, inner).map(lambda pair: Derived(*pair)),
    )


VALUES = st.recursive(LEAVES, containers, max_leaves=12)


def back(value: Any) -> Any:
    encoded = encode(value)
    return decode(encoded.codec, encoded.data)


@settings(max_examples=400, deadline=None)
@given(VALUES)
def test_every_value_comes_back_equal_with_the_same_types_at_every_depth(value: Any) -> None:
    encoded = encode(value)
    assert encoded.codec == "msgpack"
    assert same(decode("msgpack", encoded.data), value)
    assert encoded.digest == encoded.checksum == digest(value)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_a_value_that_came_back_has_the_same_digest(value: Any) -> None:
    assert digest(back(value)) == digest(value)


@settings(max_examples=150, deadline=None)
@given(VALUES, VALUES)
def test_values_have_one_digest_only_if_they_are_the_same(a: Any, b: Any) -> None:
    assert same(a, b) or digest(a) != digest(b)


def test_what_has_no_envelope_is_pickled_as_a_whole() -> None:
    for value in (Custom(1), [Custom((1,))], Text("x"), {"a": Text("x")}, ValueError("x"), Point3(1, 2)):
        again = back(value)
        assert type(again) is type(value)
        assert repr(again) == repr(value) or again == value
    assert encode([Custom(1)]).codec == "pickle"
    assert encode(Text("x")).codec == "pickle"


def test_state_beside_the_fields_is_kept() -> None:
    value = Plain(1)
    value.extra = [2]  # type: ignore[attr-defined]
    assert vars(back(value)) == {"a": 1, "b": None, "extra": [2]}
    point = Point3(1, 2)
    point.extra = 3  # type: ignore[attr-defined]
    assert back(point).extra == 3


def test_a_field_that_was_never_set_stays_unset() -> None:
    value = Plain(1)
    del value.b
    assert not hasattr(back(value), "b") or "b" not in vars(back(value))


def test_a_value_that_contains_itself_comes_back_containing_itself() -> None:
    value: list[Any] = [1]
    value.append(value)
    again = back(value)
    assert again[1] is again
    node = Plain(set())
    node.b = node
    assert back(node).b.b.a == set()


def test_many_references_to_few_objects_are_stored_in_little_space() -> None:
    value: Any = [1]
    for _ in range(60):
        value = [value, value]
    encoded = encode(value)
    assert encoded.codec == "pickle"
    assert len(encoded.data) < 10_000


def test_nesting_up_to_a_hundred_levels_is_enveloped_and_more_is_pickled() -> None:
    value: Any = ()
    for _ in range(90):
        value = (value,)
    assert encode(value).codec == "msgpack"
    assert back(value) == value
    for _ in range(20):
        value = (value,)
    assert encode(value).codec == "pickle"
    assert back(value) == value


@pytest.mark.parametrize("size", [64 * 1024 - 8, 64 * 1024, 64 * 1024 + 1, 200_000])
def test_large_bytes_and_text_are_stored_as_they_are(size: int) -> None:
    for value in (b"x" * size, "x" * size, "é" * (size // 2), "\ud800" * size):
        again = back(value)
        assert again == value
        assert type(again) is type(value)
        assert digest(value) == encode(value).digest
    large = size > 64 * 1024
    assert encode(b"x" * size).codec == ("bytes" if large else "msgpack")
    assert encode("x" * size).codec == ("str" if large else "msgpack")
    assert encode("x" * size).data == b"x" * size or not large


def test_every_kind_of_class_comes_back_without_its_constructor() -> None:
    value = Counted(1)
    value.double.append(3)
    assert back(value).double == [1, 1, 3]


def test_attrs_classes_come_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    attrs = pytest.importorskip("attrs")
    here = sys.modules[__name__]
    for options in ({}, {"slots": False}, {"frozen": True}, {"frozen": True, "slots": False}):
        made = attrs.make_class("Made", ["a", "b"], **options)
        made.__module__ = __name__
        monkeypatch.setattr(here, "Made", made, raising=False)
        encoded = encode(made((1,), {2}))
        assert encoded.codec == "msgpack"
        assert back(made((1,), {2})) == made((1,), {2})
        assert encode(made(1, 2)).mutable == ("frozen" not in options)


class Growing(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        self.n += 1


class Sorted(msgspec.Struct):
    items: list[int]

    def __post_init__(self) -> None:
        self.items = sorted(self.items)


def test_a_struct_whose_post_init_would_change_it_is_refused() -> None:
    with pytest.raises(TypeError, match="__post_init__"):
        encode(Growing(1))
    assert back(Sorted([2, 1])) == Sorted([1, 2])


def test_main_script_classes_are_found_in_the_main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Local:
        a: int

    Local.__module__, Local.__qualname__ = "__main__", "Local"
    monkeypatch.setattr(sys.modules["__main__"], "Local", Local, raising=False)
    assert encode(Local(1)).codec == "msgpack"
    assert back(Local(1)) == Local(1)


def test_a_class_whose_name_leads_elsewhere_is_never_stored_by_that_name() -> None:
    @dataclass
    class Plain:
        a: int

    Plain.__qualname__ = "Plain"
    with pytest.raises(TypeError, match="not the same object"):
        encode(Plain(1))


def test_a_name_that_was_bound_to_another_class_since_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (Plain(1), Point(1), Record(1), Color.RED):
        assert encode(value).codec == "msgpack"
        monkeypatch.setattr(sys.modules[__name__], type(value).__name__, Slotted)
        with pytest.raises(TypeError):
            encode(value)
        with pytest.raises(TypeError):
            encode([value, value])


def test_mutable_says_whether_any_part_can_be_changed_in_place() -> None:
    fixed = [1, "a", b"b", (1, (2,)), frozenset({1}), Color.RED, Slotted(1), FrozenRecord(some_field=()), Path(), len]
    loose = [[1], {}, {1}, ([],), Slotted([1]), Plain(1), Record(1), bytearray(), Point([], 1), Custom(1), deque()]
    assert [value for value in fixed if encode(value).mutable] == []
    assert [value for value in loose if not encode(value).mutable] == []


def test_the_type_is_named_for_people() -> None:
    assert encode(1).type_name == "builtins.int"
    assert encode([]).type_name == "builtins.list"
    assert encode(Plain(1)).type_name == f"{__name__}.Plain"
    assert encode(Outer.Inner(1)).type_name == f"{__name__}.Outer.Inner"


def test_what_is_encoded_is_immutable_and_complete() -> None:
    encoded = encode({"a": 1})
    assert isinstance(encoded, Encoded)
    assert (len(encoded.digest), len(encoded.checksum)) == (32, 32)
    with pytest.raises(AttributeError):
        encoded.data = b""  # type: ignore[misc]


def test_values_are_encoded_in_many_threads_at_once() -> None:
    value = {"rows": [Plain(n, (n, {n})) for n in range(50)], UUID(int=1): Fraction(1, 3)}
    expected, found = encode(value), []

    def work() -> None:
        found.extend(encode(back(value)) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 20
