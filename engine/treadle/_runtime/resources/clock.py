"""The real clock of an engine: the system's time, and the loop's timers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any


class SystemClock:
    """Time as it passes, on one loop; see ``treadle.contracts.Clock``."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.time: Callable[[], float] = time.time
        self.monotonic: Callable[[], float] = time.perf_counter
        self.random: Callable[[], float] = random.random
        self._loop = loop

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, fn: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Have a function called on the loop after some time."""
        return self._loop.call_later(seconds, fn, *args)
