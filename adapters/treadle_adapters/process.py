"""Performs attempts in processes of this machine: a pool of warm workers, or a new one for each call.

Knows processes, pipes and signals; what a worker does with an attempt is in ``treadle.worker``, what is said to it in
``_wire``, and who starts it in ``_nursery``.

Theory of operation
* Workers are started by a nursery, one process per open executor, which says when and how each of them ended. So
  nothing here waits for a process, and whatever a step leaves behind is found.
* Each worker has a socket for messages and two pipes for what is printed. All of them are read as long as it lives.
* A worker that was stopped, has crashed, or has imported code that was edited since, is never used again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

from treadle.contracts import Attempt, Performed, Raised, Sink
from treadle.errors import ExecutorUnavailable, OptionError, StepCrashed, WorkerProtocolError
from treadle_adapters import _wire as wire
from treadle_adapters._nursery import ENDED, FORK, READY, RECORD, SIGNAL, STARTED
from treadle_adapters._streams import Printed

ALWAYS_PASSED: Final = ("PATH", "LANG", "TZ", "HOME", "TMPDIR")
READ_BYTES: Final = 64 * 1024
LAST_S: Final = 1.0
"""How long a process may take to be gone after it was killed."""


class Worker:
    """One worker process as the engine's side sees it.

    ``ended`` is done when the process is gone, with its exit code (negative: the signal).
    """

    def __init__(self, number: int, connection: socket.socket, out: int, err: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.number, self.pid = number, 0
        self.ended: asyncio.Future[int] = self.loop.create_future()
        self.known: dict[tuple[str, str], bytes] = {}
        self.group = ""
        self.calls = 0
        self.is_retired = False
        self._connection = connection
        self._frames = wire.Frames()
        self._printed = (Printed(out, "stdout", "info"), Printed(err, "stderr", "error"))
        self._unsent = bytearray()
        self._surroundings: tuple[list[str], str, str, int] | None = None
        self._answer: asyncio.Future[Performed | Raised] | None = None
        self._sink: Sink | None = None
        self.fault: WorkerProtocolError | None = None
        self.on_fault: Callable[[Worker], None] = lambda _: None
        connection.setblocking(False)
        self.loop.add_reader(connection.fileno(), self._read)
        for printed in self._printed:
            self.loop.add_reader(printed.fd, self._read_printed, printed)

    @property
    def is_alive(self) -> bool:
        """Whether it can be given attempts."""
        return not self.ended.done() and not self.is_retired and self.fault is None

    def begin(self, attempt: Attempt, sink: Sink) -> asyncio.Future[Performed | Raised]:
        """Send an attempt; gives the future of its outcome."""
        self.calls += 1
        self.group = attempt.group
        self.known[attempt.module, attempt.qualname] = attempt.code
        self._sink = sink
        self._answer = self.loop.create_future()
        for printed in self._printed:
            printed.begin(sink)
        data = wire.frame(wire.Perform(self.calls, attempt))
        surroundings = (sys.path.copy(), _folder(), attempt.main, logging.getLogger().level)
        if surroundings != self._surroundings:
            self._surroundings = surroundings
            data = wire.frame(_prepare(attempt.main)) + data
        self._send(data)
        return self._answer

    def has_ended(self, code: int) -> None:
        """The nursery says that the process is gone."""
        if self.ended.done():
            return
        self._finish_printing()
        self.close()
        self.ended.set_result(code)
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(self.fault or _crashed(code, self._printed[1].tail))

    def leave(self) -> None:
        """Ask it to end, which it does if it is idle."""
        self._send(wire.frame(wire.Leave()))

    def close(self) -> None:
        """Give back what belongs to this side; a second time, this does nothing."""
        if self._connection.fileno() >= 0:
            self.loop.remove_reader(self._connection.fileno())
            self.loop.remove_writer(self._connection.fileno())
            self._connection.close()
        for printed in self._printed:
            if printed.fd >= 0:
                self.loop.remove_reader(printed.fd)
                printed.close()

    # -- messages -------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        if self._connection.fileno() < 0:
            return
        if not self._unsent:
            try:
                sent = self._connection.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # it has died, which the nursery is about to say
            data = data[sent:]
            if not data:
                return
            self.loop.add_writer(self._connection.fileno(), self._send_more)
        self._unsent += data

    def _send_more(self) -> None:
        try:
            del self._unsent[: self._connection.send(self._unsent[:READ_BYTES])]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()
        if not self._unsent:
            self.loop.remove_writer(self._connection.fileno())

    def _read(self) -> None:
        try:
            data = self._connection.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.loop.remove_reader(self._connection.fileno())
            if not self.is_retired:
                # It has died, or has closed what it cannot do without; the nursery says which.
                self.loop.call_later(LAST_S / 2, self.on_fault, self)
            return
        try:
            for message in self._frames.feed(data):
                self._take(message)
        except WorkerProtocolError as error:
            self._blame(error)

    def _take(self, message: wire.FromWorker) -> None:
        sink = self._sink
        if isinstance(message, wire.Answered):
            self._answered(message)
        elif isinstance(message, wire.Ready):
            if message.version != wire.VERSION:
                raise WorkerProtocolError(
                    f"a worker speaks version {message.version} of the protocol, and this is {wire.VERSION}",
                    fix="have one release of treadle on both sides",
                )
        elif sink is not None:
            if isinstance(message, wire.Said):
                sink.say(message.level, message.message, "log")
            elif isinstance(message, wire.Noted):
                sink.note(message.facts)
            else:
                sink.progress(message.done, message.total)

    def _answered(self, message: wire.Answered) -> None:
        answer = self._answer
        if answer is None or message.number != self.calls:
            raise WorkerProtocolError("a worker answered what it was not asked", why="it was killed for it")
        self._finish_printing()
        self._answer = self._sink = None
        if not answer.done():
            answer.set_result(message.outcome)

    def _blame(self, error: WorkerProtocolError) -> None:
        self.fault = error
        self.loop.remove_reader(self._connection.fileno())
        self.on_fault(self)

    # -- what is printed ------------------------------------------------------------------

    def _read_printed(self, printed: Printed) -> None:
        if not printed.read():
            self.loop.remove_reader(printed.fd)

    def _finish_printing(self) -> None:
        for printed in self._printed:
            printed.finish()


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
        _check(workers is None or (type(workers) is int and workers > 0), "workers", workers, "a whole number from 1")
        _check(_is_flag(fresh), "fresh", fresh, "True or False")
        _check(_are_names(env), "env", env, "a tuple of names")
        _check(_is_time(grace), "grace", grace, "seconds from 0")
        _check(
            calls_per_worker is None or (type(calls_per_worker) is int and calls_per_worker > 0),
            "calls_per_worker", calls_per_worker, "a whole number from 1, or None",
        )  # fmt: skip
        self._size = workers or _cores()
        self._is_fresh, self._most_calls = fresh, calls_per_worker
        self._env, self._grace_s = tuple(env), float(grace)
        self._workers: dict[int, Worker] = {}
        self._idle: dict[Worker, None] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._count = 0
        self._nursery: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._heard = bytearray()
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
        await asyncio.wait([self._is_ready])  # so that no attempt pays for it out of its timeout
        if self._is_ready.result() is False:
            await self.close()
            raise ExecutorUnavailable(
                "the process that starts workers has ended at once", why="what it said is above, on stderr"
            )

    async def perform(self, attempt: Attempt, sink: Sink) -> Performed | Raised:
        """See ``treadle.contracts.Executor``."""
        worker = self._take(attempt)
        try:
            return await worker.begin(attempt, sink)
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
        if ends:
            await asyncio.wait(ends, timeout=self._grace_s)
        await self._close_nursery()
        for worker in list(self._workers.values()):
            worker.has_ended(-signal.SIGKILL)
        self._workers.clear()
        for task in list(self._endings):
            task.cancel()

    # -- the pool -------------------------------------------------------------------------

    def _take(self, attempt: Attempt) -> Worker:
        """An idle worker that has no other code of this step, if possible the one of its group; else a new one."""
        found: Worker | None = None
        for worker in list(self._idle):
            if not worker.is_alive:
                del self._idle[worker]
            elif worker.known.get((attempt.module, attempt.qualname), attempt.code) != attempt.code:
                self._retire(worker)
            elif (attempt.group and worker.group == attempt.group) or (found is None and not self._is_fresh):
                found = worker
        if found is None:
            if self._idle and sum(worker.is_alive for worker in self._workers.values()) >= self._size:
                self._retire(next(iter(self._idle)))
            return self._start()
        del self._idle[found]
        return found

    def _put_back(self, worker: Worker) -> None:
        if not worker.is_alive or not self._is_open:
            return
        has_done_enough = self._most_calls is not None and worker.calls >= self._most_calls
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
        ours, theirs = socket.socketpair()
        out, their_out = os.pipe()
        err, their_err = os.pipe()
        try:
            record = RECORD.pack(FORK, self._count, 0, 0)
            socket.send_fds(control, [record], [theirs.fileno(), their_out, their_err])
        except OSError as error:
            ours.close()
            os.close(out)
            os.close(err)
            raise ExecutorUnavailable("no worker can be started", why=str(error), fix="try again") from error
        finally:
            theirs.close()
            os.close(their_out)
            os.close(their_err)
        worker = self._workers[self._count] = Worker(self._count, ours, out, err)
        worker.on_fault = self._kill
        return worker

    # -- ending workers -------------------------------------------------------------------

    async def _end(self, worker: Worker) -> None:
        """End a worker for good; a second cancellation leaves that to itself, and does not stop it."""
        worker.is_retired = True
        await asyncio.shield(self._ending(self._stop(worker)))

    def _ending(self, stopping: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(stopping)
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
        if self._control is not None and not worker.ended.done():
            try:
                self._control.send(RECORD.pack(SIGNAL, worker.number, number, 0))
            except OSError:
                return  # the nursery is gone, and its workers with it

    # -- the nursery ----------------------------------------------------------------------

    def _start_nursery(self) -> None:
        if sys.platform == "win32" or not sys.executable:
            raise ExecutorUnavailable(
                "processes for steps cannot be started here",
                why="the system has no fork" if sys.executable else "this interpreter does not know its own program",
                fix="use runtime='inline'",
            )
        self._is_ready = self._loop.create_future()
        ours, theirs = socket.socketpair()
        program = str(Path(__file__).with_name("_nursery.py"))
        flags = ["-B"] if sys.dont_write_bytecode else []
        try:
            self._nursery = subprocess.Popen(
                [sys.executable, "-P", *flags, program, str(theirs.fileno()), str(os.getpid())],
                env=self._environment(), pass_fds=(theirs.fileno(),), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            ours.close()
            raise ExecutorUnavailable("processes for steps cannot be started", why=str(error)) from error
        finally:
            theirs.close()
        setup = json.dumps({"path": _import_path()}).encode()
        ours.sendall(len(setup).to_bytes(4, "little") + setup)
        ours.setblocking(False)
        self._control = ours
        self._heard.clear()
        self._loop.add_reader(ours.fileno(), self._hear)

    def _environment(self) -> dict[str, str]:
        return {
            name: value
            for name, value in os.environ.items()
            if name in ALWAYS_PASSED or name.startswith("LC_") or name in self._env
        }

    def _hear(self) -> None:
        control = self._control
        if control is None:
            return
        try:
            data = control.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._nursery_died()
            return
        self._heard += data
        while len(self._heard) >= RECORD.size:
            what, number, first, _ = RECORD.unpack_from(self._heard)
            del self._heard[: RECORD.size]
            if what == READY and not self._is_ready.done():
                self._is_ready.set_result(True)
            worker = self._workers.get(number)
            if worker is None:
                continue
            if what == STARTED:
                worker.pid = first
            elif what == ENDED:
                self._workers.pop(number, None)
                self._idle.pop(worker, None)
                worker.has_ended(first)

    def _nursery_died(self) -> None:
        """Somebody has killed it, and the kernel its workers; what those have left behind is killed here."""
        self._drop_control()
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

    def _drop_control(self) -> None:
        if self._control is not None:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
            self._control = None

    async def _close_nursery(self) -> None:
        """Closing its socket ends it, and everything below it."""
        self._drop_control()
        nursery, self._nursery = self._nursery, None
        if nursery is None:
            return
        for _ in range(300):
            if nursery.poll() is not None:
                return
            await asyncio.sleep(0.01)
        nursery.kill()
        nursery.wait()


# -- what workers get -------------------------------------------------------------------------


def _prepare(main: str) -> wire.Prepare:
    return wire.Prepare(wire.VERSION, tuple(_import_path()), _folder(), main, logging.getLogger().level)


def _import_path() -> list[str]:
    """Absolute, since a worker may be somewhere else when it imports."""
    return [os.path.abspath(entry) for entry in sys.path]


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"  # the folder was removed


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _crashed(code: int, said: str) -> StepCrashed:
    number = -code if code < 0 else None
    if number is None:
        how = f"with exit code {code}"
    else:
        try:
            how = f"by {signal.Signals(number).name}"
        except ValueError:
            how = f"by signal {number}"
    return StepCrashed(
        f"the process of the step ended {how} and without an answer",
        why=f"its last words were: {said}" if said else "it said nothing",
        fix="see what ended it: memory, a signal, os._exit, or a library that crashed",
        exit_code=code if number is None else None,
        signal=number,
        oom=False,
    )


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _are_names(value: Any) -> bool:
    return isinstance(value, (tuple, list, set, frozenset)) and all(isinstance(name, str) for name in value)


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")


def _check(is_right: bool, name: str, value: object, wanted: str) -> None:
    if not is_right:
        raise OptionError(f"ProcessExecutor({name}={value!r}) is not allowed", fix=f"give {wanted}", option=name)
