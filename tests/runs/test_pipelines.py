"""Pipelines as users start them: awaited, started, run in a script, on an engine of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treadle import Engine, RunHandle, RunResult, pipeline, step
from treadle.errors import AwaitCycle, NotInRun, OptionError, RunInsideLoop

Drive = Callable[[Any], Any]


@step
async def double(x: int) -> int:
    return 2 * x


@step
def triple(x: int) -> int:
    return 3 * x


@step
def boom(x: int) -> int:
    raise ValueError(f"no {x}")


@step(outputs=("low", "high"))
def bounds(xs: list[int]) -> tuple[int, int]:
    return min(xs), max(xs)


@pipeline
async def both(x: int) -> int:
    return await triple(await double(x))


@pipeline
def both_sync(x: int) -> int:
    return triple(double(x))


@pipeline
async def failing(x: int) -> int:
    return await boom(x)


def test_awaiting_a_pipeline_gives_its_value(drive: Drive, home: str) -> None:
    async def main() -> None:
        async with Engine(home):
            assert await both(2) == 12
            assert await both_sync(2) == 12

    drive(main())


def test_awaiting_a_failed_pipeline_raises_the_steps_own_error(drive: Drive, home: str) -> None:
    async def main() -> None:
        async with Engine(home):
            with pytest.raises(ValueError, match="no 7") as caught:
                await failing(7)
            notes = "\n".join(caught.value.__notes__)
            assert "boom" in notes
            assert "run" in notes
            assert "attempt 1" in notes

    drive(main())


def test_run_in_a_script_gives_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    result = both.run(3)
    assert isinstance(result, RunResult)
    assert (result.success, result.status, result.value) == (True, "succeeded", 18)
    assert both_sync.run(3).value == 18


def test_run_in_a_script_keeps_a_failure_in_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    result = failing.run(1)
    assert not result.success
    assert isinstance(result.error, ValueError)
    with pytest.raises(ValueError, match="no 1"):
        _ = result.value


@pytest.mark.asyncio
async def test_run_inside_a_loop_is_refused_with_what_to_do(home: str) -> None:
    async with Engine(home):
        with pytest.raises(RunInsideLoop, match=r"await both"):
            both.run(1)


@pytest.mark.asyncio
async def test_run_in_a_thread_beside_a_running_loop_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    result = await asyncio.to_thread(both.run, 5)
    assert result.value == 30


@pytest.mark.asyncio
async def test_start_gives_a_handle_to_wait_for_from_anywhere(home: str) -> None:
    async with Engine(home) as engine:
        handle = both.start(2)
        assert isinstance(handle, RunHandle)
        assert await handle.accepted() is handle
        assert await asyncio.gather(handle, handle) == [12, 12]
        result = await handle.wait()
        assert result.run_id == handle.id
        assert (await engine.get_run(handle.id)).value == 12
        assert handle.status == "succeeded"


@pytest.mark.asyncio
async def test_waiting_for_a_failed_run_raises_nothing_until_its_value_is_asked_for(home: str) -> None:
    async with Engine(home):
        handle = failing.start(1)
        result = await handle.wait()
        assert result.status == "failed"
        with pytest.raises(ValueError, match="no 1"):
            await handle


@pytest.mark.asyncio
async def test_a_handle_of_a_failed_run_that_nobody_awaits_is_silent_until_looked_at(home: str) -> None:
    async with Engine(home) as engine:
        handle = failing.start(1)
        await handle.accepted()
        run_id = handle.id
        del handle
        async for _ in engine.events(run_id, follow=True):
            pass
        assert (await engine.get_run(run_id)).status == "failed"


@pytest.mark.asyncio
async def test_engine_run_gives_a_result_and_engine_start_an_accepted_handle(home: str) -> None:
    async with Engine(home) as engine:
        result = await engine.run(both, 1)
        assert result.value == 6
        handle = await engine.start(both, 2)
        assert (await engine.get_run(handle.id)).status in ("running", "succeeded")
        assert await handle == 12
        assert (await engine.run(failing, 1)).status == "failed"


@pytest.mark.asyncio
async def test_wrong_arguments_raise_type_error_at_the_call(home: str) -> None:
    async with Engine(home) as engine:
        for call in (both, both.start):
            with pytest.raises(TypeError, match="missing"):
                call()  # type: ignore[call-arg]  # the mistake under test
        with pytest.raises(TypeError, match="unexpected"):
            await engine.run(both, 1, z=2)  # type: ignore[call-arg]  # the mistake under test
        assert await engine.runs() == []


@pytest.mark.asyncio
async def test_futures_in_the_returned_value_are_resolved_however_deep(home: str) -> None:
    @pipeline
    async def nested(x: int) -> Any:
        future = double.submit(x)
        return {"one": future, "many": [triple.submit(future), (future, {"deep": [future]})], "map": double.map([1, 2])}

    async with Engine(home) as engine:
        expected = {"one": 4, "many": [12, (4, {"deep": [4]})], "map": [2, 4]}
        result = await engine.run(nested, 2)
        assert result.value == expected
        assert (await engine.get_run(result.run_id)).value == expected


@pytest.mark.asyncio
async def test_a_returned_future_map_or_artifact_is_its_value(home: str) -> None:
    @pipeline
    async def a_future(x: int) -> Any:
        return double.submit(x)

    @pipeline
    async def a_map(x: int) -> Any:
        return double.map(range(x))

    @pipeline
    async def an_artifact(x: int) -> Any:
        future = double.submit(x)
        await future
        return [future.artifact]

    @pipeline
    def from_a_thread(x: int) -> Any:
        return [double.submit(x), triple.map([x])]

    async with Engine(home):
        assert await a_future(4) == 8
        assert await a_map(3) == [0, 2, 4]
        assert await an_artifact(5) == [10]
        assert await from_a_thread(6) == [12, [18]]


@pytest.mark.asyncio
async def test_a_returned_future_that_failed_fails_the_run_with_its_error(home: str) -> None:
    @pipeline
    async def careless(x: int) -> Any:
        return [boom.submit(x)]

    async with Engine(home) as engine:
        with pytest.raises(ValueError, match="no 3"):
            await careless(3)
        assert (await engine.runs())[0].status == "failed"


@pytest.mark.asyncio
async def test_returning_early_waits_for_every_submitted_call(home: str) -> None:
    gate = asyncio.Event()
    ended: list[int] = []

    @step
    async def slow(x: int) -> int:
        await gate.wait()
        ended.append(x)
        return x

    @pipeline
    async def early() -> str:
        slow.submit(1)
        slow.submit(2)
        return "early"

    async with Engine(home) as engine:
        handle = early.start()
        await handle.accepted()
        async for event in handle.events():
            if event.kind == "CallStarted" and event.call == "slow_2":
                break
        assert handle.status == "running"
        gate.set()
        assert await handle == "early"
        assert sorted(ended) == [1, 2]
        assert [call.status for call in (await engine.get_run(handle.id)).step_results.values()] == ["succeeded"] * 2


@pytest.mark.asyncio
async def test_a_def_pipeline_runs_beside_the_loop_and_its_steps_on_it(home: str) -> None:
    where: dict[str, int] = {}

    @step
    async def on_loop(x: int) -> int:
        where["step"] = threading.get_ident()
        return x

    @pipeline
    def sync(x: int) -> int:
        where["pipeline"] = threading.get_ident()
        future = on_loop.submit(x)
        assert future.result(timeout=10) == x
        assert future.exception() is None
        return on_loop(x)

    async with Engine(home):
        assert await sync(4) == 4
        assert where["step"] == threading.get_ident()
        assert where["pipeline"] != threading.get_ident()


@pytest.mark.asyncio
async def test_outside_of_a_run_steps_are_plain_functions_and_submit_says_what_to_do(home: str) -> None:
    assert await double(2) == 4
    assert triple(2) == 6
    with pytest.raises(NotInRun, match="@pipeline"):
        double.submit(1)


@pytest.mark.asyncio
async def test_in_the_body_of_a_step_pipelines_and_steps_are_plain_functions(home: str) -> None:
    @pipeline
    async def quadruple(x: int) -> int:
        return await double(await double(x))

    @step
    async def outer(x: int) -> int:
        return await quadruple(x) + triple(1)

    @pipeline
    async def calls_outer(x: int) -> int:
        return await outer(x)

    async with Engine(home) as engine:
        result = await engine.run(calls_outer, 1)
        assert result.value == 7
        assert list(result.step_results) == ["outer"]
        assert len(await engine.runs(children=True)) == 1


@pytest.mark.asyncio
async def test_a_run_that_has_ended_counts_as_outside(home: str) -> None:
    later: list[asyncio.Task[Any]] = []
    gate = asyncio.Event()

    async def afterwards() -> int:
        await gate.wait()
        return await double(21)

    @pipeline
    async def leaves_a_task() -> None:
        later.append(asyncio.create_task(afterwards()))

    async with Engine(home) as engine:
        result = await engine.run(leaves_a_task)
        gate.set()
        assert await later[0] == 42
        assert not (await engine.get_run(result.run_id)).step_results


@pytest.mark.asyncio
async def test_a_pipeline_that_awaits_its_own_run_is_told_so(home: str) -> None:
    box: list[RunHandle[Any]] = []

    @pipeline
    async def narcissus() -> Any:
        return await box[0]

    async with Engine(home):
        box.append(narcissus.start())
        with pytest.raises(AwaitCycle, match="itself"):
            await box[0]


def test_generators_methods_and_steps_are_refused_as_pipelines() -> None:
    def generator() -> Any:
        yield 1

    class Thing:
        pass

    for wrong in (generator, Thing, double, 3, print):
        with pytest.raises(OptionError):
            pipeline(wrong)  # type: ignore[call-overload]  # the mistake under test


@pytest.mark.asyncio
async def test_many_runs_of_one_pipeline_at_once_are_independent(home: str) -> None:
    async with Engine(home) as engine:
        results = await asyncio.gather(*(engine.run(both, x) for x in range(30)))
        assert [result.value for result in results] == [6 * x for x in range(30)]
        assert len({result.run_id for result in results}) == 30
