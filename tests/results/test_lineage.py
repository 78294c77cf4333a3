"""``artifact.lineage()``: back through every producer, across runs, child runs, cache hits and resumes."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from treadle import Engine, Pipeline, RunResult, pipeline, step
from treadle._runtime.views.lineage import MOST_LINES


@step
def load(n: int) -> list[int]:
    return list(range(100, 100 + n))


@step
def square(x: int) -> int:
    return x * x


@step
def total(xs: list[int]) -> int:
    return sum(xs)


@step(cache=False)
def label(x: int) -> str:
    return f"total is {x}"


@pipeline
async def report(n: int) -> str:
    xs = await load(n)
    value = await total(square.map(xs))
    return await label(value)


@pipeline
async def adds_one(x: int) -> int:
    return await picky(x)


FAILS: list[bool] = []


@step(cache=False)
async def picky(x: int) -> int:
    if FAILS:
        raise ValueError("not yet")
    return x + 1


@pipeline
async def two_times() -> int:
    return await picky(total.submit(load.submit(3)))


def test_explicit_and_inferred_producers_are_followed(home: Any) -> None:
    result = home.run(report, 3)
    lineage = result.artifacts["label"].lineage()
    assert lineage.producers() == ["label", "total", "square[0]", "square[1]", "square[2]"]
    assert lineage.inferred == {"x"}
    assert not lineage.inputs["x"][0].inferred
    lines = str(lineage).splitlines()
    assert lines[0] == f"label v1 by label of run {result.run_id}"
    assert lines[1] == "  x ~ total v1 by total"
    # Which of the three squares is stored first is up to the threads.
    assert re.fullmatch(r"    xs = square v[123] by square\[0\] \(plain: x\)", lines[2])
    assert len(lines) == 5
    assert repr(lineage) == "<Lineage of label v1, 5 producers in 1 runs>"


def test_a_cache_hit_leads_into_the_run_that_performed_it(home: Any) -> None:
    first, second = home.run(report, 3), home.run(report, 3)
    assert second.step_results["total"].cached
    lineage = second.artifacts["label"].lineage()
    assert lineage.runs() == [second.run_id, first.run_id]
    assert f"  x ~ total v1 by total of run {first.run_id}" in str(lineage).splitlines()


def test_child_runs_are_walked_through_in_both_directions(home: Any) -> None:
    @pipeline
    async def inner(x: int) -> int:
        return await total([x, 1000])

    @pipeline
    async def outer() -> str:
        return await label(await inner(await square(7)))

    result = home.run(outer)
    lineage = result.artifacts["label"].lineage()
    assert lineage.producers() == ["label", "total"]
    assert len(lineage.runs()) == 2
    assert re.search(r"^  x ~ run:inner v1 the value of run \w+$", str(lineage), re.MULTILINE)

    @pipeline
    async def whole(x: int) -> int:
        return await square(x)

    @pipeline
    async def around() -> int:
        return await whole(await total([3, 5]))

    result = home.run(around)

    async def newest() -> Any:
        async with Engine(home.path) as engine:
            return (await engine.artifact("square")).lineage()

    assert asyncio.run(newest()).producers() == ["square", "total"]


def test_a_resumed_run_keeps_its_lineage(home: Any) -> None:
    async def main() -> Any:
        async with Engine(home.path) as engine:
            FAILS.append(True)
            failed = await engine.run(two_times)
            assert not failed.success
            FAILS.clear()
            return await engine.resume(failed.run_id)

    result = asyncio.run(main())
    assert result.step_results["total"].reused
    assert result.artifacts["picky"].lineage().producers() == ["picky", "total", "load"]
    assert "2 reused" in str(result)


def test_a_long_chain_is_walked_and_its_tree_has_an_end(home: Any) -> None:
    @step(cache=False)
    async def tick(x: int) -> int:
        return x + 1

    @pipeline
    async def chain() -> int:
        future = tick.submit(5)
        for _ in range(1500):
            future = tick.submit(future)
        return await future

    lineage = home.run(chain).artifacts["tick_1501"].lineage()
    assert len(lineage.producers()) == 1501
    lines = str(lineage).splitlines()
    assert len(lines) == MOST_LINES + 1
    assert lines[-1] == "... of 1501 producers in 1 runs"
    assert max(map(len, lines)) < 120


def test_what_was_pruned_is_said_to_be(home: Any) -> None:
    first = home.run(report, 2)
    second = home.run(report, 2)

    async def main() -> Any:
        async with Engine(home.path) as engine:
            await engine.prune(keep_last=1)
            return (await engine.get_run(second.run_id)).artifacts["label"].lineage()

    text = str(asyncio.run(main()))
    assert f"by total of run {first.run_id} (its run was pruned)" in text


def test_a_wide_map_is_one_box_and_a_few_lines(home: Any) -> None:
    lineage = home.run(report, 500).artifacts["total"].lineage()
    assert "xs = ... and 492 more" in str(lineage)
    graph = lineage.to_mermaid()
    assert len(re.findall(r'\["', graph)) == 2
    assert "by square[500]" in graph
    assert graph.count("-->") == 1
    assert lineage.to_dot().count("->") == 1


def test_an_artifact_from_elsewhere_is_followed(home: Any) -> None:
    @pipeline
    async def uses(value: Any) -> str:
        return await label(value)

    async def main() -> Any:
        async with Engine(home.path) as engine:
            first = await engine.run(report, 3)
            artifact = first.artifacts["total"]

            @pipeline
            async def again() -> str:
                return await label(artifact)

            second = await engine.run(again)
            return first, second

    first, second = asyncio.run(main())
    given = second.step_results["label"].inputs["x"]
    assert (given.producer, given.inferred) == ("total", False)
    assert [artifact.id for artifact in given.artifacts] == [first.artifacts["total"].id]
    assert second.artifacts["label"].lineage().runs() == [second.run_id, first.run_id]


@pytest.mark.asyncio
async def test_inputs_have_their_artifacts(home: Any) -> None:
    async with Engine(home.path) as engine:
        result = await engine.run(report, 3)
        inputs = result.step_results["total"].inputs["xs"]
        assert [artifact.read() for artifact in inputs.artifacts] == [10000, 10201, 10404]
        inferred = result.step_results["label"].inputs["x"]
        assert (inferred.producer, inferred.inferred) == ("total", True)
        assert inferred.artifacts[0].digest == inferred.digest
        plain = result.step_results["load"].inputs["n"]
        assert (plain.producer, plain.artifacts) == (None, [])


def test_an_artifact_as_an_argument_of_a_pipeline_keeps_its_lineage_across_runs(home: Any) -> None:
    @pipeline
    async def first() -> list[int]:
        return await load(3)

    @pipeline
    async def second(xs: list[int], more: dict[str, Any]) -> str:
        assert xs == [100, 101, 102] == more["xs"]  # it arrives as its value
        return await label(await total(xs))

    given = home.run(first)
    artifact = given.artifacts["load"]
    result = home.run(second, artifact, {"xs": artifact})
    lineage = result.artifacts["label"].lineage()
    assert lineage.producers() == ["label", "total", "load"]
    assert lineage.runs() == [result.run_id, given.run_id]
    assert result.step_results["total"].inputs["xs"].digest == artifact.digest


def test_an_artifact_among_the_inputs_of_a_wired_pipeline_keeps_its_lineage(home: Any) -> None:
    @pipeline
    async def first() -> list[int]:
        return await load(4)

    given = home.run(first)
    wired = Pipeline("sums").add_steps(total.with_options(inputs=["xs"], outputs=["sum"]))
    result = home.run(wired, {"xs": given.artifacts["load"]})
    assert result.outputs == {"sum": 406}
    assert result.artifacts["total"].lineage().runs() == [result.run_id, given.run_id]


def test_a_resumed_run_still_knows_the_artifact_that_was_its_argument(home: Any) -> None:
    @pipeline
    async def first() -> int:
        return await square(12)

    given = home.run(first)
    FAILS.append(True)
    try:
        failed = home.run(adds_one, given.artifacts["square"])
        assert not failed.success
        assert failed.error is not None
    finally:
        FAILS.clear()

    async def resume() -> RunResult[Any]:
        async with Engine(home.path) as engine:
            return await engine.resume(failed.run_id)

    resumed = asyncio.run(resume())
    assert resumed.value == 145
    assert resumed.artifacts["picky"].lineage().runs() == [resumed.run_id, given.run_id]


@pytest.mark.asyncio
async def test_an_artifact_of_another_home_is_a_value_without_a_past_here(tmp_path: Any) -> None:
    @pipeline
    async def first() -> int:
        return await square(12)

    @pipeline
    async def second(x: int) -> int:
        return await square(x)

    async with Engine(tmp_path / "one") as one:
        artifact = (await one.run(first)).artifacts["square"]
    async with Engine(tmp_path / "two") as two:
        await two.run(first)  # its artifact has the same number
        result = await two.run(second, artifact)
        assert result.value == 144 * 144
        assert result.artifacts["square"].lineage().runs() == [result.run_id]
