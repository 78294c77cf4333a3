"""What goes in and comes out of pipelines in odd shapes, and pipelines that are none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treadle import EncodeError, Engine, Pipeline, pipeline, step
from treadle.errors import EngineClosed, IdempotencyConflict, NoEventLoop, NotInRun, OptionError, TreadleError


@step(cache=False)
async def size(x: Any) -> int:
    return len(x)


@pipeline
async def of_a_circle() -> Any:
    circle: dict[str, Any] = {}
    circle["me"] = circle
    assert await size(circle) == 1
    return circle


@pipeline
async def of_shared_parts() -> int:
    value: list[Any] = [0]
    for _ in range(16):
        value = [value, value]
    return await size(value)


@pipeline
async def passed_through(x: Any, y: int = 1) -> Any:
    return x


@pipeline
async def unkept(x: int) -> Any:
    return {"x": x, "later": lambda: x}


def test_a_value_that_contains_itself_goes_in_and_comes_out(tmp_path: Path) -> None:
    async def main() -> None:
        async with Engine(tmp_path) as engine:
            value = (await asyncio.wait_for(engine.run(of_a_circle), 30)).value
            assert value["me"] is value
            assert (await asyncio.wait_for(engine.run(of_shared_parts), 30)).value == 2

    asyncio.run(main())


def test_a_value_that_could_not_be_kept_is_an_error_when_it_is_read_from_the_log(tmp_path: Path) -> None:
    async def main() -> None:
        async with Engine(tmp_path):
            once = unkept.with_options(idempotency_key="k")
            assert (await once(1))["x"] == 1
            with pytest.raises(EncodeError, match=r"the value of run .* of unkept is not in the log"):
                await once(1)

    asyncio.run(main())


def test_one_input_written_in_several_ways_is_one_run(tmp_path: Path) -> None:
    async def main() -> None:
        async with Engine(tmp_path) as engine:
            once = passed_through.with_options(idempotency_key="k")
            assert [await once(1), await once(x=1), await once(1, 1), await once(y=1, x=1)] == [1, 1, 1, 1]
            with pytest.raises(IdempotencyConflict):
                await once(1, 2)
            assert len(await engine.runs()) == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("make", "fix"),
    [
        (lambda: asyncio.sleep, "decorate the function with @pipeline"),
        (lambda: None, "decorate the function with @pipeline"),
        (lambda: size, "call the step in a function decorated with @pipeline"),
        (lambda: passed_through(1), r"engine.run\(p, 1\), not a call of it"),
    ],
)
def test_running_what_is_no_pipeline_says_what_to_pass(make: Callable[[], Any], fix: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with Engine(tmp_path) as engine:
            for act in (engine.run, engine.start):
                with pytest.raises(OptionError, match=f"is not a pipeline. Fix: .*{fix}"):
                    await act(make())

    asyncio.run(main())


def test_a_step_name_has_no_brackets_since_they_number_the_calls_of_a_map() -> None:
    with pytest.raises(OptionError, match=r"name='a\[0\]' is not allowed. Fix: give a text without brackets"):
        step(name="a[0]")


def test_a_method_is_no_pipeline() -> None:
    with pytest.raises(
        OptionError, match=r"Service\.handle is a method, and a pipeline is a function\. Fix: move it to"
    ):

        class Service:
            @pipeline
            async def handle(self) -> None: ...


def test_starting_where_no_loop_runs_says_what_to_do_and_leaves_nothing(tmp_path: Path) -> None:
    wired = Pipeline("wired").add_step(size)
    for start in (lambda: passed_through.start(1), lambda: wired.start({"x": [1]})):
        with pytest.raises(NoEventLoop, match=r"start\(\.\.\.\) was called where no event loop is running") as caught:
            start()
        assert "run(...) in a script" in caught.value.fix
        assert isinstance(caught.value, RuntimeError)
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        passed_through.start()  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["engine", "debug", "idempotency_key"])
def test_an_option_of_calls_is_not_offered_to_pipelines(name: str) -> None:
    with pytest.raises(OptionError, match=rf"use pipeline.with_options\({name}=...\)"):
        pipeline(**{name: None})
    with pytest.raises(OptionError, match=r"@pipeline has no option 'cron'\. Fix: the options are: ") as caught:
        pipeline(cron="* * * * *")
    assert f" {name}," not in caught.value.fix


def test_unknown_options_are_named_with_the_nearest_one_everywhere() -> None:
    with pytest.raises(OptionError, match=r"Engine has no option 'durabilty'\. Fix: did you mean 'durability'\?"):
        Engine(durabilty="strict")  # type: ignore[arg-type]
    with pytest.raises(
        OptionError, match=r"passed_through.with_options has no option 'tag'\. Fix: did you mean 'tags'\?"
    ):
        passed_through.with_options(tag="x")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"with_options has no option 'static'"):
        passed_through.with_options(static=True)  # type: ignore[arg-type]


def test_what_is_no_engine_is_refused_where_it_is_given() -> None:
    with pytest.raises(OptionError, match=r"engine='memory://' is not allowed\. Fix: give an Engine, or None"):
        passed_through.with_options(engine="memory://")  # type: ignore[arg-type]
    assert passed_through.with_options(engine=None).options.engine is None


def test_resuming_refuses_a_way_that_it_does_not_know(tmp_path: Path) -> None:
    async def main() -> None:
        async with Engine(tmp_path) as engine:
            result = await engine.run(passed_through, 1)
            with pytest.raises(OptionError, match=r"changed='skip' is not allowed\. Fix: give 'rerun' or 'keep'"):
                await engine.resume(result.run_id, changed="skip")  # type: ignore[arg-type]
            assert (await engine.resume(result.run_id, changed="keep")).value == 1

    asyncio.run(main())


def test_an_engine_that_was_never_opened_has_health_but_no_metrics(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    assert engine.health()["status"] == "closed"
    with pytest.raises(EngineClosed, match="the engine is not open yet"):
        engine.metrics()

    async def main() -> None:
        async with engine:
            await engine.run(passed_through, 1)

    asyncio.run(main())
    assert engine.metrics()["log_events"] == 2


def test_an_error_knows_the_line_of_the_users_call() -> None:
    with pytest.raises(NotInRun) as outside:
        size.submit([1])
    assert outside.value.where.startswith(f"{__file__}:")
    line = int(outside.value.where.rpartition(":")[2])
    assert Path(__file__).read_text().splitlines()[line - 1].strip() == "size.submit([1])"
    assert str(outside.value).endswith(f". Where: {outside.value.where}")

    async def main() -> str:
        async with Engine("memory://") as engine:
            try:
                await engine.get_run("nobody")
            except TreadleError as error:
                return error.where
        return ""

    assert asyncio.run(main()).startswith(f"{__file__}:")


def test_an_error_that_the_engine_raises_by_itself_knows_no_line() -> None:
    @step(timeout=0.01)
    async def endless() -> None:
        await asyncio.sleep(60)

    @pipeline
    async def run() -> str:
        try:
            await endless()
        except TreadleError as error:
            return f"<{error.where}>"
        return ""

    async def main() -> str:
        async with Engine("memory://"):
            return await run()

    assert asyncio.run(main()) == "<>"
