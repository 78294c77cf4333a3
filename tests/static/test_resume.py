"""A static run is resumed as any other: by content, in the same process or in a new one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from treadle import Engine, Pipeline, context, pipeline, step
from treadle.errors import RunNotFound

HERE = sys.modules[__name__]


class Journal:
    """What the steps do and are told; not plain data, so that it is no part of their fingerprints."""

    def __init__(self) -> None:
        self.performed: list[str] = []
        self.fails = True
        self.started = asyncio.Event()


journal = Journal()


@step(outputs=["data"], cache=False)
def load(raw: list[int]) -> list[int]:
    journal.performed.append("load")
    return raw


@step(outputs=["model"], cache=False)
def train(data: list[int], rate: float) -> str:
    journal.performed.append("train")
    if journal.fails:
        raise OSError("no disk")
    return f"{data} {rate}"


@step(cache=False)
async def slow(data: list[int]) -> int:
    journal.started.set()
    return await asyncio.Event().wait() if journal.fails else len(data)


waiting = Pipeline("waiting").add_steps(load, slow)
etl = Pipeline("etl", context=context(rate=0.5)).add_steps(train, load)
nightly = etl.with_options(name="nightly", context={"rate": 0.25})


@pipeline(static=True, context={"rate": 0.5})
def static_etl(raw: list[int]) -> Any:
    return train(load(raw))  # type: ignore[call-arg]


@pipeline
async def dynamic_parent(raw: list[int]) -> Any:
    loaded = await sums(inputs={"raw": raw})
    return await train(loaded["data"], loaded["total"])


@pipeline(static=True)
def static_parent(raw: list[int]) -> Any:
    return train(load(raw), dynamic_child(raw))  # type: ignore[arg-type]


@step(outputs=["total"], cache=False)
def total(data: list[int]) -> int:
    journal.performed.append("total")
    return sum(data)


@pipeline
async def dynamic_child(raw: list[int]) -> int:
    return await total(raw)


sums = Pipeline("sums").add_steps(total, load)


@pytest.fixture(autouse=True)
def _from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    journal.__init__()  # type: ignore[misc]
    monkeypatch.setitem(sys.modules, __name__, HERE)  # in importlib mode nobody else knows this module


async def fail_and_resume(home: str, target: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    async with Engine(home) as engine:
        failed = await engine.run(target, *args, **kwargs)
        assert isinstance(failed.error, OSError)
    journal.fails = False
    async with Engine(home) as engine:
        return failed, await engine.resume(failed.run_id)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "[1, 2] 0.5"), ({"context": {"rate": 2}}, "[1, 2] 2"), ({"context": {"other": object}}, "[1, 2] 0.5")],
)
@pytest.mark.asyncio
async def test_a_wired_run_is_taken_up_with_its_inputs_and_its_context(
    home: str, given: dict[str, Any], expected: str
) -> None:
    failed, resumed = await fail_and_resume(home, etl, {"raw": [1, 2]}, **given)
    assert resumed.outputs == resumed.value == {"data": [1, 2], "model": expected}
    assert journal.performed == ["load", "train", "train"]
    assert (resumed.reused, resumed.run_id) == (1, failed.run_id)
    assert resumed.step_results["load"].reused


@pytest.mark.asyncio
async def test_a_changed_copy_at_module_level_is_found_by_its_own_name(home: str) -> None:
    _, resumed = await fail_and_resume(home, nightly, {"raw": [3]})
    assert resumed.pipeline == "nightly"
    assert resumed.outputs["model"] == "[3] 0.25"


@pytest.mark.asyncio
async def test_a_static_function_is_taken_up_with_its_arguments_and_its_context(home: str) -> None:
    _, resumed = await fail_and_resume(home, static_etl.with_options(context={"rate": 7}), [4])
    assert resumed.value == "[4] 7"
    assert journal.performed == ["load", "train", "train"]


@pytest.mark.parametrize("parent", [dynamic_parent, static_parent])
@pytest.mark.asyncio
async def test_child_runs_of_and_in_static_pipelines_are_taken_over(home: str, parent: Any) -> None:
    _, resumed = await fail_and_resume(home, parent, [1, 2])
    assert resumed.value == "[1, 2] 3"
    assert sorted(journal.performed) == ["load", "total", "train", "train"]


@pytest.mark.asyncio
async def test_a_pipeline_without_a_name_in_a_module_cannot_be_resumed_and_the_error_says_so(home: str) -> None:
    local = Pipeline("local", context={"rate": 1}).add_steps(load, train)
    with pytest.raises(RunNotFound, match="module level"):
        await fail_and_resume(home, local, {"raw": [1]})


@pytest.mark.asyncio
async def test_an_idempotent_wired_run_is_one_run(home: str) -> None:
    journal.fails = False
    once = etl.with_options(idempotency_key="today")
    async with Engine(home) as engine:
        first, second = await asyncio.gather(engine.run(once, {"raw": [1]}), engine.run(once, {"raw": [1]}))
        assert first.run_id == second.run_id
        assert await once({"raw": [1]}) == {"data": [1], "model": "[1] 0.5"}
    assert journal.performed == ["load", "train"]


@pytest.mark.asyncio
async def test_an_interrupted_run_is_recovered_by_the_next_engine(home: str) -> None:
    async with Engine(home, close_timeout=0) as engine:
        await engine.start(waiting, {"raw": [1]})
        await journal.started.wait()
    journal.fails = False
    async with Engine(home) as engine:
        (result,) = await engine.recover()
        assert result.outputs == {"data": [1], "slow": 1}
        assert result.reused == 1


PROGRAM = """
    import asyncio, json, os, sys
    from treadle import Engine, Pipeline, step

    @step(outputs=["data"], cache=False)
    def load(raw):
        print("load", file=sys.stderr)
        return raw

    @step(outputs=["total"], cache=False)
    def total(data, scale):
        if sys.argv[1] == "die":
            os._exit(3)
        return sum(data) * scale

    def build():
        return Pipeline("sums").add_steps(total, load)

    sums = build()

    async def main():
        async with Engine(sys.argv[2]) as engine:
            if sys.argv[1] == "die":
                await engine.run(sums, {"raw": [1, 2]}, context={"scale": 10})
            else:
                (result,) = await engine.recover()
                print(json.dumps([result.value, result.reused]))

    if __name__ == "__main__":
        import sums as own
        asyncio.run(own.main() if "module" in sys.argv else main())
"""


@pytest.mark.parametrize("how", ["script", "module"])
@pytest.mark.crash
def test_a_new_process_takes_up_a_run_of_a_pipeline_that_stands_in_a_module(tmp_path: Path, how: str) -> None:
    program = tmp_path / "sums.py"
    program.write_text(textwrap.dedent(PROGRAM))
    root = Path(__file__).parents[2]

    def run(what: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(program), what, str(tmp_path / "home"), how]
        environment = {"PYTHONPATH": str(root / "engine"), "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)

    died = run("die")
    assert (died.returncode, died.stderr) == (3, "load\n"), died.stderr
    recovered = run("recover")
    assert recovered.returncode == 0, recovered.stderr
    assert json.loads(recovered.stdout) == [{"data": [1, 2], "total": 30}, 1]
    assert "load" not in recovered.stderr


@pytest.mark.asyncio
async def test_the_order_in_which_inputs_are_written_makes_no_other_run(home: str) -> None:
    @step
    def pair(left: int, right: int) -> list[int]:
        return [left, right]

    once = Pipeline("pairs").add_step(pair).with_options(idempotency_key="k")
    async with Engine(home) as engine:
        one = await engine.run(once, {"left": 1, "right": 2}, context={"a": 1, "b": 2})
        other = await engine.run(once, {"right": 2, "left": 1}, context={"b": 2, "a": 1})
        assert one.run_id == other.run_id
        assert other.value == {"pair": [1, 2]}
