"""Lets the writer thread have the interpreter while the loop's own thread is busy; knows no log.

A thread that waits for the interpreter lock asks for it after 5 ms (``sys.getswitchinterval``) in which nobody let go
of it. An event loop with short turns lets go in each of them, for the microsecond in which it polls: too short for
another thread to wake up, and it starts the 5 ms anew. So a loop that is busy without a pause keeps the writer out, and
with it every commit, for as long as it is busy (docs/decisions/0032).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextvars import Context

if sys.platform == "linux":
    import resource

EVERY_S = 0.003
"""So long a commit that somebody waits for may take before the loop asks whether it is in the way, and ever again."""

RARELY_S = 0.05
"""The same for a commit that nobody waits for, or behind which much has gathered. What gathers shares the next one, and
that is cheaper than two threads that take turns."""

PAUSE_S = 0.001
"""So long the loop's thread sleeps if it is."""

BUSY = 0.5
"""The share of the time for which a loop computes that makes it busy. A crowded machine may give it less, so a loop
that has not waited once is busy, too."""


def _waits() -> int:
    """How often this thread has waited for anything; a new number each time where the system does not count it."""
    if sys.platform == "linux":
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    return time.perf_counter_ns()


class Courtesy:
    """Pauses a busy loop while there is something to wait for.

    Args:
        loop: the loop; all methods are called on it.
        patience: how many seconds the loop may be in the way of the other thread; ``None`` if that has nothing to do.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, patience: Callable[[], float | None]) -> None:
        self._loop, self._patience = loop, patience
        self._timer: asyncio.TimerHandle | None = None
        self._armed_s = self._wall = self._busy = 0.0
        self._waited = 0
        self._context = Context()  # of its own, or the timer would hold what the caller's leads to

    def watch(self) -> None:
        """The other thread has been given something to do."""
        patience_s = self._patience()
        if patience_s is not None and (self._timer is None or patience_s < self._armed_s):
            self.stop()
            self._arm(patience_s)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, patience_s: float) -> None:
        self._wall, self._busy, self._waited = time.perf_counter(), time.thread_time(), _waits()
        self._armed_s = patience_s
        self._timer = self._loop.call_later(patience_s, self._look, context=self._context)

    def _look(self) -> None:
        self._timer = None
        patience_s = self._patience()
        if patience_s is None:
            return
        if patience_s <= self._armed_s and self._is_busy():
            time.sleep(PAUSE_S)
        self._arm(patience_s)

    def _is_busy(self) -> bool:
        if _waits() == self._waited:
            return True
        return time.thread_time() - self._busy > BUSY * (time.perf_counter() - self._wall)
