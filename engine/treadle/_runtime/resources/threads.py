"""Worker threads for sync code: daemons, completions in batches, stuck ones left behind.

Own pool, because ``anyio.to_thread`` and the loop's executor ignore a timeout or delay
the end of the process by seconds, and wake the loop once per result. Knows functions,
not steps.

A thread may be leased: after a job it waits for the next one of its lease and takes no
other, until the lease ends. A lease is a preference, no possession: when there is work and
no other thread, the lease that has been idle longest ends, those that are kept for
something certain last.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

Finish = Callable[[Any, BaseException | None], None]
Owner = tuple[Hashable, Hashable]


class Lease:
    """A thread that is kept for jobs which follow each other.

    Attributes:
        owner: whose jobs they are: the whole and the part of it.
        kept_for: the job that certainly comes next, or is under way; ``""`` if there may be none.
    """

    __slots__ = ("jobs", "kept_for", "owner")

    def __init__(self, owner: Owner) -> None:
        self.owner, self.kept_for = owner, ""
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()


class Job:
    """One function on its way through the pool."""

    __slots__ = ("abandoned", "delivered", "error", "finish", "fn", "lease", "result", "started")

    def __init__(self, fn: Callable[[], Any], finish: Finish, lease: Lease | None = None) -> None:
        self.fn: Callable[[], Any] | None = fn
        self.finish: Finish | None = finish
        self.lease = lease
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
        self._idle: dict[Lease, None] = {}
        self._is_closed = False
        self.abandoned = self.late = 0

    def start(self, fn: Callable[[], Any], finish: Finish, lease: Lease | None = None) -> Job:
        """Have a function called on a thread and ``finish(result, error)`` on the loop. Call on the loop.

        Args:
            fn: the function.
            finish: takes its result.
            lease: call it on this one's thread, or on one that is this lease's from now on.
        """
        job = Job(fn, finish, lease)
        if lease is not None and lease in self._idle:
            del self._idle[lease]
            lease.jobs.put(job)
            return job
        self._busy += 1
        if self._busy > self._threads:
            if self._threads < self.size:
                self._threads += 1
                threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
            elif self._idle:
                self._end(next((idle for idle in self._idle if not idle.kept_for), next(iter(self._idle))))
        self._jobs.put(job)
        return job

    def lease(self, owner: Owner, job: str) -> Lease:
        """The lease kept for a job, else the one of its owner that was used last and is kept for none, else a new one.

        It is kept for that job until ``keep`` says otherwise.
        """
        found: Lease | None = None
        for idle in self._idle:
            if idle.owner == owner and idle.kept_for in ("", job):
                found = idle
                if idle.kept_for:
                    break
        found = found or Lease(owner)
        found.kept_for = job
        return found

    def keep(self, owner: Owner, job: str, following: str) -> bool:
        """Keep the lease on which a job ran for another one that follows (``""``: for none); False if there is none."""
        for idle in self._idle:
            if idle.kept_for and idle.owner == owner and idle.kept_for in (job, following):
                idle.kept_for = following
                return True
        return False

    def end_leases(self, whole: Hashable) -> None:
        """Let the threads go that are kept for somebody."""
        if self._idle:
            for idle in [idle for idle in self._idle if idle.owner[0] == whole]:
                self._end(idle)

    def _end(self, lease: Lease) -> None:
        del self._idle[lease]
        self._busy -= 1
        lease.jobs.put(None)

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
        self._is_closed = True
        for idle in [*self._idle]:
            self._end(idle)
        for _ in range(self._threads):
            self._jobs.put(None)

    # -- on the threads -------------------------------------------------------------------

    def _work(self) -> None:
        jobs = self._jobs
        while True:
            job = jobs.get()
            if job is None:
                if jobs is self._jobs:
                    return
                jobs = self._jobs  # the lease has ended
                continue
            jobs = self._jobs if job.lease is None else job.lease.jobs
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
            finish, job.finish = job.finish, None
            if job.lease is None:
                self._busy -= 1
            else:
                self._job_ended(job.lease, is_wanted=finish is not None)
            if finish is not None:
                finish(job.result, job.error)
            job.result = job.error = None

    def _job_ended(self, lease: Lease, *, is_wanted: bool) -> None:
        self._idle[lease] = None
        if self._is_closed or not is_wanted:
            self._end(lease)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif issubclass(type(error), StopIteration):  # not isinstance, which asks the exception itself
        wrapped = RuntimeError("a function on a thread raised StopIteration")
        wrapped.__cause__ = error
        future.set_exception(wrapped)
    else:
        future.set_exception(error)
