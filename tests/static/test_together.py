"""Static pipelines with what other options of steps bring: conditions, fallbacks, groups, and many steps."""

from __future__ import annotations

from typing import Any

import pytest

from treadle import Engine, Model, Pipeline, on_failure, pipeline, retry, step, when


@step(outputs=["number"])
def load(start: int) -> int:
    return start


@step(outputs=["large"])
@when(lambda number: number > 100)
def only_large(number: int) -> int:
    return number * 2


@step(outputs=["seen"])
def see(large: int = -1) -> int:
    return large


@step(outputs=["needed"])
def need(large: int) -> int:
    return large


@pytest.mark.asyncio
async def test_a_step_that_a_condition_leaves_out_is_no_output_and_a_default_stands_in(home: str) -> None:
    pipe = Pipeline("p").add_steps(need, see, only_large, load)
    async with Engine(home) as engine:
        small = await engine.run(pipe, inputs={"start": 1})
        assert small.success
        assert small.value == small.outputs == {"number": 1, "seen": -1}
        assert small.step_results["only_large"].skip_reason == "condition"
        assert small.step_results["need"].skip_reason == "condition"
        assert await pipe(inputs={"start": 1}) == {"number": 1, "seen": -1}
        large = await engine.run(pipe, inputs={"start": 101})
        assert large.outputs == {"number": 101, "large": 202, "seen": 202, "needed": 202}


@pytest.mark.asyncio
async def test_a_condition_in_a_static_function_works_as_in_a_dynamic_one(home: str) -> None:
    @pipeline(static=True)
    def p(start: int) -> Any:
        large = only_large(load(start))
        return [large, see(large), [need(large)]]

    async with Engine(home):
        assert await p(1) == [None, -1, [None]]
        assert await p(200) == [400, 400, [400]]


@pytest.mark.asyncio
async def test_a_condition_is_an_upstream_of_a_child_run_too(home: str) -> None:
    @pipeline
    async def child(number: int | None) -> str:
        return f"child of {number}"

    @pipeline(static=True)
    def p(start: int) -> Any:
        return child(only_large(load(start)))

    async with Engine(home):
        assert await p(1) == "child of None"
        assert await p(300) == "child of 600"


@pytest.mark.asyncio
async def test_marks_of_steps_count_in_wired_pipelines(home: str) -> None:
    @step(outputs=["data"], cache=False)
    @retry(max_attempts=2, delay=0)
    @on_failure(lambda: {"status": "unavailable"})
    def fetch() -> dict[str, str]:
        raise OSError("down")

    async with Engine(home) as engine:
        result = await engine.run(Pipeline("p").add_step(fetch))
        assert result.outputs == {"data": {"status": "unavailable"}}
        assert result.step_results["fetch"].fallback
        assert result.step_results["fetch"].attempts == 2


@pytest.mark.asyncio
async def test_models_pass_between_wired_steps(home: str) -> None:
    @step(outputs=["model"])
    def train() -> Model[list[int]]:
        return Model([1, 2], name="m")

    @step(outputs=["size"])
    def measure(model: Model[list[int]]) -> int:
        return len(model.value)

    async with Engine(home) as engine:
        result = await engine.run(Pipeline("p").add_steps(measure, train))
        assert result.outputs["size"] == 2


@pytest.mark.asyncio
async def test_groups_limits_and_wide_graphs_go_together(home: str) -> None:
    def work(index: int) -> Any:
        @step(name=f"work_{index}", outputs=[f"w{index}"], execution_group="g", max_in_flight=2)
        async def body() -> int:
            return index

        return body

    @step
    def total(**parts: int) -> int:
        return sum(parts.values())

    count = 200
    names = [f"w{index}" for index in range(count)]
    pipe = Pipeline("p").add_steps(total.with_options(inputs=names), [work(index) for index in range(count)])
    async with Engine(home, max_concurrency=8) as engine:
        result = await engine.run(pipe)
        assert result.outputs["total"] == sum(range(count))
        assert pipe.compile().edges[-1] == (f"work_{count - 1}", "total")
