"""What the conformance suite sees from outside: processes that are left, bodies that run on, a loop that stands still.

It knows nothing of steps and executors.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

LOOK_S = 0.05


def descendants() -> set[int]:
    """The living processes that this one has started, and those that they have; none where there is no /proc."""
    parents: dict[int, int] = {}
    for entry in filter(str.isdecimal, os.listdir("/proc") if os.path.isdir("/proc") else ()):
        try:
            state, parent = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has just ended
        if state not in "ZX":
            parents[int(entry)] = int(parent)
    found, more = set[int](), {os.getpid()}
    while more:
        more = {pid for pid, parent in parents.items() if parent in more} - found
        found |= more
    return found


def is_held(path: Path) -> bool:
    """Whether a living process has the lock of a file: the kernel gives it back whatever way that process ends."""
    try:
        fd = os.open(path, os.O_WRONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


async def comes_about(is_so: Callable[[], bool], within_s: float) -> bool:
    """Whether something is so, now or soon."""
    until = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > until:
            return False
        await asyncio.sleep(LOOK_S)
    return True


class Watch:
    """Sees from a thread whether an event loop still turns, since nothing on a loop that is blocked can say so.

    Args:
        limit_s: how long it may stand still.
        free: called once if it does, to end what it may be waiting for. If that does not help within the same time
            again, the main thread is interrupted as by Ctrl-C until it does, if the loop is there.
    """

    def __init__(self, limit_s: float, free: Callable[[], None]) -> None:
        self.was_blocked = False
        self._limit_s, self._free, self._at = limit_s, free, time.monotonic()
        self._over, self._is_main = threading.Event(), threading.current_thread() is threading.main_thread()
        self._thread = threading.Thread(target=self._look, name="treadle-conformance-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """It may stand still from now on."""
        self._over.set()
        self._thread.join()

    async def turn(self) -> None:
        """Runs on the loop until it is cancelled."""
        while True:
            self._at = time.monotonic()
            await asyncio.sleep(LOOK_S)

    def _look(self) -> None:
        main = threading.main_thread().ident if self._is_main else None
        while not self._over.wait(LOOK_S):
            still_s = time.monotonic() - self._at
            if still_s > self._limit_s and not self.was_blocked:
                self.was_blocked = True
                self._free()
            elif still_s > 2 * self._limit_s and main is not None:
                signal.pthread_kill(main, signal.SIGINT)
                self._over.wait(self._limit_s / 10)
