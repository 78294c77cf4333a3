"""The worker's side of the protocol: reads attempts from a socket, performs them, and sends back what they say.

The step's code runs on the main thread, so that signals and libraries that want it find it there. File descriptors 1
and 2 are pipes to the engine: whatever is printed, also by C code and by other programs, comes out there. The protocol
has a socket of its own.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from types import FrameType

from treadle.worker import Worker
from treadle_adapters import _wire as wire

MESSAGE_CHARS = 64 * 1024


class Line:
    """The socket to the engine; messages may be sent from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, message: wire.FromWorker) -> None:
        """Send a message."""
        data = wire.frame(message)
        with self._lock:
            self._connection.sendall(data)

    def receive(self) -> wire.ToWorker | None:
        """The next message; ``None`` when the engine is gone."""
        head = self._exactly(4)
        body = self._exactly(wire.length_of(head)) if head else b""
        return wire.to_worker(body) if body else None

    def _exactly(self, count: int) -> bytes:
        data = self._connection.recv(count)
        if len(data) == count or not data:
            return data
        parts = bytearray(data)
        while len(parts) < count:
            data = self._connection.recv(count - len(parts))
            if not data:
                return b""
            parts += data
        return bytes(parts)


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
            self._sink.say(record.levelname.lower(), text, "log")
        except OSError:
            return  # the engine is gone, and this process is about to notice


class Stopped(SystemExit):
    """The engine asks the attempt to end: raised in the step's code, so that its ``finally`` blocks run."""


def serve(connection: socket.socket) -> None:
    """Perform what comes until the engine is gone."""
    line = Line(connection)
    sink = LineSink(line)
    handler = Handler(sink)
    signal.signal(signal.SIGTERM, _stop)
    line.send(wire.Ready(wire.VERSION, os.getpid()))
    worker = Worker()
    while (message := line.receive()) is not None and not isinstance(message, wire.Leave):
        if isinstance(message, wire.Prepare):
            _prepare(message, handler)
            continue
        outcome = worker.perform(message.attempt, sink)
        _flush()
        if _is_stopped:
            return
        line.send(wire.Answered(message.number, outcome))
        del message, outcome  # a worker that waits keeps no values


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
