"""What an engine holds of one home: opened in order, and given back in reverse if a step on the way fails.

Knows files, locks and connections; knows no runs. Everything here blocks and is called on a thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from treadle._runtime.views.archive import Archive
from treadle._runtime.views.artifact import Vault
from treadle.contracts import ArtifactStore
from treadle.errors import EngineClosed, StoreUnwritable
from treadle.storage import blobs, home, owners, schema
from treadle.storage.absent import Generation
from treadle.storage.log import Log
from treadle.storage.reader import Lookup, Reader


class Lock(Protocol):
    """The commit lock, or what stands in for it."""

    def acquire(self, timeout_s: float) -> bool: ...
    def release(self) -> None: ...
    def close(self) -> None: ...


class Holdings:
    """Opens a home for one engine.

    Args:
        engine_id: the name of its lock file; never used before.
        place: the home, as the user gave it.
        artifacts: where large artifacts go, as the user gave it.
        in_memory: nothing is kept, so there is no home.
        strict: every commit is flushed to the disk.
    """

    home: Path
    mutex: Lock
    lock: owners.OwnerLock | None
    vault: Vault
    log: Log
    lookup: Lookup
    reader: Reader
    archive: Archive
    has_running: bool

    def __init__(
        self, engine_id: str, place: str | os.PathLike[str] | None, artifacts: str | os.PathLike[str] | None,
        *, in_memory: bool, strict: bool, allow_pickle: bool,
    ) -> None:  # fmt: skip
        self._id, self._place, self._artifacts = engine_id, place, artifacts
        self._in_memory, self._strict, self._allow_pickle = in_memory, strict, allow_pickle
        self._guard = threading.Lock()
        self._opened: ExitStack | None = None
        self._unwanted = False

    def open(self, loop: asyncio.AbstractEventLoop) -> Holdings:
        """Open it all, or leave nothing behind."""
        with ExitStack() as undo:
            database = self._open_memory() if self._in_memory else self._open_home(undo)
            self.vault = Vault(str(self.home), self._open_blobs(), allow_pickle=self._allow_pickle)
            generation = Generation(None if self._in_memory else self.home)
            undo.callback(generation.close)
            self.log = Log(
                database, self._id, self.mutex, loop,
                durable=not self._in_memory, strict=self._strict, generation=generation,
            )  # fmt: skip
            undo.callback(self.log.abort)
            self.lookup, self.reader = Lookup(database, generation), Reader(database)
            undo.callback(self.lookup.close)
            self.has_running = self.lookup.has_running()
            self.archive = Archive(database, self.vault, in_memory=self._in_memory)
            if not self._in_memory:
                home.sweep_tmp(self.home, 0)
                owners.sweep(self.home)
            with self._guard:
                if self._unwanted:
                    raise EngineClosed("opening the engine was cancelled")
                self._opened = undo.pop_all()
        return self

    def _open_blobs(self) -> ArtifactStore:
        if self._in_memory and self._artifacts is None:
            from treadle.storage.memory_blobs import MemoryBlobs

            return MemoryBlobs()
        return blobs.open_blobs(self._artifacts, self.home)

    def _open_memory(self) -> str:
        self.home = Path("memory:")
        self.mutex, self.lock = _NoLock(), None
        return f"file:treadle-{self._id}?mode=memory&cache=shared"

    def _open_home(self, undo: ExitStack) -> str:
        place = home.locate_home(self._place)
        # What is not ours is refused before anything is made beside it.
        try:
            schema.inspect(place / schema.DATABASE)
        except StoreUnwritable:
            home.prepare_home(place)  # which knows better why, if it is the folder that forbids it
            raise
        self.home = home.prepare_home(place)
        self.mutex = owners.CommitLock(self.home)
        undo.callback(self.mutex.close)
        self.lock = owners.OwnerLock.acquire(self.home, self._id)
        undo.callback(self.lock.release)
        return str(self.home / schema.DATABASE)

    def give_back(self) -> None:
        """Close what is open; if the opening is still under way on its thread, it undoes itself."""
        with self._guard:
            self._unwanted = True
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()


class _NoLock:
    """In memory there is nobody to exclude."""

    def acquire(self, timeout_s: float) -> bool:
        del timeout_s
        return True

    def release(self) -> None:
        return None

    def close(self) -> None:
        return None
