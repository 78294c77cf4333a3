"""Named points where a test can let the process die or a write fail; knows no more about them than their names.

Code with a crash point says ``failpoints.hit("blob-synced")``, always through the module,
because arming swaps the function. Off, ``hit`` is the builtin ``callable``: it takes one
argument, has no effect and builds no object, 21 ns a call with the attribute look-up
(an empty Python function: 41 ns, a dict's ``get``: 28 ns).

Armed by the environment, read once at import: ``TREADLE_FAILPOINT="blob-synced:2"`` kills
the process, as ``kill -9`` would, when it comes to that point for the second time.
Armed in the process: ``arm("blob-synced", 2, action)``, and ``disarm()`` at the end.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Final

from treadle.errors import OptionError

VARIABLE: Final = "TREADLE_FAILPOINT"

_OFF: Final[Callable[[str], object]] = callable
_lock = threading.Lock()
_armed: dict[str, _Armed] = {}

hit: Callable[[str], object] = _OFF


class _Armed:
    """How often a point must still be reached, and what happens then."""

    __slots__ = ("action", "left")

    def __init__(self, left: int, action: Callable[[], object]) -> None:
        self.left = left
        self.action = action


def kill() -> None:
    """End this process at once, with no clean-up of any kind."""
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def arm(name: str, nth: int = 1, action: Callable[[], object] = kill) -> None:
    """Do ``action`` when the point ``name`` is reached for the ``nth`` time from now on, by whichever thread.

    Args:
        name: the point, as the code that has it spells it.
        nth: 1 for the next time.
        action: called where the point is; an exception of it comes out of the code at that place.

    Raises:
        OptionError: ``name`` is empty or ``nth`` is less than 1.

    >>> from treadle.storage import failpoints
    >>> seen = []
    >>> failpoints.arm("example", 2, lambda: seen.append("second"))
    >>> for _ in range(3):
    ...     _ = failpoints.hit("example")
    >>> seen
    ['second']
    >>> failpoints.disarm()
    """
    global hit
    if not name or nth < 1:
        raise OptionError(f"failpoint {name!r} at hit {nth} can never be reached", fix="name it and count from 1")
    with _lock:
        _armed[name] = _Armed(nth, action)
        hit = _count


def disarm() -> None:
    """Let every point be free again."""
    global hit
    with _lock:
        _armed.clear()
        hit = _OFF


def _count(name: str) -> None:
    with _lock:
        armed = _armed.get(name)
        if armed is None:
            return
        armed.left -= 1
        due = armed.left == 0
    if due:
        armed.action()


def _arm_from(text: str) -> None:
    """Arm what ``name:nth`` says; a crash test with a typing error must not pass by never crashing."""
    name, _, nth = text.rpartition(":")
    if not name or not nth.isdecimal():
        raise OptionError(f"{VARIABLE}={text!r} names no failpoint", fix=f'write {VARIABLE}="name:nth"')
    arm(name, int(nth))


if VARIABLE in os.environ:
    _arm_from(os.environ[VARIABLE])
