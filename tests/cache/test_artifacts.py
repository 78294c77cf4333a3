"""Stored outputs: names, versions, what makes a new one, several outputs, large ones, and what cannot be stored."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import treadle
from treadle import Artifact, EncodeError, pipeline, step
from treadle.errors import ArtifactNotFound, OptionError

LARGE = 64 * 1024


@step
async def echo(x: Any) -> Any:
    return x


@step(name="echo", version="other code")
async def echo_again(x: Any) -> Any:
    return x


@pipeline
async def versions(*values: Any) -> list[int]:
    found = []
    for value in values:
        future = echo.submit(value)
        await future
        found.append(future.artifact.version)
    return found


def test_versions_count_per_name_and_a_hit_points_at_the_old_one(home: Any) -> None:
    assert home.value(versions, "a", "b", "a", "c") == [1, 2, 1, 3]
    assert home.value(versions, "c", "a", "d") == [3, 1, 4]


def test_what_is_performed_again_is_a_new_version_although_equal(home: Any) -> None:
    assert home.value(versions, "a", cache=False) == [1]
    assert home.value(versions, "a", cache=False) == [2]


def test_versions_belong_to_the_name_whichever_step_made_it(home: Any) -> None:
    @pipeline
    async def p() -> list[int]:
        futures = [echo.submit(1), echo_again.submit(1)]
        await asyncio.gather(*futures)
        return [future.artifact.version for future in futures]

    assert sorted(home.value(p)) == [1, 2]


def test_two_engines_on_one_home_give_no_version_twice(home: Any) -> None:
    async def main() -> list[int]:
        async with home.engine() as one, home.engine() as two:
            results = await asyncio.gather(
                *(
                    engine.run(versions, *(f"{index}-{item}" for item in range(5)))
                    for index, engine in enumerate([one, two] * 4)
                )
            )
        return [version for result in results for version in result.value]

    found = home.drive(main())
    assert sorted(found) == list(range(1, 41))


def test_one_engine_finds_what_another_has_just_stored(home: Any) -> None:
    async def main() -> list[list[int]]:
        async with home.engine() as one, home.engine() as two:
            return [
                (await engine.run(versions, value)).value
                for engine, value in [(one, "a"), (two, "a"), (two, "b"), (one, "b"), (one, "a")]
            ]

    assert home.drive(main()) == [[1], [1], [2], [2], [1]]


def test_the_cache_outlives_the_process(home: Any, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import asyncio, sys
            from treadle import Engine, pipeline, step

            FACTOR = 3

            def helper(x):
                return {"set": {x, x * FACTOR}, "pair": (x, None)}

            @step
            def work(x):
                return helper(x)

            @pipeline
            async def p(x):
                return await work(x)

            async def main():
                async with Engine(sys.argv[1]) as engine:
                    result = await engine.run(p, 2)
                    print(result.step_results["work"].status, result.value == {"set": {2, 6}, "pair": (2, None)})

            if __name__ == "__main__":
                asyncio.run(main())
        """)
    )

    environment = {**os.environ, "PYTHONPATH": str(Path(treadle.__file__).parents[1])}

    def run() -> str:
        command = [sys.executable, str(script), home.path]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60, env=environment
        ).stdout.strip()

    assert run() == "succeeded True"
    assert run() == "cached True"
    script.write_text(script.read_text().replace("FACTOR = 3", "FACTOR = 2 + 1"))
    assert run() == "cached True"


def test_facts_of_an_artifact(home: Any) -> None:
    @pipeline
    async def p() -> Artifact[Any]:
        future = echo.submit({"a": 1})
        await future
        artifact = future.artifact
        assert (artifact.name, artifact.version, artifact.type) == ("echo", 1, "builtins.dict")
        assert artifact.digest.startswith("blake3:")
        assert artifact.size > 0
        assert (artifact.producer.call, artifact.producer.step) == ("echo", "echo")
        assert await artifact.load() == artifact.read() == {"a": 1}
        return artifact

    result = home.result(p)
    assert result.value == {"a": 1}  # returned artifacts are resolved
    stored = result.step_results["echo"].artifacts["echo"]
    assert stored.producer.run_id == result.run_id
    assert stored.read() == {"a": 1}  # and outlive the engine


def test_an_artifact_is_found_by_name_and_version(home: Any) -> None:
    home.value(versions, "a", "b")

    async def main() -> list[Any]:
        async with home.engine() as engine:
            found = [
                await engine.artifact("echo"),
                await engine.artifact("echo", 1),
                await engine.artifact("echo", version=2),
            ]
            with pytest.raises(ArtifactNotFound, match="version 3"):
                await engine.artifact("echo", 3)
            with pytest.raises(ArtifactNotFound, match="nobody"):
                await engine.artifact("nobody")
            return [(artifact.version, artifact.read()) for artifact in found]

    assert home.drive(main()) == [(2, "b"), (1, "a"), (2, "b")]


# -- large ones ---------------------------------------------------------------------------


def files_of(home: Any) -> list[Path]:
    return [path for path in (Path(home.path) / "blobs").rglob("*") if path.is_file()]


@pytest.mark.parametrize("size", [10, LARGE - 100, LARGE + 100, 3_000_000])
@pytest.mark.parametrize("kind", ["bytes", "list", "array"])
def test_small_outputs_are_in_the_log_and_large_ones_are_files(home: Any, size: int, kind: str) -> None:
    @step
    def make(size: int, kind: str) -> Any:
        if kind == "array":
            return np.arange(size, dtype="u1")
        return b"x" * size if kind == "bytes" else [b"x" * (size // 2), b"y" * (size // 2)]

    @step
    def measure(value: Any) -> int:
        return sum(map(len, value)) if isinstance(value, list) else len(value)

    @pipeline
    async def p() -> int:
        return await measure(make.submit(size, kind))

    first = home.result(p)
    assert first.value == size
    assert bool(files_of(home)) == (size > LARGE)
    again = home.result(p.with_options())
    assert again.step_results["make"].status == "cached"
    expected, found = first.step_results["make"].outputs["make"], again.step_results["make"].outputs["make"]
    assert type(expected) is type(found)
    assert np.array_equal(expected, found) if kind == "array" else expected == found


def test_equal_large_outputs_are_one_file(home: Any) -> None:
    @step(cache=False)
    def make(x: int) -> bytes:
        return b"same" * LARGE

    @pipeline
    async def p() -> int:
        return len(await make.map([1, 2, 3]))

    home.value(p)
    assert len(files_of(home)) == 1


# -- several outputs ----------------------------------------------------------------------


@step(outputs=["low", "high"])
async def bounds(values: list[int], shape: str) -> Any:
    low, high = min(values), max(values)
    if shape == "dict":
        return {"high": high, "low": low}
    return [low, high] if shape == "list" else (low, high)


@pytest.mark.parametrize("shape", ["tuple", "list", "dict"])
def test_several_outputs_are_several_artifacts_and_come_back_in_their_shape(home: Any, shape: str) -> None:
    @pipeline
    async def p() -> Any:
        future = bounds.submit([3, 1, 2], shape)
        high = future.output("high")
        value = await future
        assert await high == 3
        assert high.artifact.read() == 3
        assert {name: artifact.version for name, artifact in future.artifacts.items()} == {"low": 1, "high": 1}
        return value

    expected: Any = {"tuple": (1, 3), "list": [1, 3], "dict": {"low": 1, "high": 3}}[shape]
    first = home.result(p)
    again = home.result(p)
    assert again.step_results["bounds"].status == "cached"
    for result in (first, again):
        assert result.value == expected
        assert type(result.value) is type(expected)
        assert dict(result.step_results["bounds"].outputs) == {"low": 1, "high": 3}
        assert result.outputs["bounds.high"] == 3


@pytest.mark.parametrize("value", [(1,), [1, 2, 3], {"low": 1, "other": 2}, 5, None, {"low": 1}])
def test_a_wrong_count_of_outputs_fails_the_call_and_stores_nothing(home: Any, value: Any) -> None:
    @step(outputs=["low", "high"])
    async def wrong() -> Any:
        return value

    @pipeline
    async def p() -> Any:
        return await wrong()

    result = home.result(p)
    assert isinstance(result.error, OptionError)
    assert "declares 2 outputs (low, high)" in str(result.error)
    assert result.step_results["wrong"].artifacts == {}


# -- what is not stored -------------------------------------------------------------------


def test_without_persist_nothing_is_stored_and_nothing_is_cached(home: Any) -> None:
    @step(persist=False)
    async def connect() -> Any:
        return threading.Lock()

    @step
    async def use(lock: Any) -> bool:
        return bool(lock.acquire(blocking=False))

    @pipeline
    async def p() -> bool:
        future = connect.submit()
        await future
        assert future.artifacts == {}
        return await use(future)

    for _ in range(2):
        result = home.result(p)
        assert result.value is True
        assert result.step_results["connect"].status == "succeeded"
        assert result.step_results["connect"].artifacts == {}


class Handle:
    """Like a connection: it holds what cannot be stored."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


UNSTORABLE = {
    "lambda": (lambda: lambda x: x, "value", "function"),
    "lock": (threading.Lock, "value", "lock"),
    "nested": (lambda: {"rows": [1, {"lock": threading.Lock()}]}, "value['rows'][1]['lock']", "lock"),
    "object": (Handle, "value.lock", "lock"),
    "generator": (lambda: (x for x in [1]), "value", "generator"),
}


@pytest.mark.parametrize("kind", UNSTORABLE)
def test_an_output_that_cannot_be_stored_is_an_error_with_its_place_and_the_fix(home: Any, kind: str) -> None:
    make, path, word = UNSTORABLE[kind]

    @step(retry=3)
    def bad() -> Any:
        attempts.append(1)
        return make()

    attempts: list[int] = []

    @pipeline
    async def p() -> Any:
        return await bad()

    result = home.result(p)
    error = result.error
    assert isinstance(error, EncodeError)
    assert path in str(error)
    assert word in str(error)
    assert "persist=False" in str(error)
    assert error.path == path
    assert type(error.value) is type(make())
    assert len(attempts) == 1  # an error of this kind is not retried
    assert result.step_results["bad"].status == "failed"
    assert result.step_results["bad"].artifacts == {}


def test_when_one_of_several_outputs_cannot_be_stored_none_is(home: Any) -> None:
    @step(outputs=["fine", "bad"])
    def make() -> Any:
        return b"x" * 100_000, threading.Lock()

    @pipeline
    async def p() -> Any:
        return await make()

    async def main() -> Any:
        async with home.engine() as engine:
            result = await engine.run(p)
            with pytest.raises(ArtifactNotFound):
                await engine.artifact("fine")
            return result

    assert isinstance(home.drive(main()).error, EncodeError)


def test_a_value_that_only_pickle_can_hold_is_refused_where_pickle_is_off(home: Any) -> None:
    class_value = complex_value()

    @step
    async def make() -> Any:
        return class_value

    @pipeline
    async def p() -> Any:
        return await make.with_options(version="1")()

    assert isinstance(home.result(p, allow_pickle=False).error, EncodeError)
    assert home.value(p) == class_value
    # What was written before is not read either: it is performed again, and cannot be stored.
    assert isinstance(home.result(p, allow_pickle=False).error, EncodeError)


class Reduced:
    """Equal by content; only pickle can store it."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reduced) and other.n == self.n

    __hash__ = None  # type: ignore[assignment]


def complex_value() -> Any:
    return Reduced(3)
