"""What goes in and comes out of pipelines in odd shapes, and pipelines that are none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treadle import EncodeError, Engine, pipeline, step
from treadle.errors import IdempotencyConflict, OptionError


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
