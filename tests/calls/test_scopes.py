"""Cancel scopes of anyio and time-outs of asyncio around calls that are awaited: each catches its own cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from treadle import Engine, pipeline, step


@step(cache=False)
async def endless(n: int = 0) -> int:
    await asyncio.sleep(3600)
    return n


@step(cache=False, outputs=["low", "high"])
async def endless_pair() -> tuple[int, int]:
    await asyncio.sleep(3600)
    return 0, 1


@step(cache=False)
async def quick(n: int) -> int:
    return n


@pipeline
async def endless_child() -> int:
    return await endless()


WAYS: dict[str, Callable[[], Awaitable[Any]]] = {
    "a call": lambda: endless(),
    "a future": lambda: endless.submit(1),
    "one output of it": lambda: endless_pair.submit().output("low"),
    "one call of a map": lambda: endless.map([1])[0],
    "a map": lambda: endless.map([1, 2]),
    "calls together": lambda: asyncio.gather(endless(1), endless.submit(2)),
    "a child run": lambda: endless_child(),
}


@pipeline
async def moves_on(way: str) -> bool:
    with anyio.move_on_after(0.02) as scope:
        await WAYS[way]()
    return scope.cancelled_caught and await quick(1) == 1


@pipeline
async def fails_after(way: str) -> bool:
    try:
        with anyio.fail_after(0.02):
            await WAYS[way]()
    except TimeoutError:
        return await quick(2) == 2
    return False


@pipeline
async def times_out(way: str) -> bool:
    try:
        async with asyncio.timeout(0.02):
            await WAYS[way]()
    except TimeoutError:
        return await quick(3) == 3
    return False


@pipeline
async def nested() -> str:
    with anyio.move_on_after(0.02) as outer:
        with anyio.move_on_after(3600) as inner:
            await endless()
        return "the inner one"
    assert outer.cancelled_caught
    assert not inner.cancelled_caught
    return "the outer one"


@pipeline
async def grouped() -> str:
    async with anyio.create_task_group() as group:
        group.start_soon(endless, 1)
        group.start_soon(endless_child)
        await quick(4)
        group.cancel_scope.cancel()
    return "over"


@pytest.mark.parametrize("target", [moves_on, fails_after, times_out], ids=lambda target: target.name)
@pytest.mark.parametrize("way", list(WAYS))
def test_a_scope_around_what_is_awaited_catches_its_own_cancellation(way: str, target: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with Engine(tmp_path) as engine:
            result = await asyncio.wait_for(engine.run(target, way), 30)
            assert result.value is True
            statuses = {call.status for name, call in result.step_results.items() if name.startswith("endless")}
            assert statuses <= {"cancelled"}

    asyncio.run(main())


@pytest.mark.parametrize(("target", "value"), [(nested, "the outer one"), (grouped, "over")])
def test_nested_scopes_and_groups_end_what_they_hold_and_no_more(target: Any, value: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with Engine(tmp_path) as engine:
            assert (await asyncio.wait_for(engine.run(target), 30)).value == value

    anyio.run(main)


def test_a_scope_around_an_attached_run_cancels_it_and_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with Engine(tmp_path) as engine:
            with anyio.move_on_after(0.05) as scope:
                await endless_child()
            assert scope.cancelled_caught
            with anyio.move_on_after(0.05) as scope:
                await engine.run(endless_child)
            assert scope.cancelled_caught
            for run in await engine.runs():
                async for _ in engine.events(run.run_id, follow=True):
                    pass  # to its end: a scope gives no time to wait for it
                assert (await engine.get_run(run.run_id)).status == "cancelled"

    anyio.run(main)
