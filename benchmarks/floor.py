"""What tracking a step costs at the least: three events, a key, a hash and a share of one SQLite commit.

No retries, no time-outs, no edges, no results: the bound that the engine is compared with.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

_encode = msgspec.msgpack.Encoder().encode


class Fact(msgspec.Struct, array_like=True, gc=False):
    """One event."""

    kind: str
    at: float
    call: str
    key: bytes = b""
    data: bytes = b""


class Floor:
    """A log with one writer thread; it commits whatever came in since its last commit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._facts: list[Fact] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._is_busy = self._is_kicked = False
        self._queue: queue.SimpleQueue[tuple[list[Fact], list[asyncio.Future[None]]] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    async def step(self, number: int) -> int:
        """A tracked call of a function that does nothing."""
        name = f"call[{number}]"
        self._facts.append(Fact("scheduled", time.time(), name))
        key = blake3(b"identity" + blake3(_encode(number)).digest()).digest()
        self._facts.append(Fact("started", time.time(), name, key))
        value = await _body(number)
        data = _encode(value)
        self._facts.append(Fact("completed", time.time(), name, blake3(data).digest(), data))
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(future)
        if not (self._is_busy or self._is_kicked):
            self._is_kicked = True
            self._loop.call_soon(self._send)
        await future
        return value

    def close(self) -> None:
        """Stop the thread."""
        self._queue.put(None)
        self._thread.join()

    def _send(self) -> None:
        self._is_kicked, self._is_busy = False, True
        self._queue.put((self._facts, self._waiting))
        self._facts, self._waiting = [], []

    def _write(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE log(seq INTEGER PRIMARY KEY, body BLOB)")
        while (work := self._queue.get()) is not None:
            facts, waiting = work
            connection.execute("INSERT INTO log(body) VALUES(?)", (_encode(facts),))
            self._loop.call_soon_threadsafe(self._committed, waiting)
        connection.close()

    def _committed(self, waiting: list[asyncio.Future[None]]) -> None:
        for future in waiting:
            future.set_result(None)
        self._is_busy = False
        if self._waiting:
            self._send()


async def _body(value: Any) -> Any:
    return value


async def raw(count: int) -> None:
    """What asyncio alone takes for as many tasks."""
    tasks = [asyncio.create_task(_body(number)) for number in range(count)]
    await asyncio.gather(*tasks)
