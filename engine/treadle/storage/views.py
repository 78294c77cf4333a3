"""Large stored values without a copy where that is possible: arrays are views of the file's pages, read-only."""

from __future__ import annotations

from typing import Any, Final

from treadle.contracts import ArtifactStore, Payload
from treadle.errors import DecodeError
from treadle.storage import codecs
from treadle.storage.codecs import arrays
from treadle.storage.local_blobs import LocalBlobs

MAPPED_BYTES: Final = 16 * 1024 * 1024
"""From this size on files are mapped; a mapping holds a file descriptor as long as it lives, and those are few."""


def load(store: ArtifactStore, payload: Payload, *, trusted: bool = True, allow_pickle: bool = True) -> Any:
    """The value of a payload that lies in a store: its bytes are checked, then decoded.

    Raises:
        ArtifactDamaged: the bytes are missing, or are not those that were stored.
        DecodeError: they cannot be decoded here.
    """
    if payload.codec == "numpy":
        view = _pages(store, payload)
        try:
            return arrays.from_npy(view, shared=True)
        except DecodeError:
            raise
        except Exception as error:
            raise DecodeError("a stored array cannot be decoded", why=str(error), codec=payload.codec) from error
    data = store.get(payload.location, payload.size, payload.checksum)
    return codecs.decode(payload.codec, data, trusted=trusted, allow_pickle=allow_pickle)


def _pages(store: ArtifactStore, payload: Payload) -> bytes | memoryview:
    if payload.size >= MAPPED_BYTES and isinstance(store, LocalBlobs):
        return store.mapped(payload.location, payload.size, payload.checksum)
    return store.get(payload.location, payload.size, payload.checksum)
