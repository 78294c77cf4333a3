"""The real clock of an engine: the system's time, and the loop's timers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any


class SystemClock:
    """Time as it passes, on one loop; see ``treadle.contracts.Clock``."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.time: Callable[[], float] = time.time
        self.monotonic: Callable[[], float] = time.perf_counter
        self.random: Callable[[], float] = random.random
        self._loop = loop
        self._context = Context()  # a timer called off stays in the loop until its time, with all its context leads to

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        over: asyncio.Future[None] = self._loop.create_future()
        timer = self.call_later(seconds, _wake, over)
        try:
            await over
        finally:
            timer.cancel()

    def call_later(self, seconds: float, fn: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Have a function called on the loop after some time, in a context of no run."""
        return self._loop.call_later(seconds, fn, *args, context=self._context)


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
