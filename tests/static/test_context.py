"""Parameters filled by name from the context of a run, in wired, static and dynamic pipelines."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from treadle import Engine, Pipeline, context, pipeline, step, unmapped
from treadle.errors import OptionError, ValidationError


@step(outputs=["data"])
def load() -> list[int]:
    return [1, 2]


@step(outputs=["model"])
def train(data: list[int], learning_rate: float, epochs: int = 1) -> str:
    return f"{len(data)} rows, {learning_rate}, {epochs}"


@step
def scale(x: int, factor: int = 1) -> int:
    return x * factor


# -- the object ---------------------------------------------------------------------------


def test_a_context_is_a_mapping_with_attributes() -> None:
    ctx = context(rate=0.1, epochs=3)
    assert (ctx.rate, ctx["epochs"], len(ctx), dict(ctx)) == (0.1, 3, 2, {"rate": 0.1, "epochs": 3})
    assert ctx == {"rate": 0.1, "epochs": 3}
    assert repr(ctx) == "context(rate=0.1, epochs=3)"
    assert context(items=1)["items"] == 1


def test_a_context_cannot_be_changed() -> None:
    ctx = context(rate=0.1)
    with pytest.raises(AttributeError, match=r"ctx \| "):
        ctx.rate = 2
    with pytest.raises(AttributeError):
        del ctx.rate
    with pytest.raises(TypeError):
        ctx["rate"] = 2  # type: ignore[index]
    assert ctx | {"rate": 2} == {"rate": 2}
    assert {"rate": 2, "a": 1} | ctx == {"rate": 0.1, "a": 1}
    assert ctx == {"rate": 0.1}


def test_an_attribute_that_is_not_there_says_what_is() -> None:
    with pytest.raises(AttributeError, match="it has rate"):
        _ = context(rate=0.1).rat


def test_a_context_can_be_copied_and_pickled() -> None:
    ctx = context(rate=[0.1])
    assert copy.deepcopy(ctx) == pickle.loads(pickle.dumps(ctx)) == ctx


# -- precedence ---------------------------------------------------------------------------


def test_a_wired_step_is_filled_from_the_context(default_home: object) -> None:
    pipe = Pipeline("training", context=context(learning_rate=0.01, epochs=5, unused=1)).add_steps(train, load)
    assert pipe.run().outputs["model"] == "2 rows, 0.01, 5"


@pytest.mark.asyncio
async def test_upstream_beats_inputs_and_inputs_beat_the_context_and_that_beats_the_default(home: str) -> None:
    @step
    def show(data: Any, given: Any = "default", told: Any = "default", rest: Any = "default") -> list[Any]:
        return [data, given, told, rest]

    pipe = Pipeline("p", context=context(data="context", given="context", told="context")).add_steps(load, show)
    async with Engine(home):
        assert (await pipe(inputs={"given": "input"}))["show"] == [[1, 2], "input", "context", "default"]


@pytest.mark.asyncio
async def test_a_declared_input_comes_from_the_context_too_also_by_position(home: str) -> None:
    @step(inputs=["anything"])
    def only(rate: float, /) -> float:
        return rate

    @step(inputs=["rate"])
    def named(rate: float) -> float:
        return rate

    async with Engine(home):
        assert await Pipeline("p", context={"rate": 2.0}).add_steps(only, named)() == {"only": 2.0, "named": 2.0}


@pytest.mark.asyncio
async def test_the_context_of_one_run_never_leaks_into_the_next(home: str) -> None:
    own = {"learning_rate": 0.1}
    pipe = Pipeline("p", context=own).add_steps(load, train)
    async with Engine(home) as engine:
        assert (await pipe(context={"epochs": 9}))["model"] == "2 rows, 0.1, 9"
        assert (await engine.run(pipe, context=context(learning_rate=5))).outputs["model"] == "2 rows, 5, 1"
        assert (await pipe())["model"] == "2 rows, 0.1, 1"
        own["learning_rate"] = 7
        assert (await pipe())["model"] == "2 rows, 0.1, 1"


@pytest.mark.asyncio
async def test_a_changed_copy_lays_its_context_over_the_pipeline_s(home: str) -> None:
    @pipeline(context={"factor": 2})
    async def p(n: int) -> int:
        return await scale(n)

    async with Engine(home):
        assert await p(1) == 2
        assert await p.with_options(context={"factor": 3})(1) == 3
        assert await p.with_options(context={"other": 3})(1) == 2
        assert await p(1) == 2


# -- dynamic pipelines --------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_dynamic_pipeline_fills_calls_submits_and_maps(home: str) -> None:
    @pipeline(context=context(factor=10, weights=[1, 2]))
    async def p() -> Any:
        return [
            await scale(1), await scale.submit(2), await scale(3, 4), await scale(3, factor=5), await scale.map([1, 2]),
            await scale.map([1, 2], factor=[3, 4]), await scale.map([1, 2], unmapped(7)), await weigh(1),
            await weigh.map([1]), await scale.product([1, 2], factor=[1]), await catch(1),
        ]  # fmt: skip

    @step
    def weigh(x: int, weights: list[int]) -> list[int]:
        weights.append(x)
        return weights

    @step
    def catch(*args: Any, **kwargs: Any) -> Any:
        return [list(args), kwargs]

    async with Engine(home):
        assert await p() == [
            10, 20, 12, 15, [10, 20], [3, 8], [7, 14], [1, 2, 1], [[1, 2, 1]], [1, 2], [[1], {}],
        ]  # fmt: skip


def test_a_def_pipeline_is_filled_too(default_home: object) -> None:
    @pipeline(context={"factor": 10})
    def p() -> Any:
        return scale(1), scale.submit(2).result(), scale.map([3]).result()

    assert p.run().value == (10, 20, [30])


@pytest.mark.asyncio
async def test_what_is_missing_all_the_same_is_a_type_error(home: str) -> None:
    @pipeline(context={"factor": 10})
    async def p() -> Any:
        return await scale()  # type: ignore[call-arg]

    async with Engine(home) as engine:
        assert isinstance((await engine.run(p)).error, TypeError)


@pytest.mark.asyncio
async def test_a_child_run_has_its_parent_s_context_under_its_own(home: str) -> None:
    @step
    def show(x: int, a: str = "-", b: str = "-", c: str = "-") -> str:
        return f"{a}{b}{c}"

    @pipeline(context={"b": "child", "c": "child"})
    async def inner() -> Any:
        return await show(1)

    wired = Pipeline("wired", context={"b": "wired", "x": 1}).add_step(show)

    @pipeline(static=True, context={"c": "static"})
    def fixed() -> Any:
        return show(1)

    @pipeline(context={"a": "parent", "b": "parent"})
    async def outer() -> Any:
        return [await inner(), (await wired())["show"], await fixed(), await show(1)]

    async with Engine(home):
        assert await outer() == [
            "parentchildchild", "parentwired-", "parentparentstatic", "parentparent-",
        ]  # fmt: skip


@pytest.mark.asyncio
async def test_outside_of_a_run_and_in_a_step_s_body_nothing_is_filled(home: str) -> None:
    @step
    def body() -> int:
        return scale(3)

    @pipeline(context={"factor": 10})
    async def p() -> Any:
        return await body()

    async with Engine(home):
        assert await p() == 3
    assert scale(3) == 3


# -- static functions ---------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_static_function_is_filled_and_checked_with_its_context(home: str) -> None:
    @pipeline(static=True)
    def p() -> Any:
        return train(load())  # type: ignore[call-arg]

    with pytest.raises(ValidationError, match="learning_rate"):
        p.compile()
    filled = p.with_options(context={"learning_rate": 1})
    assert filled.compile().order == ["load", "train"]
    async with Engine(home):
        assert await filled() == "2 rows, 1, 1"


# -- keys ---------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_value_that_a_step_takes_is_part_of_its_key_and_any_other_is_not(home: str) -> None:
    pipe = Pipeline("p", context=context(learning_rate=0.1)).add_steps(load, train)
    async with Engine(home) as engine:

        async def cached(**values: Any) -> list[bool]:
            result = await engine.run(pipe, context=values)
            return [result.step_results[name].cached for name in ("load", "train")]

        assert await cached() == [False, False]
        assert await cached() == [True, True]
        assert await cached(unrelated=object()) == [True, True]
        assert await cached(learning_rate=0.2) == [True, False]
        assert await cached(epochs=2) == [True, False]
        assert await cached(epochs=1) == [True, True]  # the default, written out


@pytest.mark.asyncio
async def test_a_filled_argument_has_the_key_of_an_equal_literal(home: str) -> None:
    @pipeline
    async def given(n: int) -> int:
        return await scale(n, 5)

    @pipeline(context={"factor": 5})
    async def filled(n: int) -> int:
        return await scale(n)

    async with Engine(home) as engine:
        await engine.run(given, 1)
        assert (await engine.run(filled, 1)).step_results["scale"].cached


@pytest.mark.asyncio
async def test_a_context_that_cannot_be_stored_makes_a_run_that_cannot_be_recovered(home: str) -> None:
    class Client:
        def __reduce__(self) -> Any:
            raise TypeError("not me")

    @step(cache=False)
    def ask(client: Client) -> str:
        return type(client).__name__

    async with Engine(home) as engine:
        result = await engine.run(Pipeline("p", context={"client": Client()}).add_step(ask))
        assert result.outputs == {"ask": "Client"}
        assert not result.recoverable


@pytest.mark.parametrize("wrong", [3, "rate", ["rate"], {1: 2}, {"a b": 1}, None])
def test_a_context_is_given_by_names(wrong: Any) -> None:
    with pytest.raises(OptionError, match="context="):
        Pipeline("p", context=wrong)
    with pytest.raises(OptionError, match="context="):
        pipeline(context=wrong)


@pytest.mark.asyncio
async def test_one_key_with_another_context_is_a_conflict(home: str) -> None:
    from treadle.errors import IdempotencyConflict

    pipe = Pipeline("p", context={"learning_rate": 1}).add_steps(load, train).with_options(idempotency_key="k")
    async with Engine(home) as engine:
        first = await engine.run(pipe)
        assert (await engine.run(pipe)).run_id == first.run_id
        with pytest.raises(IdempotencyConflict):
            await engine.run(pipe, context={"learning_rate": 2})
