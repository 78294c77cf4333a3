"""What a step means is decided once for all runs of an engine, where nothing but the engine and the step decides it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from treadle import CachePolicy, Engine, Pipeline, pipeline, step
from treadle._runtime.code import identity
from treadle._runtime.plan import Plan

FACTOR = 2
TABLE = {"factor": 2}


@step
async def double(x: int) -> int:
    return x * FACTOR


@step
async def looked_up(x: int) -> int:
    return x * TABLE["factor"]


@pipeline
async def one(x: int) -> int:
    return await double(x)


@pipeline
async def from_table(x: int) -> int:
    return await looked_up(x)


class Made:
    """The plans that were made, and the walks over code."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plans: list[Plan] = []
        self.walks: list[Any] = []
        make, walk = Plan.__init__, identity.Identities._take

        def made(plan: Plan, *args: Any) -> None:
            self.plans.append(plan)
            make(plan, *args)

        def walked(self_: Any, of: Any, depends_on: Any) -> Any:
            self.walks.append(of)
            return walk(self_, of, depends_on)

        monkeypatch.setattr(Plan, "__init__", made)
        monkeypatch.setattr(identity.Identities, "_take", walked)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    return Made(monkeypatch)


async def value(engine: Engine, target: Any, *args: Any) -> Any:
    result = await engine.run(target, *args)
    result.raise_for_failure()
    return result.value


@pytest.mark.asyncio
async def test_runs_of_one_engine_share_the_plan_of_a_step(tmp_path: Path, made: Made) -> None:
    async with Engine(tmp_path) as engine:
        assert [await value(engine, one, x) for x in range(5)] == [0, 2, 4, 6, 8]
    assert len(made.plans) == 1


@pytest.mark.asyncio
async def test_another_engine_makes_its_own_plan(tmp_path: Path, made: Made) -> None:
    for number in range(2):
        async with Engine(tmp_path / str(number), cache=number == 0) as engine:
            assert (await engine.run(one, 1)).step_results["double"].status == "succeeded"
            cached = (await engine.run(one, 1)).step_results["double"].cached
            assert cached == (number == 0)
    assert len(made.plans) == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("options", [{"cache": False}, {"retry": 2}, {"max_concurrency": 1}, {"debug": True}])
async def test_a_run_with_options_of_its_own_decides_for_itself(tmp_path: Path, made: Made, options: Any) -> None:
    async with Engine(tmp_path) as engine:
        for _ in range(2):
            await value(engine, one, 1)
            await value(engine, one.with_options(**options), 1)
    assert len(made.plans) == 3


@pytest.mark.asyncio
async def test_a_changed_global_is_seen_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Engine(tmp_path) as engine:
        assert await value(engine, one, 7) == 14
        monkeypatch.setitem(globals(), "FACTOR", 3)
        assert await value(engine, one, 7) == 21
        assert await value(engine, from_table, 7) == 14
        monkeypatch.setitem(TABLE, "factor", 3)
        assert await value(engine, from_table, 7) == 21


@pytest.mark.asyncio
async def test_a_changed_file_is_seen_by_the_next_run(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"

    @step(cache=CachePolicy(files=[str(file)]))
    async def read() -> str:
        return file.read_text()

    @pipeline
    async def reads() -> str:
        return await read()

    async with Engine(tmp_path / "home") as engine:
        for text in ("one", "two"):
            file.write_text(text)
            assert await value(engine, reads) == text


@pytest.mark.asyncio
async def test_a_function_that_a_test_has_replaced_is_the_one_that_is_performed(tmp_path: Path) -> None:
    async def fake(x: int) -> int:
        return -x

    async with Engine(tmp_path) as engine:
        assert await value(engine, one, 5) == 10
        with mock.patch.object(double, "fn", fake):
            assert await value(engine, one, 5) == -5  # nor does it come from the cache
        assert await value(engine, one, 5) == 10


@pytest.mark.asyncio
async def test_copies_of_a_step_have_their_code_walked_once_for_all(tmp_path: Path, made: Made) -> None:
    wide = Pipeline("wide").add_steps(
        *[double.with_options(name=f"double_{n}", inputs=["x"], outputs=[f"y{n}"]) for n in range(200)]
    )
    async with Engine(tmp_path) as engine:
        for x in range(3):
            outputs = await value(engine, wide, {"x": x})
            assert set(outputs.values()) == {2 * x}
    assert len(made.walks) <= 1  # none, if another test has walked it
    assert len(made.plans) == 200


@pytest.mark.asyncio
async def test_copies_of_other_names_are_other_steps_to_the_cache(tmp_path: Path) -> None:
    ours, theirs = double.with_options(name="ours"), double.with_options(name="theirs")

    @pipeline
    async def both(x: int) -> int:
        return await ours(x) + await theirs(x)

    async with Engine(tmp_path) as engine:
        first = await engine.run(both, 4)
        again = await engine.run(both, 4)
    assert [r.status for r in first.step_results.values()] == ["succeeded"] * 2
    assert [r.status for r in again.step_results.values()] == ["cached"] * 2


def test_a_step_does_not_keep_the_engine_that_it_ran_on(tmp_path: Path) -> None:
    async def run() -> weakref.ref[Engine]:
        async with Engine(tmp_path) as engine:
            await value(engine, one, 1)
            await value(engine, from_table, 1)
            return weakref.ref(engine)

    engine = asyncio.run(run())
    gc.collect()
    assert engine() is None
