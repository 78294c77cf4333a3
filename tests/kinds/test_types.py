"""Annotations hold at run time: what an upstream gives, and what a step returns where a kind is named."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional, Protocol, TypedDict, TypeVar

import numpy as np
import pandas as pd
import polars as pl
import pytest

from treadle import Dataset, Engine, Metrics, Model, pipeline, step, unmapped
from treadle._core.expected import Wanted, expected_of, wanted
from treadle.errors import StepTypeError, TreadleError

BEGUN: list[str] = []
T = TypeVar("T")
UserId = NewType("UserId", int)


@dataclass
class Page:
    """A user's class."""

    text: str


class Row(TypedDict):
    """A dict by another name."""

    a: int


class HasLen(Protocol):
    """Something that cannot be asked."""

    def __len__(self) -> int: ...


@pytest.fixture(autouse=True)
def fresh() -> None:
    BEGUN.clear()


@step
def gives(x: Any) -> Any:
    return x


@step(retry=3)
def wants_text(x: str) -> str:
    BEGUN.append("wants_text")
    return x


@step
def wants_model(m: Model[Any]) -> Any:
    BEGUN.append("wants_model")
    return m.value


@step
def wants_frame(df: pd.DataFrame) -> int:
    return len(df)


@step
def wants_all(xs: list[str], *, page: Page | None = None) -> int:
    return len(xs)


@pipeline
async def text(x: Any) -> str:
    return await wants_text(gives.submit(x))


@pipeline
async def frame(x: Any) -> int:
    return await wants_frame(gives.submit(x))


# -- what comes from upstream ---------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_value_of_another_type_fails_the_step_before_its_body(home: str) -> None:
    async with Engine(home) as engine:
        result = await engine.run(text, 3)
        error = result.error
        assert isinstance(error, StepTypeError)
        assert isinstance(error, TypeError)
        assert isinstance(error, TreadleError)
        assert (error.step, error.parameter, error.expected, error.got) == ("wants_text", "x", "str", "int")
        assert BEGUN == []
        assert result.step_results["wants_text"].status == "failed"
        assert result.step_results["wants_text"].attempts == 0
        assert (await engine.run(text, "fine")).value == "fine"


@pytest.mark.asyncio
async def test_maps_artifacts_and_shared_arguments_are_held_to_it_too(home: str) -> None:
    @pipeline
    async def mapped() -> Any:
        return await wants_text.map(gives.map(["a", 2]))

    @pipeline
    async def whole() -> Any:
        return await wants_all(gives.map(["a", "b"]), page=gives.submit(Page("x")))

    @pipeline
    async def shared() -> Any:
        return await wants_all.map([["a"], ["b"]], page=unmapped(gives.submit("no page")))

    @pipeline
    async def stored() -> Any:
        done = gives.submit(3)
        await done
        return await wants_text(done.artifact)

    async with Engine(home) as engine:
        assert isinstance((await engine.run(mapped)).error, StepTypeError)
        assert (await engine.run(whole)).value == 2
        assert isinstance((await engine.run(shared)).error, StepTypeError)
        assert isinstance((await engine.run(stored)).error, StepTypeError)


@pytest.mark.asyncio
async def test_a_literal_is_the_callers_own_affair(home: str) -> None:
    @pipeline
    async def literal() -> Any:
        return await wants_text(3)  # type: ignore[arg-type]  # on purpose

    async with Engine(home):
        assert await literal() == 3


@pytest.mark.asyncio
@pytest.mark.parametrize("given", [3, [3], {"a": 1}])
async def test_but_a_model_has_to_be_one_wherever_it_comes_from(home: str, given: Any) -> None:
    @pipeline
    async def literal(x: Any) -> Any:
        return await wants_model(x)

    async with Engine(home) as engine:
        error = (await engine.run(literal, given)).error
        assert isinstance(error, StepTypeError)
        assert "Model(obj, name=...)" in error.fix
        assert BEGUN == []
        assert (await engine.run(literal, Model(given))).value == given


@pytest.mark.asyncio
async def test_frames_of_different_libraries_are_told_apart(home: str) -> None:
    data = pd.DataFrame({"a": [1]})
    async with Engine(home) as engine:
        assert (await engine.run(frame, data)).value == 1
        error = (await engine.run(frame, pl.DataFrame({"a": [1]}))).error
        assert isinstance(error, StepTypeError)
        assert "polars" in error.got
        error = (await engine.run(frame, Dataset(data, name="d"))).error
        assert isinstance(error, StepTypeError)
        assert ".value" in error.fix


@pytest.mark.asyncio
async def test_none_is_a_value_and_goes_where_the_annotation_or_the_default_allows_it(home: str) -> None:
    @step
    def optional(x: Optional[int] = 1, y: int = None) -> Any:  # type: ignore[assignment]  # noqa: RUF013, UP045  # a user's old form
        return (x, y)

    @pipeline
    async def fine() -> Any:
        return await optional(gives.submit(None), gives.submit(None))

    async with Engine(home) as engine:
        assert (await engine.run(fine)).value == (None, None)
        assert isinstance((await engine.run(text, None)).error, StepTypeError)


# -- what a step returns --------------------------------------------------------------------


@step(retry=5)
def says_model(x: Any) -> Model[Any]:
    BEGUN.append("says_model")
    return x  # type: ignore[no-any-return]  # that is the point


@step(outputs=["model", "facts"])
def says_both(x: Any, y: Any) -> tuple[Model[Any], Metrics]:
    return x, y


@pipeline
async def promised(x: Any) -> Any:
    return await says_model(x)


@pipeline
async def promised_both(x: Any, y: Any) -> Any:
    return await says_both(x, y)


@pytest.mark.asyncio
async def test_a_step_that_says_model_and_returns_something_else_fails(home: str) -> None:
    async with Engine(home) as engine:
        error = (await engine.run(promised, [1])).error
        assert isinstance(error, StepTypeError)
        assert (error.parameter, error.got) == ("return", "list")
        assert BEGUN == ["says_model"]  # no retry mends that
        assert (await engine.run(promised, Model([1]))).success
        assert isinstance((await engine.run(promised, Dataset([1]))).error, StepTypeError)


@pytest.mark.asyncio
async def test_each_of_several_outputs_is_held_to_its_own_annotation(home: str) -> None:
    async with Engine(home) as engine:
        assert (await engine.run(promised_both, Model(1), Metrics(a=1))).success
        error = (await engine.run(promised_both, Model(1), {"a": 1})).error
        assert isinstance(error, StepTypeError)
        assert "'facts'" in str(error)
        assert "Metrics(" in error.fix


@pytest.mark.asyncio
async def test_other_return_annotations_are_not_enforced(home: str) -> None:
    @step
    def says_int() -> int:
        return "no"  # type: ignore[return-value]  # on purpose

    @pipeline
    async def run() -> Any:
        return await says_int()

    async with Engine(home):
        assert await run() == "no"


# -- which annotations can be checked -------------------------------------------------------

FITS: list[tuple[Any, list[Any], list[Any]]] = [
    (int, [1, True, np.int64(3)], [1.0, "1", None, np.float64(1)]),
    (float, [1.0, 1, True, np.float32(1), np.int8(1), Fraction(1)], ["1", 1j, Decimal(1), None]),
    (complex, [1j, 1, 1.5, np.float64(2)], ["1"]),
    (bool, [True, np.True_], [1, "yes"]),
    (str, ["a", np.str_("a")], [b"a", Path("a")]),
    (bytes, [b"a", bytearray(b"a"), memoryview(b"a")], ["a"]),
    (list, [[1]], [(1,), {1}, None]),
    (list[int], [["text inside is not looked at"]], [(1,)]),
    (dict[str, int], [{}], [[]]),
    (Row, [{"a": 1}], [[("a", 1)]]),
    (Page, [Page("x")], ["x"]),
    (Page | None, [Page("x"), None], ["x"]),
    (Optional[Page], [Page("x"), None], ["x"]),  # noqa: UP045  # a user's old form
    (int | str, [1, "a"], [1.5]),
    (Annotated[int, "seconds"], [1], ["1"]),
    (UserId, [1], ["1"]),
    (np.float64, [np.float64(1), 1.0, 1], ["1", 1j]),
    (np.integer, [np.int8(1), 1], [1.0, np.float64(1)]),
    (np.bool_, [np.True_, True], [1, "yes"]),
    (Sequence[int], [[1], (1,), np.zeros(2), pd.Series([1])], [{1}, 1, np.float64(1)]),
    (Mapping[str, Any], [{}, Metrics(a=1), pd.DataFrame()], [[], Page("x")]),
    (Iterable[int], [[1], "a"], [1]),
    (Callable[[], int], [len], [3]),
    (pd.DataFrame, [pd.DataFrame()], [pd.Series(dtype=float)]),
    (np.ndarray, [np.zeros(2)], [[0, 0]]),
    (Model, [Model(1)], [Dataset(1), 1]),
    (Model[int], [Model(1), Model("x")], [1]),
    (None, [None], [0]),
    (type, [int], [1]),
]


@pytest.mark.parametrize(("annotation", "good", "bad"), FITS, ids=[str(row[0]) for row in FITS])
def test_annotations_are_held_to_by_class(annotation: Any, good: list[Any], bad: list[Any]) -> None:
    kinds = wanted(annotation)
    assert kinds is not None
    want = Wanted(kinds, str(annotation))
    assert [value for value in good if not want.fits(value)] == []
    assert [value for value in bad if want.fits(value)] == []


@pytest.mark.parametrize(
    "annotation",
    [Any, object, T, Literal["a"], HasLen, "a name", int | Any, typing.Union[T, int], ..., typing.IO[str]],  # noqa: UP007  # a user's old form
)
def test_what_has_no_class_is_not_checked(annotation: Any) -> None:
    assert wanted(annotation) is None


def test_names_that_cannot_be_resolved_are_left_out() -> None:
    class Local:
        pass

    def f(a: Local, b: Nowhere, c: int, *args: int, **kwargs: int) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    def g(a: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    expected = expected_of(f)
    assert expected is not None
    assert sorted(expected.parameters) == ["c"]
    assert expected_of(g) is None
    assert expected_of(lambda x: x) is None
