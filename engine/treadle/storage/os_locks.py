"""The operating system's two kinds of file locks; knows nothing of what is locked or why.

A *record lock* belongs to the process: a forked child does not have it, and closing any descriptor of the file
in this process frees it. A plain lock (``flock``) belongs to the open file: it conflicts within one process too,
and a forked child shares it.

Windows: byte locks of ``msvcrt`` stand in for both kinds. That branch is untested.
"""

from __future__ import annotations

import os
import sys
import time

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.00005, 0.001

if sys.platform == "win32":
    import msvcrt

    def record_lock(fd: int, *, shared: bool) -> None:
        """Take the owner's lock or raise OSError; ``msvcrt`` has no shared one."""
        os.lseek(fd, 0, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

    def try_lock(fd: int, *, shared: bool = False) -> bool:
        """Lock an open file if that needs no waiting."""
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def unlock(fd: int) -> None:
        """Free an open file, for every copy of its descriptor."""
        os.lseek(fd, 0, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock, lockf

    _EXCLUSIVE, _SHARED = LOCK_EX | LOCK_NB, LOCK_SH | LOCK_NB

    def record_lock(fd: int, *, shared: bool) -> None:
        """Take the owner's lock or raise OSError."""
        lockf(fd, _SHARED if shared else _EXCLUSIVE)

    def try_lock(fd: int, *, shared: bool = False) -> bool:
        """Lock an open file (or folder) if that needs no waiting."""
        try:
            flock(fd, _SHARED if shared else _EXCLUSIVE)
        except BlockingIOError:
            return False
        return True

    def unlock(fd: int) -> None:
        """Free an open file, for every copy of its descriptor."""
        flock(fd, LOCK_UN)


def wait_lock(fd: int, timeout_s: float, *, shared: bool = False) -> bool:
    """Lock an open file, waiting up to ``timeout_s`` seconds; says whether that succeeded.

    It asks again and again, because a waiting ``flock`` knows no time limit. The pause ends at 1 ms:
    a holder that commits without pause leaves the lock free for some 50 us between two commits,
    and a longer pause would miss most of these gaps.
    """
    if try_lock(fd, shared=shared):
        return True
    deadline = time.monotonic() + timeout_s
    pause = _FIRST_PAUSE_S
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(pause, left))
        if try_lock(fd, shared=shared):
            return True
        pause = min(pause * 1.5, _LONGEST_PAUSE_S)
    return False
