"""One worker process as the engine's side sees it: its socket, what it prints, the attempt that it is at.

Knows what is said to a worker and by it; who starts and ends workers is told in ``process``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextvars import Context
from typing import Final

from treadle.contracts import Attempt, Performed, Raised, Sink
from treadle.errors import StepCrashed, WorkerProtocolError
from treadle_adapters import _wire as wire
from treadle_adapters._streams import Printed

READ_BYTES: Final = 64 * 1024
Surroundings = tuple[list[str], str, str, int]
"""Where a step finds itself: import path, folder, program, and the least level of logging."""
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
        self.is_retired = self.is_spent = False
        self._connection = connection
        self._frames = wire.Frames()
        self._printed = (Printed(out, "stdout", "info"), Printed(err, "stderr", "error"))
        self._unsent = bytearray()
        self._surroundings: Surroundings | None = None
        self._answer: asyncio.Future[Performed | Raised] | None = None
        self._was_oom = False
        self._sink: Sink | None = None
        self.fault: WorkerProtocolError | None = None
        self.on_fault: Callable[[Worker], None] = lambda _: None
        connection.setblocking(False)
        context = Context()  # of its own: a worker outlives the call that it is started for
        context.run(self.loop.add_reader, connection.fileno(), self._read)
        for printed in self._printed:
            context.run(self.loop.add_reader, printed.fd, self._read_printed, printed)

    @property
    def is_alive(self) -> bool:
        """Whether it can be given attempts."""
        return not self.ended.done() and not self.is_retired and self.fault is None

    def begin(self, attempt: Attempt, sink: Sink, around: Surroundings) -> asyncio.Future[Performed | Raised]:
        """Send an attempt and where it is to find itself; gives the future of its outcome."""
        if self.ended.done():  # before anybody came to ask it
            crashed: asyncio.Future[Performed | Raised] = self.loop.create_future()
            crashed.set_exception(self._crash())
            return crashed
        self.calls += 1
        self.group = attempt.group
        self.known[attempt.module, attempt.qualname] = attempt.code
        self._sink = sink
        self._answer = self.loop.create_future()
        for printed in self._printed:
            printed.begin(sink)
        data = wire.frame(wire.Perform(self.calls, attempt))
        if around != self._surroundings:
            self._surroundings = around
            data = wire.frame(_prepare(around)) + data
        self._send(data)
        return self._answer

    def has_ended(self, code: int, *, oom: bool = False) -> None:
        """The nursery says that the process is gone, and whether it was killed for want of memory."""
        if self.ended.done():
            return
        self._finish_printing()
        self.close()
        self._was_oom = oom
        self.ended.set_result(code)
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(self._crash())

    def _crash(self) -> Exception:
        return self.fault or _crashed(self.ended.result(), self._printed[1].tail, self._was_oom)

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
        data = received(self._connection)
        if data is None:
            return
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
            raise WorkerProtocolError(
                "a worker answered what it was not asked", why="it was killed for it", fix=wire.ALONE
            )
        self._finish_printing()
        self._answer = self._sink = None
        self.is_spent = message.is_spent
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


def received(connection: socket.socket) -> bytes | None:
    """What has come; ``None`` if nothing has, and no bytes if the other side is gone."""
    try:
        return connection.recv(READ_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""


# -- what workers get -------------------------------------------------------------------------


def surroundings(main: str) -> Surroundings:
    """Those of this process."""
    return sys.path.copy(), folder_here(), main, logging.getLogger().level


def _prepare(around: Surroundings) -> wire.Prepare:
    path, folder, program, level = around
    return wire.Prepare(wire.VERSION, tuple([os.path.abspath(entry) for entry in path]), folder, program, level)


def import_path() -> list[str]:
    """The engine's; absolute, since a worker may be somewhere else when it imports."""
    return [os.path.abspath(entry) for entry in sys.path]


def folder_here() -> str:
    """The current folder of this process."""
    try:
        return os.getcwd()
    except OSError:
        return "/"  # the folder was removed


def _crashed(code: int, said: str, oom: bool) -> StepCrashed:
    number = -code if code < 0 else None
    if number is None:
        how = f"with exit code {code}"
    else:
        try:
            how = f"by {signal.Signals(number).name}"
        except ValueError:
            how = f"by signal {number}"
    why = "it used more memory than it may" if oom else "it said nothing"
    return StepCrashed(
        f"the process of the step ended {how} and without an answer",
        why=f"{why}; its last words were: {said}" if said and oom else f"its last words were: {said}" if said else why,
        fix="give it more with resources={'memory': ...}, or use less" if oom else
        "see what ended it: memory, a signal, os._exit, or a library that crashed",
        exit_code=code if number is None else None,
        signal=number,
        oom=oom,
    )  # fmt: skip
