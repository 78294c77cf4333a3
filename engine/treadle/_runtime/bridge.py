"""Between threads and the event loop: how other threads reach what lives on a loop, and what is left behind on it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from treadle.errors import TreadleError

if TYPE_CHECKING:
    import asyncio

    from treadle._runtime.run import Run

T = TypeVar("T")

ABANDONED_EDGE_S = 1.0


class LivesOnLoop:
    """What lives on one event loop and is called from other threads, too."""

    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        self._thread_id = 0
        self._left_behind: set[asyncio.Task[Any]] = set()

    def settle_here(self) -> None:
        """Live on the running loop from now on."""
        import asyncio  # whoever only defines steps does without

        self.loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()

    def is_on_loop(self) -> bool:
        """Whether this is the thread of the engine's loop."""
        return threading.get_ident() == self._thread_id

    def call_on_loop(self, fn: Callable[..., Any], *args: Any) -> None:
        """Have a function called on the loop, from any thread; a closed loop is nobody's loss."""
        try:
            self.loop.call_soon_threadsafe(fn, *args)
        except RuntimeError:
            return

    def on_loop(self, fn: Callable[..., T], *args: Any) -> T:
        """Call a function on the loop and wait for its result; from the loop, at once."""
        if self.is_on_loop():
            return fn(*args)

        import asyncio

        async def call() -> T:
            return fn(*args)

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result()

    def block_on(self, awaitable: Any, timeout: float | None = None) -> Any:
        """Wait in a thread for something on the loop."""
        if self.is_on_loop():
            awaitable.close()
            raise TreadleError("this waits, and never on the event loop", fix="use await")
        import asyncio
        import concurrent.futures

        try:
            return asyncio.run_coroutine_threadsafe(awaitable, self.loop).result(timeout)
        except concurrent.futures.CancelledError:
            raise asyncio.CancelledError from None  # the other class of that name is an Exception

    def wait_for_call(self, run: Run, future: Any) -> Any:
        """Wait in a ``def`` pipeline's thread for a call; the end of the run comes as a cancellation."""
        result = future.result()
        run.raise_if_ending()
        return result

    # -- bodies that do not stop -----------------------------------------------------------

    def leave_behind(self, task: asyncio.Task[Any]) -> None:
        """Keep track of a body that swallowed its cancellation; ask it again later."""
        self._left_behind.add(task)
        timers = [
            self.loop.call_later(edge_s, _cancel_again, task, context=Context())
            for edge_s in (ABANDONED_EDGE_S, 5 * ABANDONED_EDGE_S)
        ]
        task.add_done_callback(partial(self._came_back, timers))

    def _came_back(self, timers: list[asyncio.TimerHandle], task: asyncio.Task[Any]) -> None:
        self._left_behind.discard(task)
        for timer in timers:
            timer.cancel()
        if not task.cancelled():
            task.exception()


def _cancel_again(task: asyncio.Task[Any]) -> None:
    if not task.done():
        task.cancel()
