"""Where the bytes of large artifacts are kept: the contract of such a store, and which one a user's option means.

Knows nothing of values, codecs or the log; the stores themselves are in ``local_blobs`` and ``fsspec_blobs``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from treadle.errors import OptionError
from treadle.storage.fsspec_blobs import FsspecBlobs
from treadle.storage.home import BLOBS, TMP, path_text
from treadle.storage.local_blobs import LocalBlobs

__all__ = ["BlobStore", "FsspecBlobs", "LocalBlobs", "open_blobs"]


class BlobStore(Protocol):
    """Where large artifacts are kept. Every method blocks, may be called from any thread, and never hangs."""

    def put(self, data: bytes | memoryview, checksum: bytes) -> str:
        """Store bytes durably and atomically under their BLAKE3 digest; gives their location.

        Bytes that are there already are checked, not written again, and count as new for a collection.

        Raises:
            ArtifactStoreError: they could not be stored; nothing is left of the attempt.
        """
        ...

    def get(self, location: str, size: int, checksum: bytes) -> bytes:
        """Read bytes whose length and digest are right.

        Raises:
            ArtifactDamaged: they are missing, or are not those that were stored.
            ArtifactStoreError: the store could not be read; they may be sound.
        """
        ...

    def exists(self, location: str, size: int) -> bool:
        """Whether a blob of that size is there; its bytes are not read."""
        ...

    def delete(self, location: str, unless_used_since: float | None = None) -> bool:
        """Remove a blob; says whether there was one to remove.

        Args:
            location: as ``put`` or ``list`` gave it.
            unless_used_since: the time that ``list`` gave; the blob stays if a ``put`` has found it since then.
        """
        ...

    def list(self) -> Iterator[tuple[str, int, float]]:
        """Location, size in bytes and time of last use (seconds since 1970) of every blob."""
        ...


def open_blobs(place: str | os.PathLike[str] | None, home: Path) -> BlobStore:
    """Open the store that ``Engine(artifacts=...)`` means.

    Args:
        place: None for the home's own folder; a folder, as path or ``file://`` URL; or the URL of an object store.
        home: the prepared home.

    Raises:
        OptionError: the URL is malformed, chained, has credentials in it, or its library is missing.
        ArtifactStoreError: the folder cannot be made.
    """
    if place is None:
        return LocalBlobs(home / BLOBS, home / TMP)
    text = path_text(place)
    if not text:
        raise OptionError(
            f"artifacts={place!r} is no folder and no URL", fix="give a path, or a URL as s3://bucket/folder"
        )
    if text.startswith("file:///") and "::" not in text:
        text = text.removeprefix("file://")
    elif "://" in text or "::" in text:
        return FsspecBlobs(text)
    return LocalBlobs(Path(text).absolute())
