"""Blobs in an object store or on another machine, through fsspec; knows nothing of values, codecs or the log.

Object stores replace an object in one go, so a ``put`` simply uploads, which also repairs a damaged one and makes it
new for a collection. Elsewhere a file is written under another name and moved. There is no lock as in
``local_blobs``: between a look and a deletion a collection relies on its grace.

``memory`` and a renaming file system of fsspec's own are tested; the others are as good as their fsspec drivers.
"""

from __future__ import annotations

import importlib
import re
import time
import uuid
from collections.abc import Generator, Iterator
from datetime import datetime
from typing import Any, Final, NoReturn

from blake3 import blake3

from treadle.errors import OptionError
from treadle.storage.blob_checks import damaged, is_location, location_of, store_error, verified

ATOMIC_SCHEMES: Final = frozenset(["abfs", "abfss", "az", "gcs", "gs", "memory", "oci", "oss", "s3", "s3a", "tos"])
MOVING_SCHEMES: Final = frozenset(["arrow_hdfs", "hdfs", "sftp", "smb", "ssh", "webdav", "webhdfs"])

PIECE_BYTES: Final = 4 * 1024 * 1024

_URL = re.compile(r"([a-z][a-z0-9_+.-]*)://([A-Za-z0-9._/@=+,~-]*)")
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")


class FsspecBlobs:
    """Blobs under a URL.

    Args:
        url: ``scheme://place/folder``, without credentials, query or chain (``::``). Credentials come from the
            environment or from fsspec's own configuration, so that no log or error message can show them.

    Raises:
        OptionError: the URL is not of that form, its scheme is not one of a writable store, or its library is missing.
    """

    def __init__(self, url: str) -> None:
        self._scheme = check_url(url)
        self._atomic = self._scheme in ATOMIC_SCHEMES
        try:
            # Listings are not cached: another process may have written or deleted since.
            found: tuple[Any, str] = importlib.import_module("fsspec").url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise OptionError(
                f"artifacts={url!r} needs a library that is missing", why=str(error), fix="install it with pip"
            ) from error
        except (TypeError, ValueError) as error:
            raise OptionError(f"artifacts={url!r} cannot be opened", why=str(error), fix="check the URL") from error
        self._fs, root = found
        self._root = root.rstrip("/")
        self._url = url.rstrip("/")

    def __repr__(self) -> str:
        return f"<FsspecBlobs {self._url}>"

    @property
    def shared_url(self) -> str:
        """Where other processes find it; ``""`` if they cannot."""
        return "" if self._scheme == "memory" else self._url

    def put(self, data: bytes | memoryview, checksum: bytes) -> str:
        """See ``ArtifactStore.put``."""
        location = location_of(checksum)
        path = self._path(location)
        content = bytes(data)
        try:
            if self._atomic:
                self._fs.pipe_file(path, content)
            else:
                self._move_in(path, content)
            if (there := self._fs.info(path)["size"]) != len(content):
                raise OSError(f"only {there} of {len(content)} bytes have arrived")
        except Exception as error:
            raise store_error(self._shown(location), "write", error) from error
        return location

    def get(self, location: str, size: int, checksum: bytes) -> bytes:
        """See ``ArtifactStore.get``."""
        if not is_location(location):
            damaged(location, "its recorded location is malformed")
        try:
            # One byte more than is right shows a longer object without fetching all of it.
            data = bytes(self._fs.cat_file(self._path(location), start=0, end=size + 1))
        except _ABSENT:
            damaged(self._shown(location), "it is missing")
        except Exception as error:
            raise store_error(self._shown(location), "read", error) from error
        return verified(data, size, checksum, self._shown(location))

    def pieces(self, location: str, size: int, checksum: bytes) -> Generator[memoryview, None, None]:
        """The bytes of a blob one after another, checked as they pass; only the end says whether all were right.

        Raises:
            ArtifactDamaged: they are missing, or are not those that were stored.
            ArtifactStoreError: the store could not be read.
        """
        if not is_location(location):
            damaged(location, "its recorded location is malformed")
        hasher, path, at = blake3(), self._path(location), 0
        while at < size:
            # One byte more than is right shows a longer object.
            end = at + PIECE_BYTES if at + PIECE_BYTES < size else size + 1
            try:
                piece = bytes(self._fs.cat_file(path, start=at, end=end))
            except _ABSENT:
                damaged(self._shown(location), "it is missing")
            except Exception as error:
                raise store_error(self._shown(location), "read", error) from error
            if not piece:
                break
            at += len(piece)
            hasher.update(piece)
            yield memoryview(piece)
        if at != size or hasher.digest() != checksum:
            damaged(self._shown(location), "its content has changed")

    def exists(self, location: str, size: int) -> bool:
        """See ``ArtifactStore.exists``."""
        info = self._info(location)
        return info is not None and info["type"] == "file" and info["size"] == size

    def delete(self, location: str, unless_used_since: float | None = None) -> bool:
        """See ``ArtifactStore.delete``."""
        info = self._info(location)
        if info is None or (unless_used_since is not None and _used_at(info) > unless_used_since):
            return False
        try:
            self._fs.rm(self._path(location), recursive=info["type"] != "file")
        except _ABSENT:
            return False
        except Exception as error:
            raise store_error(self._shown(location), "delete", error) from error
        return True

    def list(self) -> Iterator[tuple[str, int, float]]:
        """See ``ArtifactStore.list``."""
        try:
            found: dict[str, dict[str, Any]] = self._fs.find(self._root, detail=True)
        except _ABSENT:
            return
        except Exception as error:
            raise store_error(self._url, "list", error) from error
        for path, info in sorted(found.items()):
            location = path[-65:]
            if is_location(location) and path == self._path(location):
                yield location, info["size"], _used_at(info)

    def _path(self, location: str) -> str:
        return f"{self._root}/{location}"

    def _shown(self, location: str) -> str:
        return f"{self._url}/{location}"

    def _info(self, location: str) -> dict[str, Any] | None:
        if not is_location(location):
            return None
        try:
            info: dict[str, Any] = self._fs.info(self._path(location))
        except _ABSENT:
            return None
        except Exception as error:
            raise store_error(self._shown(location), "look up", error) from error
        return info

    def _move_in(self, path: str, content: bytes) -> None:
        temp = f"{self._root}/tmp/{uuid.uuid4().hex}"
        for folder in (temp.rpartition("/")[0], path.rpartition("/")[0]):
            self._fs.makedirs(folder, exist_ok=True)
        try:
            self._fs.pipe_file(temp, content)
            # Not every driver moves over what is there.
            if self._fs.exists(path):
                self._fs.rm(path, recursive=True)
            self._fs.mv(temp, path)
        except BaseException:
            if self._fs.exists(temp):
                self._fs.rm_file(temp)
            raise


def check_url(url: str) -> str:
    """The scheme of an artifact URL.

    Raises:
        OptionError: the URL is chained, has credentials, a query or a ``..`` in it, or is no URL of a writable store.

    >>> check_url("s3://models/shop")
    's3'
    """
    scheme = url.partition("://")[0]
    # Messages show the scheme alone: what follows may be a password.
    if "::" in url:
        _refuse(scheme.rpartition("::")[2], "is a chain of URLs", "give the URL of the store itself")
    matched = _URL.fullmatch(url)
    place = matched[2] if matched else ""
    if "@" in place and not (scheme in {"abfs", "abfss"} and place.count("@") == 1):
        _refuse(scheme, "has credentials in it", "give them by the environment or fsspec's configuration")
    if not matched or ".." in place.split("/") or (scheme != "memory" and not place.strip("/")):
        _refuse(
            scheme,
            "is malformed",
            "write scheme://place/folder, and give credentials by the environment or fsspec's configuration",
        )
    if scheme not in ATOMIC_SCHEMES | MOVING_SCHEMES:
        known = ", ".join(sorted(ATOMIC_SCHEMES | MOVING_SCHEMES))
        _refuse(scheme, "is no store that blobs can be written to", f"use one of {known}, or a folder")
    return scheme


def _refuse(scheme: str, what: str, fix: str) -> NoReturn:
    shown = scheme if re.fullmatch(r"[a-z0-9_+.-]{1,32}", scheme) else "?"
    raise OptionError(f"the artifact URL {shown}://… {what}", fix=fix)


def _used_at(info: dict[str, Any]) -> float:
    """When an object was written, in seconds since 1970; now if its store does not tell, so never collected."""
    for name in _TIMES:
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            try:
                return datetime.fromisoformat(value).timestamp()
            except ValueError:
                continue
    return time.time()
