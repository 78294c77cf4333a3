"""Which annotations fit: only what can never work is refused."""

# ruff: noqa: UP006, UP007, UP045  # the older forms of annotations are a subject of the tests
# No `from __future__ import annotations`: the annotations of this file are objects, those of its neighbours are text.

import collections
import enum
import io
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, Protocol, TypedDict, TypeVar, Union

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle import Pipeline, step
from treadle._core.annotations import accepts
from treadle.errors import ValidationError

T = TypeVar("T")
N = TypeVar("N", bound=str)
UserId = NewType("UserId", int)


class Base: ...


class Derived(Base): ...


class Other: ...


class Box(Generic[T]): ...


class Sized(Protocol):
    def size(self) -> int: ...


class Pair(NamedTuple):
    left: int
    right: str


class Options(TypedDict):
    depth: int


class Colour(enum.Enum):
    RED = 1


class Whole(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, int)


class Number(metaclass=Whole):
    """As shape-checking libraries make them: no subclass of anything, and yet numbers are its instances."""


FITS: list[tuple[Any, Any]] = [
    (int, int), (float, int), (complex, float), (complex, int), (int, bool), (float, bool), (bytes, bytearray),
    (Any, int), (int, Any), (object, int), (int, object),
    (Base, Derived), (Derived, Base), (Optional[int], int), (int, Optional[int]), (int | str, str), (str, int | str),
    (Union[int, str], bool), (None, None), (Optional[int], None),
    (list, list[int]), (list[int], list), (list[float], list[int]), (Sequence[int], list[int]),
    (list[int], Sequence[int]),
    (Iterable[str], dict[str, int]), (Mapping[str, float], dict[str, int]), (Sequence[int], tuple[int, ...]),
    (Sequence[int], tuple[int, int]), (tuple[int, ...], tuple[int, int]), (tuple[int, str], tuple), (tuple, Pair),
    (list[Any], list[int]), (list[int], list[Any]), (list[T], list[int]), (T, int), (N, str), (int, T),
    (Annotated[int, "metres"], int), (float, Annotated[int, "metres"]), (UserId, int), (int, UserId),
    (Literal["a", "b"], Literal["b"]), (str, Literal["a"]), (Literal["a"], str), (typing.Hashable, int),
    (Sized, Other), (Sized, int), (Sequence[int], Other), (Box[int], Box), (Box[int], Box[int]), (Box[Any], Box[str]),
    (Callable[[int], str], Callable[..., Any]), (type[Base], type[Derived]), (Options, dict), (dict, Options),
    (dict[str, Any], Options), ("Unknown", int), (int, "list[int]"), (Colour, Colour), (enum.Enum, Colour),
    (collections.OrderedDict[str, int], dict[str, int]), (typing.List[int], list[int]), (typing.NoReturn, int),
    (int, typing.NoReturn), (Decimal, Decimal), (lambda: 0, int), (int, 3), (float, Fraction),
    (int, np.int64), (float, np.float32), (float, np.int8), (complex, np.complex64), (bool, np.bool_),
    (int, np.generic), (float, np.number),
    (np.int64, int), (np.floating, float), (np.float32, float), (np.bool_, bool), (np.number, int),
    (list[float], list[np.float32]), (Number, int), (int, Number), (typing.IO[bytes], io.BytesIO),
    (typing.TextIO, io.StringIO), (io.BytesIO, typing.BinaryIO), (tuple[int, *tuple[str, ...]], tuple[int, str]),
    (tuple[int, str, str], tuple[int, *tuple[str, ...]]), (Sequence[int], tuple[int, *tuple[int, ...]]),
]  # fmt: skip

MISFITS: list[tuple[Any, Any]] = [
    (str, int), (int, str), (int, float), (bytes, str), (int, None), (None, int), (list, dict), (list[int], int),
    (int, list[int]), (list[int], list[str]), (dict[str, int], dict[int, int]), (dict[str, int], dict[str, str]),
    (Sequence[int], tuple[str, ...]), (Sequence[int], tuple[int, str]), (tuple[int, int], tuple[int, int, int]),
    (tuple[int, ...], tuple[int, str]), (Mapping[str, int], list[int]), (Iterable[int], int),
    (Iterable[int], list[str]),
    (Base, Other), (Other, Derived), (int | str, bytes), (bytes, int | str), (Optional[int], str), (N, int),
    (Annotated[int, "metres"], str), (UserId, str), (Literal["a"], Literal["b"]), (Literal["a"], int),
    (int, Literal["a"]),
    (Box[int], Box[str]), (Callable[[int], str], int), (type[Base], int), (Options, int), (Colour, int),
    (list[list[int]], list[list[str]]), (Decimal, float), (set[int], list[int]),
    (typing.Dict[str, int], typing.List[int]), (int, np.float64), (np.int64, float), (bool, np.int64), (str, np.int64),
    (np.ndarray, int), (int, np.str_), (np.bool_, int), (float, np.complex128),
]  # fmt: skip


def _shown(annotation: Any) -> str:
    return str(annotation).partition(" at 0x")[0]


@pytest.mark.parametrize(("wanted", "found"), FITS, ids=_shown)
def test_what_can_work_passes(wanted: Any, found: Any) -> None:
    assert accepts(wanted, found)


@pytest.mark.parametrize(("wanted", "found"), MISFITS, ids=_shown)
def test_what_can_never_work_is_refused(wanted: Any, found: Any) -> None:
    assert not accepts(wanted, found)


classes = st.sampled_from([int, str, float, bool, bytes, type(None), list, dict, tuple, set, Base, Derived, Other, Any])
annotations = st.recursive(
    classes,
    lambda inner: st.one_of(
        inner.map(lambda a: list[a]), inner.map(lambda a: Optional[a]), st.tuples(inner, inner).map(lambda a: dict[a]),
        st.tuples(inner, inner).map(lambda a: Union[a]), st.tuples(inner, inner).map(lambda a: tuple[a]),
        inner.map(lambda a: Annotated[a, 1]), inner.map(lambda a: Sequence[a]),
    ),
    max_leaves=6,
)  # fmt: skip


@given(annotations)
def test_every_annotation_fits_itself_and_anything(annotation: Any) -> None:
    assert accepts(annotation, annotation)
    assert accepts(Any, annotation)
    assert accepts(annotation, Any)
    assert accepts(Optional[annotation], annotation)


@dataclass
class Row:
    value: int


def pipe_of(giver: Callable[..., Any], taker: Callable[..., Any]) -> Pipeline:
    return Pipeline("p").add_steps(step(outputs=["value"])(giver), step(inputs=["value"])(taker))


def test_annotations_as_text_are_looked_up_where_the_function_was_defined() -> None:
    def give() -> "list[Row]":
        return []

    def take(value: "Row") -> None: ...

    with pytest.raises(ValidationError, match="Row"):
        pipe_of(give, take).compile()


def test_annotations_as_text_may_name_what_a_function_closes_over() -> None:
    class Inner: ...

    def give() -> "Inner":
        return Inner()

    def take(value: "int") -> None: ...

    def keep() -> type:
        return Inner

    assert keep() is Inner
    with pytest.raises(ValidationError, match="Inner"):
        pipe_of(give, take).compile()


def test_annotations_that_cannot_be_resolved_pass() -> None:
    def give() -> "NotThere.at_all":  # type: ignore  # noqa: F821, PGH003
        return 1

    def take(value: "also[not, there") -> None: ...  # type: ignore  # noqa: F722, PGH003

    assert pipe_of(give, take).compile().edges == [("give", "take")]


def test_an_async_step_gives_what_awaiting_it_gives() -> None:
    async def give() -> int:
        return 1

    def take(value: str) -> None: ...

    with pytest.raises(ValidationError, match="takes str"):
        pipe_of(give, take).compile()


@pytest.mark.parametrize(
    ("returned", "is_sound"),
    [
        (tuple[int, str], True), (tuple[str, int], False), (tuple[int, ...], False), (dict[str, int], False),
        (Pair, True), (list[int], False), (dict, True), (tuple, True), (Any, True), (tuple[int, str, str], True),
    ],
)  # fmt: skip
def test_each_of_several_outputs_has_its_own_annotation(returned: Any, is_sound: bool) -> None:
    def give() -> Any:
        return 1, ""

    def take(right: str) -> None: ...

    give.__annotations__["return"] = returned
    pipe = Pipeline("p").add_steps(step(outputs=["left", "right"])(give), step(take))
    if is_sound:
        pipe.compile()
    else:
        with pytest.raises(ValidationError, match="'right'"):
            pipe.compile()
