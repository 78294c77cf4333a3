"""Asking a result for something by a name that it does not have."""

from __future__ import annotations

from typing import Any

import pytest

from treadle import Pipeline, RunResult, pipeline, step
from treadle.errors import CallNotFound


@step
def train(x: int) -> int:
    return x


@step(outputs=("low", "high"))
def bounds(xs: list[int]) -> tuple[int, int]:
    return min(xs), max(xs)


@pipeline
async def p() -> None:
    await bounds(train.map(range(3)))


@pytest.fixture
def result(home: Any) -> RunResult[Any]:
    """A run with a map and several outputs."""
    found: RunResult[Any] = home.run(p)
    return found


@pytest.mark.parametrize(
    ("view", "name", "fix"),
    [
        ("step_results", "bonds", "did you mean 'bounds'?"),
        ("step_results", "train", "train is a map of 3: ask for 'train[0]' to 'train[2]'"),
        ("step_results", "trian", "train is a map of 3: ask for 'train[0]' to 'train[2]'"),
        ("step_results", "train[7]", "train is a map of 3: ask for 'train[0]' to 'train[2]'"),
        ("artifacts", "zzz", "there is train, bounds.low, bounds.high"),
        ("outputs", "trains", "did you mean 'train'?"),
        ("outputs", "bounds", "bounds has several outputs: ask for 'bounds.low', 'bounds.high'"),
        ("artifacts", "bounds", "bounds has several outputs: ask for 'bounds.low', 'bounds.high'"),
        ("artifacts", "train", "train is a map of 3: ask for 'train[0]' to 'train[2]'"),
    ],
)
def test_the_error_says_what_there_is_instead(result: RunResult[Any], view: str, name: str, fix: str) -> None:
    with pytest.raises(KeyError) as caught:
        getattr(result, view)[name]
    error = caught.value
    assert isinstance(error, CallNotFound)
    assert error.fix == fix
    assert f" Fix: {fix}" in str(error)
    assert name in str(error)
    assert name not in getattr(result, view)
    assert getattr(result, view).get(name) is None


def test_an_empty_run_says_that_there_is_nothing(home: Any) -> None:
    @pipeline
    async def nothing() -> None:
        return None

    with pytest.raises(KeyError, match="there is no call at all"):
        home.run(nothing).step_results["train"]


def test_the_outputs_of_a_call_have_names_too(result: RunResult[Any]) -> None:
    outputs = result.step_results["bounds"].outputs
    assert dict(outputs) == {"low": 0, "high": 2}
    with pytest.raises(KeyError, match="did you mean 'high'"):
        outputs["hihg"]


def test_asking_whether_there_is_an_output_loads_nothing(
    result: RunResult[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    vault = type(result._archive.vault)
    value = vault.value
    monkeypatch.setattr(vault, "value", lambda self, row: loaded.append(row) or value(self, row))
    assert "train" in result.outputs
    assert "model" not in result.outputs
    assert loaded == []
    assert result.outputs["train"] == [0, 1, 2]
    assert len(loaded) == 3


def test_a_big_result_is_asked_by_name_at_the_price_of_one(home: Any) -> None:
    @pipeline
    async def wide() -> None:
        await train.map(range(2000))

    result = home.run(wide)
    calls = result.step_results
    assert len(calls) == 2000
    assert calls["train[1999]"].status == "succeeded"
    assert list(calls)[:2] == ["train[0]", "train[1]"]
    assert [call.name for call in calls.values()][-1] == "train[1999]"


@step
def leaf(x: int) -> int:
    return x


def test_results_are_in_the_order_of_submission_also_of_maps_that_make_their_calls_later(home: Any) -> None:
    @pipeline
    async def mixed() -> int:
        first = leaf.submit(1)
        many = train.map(range(100))
        last = leaf.submit(2)
        return await first + sum(await many) + await last

    result = home.run(mixed)
    assert list(result.step_results) == ["leaf", *(f"train[{index}]" for index in range(100)), "leaf_2"]
    assert list(result.outputs) == ["leaf", "train", "leaf_2"]
    assert list(result.artifacts)[-1] == "leaf_2"


def test_the_map_of_a_static_pipeline_has_its_place_too(home: Any) -> None:
    @pipeline(static=True)
    def mixed() -> Any:
        many = train.map(range(100))
        return leaf.submit(1), many

    result = home.run(mixed)
    assert next(iter(result.step_results)) == "train[0]"
    assert list(result.step_results)[-1] == "leaf"


def test_outputs_are_shown_with_their_values_and_large_ones_by_type_and_size(home: Any) -> None:
    @step
    def large() -> bytes:
        return b"x" * 100_000

    @step
    def text() -> str:
        return "words " * 100

    @pipeline
    async def p() -> None:
        await leaf(7)
        await train.map(range(5))
        await large()
        await text()

    shown = repr(home.run(p).outputs)
    assert "'leaf': 7," in shown
    assert "'train': [0, 1, 2, ... 5 in all]" in shown
    assert "'large': <" in shown
    assert "100,0" in shown
    assert "xxx" not in shown
    assert len(shown) < 300


def test_the_outputs_of_a_wired_pipeline_are_shown_with_their_values(home: Any) -> None:
    wired = Pipeline("one").add_steps(leaf.with_options(inputs=["x"], outputs=["y"]))
    assert repr(home.run(wired, {"x": 3}).outputs) == "{'y': 3}"


def test_artifacts_of_a_wired_pipeline_have_the_names_of_its_outputs_and_of_its_calls(home: Any) -> None:
    @step(outputs=["rows"])
    def load() -> list[int]:
        return [3, 1, 2]

    @step(inputs=["rows"], outputs=["low", "high"])
    def ends(rows: list[int]) -> tuple[int, int]:
        return min(rows), max(rows)

    result = home.run(Pipeline("wired").add_steps(ends, load))
    assert set(result.artifacts) == set(result.outputs) == {"rows", "low", "high"}
    assert {name: artifact.read() for name, artifact in result.artifacts.items()} == dict(result.outputs)
    for call, output in (("load", "rows"), ("ends.low", "low"), ("ends.high", "high")):
        assert call in result.artifacts
        assert result.artifacts[call].id == result.artifacts[output].id
    with pytest.raises(CallNotFound, match="did you mean 'high'"):
        _ = result.artifacts["hihg"]
