"""``Engine(routes=...)``: places for the bytes of a type, objects that take its outputs, and what can go wrong."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from treadle import Artifact, Dataset, Engine, Metrics, Model, current, pipeline, step
from treadle.contracts import Route
from treadle.errors import (
    ArtifactDamaged,
    ArtifactNotFound,
    ArtifactStoreError,
    OptionError,
    RouteNotFound,
)
from treadle.storage.places import location_of, quoted
from treadle.storage.routed import open_place


class Calls:
    """No plain data, so that what was called is no part of any cache key."""

    def __init__(self) -> None:
        self.seen: list[Any] = []


CALLS = Calls()


@pytest.fixture(autouse=True)
def fresh() -> None:
    CALLS.seen.clear()


class Forest(Model[Any]):
    """A user's own kind of model."""


@step
def train(c: float) -> Model[LogisticRegression]:
    CALLS.seen.append(c)
    return Model(LogisticRegression(C=c).fit([[0.0], [1.0]], [0, 1]), name="demo", c=(c, "tuple"))


@step
def load() -> Dataset[pd.DataFrame]:
    return Dataset(pd.DataFrame({"a": range(10)}))


@step
def measure(model: Model[LogisticRegression], data: Dataset[pd.DataFrame]) -> Metrics:
    return Metrics(c=model.value.C, rows=len(data.value))


@pipeline
async def work(c: float) -> Metrics:
    return await measure(train.submit(c), load.submit())


@step
def named(name: str | None, x: Any) -> Any:
    return Model(x, name=name)


@pipeline
async def one_named(name: str | None, x: Any) -> Any:
    return await named(name, x)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# -- places ---------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_url_is_the_place_of_the_bytes_by_name_and_version(home: str, tmp_path: Path) -> None:
    models, data = tmp_path / "models", tmp_path / "data"
    async with Engine(home, routes={Model: models.as_uri(), Dataset: str(data)}) as engine:
        result = await engine.run(work, 0.5)
        assert result.value == Metrics(c=0.5, rows=10)
        await engine.run(work, 2.0)
    assert files(models) == ["demo/1.pkl", "demo/2.pkl"]
    assert files(data) == ["load/1.parquet"]
    assert pickle.loads((models / "demo/2.pkl").read_bytes()).C == 2.0  # what other programs read
    assert list(pd.read_parquet(data / "load/1.parquet")["a"]) == list(range(10))


@pytest.mark.asyncio
async def test_a_routed_output_comes_back_whole(home: str, tmp_path: Path) -> None:
    async with Engine(home, routes={Model: tmp_path / "models"}) as engine:
        first = await engine.run(work, 0.5)
        again = await engine.run(work, 0.5)
        assert CALLS.seen == [0.5]
        assert again.step_results["train"].cached
        for model in (first.outputs["train"], again.outputs["train"], await (await engine.artifact("demo")).load()):
            assert type(model) is Model
            assert (model.name, model.metadata, model.value.C) == ("demo", {"c": (0.5, "tuple")}, 0.5)
        artifact = await engine.artifact("demo")
        assert artifact.type == "treadle.kinds.Model"
        assert (artifact.name, artifact.version) == ("train", 1)
        assert artifact.metadata["class"].endswith("LogisticRegression")
        assert "" not in artifact.metadata


@step
def grow(model: Model[list[int]]) -> list[int]:
    model.value.append(len(model.value))
    return model.value


@pipeline
async def both_grow() -> list[list[int]]:
    model = named.submit("list", [0])
    return [await grow(model), await grow.with_options(cache=False)(model), (await model).value]


@pytest.mark.asyncio
async def test_each_consumer_of_a_small_routed_value_has_a_copy(home: str, tmp_path: Path) -> None:
    async with Engine(home, routes={Model: tmp_path / "models"}):
        assert await both_grow() == [[0, 1], [0, 1], [0]]


@pytest.mark.asyncio
async def test_a_routed_value_has_the_digest_of_an_unrouted_one(home: str, tmp_path: Path) -> None:
    async with Engine(home, routes={Model: tmp_path / "models"}) as engine:
        routed = (await engine.run(work, 0.5)).artifacts["train"].digest
    async with Engine(tmp_path / "other") as engine:
        assert (await engine.run(work, 0.5)).artifacts["train"].digest == routed


@pytest.mark.asyncio
async def test_without_a_route_the_normal_store_takes_it(home: str) -> None:
    async with Engine(home) as engine:
        assert (await engine.run(work, 0.5)).value == Metrics(c=0.5, rows=10)
        assert (await (await engine.artifact("demo")).load()).value.C == 0.5


@pytest.mark.asyncio
async def test_subclasses_go_the_way_of_their_class_unless_they_have_their_own(home: str, tmp_path: Path) -> None:
    @step
    def forest() -> Any:
        return Forest([1], name="f")

    @pipeline
    async def run() -> Any:
        return await forest()

    async with Engine(home, routes={Model: tmp_path / "models"}) as engine:
        assert type((await engine.run(run)).value) is Forest
        back = await (await engine.artifact("f")).load()
        assert (type(back), back.value) == (Forest, [1])
    async with Engine(tmp_path / "two", routes={Model: tmp_path / "models", Forest: tmp_path / "forests"}) as engine:
        await engine.run(run)
    assert files(tmp_path / "models") == ["f/1.msgpack"]
    assert files(tmp_path / "forests") == ["f/1.msgpack"]


@pytest.mark.asyncio
async def test_any_class_can_have_a_route(home: str, tmp_path: Path) -> None:
    @step(outputs=["frame", "array", "facts"])
    def several() -> Any:
        return pd.DataFrame({"a": [1]}), np.arange(3), Metrics(n=1)

    @pipeline
    async def run() -> Any:
        return await several()

    routes = {pd.DataFrame: tmp_path / "p", np.ndarray: tmp_path / "p", Metrics: tmp_path / "p"}
    async with Engine(home, routes=routes) as engine:
        result = await engine.run(run)
        frame = await result.artifacts["several.frame"].load()
        assert type(frame) is pd.DataFrame
        assert (await (await engine.artifact("facts")).load()) == Metrics(n=1)
    assert np.load(tmp_path / "p" / "array" / "1.npy").tolist() == [0, 1, 2]
    assert files(tmp_path / "p") == ["array/1.npy", "facts/1.msgpack", "frame/1.parquet"]


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["../../escaped", "/etc/x", "a/b", ".hidden", "..", "a\\b", "ä€", "x" * 500, "~"])
async def test_a_name_never_leaves_the_place(home: str, tmp_path: Path, name: str) -> None:
    place = tmp_path / "deep" / "models"
    async with Engine(home, routes={Model: place}) as engine:
        await engine.run(one_named, name, 1)
        assert (await (await engine.artifact(name)).load()).name == name
    (found,) = files(tmp_path / "deep")
    assert found.startswith("models/")
    assert found.count("/") == 2
    assert not (tmp_path / "escaped").exists()


def test_different_names_have_different_places_and_usual_ones_are_as_they_are() -> None:
    assert quoted("fraud_model-2.1") == "fraud_model-2.1"
    names = ["a/b", "a~2fb", "a_b", "..", ".", "~2e", "", "~", "~~", "x" * 200, "x" * 201, "\ud800", "a b", "A/B"]
    assert len({quoted(name) for name in names}) == len(names)
    assert location_of("m", 3, "parquet+pandas") == "m/3.parquet"


@pytest.mark.asyncio
async def test_what_lies_there_already_is_never_overwritten(home: str, tmp_path: Path) -> None:
    models = tmp_path / "models"
    for number in (1, 2):  # two homes, one place
        async with Engine(tmp_path / f"home{number}", routes={Model: models}) as engine:
            await engine.run(work, float(number))
            newest = await (await engine.artifact("demo")).load()
            assert float(number) == newest.value.C
            assert (await engine.artifact("demo")).version == number
    assert files(models) == ["demo/1.pkl", "demo/2.pkl"]
    (models / "demo/41.onnx").write_text("somebody's own")
    async with Engine(tmp_path / "home1", routes={Model: models}) as engine:
        await engine.run(work, 3.0)
        assert (await engine.artifact("demo")).version in (3, 42)
    assert (models / "demo/41.onnx").read_text() == "somebody's own"


@pytest.mark.asyncio
async def test_versions_of_equal_calls_are_their_own(home: str, tmp_path: Path) -> None:
    @pipeline
    async def many() -> None:
        await named.map([None] * 20, range(20))

    async with Engine(home, routes={Model: tmp_path / "models"}) as engine:
        result = await engine.run(many)
        assert result.success
        numbers = sorted(artifact.version for artifact in result.artifacts.values())
        assert numbers == list(range(1, 21))
        for call, artifact in result.artifacts.items():
            assert named_in(call) == (await artifact.load()).value
    assert len(files(tmp_path / "models")) == 20


def named_in(call: str) -> int:
    return int(call.partition("[")[2][:-1])


@pytest.mark.asyncio
async def test_an_object_store_is_a_place_too(home: str) -> None:
    memory = fsspec.filesystem("memory")
    try:
        async with Engine(home, routes={Model: "memory://routed/models"}) as engine:
            await engine.run(work, 0.5)
            assert memory.exists("/routed/models/demo/1.pkl")
            assert (await (await engine.artifact("demo")).load()).value.C == 0.5
        async with Engine(home, routes={Model: "memory://routed/models"}) as engine:
            assert (await engine.run(work, 0.5)).step_results["train"].cached
            await engine.prune(keep_last=0)
            assert not memory.exists("/routed/models/demo/1.pkl")
    finally:
        memory.rm("/routed", recursive=True) if memory.exists("/routed") else None


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_places_keep_their_contract(tmp_path: Path, kind: str) -> None:
    from blake3 import blake3

    url = str(tmp_path / "p") if kind == "local" else f"memory://{tmp_path.name}/p"
    place = open_place(url)
    data = b"weights"
    check = blake3(data).digest()
    assert place.highest("m") == 0
    assert place.put("m/1.bin", data)
    assert not place.put("m/1.bin", b"others")
    assert place.get("m/1.bin", 7, check) == data
    assert place.exists("m/1.bin", 7)
    assert not place.exists("m/1.bin", 8)
    assert not place.exists("m/2.bin", 7)
    assert place.put("m/10", data)
    assert place.highest("m") == 10
    for location, size in (("m/2.bin", 7), ("m/1.bin", 6)):
        with pytest.raises(ArtifactDamaged):
            place.get(location, size, check)
    with pytest.raises(ArtifactDamaged):
        place.get("m/1.bin", 7, bytes(32))
    for location in ("../m/1.bin", "m/../../x", "/etc/passwd", "m/x", "m/1/2", "", "m/0", ".m/1"):
        with pytest.raises(ArtifactDamaged):
            place.get(location, 7, check)
    assert place.delete("m/1.bin")
    assert not place.delete("m/1.bin")
    assert place.put("m/1.bin", data)


# -- what can go wrong ----------------------------------------------------------------------


@pytest.mark.asyncio
async def test_damage_is_found_and_the_producer_performed_again(home: str, tmp_path: Path) -> None:
    models = tmp_path / "models"
    async with Engine(home, routes={Model: models}) as engine:
        await engine.run(work, 0.5)
        (models / "demo/1.pkl").write_bytes(b"changed")
        with pytest.raises(ArtifactDamaged):
            await (await engine.artifact("demo")).load()
        result = await engine.run(work, 0.5)
        assert result.value == Metrics(c=0.5, rows=10)
        assert CALLS.seen == [0.5, 0.5]
    assert files(models) == ["demo/1.pkl", "demo/2.pkl"]


@pytest.mark.asyncio
async def test_an_engine_without_the_route_says_so_and_performs_again(home: str, tmp_path: Path) -> None:
    async with Engine(home, routes={Model: tmp_path / "models"}) as engine:
        await engine.run(work, 0.5)
    async with Engine(home) as engine:
        with pytest.raises(RouteNotFound, match=r"routes=") as caught:
            await (await engine.artifact("demo")).load()
        assert caught.value.type_name == "treadle.kinds.Model"
        result = await engine.run(work, 0.5)
        assert result.success
        assert CALLS.seen == [0.5, 0.5]
        assert result.step_results["measure"].cached


@pytest.mark.asyncio
async def test_a_place_that_cannot_be_written_fails_the_step(home: str, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where a folder should be")
    async with Engine(home, routes={Model: tmp_path / "models"}) as engine:
        result = await engine.run(work, 0.5)
        assert not result.success
        assert isinstance(result.step_results["train"].error, ArtifactStoreError)
        assert result.step_results["train"].status == "failed"
        with pytest.raises(ArtifactNotFound):
            await engine.artifact("demo")


@pytest.mark.asyncio
async def test_pruning_removes_what_was_routed_and_nothing_else(home: str, tmp_path: Path) -> None:
    models = tmp_path / "models"
    async with Engine(home, routes={Model: models}) as engine:
        await engine.run(work, 0.5)
        (models / "demo/note.txt").write_text("the user's own")
        await engine.run(one_named, "other", 1)
        numbers = await engine.prune(keep_last=0)
        assert numbers["runs"] == 2
        assert files(models) == ["demo/note.txt"]
        assert not (models / "other").exists()
        await engine.run(work, 0.5)
    assert "demo/2.pkl" in files(models)


@pytest.mark.asyncio
async def test_pruning_without_the_route_leaves_the_bytes(home: str, tmp_path: Path) -> None:
    async with Engine(home, routes={Model: tmp_path / "models"}) as engine:
        await engine.run(work, 0.5)
    async with Engine(home) as engine:
        assert (await engine.prune(keep_last=0))["runs"] == 1
    assert files(tmp_path / "models") == ["demo/1.pkl"]


READER = """
import asyncio, sys
from treadle import Engine, Model

async def main():
    async with Engine(sys.argv[1], routes={Model: sys.argv[2]}) as engine:
        model = await (await engine.artifact("small")).load()
        print(type(model).__name__, model.name, model.value)

asyncio.run(main())
"""


@pytest.mark.asyncio
async def test_a_new_process_with_the_route_loads_it(home: str, tmp_path: Path) -> None:
    async with Engine(home, routes={Model: tmp_path / "models"}) as engine:
        await engine.run(one_named, "small", (1, {2}))
    command = [sys.executable, "-c", READER, home, str(tmp_path / "models")]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "Model small (1, {2})\n", done.stderr


@pytest.mark.parametrize(
    "routes",
    [
        {"Model": "/tmp/x"}, {Model: 3}, {Model: ""}, {Model: "s3://user:secret@bucket/x"}, {Model: "nofs://x/y"},
        {Model: object()}, [Model], {object: "/tmp/x"}, {int: "/tmp/x"}, {Model: "s3://a/../b"}, {Model: "a::b"},
    ],
)  # fmt: skip
def test_routes_that_make_no_sense_are_refused_when_the_engine_is_made(routes: Any) -> None:
    with pytest.raises(OptionError) as caught:
        Engine("memory://", routes=routes)
    assert "secret" not in str(caught.value)


# -- route objects --------------------------------------------------------------------------


class Registry:
    """Takes models as a model registry would."""

    def __init__(self) -> None:
        self.saved: list[tuple[str, int, Any]] = []
        self.threads: set[int] = set()
        self.errors: list[Exception] = []

    def save(self, artifact: Artifact[Any], value: Model[Any]) -> None:
        self.threads.add(threading.get_ident())
        assert artifact.read().name == value.name
        assert artifact.producer.step == current().call
        if self.errors:
            raise self.errors.pop()
        self.saved.append((artifact.name, artifact.version, value.value))


class AsyncRegistry(Registry):
    """The same, on the loop."""

    async def save(self, artifact: Artifact[Any], value: Model[Any]) -> None:  # type: ignore[override]  # the other form
        await asyncio.sleep(0)
        super().save(artifact, value)


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [Registry, AsyncRegistry])
async def test_a_route_object_gets_artifact_and_value(home: str, kind: type[Registry]) -> None:
    registry = kind()
    assert isinstance(registry, Route)
    async with Engine(home, routes={Model: registry}) as engine:
        result = await engine.run(one_named, "m", 5)
        assert result.value == Model(5, name="m")
        assert registry.saved == [("named", 1, 5)]
        assert (await engine.artifact("m")).version == 1
        await engine.run(one_named, "m", 6)
        assert registry.saved[1:] == [("named", 2, 6)]
        await engine.run(one_named, "m", 6)
        assert len(registry.saved) == 2  # a hit stores nothing
        assert (await (await engine.artifact("m")).load()).value == 6
    assert (threading.get_ident() in registry.threads) is (kind is AsyncRegistry)


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [Registry, AsyncRegistry])
async def test_the_error_of_a_route_object_fails_the_step(home: str, kind: type[Registry]) -> None:
    registry = kind()
    registry.errors = [LookupError("the registry is down")]
    async with Engine(home, routes={Model: registry}) as engine:
        result = await engine.run(one_named, "m", 5)
        assert isinstance(result.error, LookupError)
        assert result.step_results["named"].status == "failed"
        with pytest.raises(ArtifactNotFound):
            await engine.artifact("m")


@pytest.mark.asyncio
async def test_a_retry_saves_again_under_a_version_of_its_own(home: str) -> None:
    registry = Registry()
    registry.errors = [LookupError("the registry is down")]

    @pipeline
    async def stubborn() -> Any:
        return await named.with_options(retry=1)("m", 5)

    async with Engine(home, routes={Model: registry}) as engine:
        result = await engine.run(stubborn)
        assert result.success
        assert registry.saved == [("named", 2, 5)]  # version 1 was given away to the first attempt
        assert (await engine.artifact("m")).version == 2
