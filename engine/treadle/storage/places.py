"""Where the bytes of a routed type lie: files under a user's URL, named by artifact and version; knows no values.

A place is the user's, who may share it between homes and with other programs. So a file that is there is never
overwritten, only what a home has put there is read or deleted, and what is read is checked as everywhere.

Theory of operation
* A location is ``<name>/<version><ending>``. The name is a user's text, and no user's text becomes part of a path: all
  but letters, digits, ``_``, ``-`` and inner dots are written as ``~`` and their code, and long ones are cut.
* ``put`` says whether the file is new; if not, the caller takes another version. On a local file system
  this is exact, in an object store there is a moment between looking and writing.
"""

from __future__ import annotations

import os
import re
import stat
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from blake3 import blake3

from treadle.storage.blob_checks import damaged, store_error, verified

ENDINGS: Final = {"msgpack": ".msgpack", "bytes": ".bin", "str": ".txt", "numpy": ".npy", "pickle": ".pkl"}
NAME_CHARACTERS: Final = 120

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]|^\.")
_LOCATION = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9_.~-]*/[1-9][0-9]{0,18}(?:\.[a-z]+)?")
_VERSION = re.compile(r"([1-9][0-9]{0,18})(?:\.[a-z]+)?")
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_BINARY = getattr(os, "O_BINARY", 0)


class Place(Protocol):
    """A folder for the outputs of one type. Every method blocks."""

    def put(self, location: str, data: bytes) -> bool:
        """Write a file, durably and in one go; False if there is one already.

        Raises:
            ArtifactStoreError: it could not be written.
        """
        ...

    def get(self, location: str, size: int, checksum: bytes) -> bytes:
        """Read a file whose length and digest are right.

        Raises:
            ArtifactDamaged: it is missing, or is not what was stored.
            ArtifactStoreError: the place could not be read.
        """
        ...

    def exists(self, location: str, size: int) -> bool:
        """Whether a file of that size is there."""
        ...

    def delete(self, location: str) -> bool:
        """Remove a file; says whether there was one."""
        ...

    def highest(self, name: str) -> int:
        """The highest version that is there of a name (as ``quoted`` wrote it); 0 for none."""
        ...


def location_of(name: str, version: int, codec: str) -> str:
    """Where a version of a name lies.

    >>> location_of("fraud", 3, "pickle"), location_of("../x", 1, "")
    ('fraud/3.pkl', '~2e.~2fx/1')
    """
    return f"{quoted(name)}/{version}{ending_of(codec)}"


def ending_of(codec: str) -> str:
    """The ending that tells other programs what the file is."""
    return ".parquet" if codec.startswith("parquet") else ENDINGS.get(codec, "")


def quoted(name: str) -> str:
    """A name as one part of a path; different names give different parts."""
    text = _UNSAFE.sub(_code, name)
    if len(text) <= NAME_CHARACTERS:
        return text or "~"
    return f"{text[: NAME_CHARACTERS - 34]}~~{blake3(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def _code(match: re.Match[str]) -> str:
    return "".join(f"~{byte:02x}" for byte in match[0].encode("utf-8", "surrogatepass"))


def checked(location: str) -> str:
    """A location that may be joined to a path; raises ``ArtifactDamaged`` for any other."""
    if _LOCATION.fullmatch(location) is None:
        damaged(location, "its recorded location is malformed")
    return location


def highest_of(names: Iterable[str]) -> int:
    """The highest version among the names of files; 0 for none."""
    return max((int(match[1]) for name in names if (match := _VERSION.fullmatch(name))), default=0)


class LocalPlace:
    """A folder of this machine; files and folders get the rights that the process's umask leaves."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __repr__(self) -> str:
        return f"<LocalPlace {self._root}>"

    def put(self, location: str, data: bytes) -> bool:
        """See ``Place.put``."""
        path = self._root / checked(location)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return _write_new(path, data)
        except OSError as error:
            raise store_error(str(path), "write", error) from error

    def get(self, location: str, size: int, checksum: bytes) -> bytes:
        """See ``Place.get``."""
        path = self._root / checked(location)
        try:
            if (there := path.stat().st_size) != size:
                damaged(str(path), f"it has {there} bytes instead of {size}")
            return verified(path.read_bytes(), size, checksum, str(path))
        except ABSENT:
            damaged(str(path), "its file is missing")
        except OSError as error:
            raise store_error(str(path), "read", error) from error

    def exists(self, location: str, size: int) -> bool:
        """See ``Place.exists``."""
        try:
            status = (self._root / checked(location)).stat()
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == size

    def delete(self, location: str) -> bool:
        """See ``Place.delete``."""
        path = self._root / checked(location)
        try:
            path.unlink()
        except ABSENT:
            return False
        except OSError as error:
            raise store_error(str(path), "delete", error) from error
        with suppress(OSError):
            path.parent.rmdir()  # only if nothing is left in it
        return True

    def highest(self, name: str) -> int:
        """See ``Place.highest``."""
        try:
            return highest_of(os.listdir(self._root / name))
        except OSError:
            return 0


def _write_new(path: Path, data: bytes) -> bool:
    """Write beside its place, then give it its name; a crash leaves a hidden file at the most."""
    temp = path.with_name(f".new-{uuid.uuid4().hex}")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return _name_new(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def _name_new(temp: Path, path: Path) -> bool:
    try:
        os.link(temp, path)
    except FileExistsError:
        return False
    except OSError:  # this file system has no links
        if path.exists():
            return False
        os.replace(temp, path)
    for folder in (path.parent, path.parent.parent):
        with suppress(OSError):  # where folders cannot be opened, they cannot be synced
            fd = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    return True
