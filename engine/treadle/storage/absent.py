"""Knows, without asking the database, that most keys of a step which is new to this home are not in the cache.

A look-up in the database costs 10 us when nothing happens beside it and 60 to 90 us while
the writer commits (its pages have to be read anew after each commit, and each query
hands the interpreter lock over). For a step of which the cache had no entry when it was
first asked for, only entries that this engine adds can be there; those are remembered
in a Bloom filter of fixed size. What other engines commit is noticed by a counter that
all of them share, and then the database is asked again.

B. H. Bloom, "Space/time trade-offs in hash coding with allowable errors", 1970. A key that the
filter takes for present costs a query, never a wrong answer.
"""

from __future__ import annotations

import mmap
import os
import sqlite3
import struct
from collections.abc import Iterable
from pathlib import Path

GENERATION = "generation"
BITS = 1 << 24
KEYS_MAX = 2_000_000
TAG_BYTES = 8
_MASK = BITS - 1
_COUNT = struct.Struct("<Q")


class Generation:
    """Counts the commits of all engines of a home, in a mapped file of eight bytes.

    Args:
        home: the prepared home, or ``None`` in memory, where there are no others.
    """

    def __init__(self, home: Path | None) -> None:
        self._own = 0
        self._map: mmap.mmap | None = None
        if home is not None:
            fd = os.open(home / GENERATION, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
            try:
                if os.fstat(fd).st_size < _COUNT.size:
                    os.ftruncate(fd, _COUNT.size)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(fd, 0, _COUNT.size)  # a write to a mapped hole on a full disk kills the process
                self._map = mmap.mmap(fd, _COUNT.size)
            finally:
                os.close(fd)

    def bump(self) -> None:
        """Count a commit of this engine; called by the writer, which holds the commit lock."""
        if self._map is not None:
            self._own += 1
            _COUNT.pack_into(self._map, 0, (_COUNT.unpack_from(self._map, 0)[0] + 1) & 0xFFFFFFFFFFFFFFFF)

    def others(self) -> int:
        """A number that changes when another engine commits."""
        if self._map is None:
            return 0
        count: int = _COUNT.unpack_from(self._map, 0)[0]
        return count - self._own

    def close(self) -> None:
        """Unmap the file."""
        if self._map is not None:
            self._map.close()
            self._map = None


class Absent:
    """Answers "surely not there" for cache keys; the first ``TAG_BYTES`` of a key name its step.

    Args:
        connection: for asking whether a step has entries at all.
        generation: tells when others have committed.
    """

    def __init__(self, connection: sqlite3.Connection, generation: Generation) -> None:
        self._connection, self._generation = connection, generation
        self._others = generation.others()
        self._is_new: dict[bytes, bool] = {}
        self._bits = bytearray()
        self._count = 0

    def left(self, keys: Iterable[bytes]) -> list[bytes]:
        """Those of some keys that may be in the cache: each of the others is surely not there."""
        others = self._generation.others()
        if others != self._others:
            self._others = others
            self._is_new.clear()
        bits, known, is_full = self._bits, self._is_new, self._count > KEYS_MAX
        left: list[bytes] = []
        for key in keys:
            is_new = known.get(key[:TAG_BYTES])
            if is_new is None:
                is_new = self._ask(key[:TAG_BYTES])
            if not is_new or is_full:
                left.append(key)
            elif bits:
                places = int.from_bytes(key[8:14], "little")
                a, b = places & _MASK, places >> 24
                if bits[a >> 3] & (1 << (a & 7)) and bits[b >> 3] & (1 << (b & 7)):
                    left.append(key)
        return left

    def covers(self, key: bytes) -> bool:
        """Whether the key is surely not in the cache."""
        return not self.left((key,))

    def add(self, key: bytes) -> None:
        """The key is about to be in the cache."""
        if not self._bits:
            self._bits = bytearray(BITS // 8)
        self._count += 1
        places = int.from_bytes(key[8:14], "little")
        a, b = places & _MASK, places >> 24
        self._bits[a >> 3] |= 1 << (a & 7)
        self._bits[b >> 3] |= 1 << (b & 7)

    def _ask(self, tag: bytes) -> bool:
        after = (int.from_bytes(tag, "big") + 1).to_bytes(TAG_BYTES + 1, "big")[1:]
        sql, bounds = ("key >= ? AND key < ?", (tag, after)) if any(after) else ("key >= ?", (tag,))
        found = self._connection.execute(f"SELECT 1 FROM cache WHERE {sql} LIMIT 1", bounds).fetchone()
        if len(self._is_new) > 10_000:
            self._is_new.clear()
        self._is_new[tag] = found is None
        return found is None
