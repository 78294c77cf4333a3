"""Values that take long to encode are encoded on a thread, and what is long is judged by all of their parts."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from treadle import Engine, pipeline, step
from treadle._runtime.calls import inputs
from treadle.storage import codecs


def shared(levels: int) -> list[Any]:
    """A list with ``2 ** levels`` ways from its top to its bottom, made of few objects."""
    value: list[Any] = [1]
    for _ in range(levels):
        value = [value, value]
    return value


def circle() -> list[Any]:
    value: list[Any] = [1]
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "is_quick"),
    [
        ([1, "a", None], True),
        ([], True),
        ([[[]]] * 10, True),
        ({"a": [1, (2, 3)], "b": {"c": {4}}}, True),
        (list(range(inputs.HEAVY_ITEMS)), False),
        ([list(range(inputs.HEAVY_ITEMS // 4))] * 5, False),
        ({"a": {"b": (list(range(inputs.HEAVY_ITEMS)),)}}, False),
        ([[]] * (inputs.HEAVY_ITEMS // 2 + 1), False),
        (shared(3), True),
        (shared(25), False),
        (circle(), False),
    ],
)
def test_a_value_is_quick_by_all_its_parts(value: Any, is_quick: bool) -> None:
    assert inputs.is_quick(value) is is_quick


@pytest.mark.parametrize("value", [shared(25), [[0] * 100] * 1000], ids=["shared", "nested"])
@pytest.mark.asyncio
async def test_a_heavy_value_is_encoded_beside_the_loop(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    places: list[bool] = []
    encode, here = codecs.encode, threading.get_ident()

    def watched(given: Any, **options: Any) -> codecs.Encoded:
        if given is value:
            places.append(threading.get_ident() == here)
        return encode(given, **options)

    monkeypatch.setattr(codecs, "encode", watched)

    @step(version=1)
    async def heavy() -> Any:
        return value

    @pipeline
    async def flow() -> int:
        return len(await heavy())

    async with Engine("memory://") as engine:
        result = await engine.run(flow)
    assert result.value == len(value)
    assert places
    assert not any(places)
