"""The page on execution: static and dynamic pipelines, synchronous and concurrent calls, one meaning everywhere."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from treadle import Pipeline, current, pipeline, step
from treadle.errors import ValidationError

MODES = ["static", "wired", "dynamic async", "dynamic def", "submitted"]


@step(outputs=["numbers"])
def load() -> list[int]:
    return [1, 2, 3]


@step(outputs=["total"])
def add(numbers: list[int]) -> int:
    current().log_metadata(rows=len(numbers))
    current().progress(1, 1)
    return sum(numbers)


@pipeline(static=True, name="sums")
def static():
    return add(load())


@pipeline(name="sums")
async def dynamic():
    return await add(await load())


@pipeline(name="sums")
def dynamic_def():
    return add(load())


@pipeline(name="sums")
async def submitted():
    return await add.submit(load.submit())


def run(mode: str) -> Any:
    wired = Pipeline("sums")
    wired.add_steps(add, load)
    chosen: Any = {
        "static": static, "wired": wired, "dynamic async": dynamic, "dynamic def": dynamic_def, "submitted": submitted,
    }[mode]  # fmt: skip
    return chosen.run()


@pytest.mark.parametrize("mode", MODES)
def test_the_core_semantics_are_the_same_in_every_mode(mode: str) -> None:
    result = run(mode)
    assert result.success
    assert (result.value if mode != "wired" else result.outputs["total"]) == 6
    # outputs are versioned artifacts
    artifact = result.artifacts["add"]
    assert (artifact.name, artifact.version, artifact.read()) == ("total", 1, 6)
    # lineage and metadata
    assert result.step_results["add"].inputs["numbers"].producer == "load"
    assert artifact.lineage().producers() == ["add", "load"]
    assert result.step_results["add"].metadata == {"rows": 3}
    # status
    assert [call.status for call in result.step_results.values()] == ["succeeded", "succeeded"]
    # the cache
    again = run(mode)
    assert {name: call.status for name, call in again.step_results.items()} == {"load": "cached", "add": "cached"}
    assert again.artifacts["add"].version == 1


def test_the_cache_of_one_mode_serves_the_others() -> None:
    assert not run(MODES[0]).step_results["add"].cached
    for mode in MODES[1:]:
        assert run(mode).step_results["add"].cached


def test_a_static_pipeline_is_compiled_and_validated_before_any_step_runs() -> None:
    ran: list[int] = []

    @step
    def first() -> int:
        ran.append(1)
        return 1

    @step
    def second(x: str) -> str:
        return x

    @pipeline(static=True)
    def wrong():
        return second(first())

    graph = static.compile()
    assert list(graph.order) == ["load", "add"]
    assert ("load", "add") in graph.edges
    with pytest.raises(ValidationError):
        wrong.run()
    assert ran == []


def test_a_static_pipeline_runs_independent_steps_at_once() -> None:
    @step(cache=False)
    def left():
        MEETING.wait()
        return 1

    @step(cache=False)
    def right():
        MEETING.wait()
        return 2

    @pipeline(static=True)
    def both():
        return [left(), right()]

    assert both.run().value == [1, 2]


MEETING = threading.Barrier(2, timeout=20)


def test_dynamic_synchronous_inline_blocks_until_the_step_is_done() -> None:
    order: list[str] = []

    @step(cache=False)
    def work():
        order.append("step")
        return 1

    @pipeline
    def p():
        value = work()
        order.append("pipeline")
        return value

    assert p.run().value == 1
    assert order == ["step", "pipeline"]


def test_dynamic_concurrent_inline_goes_on_and_waits_where_results_are_consumed() -> None:
    gate = threading.Event()
    where: list[int] = []

    @step(cache=False)
    def work():
        where.append(threading.get_ident())
        assert gate.wait(20)
        return 1

    @pipeline
    def p():
        future = work.submit()
        was_done = future.done()
        gate.set()
        where.append(threading.get_ident())
        return was_done, future.result()

    assert p.run().value == (False, 1)
    assert where[0] != where[1]


# -- isolated -----------------------------------------------------------------------------


@pytest.fixture
def isolated() -> Iterator[Any]:
    """Steps that other processes import from this folder."""
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    import isolated_page_steps

    yield isolated_page_steps
    sys.path.remove(folder)


def test_a_static_pipeline_with_isolated_steps_has_the_same_semantics(isolated: Any) -> None:
    @pipeline(static=True, name="sums")
    def apart():
        return isolated.add(isolated.load()), isolated.elsewhere.map([1, 2])

    assert apart.compile().edges == [("load", "add")]
    result = apart.run()
    total, found = result.value
    assert total == 6
    assert [x for x, _ in found] == [1, 2]
    assert os.getpid() not in {pid for _, pid in found}
    artifact = result.artifacts["add"]
    assert (artifact.name, artifact.version, artifact.read()) == ("total", 1, 6)
    assert artifact.lineage().producers() == ["add", "load"]
    assert result.step_results["add"].inputs["numbers"].producer == "load"
    assert result.step_results["add"].metadata == {"rows": 3}
    again = apart.run()
    assert [again.step_results[name].status for name in ("load", "add")] == ["cached", "cached"]


def test_dynamic_synchronous_isolated_blocks_until_the_job_is_done(isolated: Any) -> None:
    @pipeline
    def p():
        x, pid = isolated.elsewhere(7)  # the value itself: it can be taken apart
        return x + 1, pid

    value, pid = p.run().value
    assert value == 8
    assert pid != os.getpid()


def test_dynamic_concurrent_isolated_goes_on_and_waits_where_results_are_consumed(
    isolated: Any, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    @pipeline
    def p():
        future = isolated.told.submit(str(pipe))
        was_done = future.done()
        pipe.write_text("go")  # blocks until the step reads, which it does while this goes on
        return was_done, future.result()

    assert p.run().value == (False, "go")
