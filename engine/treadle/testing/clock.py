"""A clock for tests: time passes only when ``advance`` says so; it knows no loop but the one it is used on."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any


class VirtualTimer:
    """A timer of a ``VirtualClock``."""

    __slots__ = ("_args", "_fn", "at")

    def __init__(self, at: float, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.at = at
        self._fn: Callable[..., object] | None = fn
        self._args = args

    def cancel(self) -> None:
        """Call it off."""
        self._fn = None

    def fire(self) -> None:
        """Do it, unless it was called off."""
        if self._fn is not None:
            self._fn(*self._args)

    @property
    def is_pending(self) -> bool:
        """Whether it was not called off."""
        return self._fn is not None


class VirtualClock:
    """Time that a test moves: delays, timeouts and timestamps of an engine follow it.

    Args:
        start: wall-clock time at the beginning, seconds since 1970.
        seed: of the random numbers.

    A retry that waits for a minute, in no time:

    >>> import asyncio
    >>> from treadle import Retry, pipeline, step
    >>> from treadle.testing import memory_engine
    >>> attempts = []
    >>> @step(retry=Retry(max_attempts=2, delay="1m", jitter=False))
    ... async def shaky() -> str:
    ...     attempts.append(len(attempts))
    ...     if len(attempts) == 1:
    ...         raise ConnectionError
    ...     return "done"
    >>> @pipeline
    ... async def steady() -> str:
    ...     return await shaky()
    >>> async def main() -> str:
    ...     clock = VirtualClock()
    ...     async with memory_engine(clock=clock) as engine:
    ...         run = await engine.start(steady)
    ...         await clock.advance(await clock.wait_for_timer())
    ...         return f"{await run} after {clock.monotonic()} seconds"
    >>> asyncio.run(main())
    'done after 60.0 seconds'
    """

    def __init__(self, start: float = 1_000_000_000.0, seed: int = 0) -> None:
        self._start, self._now = start, 0.0
        self._random = random.Random(seed)
        self._timers: list[tuple[float, int, VirtualTimer]] = []
        self._count = itertools.count()

    def time(self) -> float:
        """Wall-clock time, seconds since 1970."""
        return self._start + self._now

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._now

    def random(self) -> float:
        """The next number of the seeded sequence, in [0, 1)."""
        return self._random.random()

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was advanced by so much."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.call_later(seconds, _wake, future)
        try:
            await future
        finally:
            timer.cancel()

    def call_later(self, seconds: float, fn: Callable[..., object], *args: Any) -> VirtualTimer:
        """Have a function called when the clock was advanced by so much."""
        timer = VirtualTimer(self._now + seconds, fn, args)
        heapq.heappush(self._timers, (timer.at, next(self._count), timer))
        return timer

    async def advance(self, seconds: float) -> None:
        """Let time pass: every timer that is due fires, in order, with the loop running a turn in between.

        What an engine does then (writing to its log, say) takes real time, so a timer that it starts because of it
        comes later: wait for that one with ``wait_for_timer`` before time passes on.
        """
        until = self._now + seconds
        while self._timers and self._timers[0][0] <= until:
            at, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, at)
            timer.fire()
            await asyncio.sleep(0)
        self._now = until
        await asyncio.sleep(0)

    async def wait_for_timer(self) -> float:
        """Let the loop run until something waits for this clock; gives the seconds until it is due."""
        while True:
            while self._timers and not self._timers[0][2].is_pending:
                heapq.heappop(self._timers)
            if self._timers:
                return self._timers[0][0] - self._now
            await asyncio.sleep(0.001)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
