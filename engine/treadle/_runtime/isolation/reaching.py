"""How the workers of an executor come to large values: by themselves, or over a bridge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treadle.storage.fsspec_blobs import FsspecBlobs
from treadle.storage.local_blobs import LocalBlobs

if TYPE_CHECKING:
    from treadle._runtime.engine import Engine
    from treadle._runtime.isolation.bridging import Bridge
    from treadle._runtime.isolation.executors import Placed


def bridge(engine: Engine, placed: Placed | None) -> Bridge | None:
    """What stands between the engine's store and an executor's workers; ``None`` if they reach it themselves."""
    return None if _url(engine, placed) else engine.bridge


def store(engine: Engine, placed: Placed | None) -> LocalBlobs | FsspecBlobs:
    """The store that an executor's workers see."""
    between = bridge(engine, placed)
    found = engine.vault.blobs if between is None else between.blobs
    assert isinstance(found, (LocalBlobs, FsspecBlobs))
    return found


def places(engine: Engine, placed: Placed | None) -> tuple[str, str]:
    """Where workers find large values, and where they begin to write them: two folders, or a URL and nothing."""
    url = _url(engine, placed)
    if url:
        return url, ""
    folder, tmp = engine.shared_folders
    return str(folder), str(tmp)


def _url(engine: Engine, placed: Placed | None) -> str:
    if placed is None or not placed.opens_urls:
        return ""
    blobs = engine.vault.blobs
    return blobs.shared_url if isinstance(blobs, FsspecBlobs) else ""
