"""``Model``, ``Dataset`` and ``Metrics``: what they are, and that they come back from the store as they were."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from treadle import Dataset, EncodeError, Engine, Metrics, Model, pipeline, step
from treadle.errors import OptionError
from treadle.storage import codecs


class Classifier(Model[Any]):
    """A user's own kind of model, with a state of its own."""

    threshold = 0.5


CALLS: list[str] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    CALLS.clear()


def fitted() -> LogisticRegression:
    return LogisticRegression().fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1])


# -- the values themselves ------------------------------------------------------------------


def test_the_object_comes_first_and_facts_are_keywords() -> None:
    model = Model([1], name="m", accuracy=0.9, value=3)
    assert (model.value, model.name, model.metadata) == ([1], "m", {"accuracy": 0.9, "value": 3})
    assert Dataset([1]).name is None
    assert repr(model) == "Model([1], name='m', accuracy=0.9, value=3)"


def test_metrics_are_a_mapping() -> None:
    metrics = Metrics(acc=0.9, loss=0.1)
    assert isinstance(metrics, Mapping)
    assert dict(metrics) == {"acc": 0.9, "loss": 0.1}
    assert metrics == {"acc": 0.9, "loss": 0.1}
    assert Metrics({"f1 macro": 1.0}, acc=2)["f1 macro"] == 1.0
    assert repr(metrics) == "Metrics(acc=0.9, loss=0.1)"


@pytest.mark.parametrize("name", ["", 3, b"m", "a\0b", "\ud800"])
def test_a_name_is_a_text(name: Any) -> None:
    with pytest.raises(OptionError, match="object comes first"):
        Model([1], name=name)


def test_wrappers_are_equal_if_all_of_them_is() -> None:
    frame = pd.DataFrame({"a": [1, 2]})
    assert Dataset(frame, name="d") == Dataset(frame.copy(), name="d")
    assert Dataset(frame, name="d") != Dataset(frame, name="e")
    assert Dataset(np.arange(3)) == Dataset(np.arange(3))
    assert Dataset(np.arange(3)) != Dataset(np.arange(4) * 2)
    assert Model(1) != Dataset(1)
    assert Model(1, a=1) != Model(1, a=2)


# -- fidelity -------------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "plain": lambda: {"w": (1, 2.0), "tags": {"a"}},
    "numpy": lambda: np.arange(12, dtype="f4").reshape(3, 4),
    "large numpy": lambda: np.arange(40_000, dtype="f8"),
    "pandas": lambda: pd.DataFrame({"a": [1, 2], "b": ["x", None]}, index=pd.Index([5, 6], name="i")),
    "polars": lambda: pl.DataFrame({"a": [1, None], "b": ["x", "y"]}),
    "arrow": lambda: pa.table({"a": [1, 2], "b": [["x"], []]}),
    "sklearn": fitted,
}


def content(value: Any) -> Any:
    """What can be compared with ``==``."""
    if isinstance(value, LogisticRegression):
        return [value.coef_.tolist(), value.intercept_.tolist(), value.get_params()]
    if isinstance(value, pd.DataFrame):
        return [value.to_dict(), list(value.dtypes), list(value.index), value.index.name]
    if isinstance(value, pl.DataFrame):
        return [value.to_dict(as_series=False), value.schema]
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("kind", [Model, Dataset, Classifier])
@pytest.mark.parametrize("which", VALUES)
def test_what_is_stored_comes_back_with_its_type_name_and_facts(kind: Any, which: str) -> None:
    wrapper = kind(VALUES[which](), name="n", shape=(1, 2), score=np.float32(0.5))
    encoded = codecs.encode(wrapper)
    back = codecs.decode(encoded.codec, encoded.data)
    assert type(back) is kind
    assert type(back.value) is type(wrapper.value)
    assert content(back.value) == content(wrapper.value)
    assert (back.name, back.metadata) == (wrapper.name, wrapper.metadata)
    assert type(back.metadata["shape"]) is tuple
    assert type(back.metadata["score"]) is np.float32


@pytest.mark.parametrize("which", VALUES)
def test_equal_content_has_an_equal_digest_and_other_content_another_one(which: str) -> None:
    make = VALUES[which]
    one = codecs.digest(Model(make(), name="n", a=1))
    assert one == codecs.encode(Model(make(), name="n", a=1)).digest
    back = codecs.encode(Model(make(), name="n", a=1))
    assert codecs.digest(codecs.decode(back.codec, back.data)) == one
    others = [Model(make(), name="m", a=1), Model(make(), name="n", a=2), Dataset(make(), name="n", a=1), make()]
    assert one not in [codecs.digest(other) for other in others]


def test_a_subclass_may_carry_more() -> None:
    model = Classifier([1], name="c")
    model.threshold = 0.7
    encoded = codecs.encode(model)
    back = codecs.decode(encoded.codec, encoded.data)
    assert back.threshold == 0.7
    assert back == model


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=8,
)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


@settings(max_examples=50)
@given(PLAIN, st.none() | NAMES, st.dictionaries(st.from_regex(r"[a-z]{3,8}\Z"), PLAIN, max_size=3))
def test_any_plain_content_survives(value: Any, name: str | None, facts: dict[str, Any]) -> None:
    facts.pop("name", None)
    for wrapper in (Model(value, name=name, **facts), Dataset(value, name=name, **facts), Metrics(facts)):
        encoded = codecs.encode([wrapper, {"inside": wrapper}])
        back = codecs.decode(encoded.codec, encoded.data)
        assert repr(back[0].__dict__) == repr(wrapper.__dict__)
        assert type(back[1]["inside"]) is type(wrapper)
        assert codecs.digest(back) == encoded.digest


def test_what_cannot_be_stored_is_named_by_its_place() -> None:
    with pytest.raises(EncodeError, match=r"value\.value"):
        codecs.encode(Model({"f": (x for x in ())}))


# -- in pipelines ---------------------------------------------------------------------------


@step
def load() -> Dataset[pd.DataFrame]:
    CALLS.append("load")
    return Dataset(pd.DataFrame({"x": [0.0, 1.0, 2.0, 3.0], "y": [0, 0, 1, 1]}), name="raw", source="memory")


@step
def train(data: Dataset[pd.DataFrame], c: float = 1.0) -> Model[LogisticRegression]:
    CALLS.append("train")
    model = LogisticRegression(C=c).fit(data.value[["x"]].to_numpy(), data.value["y"])
    return Model(model, name="demo", c=c)


@step
def score(model: Model[LogisticRegression], data: Dataset[pd.DataFrame]) -> Metrics:
    CALLS.append("score")
    return Metrics(acc=model.value.score(data.value[["x"]].to_numpy(), data.value["y"]))


@pipeline
async def by_futures() -> Metrics:
    data = load.submit()
    return await score(train.submit(data), data)


@pipeline
async def by_values() -> Metrics:
    data = await load()
    return await score(await train(data), data)


@pytest.mark.asyncio
async def test_results_and_consumers_get_the_wrapper(home: str) -> None:
    async with Engine(home) as engine:
        result = await engine.run(by_futures)
        assert result.value == Metrics(acc=1.0)
        assert type(result.value) is Metrics
        model = result.outputs["train"]
        assert (type(model), model.name, model.metadata) == (Model, "demo", {"c": 1.0})
        assert model.value.predict([[3.0]]) == [1]


@pytest.mark.asyncio
async def test_a_value_has_the_key_of_its_future_and_a_hit_is_equal_to_a_miss(home: str) -> None:
    async with Engine(home) as engine:
        first = await engine.run(by_futures)
        CALLS.clear()
        second = await engine.run(by_values)
        assert CALLS == []
        assert second.value == first.value
        assert type(second.outputs["load"].value) is pd.DataFrame


@pytest.mark.asyncio
async def test_facts_are_metadata_of_the_artifact(home: str) -> None:
    async with Engine(home) as engine:
        result = await engine.run(by_futures)
        data = result.artifacts["load"].metadata
        assert data["rows"] == 4
        assert data["columns"] == ["x", "y"]
        assert data["dtypes"] == {"x": "float64", "y": "int64"}
        assert (data["name"], data["source"], data["class"]) == ("raw", "memory", "pandas.DataFrame")
        model = result.artifacts["train"].metadata
        assert model["class"].endswith("LogisticRegression")
        assert model["params"]["C"] == 1.0
        assert model["c"] == 1.0
        assert result.artifacts["score"].metadata["acc"] == 1.0
        assert result.artifacts["train"].type == "treadle.kinds.Model"


@step
def arrays() -> Any:
    return np.zeros((3, 4))


@step
def rows() -> Any:
    return [1, 2, 3]


@step
def number() -> Any:
    return 3


@pipeline
async def plain_ones() -> None:
    await asyncio.gather(arrays(), rows(), number())


@pytest.mark.asyncio
async def test_plain_outputs_have_facts_too(home: str) -> None:
    async with Engine(home) as engine:
        found = (await engine.run(plain_ones)).artifacts
        assert found["arrays"].metadata == {
            "class": "numpy.ndarray", "shape": [3, 4], "dtype": "float64", "size_bytes": 96,
        }  # fmt: skip
        assert found["rows"].metadata == {"class": "list", "length": 3}
        assert found["number"].metadata == {}


@pytest.mark.asyncio
async def test_an_artifact_is_found_by_the_name_of_its_step_and_of_its_model(home: str) -> None:
    async with Engine(home) as engine:
        await engine.run(by_futures)
        by_output, by_name = await engine.artifact("train"), await engine.artifact("demo")
        assert by_output.id == by_name.id
        assert by_name.name == "train"
        assert (await by_name.load()).name == "demo"
        assert (await engine.artifact("demo", version=by_name.version)).id == by_name.id
        assert (await engine.artifact("raw")).name == "load"
    async with Engine(home) as engine:  # also from what is on the disk
        assert (await engine.artifact("demo")).id == by_name.id


@step
def one(x: int) -> Model[int]:
    return Model(x, name="shared")


@step
def other(x: int) -> Model[int]:
    return Model(x, name="shared")


@pipeline
async def both(x: int) -> None:
    await one(x)
    await other(x)
    await one(x + 1)


@pytest.mark.asyncio
async def test_two_steps_with_models_of_one_name_share_its_versions(home: str) -> None:
    async with Engine(home) as engine:
        await engine.run(both, 1)
        assert [(await (await engine.artifact("shared", v)).load()).value for v in (1, 2, 3)] == [1, 1, 2]
        assert (await engine.artifact("shared")).version == 3
        assert (await engine.artifact("other")).version == 2
    async with Engine(home) as engine:
        await engine.run(both, 10)
        assert (await engine.artifact("shared")).version == 6


@pytest.mark.asyncio
async def test_a_pruned_model_is_no_longer_found_by_its_name(home: str) -> None:
    from treadle.errors import ArtifactNotFound

    async with Engine(home) as engine:
        await engine.run(both, 1)
        await engine.prune(keep_last=0)
        with pytest.raises(ArtifactNotFound):
            await engine.artifact("shared")
        await engine.run(both, 1)
        assert (await engine.artifact("shared", 4)).name == "one"


@step
def big() -> Dataset[Any]:
    return Dataset(np.zeros(100_000), name="big")


@step
def writes(data: Dataset[Any]) -> bool:
    return bool(data.value.flags.writeable)


@pipeline
async def shares() -> bool:
    return await writes(big.submit())


@pytest.mark.asyncio
async def test_a_large_array_in_a_dataset_is_shared_read_only(home: str) -> None:
    async with Engine(home):
        assert await shares() is False
