"""Descriptors whose closing, also by the end of this process, tells others something: no child by fork may hold them.

Knows descriptors only. Children that are started as programs do not get them (``O_CLOEXEC``); but ``multiprocessing``,
where it forks, and ``ProcessPoolExecutor`` copy all of them into processes that may outlive this one.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Protocol, TypeVar
from weakref import WeakSet


class End(Protocol):
    """One end of a pipe or socket."""

    def close(self) -> None: ...


E = TypeVar("E", bound=End)
_ends: WeakSet[End] = WeakSet()


def kept_here(end: E) -> E:
    """Have an end closed in whatever this process forks, so that it is closed for good when it is closed here."""
    _ends.add(end)
    return end


def _close_all() -> None:
    # Only the descriptors: what an event loop watches, it watches through an object that the parent has, too.
    for end in list(_ends):
        with suppress(OSError):
            end.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)
