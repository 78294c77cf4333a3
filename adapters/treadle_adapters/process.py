"""Performs attempts in processes of this machine: a pool of warm workers, or a new one for each call.

Knows processes, pipes and signals; what a worker does with an attempt is in ``treadle.worker``, what is said to it in
``_wire``, who starts it in ``_nursery``, and this side of one worker in ``_peer``.

Theory of operation
* Workers are started by a nursery, one process per open executor, which says when and how each of them ended. So
  nothing here waits for a process, and whatever a step leaves behind is found.
* Each worker has a socket for messages and two pipes for what is printed. All of them are read as long as it lives.
* A worker that was stopped, has crashed, or has imported code that was edited since, is never used again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack, suppress
from contextvars import Context
from pathlib import Path
from typing import Final

from treadle.contracts import Attempt, Performed, Raised, Sink
from treadle.errors import ExecutorUnavailable
from treadle_adapters import _groups
from treadle_adapters._checks import are_names, checks, cores, is_count, is_flag, is_time
from treadle_adapters._control import Control
from treadle_adapters._interpreter import options
from treadle_adapters._nursery import ENDED, READY, STARTED, introduction
from treadle_adapters._peer import LAST_S, Surroundings, Worker, import_path, surroundings

ALWAYS_PASSED: Final = ("PATH", "LANG", "TZ", "HOME", "TMPDIR")


class ProcessExecutor:
    """Performs steps in processes of this machine.

    Args:
        workers: how many at once; by default as many as this process has cores.
        fresh: a new process for every call, instead of warm ones that are used again; the calls of one execution group
            in one run share theirs.
        env: names of environment variables that workers get, beside ``PATH``, ``LANG``, ``LC_*``, ``TZ``, ``HOME`` and
            ``TMPDIR``. Everything else of the environment stays here.
        grace: seconds between the request to end (SIGTERM, which raises ``SystemExit`` in the step, so that its
            ``finally`` blocks run) and the end (SIGKILL to its whole process group).
        calls_per_worker: after so many calls a worker is replaced, for steps that leak; by default never.

    Raises:
        OptionError: an option is not allowed.

    >>> ProcessExecutor(workers=2, env=("AWS_PROFILE",))
    <ProcessExecutor of 2 workers, 0 running>
    """

    trusted = True

    def __init__(
        self,
        workers: int | None = None,
        *,
        fresh: bool = False,
        env: Sequence[str] = (),
        grace: float = 2.0,
        calls_per_worker: int | None = None,
    ) -> None:
        check = checks("ProcessExecutor")
        check(workers is None or is_count(workers), "workers", workers, "a whole number from 1")
        check(is_flag(fresh), "fresh", fresh, "True or False")
        check(are_names(env), "env", env, "a tuple of names; values come from the environment")
        check(is_time(grace), "grace", grace, "seconds from 0")
        most = calls_per_worker
        check(most is None or is_count(most), "calls_per_worker", most, "a whole number from 1, or None")
        self._size = workers or cores()
        self._is_fresh, self._most_calls = fresh, calls_per_worker
        self._env, self._grace_s = tuple(env), float(grace)
        self._workers: dict[int, Worker] = {}
        self._idle: dict[Worker, None] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._count = 0
        self._nursery: subprocess.Popen[bytes] | None = None
        self._control: Control | None = None
        self._is_open = False
        self._is_ready: asyncio.Future[bool]

    @property
    def slots(self) -> int:
        """How many attempts it performs at once."""
        return self._size

    def __repr__(self) -> str:
        return f"<ProcessExecutor of {self._size} workers, {len(self._workers)} running>"

    async def open(self) -> None:
        """Start the process that starts the workers.

        Raises:
            ExecutorUnavailable: processes cannot be started here, or the executor is open in another engine.
        """
        if self._is_open:
            raise ExecutorUnavailable(
                "a ProcessExecutor is used by two engines at once", fix="give each engine one of its own"
            )
        self._loop = asyncio.get_running_loop()
        self._start_nursery()
        self._is_open = True
        try:
            await asyncio.wait([self._is_ready])  # so that no attempt pays for it out of its timeout
        except BaseException:
            await self.close()
            raise
        if self._is_ready.result() is False:
            await self.close()
            raise ExecutorUnavailable(
                "the process that starts workers has ended at once", why="what it said is above, on stderr"
            )

    async def perform(self, attempt: Attempt, sink: Sink) -> Performed | Raised:
        """See ``treadle.contracts.Executor``."""
        return await self.perform_in(surroundings(attempt.main), attempt, sink)

    async def perform_in(self, around: Surroundings, attempt: Attempt, sink: Sink) -> Performed | Raised:
        """As ``perform``, with the import path, folder, program and level of logging of another process."""
        worker = self._take(attempt)
        try:
            return await worker.begin(attempt, sink, around)
        except BaseException:
            if not worker.ended.done():
                await self._end(worker)
            raise
        finally:
            self._put_back(worker)

    async def close(self) -> None:
        """Ask idle workers to end, end the others, and leave nothing behind."""
        self._is_open = False
        for worker in list(self._workers.values()):
            worker.is_retired = True
            if worker in self._idle:
                worker.leave()
            else:
                self._signal(worker, signal.SIGTERM)
        self._idle.clear()
        ends = [worker.ended for worker in self._workers.values()]
        try:
            if ends:
                await asyncio.wait(ends, timeout=self._grace_s)
        finally:
            await self._let_go()

    async def _let_go(self) -> None:
        """Also when the closing is cancelled: nothing may stay open."""
        try:
            await self._close_nursery()
            if self._endings:
                await asyncio.wait(self._endings, timeout=LAST_S)
        finally:
            for worker in list(self._workers.values()):
                worker.has_ended(-signal.SIGKILL)
            self._workers.clear()
            for task in list(self._endings):
                task.cancel()

    # -- the pool -------------------------------------------------------------------------

    def _take(self, attempt: Attempt) -> Worker:
        """An idle worker that has no other code of this step: that of its group, or one of none; else a new one.

        A group's worker goes to others only if there is neither another one nor room for a new one.
        """
        free: Worker | None = None
        others: Worker | None = None
        for worker in list(self._idle):
            if not worker.is_alive:
                del self._idle[worker]
            elif worker.known.get((attempt.module, attempt.qualname), attempt.code) != attempt.code:
                self._retire(worker)
            elif attempt.group and worker.group == attempt.group:
                free = worker
                break
            elif not worker.group:
                free = free or worker
            else:
                others = others or worker
        if free is None and others is not None and self._is_full():
            if self._is_fresh:
                self._retire(others)
            else:
                free = others
        if free is None:
            return self._start()
        del self._idle[free]
        return free

    def _is_full(self) -> bool:
        return sum(worker.is_alive for worker in self._workers.values()) >= self._size

    def _put_back(self, worker: Worker) -> None:
        if not worker.is_alive or not self._is_open:
            return
        has_done_enough = worker.is_spent or (self._most_calls is not None and worker.calls >= self._most_calls)
        if has_done_enough or (self._is_fresh and not worker.group):
            self._retire(worker)
        else:
            self._idle[worker] = None

    def _retire(self, worker: Worker) -> None:
        """Let an idle worker end by itself; one that does not is ended."""
        self._idle.pop(worker, None)
        worker.is_retired = True
        worker.leave()
        self._ending(self._see_off(worker))

    async def _see_off(self, worker: Worker) -> None:
        await asyncio.wait([worker.ended], timeout=self._grace_s)
        if not worker.ended.done():
            await self._stop(worker)

    def _start(self) -> Worker:
        if self._control is None:
            self._start_nursery()
        control = self._control
        assert control is not None
        self._count += 1
        try:
            worker = self._workers[self._count] = control.fork(self._count)
        except OSError as error:
            raise ExecutorUnavailable("no worker can be started", why=str(error), fix="try again") from error
        worker.on_fault = self._kill
        return worker

    # -- ending workers -------------------------------------------------------------------

    async def _end(self, worker: Worker) -> None:
        """End a worker for good; a second cancellation leaves that to itself, and does not stop it."""
        worker.is_retired = True
        await asyncio.shield(self._ending(self._stop(worker)))

    def _ending(self, stopping: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(stopping, context=Context())
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        return task

    async def _stop(self, worker: Worker) -> None:
        self._signal(worker, signal.SIGTERM)
        await asyncio.wait([worker.ended], timeout=self._grace_s)
        if not worker.ended.done():
            self._signal(worker, signal.SIGKILL)
            await asyncio.wait([worker.ended], timeout=LAST_S)

    def _kill(self, worker: Worker) -> None:
        if not worker.ended.done():
            worker.is_retired = True
            self._signal(worker, signal.SIGKILL)

    def _signal(self, worker: Worker, number: int) -> None:
        if self._control is not None:
            self._control.signal(worker, number)

    # -- the nursery ----------------------------------------------------------------------

    def _start_nursery(self) -> None:
        if sys.platform == "win32" or not sys.executable:
            raise ExecutorUnavailable(
                "processes for steps cannot be started here",
                why="the system has no fork" if sys.executable else "this interpreter does not know its own program",
                fix="use runtime='inline'",
            )
        self._is_ready = self._loop.create_future()
        program = str(Path(__file__).with_name("_nursery.py"))
        with ExitStack() as ends:
            try:
                ours, theirs = map(ends.enter_context, socket.socketpair())
                self._nursery = subprocess.Popen(
                    [sys.executable, "-P", *options(), program, str(theirs.fileno()), str(os.getpid())],
                    env=self._environment(), pass_fds=(theirs.fileno(),), start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                )  # fmt: skip
            except OSError as error:
                raise ExecutorUnavailable("processes for steps cannot be started", why=str(error)) from error
            with suppress(OSError):  # it has ended already, which is about to be heard
                ours.sendall(introduction(import_path()))
            ends.pop_all()
            theirs.close()
        self._control = Control(ours, self._hear, self._nursery_died)

    def _environment(self) -> dict[str, str]:
        return {
            name: value
            for name, value in os.environ.items()
            if name in ALWAYS_PASSED or name.startswith("LC_") or name in self._env
        }

    def _hear(self, what: int, number: int, first: int, second: int) -> None:
        if what == READY and not self._is_ready.done():
            self._is_ready.set_result(True)
        worker = self._workers.get(number)
        if worker is None:
            return
        if what == STARTED:
            worker.pid = first
        elif what == ENDED:
            self._workers.pop(number, None)
            self._idle.pop(worker, None)
            worker.has_ended(first, oom=second > 0)

    def _nursery_died(self) -> None:
        """Somebody has killed it, and the kernel its workers; what those have left behind is killed here."""
        self._control = None
        if not self._is_ready.done():
            self._is_ready.set_result(False)
        for worker in list(self._workers.values()):
            if worker.pid:
                try:
                    os.killpg(worker.pid, signal.SIGKILL)
                except OSError:
                    pass
            worker.has_ended(-signal.SIGKILL)
        self._workers.clear()
        self._idle.clear()
        nursery, self._nursery = self._nursery, None
        if nursery is not None:
            nursery.kill()
            nursery.wait()
            self._ending(_swept())

    async def _close_nursery(self) -> None:
        """Closing its socket ends it, and everything below it."""
        control, self._control = self._control, None
        if control is not None:
            control.close()
        nursery, self._nursery = self._nursery, None
        if nursery is None:
            return
        try:
            for _ in range(300):
                if nursery.poll() is not None:
                    return
                await asyncio.sleep(0.01)
        finally:
            if nursery.poll() is None:
                nursery.kill()
                nursery.wait()


async def _swept() -> None:
    """Remove the control groups of a nursery that was killed, and end what is in them."""
    for _ in range(100):
        if _groups.is_swept():
            return
        await asyncio.sleep(0.01)
