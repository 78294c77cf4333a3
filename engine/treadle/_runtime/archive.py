"""Reads a home's log in the calling thread, for results that outlive their engine; it never writes."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from treadle import events as ev
from treadle._core.replay import RunRecord, fold
from treadle._runtime.artifact import Vault
from treadle.storage.reader import open_reader, unpack_artifact, unpack_segment
from treadle.storage.rows import ArtifactRow

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
            finally:
                if connection is not self._kept:
                    connection.close()

    def events(self, run_id: str | None, after: int = 0) -> Iterator[ev.Event]:
        """The events of a run, or of all, in order."""
        where = "run=?1 AND" if run_id is not None else ""
        sql = f"SELECT seq, run, first_artifact, body FROM log WHERE {where} seq + count > ?2 ORDER BY seq"
        rows = self._query(sql, (run_id, after))
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

    def artifacts(self, numbers: Iterable[int]) -> list[ArtifactRow]:
        """Artifacts by number, in that order; those that are gone are left out."""
        with self._lock:
            connection = self._kept or open_reader(self._path)
            try:
                rows = [connection.execute(_BY_ID, (number,)).fetchone() for number in numbers]
            finally:
                if connection is not self._kept:
                    connection.close()
        return [unpack_artifact(row) for row in rows if row is not None]

    def named_in_run(self, name: str, run_id: str) -> list[ArtifactRow]:
        """The artifacts of one name that a run made."""
        sql = "SELECT a.id, n.name, a.version, a.body FROM artifacts a JOIN names n ON n.id = a.name WHERE n.name=?"
        rows = map(unpack_artifact, self._query(sql, (name,)))
        return [row for row in rows if row.body.run == run_id]

    def locations(self) -> set[str]:
        """The blobs that artifacts name."""
        sql = "SELECT a.id, n.name, a.version, a.body FROM artifacts a JOIN names n ON n.id = a.name"
        return {row.body.location for row in map(unpack_artifact, self._query(sql, ())) if row.body.location}

    def __repr__(self) -> str:
        return f"<Archive {self._path}>"


__all__ = ["Archive", "sqlite3"]
