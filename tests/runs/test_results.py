"""What a result tells: value, outputs, artifacts, lineage, times, as text; also long after its engine is gone."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from treadle import Engine, RunResult, StepResult, current, pipeline, step
from treadle.errors import RunCancelled, UnobservedFailure, UpstreamFailed

Drive = Callable[[Any], Any]


@step
async def load(n: int) -> list[int]:
    return list(range(n))


@step
def square(x: int) -> int:
    return x * x


@step
async def total(xs: list[int]) -> int:
    return sum(xs)


@step(outputs=("low", "high"))
def bounds(xs: list[int]) -> tuple[int, int]:
    return min(xs), max(xs)


@step(cache=False)
async def fails(x: int) -> int:
    raise ValueError(f"<no> & {x}")


@pipeline
async def report(n: int) -> int:
    xs = load.submit(n)
    squares = square.map(await xs)
    ends = bounds.submit(squares)
    low = ends.output("low")
    square.map([7])
    return await total([low, await total(squares)])


@pytest.fixture
def result(home: str) -> RunResult[int]:
    """The result of a run whose engine is closed."""

    async def main() -> RunResult[int]:
        async with Engine(home) as engine:
            return await engine.run(report, 4)

    return asyncio.run(main())


def test_outputs_go_by_call_name_with_maps_as_lists(result: RunResult[int]) -> None:
    assert dict(result.outputs) == {
        "load": [0, 1, 2, 3], "square": [0, 1, 4, 9], "bounds.low": 0, "bounds.high": 9, "square_2": [49], "total": 14,
        "total_2": 14,
    }  # fmt: skip


def test_step_results_are_in_the_order_of_submission(result: RunResult[int]) -> None:
    names = ["load", "square[0]", "square[1]", "square[2]", "square[3]", "bounds", "square_2[0]", "total", "total_2"]
    assert sorted(result.step_results) == sorted(names)
    singles = [name for name in result.step_results if "[" not in name]
    assert singles == ["load", "bounds", "total", "total_2"]
    call = result.step_results["square[2]"]
    assert isinstance(call, StepResult)
    assert (call.name, call.step, call.status, call.attempts) == ("square[2]", "square", "succeeded", 1)
    assert (call.success, call.cached, call.skipped, call.skip_reason, call.fallback, call.reused, call.error) == (
        True, False, False, None, False, False, None,
    )  # fmt: skip
    assert call.outputs["square"] == 4


def test_times_are_plausible(result: RunResult[int]) -> None:
    assert 0 < result.duration_seconds < 20
    call = result.step_results["load"]
    assert call.started_at is not None
    assert 0 <= call.duration_seconds <= result.duration_seconds
    assert result.time_saved_seconds == 0


def test_artifacts_outlive_their_engine(result: RunResult[int]) -> None:
    artifact = result.artifacts["bounds.high"]
    assert artifact.read() == 9
    assert asyncio.run(artifact.load()) == 9
    assert artifact.digest.startswith("blake3:")
    assert (artifact.name, artifact.version, artifact.producer.call) == ("high", 1, "bounds")
    assert result.step_results["bounds"].artifacts["low"].read() == 0


def test_results_in_memory_outlive_their_engine_too() -> None:
    async def main() -> RunResult[int]:
        async with Engine("memory://") as engine:
            return await engine.run(report, 4)

    result = asyncio.run(main())
    gc.collect()
    assert result.value == 14
    assert result.outputs["square"] == [0, 1, 4, 9]
    assert "report succeeded" in str(result)


def test_inputs_name_their_producer_and_say_when_it_was_inferred(result: RunResult[int]) -> None:
    bounds_input = result.step_results["bounds"].inputs["xs"]
    assert (bounds_input.producer, bounds_input.inferred) == ("square", False)
    assert bounds_input.digest.startswith("blake3:")
    inferred = result.step_results["total_2"].inputs["xs"]
    assert "bounds.low" in (inferred.producer or "")
    plain = result.step_results["load"].inputs["n"]
    assert (plain.producer, plain.inferred) == (None, False)


@pytest.mark.asyncio
async def test_a_plain_value_is_traced_to_the_newest_output_of_that_content(home: str) -> None:
    @pipeline
    async def awaits() -> int:
        value = await square(3)
        return await square(value)

    async with Engine(home) as engine:
        result = await engine.run(awaits)
        given = result.step_results["square_2"].inputs["x"]
        assert (given.producer, given.inferred) == ("square", True)
        assert given.digest == result.artifacts["square"].digest


@pytest.mark.asyncio
async def test_lineage_leads_back_to_every_producer(home: str) -> None:
    async with Engine(home) as engine:
        result = await engine.run(report, 4)
        lineage = result.artifacts["total_2"].lineage()
    text = str(lineage)
    for name in ("total_2", "bounds", "square[0]", "square[3]"):
        assert name in text
    again = result.artifacts["total_2"].lineage()
    assert str(again) == text


@pytest.mark.asyncio
async def test_cached_calls_say_what_they_saved(home: str) -> None:
    @step
    async def slow(x: int) -> int:
        await asyncio.sleep(0.05)
        return x

    @pipeline
    async def one() -> int:
        return await slow(1)

    async with Engine(home) as engine:
        await engine.run(one)
        result = await engine.run(one)
        call = result.step_results["slow"]
        assert (call.status, call.cached, call.success, call.attempts) == ("cached", True, True, 0)
        assert result.time_saved_seconds >= 0.05
        assert "saved" in str(result)


# -- as text ------------------------------------------------------------------------------


def test_the_table_has_a_line_per_call_and_one_per_map(result: RunResult[int]) -> None:
    lines = str(result).splitlines()
    assert lines[0].startswith("report succeeded in")
    assert result.run_id in lines[0]
    names = [line.split()[0] for line in lines[3:-1]]
    assert sorted(names) == ["bounds", "load", "square[4]", "square_2[1]", "total", "total_2"]
    assert lines[-1].startswith("9 calls: all succeeded; 9 attempts, ")
    assert repr(result) == f"<RunResult {result.run_id} of report succeeded>"
    assert repr(result.step_results["load"]) == "<StepResult load succeeded>"


def test_a_map_of_a_thousand_is_one_line(home: str) -> None:
    @pipeline
    async def wide() -> None:
        await square.map(range(1000))

    async def main() -> RunResult[None]:
        async with Engine(home) as engine:
            return await engine.run(wide)

    result = asyncio.run(main())
    lines = str(result).splitlines()
    assert len(lines) == 5
    assert lines[3].startswith("square[1000]")
    assert lines[4].startswith("1000 calls: all succeeded")
    assert len([line for line in result.to_mermaid().splitlines() if '["' in line]) == 1
    assert len([line for line in result.to_dot().splitlines() if "label=" in line]) == 1
    assert result.outputs["square"] == [x * x for x in range(1000)]


@pytest.mark.asyncio
async def test_a_failure_is_told_with_its_reason_in_every_form(home: str) -> None:
    @pipeline(failure_mode="continue")
    async def bad() -> None:
        square.submit(fails.submit(1))

    async with Engine(home) as engine:
        result = await engine.run(bad)
        text = str(result)
        assert "ValueError: <no> & 1" in text
        assert "because fails failed" in text
        page = result._repr_html_()
        assert "ValueError: &lt;no&gt; &amp; 1" in page
        assert "<no>" not in page
        assert page.startswith("<table ")
        skipped = result.step_results["square"]
        assert (skipped.status, skipped.success, skipped.skip_reason) == ("skipped", False, "upstream")
        assert isinstance(skipped.error, UpstreamFailed)
        assert dict(result.outputs) == {}


def test_the_graph_shows_what_flowed_where(result: RunResult[int]) -> None:
    graph = result.to_mermaid()
    assert graph.startswith("flowchart TD")
    nodes = dict(line.strip().split("[", 1) for line in graph.splitlines() if '["' in line)
    number = {text.split('"')[1].partition("[")[0]: name for name, text in nodes.items()}
    assert f"{number['square']} --> {number['bounds']}" in graph
    assert f"{number['bounds']} --> {number['total_2']}" in graph


# -- failed results -----------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_value_of_a_failed_run_raises_its_error(home: str) -> None:
    @pipeline
    async def bad() -> int:
        return await fails(1)

    async with Engine(home) as engine:
        result = await engine.run(bad)
        for ask in (lambda: result.value, result.raise_for_failure):
            with pytest.raises(ValueError, match="<no> & 1"):
                ask()
        assert result.error is result.errors[0]
        assert result.step_results["fails"].error is result.error
        again = await engine.get_run(result.run_id)
        assert isinstance(again.error, ValueError)
        assert again.error is not result.error
        with pytest.raises(ValueError, match="<no> & 1"):
            _ = again.value


async def drop_a_failed_result(home: str, look: Callable[[RunResult[Any]], object]) -> None:
    @pipeline
    async def bad() -> int:
        return await fails(1)

    async with Engine(home) as engine:
        result = await engine.run(bad)
        look(result)
        del result
        gc.collect()


@pytest.mark.asyncio
async def test_a_failed_result_that_nobody_looks_at_warns(home: str) -> None:
    with pytest.warns(UnobservedFailure, match=r"bad failed.*<no> & 1"):
        await drop_a_failed_result(home, lambda result: (result.run_id, result.pipeline, result.duration_seconds))


@pytest.mark.parametrize("name", ["status", "success", "error", "errors"])
@pytest.mark.asyncio
async def test_a_failed_result_that_somebody_looked_at_does_not_warn(home: str, name: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await drop_a_failed_result(home, lambda result: getattr(result, name))
    assert not [one for one in caught if one.category is UnobservedFailure]


@pytest.mark.asyncio
async def test_a_succeeded_or_cancelled_result_never_warns(home: str) -> None:
    @pipeline
    async def fine() -> int:
        return 1

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with Engine(home) as engine:
            await engine.run(fine)
            gc.collect()


# -- other endings ------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_running_run_can_be_looked_at(home: str) -> None:
    gate, started = asyncio.Event(), asyncio.Event()

    @step(cache=False)
    async def waits() -> int:
        started.set()
        await gate.wait()
        return 1

    @pipeline
    async def two() -> int:
        first = await square(3)
        return first + await waits()

    async with Engine(home) as engine:
        handle = await engine.start(two)
        await started.wait()
        async for event in handle.events():
            if event.kind == "CallStarted" and event.call == "waits":
                break
        result = await engine.get_run(handle.id)
        assert result.status == "running"
        assert {name: call.status for name, call in result.step_results.items()} == {
            "square": "succeeded",
            "waits": "running",
        }
        gate.set()
        await handle
        assert result.status == "succeeded"
        assert result.value == 10
        assert result.step_results["waits"].status == "succeeded"


@pytest.mark.asyncio
async def test_a_cancelled_runs_result_raises_run_cancelled(home: str) -> None:
    started = asyncio.Event()

    @step(cache=False)
    async def forever() -> None:
        started.set()
        await asyncio.Event().wait()

    @pipeline
    async def long() -> None:
        await forever()

    async with Engine(home) as engine:
        handle = await engine.start(long)
        await started.wait()
        await handle.cancel()
        for result in (await handle.wait(), await engine.get_run(handle.id)):
            assert not result.success
            assert isinstance(result.error, RunCancelled)
            with pytest.raises(RunCancelled):
                _ = result.value
            assert "cancelled" in str(result)


@pytest.mark.asyncio
async def test_metadata_of_a_step_is_in_its_result(home: str) -> None:
    @step(cache=False)
    def notes() -> None:
        current().log_metadata(rows=3, source="a")
        current().log_metadata(rows=4)

    @pipeline
    async def one() -> None:
        await notes()

    async with Engine(home) as engine:
        result = await engine.run(one)
        assert result.step_results["notes"].metadata == {"rows": 4, "source": "a"}


@pytest.mark.asyncio
async def test_the_inputs_of_a_failed_call_can_be_loaded(home: str) -> None:
    @step(cache=False)
    async def picky(xs: list[int], factor: int) -> int:
        raise ValueError(xs)

    @pipeline
    async def one() -> int:
        return await picky(load.submit(3), factor=2)

    async with Engine(home) as engine:
        result = await engine.run(one)
        assert result.step_results["picky"].load_inputs() == {"xs": [0, 1, 2], "factor": 2}
        assert result.status == "failed"


@pytest.mark.asyncio
async def test_a_run_without_calls_has_an_empty_result(home: str) -> None:
    @pipeline
    async def nothing() -> None:
        return None

    async with Engine(home) as engine:
        result = await engine.run(nothing)
        assert result.value is None
        assert dict(result.outputs) == dict(result.artifacts) == dict(result.step_results) == {}
        assert "nothing succeeded" in str(result)
        assert (await engine.get_run(result.run_id)).value is None


@pytest.mark.asyncio
async def test_a_value_that_cannot_be_stored_is_still_the_value_here(home: str) -> None:
    @pipeline
    async def gives_a_lambda() -> Any:
        return lambda: 42

    async with Engine(home) as engine:
        assert (await engine.run(gives_a_lambda)).value() == 42
