"""One container with one worker in it, as the engine's side sees it: how it begins, and all the ways it ends.

Knows the nursery inside (``_contained``), the worker behind it (``_peer``) and the folders beside it (``_exchange``);
who decides when there is one, and what it may, is told in ``container``.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from contextvars import Context
from pathlib import Path
from typing import Any, Final

import msgspec

from treadle.contracts import Attempt, Needs, Performed, Raised, Sink
from treadle.errors import ExecutorUnavailable
from treadle_adapters import _contained as inside
from treadle_adapters._control import Control
from treadle_adapters._docker import Daemon
from treadle_adapters._exchange import Exchange, remove
from treadle_adapters._forks import kept_here
from treadle_adapters._nursery import ENDED
from treadle_adapters._peer import LAST_S, Surroundings, Worker
from treadle_adapters._wire import HEAD, length_of

START_S: Final = 60.0
MOST_HELLO_BYTES: Final = 1024 * 1024


class Hello(msgspec.Struct, frozen=True):
    """What the first process says of itself."""

    python: tuple[int, int, int]
    path: tuple[str, ...]
    failed: str
    closed: tuple[str, ...] = ()
    """Folders of code that it may not read."""


class Box:
    """One container.

    Args:
        daemon: the engine that runs it.
        folder: where its exchange is to be.
        uid: whom it runs as, as this machine numbers users.
        kind: what it may use and see; attempts that may the same can go to it.
    """

    def __init__(self, daemon: Daemon, folder: Path, uid: int, kind: tuple[Any, ...]) -> None:
        self.kind, self._daemon = kind, daemon
        self.exchange = Exchange(folder, uid)
        self.id = ""
        self.path: tuple[str, ...] = ()
        self.closed: tuple[str, ...] = ()
        self.worker: Worker | None = None
        self._gone: asyncio.Task[None] | None = None
        self._control: Control | None = None
        self._was_oom = False
        self._finding: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._created = asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def __repr__(self) -> str:
        return f"<Box {self.id[:12] or 'not started'}>"

    @property
    def is_alive(self) -> bool:
        """Whether it can be given attempts."""
        return self.worker is not None and self.worker.is_alive

    # -- beginning ------------------------------------------------------------------------

    async def start(self, request: dict[str, Any], name: str) -> None:
        """Start the container and, in it, the worker; when this is cancelled, ``remove`` brings it to an end.

        Raises:
            ExecutorUnavailable: it cannot be started, or its image is none that a worker can run in.
        """
        self._starting = self._loop.create_task(self._start(request, name), context=Context())
        self._starting.add_done_callback(lambda _: self._created.set())
        await asyncio.shield(self._starting)

    async def _start(self, request: dict[str, Any], name: str) -> None:
        listener = self.exchange.listen()
        try:
            self.id = await self._daemon.create(request, name)
            self._created.set()
            await self._daemon.start(self.id)
            control = await self._connection(listener)
        finally:
            listener.close()
            self.exchange.connected()
        control.setblocking(False)
        try:
            hello = await self._hello(control)
            _check(hello, str(request["Image"]))
        except BaseException:
            control.close()
            raise
        self._control = Control(control, self._hear, self._hung_up)
        self.path, self.closed = hello.path, hello.closed
        self._fork(self._control)

    async def _connection(self, listener: socket.socket) -> socket.socket:
        """What the first process connects with; or what kept it from that."""
        coming = self._loop.create_task(self._loop.sock_accept(listener))
        ending = self._loop.create_task(self._daemon.exit_code(self.id))
        try:
            await asyncio.wait((coming, ending), timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                return kept_here(coming.result()[0])
            raise _no_start(ending.result() if ending.done() else None)
        finally:
            for task in (coming, ending):
                task.cancel()
            await asyncio.wait((coming, ending))

    async def _hello(self, control: socket.socket) -> Hello:
        try:
            async with asyncio.timeout(START_S):
                length = length_of(await self._exactly(control, HEAD.size))
                if length > MOST_HELLO_BYTES:
                    raise _no_start(None)
                return msgspec.json.decode(await self._exactly(control, length), type=Hello)
        except (TimeoutError, OSError, msgspec.MsgspecError) as error:
            raise _no_start(None) from error

    async def _exactly(self, control: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = await self._loop.sock_recv(control, count - len(data))
            if not part:
                raise ConnectionResetError("the container has ended")
            data += part
        return data

    def _fork(self, control: Control) -> None:
        number = 1 if self.worker is None else self.worker.number + 1
        try:
            self.worker = control.fork(number, is_stranger=True)
        except OSError as error:
            raise ExecutorUnavailable("no worker can be started in a container", why=str(error)) from error
        self.worker.on_fault = self._kill

    # -- an attempt -----------------------------------------------------------------------

    async def perform(self, attempt: Attempt, sink: Sink, around: Surroundings) -> Performed | Raised:
        """Have the worker perform an attempt; see ``treadle.contracts.Executor``."""
        assert self.worker is not None
        if _is_large(attempt):
            await self._at_files(self.exchange.lend, attempt)
        # The container has the limit of memory; the worker, which would set one for itself, needs none.
        needs = msgspec.structs.replace(attempt.needs, memory=0) if attempt.needs.memory else Needs()
        sent = msgspec.structs.replace(
            attempt, store=inside.OUTBOX, store_tmp=f"{inside.OUTBOX}/tmp", inbox=inside.INBOX, needs=needs
        )
        outcome = await self.worker.begin(sent, sink, around)
        if isinstance(outcome, Performed) and any(output.payload.data is None for output in outcome.outputs):
            await self._at_files(self.exchange.adopt, attempt, outcome.outputs)
        return outcome

    async def _at_files(self, fn: Callable[..., None], *args: Any) -> None:
        """Work on the files of the container; a cancellation goes through at once, and leaves the thread at it."""
        work = self._work = self._loop.create_task(_in_thread(fn, *args), context=Context())
        work.add_done_callback(self._has_worked)
        await asyncio.wait([work])
        work.result()

    def _has_worked(self, work: asyncio.Task[None]) -> None:
        if not work.cancelled():
            work.exception()  # perhaps nobody asks for it any more
        if self._work is work:
            self._work = None

    def _at_work(self) -> list[asyncio.Task[None]]:
        return [] if self._work is None or self._work.done() else [self._work]

    # -- what the nursery says ------------------------------------------------------------

    def _hear(self, what: int, number: int, first: int, kills: int) -> None:
        if what == ENDED and self.worker is not None and self.worker.number == number:
            self._was_oom = kills > 0
            self.worker.has_ended(max(-64, min(255, first)), oom=self._was_oom)

    def _hung_up(self) -> None:
        self._control = None
        self._finding = self._loop.create_task(self._lost())

    def _signal(self, worker: Worker, number: int) -> None:
        if self._control is not None:
            self._control.signal(worker, number)

    def _kill(self, worker: Worker) -> None:
        worker.is_retired = True
        self._signal(worker, signal.SIGKILL)

    async def _lost(self) -> None:
        """The first process has ended, which nothing inside can bring about, and the kernel has killed the others."""
        was_oom = self._was_oom or await self._daemon.was_oom(self.id)
        if self.worker is not None:
            self.worker.has_ended(-signal.SIGKILL, oom=was_oom)

    # -- ending ---------------------------------------------------------------------------

    async def stop(self, grace_s: float) -> None:
        """Ask the step to end, have it ended after some time, and see to it that nothing of it runs any more."""
        self.exchange.is_stopped = True
        await self._stop_worker(grace_s)
        if work := self._at_work():
            await asyncio.wait(work, timeout=LAST_S)  # a disk may take longer, or for ever: see `go_on`

    async def _stop_worker(self, grace_s: float) -> None:
        worker = self.worker
        if worker is None or worker.ended.done():
            return
        worker.is_retired = True
        self._signal(worker, signal.SIGTERM)
        await asyncio.wait([worker.ended], timeout=grace_s)
        if not worker.ended.done():
            self._signal(worker, signal.SIGKILL)
            await asyncio.wait([worker.ended], timeout=LAST_S / 2)
        if not worker.ended.done():
            await self.remove()

    def go_on(self) -> bool:
        """Have another worker in the place of one that has ended, unless there is reason to doubt the container."""
        worker, control = self.worker, self._control
        if worker is None or control is None or not worker.ended.done() or worker.fault or self._was_oom:
            return False
        if self._at_work():
            return False  # what it still writes would be under the next step's eyes
        try:
            self._fork(control)
        except ExecutorUnavailable:
            return False
        self.exchange.is_stopped = False
        return True

    async def remove(self) -> None:
        """Leave nothing of it; a container engine that has gone away is left to the next sweep."""
        if self._gone is None:
            self._gone = self._loop.create_task(self._remove())
        await asyncio.shield(self._gone)

    async def _remove(self) -> None:
        self.exchange.is_stopped = True
        # The socket is what keeps the first process there; so this ends the container also without its engine.
        self._drop_control()
        if self._finding is not None:
            await asyncio.wait([self._finding])
        try:
            if self._starting is not None:
                await self._created.wait()
            if self.id:
                await self._daemon.remove(self.id)
        except ExecutorUnavailable as error:
            logging.getLogger("treadle").warning("a container was not removed: %s", error)
        if self._starting is not None:
            await asyncio.wait([self._starting])
            if not self._starting.cancelled():
                self._starting.exception()  # whoever waited for it has it, or nobody does
        self._drop_control()
        if self.worker is not None:
            self.worker.has_ended(-signal.SIGKILL)
        if work := self._at_work():
            await asyncio.wait(work)
        await _in_thread(remove, self.exchange.folder)

    def _drop_control(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None


async def _in_thread(fn: Callable[..., None], *args: Any) -> None:
    # Late: a program that names this executor at its top is imported in containers, too, whose images need not have it.
    from anyio import to_thread

    await to_thread.run_sync(fn, *args)


def _is_large(attempt: Attempt) -> bool:
    return any(payload.data is None for payload in attempt.payloads())


def _check(hello: Hello, image: str) -> None:
    here = sys.version_info[:2]
    if hello.python[:2] != here:
        raise ExecutorUnavailable(
            f"the image {image} has Python {_dotted(hello.python)}, and this is {_dotted(sys.version_info[:3])}",
            why="values and compiled libraries do not fit from one minor version to another",
            fix=f"use an image with Python {_dotted(here)}, or run this program with {_dotted(hello.python[:2])}",
        )
    if hello.failed:
        raise ExecutorUnavailable(
            f"a worker cannot be started in the image {image}: {hello.failed}",
            why="it needs the standard library, msgspec and blake3; those from here fit an image of the same kind",
            fix="install msgspec and blake3 into the image, for its Python",
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _no_start(code: int | None) -> ExecutorUnavailable:
    how = "it has ended" if code is None else f"it has ended with exit code {code}"
    return ExecutorUnavailable(
        f"a container did not say within {START_S:.0f} s that it is there, or {how}",
        why="its Python cannot run, has too little memory, or may not reach the socket below /treadle",
        fix="see that the image has a Python, that the step's memory is enough for one, and that user= may read it",
    )
