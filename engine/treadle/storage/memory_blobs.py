"""Blobs of an engine in memory; knows nothing of values, codecs or the log.

They live as long as somebody holds the store: a result of a closed engine can still read its artifacts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from treadle.storage.blob_checks import damaged, is_location, location_of, verified


class MemoryBlobs:
    """Blobs in a dict.

    >>> from blake3 import blake3
    >>> store = MemoryBlobs()
    >>> where = store.put(b"weights", blake3(b"weights").digest())
    >>> store.get(where, 7, blake3(b"weights").digest())
    b'weights'
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blobs: dict[str, tuple[bytes, float]] = {}

    def __repr__(self) -> str:
        return f"<MemoryBlobs {len(self._blobs)} blobs>"

    def put(self, data: bytes | memoryview, checksum: bytes) -> str:
        """See ``ArtifactStore.put``."""
        location = location_of(checksum)
        content = bytes(data)
        with self._lock:
            self._blobs[location] = (content, time.time())
        return location

    def get(self, location: str, size: int, checksum: bytes) -> bytes:
        """See ``ArtifactStore.get``."""
        if not is_location(location):
            damaged(location, "its recorded location is malformed")
        found = self._blobs.get(location)
        if found is None:
            damaged(f"memory:{location}", "it is missing")
        return verified(found[0], size, checksum, f"memory:{location}")

    def exists(self, location: str, size: int) -> bool:
        """See ``ArtifactStore.exists``."""
        found = self._blobs.get(location)
        return found is not None and len(found[0]) == size

    def delete(self, location: str, unless_used_since: float | None = None) -> bool:
        """See ``ArtifactStore.delete``."""
        with self._lock:
            found = self._blobs.get(location)
            if found is None or (unless_used_since is not None and found[1] > unless_used_since):
                return False
            del self._blobs[location]
            return True

    def list(self) -> Iterator[tuple[str, int, float]]:
        """See ``ArtifactStore.list``."""
        with self._lock:
            found = sorted(self._blobs.items())
        for location, (content, used_at) in found:
            yield location, len(content), used_at
