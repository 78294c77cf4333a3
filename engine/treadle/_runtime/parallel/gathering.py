"""``amap``: one async function over many items, at most so many at a time; nothing of it is recorded."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from treadle._runtime.parallel.crew import name_of, plain
from treadle.checks import check_whole
from treadle.errors import OptionError

if TYPE_CHECKING:
    from treadle._runtime.step import AsyncStep

A = TypeVar("A")
R = TypeVar("R")

LIMIT = 10
"""How many items are performed at once if nobody says: kind to whatever service is called."""


@overload
async def amap(f: AsyncStep[..., R], items: Iterable[Any] | AsyncIterable[Any], limit: int = LIMIT) -> list[R]: ...
@overload
async def amap(
    f: Callable[[A], Awaitable[R]], items: Iterable[A] | AsyncIterable[A], limit: int = LIMIT
) -> list[R]: ...
async def amap(f: Any, items: Iterable[Any] | AsyncIterable[Any], limit: int = LIMIT) -> list[Any]:
    """Await an async function for every item, several at once, and give the results in the order of the items.

    Each item has a task of its own, at most ``limit`` at a time; the next item is read when a place is free. The first
    error cancels the other tasks, waits for them, and is raised; so does the cancellation of the caller. Nothing of it
    is recorded: to have each item tracked, cached and retried, map a step over the items instead.

    Args:
        f: the function; a step stands for its plain function.
        items: any iterable or async iterable.
        limit: how many items are performed at once.

    Raises:
        OptionError: ``limit`` is not a whole number from 1, or ``f`` is not async.
        BaseException: the first error that the function, or reading the items, has raised.

    >>> async def double(x: int) -> int:
    ...     return 2 * x
    >>> asyncio.run(amap(double, range(4), limit=2))
    [0, 2, 4, 6]
    """
    check_whole(limit, 1, "limit")
    return await _Gathering(plain(f), limit).perform(items)


class _Gathering:
    """The tasks of one ``amap``; one more of them reads the items, so that an error can cut that short as well."""

    def __init__(self, fn: Callable[..., Any], limit: int) -> None:
        self._fn = fn
        self._places = asyncio.Semaphore(limit)
        self._tasks: set[asyncio.Task[None]] = set()
        self._results: list[Any] = []
        self._failures: list[BaseException] = []
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def perform(self, items: Any) -> list[Any]:
        """All results, or the first error."""
        try:
            self._start(self._read(items))
            await self._over
            await self._end()
            if self._failures:
                raise self._failures[0]
            return self._results
        except asyncio.CancelledError:
            await self._end()
            raise
        finally:
            self._failures = []  # they lead to frames, which lead here

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _read(self, items: Any) -> None:
        if isinstance(items, AsyncIterable):
            async for item in items:
                await self._begin(item)
        else:
            for item in items:
                await self._begin(item)

    async def _begin(self, item: Any) -> None:
        await self._places.acquire()
        index = len(self._results)
        self._results.append(None)
        self._start(self._one(index, item))

    async def _one(self, index: int, item: Any) -> None:
        self._results[index] = await _awaitable(self._fn, item)
        self._places.release()  # not after an error: nothing shall begin any more

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self._failures.append(error)
        if (self._failures or not self._tasks) and not self._over.done():
            self._over.set_result(None)

    async def _end(self) -> None:
        """Cancel what is left and wait for it, however often we are cancelled meanwhile."""
        cancelled: asyncio.CancelledError | None = None
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            try:
                await asyncio.wait(self._tasks)
            except asyncio.CancelledError as error:
                cancelled = error
                for task in self._tasks:
                    task.cancel()
        if cancelled is not None:
            raise cancelled


def _awaitable(fn: Callable[..., Any], item: Any) -> Awaitable[Any]:
    result = fn(item)
    if not inspect.isawaitable(result):
        raise OptionError(f"amap got {name_of(fn)}, which is not async", fix="use parallel_map(f, items)", option="f")
    return result
