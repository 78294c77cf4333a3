"""Pipelines called in pipelines: child runs, linked to their parent and ended with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from treadle import Engine, RunHandle, pipeline, step

Drive = Callable[[Any], Any]


@step(cache=False)
async def double(x: int) -> int:
    return 2 * x


@step(cache=False)
def triple(x: int) -> int:
    return 3 * x


@step(cache=False)
async def fails(text: str) -> int:
    raise ValueError(text)


@pipeline
async def child(x: int) -> int:
    return await double(x)


@pipeline
def child_sync(x: int) -> int:
    return double(x)


@pipeline
async def failing_child(text: str) -> int:
    return await fails(text)


async def tree(engine: Engine) -> dict[str, list[str]]:
    """Names of child pipelines by the name of their parent."""
    found: dict[str, list[str]] = {}
    runs = {run.run_id: run for run in await engine.runs(children=True)}
    for run in runs.values():
        (accepted,) = [event async for event in engine.events(run.run_id) if event.kind == "RunAccepted"]
        parent = runs.get(accepted.parent)  # type: ignore[attr-defined]  # an event of that kind has it
        found.setdefault(parent.pipeline if parent is not None else "", []).append(run.pipeline)
    return {name: sorted(children) for name, children in found.items()}


def test_children_give_their_value_in_async_and_def_pipelines(drive: Drive, home: str) -> None:
    @pipeline
    async def parent(x: int) -> list[int]:
        return [await child(x), await child_sync(x), *await asyncio.gather(child(1), child(2))]

    @pipeline
    def parent_sync(x: int) -> list[int]:
        return [child(x), child_sync(x)]  # type: ignore[list-item]  # in a def pipeline the call gives the value

    async def main() -> None:
        async with Engine(home) as engine:
            assert await parent(5) == [10, 10, 2, 4]
            assert await parent_sync(6) == [12, 12]
            assert await tree(engine) == {
                "": ["parent", "parent_sync"],
                "parent": ["child", "child", "child", "child_sync"],
                "parent_sync": ["child", "child_sync"],
            }
            assert len(await engine.runs()) == 2

    drive(main())


@pytest.mark.asyncio
async def test_the_failure_of_a_child_is_raised_in_the_parent(home: str) -> None:
    @pipeline
    async def passes_on() -> int:
        return await failing_child("no")

    @pipeline
    async def copes() -> str:
        with pytest.raises(ValueError, match="no"):
            await failing_child("no")
        return "coped"

    @pipeline
    def copes_sync() -> str:
        try:
            failing_child("no")
        except ValueError:
            return "coped"
        return "nothing was raised"

    async with Engine(home) as engine:
        result = await engine.run(passes_on)
        assert result.status == "failed"
        assert isinstance(result.error, ValueError)
        assert await copes() == "coped"
        assert await copes_sync() == "coped"
        assert {run.status for run in await engine.runs(pipeline="failing_child", children=True)} == {"failed"}


@pytest.mark.asyncio
async def test_a_started_child_is_a_handle_to_await_later(home: str) -> None:
    @pipeline
    async def parent() -> list[int]:
        handles = [child.start(x) for x in range(3)]
        assert all(isinstance(handle, RunHandle) for handle in handles)
        return [await handle for handle in handles]

    @pipeline
    def parent_sync() -> list[int]:
        handles = [child.start(x) for x in range(3)]
        return [handle.result(timeout=10) for handle in handles]

    async with Engine(home) as engine:
        assert await parent() == [0, 2, 4]
        assert await parent_sync() == [0, 2, 4]
        assert (await tree(engine))["parent"] == ["child"] * 3


@pytest.mark.asyncio
async def test_the_end_of_a_parent_waits_for_the_children_it_started(home: str) -> None:
    gate, started = asyncio.Event(), asyncio.Event()

    @step(cache=False)
    async def waits() -> None:
        started.set()
        await gate.wait()

    @pipeline
    async def slow_child() -> None:
        await waits()

    @pipeline
    async def parent() -> str:
        slow_child.start()
        return "returned"

    async with Engine(home) as engine:
        handle = parent.start()
        await started.wait()
        await asyncio.sleep(0.02)
        assert handle.status == "running"
        gate.set()
        assert await handle == "returned"
        assert {run.status for run in await engine.runs(children=True)} == {"succeeded"}


@pytest.mark.asyncio
async def test_a_started_child_that_fails_unseen_fails_its_parent(home: str) -> None:
    @pipeline
    async def careless() -> str:
        failing_child.start("unseen")
        return "returned"

    @pipeline
    async def careful() -> str:
        result = await failing_child.start("seen").wait()
        return result.status

    async with Engine(home) as engine:
        result = await engine.run(careless)
        assert (result.status, str(result.error)) == ("failed", "unseen")
        assert await careful() == "failed"


@pytest.mark.parametrize("how", ["cancel", "fail_fast", "timeout"])
@pytest.mark.asyncio
async def test_ending_a_parent_cancels_its_children(home: str, how: str) -> None:
    started, cleaned = asyncio.Event(), asyncio.Event()

    @step(cache=False)
    async def waits() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    @pipeline
    async def grandchild() -> None:
        await waits()

    @pipeline
    async def middle() -> None:
        await grandchild()

    @pipeline(timeout=0.3 if how == "timeout" else None)
    async def parent() -> None:
        handle = middle.start()
        await started.wait()
        if how == "fail_fast":
            raise ValueError("own")
        await handle

    async with Engine(home) as engine:
        handle = parent.start()
        await started.wait()
        if how == "cancel":
            await handle.cancel()
        result = await handle.wait()
        assert result.status == ("cancelled" if how == "cancel" else "failed")
        assert cleaned.is_set()
        found = {run.pipeline: run.status for run in await engine.runs(children=True)}
        assert found == {"parent": result.status, "middle": "cancelled", "grandchild": "cancelled"}


@pytest.mark.asyncio
async def test_cancelling_one_childs_await_cancels_that_child_alone(home: str) -> None:
    @step(cache=False)
    async def forever() -> None:
        await asyncio.Event().wait()

    @pipeline
    async def long() -> None:
        await forever()

    @pipeline
    async def parent() -> int:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(long(), 0.05)
        return await child(4)

    async with Engine(home) as engine:
        assert (await engine.run(parent)).value == 8
        assert {run.pipeline: run.status for run in await engine.runs(children=True)} == {
            "parent": "succeeded", "long": "cancelled", "child": "succeeded",
        }  # fmt: skip


@pytest.mark.asyncio
async def test_a_child_takes_futures_maps_and_artifacts_as_arguments(home: str) -> None:
    @pipeline
    async def sums(x: int, xs: list[int], more: dict[str, Any]) -> int:
        return await double(x + sum(xs) + more["deep"][0])

    @pipeline
    async def parent() -> int:
        one = double.submit(1)
        await one
        return await sums(one, double.map([1, 2]), {"deep": [one.artifact]})  # type: ignore[arg-type]  # futures stand for values

    async with Engine(home):
        assert await parent() == 2 * (2 + 2 + 4 + 2)


@pytest.mark.asyncio
async def test_a_child_of_a_failed_future_does_not_begin(home: str) -> None:
    @pipeline
    async def parent() -> int:
        return await child(fails.submit("no"))  # type: ignore[arg-type]  # a future stands for its value

    async with Engine(home) as engine:
        result = await engine.run(parent)
        assert isinstance(result.error, ValueError)
        assert [run.pipeline for run in await engine.runs(children=True)] == ["parent"]


@pytest.mark.parametrize("kind", ["async", "def"])
def test_thirty_levels_with_one_slot_and_one_thread_cannot_deadlock(drive: Drive, home: str, kind: str) -> None:
    @pipeline
    async def nest(depth: int) -> int:
        below = await nest(depth - 1) if depth else 0
        return await triple(below) - 2 * below + 1

    @pipeline
    def nest_sync(depth: int) -> int:
        below = nest_sync(depth - 1) if depth else 0
        return triple(below) - 2 * below + 1  # type: ignore[operator, return-value]  # values, in a def pipeline

    async def main() -> None:
        async with Engine(home, max_concurrency=1, threads=1) as engine:
            target = nest if kind == "async" else nest_sync
            assert await target.with_options(max_concurrency=1)(30) == 31
            assert len(await engine.runs(children=True, limit=1000)) == 31

    drive(main())


@pytest.mark.asyncio
async def test_children_keep_their_own_options(home: str) -> None:
    running, peak = 0, 0
    lock = threading.Lock()

    @step(cache=False)
    def counted(x: int) -> int:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        with lock:
            running -= 1
        return x

    @pipeline(max_concurrency=1)
    async def narrow(xs: list[int]) -> list[int]:
        return await counted.map(xs)

    @pipeline
    async def parent() -> list[int]:
        return await narrow(list(range(20)))

    async with Engine(home):
        assert await parent() == list(range(20))
        assert peak == 1


@pytest.mark.asyncio
async def test_a_pipeline_may_call_itself_in_parallel(home: str) -> None:
    @pipeline
    async def fibonacci(n: int) -> int:
        if n < 2:
            return n
        return sum(await asyncio.gather(fibonacci(n - 1), fibonacci(n - 2)))

    async with Engine(home, max_concurrency=1):
        assert await fibonacci(7) == 13
