"""Futures inside of arguments where nobody looks for them: refused by name, and not handed on as they are."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import msgspec
import pytest

from treadle import pipeline, step
from treadle.errors import HiddenFuture


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Config:
    size: Any


class Options(msgspec.Struct):
    size: Any


class Mine(list[Any]):
    """A container of a class of its own."""


@step
def takes(x: Any) -> str:
    return repr(x)


@pytest.mark.parametrize(
    ("hide", "place"),
    [
        (lambda future: Pair(1, future), "inside of a Pair"),
        (lambda future: Config([future]), "inside of a Config"),
        (lambda future: [{"a": Config(future)}], "inside of a Config"),
        (lambda future: Options(future), "inside of a Options"),
        (lambda future: Mine([future]), "inside of a Mine"),
        (lambda future: {future: 1}, "as a key of a dict"),
        (lambda future: {"a": [{future: 1}]}, "as a key of a dict"),
    ],
)
def test_a_future_where_nobody_would_put_its_value_is_refused_by_name(hide: Any, place: str, stage: Any) -> None:
    @pipeline
    async def p() -> str:
        future = takes.submit(1)
        with pytest.raises(HiddenFuture) as caught:
            takes.submit(hide(future))
        assert place in str(caught.value)
        assert "<StepFuture takes" in str(caught.value)
        assert "in the step" in str(caught.value.fix)
        return await takes(await takes.submit(Config(3)))

    assert stage.value(p) == repr(repr(Config(3)))
