"""The worker's side of the protocol: reads attempts from a socket, performs them, and sends back what they say.

The step's code runs on the main thread, so that signals and libraries that want it find it there. File descriptors 1
and 2 are pipes to the engine: whatever is printed, also by C code and by other programs, comes out there. The protocol
has a socket of its own.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from treadle.contracts import Needs, Performed, Raised
from treadle.worker import Worker
from treadle_adapters import _wire as wire
from treadle_adapters._children import children_of

if TYPE_CHECKING:
    from treadle_adapters._groups import Group

MESSAGE_CHARS = 64 * 1024
READ_BYTES = 64 * 1024
MOST_ZOMBIES = 64
LOOK_EACH = 16
"""After so many attempts there is a look at what has ended, which takes milliseconds if anything has."""
KEEP_S = 10.0
"""So long values of an execution group stay in memory, waiting for its next step."""


class Line:
    """The socket to the engine; messages may be sent from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._lock = connection, threading.Lock()
        self._begun = bytearray()

    def send(self, message: wire.FromWorker) -> None:
        """Send a message."""
        data = wire.frame(message)
        with self._lock:
            self._connection.sendall(data)

    def receive(self) -> wire.ToWorker | None:
        """The next message; ``None`` when the engine is gone."""
        begun, head = self._begun, wire.HEAD.size
        end = head
        while len(begun) < head or len(begun) < (end := head + wire.length_of(begun[:head])):
            data = self._connection.recv(READ_BYTES)
            if not data:
                return None
            begun += data
        body = bytes(begun[head:end])
        del begun[:end]
        return wire.to_worker(body)

    def is_quiet(self, seconds: float) -> bool:
        """Wait for the next message; whether none came."""
        return not self._begun and not select.select([self._connection], [], [], seconds)[0]


class LineSink:
    """Sends on what a step says."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def say(self, level: str, message: str, stream: str) -> None:
        """A record of ``logging``; what is printed goes its own way."""
        del stream
        self._line.send(wire.Said(level, message[:MESSAGE_CHARS]))

    def note(self, facts: bytes) -> None:
        """Metadata of the call."""
        self._line.send(wire.Noted(facts))

    def progress(self, done: float, total: float | None) -> None:
        """How far the step is."""
        self._line.send(wire.Progressed(done, total))


class Handler(logging.Handler):
    """Sends records of ``logging`` to the log of the attempt."""

    def __init__(self, sink: LineSink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            text = self.format(record)
        except Exception:
            text = str(record.msg)
        try:
            self._sink.say(str(record.levelname).lower(), text.encode("utf-8", "replace").decode(), "log")
        except OSError:
            return  # the engine is gone, and this process is about to notice


class Stopped(SystemExit):
    """The engine asks the attempt to end: raised in the step's code, so that its ``finally`` blocks run."""


def serve(connection: socket.socket, group: Group | None = None) -> None:
    """Perform what comes until the engine is gone; within the bounds of a control group, if there can be one."""
    line = Line(connection)
    sink = LineSink(line)
    handler = Handler(sink)
    signal.signal(signal.SIGTERM, _stop)
    line.send(wire.Ready(wire.VERSION, os.getpid()))
    worker, pid = Worker(is_alone=True), os.getpid()
    while (message := line.receive()) is not None and not isinstance(message, wire.Leave):
        if isinstance(message, wire.Prepare):
            _prepare(message, handler)
            continue
        with _bounded(group, message.attempt.needs):
            outcome = worker.perform(message.attempt, sink)
            if os.getpid() != pid:
                _end_copy(outcome)
        _flush()
        if _is_stopped:
            return
        is_spent = worker.is_spent or (message.number % LOOK_EACH == 0 and _has_too_many_zombies())
        line.send(wire.Answered(message.number, outcome, is_spent))
        del message, outcome  # a worker that waits keeps no values, but for a group, and for a while
        if worker.keeps_any and line.is_quiet(KEEP_S):
            worker.forget()


def _has_too_many_zombies() -> bool:
    """Whether many processes have ended here for which nobody waits: their ids are free again when this one has ended.

    They are not waited for: which of them are left over, and which somebody here will ask for, is not known.
    """
    if sys.platform != "linux":  # elsewhere nothing is left to a worker
        return False
    try:
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
    except ChildProcessError:
        return False
    return len(children_of(os.getpid(), ended=True)) > MOST_ZOMBIES


def _end_copy(outcome: Performed | Raised) -> NoReturn:
    """End a process that the step has forked and whose code has ended, too: the call is not its to answer."""
    code = 0
    if isinstance(outcome, Raised):
        said = outcome.message if outcome.type_name == "builtins:SystemExit" else outcome.traceback
        code = int(said) & 0xFF if said.isdecimal() else int(said not in ("", "None"))
        with suppress(OSError, ValueError, AttributeError):  # the step has closed or replaced it
            sys.stderr.write("" if said.isdecimal() or not code else f"{said}\n")
    _flush()
    os._exit(code)


@contextmanager
def _bounded(group: Group | None, needs: Needs) -> Generator[None, None, None]:
    if group is None or not (needs.memory or needs.cpu):
        yield
        return
    try:
        group.bound(needs.memory, needs.cpu)
    except OSError:
        pass  # it was not possible, which is no reason to perform nothing
    try:
        yield
    finally:
        group.release()


def _prepare(message: wire.Prepare, handler: Handler) -> None:
    sys.path[:] = message.path
    sys.argv = [message.program]
    try:
        os.chdir(message.folder)
    except OSError as error:
        sys.stderr.write(f"the worker cannot go to the folder of the engine's process: {error}\n")
    root = logging.getLogger()
    if handler not in root.handlers:
        root.addHandler(handler)
    root.setLevel(message.log_level)


def _stop(number: int, frame: FrameType | None) -> None:
    global _is_stopped
    del frame
    _is_stopped = True
    raise Stopped(128 + number)


_is_stopped = False


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue  # the step has closed or replaced it
