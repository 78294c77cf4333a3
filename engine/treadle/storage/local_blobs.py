"""Blobs as files of a folder on this machine; knows nothing of values, codecs or the log.

Theory of operation
* ``put`` writes a temporary file, syncs it, renames it, and syncs its folder: a location that
  ``put`` has returned can be read again after a loss of power. A crash leaves at most a temporary
  file (``sweep_tmp`` removes it, and knows by its lock that its writer is dead) or a blob that nobody
  refers to (a collection removes it later).
* ``get`` gives bytes only after their length and digest were found right. It opens what lies there without following
  links or waiting for the other end of a FIFO.
* A collection must not delete what a ``put`` has just found and is about to refer to. So ``put`` renews a
  blob's time under a shared lock of its folder, and ``delete`` looks at that time again under the exclusive one.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import uuid
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from blake3 import blake3

from treadle.errors import ArtifactDamaged, ArtifactStoreError
from treadle.storage import failpoints
from treadle.storage.blob_checks import damaged, is_location, location_of, store_error, verified
from treadle.storage.os_locks import try_lock, unlock, wait_lock

_SHARD = re.compile(r"[0-9a-f]{2}")
_LOCK_TIMEOUT_S = 10.0
PIECE_BYTES = 1 << 20
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF}
_CLOEXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_READ = (
    os.O_RDONLY | _CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
)
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
_FOLDER = os.O_RDONLY | _CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_DIRECTORY", 0)


class LocalBlobs:
    """Blobs as files of a folder on this machine.

    Args:
        root: the folder, created if missing.
        tmp: where files are written before they are renamed; on the same file system. By default ``tmp`` in ``root``.

    Raises:
        ArtifactStoreError: the folder cannot be made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = LocalBlobs(Path(folder))
    ...     where = store.put(b"weights", blake3(b"weights").digest())
    ...     store.get(where, 7, blake3(b"weights").digest())
    b'weights'
    """

    def __init__(self, root: Path, tmp: Path | None = None) -> None:
        self._root = root
        self._tmp = tmp or root / "tmp"
        # Folders whose own entry in the root is known to survive a loss of power.
        self._durable: set[str] = set()
        try:
            for folder in (self._root, self._tmp):
                if not folder.is_dir():
                    folder.mkdir(0o700, parents=True, exist_ok=True)
                    _sync_path(folder.parent)
        except OSError as error:
            raise store_error(str(root), "create", error) from error

    def __repr__(self) -> str:
        return f"<LocalBlobs {self._root}>"

    def put(self, data: bytes | memoryview, checksum: bytes) -> str:
        """See ``ArtifactStore.put``."""
        view = memoryview(data).cast("B")
        return self._put([view], len(view), checksum)

    def put_pieces(self, pieces: Sequence[bytes | memoryview], size: int, checksum: bytes) -> str:
        """As ``put``, of bytes that are not one object; their length and digest are taken as given."""
        return self._put(map(memoryview, pieces), size, checksum)

    def take(self, folder: Path, location: str, size: int, checksum: bytes) -> str:
        """Store the bytes of a file in another folder, which its writer may be writing to still; they pass in pieces.

        Raises:
            ArtifactDamaged: it is no regular file of that folder, or its bytes are not those.
            ArtifactStoreError: they could not be stored.
        """
        with closing(_checked(folder, location, size, checksum)) as pieces:
            return self._put(pieces, size, checksum)

    def _put(self, pieces: Iterable[memoryview], size: int, checksum: bytes) -> str:
        location = location_of(checksum)
        path = self._root / location
        try:
            with self._shard(path.parent) as shard:
                if not self._renew(path, shard, size, checksum):
                    self._write(path, shard, pieces)
                # Also for a blob that was there: who wrote it may not have come this far.
                _sync(shard)
        except OSError as error:
            if isinstance(error, ArtifactStoreError):
                raise
            raise store_error(str(path), "write", error) from error
        return location

    def pieces(self, location: str, size: int, checksum: bytes) -> Generator[memoryview, None, None]:
        """The bytes of a blob one after another, checked as they pass; only the end says whether all were right.

        To be closed by who does not take all of them.

        Raises:
            ArtifactDamaged: they are missing, or are not those that were stored.
        """
        return _checked(self._root, location, size, checksum)

    def get(self, location: str, size: int, checksum: bytes) -> bytes:
        """See ``ArtifactStore.get``."""
        path = self._path(location)
        if path is None:
            damaged(location, "its recorded location is malformed")
        try:
            return verified(_read(path, size), size, checksum, str(path))
        except (FileNotFoundError, NotADirectoryError):
            damaged(str(path), "its file is missing")
        except OSError as error:
            if not _is_file(path):
                damaged(str(path), "it is no regular file")
            raise store_error(str(path), "read", error) from error

    def mapped(self, location: str, size: int, checksum: bytes) -> memoryview:
        """As ``get``, without a copy: the file's pages, which cannot be written to and need no memory of their own."""
        path = self._path(location)
        if path is None:
            damaged(location, "its recorded location is malformed")
        try:
            view = _map(path, size)
        except (FileNotFoundError, NotADirectoryError):
            damaged(str(path), "its file is missing")
        except OSError as error:
            raise store_error(str(path), "read", error) from error
        if blake3(view).digest() != checksum:
            damaged(str(path), "its content has changed")
        return view

    @property
    def folders(self) -> tuple[Path, Path]:
        """The folder of the blobs, and the one where they are begun."""
        return self._root, self._tmp

    def exists(self, location: str, size: int) -> bool:
        """See ``ArtifactStore.exists``."""
        path = self._path(location)
        try:
            status = os.lstat(path) if path is not None else None
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise store_error(str(path), "look up", error) from error
        return status is not None and stat.S_ISREG(status.st_mode) and status.st_size == size

    def delete(self, location: str, unless_used_since: float | None = None) -> bool:
        """See ``ArtifactStore.delete``."""
        path = self._path(location)
        if path is None:
            return False
        try:
            with _open_folder(path.parent) as shard, _locked(shard, shared=False):
                if unless_used_since is not None and os.lstat(path).st_mtime > unless_used_since:
                    return False
                self._clear(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise store_error(str(path), "delete", error) from error
        return True

    def list(self) -> Iterator[tuple[str, int, float]]:
        """See ``ArtifactStore.list``."""
        try:
            for shard in sorted(filter(_SHARD.fullmatch, os.listdir(self._root))):
                for entry in _entries(self._root / shard):
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        if is_location(location := f"{shard}/{entry.name}") and stat.S_ISREG(status.st_mode):
                            yield location, status.st_size, status.st_mtime
        except OSError as error:
            raise store_error(str(self._root), "list", error) from error

    # -- the steps of a put ---------------------------------------------------------------

    def _path(self, location: str) -> Path | None:
        return self._root / location if is_location(location) else None

    @contextmanager
    def _shard(self, folder: Path) -> Generator[int, None, None]:
        if folder.name not in self._durable or not folder.is_dir():
            with suppress(FileExistsError):
                folder.mkdir(0o700)
            _sync_path(self._root)
            self._durable.add(folder.name)
        with _open_folder(folder) as shard:
            yield shard

    def _renew(self, path: Path, shard: int, size: int, checksum: bytes) -> bool:
        """Make a sound blob that is already there count as new; False if there is none."""
        try:
            for _ in _checked(path.parent.parent, f"{path.parent.name}/{path.name}", size, checksum):
                pass
            with _locked(shard, shared=True):
                os.utime(path)
        except (OSError, ArtifactDamaged):
            return False
        return True

    def _write(self, path: Path, shard: int, pieces: Iterable[memoryview]) -> None:
        fd, temp = self._create()
        try:
            for piece in pieces:
                _write_all(fd, piece)
            failpoints.hit("blob-temp-written")
            os.fsync(fd)
            failpoints.hit("blob-synced")
            with _locked(shard, shared=True):
                try:
                    os.replace(temp, path)
                except IsADirectoryError:
                    self._clear(path)
                    os.replace(temp, path)
            failpoints.hit("blob-renamed")
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    def _create(self) -> tuple[int, Path]:
        """A new temporary file, locked, so that a sweep knows that its writer lives."""
        while True:
            temp = self._tmp / f"blob-{uuid.uuid4().hex}"
            fd = os.open(temp, _CREATE, 0o600)
            try:
                # A sweep that came between the two calls has locked or removed the file.
                if sys.platform == "win32" or (try_lock(fd) and os.fstat(fd).st_nlink):
                    return fd, temp
            except OSError:
                # This file system has no locks; the age of the file must do.
                return fd, temp
            os.close(fd)
            temp.unlink(missing_ok=True)

    def _clear(self, path: Path) -> None:
        """Remove what is at a blob's place; a folder goes to where the next sweep removes it."""
        if stat.S_ISDIR(os.lstat(path).st_mode):
            path.rename(self._tmp / f"stray-{uuid.uuid4().hex}")
        else:
            path.unlink()


# -- files and folders --------------------------------------------------------------------


def _read(path: Path, size: int) -> bytes:
    """Read a regular file of exactly that size, or refuse before anything is read."""
    fd = os.open(path, _READ)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            damaged(str(path), "it is no regular file")
        if status.st_size != size:
            damaged(str(path), f"it has {status.st_size} bytes instead of {size}")
        parts: list[bytes] = []
        left = size
        while left and (part := os.read(fd, left)):
            parts.append(part)
            left -= len(part)
        # One read is the rule (a kernel gives up to 2 GiB), and joining a single part copies nothing.
        return b"".join(parts)
    finally:
        os.close(fd)


def _checked(root: Path, location: str, size: int, checksum: bytes) -> Generator[memoryview, None, None]:
    """The bytes of a regular file below a folder, piece by piece; no link is followed, not even one in between."""
    path = root / location
    if not is_location(location):
        damaged(location, "its location is malformed")
    try:
        with _open_folder(path.parent) as folder:
            fd = os.open(path.name if folder >= 0 else path, _READ, dir_fd=folder if folder >= 0 else None)
    except OSError:
        damaged(str(path), "its file is missing, or no file")
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            damaged(str(path), f"it is no regular file of {size} bytes")
        digest, left = blake3(), size
        while left and (piece := os.read(fd, min(left, PIECE_BYTES))):
            digest.update(piece)
            yield memoryview(piece)
            left -= len(piece)
        if left or digest.digest() != checksum:
            damaged(str(path), "its content has changed")
    finally:
        os.close(fd)


def _map(path: Path, size: int) -> memoryview:
    """The pages of a regular file of exactly that size."""
    import mmap  # few processes map files

    fd = os.open(path, _READ)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            damaged(str(path), f"it is no regular file of {size} bytes")
        if sys.version_info >= (3, 13):
            return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ, trackfd=False))
        return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ))
    finally:
        os.close(fd)


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return True


def _write_all(fd: int, view: memoryview) -> None:
    written = 0
    while written < len(view):
        written += os.write(fd, view[written:])


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


if sys.platform == "win32":
    # No folder can be opened, synced or locked there; a collection relies on its grace alone. Untested.

    @contextmanager
    def _open_folder(folder: Path) -> Generator[int, None, None]:
        yield -1

    @contextmanager
    def _locked(shard: int, *, shared: bool) -> Generator[None, None, None]:
        yield

    def _sync(shard: int) -> None:
        pass

else:

    @contextmanager
    def _open_folder(folder: Path) -> Generator[int, None, None]:
        fd = os.open(folder, _FOLDER)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _locked(shard: int, *, shared: bool) -> Generator[None, None, None]:
        locked = False
        try:
            locked = wait_lock(shard, _LOCK_TIMEOUT_S, shared=shared)
            if not locked:
                raise TimeoutError("another process holds the lock of the blob's folder")
        except OSError as error:
            # A file system without locks (some network ones): a collection relies on its grace alone there.
            if error.errno not in _NO_LOCKS:
                raise
        try:
            yield
        finally:
            if locked:
                unlock(shard)

    def _sync(shard: int) -> None:
        os.fsync(shard)


def _sync_path(folder: Path) -> None:
    with _open_folder(folder) as fd:
        _sync(fd)
