"""What the log's readers ask: cache lookups on the loop, queries through aiosqlite; it writes nothing."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any

import msgspec

from treadle.errors import EngineClosed
from treadle.events import (
    AnyEvent,
    CallCompleted,
    Event,
    RunSucceeded,
)
from treadle.storage import schema
from treadle.storage.absent import Absent, Generation
from treadle.storage.rows import EVENTS_PER_COMMIT, ArtifactRow, Body

if TYPE_CHECKING:
    import aiosqlite

_decode_body = msgspec.msgpack.Decoder(Body).decode
_replace = msgspec.structs.replace

_PRAGMAS = ("query_only=ON", "read_uncommitted=ON", "busy_timeout=30000", "trusted_schema=OFF")
_ARTIFACT = "SELECT a.id, n.name, a.version, a.body FROM artifacts a JOIN names n ON n.id = a.name"

_CACHED = """SELECT j.value, c.count, a.id, n.name, a.version, a.body
    FROM json_each(?2) j JOIN cache c ON c.key = substr(?1, 1 + 32 * j.value, 32)
    JOIN artifacts a ON a.id >= c.artifact AND a.id < c.artifact + c.count JOIN names n ON n.id = a.name
    ORDER BY j.value, a.id"""


@functools.cache
def _events() -> Callable[[bytes], list[AnyEvent]]:
    """Made at first use: a union of thirty classes takes 5 ms, which ``import treadle`` need not wait for."""
    return msgspec.msgpack.Decoder(list[AnyEvent]).decode


def unpack_segment(seq: int, run: str, first_artifact: int, body: bytes) -> Iterator[Event]:
    """The events of one row of the log, with their numbers filled in."""
    for offset, event in enumerate(_events()(body)):
        if isinstance(event, (CallCompleted, RunSucceeded)) and event.artifacts:
            numbers = tuple(first_artifact + index for index in event.artifacts)
            yield _replace(event, seq=seq + offset, run_id=run, artifacts=numbers)
        else:
            yield _replace(event, seq=seq + offset, run_id=run)


def unpack_artifact(row: Sequence[Any]) -> ArtifactRow:
    """An artifact from its row: id, name, version, body; one whose row cannot be read has no bytes that fit it."""
    try:
        body = _decode_body(row[3])
    except (msgspec.DecodeError, ValueError, RecursionError):
        body = Body(b"", b"", -1, "", "", "", "", "", 0.0, data=b"")
    return ArtifactRow(row[1], body, row[0], row[2])


def digest_in(head: bytes) -> bytes:
    """The content digest, which a packed body begins with, from its first 40 bytes; empty if it is not there."""
    start = 1 if head[:1] and head[0] & 0xF0 == 0x90 else 3  # the head of an array of up to 15 items, or of more
    return head[start + 2 : start + 34] if head[start : start + 2] == b"\xc4\x20" else b""


def open_reader(path: str) -> sqlite3.Connection:
    """A connection that only reads; it sees each commit at once.

    Raises:
        StoreUnwritable: there is no such file any more.
    """
    if schema.is_gone(path):
        raise schema.gone(path)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, uri=path.startswith("file:"))
    _configure(connection.execute)
    return connection


def _configure(execute: Any) -> None:
    for pragma in _PRAGMAS:
        execute(f"PRAGMA {pragma}")


class Lookup:
    """Answers the cache's question on the loop's own thread.

    A point query takes 9 µs; a hop to another thread and back takes 70 to 150, which
    would double the cost of an awaited step (docs/decisions/0002).

    What cannot be read is not known: the step is performed, and the damage shows where it matters.

    Args:
        path: the database, a path or a ``file:`` URI.
        generation: tells when other engines have committed.
    """

    def __init__(self, path: str, generation: Generation) -> None:
        self._connection = open_reader(path)
        self._absent = Absent(self._connection, generation)

    def cached(self, keys: Sequence[bytes]) -> dict[bytes, list[ArtifactRow]]:
        """The artifacts under cache keys, in the order of the outputs; what is not whole is left out."""
        keys = self._absent.left(dict.fromkeys(keys))  # equal calls may come together
        if not keys:
            return {}
        places = f"[{','.join(map(str, range(len(keys))))}]"
        found: dict[bytes, list[ArtifactRow]] = {}
        wanted: dict[bytes, int] = {}
        try:
            rows = self._connection.execute(_CACHED, (b"".join(keys), places)).fetchall()
        except sqlite3.Error:
            return {}
        for place, count, *row in rows:
            key = keys[place]
            wanted[key] = count
            found.setdefault(key, []).append(unpack_artifact(row))
        return {key: rows for key, rows in found.items() if len(rows) == wanted[key]}

    def has_running(self) -> bool:
        """Whether any run counts as running; what cannot be read counts as yes, so that somebody looks closer."""
        try:
            return bool(self._connection.execute("SELECT 1 FROM runs WHERE status='running' LIMIT 1").fetchone())
        except sqlite3.Error:
            return True

    def note(self, key: bytes) -> None:
        """This engine is about to add an entry under a key."""
        self._absent.add(key)

    def artifacts(self, numbers: Iterable[int]) -> list[ArtifactRow]:
        """Artifacts by number; those that are gone are left out."""
        execute = self._connection.execute
        try:
            rows = [execute(f"{_ARTIFACT} WHERE a.id=?", (number,)).fetchone() for number in numbers]
        except sqlite3.Error:
            return []
        return [unpack_artifact(row) for row in rows if row is not None]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Reader:
    """Queries that may take long, through aiosqlite, opened at the first one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._opening: asyncio.Task[aiosqlite.Connection] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed = False

    async def rows(self, sql: str, parameters: Iterable[Any] = ()) -> list[Any]:
        """All rows of a query.

        Raises:
            EngineClosed: the reader was closed.
            StoreError: the log cannot be read.
        """
        try:
            return list(await (await self._connected()).execute_fetchall(sql, parameters))
        except sqlite3.Error as error:
            raise schema.trouble(self._path, error) from error

    async def _connected(self) -> aiosqlite.Connection:
        """The connection; who is cancelled while it opens leaves it to ``close``, and does not lose it half-made."""
        if self._opening is None and not self._closed:
            self._opening = asyncio.create_task(self._open(), context=Context())  # or it holds the first caller's
            self._opening.add_done_callback(self._opened)
        connection = None if self._opening is None else await asyncio.shield(self._opening)
        if connection is None or self._closed:
            raise EngineClosed("the engine is closed", fix="use it inside `async with Engine(...) as engine:`")
        return connection

    async def _open(self) -> aiosqlite.Connection:
        import aiosqlite

        if schema.is_gone(self._path):
            raise schema.gone(self._path)
        opening = aiosqlite.connect(self._path, isolation_level=None, uri=self._path.startswith("file:"))
        _daemonise(opening)
        connection = await opening
        try:
            for pragma in _PRAGMAS:
                await connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            await connection.close()
            raise
        return connection

    def _opened(self, opening: asyncio.Task[aiosqlite.Connection]) -> None:
        """What could not be opened is tried again by the next query."""
        if opening.cancelled() or opening.exception() is not None:
            self._opening = None

    async def events(self, run_id: str | None = None, after: int = 0, limit: int = 200) -> list[Event]:
        """Events in order: of one run or of all, those after a number; at most ``limit`` rows of the log at a time."""
        return [event async for event in self._events(run_id, after, limit)]

    async def _events(self, run_id: str | None, after: int, limit: int) -> AsyncIterator[Event]:
        where, parameters = "seq + count > ?", [after + 1] if run_id is None else [after + 1, run_id]
        if run_id is not None:
            where += " AND run = ?"
        sql = f"SELECT seq, run, first_artifact, body FROM log WHERE {where} AND seq > ? ORDER BY seq LIMIT ?"
        for row in await self.rows(sql, [*parameters, after - 2 * EVENTS_PER_COMMIT, limit]):
            for event in unpack_segment(*row):
                if event.seq > after:
                    yield event

    async def artifacts(self, where: str, parameters: Iterable[Any]) -> list[ArtifactRow]:
        """Artifacts by a condition on ``a`` (artifacts) and ``n`` (names)."""
        return [unpack_artifact(row) for row in await self.rows(f"{_ARTIFACT} WHERE {where}", parameters)]

    async def close(self) -> None:
        """Close the connection, if it was opened, or once it is; also when this is cancelled."""
        self._closed = True
        opening, self._opening = self._opening, None
        if opening is not None:
            self._closing = asyncio.create_task(_close(opening))
        if self._closing is not None:
            await asyncio.shield(self._closing)


async def _close(opening: asyncio.Task[aiosqlite.Connection]) -> None:
    try:
        if not opening.done():
            await asyncio.wait([opening])
    finally:
        if opening.done() and not opening.cancelled() and opening.exception() is None:
            await opening.result().close()


def _daemonise(opening: Any) -> None:
    """Let the process end although a connection is open; aiosqlite's thread is no daemon by itself."""
    thread = getattr(opening, "_thread", None)
    if thread is not None and not thread.is_alive():
        thread.daemon = True
