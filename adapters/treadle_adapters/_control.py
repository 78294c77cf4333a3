"""The engine's end of the socket to a nursery: what it is asked to do, and what it says of its workers.

Knows the nursery's records; who has a nursery, and what an end of a worker means there, is told in ``process`` and
``_box``.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import Context

from treadle_adapters._forks import kept_here
from treadle_adapters._nursery import FORK, RECORD, SIGNAL
from treadle_adapters._peer import Worker, received

Heard = Callable[[int, int, int, int], None]
"""Takes a record: what it says, of which worker, and two numbers."""
PRINTABLE_BY_ALL = 0o622
"""The mode of what a worker prints to, where it is another user: so that ``/dev/stdout`` can be opened there, too."""


class Control:
    """The engine's end of a nursery's socket.

    Args:
        connection: the socket, which belongs to this object.
        heard: called for each record.
        lost: called once, when the nursery is gone; not when this side has closed the socket.
    """

    def __init__(self, connection: socket.socket, heard: Heard, lost: Callable[[], None]) -> None:
        self._connection, self._heard, self._lost = kept_here(connection), heard, lost
        self._begun = bytearray()
        self._loop = asyncio.get_running_loop()
        connection.setblocking(False)
        Context().run(self._loop.add_reader, connection.fileno(), self._hear)  # no caller's: it outlives the call

    def fork(self, number: int, *, is_stranger: bool = False) -> Worker:
        """Have a worker started.

        Args:
            number: its name; no other worker of this nursery has or had it.
            is_stranger: whether it may be another user than this process.

        Raises:
            OSError: it cannot be asked for, or there are too many open files.
        """
        with ExitStack() as ours, ExitStack() as theirs:
            line, their_line = socket.socketpair()
            ours.enter_context(line)
            theirs.enter_context(their_line)
            ends = [_pipe(ours, theirs), _pipe(ours, theirs)]
            for _, their_end in ends if is_stranger else ():
                os.fchmod(their_end, PRINTABLE_BY_ALL)
            record = RECORD.pack(FORK, number, 0, 0)
            socket.send_fds(self._connection, [record], [their_line.fileno(), *(their_end for _, their_end in ends)])
            ours.pop_all()
        return Worker(number, line, *(end for end, _ in ends))

    def signal(self, worker: Worker, number: int) -> None:
        """Send a signal to a worker and all of its process group."""
        if self._connection.fileno() >= 0 and not worker.ended.done():
            try:
                self._connection.send(RECORD.pack(SIGNAL, worker.number, number, 0))
            except OSError:
                return  # the nursery is gone, and its workers with it

    def close(self) -> None:
        """Close the socket, which ends the nursery and everything below it; a second time, this does nothing."""
        if self._connection.fileno() >= 0:
            self._loop.remove_reader(self._connection.fileno())
            self._connection.close()

    def _hear(self) -> None:
        data = received(self._connection)
        if data is None:
            return
        if not data:
            self.close()
            self._lost()
            return
        begun = self._begun
        begun += data
        while len(begun) >= RECORD.size:
            record = RECORD.unpack_from(begun)
            del begun[: RECORD.size]
            self._heard(*record)


def _pipe(ours: ExitStack, theirs: ExitStack) -> tuple[int, int]:
    """The end that is read here, and the one that a worker prints to."""
    end, their_end = os.pipe()
    ours.callback(os.close, end)
    theirs.callback(os.close, their_end)
    return end, their_end
