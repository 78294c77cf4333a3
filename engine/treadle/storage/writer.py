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
* A run that had facts in a failed commit is *lost*, as if the process had died for it: nothing
  later of it is written under that epoch, or its log would have a gap. The next transaction that
  succeeds records it as interrupted, so it can be resumed.
"""

from __future__ import annotations

import errno
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeAlias

import msgspec

from treadle.errors import LogUnavailable, RunFenced, StoreError, TreadleError
from treadle.events import RunInterrupted
from treadle.storage import failpoints, schema
from treadle.storage.absent import Generation
from treadle.storage.rows import ArtifactRow, Batch, Part

CHECKPOINT_BYTES = 8 * 1024 * 1024
LOCK_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 2.0
ROOM_BYTES = 256 * 1024
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
        generation: counts this engine's commits.
        done: called on this thread with (work, result, error) after each transaction.
    """

    def __init__(
        self, path: str, owner: str, mutex: Mutex, done: Done, generation: Generation, *, durable: bool = True
    ) -> None:
        self._path, self._owner, self._mutex, self._done, self._durable = path, owner, mutex, done, durable
        self._generation = generation
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._synchronous = -1
        self._seen = -1
        self._seq = self._artifact = self._last_name = 0
        self._names: dict[str, list[int]] = {}
        self._ours: set[str] = set()
        self.commits = 0
        self.events = 0
        self._lost: dict[tuple[str, int], BaseException] = {}
        self._owed: dict[str, int] = {}
        if not mutex.acquire(LOCK_TIMEOUT_S):
            raise log_unavailable(_locked_out(), path)
        try:
            self.connection = schema.connect(path, durable=durable)
        finally:
            mutex.release()
        self._is_connected = True
        self._thread = threading.Thread(target=self._work, name="treadle-writer", daemon=True)
        self._thread.start()

    def put(self, work: Work) -> None:
        """Queue one transaction."""
        self._queue.put(work)

    def stop(self, stopped: Callable[[], object]) -> None:
        """Commit what is queued, close the connection, call ``stopped`` on the thread, and end it."""
        self._stopped = stopped
        self._queue.put(None)

    # -- the thread -----------------------------------------------------------------------

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            result, error = self._attempt(work)
            self._done(work, result, error)
            del work, result, error
        self._close()

    def _attempt(self, work: Work) -> tuple[Any, BaseException | None]:
        """One transaction under the commit lock, which is kept until the connection is in a known state again."""
        result, error = None, None
        try:
            if not self._mutex.acquire(LOCK_TIMEOUT_S):
                raise _locked_out()
            try:
                result = self._transact(work)
            except BaseException as caught:
                error = self._recover(caught)
            finally:
                self._mutex.release()
        except Exception as caught:
            error = caught if isinstance(caught, TreadleError) else log_unavailable(caught, self._path)
        if error is not None and isinstance(work, Batch):
            self._lose(work, error)
        return result, error

    def _transact(self, work: Work) -> Any:
        if not self._is_connected:
            self.connection = schema.connect(self._path, durable=self._durable, create=False)
            self._is_connected = True
        self._set_synchronous(not isinstance(work, Batch) or work.sync)
        self.connection.execute("BEGIN IMMEDIATE")
        self._refresh()
        owed = dict(self._owed)
        if owed:
            self._interrupt(owed)
        if isinstance(work, Batch):
            result: Any = self._write(work)
        else:
            result = work(Transaction(self))
        failpoints.hit("before-commit")
        self._generation.bump()
        self.connection.execute("COMMIT")
        failpoints.hit("after-commit")
        for run_id in owed:
            del self._owed[run_id]
        self.commits += 1
        self._checkpoint_if_long()
        return result

    def _write(self, batch: Batch) -> dict[str, BaseException]:
        if batch.accepted:
            self.connection.execute(_ACCEPT, (_json(batch.accepted),))
            self._ours.update([row[0] for row in batch.accepted])
        if batch.manifests:
            self.connection.executemany("INSERT OR IGNORE INTO manifests(code, body) VALUES(?, ?)", batch.manifests)
        fenced = {**self._fenced(batch), **self._cut_off(batch)}
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
        offset = 1
        if len(self._names) > NAMES_KEPT:
            self._names.clear()
        aliased = [row for row in rows if row.alias]
        self._read_names({row.name for row in rows}.union([row.alias for row in aliased]) - self._names.keys())
        number, names = self._artifact, self._names
        for row in rows:
            name = names[row.name]
            number += 1
            row.id = number
            if not row.version:
                if row.alias:
                    row.version = self._next_version([name, names[row.alias]])
                else:
                    row.version = name[1] = name[1] + 1
            body = _pack(row.body)
            size = len(body)
            table.append([number, name[0], row.version, offset, size])
            bodies.append(body)
            offset += size
        self._artifact = number
        self.connection.execute(_ARTIFACTS, (_json(table), b"".join(bodies)))
        if aliased:
            self._save_names({row.alias for row in aliased})
            self.connection.execute(_ALIASES, (_json([[self._names[row.alias][0], row.id] for row in aliased]),))

    @staticmethod
    def _next_version(names: list[list[int]], above: int = 0) -> int:
        """One version for all of these names, higher than any of theirs."""
        version = 1 + max(above, *(name[1] for name in names))
        for name in names:
            name[1] = version
        return version

    def _save_names(self, changed: Iterable[str]) -> None:
        """Write names down. Their versions are in the artifacts; the table keeps them from before a prune."""
        table = [[self._names[text][0], text, self._names[text][1]] for text in changed]
        self.connection.execute(_NAMES, (_json(table),))

    def _insert_cache(self, entries: list[tuple[bytes, int, int]]) -> None:
        keys = b"".join(key for key, _, _ in entries)
        self.connection.execute(_CACHE, (_json([[first, count] for _, first, count in entries]), keys))

    def _read_names(self, unknown: set[str]) -> None:
        if not unknown:
            return
        for text, number, version in self.connection.execute(_KNOWN_NAMES, (_json(list(unknown)),)).fetchall():
            self._names[text] = [number, version]
        new = sorted(unknown - self._names.keys())
        for text in new:
            self._last_name += 1
            self._names[text] = [self._last_name, 0]
        if new:
            self._save_names(new)

    def reserve_version(self, names: Sequence[str], above: int = 0) -> int:
        """Give one version of several names away, inside the open transaction; a gap is legal.

        Args:
            names: a name, and others under which the same thing will be found.
            above: the version is to be higher than this, too.
        """
        self._read_names(set(names) - self._names.keys())
        version = self._next_version([self._names[name] for name in names], above)
        self._save_names(names)
        return version

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
        """The runs of this batch that another engine has taken over, or declared interrupted in order to.

        Asked once per run until somebody else writes.
        """
        unknown = [run_id for run_id in batch.parts if run_id not in self._ours]
        self._ours.difference_update([part.run_id for part in batch.parts.values() if part.ended])
        if not unknown:
            return {}
        found = self.connection.execute(_OWNERS, (_json(unknown),)).fetchone()[0]
        owners = {run: tuple(holder) for run, *holder in msgspec.json.decode(found)}
        fenced: dict[str, BaseException] = {
            part.run_id: RunFenced(
                f"run {part.run_id} was taken over by another engine",
                why="this engine was held up so long that its lock looked free, or the run was resumed elsewhere",
                fix="await the run where it goes on, or look it up with engine.get_run()",
                run_id=part.run_id,
            )
            for part in batch.parts.values()
            if part.run_id in owners and owners[part.run_id] != (self._owner, part.epoch, "running")
        }
        self._ours.update(run_id for run_id in unknown if run_id not in fenced and not batch.parts[run_id].ended)
        return fenced

    # -- what could not be written --------------------------------------------------------

    def _lose(self, batch: Batch, error: BaseException) -> None:
        for part in batch.parts.values():
            self._lost[part.run_id, part.epoch] = error
            self._owed[part.run_id] = part.epoch

    def _cut_off(self, batch: Batch) -> dict[str, BaseException]:
        """The runs of this batch that have lost facts before: theirs is refused with the same error."""
        if not self._lost:
            return {}
        keys = [(part.run_id, part.epoch) for part in batch.parts.values()]
        return {key[0]: self._lost[key] for key in keys if key in self._lost}

    def _interrupt(self, owed: dict[str, int]) -> None:
        """Record that runs were cut off where their log ends, unless they are over or somebody else's."""
        found = self.connection.execute(_RUNNING, (self._owner, _json(list(owed)))).fetchall()
        now = time.time()
        parts: list[Part] = []
        for run_id, epoch in found:
            if owed[run_id] == epoch:
                part = Part(run_id, epoch)
                part.events.append(RunInterrupted(at=now, reason="the log could not be written"))
                part.ended = ("interrupted", now)
                parts.append(part)
        if parts:
            self.insert_parts(parts)

    @property
    def owes(self) -> bool:
        """Whether there are runs whose interruption is still to be recorded."""
        return bool(self._owed)

    def check_room(self) -> None:
        """Write a file beside the database, of the size that the next commits may need, and remove it.

        Raises:
            OSError: there is no room for it.
        """
        if self._durable:
            probe = f"{self._path}-probe-{os.getpid()}"
            try:
                with open(probe, "xb", buffering=0) as file:
                    if file.write(bytes(ROOM_BYTES)) < ROOM_BYTES:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(probe)

    # -- durability -----------------------------------------------------------------------

    def _set_synchronous(self, sync: bool) -> None:
        wanted = (2 if sync else 1) if self._durable else 0
        if wanted != self._synchronous:
            self.connection.execute(f"PRAGMA synchronous={wanted}")
            self._synchronous = wanted

    def _checkpoint_if_long(self) -> None:
        if not self._durable or self.commits % 16:
            return
        # The commit stands whether or not this succeeds; frames that were not copied are copied by a later one.
        with suppress(OSError, sqlite3.Error):
            if os.stat(f"{self._path}-wal").st_size > CHECKPOINT_BYTES:
                self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _recover(self, error: BaseException) -> BaseException:
        """Forget what was not committed; gives the error that callers shall see.

        After an error of SQLite the next transaction opens a new connection.
        """
        self._seen = -1
        if not isinstance(error, (sqlite3.Error, StoreError)):
            with suppress(sqlite3.Error):
                self.connection.execute("ROLLBACK")
            return error
        with suppress(sqlite3.Error):
            self.connection.close()
        self._is_connected, self._synchronous = False, -1
        return log_unavailable(error, self._path)

    def _close(self) -> None:
        if self._owed:
            self._attempt(lambda _: None)
        # SQLite itself takes the whole database for the checkpoint of a last connection, so closing without
        # the lock can meet no commit; it is asked for so that the order is the same for all.
        locked = False
        with suppress(Exception):
            locked = self._mutex.acquire(CLOSE_TIMEOUT_S)
        with suppress(sqlite3.Error):
            self.connection.close()
        if locked:
            self._mutex.release()
        self._stopped()


def _locked_out() -> TimeoutError:
    held = f"another process has held the home's commit lock for {LOCK_TIMEOUT_S:g} s"
    return TimeoutError(f"{held}; it may be suspended")


def log_unavailable(error: BaseException, path: str) -> LogUnavailable:
    """What callers see when a commit failed."""
    damaged = isinstance(error, StoreError) or any(sign in str(error) for sign in _DAMAGE)
    unavailable = LogUnavailable(
        f"the log {path} cannot be written",
        why=str(error),
        fix="close the engine and restore the home from a backup; `sqlite3 treadle.db .recover` saves what is readable"
        if damaged
        else "free disk space or repair the disk; the engine tries again by itself every second",
        path=path,
    )
    unavailable.__cause__ = error
    return unavailable


_DAMAGE = ("malformed", "not a database")


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
_ALIASES = """INSERT INTO aliases(name, artifact)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(CAST(?1 AS TEXT))"""
_KNOWN_NAMES = """SELECT name, id,
    max(version, coalesce((SELECT max(a.version) FROM artifacts a WHERE a.name = names.id), 0))
    FROM names WHERE name IN (SELECT value FROM json_each(CAST(?1 AS TEXT)))"""
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
_RUNNING = """SELECT id, epoch FROM runs WHERE status = 'running' AND owner = ?1
    AND id IN (SELECT value FROM json_each(CAST(?2 AS TEXT)))"""
_OWNERS = """SELECT json_group_array(json_array(id, owner, epoch, status)) FROM runs
    WHERE id IN (SELECT value FROM json_each(CAST(?1 AS TEXT)))"""
