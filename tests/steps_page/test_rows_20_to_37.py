"""The Steps page, promise by promise (rows 20 to 37), as its reader would write the code."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from treadle import (
    CircuitBreaker,
    Pipeline,
    Resources,
    context,
    on_failure,
    parallel_map,
    pipeline,
    retry,
    step,
    unless,
    when,
)  # fmt: skip
from treadle.errors import OptionError

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")


def run_one(one: Any, **inputs: Any) -> Any:
    """A pipeline of this step alone."""
    alone = Pipeline("alone")
    alone.add_step(one)
    return alone.run(inputs=inputs)


def test_row_20_breaker_retry_and_fallback_are_decorators_in_any_order() -> None:
    calls: list[int] = []

    def fallback_data():
        return {"status": "unavailable"}

    def get_data():
        calls.append(1)
        raise ConnectionError("down")

    @step(cache=False)
    @retry(max_attempts=3, backoff=2.0, delay=0.001)
    @on_failure(fallback_data)
    @CircuitBreaker(failure_threshold=5)
    def fetch_data():
        return get_data()

    @CircuitBreaker(failure_threshold=5)
    @on_failure(fallback_data)
    @step(cache=False)
    @retry(max_attempts=3, delay=0.001)
    def fetch_data_too():
        return get_data()

    for fetch in (fetch_data, fetch_data_too):
        calls.clear()
        result = run_one(fetch)
        assert result.success
        assert result.outputs[fetch.name] == {"status": "unavailable"}
        assert result.step_results[fetch.name].fallback
        assert len(calls) == 3  # the breaker guards each attempt, retry goes around it, the fallback comes last
    calls.clear()
    run_one(fetch_data)
    assert len(calls) == 2  # three failures before, two now: the breaker is open


def test_row_21_cpu_and_memory_are_limits_here_and_are_measured() -> None:
    running: list[int] = []
    most: list[int] = []
    lock = threading.Lock()

    @step(resources={"cpu": str(os.cpu_count() or 1), "memory": "16Mi"}, cache=False)
    def train_cpu(x):
        with lock:
            running.append(1)
            most.append(len(running))
        sum(range(10_000))
        with lock:
            running.pop()
        return x

    @pipeline
    async def training() -> list[int]:
        return await train_cpu.map(range(6))

    result = training.run()
    assert result.value == list(range(6))
    assert max(most) == 1  # each takes all processors
    used = result.step_results["train_cpu[0]"].resources_used
    assert used["peak_rss_bytes"] > 1_000_000
    assert used["cpu_seconds"] >= 0
    with pytest.raises(OptionError):
        step(resources={"cpu": "four"})(lambda: None)


def test_row_22_a_gpu_by_name_with_a_count_is_understood() -> None:
    @step(resources={"gpu": "nvidia-tesla-v100", "gpu_count": 2})
    def train_gpu():
        return "trained"

    resources = train_gpu.options.resources
    assert isinstance(resources, Resources)
    assert "nvidia-tesla-v100" in repr(resources)
    assert run_one(train_gpu).outputs["train_gpu"] == "trained"  # clamped to what is here, and an event says so
    with pytest.raises(OptionError):
        step(resources={"gpu": "nvidia-tesla-v100", "gpu_count": -2})(lambda: None)


class Regression:
    """A model with a ``predict``."""

    def __init__(self, weights: Any) -> None:
        self.weights = weights

    def predict(self, X: Any) -> Any:
        return X @ self.weights


@step(outputs=["model"])
def train_model(X, y, learning_rate=0.1, epochs=1):
    weights = np.zeros(X.shape[1])
    for _ in range(epochs):
        weights -= learning_rate * X.T @ (X @ weights - y) / len(y)
    return Regression(weights)


def test_row_23_a_unit_test_of_a_step_needs_no_pipeline() -> None:
    X = np.random.default_rng(0).random((100, 10))
    y = np.random.default_rng(1).random(100)
    model = train_model(X, y, learning_rate=0.01, epochs=10)
    assert model is not None
    assert hasattr(model, "predict")


@step(outputs=["X", "y"])
def load_data():
    rng = np.random.default_rng(0)
    return rng.random((20, 3)), rng.random(20)


def integrated() -> Any:
    ctx = context(learning_rate=0.01)
    whole = Pipeline("test_pipeline", context=ctx)
    whole.add_step(load_data)
    whole.add_step(train_model)
    return whole.run()


def test_row_24_an_integration_test_asks_the_result() -> None:
    result = integrated()
    assert result.success
    assert "model" in result.outputs
    assert result.outputs["model"].predict(np.ones((1, 3))).shape == (1,)


def test_row_25_step_results_tell_durations_and_cache_hits() -> None:
    first, again = integrated(), integrated()
    lines = [
        f"{step_name}: {step_result.duration_seconds:.2f}s, cached={step_result.cached}"
        for step_name, step_result in again.step_results.items()
    ]
    assert [line.split(":")[0] for line in lines] == ["load_data", "train_model"]
    assert all(line.endswith("cached=True") for line in lines)
    assert not any(call.cached for call in first.step_results.values())
    assert first.step_results["train_model"].duration_seconds > 0
    assert again.time_saved_seconds > 0


def test_row_26_missing_inputs_are_found_before_anything_runs() -> None:
    ran: list[int] = []

    @step(outputs=["data"], execution_group="small")
    def load():
        ran.append(1)
        return 1

    @step(inputs=["data", "labels"], execution_group="small")
    def combine(data, labels):
        return data, labels

    missing = Pipeline("missing")
    missing.add_steps(load, combine)
    with pytest.raises(Exception, match="labels") as caught:
        missing.run()
    assert type(caught.value).__name__ == "ValidationError"
    assert ran == []


def test_row_27_outputs_are_stored_as_versioned_artifacts() -> None:
    first = integrated()
    artifact = first.artifacts["train_model"]
    assert (artifact.name, artifact.version) == ("model", 1)
    assert isinstance(artifact.read(), Regression)
    x, y = first.artifacts["load_data.X"], first.artifacts["load_data.y"]
    assert (x.read().shape, y.read().shape) == ((20, 3), (20,))
    assert x.codec != artifact.codec


def test_row_28_lineage_leads_from_the_model_to_the_data() -> None:
    result = integrated()
    inputs = result.step_results["train_model"].inputs
    assert inputs["X"].producer == "load_data.X"
    assert not inputs["X"].inferred
    assert inputs["X"].digest == result.artifacts["load_data.X"].digest
    lineage = result.artifacts["train_model"].lineage()
    assert lineage.producers() == ["train_model", "load_data"]
    assert {name: [one.name for one in sources] for name, sources in lineage.inputs.items() if sources} == {
        "X": ["X"], "y": ["y"],
    }  # fmt: skip
    again = integrated()  # from the cache: the artifacts' producers are the calls of the first run
    assert again.artifacts["train_model"].lineage().runs() == [result.run_id]


def test_row_29_type_hints_and_defaults_are_honoured() -> None:
    @step(inputs=["features"], outputs=["predictions"])
    def predict(features: pd.DataFrame, threshold: float = 0.5) -> pd.Series:
        return features["score"] > threshold

    features = pd.DataFrame({"score": [0.2, 0.7]})
    assert list(run_one(predict, features=features).outputs["predictions"]) == [False, True]
    assert list(run_one(predict, features=features, threshold=0.1).outputs["predictions"]) == [True, True]


@step
@when(lambda x: x > 100)
def expensive_path(data):
    return data * 2


@step
@unless(lambda x: x is None)
def process_if_exists(data):
    return f"processed {data}"


def test_row_30_when_runs_only_if_its_predicate_says_so() -> None:
    assert run_one(expensive_path, data=101).outputs["expensive_path"] == 202
    result = run_one(expensive_path, data=100)
    call = result.step_results["expensive_path"]
    assert (result.success, call.skipped, call.skip_reason, call.success) == (True, True, "condition", True)
    assert "expensive_path" not in result.outputs


def test_row_31_unless_skips_none_and_none_is_an_ordinary_value() -> None:
    assert run_one(process_if_exists, data=0).outputs["process_if_exists"] == "processed 0"
    assert run_one(process_if_exists, data=None).step_results["process_if_exists"].skipped

    @step(outputs=["data"])
    def gives_none():
        return None

    chained = Pipeline("chained")
    chained.add_steps(gives_none, process_if_exists)
    result = chained.run()
    assert result.outputs == {"data": None}
    assert result.step_results["process_if_exists"].skip_reason == "condition"


def test_row_32_a_skip_is_a_skip_for_consumers_too_and_is_never_cached() -> None:
    @step(inputs=["expensive_path"])
    def report(expensive_path):
        return expensive_path

    @step
    def summary(expensive_path=None):
        return "none" if expensive_path is None else "some"

    whole = Pipeline("conditional")
    whole.add_steps(expensive_path, report, summary)
    first = whole.run(inputs={"data": 1})
    assert first.success
    assert first.step_results["report"].skip_reason == "condition"
    assert first.outputs == {"summary": "none"}
    second = whole.run(inputs={"data": 500})
    assert second.outputs == {"expensive_path": 1000, "report": 1000, "summary": "some"}
    assert whole.run(inputs={"data": 1}).step_results["expensive_path"].skipped


def heavy_function(item: int) -> int:
    if item < 0:
        raise ValueError(f"item {item}")
    return item * item


@step
def process_items(items: list):
    return parallel_map(heavy_function, items, num_workers=4)


def test_row_33_parallel_map_keeps_the_order_and_raises_the_first_error() -> None:
    together = threading.Barrier(4, timeout=20)

    def meets(item: int) -> int:
        together.wait()
        return item

    assert run_one(process_items, items=[3, 1, 2, 0]).outputs["process_items"] == [9, 1, 4, 0]
    assert parallel_map(meets, [0, 1, 2, 3], num_workers=4) == [0, 1, 2, 3]  # four at once, or the barrier breaks
    failed = run_one(process_items, items=[1, -2, 3])
    assert isinstance(failed.error, ValueError)
    assert "item -2" in str(failed.error)


def create_training_step(model_type: str):
    @step(outputs=[f"{model_type}_model"])
    def train():
        return f"a trained {model_type}"

    return train


def test_row_34_a_factory_makes_as_many_steps_as_it_likes() -> None:
    whole = Pipeline("training")
    for model_type in ["xgboost", "random_forest", "neural_net"]:
        step_func = create_training_step(model_type)
        whole.add_step(step_func)
    assert whole.run().outputs == {
        "xgboost_model": "a trained xgboost", "random_forest_model": "a trained random_forest",
        "neural_net_model": "a trained neural_net",
    }  # fmt: skip
    again = whole.run()
    assert list(again.step_results) == ["train", "train_2", "train_3"]
    assert all(call.cached for call in again.step_results.values())


def test_row_35_steps_of_one_execution_group_share_one_worker() -> None:
    threads: list[int] = []

    @step(outputs=["a"], execution_group="small", cache=False)
    def first():
        threads.append(threading.get_ident())
        return 1

    @step(inputs=["a"], outputs=["b"], execution_group="small", cache=False)
    def second(a):
        threads.append(threading.get_ident())
        return a + 1

    @step(inputs=["b"], outputs=["c"], execution_group="small", cache=False)
    def third(b):
        threads.append(threading.get_ident())
        return b + 1

    grouped = Pipeline("grouped")
    grouped.add_steps(first, second, third)
    result = grouped.run()
    assert result.outputs == {"a": 1, "b": 2, "c": 3}
    assert len(set(threads)) == 1
    assert [call.status for call in result.step_results.values()] == ["succeeded"] * 3


def test_row_36_debug_runs_in_this_thread_with_the_own_error() -> None:
    seen: list[tuple[int, int]] = []

    @step(retry=3, timeout=1)
    def breaks(x):
        seen.append((x, threading.get_ident()))
        raise ValueError("look here")

    whole = Pipeline("debugged")
    whole.add_step(breaks)
    with pytest.raises(ValueError, match="look here"):
        whole.run(inputs={"x": 1}, debug=True)
    assert seen == [(1, threading.get_ident())]
