"""How a run comes back after orderly ends and deaths: what counts as poison, what is kept, and who may end it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from treadle import CachePolicy, Engine, Retry, pipeline, step
from treadle.errors import RunElsewhere
from treadle.events import RunCancelled, RunResumed


class World:
    """What the steps look at; a test changes it between a run and its resume."""

    def __init__(self) -> None:
        self.is_open = False
        self.has_child = True
        self.attempts = 0
        self.reached = asyncio.Event()


WORLD = World()


@pytest.fixture
def home(tmp_path: Path) -> str:
    return str(tmp_path / "home")


@pytest.fixture(autouse=True)
def world() -> World:
    WORLD.__init__()  # type: ignore[misc]  # the steps hold this object
    return WORLD


@step(cache=False)
async def gate() -> int:
    WORLD.reached.set()
    if not WORLD.is_open:
        await asyncio.Event().wait()
    return 1


@step
async def flaky(x: int) -> int:
    WORLD.attempts += 1
    raise ValueError("no")


@step
async def counted(x: int) -> int:
    WORLD.attempts += 1
    return x


@pipeline
async def gated() -> int:
    return await gate()


@pipeline
async def gated_then_flaky() -> int:
    await gate()
    return await flaky(1)


@pipeline
async def gated_then_counted() -> int:
    await gate()
    return await counted(1)


@pipeline
async def grandchild() -> int:
    return await gate()


@pipeline
async def child() -> int:
    return await grandchild()


@pipeline
async def parent() -> int:
    return await child() if WORLD.has_child else 0


async def interrupted(home: str, target: Any) -> str:
    """The id of a run that was cut off when its engine was closed."""
    WORLD.reached.clear()
    engine = Engine(home)
    await engine.open()
    handle = await engine.start(target)
    await WORLD.reached.wait()
    await engine.close(interrupt=True)
    return str(handle.id)


@pytest.mark.asyncio
async def test_orderly_ends_do_not_poison_a_run(home: str) -> None:
    run_id = await interrupted(home, gated)
    for _ in range(6):
        WORLD.reached.clear()
        engine = Engine(home)
        await engine.open()
        (handle,) = await engine.recover(wait=False)
        assert handle.id == run_id
        await WORLD.reached.wait()
        await engine.close(interrupt=True)
    WORLD.is_open = True
    async with Engine(home) as engine:
        (result,) = await engine.recover()
        assert (result.status, result.value) == ("succeeded", 1)
        assert sum([isinstance(event, RunResumed) async for event in engine.events(run_id)]) == 7


@pytest.mark.asyncio
async def test_another_engines_live_run_is_not_cancelled_and_that_is_said(home: str) -> None:
    async with Engine(home) as owner, Engine(home) as other:
        handle = await owner.start(gated)
        await WORLD.reached.wait()
        with pytest.raises(RunElsewhere, match=rf"{handle.id} is performed by another engine .*{owner.id}") as caught:
            await other.cancel(handle.id)
        assert (caught.value.run_id, caught.value.owner) == (handle.id, owner.id)
        assert "Fix: cancel it where it was started" in str(caught.value)
        assert (await other.get_run(handle.id)).status == "running"
        await owner.cancel(handle.id)
        await other.cancel(handle.id)  # it is over, and there is nothing to do
        assert (await other.get_run(handle.id)).status == "cancelled"


@pytest.mark.asyncio
async def test_retries_given_to_a_run_hold_for_its_resume(home: str) -> None:
    retry = Retry(max_attempts=3, delay=0, on=(ValueError,))
    run_id = await interrupted(home, gated_then_flaky.with_options(retry=retry))
    WORLD.is_open = True
    async with Engine(home) as engine:
        (result,) = await engine.recover()
        assert result.run_id == run_id
        assert isinstance(result.error, ValueError)
    assert WORLD.attempts == 3


@pytest.mark.parametrize(("cache", "performed"), [(False, 2), (CachePolicy(code=False), 1)])
@pytest.mark.asyncio
async def test_a_cache_policy_given_to_a_run_holds_for_its_resume(home: str, cache: Any, performed: int) -> None:
    await interrupted(home, gated_then_counted.with_options(cache=cache))
    WORLD.is_open = True
    async with Engine(home) as engine:
        assert (await engine.run(gated_then_counted.with_options(cache=CachePolicy(code=False)))).success
        (result,) = await engine.recover()
        assert result.value == 1
    assert WORLD.attempts == performed


@pytest.mark.asyncio
async def test_child_runs_that_a_resumed_parent_does_without_are_ended(home: str) -> None:
    run_id = await interrupted(home, parent)
    async with Engine(home) as engine:
        assert {run.status for run in await engine.runs(children=True)} == {"interrupted"}
        WORLD.has_child = False
        result = await engine.resume(run_id)
        assert result.value == 0
        children = [run for run in await engine.runs(children=True) if run.run_id != run_id]
        assert [run.status for run in children] == ["cancelled", "cancelled"]
        for run in children:
            (event,) = [e async for e in engine.events(run.run_id) if isinstance(e, RunCancelled)]
            assert event.reason == "the run that it is a child of no longer asked for it"
        assert await engine.recover() == []


@pytest.mark.asyncio
async def test_child_runs_that_a_resumed_parent_asks_for_go_on(home: str) -> None:
    run_id = await interrupted(home, parent)
    WORLD.is_open = True
    async with Engine(home) as engine:
        assert (await engine.resume(run_id)).value == 1
        assert [run.status for run in await engine.runs(children=True)] == ["succeeded"] * 3
