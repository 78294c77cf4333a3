"""Where a home is, and how its folder is made private; knows nothing of what is kept in it.

A home holds pickles that this user's processes will decode, so a folder that somebody else could have
written to is refused, and so is a network file system, where locks and the log's shared
memory cannot be trusted. What is refused is left as it was found.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from treadle.errors import OptionError, StoreOnNetwork, StoreUnwritable
from treadle.storage.mounts import network_filesystem, read_mountinfo
from treadle.storage.os_locks import try_lock
from treadle.storage.owners import COMMIT_LOCK, OWNERS
from treadle.storage.schema import DATABASE

VARIABLE: Final = "TREADLE_HOME"
MEMORY: Final = "memory://"
BLOBS: Final = "blobs"
TMP: Final = "tmp"
SECRET_KEY: Final = "secret.key"
KEY_BYTES: Final = 32


def is_in_memory(home: str | os.PathLike[str] | None, env: Mapping[str, str] = os.environ) -> bool:
    """Whether ``Engine(home=...)``, or the environment in its place, asks for no home at all.

    >>> is_in_memory(None, {"TREADLE_HOME": "memory://"})
    True
    """
    return (env.get(VARIABLE) if home is None else home) == MEMORY


def locate_home(
    home: str | os.PathLike[str] | None,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] = os.environ,
) -> Path:
    """Find the folder that ``Engine(home=...)`` means; nothing is created or looked into.

    Args:
        home: a path, taken as given, or None for ``TREADLE_HOME``, else ``.treadle`` beside the nearest
            ``pyproject.toml`` or ``.git`` in or above the current folder, else in the current folder.
        cwd: the current folder, if another is meant than the process's own.
        env: the environment.

    Raises:
        OptionError: the path is empty, a URL, or no text.
        StoreUnwritable: the current folder does not exist any more.

    >>> locate_home("data/home", cwd="/srv").as_posix()
    '/srv/data/home'
    >>> locate_home(None, cwd="/srv", env={"TREADLE_HOME": "/var/lib/shop"}).as_posix()
    '/var/lib/shop'
    """
    given = (env.get(VARIABLE) or None) if home is None else home
    if given is None:
        here = _current(cwd)
        return _project(here) / ".treadle"
    text = path_text(given)
    if not text or "://" in text:
        raise OptionError(f"home={given!r} is no folder", fix="give a path on this machine, or home='memory://'")
    return Path(text) if os.path.isabs(text) else _current(cwd) / text


def path_text(given: str | os.PathLike[str]) -> str:
    """A path as text; empty if it is none that a file can have."""
    try:
        text = os.fsdecode(given)
    except TypeError:
        return ""
    return "" if "\0" in text else text


def _current(cwd: str | os.PathLike[str] | None) -> Path:
    try:
        return Path(cwd).absolute() if cwd is not None else Path.cwd()
    except FileNotFoundError as error:
        raise StoreUnwritable(
            "the current folder does not exist any more, so a home cannot be found from it",
            fix=f"change to another folder, or set {VARIABLE} to an absolute path",
            path="",
        ) from error


def _project(here: Path) -> Path:
    for folder in (here, *here.parents):
        if any(os.path.lexists(folder / mark) for mark in ("pyproject.toml", ".git")):
            return folder
    return here


def prepare_home(path: Path, *, mountinfo: str | None = None) -> Path:
    """Make the home ready for use: a private folder with ``owners/``, ``blobs/`` and ``tmp/`` in it.

    New folders have mode 0700 and new files 0600 whatever the umask is, and a ``.gitignore`` hides the home from git.
    A folder that had other things in it, a project's own perhaps, keeps its mode and gets no ``.gitignore``.

    Args:
        path: as ``locate_home`` gives it; a symbolic link is followed.
        mountinfo: what to read instead of ``/proc/self/mountinfo``.

    Returns:
        The home without symbolic links, which is the path to go on with.

    Raises:
        StoreOnNetwork: it is on a network file system.
        StoreUnwritable: it cannot be created or written, is no folder, is another user's, or others may write to it.
    """
    made: list[Path] = []
    try:
        root = Path(os.path.realpath(path))
        _refuse_network(root, read_mountinfo() if mountinfo is None else mountinfo)
        _make_all(root, made)
    except BaseException as error:
        for entry in reversed(made):
            with suppress(OSError):
                entry.rmdir() if entry.is_dir() else entry.unlink()
        if isinstance(error, OSError) and not isinstance(error, StoreUnwritable):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            fix = f"free disk space, or choose another home with {VARIABLE} or Engine(home=...)" if full else ""
            raise _unwritable(path, f"the home {path} cannot be made or written", str(error), fix) from error
        raise
    for folder in {root, *(entry.parent for entry in made)}:
        _sync_folder(folder)
    return root


def sweep_tmp(home: Path, older_than_s: float) -> int:
    """Remove what dead processes left in ``tmp/``; gives the number of removed entries.

    Args:
        home: the prepared home.
        older_than_s: seconds since an entry was last changed. What a live process holds an ``flock`` on, as the
            artifact store does with its files there, stays whatever its age, so 0 is safe for those.
    """
    removed = 0
    limit = time.time() - older_than_s
    try:
        entries = list(os.scandir(home / TMP))
    except FileNotFoundError:
        return 0
    for entry in entries:
        with suppress(OSError):
            if entry.stat(follow_symlinks=False).st_mtime <= limit:
                removed += _remove_unless_held(Path(entry.path))
    return removed


# -- the folder ---------------------------------------------------------------------------


def _make_all(root: Path, made: list[Path]) -> None:
    _make_parents(root.parent, made)
    if _make_folder(root, made) or not os.listdir(root):
        root.chmod(0o700)
        _make_file(root / ".gitignore", b"*\n", made)
    for name in (OWNERS, BLOBS, TMP):
        _make_folder(root / name, made)
    for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", COMMIT_LOCK):
        if os.path.lexists(root / name):
            _refuse_stranger(root / name)
    _probe(root)
    # SQLite would create it with the umask's mode; its two companions take over the mode that they find.
    _make_file(root / DATABASE, b"", made)


def _make_parents(folder: Path, made: list[Path]) -> None:
    if not folder.exists():
        _make_parents(folder.parent, made)
        with suppress(FileExistsError):
            folder.mkdir()
            made.append(folder)


def _make_folder(folder: Path, made: list[Path]) -> bool:
    """Create a private folder, or check the one that is there; says whether it is new."""
    try:
        folder.mkdir(0o700)
    except FileExistsError:
        _refuse_stranger(folder, folder=True)
        return False
    made.append(folder)
    folder.chmod(0o700)
    return True


def secret_key(home: Path) -> bytes:
    """The key that secrets of this home are hashed with, 32 bytes; made when it is first asked for.

    It appears whole or not at all, and of several processes that make one the first wins.

    Raises:
        StoreUnwritable: it cannot be made, or what is there is no key.
    """
    file = home / SECRET_KEY
    try:
        if not file.exists():
            made: list[Path] = []
            temp = home / TMP / f"key-{os.getpid()}-{time.monotonic_ns()}"
            _make_file(temp, os.urandom(KEY_BYTES), made)
            with suppress(FileExistsError):
                os.link(temp, file)
            temp.unlink()
        key = file.read_bytes()
    except OSError as error:
        raise StoreUnwritable(
            f"{file} cannot be read or made",
            why=str(error),
            fix="give the engine a home that it may write",
            path=str(file),
        ) from error
    if len(key) != KEY_BYTES:
        raise StoreUnwritable(
            f"{file} holds {len(key)} bytes, and a key has {KEY_BYTES}",
            fix="remove it: a new one is made, and calls with secrets are performed again",
            path=str(file),
        )
    return key


def _make_file(file: Path, content: bytes, made: list[Path]) -> None:
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    except FileExistsError:
        return
    made.append(file)
    try:
        os.chmod(file, 0o600)
        os.write(fd, content)
    finally:
        os.close(fd)


def _probe(root: Path) -> None:
    """Write where the engine will write: a right on paper says nothing of a read-only mount or a full disk."""
    for folder in (root, root / OWNERS, root / BLOBS, root / TMP):
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(f"{folder} cannot be written")
    probe = root / TMP / f"probe-{os.getpid()}-{time.monotonic_ns()}"
    try:
        with open(probe, "xb", buffering=0) as file:
            file.write(b"treadle")
    finally:
        probe.unlink(missing_ok=True)


def _refuse_stranger(path: Path, *, folder: bool = False) -> None:
    """Refuse what is of the wrong kind, another user's, or open to other users' writes."""
    status = os.lstat(path)
    if folder and not stat.S_ISDIR(status.st_mode):
        raise _unwritable(path, f"{path} is in the way: it is no folder", "", "move it away, or choose another home")
    if sys.platform == "win32":
        return
    if status.st_uid != os.geteuid():
        owner, user = _user(status.st_uid), _user(os.geteuid())
        raise _unwritable(
            path,
            f"{path} belongs to {owner}, and this process runs as {user}",
            "whoever can write to a home can run code in the programs that open it",
            f"run as {owner}, give the home to {user} with chown, or choose another home",
        )
    if folder and status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        raise _unwritable(
            path,
            f"{path} can be written by other users (mode {mode:04o})",
            "whoever can write to a home can run code in the programs that open it",
            f"chmod go-w {path}, or choose another home",
        )


def _user(uid: int) -> str:
    try:
        import pwd

        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except (ImportError, KeyError):
        return f"uid {uid}"


def _unwritable(path: Path, what: str, why: str, fix: str = "") -> StoreUnwritable:
    fix = fix or f"make it writable, or choose another home with {VARIABLE} or Engine(home=...)"
    return StoreUnwritable(what, why=why, fix=fix, path=str(path))


def _refuse_network(root: Path, mountinfo: str) -> None:
    kind = network_filesystem(str(root), mountinfo)
    if kind is not None:
        raise StoreOnNetwork(
            f"the home {root} is on a network file system ({kind})",
            why="file locks and the log's shared memory are not reliable there",
            fix=f"choose a folder on a local disk with {VARIABLE} or Engine(home=...); artifacts may live elsewhere",
            path=str(root),
        )


def _sync_folder(folder: Path) -> None:
    """Make new entries of a folder survive a loss of power; where folders cannot be synced there is nothing to do."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _remove_unless_held(path: Path) -> bool:
    mode = os.lstat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or sys.platform == "win32":
        path.unlink()
        return True
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not try_lock(fd):
            return False
        if stat.S_ISDIR(mode):
            import shutil  # seldom needed, and it brings five compression libraries

            shutil.rmtree(path)
        else:
            path.unlink()
        return True
    finally:
        os.close(fd)
