"""The Steps page, promise by promise (rows 1 to 19), as its reader would write the code."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from treadle import Dataset, Engine, Metrics, Model, Pipeline, Retry, context, step
from treadle.errors import OptionError, StepTimeout, ValidationError

pd = pytest.importorskip("pandas")


@step(outputs=["processed"])
def clean_data(raw_data):
    return raw_data.dropna().reset_index(drop=True)


def test_row_01_a_step_is_called_like_its_function() -> None:
    result = clean_data(pd.DataFrame({"a": [1, None, 3]}))
    assert result["a"].isnull().sum() == 0
    assert len(result) == 2


def test_row_02_the_decorator_has_both_forms() -> None:
    @step
    def bare(x):
        return x + 1

    @step(outputs=["y"])
    def configured(x):
        return x + 2

    assert (bare(1), configured(1)) == (2, 3)
    assert (bare.name, configured.name) == ("bare", "configured")


def test_row_03_a_declared_input_comes_from_run() -> None:
    @step(inputs=["raw_data"], outputs=["clean_data"])
    def clean(raw_data):
        return [x for x in raw_data if x]

    pipeline = Pipeline("cleaning")
    pipeline.add_step(clean)
    given = {"raw_data": [1, 0, 2]}
    assert pipeline.run(inputs=given).outputs == {"clean_data": [1, 2]}
    assert given == {"raw_data": [1, 0, 2]}  # the caller's dict is its own


def test_row_04_an_undeclared_parameter_comes_from_run() -> None:
    @step(outputs=["result"])
    def my_step(input_data):
        return input_data * 2

    pipeline = Pipeline("anatomy")
    pipeline.add_step(my_step)
    assert pipeline.run(inputs={"input_data": 21}).outputs["result"] == 42


def test_row_05_all_options_together() -> None:
    @step(
        inputs=["raw_dataset"], outputs=["trained_model"], cache="input_hash", retry=3, timeout=3600,
        resources={"gpu": 1, "memory": "16Gi"},
    )  # fmt: skip
    def train_model(raw_dataset, learning_rate: float):
        """Train a machine learning model."""
        return {"weights": sum(raw_dataset) * learning_rate}

    pipeline = Pipeline("training", context=context(learning_rate=0.5))
    pipeline.add_step(train_model)
    result = pipeline.run(inputs={"raw_dataset": [1, 2, 3]})
    result.raise_for_failure()
    assert result.outputs["trained_model"] == {"weights": 3.0}
    assert pipeline.run(inputs={"raw_dataset": [1, 2, 3]}).step_results["train_model"].cached


@step(outputs=["data"])
def load():
    return [1, 2, 3, 4, 5]


@step(inputs=["data"], outputs=["processed"])
def process(data):
    return [x * 2 for x in data]


def test_row_06_the_order_is_found_from_the_names() -> None:
    for steps in ((load, process), (process, load)):
        pipeline = Pipeline("etl")
        pipeline.add_steps(*steps)
        assert pipeline.compile().order.index("load") < pipeline.compile().order.index("process")
        assert pipeline.run().outputs == {"data": [1, 2, 3, 4, 5], "processed": [2, 4, 6, 8, 10]}


@step(outputs=["train_data", "test_data"])
def split_data(data, split_ratio=0.8):
    split_point = int(len(data) * split_ratio)
    return data[:split_point], data[split_point:]


def test_row_07_a_tuple_becomes_two_outputs() -> None:
    pipeline = Pipeline("splitting")
    pipeline.add_steps(load, split_data)
    result = pipeline.run()
    assert result.outputs == {"data": [1, 2, 3, 4, 5], "train_data": [1, 2, 3, 4], "test_data": [5]}


def test_row_07_a_list_and_a_dict_are_split_too() -> None:
    @step(outputs=["low", "high"])
    def as_list(data):
        return [min(data), max(data)]

    @step(outputs=["first", "last"])
    def as_dict(data):
        return {"last": data[-1], "first": data[0]}

    pipeline = Pipeline("splitting")
    pipeline.add_steps(load, as_list, as_dict)
    outputs = pipeline.run().outputs
    assert (outputs["low"], outputs["high"], outputs["first"], outputs["last"]) == (1, 5, 1, 5)


def test_row_08_a_wrong_number_of_outputs_is_an_error() -> None:
    @step(outputs=["train_data", "test_data"])
    def split(data):
        return data[:1], data[1:2], data[2:]

    @step(inputs=["train_data"])
    def train(train_data):
        return train_data

    pipeline = Pipeline("splitting")
    pipeline.add_steps(load, split, train)
    result = pipeline.run()
    assert not result.success
    assert isinstance(result.error, OptionError)
    assert "declares 2 outputs (train_data, test_data)" in str(result.error)
    assert result.step_results["train"].skipped


def test_row_09_a_step_takes_several_inputs() -> None:
    @step(outputs=["data"])
    def load_data():
        return [1, 2, 3]

    @step(outputs=["labels"])
    def load_labels():
        return ["a", "b", "c"]

    @step(inputs=["data", "labels"], outputs=["dataset"])
    def combine(data, labels):
        return list(zip(data, labels, strict=True))

    pipeline = Pipeline("combining")
    pipeline.add_steps(combine, load_labels, load_data)
    assert pipeline.run().outputs["dataset"] == [(1, "a"), (2, "b"), (3, "c")]


def test_row_10_parameters_come_from_the_context_in_any_add_order() -> None:
    @step(outputs=["model"])
    def train(data, learning_rate: float, epochs: int):
        return (sum(data), learning_rate, epochs)

    ctx = context(learning_rate=0.001, epochs=100, batch_size=32)
    for steps in ((load, train), (train, load)):
        pipeline = Pipeline("training", context=ctx)
        pipeline.add_steps(*steps)
        assert pipeline.run().outputs["model"] == (15, 0.001, 100)


def test_row_11_a_dataset_is_stored_with_what_is_known_of_it() -> None:
    @step
    def load_data() -> Dataset:
        df = pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]})
        return Dataset(df, name="raw_data")

    pipeline = Pipeline("loading")
    pipeline.add_step(load_data)
    result = pipeline.run()
    dataset = result.outputs["load_data"]
    assert isinstance(dataset, Dataset)
    assert dataset.name == "raw_data"
    assert list(dataset.value.columns) == ["a", "b"]
    metadata = result.artifacts["load_data"].metadata
    assert "raw_data" in str(metadata)
    assert "columns" in str(metadata)


def test_row_12_a_model_takes_the_object_first_and_its_name_by_keyword() -> None:
    @step
    def train_model(data: pd.DataFrame) -> Model:
        trained_obj = {"weights": [1.0, 2.0]}
        return Model(trained_obj, name="my_classifier", accuracy=0.9)

    pipeline = Pipeline("training")
    pipeline.add_step(train_model)
    result = pipeline.run(inputs={"data": pd.DataFrame({"a": [1]})})
    model = result.outputs["train_model"]
    assert (model.value, model.name) == ({"weights": [1.0, 2.0]}, "my_classifier")
    assert model.metadata["accuracy"] == 0.9


def test_row_13_what_is_exported_is_what_is_routed(tmp_path: Path, home: Path) -> None:
    @step
    def train() -> Model:
        return Model({"weights": [1.0]}, name="clf")

    @step
    def score(train: Model) -> Metrics:
        return Metrics(acc=0.9)

    registry = tmp_path / "registry"
    pipeline = Pipeline("training")
    pipeline.add_steps(train, score)

    async def main() -> Any:
        async with Engine(home, routes={Model: str(registry)}) as engine:
            result = await engine.run(pipeline)
            return result.outputs, (await engine.artifact("clf")).read()

    outputs, stored = asyncio.run(main())
    assert [path.is_file() for path in registry.rglob("*") if "clf" in str(path)].count(True) >= 1
    assert stored.value == {"weights": [1.0]}
    assert outputs["score"]["acc"] == 0.9


def test_row_13_without_a_route_a_local_default_works() -> None:
    @step
    def train() -> Model:
        return Model([1.0], name="clf")

    pipeline = Pipeline("training")
    pipeline.add_step(train)
    assert pipeline.run().artifacts["train"].read().value == [1.0]


def test_row_14_downstream_types_are_checked_before_anything_runs(home: Path) -> None:
    ran = []

    @step
    def numbers() -> Dataset:
        ran.append(1)
        return Dataset([1], name="numbers")

    @step(inputs=["numbers"])
    def predict(numbers: Model) -> float:
        return 1.0

    pipeline = Pipeline("predicting")
    pipeline.add_steps(numbers, predict)
    with pytest.raises(ValidationError, match="Dataset"):
        pipeline.run()
    assert ran == []


def test_row_14_real_values_are_checked_at_run_time() -> None:
    @step
    def anything():
        return Dataset([1], name="numbers")

    @step(inputs=["anything"])
    def predict(anything: Model) -> float:
        return 1.0

    pipeline = Pipeline("predicting")
    pipeline.add_steps(anything, predict)
    result = pipeline.run()
    assert not result.success
    assert "Model" in str(result.error)


RATE = 2


def test_row_15_by_default_a_step_runs_again_when_its_code_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    @step(cache="code_hash")
    def expensive_computation(data):
        return data * RATE

    pipeline = Pipeline("computing")
    pipeline.add_step(expensive_computation)

    def run(data: int) -> tuple[int, bool]:
        result = pipeline.run(inputs={"data": data})
        return result.outputs["expensive_computation"], result.step_results["expensive_computation"].cached

    assert run(1) == (2, False)
    assert run(1) == (2, True)
    assert run(10) == (20, False)
    monkeypatch.setitem(globals(), "RATE", 3)
    assert run(1) == (3, False)


def test_row_16_input_hash_runs_again_when_an_input_changes() -> None:
    @step(cache="input_hash")
    def preprocess(data, config):
        return [x * config["scale"] for x in data]

    pipeline = Pipeline("preprocessing")
    pipeline.add_step(preprocess)

    def run(data: list[int], scale: int) -> tuple[list[int], bool]:
        result = pipeline.run(inputs={"data": data, "config": {"scale": scale}})
        return result.outputs["preprocess"], result.step_results["preprocess"].cached

    assert run([1], 2) == ([2], False)
    assert run([1], 2) == ([2], True)
    assert run([1], 3) == ([3], False)
    assert run([2], 2) == ([4], False)


def test_row_17_without_cache_a_step_always_runs() -> None:
    calls = []

    @step(cache=False)
    def fetch_latest_data():
        calls.append(1)
        return len(calls)

    pipeline = Pipeline("fetching")
    pipeline.add_step(fetch_latest_data)
    assert [pipeline.run().outputs["fetch_latest_data"] for _ in range(3)] == [1, 2, 3]


def test_row_18_retry_gives_up_to_three_more_attempts() -> None:
    calls = []

    @step(retry=3, cache=False)
    def fetch_external_data():
        calls.append(time.monotonic())
        if len(calls) < 4:
            raise ConnectionError("not yet")
        return {"ok": True}

    pipeline = Pipeline("fetching")
    pipeline.add_step(fetch_external_data)
    result = pipeline.run()
    assert result.outputs["fetch_external_data"] == {"ok": True}
    assert result.step_results["fetch_external_data"].attempts == len(calls) == 4


def test_row_18_the_waits_can_be_configured_and_the_last_error_is_the_result_s() -> None:
    @step(retry=Retry(max_attempts=2, delay=0.001), cache=False)
    def fetch_external_data():
        raise ConnectionError("down")

    pipeline = Pipeline("fetching")
    pipeline.add_step(fetch_external_data)
    result = pipeline.run()
    assert isinstance(result.error, ConnectionError)
    assert result.step_results["fetch_external_data"].attempts == 2


def test_row_19_a_step_past_its_timeout_fails() -> None:
    release = threading.Event()

    @step(timeout=0.05, cache=False)
    def long_running_task():
        release.wait(20)

    pipeline = Pipeline("waiting")
    pipeline.add_step(long_running_task)
    begun = time.monotonic()
    result = pipeline.run()
    took = time.monotonic() - begun
    release.set()
    assert not result.success
    assert isinstance(result.error, StepTimeout)
    assert isinstance(result.error, TimeoutError)
    assert took < 10
