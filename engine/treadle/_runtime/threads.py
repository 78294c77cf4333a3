"""Worker threads for sync code: daemons, completions in batches, stuck ones left behind.

Own pool, because ``anyio.to_thread`` and the loop's executor ignore a timeout or delay
the end of the process by seconds, and wake the loop once per result. Knows functions,
not steps.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

Finish = Callable[[Any, BaseException | None], None]


class Job:
    """One function on its way through the pool."""

    __slots__ = ("abandoned", "delivered", "error", "finish", "fn", "result", "started")

    def __init__(self, fn: Callable[[], Any], finish: Finish) -> None:
        self.fn: Callable[[], Any] | None = fn
        self.finish: Finish | None = finish
        self.result: Any = None
        self.error: BaseException | None = None
        self.started = self.delivered = self.abandoned = False


class ThreadPool:
    """Up to ``size`` threads, started when there is work.

    Args:
        size: how many work at once.
        loop: where results are delivered.
        name: of the threads.
    """

    def __init__(self, size: int, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self.size, self._loop, self._name = size, loop, name
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._finished: deque[Job] = deque()
        self._lock = threading.Lock()
        self._waking = False
        self._threads = self._busy = 0
        self.abandoned = self.late = 0

    def start(self, fn: Callable[[], Any], finish: Finish) -> Job:
        """Have a function called on a thread and ``finish(result, error)`` on the loop. Call on the loop."""
        job = Job(fn, finish)
        self._busy += 1
        if self._busy > self._threads and self._threads < self.size:
            self._threads += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
        self._jobs.put(job)
        return job

    async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call a function on a thread and await its result; cancelling leaves it behind."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.start(lambda: fn(*args), lambda result, error: _settle(future, result, error))
        return await future

    def abandon(self, job: Job) -> None:
        """Stop waiting for a job; a thread that is stuck in it is replaced. Call on the loop."""
        with self._lock:
            if job.abandoned or job.finish is None:
                return
            job.finish = None
            if job.delivered:
                return  # its result is on the way here, and nobody wants it; the thread is free
            job.abandoned = True
            is_stuck = job.started
        if is_stuck:
            self.abandoned += 1
            self._threads -= 1
            self._busy -= 1

    def close(self) -> None:
        """Let idle threads end; busy ones end with their job, and no exit waits for them."""
        for _ in range(self._threads):
            self._jobs.put(None)

    # -- on the threads -------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._lock:
                job.started = not job.abandoned
            fn, job.fn = job.fn, None
            if fn is not None and job.started:
                try:
                    job.result = fn()
                except BaseException as error:
                    job.error = error
            fn = None
            if not self._deliver(job):
                return
            del job  # an idle thread must not keep the last result alive

    def _deliver(self, job: Job) -> bool:
        """Hand a job back; False if this thread has been replaced meanwhile."""
        with self._lock:
            job.delivered = True
            is_mine = not (job.abandoned and job.started)
            self._finished.append(job)
            if self._waking:
                return is_mine
            self._waking = True
        try:
            self._loop.call_soon_threadsafe(self._drain)
        except RuntimeError:
            return False  # the loop is closed: nobody is left to be told
        return is_mine

    # -- on the loop ----------------------------------------------------------------------

    def _drain(self) -> None:
        with self._lock:
            self._waking = False
            jobs = list(self._finished)
            self._finished.clear()
        for job in jobs:
            if job.abandoned and job.started:
                self.late += 1
                self.abandoned -= 1
                continue
            self._busy -= 1
            finish, job.finish = job.finish, None
            if finish is not None:
                finish(job.result, job.error)
            job.result = job.error = None


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        wrapped = RuntimeError("a function on a thread raised StopIteration")
        wrapped.__cause__ = error
        future.set_exception(wrapped)
    else:
        future.set_exception(error)
