"""Which place the URL of a route means; imports what only object stores need when there is one."""

from __future__ import annotations

from pathlib import Path

from treadle.errors import OptionError
from treadle.storage.places import LocalPlace, Place


def open_place(url: str) -> Place:
    """The place of a path, a ``file://`` URL or the URL of an object store.

    Raises:
        OptionError: the URL is malformed, or its library is missing.
    """
    folder = local_folder(url)
    if folder is not None:
        return LocalPlace(folder)
    from treadle.storage.fsspec_places import FsspecPlace  # most programs have none

    return FsspecPlace(url)


def local_folder(url: str) -> Path | None:
    """The folder that a path or ``file://`` URL means, or ``None`` for another URL, which is checked.

    Raises:
        OptionError: the URL is malformed.
    """
    if url.startswith("file:///") and "::" not in url:
        return Path(url.removeprefix("file://"))
    if "://" in url or "::" in url:
        from treadle.storage.fsspec_blobs import check_url

        check_url(url)
        return None
    if not url:
        raise OptionError("a route is empty", fix="give a path, or a URL as s3://bucket/folder", option="routes")
    return Path(url).absolute()
