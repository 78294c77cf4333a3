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
"""So long a commit may take before the loop asks whether it is in the way, and again after that."""

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
        is_needed: whether another thread has something to do that the loop waits for.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, is_needed: Callable[[], bool]) -> None:
        self._loop, self._is_needed = loop, is_needed
        self._timer: asyncio.TimerHandle | None = None
        self._wall = self._busy = 0.0
        self._waited = 0
        self._context = Context()  # of its own, or the timer would hold what the caller's leads to

    def watch(self) -> None:
        """The other thread has been given something to do."""
        if self._timer is None:
            self._arm()

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._wall, self._busy, self._waited = time.perf_counter(), time.thread_time(), _waits()
        self._timer = self._loop.call_later(EVERY_S, self._look, context=self._context)

    def _look(self) -> None:
        self._timer = None
        if not self._is_needed():
            return
        if self._is_busy():
            time.sleep(PAUSE_S)
        self._arm()

    def _is_busy(self) -> bool:
        if _waits() == self._waited:
            return True
        return time.thread_time() - self._busy > BUSY * (time.perf_counter() - self._wall)
