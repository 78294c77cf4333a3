"""What a body finds around it in a process of its own, put back when it has ended, for the next attempt there.

That is what the engine hands to a worker and what the system keeps for each process: folder, environment, import path,
arguments, streams and their descriptors, signals, an alarm that is set, the mask of new files, limits, user and group,
the root logger. It begins when all that an attempt needs is imported: what importing changes is state of modules, and
stays with them. Nothing else that a body may do to its process is known here.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from os import chdir, dup, dup2, fstat, getcwd, umask  # the functions themselves, whatever a step makes of the module
from signal import ITIMER_REAL, pthread_sigmask, setitimer
from typing import Any, Final, NamedTuple, TextIO

SIGNALS: Final = tuple(
    int(getattr(signal, name))
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGCHLD", "SIGPIPE")
    if hasattr(signal, name)
)
LIMITS: Final = tuple(
    getattr(resource, name)
    for name in ("RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_NPROC")
    if hasattr(resource, name)
)
"""Without RLIMIT_DATA, which is set for the attempt as a whole."""
# The public one makes an enum of each, which takes twenty times as long.
_handler_of: Final[Callable[[int], Any]] = sys.modules.get("_signal", signal).getsignal


class Found(NamedTuple):
    """What a body has found; equal to what it leaves if there is nothing to do."""

    ids: tuple[int, int, int, int]
    limits: tuple[tuple[int, int], ...]
    folder: str
    environment: dict[bytes, bytes]
    path: list[str]
    arguments: list[str]
    streams: tuple[TextIO, TextIO, TextIO]
    handlers: tuple[Any, ...]
    blocked: set[Any]
    logging: tuple[int, int, list[logging.Handler]]


class Around:
    """Puts back what attempts change of this process. On the main thread of a process without others only.

    ``is_spent`` says that something could not be put back.
    """

    def __init__(self) -> None:
        self.is_spent = False
        self._mask = umask(0o077)  # the system tells it only to who sets it
        umask(self._mask)
        self._outlets = tuple([(number, dup(number), _file_at(number)) for number in (1, 2) if _file_at(number)])

    @contextmanager
    def put_back(self) -> Generator[None, None, None]:
        """Have what is done meanwhile undone; where nothing was, it takes two looks and a comparison."""
        mask = umask(self._mask)
        if mask != self._mask:  # importing has changed it
            umask(mask)
            self._mask = mask
        before = _found()
        try:
            yield
        finally:
            try:
                setitimer(ITIMER_REAL, 0)  # it would ring in the next attempt
                umask(self._mask)
                self._put_back_outlets()
                is_changed = _found() != before or sys.stdout.closed or sys.stderr.closed
            except Exception:  # a step may leave anything at all in the place of what is looked at
                is_changed = True
            if is_changed:
                self._undo(before)

    def _put_back_outlets(self) -> None:
        for number, kept, file in self._outlets:
            if _file_at(number) != file:
                dup2(kept, number)

    def _undo(self, before: Found) -> None:
        for name, undo in _UNDOING.items():
            try:
                undo(getattr(before, name))
            except Exception as error:
                self.is_spent = True
                text = (
                    f"the worker is replaced, since it cannot put back its {name}, as the step has left it: {error}\n"
                )
                os.write(2, text.encode("utf-8", "replace"))


# -- what there is ------------------------------------------------------------------------


def _found() -> Found:
    root = logging.root
    return Found(
        (os.getuid(), os.geteuid(), os.getgid(), os.getegid()), tuple(map(resource.getrlimit, LIMITS)),
        _folder(), _environment(), sys.path.copy(), sys.argv.copy(), (sys.stdin, sys.stdout, sys.stderr),
        tuple(map(_handler_of, SIGNALS)), pthread_sigmask(signal.SIG_BLOCK, ()),
        (root.level, root.manager.disable, root.handlers.copy()),
    )  # fmt: skip


def _folder() -> str:
    try:
        return getcwd()
    except OSError:
        return ""  # it was removed


def _environment() -> dict[bytes, bytes]:
    # To go through the mapping takes ten times as long.
    known: dict[bytes, bytes] | None = vars(os.environb).get("_data")
    return dict(os.environb) if known is None else known.copy()


def _file_at(number: int) -> tuple[int, int] | None:
    try:
        file = fstat(number)
    except OSError:
        return None  # it is closed
    return file.st_dev, file.st_ino


# -- undoing ------------------------------------------------------------------------------


def _undo_ids(ids: tuple[int, int, int, int]) -> None:
    if (os.getuid(), os.geteuid(), os.getgid(), os.getegid()) != ids:
        os.seteuid(ids[1])
        os.setregid(ids[2], ids[3])
        os.setreuid(ids[0], ids[1])


def _undo_limits(limits: tuple[tuple[int, int], ...]) -> None:
    for number, limit in zip(LIMITS, limits, strict=True):
        if resource.getrlimit(number) != limit:
            resource.setrlimit(number, limit)


def _undo_folder(folder: str) -> None:
    if folder and folder != _folder():
        chdir(folder)


def _undo_environment(known: dict[bytes, bytes]) -> None:
    now = os.environb
    had = now.get(b"TZ")
    for name in [name for name in now if name not in known]:
        del now[name]
    for name, value in known.items():
        if now.get(name) != value:
            now[name] = value
    if now.get(b"TZ") != had:
        time.tzset()


def _undo_path(path: list[str]) -> None:
    sys.path = path


def _undo_arguments(arguments: list[str]) -> None:
    sys.argv = arguments


def _undo_streams(streams: tuple[TextIO, TextIO, TextIO]) -> None:
    # In this order: what a step had put around a stream may close that when it goes.
    sys.stdin, sys.stdout, sys.stderr = streams
    if sys.stdout.closed:
        sys.stdout = _opened(1)
    if sys.stderr.closed:
        sys.stderr = _opened(2)


def _opened(number: int) -> TextIO:
    return open(number, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)


def _undo_handlers(handlers: tuple[Any, ...]) -> None:
    for number, handler in zip(SIGNALS, handlers, strict=True):
        if handler is not None and _handler_of(number) != handler:
            signal.signal(number, handler)


def _undo_blocked(blocked: set[Any]) -> None:
    pthread_sigmask(signal.SIG_SETMASK, blocked)


def _undo_logging(known: tuple[int, int, list[logging.Handler]]) -> None:
    level, disabled, handlers = known
    logging.root.setLevel(level)
    logging.disable(disabled)
    logging.root.handlers[:] = handlers


_UNDOING: Final[dict[str, Callable[[Any], None]]] = {
    "ids": _undo_ids, "limits": _undo_limits, "folder": _undo_folder, "environment": _undo_environment,
    "path": _undo_path, "arguments": _undo_arguments, "streams": _undo_streams, "handlers": _undo_handlers,
    "blocked": _undo_blocked, "logging": _undo_logging,
}  # fmt: skip
