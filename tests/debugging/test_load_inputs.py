"""What a failed call received can be loaded again: here, and in a process that comes later."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from treadle import Dataset, Engine, Model, pipeline, step, unmapped
from treadle.errors import TreadleError

PROGRAM = """
import asyncio, sys
from treadle import Engine, pipeline, step


@step
def load():
    return {"rows": [(1, "a"), (2, "b")], "tags": {"x"}}


@step
def fails(data, factor, *more, label="none"):
    data["rows"].append("spoilt")
    raise ValueError(f"cannot do {factor}")


@pipeline
async def work(factor):
    await fails(load.submit(), factor, 5, label="here")


async def main():
    async with Engine(sys.argv[2]) as engine:
        if sys.argv[1] == "run":
            print((await engine.run(work, 3)).run_id)
        else:
            result = await engine.get_run(sys.argv[3])
            print(result.step_results["fails"].load_inputs(), repr(result.error))


asyncio.run(main())
"""


@step
def load() -> Any:
    return {"rows": [(1, "a")], "when": Path("x")}


@step
def large() -> Any:
    return np.arange(100_000)


@step(persist=False)
def fleeting() -> Any:
    return [1, (2, 3)]


@step
def item(x: int) -> Any:
    return x * 10


@step
def fails(data: Any, factor: Any = 1, *, label: Any = "") -> Any:
    raise ValueError(f"cannot do {factor}")


def same(one: Any, two: Any) -> bool:
    return type(one) is type(two) and repr(one) == repr(two)


@pytest.fixture
def home(tmp_path: Path) -> str:
    """A folder for an engine."""
    return str(tmp_path / "home")


async def inputs_of(home: str, target: Any, call: str = "fails") -> dict[str, Any]:
    """The inputs of the failed call: at once, and once more from the log of a closed engine."""
    async with Engine(home) as engine:
        result = await engine.run(target)
        assert not result.success
        at_once = result.step_results[call].load_inputs()
        run_id = result.run_id
    async with Engine(home) as engine:
        later = (await engine.get_run(run_id)).step_results[call].load_inputs()
    assert list(later) == list(at_once)
    assert all(same(later[name], at_once[name]) for name in later)
    return at_once


@pytest.mark.asyncio
async def test_futures_values_and_containers_of_both_come_back(home: str) -> None:
    @pipeline
    async def work() -> None:
        await fails(load.submit(), [item.submit(1), 2, {"k": item.submit(2)}], label=("t", {1}))

    found = await inputs_of(home, work)
    assert found == {
        "data": {"rows": [(1, "a")], "when": Path("x")}, "factor": [10, 2, {"k": 20}], "label": ("t", {1}),
    }  # fmt: skip


@pytest.mark.asyncio
async def test_they_are_what_came_in_whatever_the_body_has_done_to_them(home: str) -> None:
    @step
    def spoils(rows: list[int]) -> None:
        rows.clear()
        raise ValueError

    @pipeline
    async def work() -> None:
        await spoils([1, 2, 3])

    assert await inputs_of(home, work, "spoils") == {"rows": [1, 2, 3]}


@pytest.mark.asyncio
async def test_a_large_value_that_was_awaited_comes_from_the_artifact_of_its_producer(home: str) -> None:
    @pipeline
    async def work() -> None:
        await fails(await large())

    found = await inputs_of(home, work)
    assert np.array_equal(found["data"], np.arange(100_000))


@pytest.mark.asyncio
async def test_maps_shared_arguments_and_artifacts_come_back(home: str) -> None:
    @pipeline
    async def reduced() -> None:
        await fails(item.map([1, 2, 3]), unmapped_of())

    def unmapped_of() -> Any:
        return item.submit(7)

    @pipeline
    async def mapped() -> None:
        done = load.submit()
        await done
        await fails.map([1], unmapped({"whole": 1}), label=unmapped(done))

    assert await inputs_of(home, reduced) == {"data": [10, 20, 30], "factor": 70}
    found = await inputs_of(home, mapped, "fails[0]")
    assert found == {"data": 1, "factor": {"whole": 1}, "label": {"rows": [(1, "a")], "when": Path("x")}}


@pytest.mark.asyncio
async def test_the_output_of_a_step_that_keeps_nothing_comes_back_if_it_is_small(home: str) -> None:
    @pipeline
    async def work() -> None:
        await fails(fleeting.submit())

    assert await inputs_of(home, work) == {"data": [1, (2, 3)]}


@pytest.mark.asyncio
async def test_models_and_frames_come_back_whole(home: str) -> None:
    @step
    def data() -> Dataset[pd.DataFrame]:
        return Dataset(pd.DataFrame({"a": [1, 2]}), name="d")

    @pipeline
    async def work() -> None:
        await fails(data.submit(), Model([1], name="m", acc=0.5))

    found = await inputs_of(home, work)
    assert found["data"] == Dataset(pd.DataFrame({"a": [1, 2]}), name="d")
    assert found["factor"] == Model([1], name="m", acc=0.5)


@pytest.mark.asyncio
async def test_what_was_not_kept_is_named(home: str) -> None:
    @pipeline
    async def work() -> None:
        await fails(np.arange(100_000))

    async with Engine(home) as engine:
        result = await engine.run(work)
        assert not result.success
        with pytest.raises(TreadleError, match="input data of call fails was not kept"):
            result.step_results["fails"].load_inputs()


@pytest.mark.asyncio
async def test_the_failed_call_can_be_repeated_by_hand(home: str) -> None:
    @pipeline
    async def work() -> None:
        await fails(load.submit(), 3)

    with pytest.raises(ValueError, match="cannot do 3"):
        fails.fn(**await inputs_of(home, work))


@pytest.mark.asyncio
async def test_a_debugged_failure_is_in_the_log_like_any_other(home: str) -> None:
    @pipeline
    async def work() -> None:
        await fails(load.submit(), 3)

    async with Engine(home) as engine:
        result = await engine.run(work.with_options(debug=True))
        assert isinstance(result.error, ValueError)
        assert (await engine.get_run(result.run_id)).step_results["fails"].load_inputs()["factor"] == 3


@pytest.mark.asyncio
async def test_another_process_can_load_them(home: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    async def run(*arguments: str) -> str:
        command = [sys.executable, str(program), *arguments]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    run_id = await run("run", home)
    said = await run("load", home, run_id)
    assert "'rows': [(1, 'a'), (2, 'b')], 'tags': {'x'}}" in said
    assert "'factor': 3" in said
    assert "'label': 'here'" in said
    assert "spoilt" not in said
    assert "ValueError('cannot do 3')" in said
