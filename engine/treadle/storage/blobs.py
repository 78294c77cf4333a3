"""Where the bytes of large artifacts are kept: which store a user's option means.

Knows nothing of values, codecs or the log; the stores themselves are in ``local_blobs`` and ``fsspec_blobs``.
"""

from __future__ import annotations

import os
from pathlib import Path

from treadle.contracts import ArtifactStore
from treadle.errors import OptionError
from treadle.storage.home import BLOBS, TMP, path_text
from treadle.storage.local_blobs import LocalBlobs


def open_blobs(place: str | os.PathLike[str] | None, home: Path) -> ArtifactStore:
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
        from treadle.storage.fsspec_blobs import FsspecBlobs  # most homes have none

        return FsspecBlobs(text)
    return LocalBlobs(Path(text).absolute())
