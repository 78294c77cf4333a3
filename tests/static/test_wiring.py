"""Steps find each other by the names of what they take and give."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from treadle import Engine, Pipeline, RunResult, pipeline, step
from treadle.errors import OptionError, RunInsideLoop


@step(outputs=["data"])
def load() -> list[int]:
    return [1, 2, 3, 4, 5]


@step(inputs=["data"], outputs=["processed"])
def process(data: list[int]) -> list[int]:
    return [2 * x for x in data]


@step(inputs=["processed"], outputs=["total"])
async def add(processed: list[int]) -> int:
    return sum(processed)


async def outputs(pipe: Pipeline, home: str, inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    async with Engine(home):
        return await pipe(inputs=inputs)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_steps_run_in_the_order_of_their_names_whatever_order_they_were_added_in(
    order: tuple[int, ...], default_home: object
) -> None:
    steps = (load, process, add)
    result = Pipeline("etl").add_steps(*[steps[i] for i in order]).run()
    assert result.success
    assert result.value == {"data": [1, 2, 3, 4, 5], "processed": [2, 4, 6, 8, 10], "total": 30}
    assert list(result.step_results) == ["load", "process", "add"]


def test_the_value_of_a_run_is_its_outputs_by_declared_name(default_home: object) -> None:
    result = Pipeline("etl").add_steps(load, process).run()
    assert result.value == result.outputs
    assert result.outputs == {"data": [1, 2, 3, 4, 5], "processed": [2, 4, 6, 8, 10]}


@pytest.mark.asyncio
async def test_the_value_can_be_read_from_the_log_later(home: str) -> None:
    async with Engine(home) as engine:
        run_id = (await engine.run(Pipeline("etl").add_steps(load, process, add))).run_id
    async with Engine(home) as engine:
        later = await engine.get_run(run_id)
        assert later.value == later.outputs == {"data": [1, 2, 3, 4, 5], "processed": [2, 4, 6, 8, 10], "total": 30}


@pytest.mark.asyncio
async def test_every_way_to_run_gives_the_same(home: str) -> None:
    pipe = Pipeline("etl").add_step(load).add_step(process).add_step(add)
    async with Engine(home) as engine:
        awaited = await pipe()
        handle = pipe.start()
        results: list[RunResult[dict[str, Any]]] = [
            await engine.run(pipe), await pipe.run_async(), await handle.wait(),
            await (await engine.start(pipe)).wait(),
        ]  # fmt: skip
        assert await handle == awaited
        assert all(result.value == awaited for result in results)
        assert awaited["total"] == 30


@pytest.mark.asyncio
async def test_run_inside_a_loop_says_what_to_do() -> None:
    with pytest.raises(RunInsideLoop, match=r"engine\.run"):
        Pipeline("etl").add_step(load).run()


@pytest.mark.asyncio
async def test_an_undeclared_parameter_takes_the_output_of_its_name_whichever_was_added_first(home: str) -> None:
    @step
    def clean(data: list[int]) -> list[int]:
        return data[1:]

    @step
    def count(clean: list[int], start: int = 10) -> int:
        return start + len(clean)

    found = await outputs(Pipeline("p").add_steps(count, clean, load), home)
    assert (found["clean"], found["count"]) == ([2, 3, 4, 5], 14)


@pytest.mark.parametrize("value", [("a", "b"), ["a", "b"], {"right": "b", "left": "a"}])
@pytest.mark.asyncio
async def test_several_outputs_come_as_a_tuple_a_list_or_a_dict(home: str, value: Any) -> None:
    @step(outputs=["left", "right"], version=str(value))
    def split() -> Any:
        return value

    @step(inputs=["right", "left"], outputs=["joined"])
    def join(left: str, right: str) -> str:
        return f"{left}-{right}"

    assert await outputs(Pipeline("p").add_steps(join, split), home) == {"left": "a", "right": "b", "joined": "a-b"}


@pytest.mark.asyncio
async def test_a_wrong_number_of_outputs_is_the_step_s_failure(home: str) -> None:
    @step(outputs=["left", "right"])
    def split() -> Any:
        return ("a", "b", "c")

    async with Engine(home) as engine:
        result = await engine.run(Pipeline("p").add_step(split))
        assert isinstance(result.step_results["split"].error, OptionError)
        assert "2 outputs" in str(result.error)


@pytest.mark.asyncio
async def test_a_declared_input_goes_to_the_parameter_at_its_position_if_none_has_its_name(home: str) -> None:
    @step(outputs=["data/raw", "labels"])
    def read() -> Any:
        return [1, 2], "ab"

    @step(inputs=["data/raw", "labels"], outputs=["pairs"])
    def pair(numbers: list[int], labels: str) -> list[Any]:
        return list(zip(numbers, labels, strict=True))

    found = await outputs(Pipeline("p").add_steps(pair, read), home)
    assert found["pairs"] == [(1, "a"), (2, "b")]


@pytest.mark.asyncio
async def test_declared_inputs_may_fill_positional_and_collecting_parameters(home: str) -> None:
    @step(outputs=["a", "b", "c"])
    def make() -> Any:
        return 1, 2, 3

    @step(inputs=["a"])
    def only(a: int, /, scale: int = 10) -> int:
        return a * scale

    @step(inputs=["a", "b", "c"])
    def several(first: int, *others: int) -> list[int]:
        return [first, *others]

    @step(inputs=["b"])
    def named(**values: int) -> dict[str, int]:
        return values

    found = await outputs(Pipeline("p").add_steps(make, only, several, named), home)
    assert (found["only"], found["several"], found["named"]) == (10, [1, 2, 3], {"b": 2})


@pytest.mark.asyncio
async def test_a_step_that_collects_keywords_gets_nothing_by_surprise(home: str) -> None:
    @step
    def catch(**values: Any) -> dict[str, Any]:
        return values

    pipe = Pipeline("p", context={"rate": 1}).add_steps(load, catch)
    assert (await outputs(pipe, home))["catch"] == {}


@pytest.mark.asyncio
async def test_an_input_without_a_producer_comes_from_the_run_and_the_caller_s_dict_stays_as_it_was(home: str) -> None:
    @step(inputs=["raw"], outputs=["data"])
    def read(raw: list[int]) -> list[int]:
        raw.append(9)
        return raw

    @step
    def undeclared(raw: list[int], data: list[int]) -> int:
        return len(raw) + len(data)

    given = {"raw": [1, 2]}
    found = await outputs(Pipeline("p").add_steps(undeclared, read, process), home, given)
    assert found == {"data": [1, 2, 9], "processed": [2, 4, 18], "undeclared": 5}
    assert given == {"raw": [1, 2]}


@pytest.mark.asyncio
async def test_an_upstream_output_beats_an_input_of_its_name_and_that_is_said(home: str, warned: Any) -> None:
    found = await outputs(Pipeline("p").add_steps(load, process), home, {"data": [7]})
    assert found["processed"] == [2, 4, 6, 8, 10]
    assert any("'data'" in text and "step load" in text for text in warned())


@pytest.mark.asyncio
async def test_none_is_an_ordinary_value(home: str) -> None:
    @step(outputs=["nothing"])
    def nothing() -> None:
        return None

    @step
    def see(nothing: None, given: object) -> bool:
        return nothing is None and given is None

    assert await outputs(Pipeline("p").add_steps(nothing, see), home, {"given": None}) == {"nothing": None, "see": True}


@pytest.mark.asyncio
async def test_a_step_added_twice_is_two_calls_with_names_by_the_order_of_adding(home: str) -> None:
    @step
    def use(tick_2: int) -> int:
        return tick_2

    @step(cache=False)
    def tick() -> int:
        return 1

    pipe = Pipeline("p").add_steps(use, tick, tick)
    async with Engine(home) as engine:
        result = await engine.run(pipe)
        assert set(result.step_results) == {"use", "tick", "tick_2"}
        assert result.outputs == {"tick": 1, "tick_2": 1, "use": 1}
        assert result.step_results["use"].inputs["tick_2"].producer == "tick_2"


@pytest.mark.asyncio
async def test_names_go_by_the_order_of_adding_and_not_by_the_order_of_running(home: str) -> None:
    def stage(take: str | None, give: str) -> Any:
        if take is None:

            @step(name="stage", outputs=[give])
            def first() -> str:
                return give

            return first

        @step(name="stage", inputs=[take], outputs=[give])
        def later(value: str) -> str:
            return f"{value}{give}"

        return later

    pipe = Pipeline("p").add_steps(stage("b", "c"), stage(None, "a"), stage("a", "b"))
    assert pipe.compile().order == ["stage_2", "stage_3", "stage"]
    async with Engine(home) as engine:
        result = await engine.run(pipe)
        assert {n: dict(r.outputs) for n, r in result.step_results.items()} == {
            "stage": {"c": "abc"}, "stage_2": {"a": "a"}, "stage_3": {"b": "ab"},
        }  # fmt: skip


@pytest.mark.asyncio
async def test_steps_of_a_factory_have_identities_and_cache_entries_of_their_own(home: str) -> None:
    performed: list[str] = []

    def trainer(model: str) -> Any:
        @step(outputs=[f"{model}_model"])
        def train() -> str:
            note(model)
            return f"trained {model}"

        return train

    def note(model: str) -> None:
        performed.append(model)

    def build() -> Pipeline:
        pipe = Pipeline("zoo")
        for model in ("xgboost", "random_forest", "neural_net"):
            pipe.add_step(trainer(model))
        return pipe

    async with Engine(home) as engine:
        first = await engine.run(build())
        assert first.outputs == {f"{m}_model": f"trained {m}" for m in ("xgboost", "random_forest", "neural_net")}
        assert set(first.step_results) == {"train", "train_2", "train_3"}
        assert len({r.artifacts.popitem()[1].digest for r in first.step_results.values()}) == 3
    assert sorted(performed) == ["neural_net", "random_forest", "xgboost"]


@pytest.mark.asyncio
async def test_factory_steps_hit_their_own_cache_entries(home: str) -> None:
    def trainer(model: str) -> Any:
        @step(outputs=[f"{model}_model"])
        def train() -> str:
            return f"trained {model}"

        return train

    async with Engine(home) as engine:
        await engine.run(Pipeline("zoo").add_steps(trainer("a"), trainer("b")))
        again = await engine.run(Pipeline("zoo").add_steps(trainer("b"), trainer("c")))
        assert {n: r.status for n, r in again.step_results.items()} == {"train": "cached", "train_2": "succeeded"}
        assert again.outputs == {"b_model": "trained b", "c_model": "trained c"}


@pytest.mark.asyncio
async def test_one_pipeline_runs_many_times_at_once(home: str) -> None:
    @step(inputs=["n"], outputs=["square"])
    async def square(n: int) -> int:
        await asyncio.sleep(0)
        return n * n

    pipe = Pipeline("squares").add_step(square)
    async with Engine(home):
        found = await asyncio.gather(*[pipe(inputs={"n": n}) for n in range(50)])
    assert found == [{"square": n * n} for n in range(50)]


@pytest.mark.asyncio
async def test_independent_steps_run_in_parallel_up_to_the_limit(home: str) -> None:
    running, most = 0, 0

    def busy(index: int) -> Any:
        @step(name=f"busy_{index}", cache=False)
        async def work() -> int:
            nonlocal running, most
            running += 1
            most = max(most, running)
            for _ in range(5):
                await asyncio.sleep(0)
            running -= 1
            return index

        return work

    steps = [busy(index) for index in range(6)]
    async with Engine(home) as engine:
        await engine.run(Pipeline("wide").add_steps(*steps))
        assert most == 6
        most = 0
        await engine.run(Pipeline("narrow", max_concurrency=2).add_steps(*steps))
        assert most == 2


@pytest.mark.asyncio
async def test_two_independent_steps_really_are_under_way_together(home: str) -> None:
    here, there = asyncio.Event(), asyncio.Event()

    @step(cache=False)
    async def one() -> None:
        here.set()
        await there.wait()

    @step(cache=False)
    async def other() -> None:
        there.set()
        await here.wait()

    async with Engine(home) as engine:
        assert (await asyncio.wait_for(engine.run(Pipeline("p").add_steps(one, other)), 10)).success


@pytest.mark.asyncio
async def test_a_pipeline_without_steps_gives_no_outputs(home: str) -> None:
    assert await outputs(Pipeline("empty"), home) == {}


@pytest.mark.asyncio
async def test_what_is_not_persisted_is_an_output_all_the_same_in_the_process_that_made_it(home: str) -> None:
    class Client:
        pass

    @step(outputs=["client"], persist=False)
    def connect() -> Client:
        return Client()

    @step(outputs=["answer"], cache=False)
    def ask(client: Client) -> str:
        return type(client).__name__

    async with Engine(home) as engine:
        result = await engine.run(Pipeline("p").add_steps(ask, connect))
        assert isinstance(result.outputs["client"], Client)
        assert result.outputs["answer"] == "Client"


@pytest.mark.asyncio
async def test_a_wired_pipeline_is_a_child_run_of_another_pipeline(home: str) -> None:
    @step
    def source() -> list[int]:
        return [5, 6]

    doubled = Pipeline("doubled").add_step(process)

    @pipeline
    async def outer() -> Any:
        return (await doubled(inputs={"data": source.submit()}))["processed"]

    @pipeline
    def blocking() -> Any:
        return doubled(inputs={"data": [1]})["processed"]  # type: ignore[index]

    async with Engine(home) as engine:
        assert (await engine.run(outer)).value == [10, 12]
        assert (await engine.run(blocking)).value == [2]
        runs = await engine.runs("doubled", children=True)
        assert len(runs) == 2


def test_steps_may_be_added_as_lists_and_the_pipeline_says_what_it_has() -> None:
    pipe = Pipeline("etl").add_steps([load, process], add)
    assert pipe.steps == (load, process, add)
    assert repr(pipe) == "<Pipeline etl of 3 steps>"


def test_a_changed_copy_and_its_origin_grow_apart() -> None:
    origin = Pipeline("etl").add_step(load)
    copy = origin.with_options(max_concurrency=1)
    origin.add_step(process)
    copy.add_step(process).add_step(add)
    assert (len(origin.steps), len(copy.steps)) == (2, 3)


def test_what_is_no_step_is_refused_where_it_is_added() -> None:
    def plain() -> int:
        return 1

    with pytest.raises(OptionError, match="decorate the function with @step"):
        Pipeline("p").add_step(plain)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"test_wiring\.py:\d+"):
        Pipeline("p").add_steps(Pipeline("q"))  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["static", "debug", "engine", "idempotency_key", "colour", "max_concurency"])
def test_options_that_a_pipeline_has_not_are_refused(option: str) -> None:
    with pytest.raises(OptionError):
        Pipeline("p", **{option: True})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [None, "", 3, load])
def test_a_pipeline_needs_a_name(name: Any) -> None:
    with pytest.raises(OptionError, match="name"):
        Pipeline(name)


@pytest.mark.parametrize("inputs", [[1], "data", {1: 2}])
@pytest.mark.asyncio
async def test_inputs_are_a_dict_by_name(home: str, inputs: Any) -> None:
    async with Engine(home) as engine:
        with pytest.raises(OptionError, match="inputs="):
            await engine.run(Pipeline("p").add_step(load), inputs=inputs)


@pytest.mark.asyncio
async def test_an_argument_that_run_does_not_have_is_a_type_error(home: str) -> None:
    async with Engine(home) as engine:
        with pytest.raises(TypeError, match="imputs"):
            await engine.run(Pipeline("p").add_step(load), imputs={})
