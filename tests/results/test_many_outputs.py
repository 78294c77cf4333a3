"""Results of runs with many outputs: all of them in one go, one here and one there, and when they are gone."""

from __future__ import annotations

import random
from typing import Any

import pytest

from treadle import Engine, RunResult, pipeline, step
from treadle._runtime.views import archive
from treadle.errors import ArtifactNotFound

COUNT = 300


@step
async def square(x: int) -> int:
    return x * x


@step(outputs=("low", "high"))
async def bounds(x: int) -> tuple[int, int]:
    return -x, x


@pipeline
async def many() -> None:
    futures = [square.submit(x) for x in range(COUNT)]
    await square.map(range(COUNT, 2 * COUNT))
    await bounds.map(range(COUNT))
    for future in futures:
        await future


@pytest.fixture
def result(home: Any) -> RunResult[Any]:
    """A run with single calls, a map, and a map with two outputs."""
    found: RunResult[Any] = home.run(many)
    return found


def name_of(x: int) -> str:
    return f"square_{x + 1}" if x else "square"


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often the log was opened."""
    opened: list[str] = []

    def opening(path: str) -> Any:
        opened.append(path)
        return open_reader(path)

    open_reader = archive.open_reader
    monkeypatch.setattr(archive, "open_reader", opening)
    return opened


def test_outputs_that_are_read_one_after_another_cost_few_looks_into_the_log(
    result: RunResult[Any], openings: list[str]
) -> None:
    outputs = dict(result.outputs)
    assert [outputs[name_of(x)] for x in range(COUNT)] == [x * x for x in range(COUNT)]
    assert outputs[f"square_{COUNT + 1}"] == [x * x for x in range(COUNT, 2 * COUNT)]
    assert outputs["bounds.low"] == [-x for x in range(COUNT)]
    assert outputs["bounds.high"] == [*range(COUNT)]
    artifacts = dict(result.artifacts)
    assert len(artifacts) == 4 * COUNT
    assert artifacts["bounds[7].low"].read() == -7
    assert len(openings) < COUNT / 5


def test_outputs_that_are_read_in_any_order_and_twice_are_the_right_ones(result: RunResult[Any]) -> None:
    chance, outputs, artifacts = random.Random(7), result.outputs, result.artifacts
    places = [*range(20), *chance.choices(range(COUNT), k=40), *range(10, 30), *range(COUNT - 3, COUNT)]
    assert [outputs[name_of(x)] for x in places] == [x * x for x in places]
    assert [artifacts[f"bounds[{x}].high"].read() for x in places] == places


@pytest.mark.asyncio
async def test_an_output_that_was_pruned_since_is_said_to_be_gone(home: Any) -> None:
    async with Engine(home.path) as engine:
        result = await engine.run(many)
        outputs = result.outputs
        await engine.prune(keep_last=0)
        for name in ("square", "square_2", f"square_{COUNT + 1}", "bounds.low"):
            with pytest.raises(ArtifactNotFound, match="its run was pruned"):
                outputs[name]
