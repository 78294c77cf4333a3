"""Reads a home's log in the calling thread, for results that outlive their engine; it never writes."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from treadle import events as ev
from treadle._core.replay import RunRecord, fold
from treadle._runtime.views.artifact import Vault
from treadle.storage import schema
from treadle.storage.reader import digest_in, open_reader, unpack_artifact, unpack_segment
from treadle.storage.rows import EVENTS_PER_COMMIT, ArtifactRow

DIGESTS_AT_ONCE = 1000

_BY_ID = "SELECT a.id, n.name, a.version, a.body FROM artifacts a JOIN names n ON n.id = a.name WHERE a.id=?"


class Archive:
    """The recorded past of one home.

    Args:
        path: the database, a path or a ``file:`` URI.
        vault: where values are loaded from.
        in_memory: the database is in memory, and lives as long as somebody holds a connection to it.
    """

    def __init__(self, path: str, vault: Vault, *, in_memory: bool = False) -> None:
        self._path, self.vault = path, vault
        vault.archive = self
        self.path = path
        self._lock = threading.Lock()
        self._kept = open_reader(path) if in_memory else None

    def __del__(self) -> None:
        kept: sqlite3.Connection | None = getattr(self, "_kept", None)
        if kept is not None:
            kept.close()  # a result in memory was the last that held the database

    def _query(self, sql: str, parameters: Iterable[Any]) -> list[Any]:
        with self._lock:
            connection = self._kept or open_reader(self._path)
            try:
                return connection.execute(sql, tuple(parameters)).fetchall()
            except sqlite3.Error as error:
                raise schema.trouble(self._path, error) from error
            finally:
                if connection is not self._kept:
                    connection.close()

    def events(self, run_id: str | None, after: int = 0) -> Iterator[ev.Event]:
        """The events of a run, or of all, in order."""
        where = "run=?1 AND" if run_id is not None else ""
        # The second condition is one that an index answers: a row has not many more events than a commit may have.
        sql = f"SELECT seq, run, first_artifact, body FROM log WHERE {where} seq + count > ?2 AND seq > ?3 ORDER BY seq"
        rows = self._query(sql, (run_id, after, after - 2 * EVENTS_PER_COMMIT))
        for row in rows:
            yield from (event for event in unpack_segment(*row) if event.seq > after)

    def record(self, run_id: str) -> RunRecord:
        """What the log says of a run."""
        return fold(self.events(run_id), RunRecord(run_id))

    def cached(self, key: bytes) -> list[ArtifactRow]:
        """The artifacts under a cache key; none if there is no entry or an artifact of it is gone."""
        sql = """SELECT c.count, a.id, n.name, a.version, a.body FROM cache c
            JOIN artifacts a ON a.id >= c.artifact AND a.id < c.artifact + c.count JOIN names n ON n.id = a.name
            WHERE c.key=? ORDER BY a.id"""
        rows = self._query(sql, (key,))
        return [unpack_artifact(row[1:]) for row in rows] if rows and len(rows) == rows[0][0] else []

    def newest(self, name: str, limit: int) -> list[ArtifactRow]:
        """The newest artifacts of a name, newest first."""
        sql = """SELECT a.id, n.name, a.version, a.body FROM artifacts a JOIN names n ON n.id = a.name
            WHERE n.name=? ORDER BY a.version DESC LIMIT ?"""
        return [unpack_artifact(row) for row in self._query(sql, (name, limit))]

    def manifest(self, code: bytes) -> bytes | None:
        """What was kept of a code fingerprint."""
        rows = self._query("SELECT body FROM manifests WHERE code=?", (code,))
        return rows[0][0] if rows else None

    def manifests_from(self, prefix: bytes) -> list[bytes]:
        """What was kept under all names that begin so."""
        sql = "SELECT body FROM manifests WHERE code>=? AND code<?"
        return [row[0] for row in self._query(sql, (prefix, prefix + b"\xff" * 32))]

    def artifacts(self, numbers: Iterable[int]) -> list[ArtifactRow]:
        """Artifacts by number, in that order; those that are gone are left out."""
        with self._lock:
            connection = self._kept or open_reader(self._path)
            try:
                rows = [connection.execute(_BY_ID, (number,)).fetchone() for number in numbers]
            except sqlite3.Error as error:
                raise schema.trouble(self._path, error) from error
            finally:
                if connection is not self._kept:
                    connection.close()
        return [unpack_artifact(row) for row in rows if row is not None]

    def named_in_run(self, name: str, run_id: str) -> list[ArtifactRow]:
        """The artifacts of one name that a run made."""
        return [row for row in self._named(name) if row.body.run == run_id]

    def digests(self, numbers: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """The content digests of artifacts; of their rows only the beginnings are read."""
        wanted = sorted(numbers)
        sql = "SELECT id, substr(body, 1, 40) FROM artifacts WHERE id IN (SELECT value FROM json_each(?))"
        for first in range(0, len(wanted), DIGESTS_AT_ONCE):
            rows = self._query(sql, (str(wanted[first : first + DIGESTS_AT_ONCE]),))
            yield from ((number, digest_in(head)) for number, head in rows)

    def children(self, run_id: str) -> list[tuple[str, str]]:
        """Pipeline and status of each child run, in the order of their start."""
        return self._query("SELECT pipeline, status FROM runs WHERE parent=? AND parent<>'' ORDER BY number", (run_id,))

    def values_of_children(self, run_id: str) -> list[ArtifactRow]:
        """What the child runs of a run returned."""
        found = self._query("SELECT id, pipeline FROM runs WHERE parent=? AND parent<>''", (run_id,))
        names = {f"run:{pipeline}" for _, pipeline in found}
        ids = {child for child, _ in found}
        return [row for name in names for row in self._named(name) if row.body.run in ids]

    def _named(self, name: str) -> Iterator[ArtifactRow]:
        sql = "SELECT a.id, n.name, a.version, a.body FROM artifacts a JOIN names n ON n.id = a.name WHERE n.name=?"
        return map(unpack_artifact, self._query(sql, (name,)))

    def locations(self) -> set[str]:
        """The blobs that artifacts name."""
        sql = "SELECT a.id, n.name, a.version, a.body FROM artifacts a JOIN names n ON n.id = a.name"
        return {row.body.location for row in map(unpack_artifact, self._query(sql, ())) if row.body.location}

    def __repr__(self) -> str:
        return f"<Archive {self._path}>"


__all__ = ["Archive", "sqlite3"]
