"""The two locks of a home: who is alive, and whose turn it is to commit; knows nothing of runs or of the log.

Theory of operation
* An engine is alive while it holds the lock of its file in ``owners/``. The kernel frees it
  when the process dies, so no heartbeat and no clock is needed. It is a POSIX record lock,
  because that kind belongs to the process: a forked child does not keep it alive.
* The price of that kind: a process loses it when it closes *any* descriptor of the file, and
  it never conflicts within one process. So ``_held`` knows the files (by device and inode, as a
  home may have several paths) that this process holds, and those are never opened again.
* An owner holds its lock exclusively, whoever only asks takes it shared. So two that ask
  never see each other as an owner. Ids are never used twice.
* The commit lock is of the other kind (``flock``): it belongs to the open file, so it also
  conflicts between two engines of one process. A forked child would keep it, and with it
  the home, so the child's copy is closed at the fork.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
import weakref
from pathlib import Path
from typing import Final

from treadle.errors import EngineClosed, EngineForked, LogUnavailable, OptionError, StoreUnwritable
from treadle.storage.os_locks import record_lock, try_lock, unlock, wait_lock

OWNERS: Final = "owners"
COMMIT_LOCK: Final = "commit.lock"

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_OPEN = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_ACQUIRE_TIMEOUT_S = 5.0
_PAUSE_S = 0.00005
_CLOSED, _FORKED = -1, -2

_Inode = tuple[int, int]


# -- who is alive -------------------------------------------------------------------------

_guard = threading.Lock()
_held: set[_Inode] = set()


class OwnerLock:
    """The proof that an engine is alive: a locked file ``owners/<id>``, held until ``release()`` or death.

    Get one with ``OwnerLock.acquire(home, owner_id)``.
    """

    __slots__ = ("_fd", "_pid", "owner_id", "path")

    def __init__(self, path: Path, owner_id: str, fd: int) -> None:
        self.path = path
        self.owner_id = owner_id
        self._fd = fd
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<OwnerLock {self.owner_id} {'held' if self._fd >= 0 else 'released'}>"

    @classmethod
    def acquire(cls, home: Path, owner_id: str) -> OwnerLock:
        """Create ``owners/<owner_id>`` and hold its lock.

        Args:
            home: the prepared home.
            owner_id: 1 to 64 letters, digits, ``_`` and ``-``; never used before.

        Raises:
            OptionError: the id is not of that form, or is in use.
            StoreUnwritable: the file cannot be made or locked.
        """
        path = _path(home, owner_id)
        if path is None:
            raise OptionError(f"{owner_id!r} is no owner id", fix="use letters, digits, '_' and '-', at most 64")
        deadline = time.monotonic() + _ACQUIRE_TIMEOUT_S
        try:
            while (fd := _create_locked(path, deadline)) is None:
                pass
        except FileExistsError as error:
            raise OptionError(
                f"the owner id {owner_id} was used before", fix="take a new one for each engine"
            ) from error
        except OSError as error:
            raise StoreUnwritable(
                f"the engine's lock {path} cannot be made",
                why=str(error),
                fix="check that the home is on a local disk, is yours and has free space",
                path=str(path),
            ) from error
        return cls(path, owner_id, fd)

    def renew(self) -> bool:
        """Take the lock again, which costs 8 us and changes nothing while it is held; False if the proof is lost.

        Code of this process that opens and closes the file (a backup of the home, say) loses the lock
        for us unseen, so an engine calls this every second or so.
        """
        with _guard:
            if self._fd < 0 or self._pid != os.getpid():
                return False
            try:
                record_lock(self._fd, shared=False)
            except OSError:
                return False
            return _names(self.path, _inode(os.fstat(self._fd)))

    def release(self) -> None:
        """Remove the file and free the lock; the second time, and in a forked child, this does nothing."""
        with _guard:
            fd, self._fd = self._fd, -1
            if fd < 0 or self._pid != os.getpid():
                return
            # Unlinked while it is locked: whoever opened it before sees a dead engine, as is right, and nobody after.
            try:
                self.path.unlink()
            except OSError:
                pass
            _held.discard(_inode(os.fstat(fd)))
            os.close(fd)


def is_alive(home: Path, owner_id: str) -> bool:
    """Whether any process, also this one, holds that engine's lock; never waits.

    A missing file is a dead engine, and so is an id that cannot name one. What cannot be found out
    (no descriptor left, an unreadable file) counts as alive: a late recovery is better than a wrong one.
    """
    path = _path(home, owner_id)
    return path is not None and not _if_dead(path, remove=False)


def sweep(home: Path) -> list[str]:
    """Remove the files of dead engines; gives their ids."""
    try:
        names = sorted(os.listdir(Path(home, OWNERS)))
    except FileNotFoundError:
        return []
    return [name for name in names if (path := _path(home, name)) and _if_dead(path, remove=True)]


def _path(home: Path, owner_id: str) -> Path | None:
    return Path(home, OWNERS, owner_id) if _ID.fullmatch(owner_id) else None


def _inode(status: os.stat_result) -> _Inode:
    return status.st_dev, status.st_ino


def _names(path: Path, inode: _Inode) -> bool:
    try:
        return _inode(os.lstat(path)) == inode
    except FileNotFoundError:
        return False


def _create_locked(path: Path, deadline: float) -> int | None:
    """Create and lock the file; None if a sweep took the new file for a dead engine's and removed it."""
    with _guard:
        fd = os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
        inode = _inode(os.fstat(fd))
        _held.add(inode)
    # The guard is not held any more: while this waits, other threads may ask who is alive, and none opens this file.
    try:
        _lock_until(fd, deadline)
        if _names(path, inode):
            return fd
    except BaseException:
        path.unlink(missing_ok=True)
        _drop(fd, inode)
        raise
    _drop(fd, inode)
    return None


def _lock_until(fd: int, deadline: float) -> None:
    """Lock as owner; one that is only asking may hold the new file for some microseconds."""
    while True:
        try:
            return record_lock(fd, shared=False)
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_S)


def _drop(fd: int, inode: _Inode) -> None:
    with _guard:
        _held.discard(inode)
        os.close(fd)


def _if_dead(path: Path, *, remove: bool) -> bool:
    """Whether nobody holds the lock of that file, which is then removed if so wished."""
    with _guard:
        try:
            status = os.lstat(path)
            if _inode(status) in _held:
                return False
            if not stat.S_ISREG(status.st_mode):
                return not remove
            fd = os.open(path, _OPEN)
        except FileNotFoundError:
            return not remove
        except OSError:
            return False
        try:
            record_lock(fd, shared=True)
            if remove and _names(path, _inode(os.fstat(fd))):
                path.unlink(missing_ok=True)
            return True
        except OSError:
            return False
        finally:
            os.close(fd)


# -- whose turn it is to commit -----------------------------------------------------------

_commit_locks: weakref.WeakSet[CommitLock] = weakref.WeakSet()


class CommitLock:
    """A mutex across the threads, engines and processes of one home, held around each commit, checkpoint and close.

    Every engine makes its own, and its threads may share that one. Taken and freed in about 2 us when nobody
    else wants it. Not fair: see ``wait_lock``. The file ``commit.lock`` stays; removing it while engines are open would
    give the home a second lock.

    Args:
        home: the prepared home.

    Raises:
        StoreUnwritable: the lock file cannot be made.
    """

    __slots__ = ("__weakref__", "_fd", "_thread", "path")

    def __init__(self, home: Path) -> None:
        self.path = Path(home, COMMIT_LOCK)
        self._thread = threading.Lock()
        try:
            self._fd = os.open(self.path, _OPEN | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreUnwritable(
                f"the lock {self.path} cannot be opened",
                why=str(error),
                fix="check that the home is yours and has free space",
                path=str(self.path),
            ) from error
        _commit_locks.add(self)

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else "held" if self._thread.locked() else "free"
        return f"<CommitLock {self.path} {state}>"

    def acquire(self, timeout_s: float) -> bool:
        """Take the lock, waiting up to ``timeout_s`` seconds (0: do not wait); False if it stayed taken.

        Raises:
            EngineForked: this process was forked from the one that made the lock.
            EngineClosed: the lock is closed.
            LogUnavailable: the file system refused.
        """
        if self._fd < 0:
            raise _unusable(self._fd)
        if not self._thread.acquire(False):
            started = time.monotonic()
            if not self._thread.acquire(timeout=timeout_s):
                return False
            timeout_s -= time.monotonic() - started
        taken = False
        try:
            taken = try_lock(self._fd) or wait_lock(self._fd, timeout_s)
        except OSError as error:
            raise LogUnavailable(f"{self.path} cannot be locked", why=str(error)) from error
        finally:
            if not taken:
                self._thread.release()
        return taken

    def release(self) -> None:
        """Free the lock.

        Raises:
            RuntimeError: it is not held.
        """
        if self._fd >= 0 and self._thread.locked():
            unlock(self._fd)
        self._thread.release()

    def close(self) -> None:
        """Close the descriptor, which frees the lock; the second time this does nothing."""
        _commit_locks.discard(self)
        fd, self._fd = self._fd, _CLOSED
        if fd >= 0:
            os.close(fd)

    def abandon(self) -> None:
        """Close a forked child's copy, which leaves the parent's lock as it is."""
        self.close()
        self._fd = _FORKED

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


def _unusable(fd: int) -> EngineForked | EngineClosed:
    if fd == _FORKED:
        return EngineForked("the engine belongs to the process that this one was forked from", fix="open one here")
    return EngineClosed("the engine's commit lock is closed")


def _after_fork_in_child() -> None:
    """Forget the parent's locks: the records are not ours, and an open copy of a ``flock`` would outlive the parent."""
    global _guard
    _guard = threading.Lock()
    _held.clear()
    for lock in list(_commit_locks):
        lock.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
