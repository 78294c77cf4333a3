"""The one writer: a daemon thread that owns the write connection and commits batches; it knows no event loop.

Theory of operation
* Work comes through one queue, as whole transactions: a ``Batch``, or a function of the
  open transaction. Nobody else ever sees the connection, so cancelling a caller can
  never leave a transaction open.
* A commit takes a handful of SQL statements however many rows it has. Each statement
  releases the interpreter lock, and getting it back from a busy loop takes up to 5 ms
  (``sys.getswitchinterval``): row by row, 1,000 rows took 12.9 s beside a busy thread,
  in one statement 0.04 s (docs/decisions/0001).
* Commits, checkpoints and the closing of the connection hold the home's commit lock, which
  serialises them across processes: SQLite before 3.51.3 can lose a WAL that is reset
  by one connection while another commits.
* Numbers (events, artifacts, versions) are given inside the transaction. They are kept
  between transactions and read again when another process has written meanwhile.
* After a failed commit the connection is closed and opened again, never retried: what
  SQLite or the kernel still held of it is gone, and what is on the disk is read afresh.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec

from treadle.errors import LogUnavailable, RunFenced
from treadle.storage import failpoints, schema
from treadle.storage.rows import ArtifactRow, Batch, Part

CHECKPOINT_BYTES = 8 * 1024 * 1024
LOCK_TIMEOUT_S = 30.0
NAMES_KEPT = 10_000

_pack = msgspec.msgpack.Encoder().encode
_json = msgspec.json.Encoder().encode


class Mutex(Protocol):
    """A lock that other processes respect too."""

    def acquire(self, timeout_s: float) -> bool: ...
    def release(self) -> None: ...


class Transaction:
    """The open transaction, as functions that run on the writer thread see it."""

    __slots__ = ("connection", "writer")

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.connection = writer.connection

    def append(self, part: Part) -> None:
        """Append one run's events (and artifacts) inside this transaction."""
        self.writer.insert_parts([part])


Work: TypeAlias = "Batch | Callable[[Transaction], Any]"
Done: TypeAlias = "Callable[[Work, Any, BaseException | None], None]"


class Writer:
    """Owns the write connection of one engine.

    Args:
        path: the database, a path or a ``file:`` URI.
        owner: id of the engine, checked against the runs' owner when another process has written.
        mutex: the home's commit lock.
        durable: the database is a file (and not in memory).
        done: called on this thread with (work, result, error) after each transaction.
    """

    def __init__(self, path: str, owner: str, mutex: Mutex, done: Done, *, durable: bool = True) -> None:
        self._path, self._owner, self._mutex, self._done, self._durable = path, owner, mutex, done, durable
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._synchronous = -1
        self._seen = -1
        self._seq = self._artifact = self._last_name = 0
        self._names: dict[str, list[int]] = {}
        self._ours: set[str] = set()
        self.commits = 0
        self.events = 0
        self._mutex.acquire(LOCK_TIMEOUT_S)
        try:
            self.connection = schema.connect(path, durable=durable)
        finally:
            self._mutex.release()
        self._thread = threading.Thread(target=self._work, name="treadle-writer", daemon=True)
        self._thread.start()

    def put(self, work: Work) -> None:
        """Queue one transaction."""
        self._queue.put(work)

    def stop(self, stopped: Callable[[], None]) -> None:
        """Commit what is queued, close the connection, call ``stopped`` on the thread, and end it."""
        self._stopped = stopped
        self._queue.put(None)

    # -- the thread -----------------------------------------------------------------------

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            result, error = None, None
            try:
                result = self._transact(work)
            except BaseException as caught:
                error = self._recover(caught)
            self._done(work, result, error)
            del work, result, error
        self._close()

    def _transact(self, work: Work) -> Any:
        if not self._mutex.acquire(LOCK_TIMEOUT_S):
            raise sqlite3.OperationalError("another process holds the commit lock")
        try:
            sync = not isinstance(work, Batch) or work.sync
            self._set_synchronous(sync)
            self.connection.execute("BEGIN IMMEDIATE")
            self._refresh()
            if isinstance(work, Batch):
                result: Any = self._write(work)
            else:
                result = work(Transaction(self))
            failpoints.hit("before-commit")
            self.connection.execute("COMMIT")
            failpoints.hit("after-commit")
            self.commits += 1
            self._checkpoint_if_long()
            return result
        finally:
            self._mutex.release()

    def _write(self, batch: Batch) -> dict[str, BaseException]:
        if batch.accepted:
            self.connection.execute(_ACCEPT, (_json(batch.accepted),))
            self._ours.update([row[0] for row in batch.accepted])
        fenced = self._fenced(batch)
        parts = [part for part in batch.parts.values() if part.run_id not in fenced]
        self.insert_parts(parts)
        return fenced

    def insert_parts(self, parts: list[Part]) -> None:
        """Write events, artifacts, cache entries and run statuses, a statement for each kind."""
        self._insert_log(parts)
        failpoints.hit("events-inserted")
        rows = [row for part in parts for row in part.artifacts]
        if rows:
            self._insert_artifacts(rows)
        ended = [[part.run_id, *part.ended] for part in parts if part.ended]
        if ended:
            self.connection.execute(_END, (_json(ended),))

    def _insert_log(self, parts: list[Part]) -> None:
        table: list[list[Any]] = []
        bodies: list[bytes] = []
        cache: list[tuple[bytes, int, int]] = []
        offset, artifact = 1, self._artifact + 1
        for part in parts:
            cache += [(key, artifact + index, count) for key, index, count in part.cache]
            if part.events:
                body = _pack(part.events)
                table.append([self._seq + 1, part.run_id, len(part.events), artifact, offset, len(body)])
                bodies.append(body)
                offset += len(body)
                self._seq += len(part.events)
                self.events += len(part.events)
            artifact += len(part.artifacts)
        if table:
            self.connection.execute(_LOG, (_json(table), b"".join(bodies)))
        if cache:
            self._insert_cache(cache)

    def _insert_artifacts(self, rows: list[ArtifactRow]) -> None:
        table: list[list[int]] = []
        bodies: list[bytes] = []
        changed: set[str] = set()
        offset = 1
        if len(self._names) > NAMES_KEPT:
            self._names.clear()
        for row in rows:
            name = self._names.get(row.name) or self._read_name(row.name)
            name[1] += 1
            changed.add(row.name)
            self._artifact += 1
            row.id, row.version = self._artifact, name[1]
            body = _pack(row.body)
            table.append([row.id, name[0], row.version, offset, len(body)])
            bodies.append(body)
            offset += len(body)
        self.connection.execute(_ARTIFACTS, (_json(table), b"".join(bodies)))
        self._save_names(changed)

    def _save_names(self, changed: set[str]) -> None:
        table = [[self._names[text][0], text, self._names[text][1]] for text in changed]
        self.connection.execute(_NAMES, (_json(table),))

    def _insert_cache(self, entries: list[tuple[bytes, int, int]]) -> None:
        keys = b"".join(key for key, _, _ in entries)
        self.connection.execute(_CACHE, (_json([[first, count] for _, first, count in entries]), keys))

    def _read_name(self, text: str) -> list[int]:
        row = self.connection.execute("SELECT id, version FROM names WHERE name=?", (text,)).fetchone()
        if row is None:
            self._last_name += 1
            row = (self._last_name, 0)
        self._names[text] = name = list(row)
        return name

    def reserve_version(self, name: str) -> int:
        """Give the next version of a name away, inside the open transaction; a gap is legal."""
        known = self._names.get(name) or self._read_name(name)
        known[1] += 1
        self._save_names({name})
        return known[1]

    @property
    def last_numbers(self) -> tuple[int, int]:
        """The newest event's and the newest artifact's number, inside the open transaction."""
        return self._seq, self._artifact

    # -- what other processes did ---------------------------------------------------------

    def _refresh(self) -> None:
        """Read the counters again, and trust no run to be ours still, if somebody else has written."""
        version = self.connection.execute("PRAGMA data_version").fetchone()[0] if self._durable else 0
        if version == self._seen:
            return
        self._seen = version
        self._seq = self.connection.execute(_LAST_SEQ).fetchone()[0]
        self._artifact = self.connection.execute(_LAST_ARTIFACT).fetchone()[0]
        self._last_name = self.connection.execute("SELECT coalesce(max(id), 0) FROM names").fetchone()[0]
        self._names.clear()
        self._ours.clear()

    def _fenced(self, batch: Batch) -> dict[str, BaseException]:
        """The runs of this batch that another engine has taken over; asked once per run until somebody else writes."""
        unknown = [run_id for run_id in batch.parts if run_id not in self._ours]
        self._ours.difference_update([part.run_id for part in batch.parts.values() if part.ended])
        if not unknown:
            return {}
        found = self.connection.execute(_OWNERS, (_json(unknown),)).fetchone()[0]
        owners = {run: (owner, epoch) for run, owner, epoch in msgspec.json.decode(found)}
        fenced: dict[str, BaseException] = {
            part.run_id: RunFenced(
                f"run {part.run_id} was taken over by another engine",
                why="this engine was held up so long that its lock looked free, or the run was resumed elsewhere",
                fix="await the run where it goes on, or look it up with engine.get_run()",
                run_id=part.run_id,
            )
            for part in batch.parts.values()
            if part.run_id in owners and owners[part.run_id] != (self._owner, part.epoch)
        }
        self._ours.update(run_id for run_id in unknown if run_id not in fenced and not batch.parts[run_id].ended)
        return fenced

    # -- durability -----------------------------------------------------------------------

    def _set_synchronous(self, sync: bool) -> None:
        wanted = (2 if sync else 1) if self._durable else 0
        if wanted != self._synchronous:
            self.connection.execute(f"PRAGMA synchronous={wanted}")
            self._synchronous = wanted

    def _checkpoint_if_long(self) -> None:
        if not self._durable or self.commits % 16:
            return
        with suppress(OSError):
            if Path(self._path + "-wal").stat().st_size > CHECKPOINT_BYTES:
                self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _recover(self, error: BaseException) -> BaseException:
        """Bring the connection back to a known state; gives the error that callers shall see."""
        if not isinstance(error, sqlite3.Error):
            with suppress(sqlite3.Error):
                self.connection.execute("ROLLBACK")
            self._seen = -1
            return error
        with suppress(sqlite3.Error):
            self.connection.close()
        self._synchronous = self._seen = -1
        try:
            self.connection = schema.connect(self._path, durable=self._durable)
        except Exception as again:
            error.add_note(f"and the log could not be opened again: {again}")
            self.connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        return log_unavailable(error, self._path)

    def _close(self) -> None:
        locked = self._mutex.acquire(LOCK_TIMEOUT_S)
        try:
            with suppress(sqlite3.Error):
                self.connection.close()
        finally:
            if locked:
                self._mutex.release()
        self._stopped()


def log_unavailable(error: BaseException, path: str) -> LogUnavailable:
    """What callers see when a commit failed."""
    unavailable = LogUnavailable(
        f"the log {path} cannot be written",
        why=str(error),
        fix="free disk space or repair the disk; the engine tries again by itself every second",
        path=path,
    )
    unavailable.__cause__ = error
    return unavailable


_LAST_SEQ = """SELECT max(
    coalesce((SELECT seq + count - 1 FROM log ORDER BY seq DESC LIMIT 1), 0),
    coalesce((SELECT value FROM counters WHERE name = 'seq'), 0))"""
_LAST_ARTIFACT = """SELECT max(
    coalesce((SELECT value FROM counters WHERE name = 'artifact'), 0),
    (SELECT coalesce(max(id), 0) FROM artifacts),
    (SELECT coalesce((SELECT first_artifact - 1 FROM log ORDER BY seq DESC LIMIT 1), 0)))"""
_LOG = """INSERT INTO log(seq, run, count, first_artifact, body)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
           json_extract(value, '$[3]'), substr(?2, json_extract(value, '$[4]'), json_extract(value, '$[5]'))
    FROM json_each(CAST(?1 AS TEXT))"""
_ARTIFACTS = """INSERT INTO artifacts(id, name, version, body)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
           substr(?2, json_extract(value, '$[3]'), json_extract(value, '$[4]'))
    FROM json_each(CAST(?1 AS TEXT))"""
_NAMES = """INSERT OR REPLACE INTO names(id, name, version)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
    FROM json_each(CAST(?1 AS TEXT))"""
_CACHE = """INSERT OR REPLACE INTO cache(key, artifact, count)
    SELECT substr(?2, 1 + 32 * key, 32), json_extract(value, '$[0]'), json_extract(value, '$[1]')
    FROM json_each(CAST(?1 AS TEXT))"""
_ACCEPT = """INSERT INTO runs(id, pipeline, target, status, owner, epoch, parent, recoverable, created_at)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), 'running',
           json_extract(value, '$[3]'), 1, json_extract(value, '$[4]'), json_extract(value, '$[5]'),
           json_extract(value, '$[6]')
    FROM json_each(CAST(?1 AS TEXT))"""
_END = """UPDATE runs SET status = json_extract(value, '$[1]'), ended_at = json_extract(value, '$[2]')
    FROM json_each(CAST(?1 AS TEXT)) WHERE runs.id = json_extract(value, '$[0]')"""
_OWNERS = """SELECT json_group_array(json_array(id, owner, epoch)) FROM runs
    WHERE id IN (SELECT value FROM json_each(CAST(?1 AS TEXT)))"""
