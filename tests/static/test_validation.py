"""A static pipeline is checked before anything runs: all that is wrong comes in one error, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treadle import Engine, Pipeline, pipeline, step
from treadle.errors import ValidationError

performed: list[str] = []


@step(outputs=["data"])
def load() -> list[int]:
    performed.append("load")
    return [1]


@step(inputs=["data"], outputs=["model"])
def train(data: list[int], epochs: int = 3) -> str:
    performed.append("train")
    return "model"


def problems_of(pipe: Any, *args: Any, **kwargs: Any) -> tuple[str, ...]:
    with pytest.raises(ValidationError) as caught:
        pipe.compile(*args, **kwargs)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def only_problem(pipe: Any, *args: Any, **kwargs: Any) -> str:
    (problem,) = problems_of(pipe, *args, **kwargs)
    return problem


# -- each kind of problem -----------------------------------------------------------------


def test_a_declared_input_that_nothing_gives_is_named_with_the_step_and_its_place() -> None:
    problem = only_problem(Pipeline("p").add_step(train))
    assert "step train" in problem
    assert "'data'" in problem
    assert "test_validation.py:" in problem


def test_a_mistyped_input_is_answered_with_the_name_that_was_meant() -> None:
    @step(inputs=["dta"])
    def clean(data: list[int]) -> int:
        return 1

    assert "did you mean 'data'?" in only_problem(Pipeline("p").add_steps(load, clean))


def test_a_parameter_that_nothing_gives_is_named() -> None:
    @step
    def clean(dataa: list[int], rate: float) -> int:
        return 1

    first, second = problems_of(Pipeline("p", context={"rat": 1}).add_steps(load, clean))
    assert "'dataa'" in first
    assert "did you mean 'data'?" in first
    assert "'rate'" in second
    assert "did you mean 'rat'?" in second


def test_two_producers_of_one_output_are_both_named() -> None:
    @step(outputs=["data"])
    def fetch() -> list[int]:
        return []

    problem = only_problem(Pipeline("p").add_steps(load, fetch))
    assert "'data'" in problem
    assert "step load" in problem
    assert "step fetch" in problem


def test_a_step_with_a_declared_output_cannot_be_added_twice() -> None:
    assert "with_options(outputs=" in only_problem(Pipeline("p").add_steps(load, load))


@pytest.mark.parametrize("length", [1, 2, 3, 50])
def test_a_circle_is_named_from_step_to_step(length: int) -> None:
    def link(index: int) -> Any:
        @step(name=f"s{index}", inputs=[f"a{(index - 1) % length}"], outputs=[f"a{index}"])
        def body(value: int) -> int:
            return value

        return body

    @step(inputs=["a0"])
    def behind(value: int) -> int:
        return value

    problem = only_problem(Pipeline("p").add_steps(behind, *[link(index) for index in range(length)]))
    names = [f"s{index}" for index in range(length)]
    assert " -> ".join([*names, names[0]]) in problem


def test_circles_that_do_not_touch_are_all_named() -> None:
    def link(take: str, give: str) -> Any:
        @step(name=give, inputs=[take], outputs=[give])
        def body(value: int) -> int:
            return value

        return body

    pipe = Pipeline("p").add_steps(link("b", "a"), link("a", "b"), link("d", "c"), link("c", "d"))
    first, second = problems_of(pipe)
    assert first.endswith("in a circle: a -> b -> a; rename what one of them takes, or what it gives")
    assert "in a circle: c -> d -> c; rename" in second


def test_a_parameter_that_is_named_as_the_step_s_own_output_is_no_circle() -> None:
    @step(outputs=["data"])
    def clean(data: list[int]) -> list[int]:
        return data

    assert Pipeline("p").add_step(clean).compile(inputs=["data"]).edges == []


def test_types_that_cannot_fit_are_named_with_both_steps() -> None:
    @step(inputs=["data"])
    def read(data: str) -> str:
        return data

    problem = only_problem(Pipeline("p").add_steps(load, read))
    assert "step read" in problem
    assert "'data'" in problem
    assert "str" in problem
    assert "list[int]" in problem
    assert "step load" in problem


def test_types_of_single_outputs_are_compared() -> None:
    @step(outputs=["rows", "name"])
    def read() -> tuple[list[int], str]:
        return [], ""

    @step
    def count(rows: list[int], name: bytes) -> int:
        return 1

    problem = only_problem(Pipeline("p").add_steps(read, count))
    assert "'name'" in problem
    assert "bytes" in problem


def test_an_unknown_runtime_is_named() -> None:
    @step(runtime="moon")
    def far() -> int:
        return 1

    assert "'moon'" in only_problem(Pipeline("p").add_step(far))


@pytest.mark.asyncio
async def test_impossible_resources_are_a_problem_where_the_engine_refuses_them(home: str) -> None:
    @step(resources={"gpu": 64})
    def heavy() -> int:
        return 1

    async with Engine(home, overcommit="error") as engine:
        with pytest.raises(ValidationError, match="64") as caught:
            await engine.run(Pipeline("p").add_steps(heavy, train))
        assert len(caught.value.problems) == 2


def test_an_input_that_no_step_takes_is_answered_with_the_name_that_was_meant() -> None:
    assert "did you mean 'epochs'?" in only_problem(Pipeline("p").add_steps(load, train), {"epoch": 5})


def test_a_declared_input_without_a_parameter_is_named() -> None:
    @step(inputs=["data", "labels"])
    def one(data: list[int]) -> int:
        return 1

    assert "'labels'" in only_problem(Pipeline("p").add_steps(load, one), {"labels": []})


def test_all_problems_come_in_one_error() -> None:
    @step(inputs=["dta"], outputs=["model"], runtime="moon")
    def clean(data: list[int], rate: float) -> list[int]:
        return data

    @step(inputs=["x"], outputs=["y"])
    def one(x: int) -> str:
        return ""

    @step(inputs=["y"], outputs=["x"])
    def other(y: int) -> int:
        return y

    pipe = Pipeline("p").add_steps(load, train, clean, one, other)
    with pytest.raises(ValidationError) as caught:
        pipe.run(inputs={"nobody": 1})
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 7
    for part in ("2 producers", "'dta'", "'rate'", "'nobody'", "one -> other -> one", "takes int", "'moon'"):
        assert part in text
    assert "for 7 reasons" in str(caught.value)
    assert "  7. " in str(caught.value)


# -- nothing has happened -----------------------------------------------------------------


@pytest.mark.parametrize("way", ["run", "run_async", "start", "call", "engine"])
def test_nothing_runs_and_nothing_is_written_when_validation_fails(
    way: str, default_home: Path, drive: Callable[[Any], Any]
) -> None:
    performed.clear()
    pipe = Pipeline("p").add_steps(load, train)
    bad = {"unknown": 1}

    async def asynchronous() -> None:
        match way:
            case "run_async":
                await pipe.run_async(bad)
            case "start":
                await pipe.start(bad).accepted()
            case "call":
                await pipe(bad)
            case _:
                await Engine(default_home).run(pipe, inputs=bad)

    with pytest.raises(ValidationError) if way != "engine" else pytest.raises(Exception, match="open"):
        if way == "run":
            pipe.run(bad)
        else:
            drive(asynchronous())
    assert performed == []
    assert not default_home.exists()


@pytest.fixture
def drive() -> Callable[[Any], Any]:
    import asyncio

    return asyncio.run


@pytest.mark.asyncio
async def test_an_open_engine_knows_nothing_of_a_pipeline_that_is_not_sound(home: str) -> None:
    @pipeline(static=True)
    def bad() -> Any:
        return train(load(), "many", "too", "much")

    async with Engine(home) as engine:
        events = engine.metrics()["log_events"]
        for target in (Pipeline("p").add_step(train), bad):
            with pytest.raises(ValidationError):
                await engine.run(target)
            with pytest.raises(ValidationError):
                await engine.start(target)
        assert await engine.runs(children=True) == []
        assert engine.metrics()["log_events"] == events


@pytest.mark.asyncio
async def test_a_child_that_is_not_sound_fails_its_parent(home: str) -> None:
    @pipeline
    async def outer() -> Any:
        return await Pipeline("p").add_step(train)()

    async with Engine(home) as engine:
        result = await engine.run(outer)
        assert isinstance(result.error, ValidationError)
        assert len(await engine.runs(children=True)) == 1


# -- what is allowed ----------------------------------------------------------------------


def test_compiling_takes_names_where_the_values_are_not_there_yet() -> None:
    pipe = Pipeline("p").add_step(train)
    assert pipe.compile(inputs=["data"]).order == ["train"]
    assert pipe.compile({"data": [1]}, context={"epochs": 9}).order == ["train"]


def test_a_declared_input_with_a_default_may_be_missing_and_that_is_said(warned: Callable[[], list[str]]) -> None:
    @step(inputs=["data", "labls"])
    def fit(data: list[int], labels: object = None) -> int:
        return 1

    assert Pipeline("p").add_steps(load, fit).compile().edges == [("load", "fit")]
    (text,) = warned()
    assert "'labls'" in text


def test_a_step_beside_the_graph_is_a_warning(warned: Callable[[], list[str]]) -> None:
    @step
    def forgotten() -> int:
        return 1

    assert Pipeline("p").add_steps(load, train, forgotten).compile().order == ["load", "train", "forgotten"]
    (text,) = warned()
    assert "nobody uses step forgotten" in text


def test_of_many_steps_that_nobody_uses_a_few_are_named(warned: Callable[[], list[str]]) -> None:
    @step
    def forgotten() -> int:
        return 1

    Pipeline("p").add_steps(load, train, [forgotten] * 50).compile()
    *named, rest = warned()
    assert ["nobody uses step forgotten" in text for text in named] == [True] * len(named)
    assert f"nobody uses {50 - len(named)} more steps" in rest

    @pipeline(static=True)
    def careless() -> Any:
        for _ in range(50):
            forgotten()
        return train(load())

    careless.compile()
    *named, rest = warned()[len(named) + 1 :]
    assert ["nobody uses what step forgotten" in text for text in named] == [True] * len(named)
    assert f"nobody uses what {50 - len(named)} more steps" in rest


def test_steps_that_have_nothing_to_do_with_each_other_are_no_warning(warned: Callable[[], list[str]]) -> None:
    @step
    def one() -> int:
        return 1

    @step
    def other() -> int:
        return 1

    Pipeline("p").add_steps(one, other).compile()
    assert warned() == []


def test_adding_a_step_mends_a_pipeline_that_was_not_sound() -> None:
    pipe = Pipeline("p").add_step(train)
    problems_of(pipe)
    assert pipe.add_step(load).compile().order == ["load", "train"]
