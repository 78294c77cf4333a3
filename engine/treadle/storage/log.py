"""The log as the event loop sees it: facts are appended at once and acknowledged after their commit.

Knows batches, wake-ups and who waits; knows no SQL (``writer``) and no meaning of events.

* What is appended between two commits shares one commit. No timer delays an urgent
  fact: when the writer is idle, the batch leaves in the next loop turn, else when the
  writer has come back.
* Facts that nobody waits for leave with the next urgent one, or after ``LAZY_S``: so
  the scheduled, started and completed of a short step share one flush. Where no step is
  waited for (not ``strict``), after ``BEHIND_S``: the more share a commit, the less it costs.
* Acknowledgements are handed out ``ACKS_PER_TURN`` per loop turn, so that a commit of a
  thousand steps does not stall the host's handlers.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import Any, TypeVar

from treadle.errors import EngineClosed, LogUnavailable
from treadle.events import Event
from treadle.storage.absent import Generation
from treadle.storage.courtesy import EVERY_S, RARELY_S, Courtesy
from treadle.storage.rows import EVENTS_PER_COMMIT, ArtifactRow, Batch, Part, Waiter
from treadle.storage.writer import Mutex, Transaction, Work, Writer

T = TypeVar("T")

LAZY_S = 0.005
BEHIND_S = 0.02
FEW_EVENTS = 16
ACKS_PER_TURN = 32
PROBE_S = 1.0


class Log:
    """Collects what happens on one loop and has it committed, in order, by the writer thread.

    Args:
        path: the database, a path or a ``file:`` URI.
        owner: id of the engine.
        mutex: the home's commit lock.
        durable: the database is a file.
        strict: every commit is flushed to the disk (else only those that ask for it).
        loop: the loop on which acknowledgements are given.
        generation: counts commits, for those who remember what is in the database.
    """

    def __init__(
        self, path: str, owner: str, mutex: Mutex, loop: asyncio.AbstractEventLoop, *, durable: bool, strict: bool,
        generation: Generation,
    ) -> None:  # fmt: skip
        self._loop, self._strict = loop, strict
        self._lazy_s = LAZY_S if strict else BEHIND_S
        self._batch = Batch()
        self._sealed: deque[Work] = deque()
        self._acks: deque[tuple[Waiter, BaseException | None]] = deque()
        self._acking = self._kicked = self._urgent = False
        self._in_flight: list[Work] = []
        self._courtesy = Courtesy(loop, self._patience)
        self._lazy: asyncio.TimerHandle | None = None
        self._context = Context()  # even a timer called off keeps its context, and what that leads to, until its time
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._closed = False
        self._idle: list[asyncio.Future[None]] = []
        self.unavailable: LogUnavailable | None = None
        self.on_lost: Callable[[str, BaseException], None] | None = None
        self._probing: asyncio.TimerHandle | None = None
        self.committed: list[Callable[[], None]] = []
        self._writer = Writer(path, owner, mutex, self._on_thread, generation, durable=durable)

    # -- appending ------------------------------------------------------------------------

    def part(self, run_id: str, epoch: int) -> Part:
        """The place in the coming commit for what one run adds; valid until the loop turn ends."""
        batch = self._batch
        if batch.count >= EVENTS_PER_COMMIT:
            self._seal()
            self._send()
            batch = self._batch
        part = batch.parts.get(run_id)
        if part is None:
            part = batch.parts[run_id] = Part(run_id, epoch)
        return part

    def append(self, run_id: str, epoch: int, event: Event, *, urgent: bool = False) -> Part:
        """Append one event; returns the part, for artifacts and waiters that belong to it."""
        batch = self._batch
        part = batch.parts.get(run_id)
        if part is None or batch.count >= EVENTS_PER_COMMIT:
            part = self.part(run_id, epoch)
            batch = self._batch
        part.events.append(event)
        batch.count += 1
        if urgent:
            self.kick()
        elif self._lazy is None and not self._kicked:
            self._lazy = self._loop.call_later(self._lazy_s, self._send, context=self._context)
        return part

    def accept(self, row: list[Any]) -> None:
        """Add a row to the table of runs: id, pipeline, target, owner, parent, recoverable, created_at."""
        self._batch.accepted.append(row)

    def describe(self, code: bytes, manifest: bytes) -> None:
        """Have the coming commit keep what a code fingerprint was made of."""
        self._batch.manifests.append((code, manifest))

    def sync(self) -> None:
        """Have the coming commit flushed to the disk, whatever the durability."""
        self._batch.sync = True

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run a function inside a transaction of its own, on the writer thread, after all that was appended so far.

        Cancelling the await does not touch the transaction.

        Raises:
            LogUnavailable: if it could not be committed.
        """
        self._seal()
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls[id(work)] = future
        self._sealed.append(work)
        self._send()
        return await asyncio.shield(future)

    async def flush(self) -> None:
        """Wait until everything appended so far is committed (or has failed)."""
        self._seal()
        self._send()
        while self._in_flight or self._sealed or self._acks:
            future: asyncio.Future[None] = self._loop.create_future()
            self._idle.append(future)
            self._courtesy.watch()
            await future

    # -- sending --------------------------------------------------------------------------

    def kick(self) -> None:
        """Have the batch sent in the next loop turn, or as soon as the writer is idle."""
        self._urgent = True
        if not self._kicked and not self._in_flight:
            self._kicked = True
            self._loop.call_soon(self._send)

    def _seal(self) -> None:
        if self._batch.count or self._batch.accepted:
            self._batch.sync |= self._strict
            self._sealed.append(self._batch)
            self._batch = Batch()
            self._urgent = False

    def _send(self) -> None:
        """Give the writer what it can take; a batch that is not full waits until it is idle."""
        self._kicked = False
        if self._lazy is not None:
            self._lazy.cancel()
            self._lazy = None
            self._urgent |= bool(self._in_flight)  # its timer is gone, so the batch leaves when the writer is back
        if not self._sealed and not self._in_flight:
            self._seal()
        while self._sealed and len(self._in_flight) < 2:
            work = self._sealed.popleft()
            self._in_flight.append(work)
            if self._closed:
                closed = EngineClosed("the engine is closed", fix="open another one with `async with Engine(...)`")
                self._loop.call_soon(self._on_commit, work, None, closed)
            else:
                self._writer.put(work)
                self._courtesy.watch()

    def _patience(self) -> float | None:
        """How long the loop may be in the way of the writer: not long, if somebody waits for it and nothing goes on."""
        if not self._in_flight:
            return None
        if self._batch.count >= FEW_EVENTS:
            return RARELY_S
        is_awaited = (
            self._strict or self._idle or any(not isinstance(work, Batch) or work.sync for work in self._in_flight)
        )
        return EVERY_S if is_awaited else RARELY_S

    def _on_thread(self, work: Work, result: Any, error: BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._on_commit, work, result, error)
        except RuntimeError:
            return  # the loop is closed: nobody is left to be told

    # -- acknowledging --------------------------------------------------------------------

    def _on_commit(self, work: Work, result: Any, error: BaseException | None) -> None:
        self._in_flight.remove(work)
        if isinstance(error, LogUnavailable):
            self._lost(error)
        if isinstance(work, Batch):
            fenced: dict[str, BaseException] = result or {}
            for part in work.parts.values():
                failure = error or fenced.get(part.run_id)
                self._acks.extend((waiter, failure) for waiter in part.waiters)
                if failure is not None and self.on_lost is not None:
                    self._loop.call_soon(self.on_lost, part.run_id, failure)
            work.parts.clear()  # the writer's thread may hold the batch for a while yet, and must not hold the calls
        else:
            self._answer(self._calls.pop(id(work)), result, error)
        if self._acks and not self._acking:
            self._acknowledge()
        if self._sealed or self._urgent:
            self._send()
        if error is None:
            for listener in self.committed:
                listener()
        self._wake_idle()

    @staticmethod
    def _answer(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _acknowledge(self) -> None:
        acks = self._acks
        for _ in range(min(len(acks), ACKS_PER_TURN)):
            waiter, error = acks.popleft()
            waiter.on_commit(error)
        self._acking = bool(acks)
        if self._acking:
            self._loop.call_soon(self._acknowledge)
        else:
            self._wake_idle()

    def _wake_idle(self) -> None:
        if self._idle and not (self._in_flight or self._sealed or self._acks):
            for future in self._idle:
                if not future.done():
                    future.set_result(None)
            self._idle.clear()

    # -- when the disk is full ------------------------------------------------------------

    def _lost(self, error: LogUnavailable) -> None:
        self.unavailable = error
        if self._probing is None:
            self._probing = self._loop.call_later(PROBE_S, self._probe)

    def _probe(self) -> None:
        """Ask, with real writes, whether the log is back.

        That a small commit succeeds says little: on a full disk the next larger one fails again, so room is asked
        for, too. The transaction also records which runs were cut off.
        """
        self._probing = None
        if self._closed or (self.unavailable is None and not self._writer.owes):
            return

        def touch(transaction: Transaction) -> None:
            transaction.writer.check_room()
            transaction.connection.execute("INSERT INTO pruning(active) VALUES(0)")
            transaction.connection.execute("DELETE FROM pruning WHERE active=0")

        future: asyncio.Future[Any] = self._loop.create_future()
        future.add_done_callback(self._probed)
        self._calls[id(touch)] = future
        self._sealed.append(touch)
        self._send()
        self._probing = self._loop.call_later(PROBE_S, self._probe)

    def _probed(self, answer: asyncio.Future[Any]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            self.unavailable = None

    # -- the end --------------------------------------------------------------------------

    async def close(self) -> None:
        """Commit what is left and stop the writer."""
        if self._closed:
            return
        await self.flush()
        self._closed = True
        self._courtesy.stop()
        if self._probing is not None:
            self._probing.cancel()
        stopped = asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                self._loop.call_soon_threadsafe(stopped.set)

        self._writer.stop(tell)
        await stopped.wait()

    def abort(self) -> None:
        """Stop the writer from any thread, without a word to the loop; after ``close`` this does nothing."""
        if not self._closed:
            self._closed = True
            stopped = threading.Event()
            self._writer.stop(stopped.set)
            stopped.wait()

    @property
    def commits(self) -> int:
        """How many transactions were committed."""
        return self._writer.commits

    @property
    def event_count(self) -> int:
        """How many events were written."""
        return self._writer.events


def again(error: BaseException, cause: BaseException | None = None) -> LogUnavailable:
    """The same news for another listener: one exception that is raised in many places collects all their tracebacks."""
    if isinstance(error, LogUnavailable):
        copy = LogUnavailable(error.what, why=error.why, fix=error.fix, path=getattr(error, "path", ""))
    else:
        copy = LogUnavailable("the log could not be written", why=f"{type(error).__name__}: {error}")
    copy.__cause__ = cause or error.__cause__ or (None if isinstance(error, LogUnavailable) else error)
    return copy


def now() -> float:
    """Wall-clock time, seconds since the epoch."""
    return time.time()


__all__ = ["ArtifactRow", "Log", "Part", "Waiter", "again", "now"]
