"""An engine whose opening or closing is cancelled, whenever that is: nothing stays open, and nothing keeps a caller."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path

import pytest
from isolated_steps import increment
from storekit import open_files, threads, until

from treadle import Engine, pipeline, step

TURNS_MAX = 100_000
"""More than any opening or closing here takes."""


@pipeline
async def waits() -> None:
    await asyncio.Event().wait()


@pipeline
async def isolates(value: int) -> int:
    return await increment(value)


class Open:
    """What this process holds open."""

    def __init__(self) -> None:
        self.files, self.threads, self.children = open_files(), threading.active_count(), self._children()

    @staticmethod
    def _children() -> int:
        return sum(len(task.read_text().split()) for task in Path("/proc/self/task").glob("*/children"))

    def is_all(self) -> bool:
        """Whether there is nothing else."""
        return (
            threading.active_count() <= self.threads
            and not threads()
            and self._children() <= self.children
            and open_files() == self.files
        )


async def cancelled_after(turns: int, work: Awaitable[None]) -> bool:
    """Cancel some work after so many turns of the loop; says whether it had ended before."""
    task = asyncio.ensure_future(work)
    for _ in range(turns):
        if task.done():
            break
        await asyncio.sleep(0)
    had_ended = task.done()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() or task.exception() is None
    return had_ended


async def in_context(home: Path) -> None:
    async with Engine(home) as engine:
        asyncio.create_task(engine.runs()).add_done_callback(lambda asked: asked.cancelled() or asked.exception())
        await asyncio.sleep(0)


def test_an_engine_that_is_cancelled_at_any_turn_of_its_opening_or_closing_leaves_nothing_open(home: Path) -> None:
    async def main() -> None:
        await in_context(home)
        await until(lambda: not threads())
        before = Open()
        turns = 0
        while not await cancelled_after(turns, in_context(home)):
            await until(before.is_all)
            turns += 1 + turns // 16
            assert turns < TURNS_MAX
        await until(before.is_all)

    asyncio.run(main())


async def nothing(engine: Engine) -> None:
    del engine


async def asked(engine: Engine) -> None:
    await engine.runs()


async def running(engine: Engine) -> None:
    await engine.start(waits)


async def isolated(engine: Engine) -> None:
    assert (await engine.run(isolates, 1)).value == 2


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("act", "most"), [(nothing, 100), (asked, 100), (running, 100), (isolated, 2)])
def test_a_close_that_is_cancelled_at_any_turn_leaves_nothing_open(
    act: Callable[[Engine], Awaitable[None]], most: int, times: int, home: Path
) -> None:
    async def close(engine: Engine) -> None:
        closing = asyncio.ensure_future(engine.close())
        try:
            await closing
        except asyncio.CancelledError:
            for _ in range(times - 1):
                closing.cancel()
            await asyncio.wait([closing])
            raise

    async def main() -> None:
        async with Engine(home) as engine:
            await act(engine)
            for run_id in list(engine.runs_here):
                await engine.cancel(run_id)
        await until(lambda: not threads())
        before = Open()
        for turns in range(2, most + 2):  # in the first one the closing has not begun
            engine = Engine(home, close_timeout=0)
            await engine.open()
            await act(engine)
            has_ended = await cancelled_after(turns, close(engine))
            await until(before.is_all)
            if has_ended:
                return

    asyncio.run(main())


class Thing:
    """Something that a weak reference can watch."""


held: ContextVar[Thing] = ContextVar("held")


@step(cache=False)
async def calls_a_timer_off(thing: Thing) -> None:
    asyncio.get_running_loop().call_later(3600, print).cancel()


@pipeline
async def takes(thing: Thing) -> None:
    await calls_a_timer_off(thing)
    asyncio.get_running_loop().call_later(3600, print).cancel()


async def is_let_go(watched: weakref.ref[Thing]) -> bool:
    for _ in range(20):
        gc.collect()
        if watched() is None:
            return True
        await asyncio.sleep(0.005)
    return False


async def opened(engine: Engine) -> None:
    await engine.open()


@pytest.mark.parametrize("act", [opened, asked, isolated])
def test_what_an_engine_keeps_open_keeps_nothing_of_the_caller_who_needed_it_first(
    act: Callable[[Engine], Awaitable[None]], home: Path
) -> None:
    async def first(engine: Engine) -> weakref.ref[Thing]:
        thing = Thing()
        held.set(thing)
        await act(engine)
        return weakref.ref(thing)

    async def main() -> None:
        engine = Engine(home)
        if act is not opened:
            await engine.open()
        try:
            assert await is_let_go(await asyncio.create_task(first(engine)))
        finally:
            await engine.close()

    asyncio.run(main())


def test_timers_that_a_body_has_called_off_keep_no_arguments_of_its_run(home: Path) -> None:
    async def main() -> None:
        async with Engine(home) as engine:
            thing = Thing()
            watched = weakref.ref(thing)
            assert (await engine.run(takes, thing)).success
            del thing
            assert await is_let_go(watched)

    asyncio.run(main())
