"""What options of executors may be, and the error for what they may not be; it knows no executor but by its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from treadle.errors import OptionError

Check = Callable[[bool, str, object, str], None]


def checks(executor: str) -> Check:
    """The check of one executor's options: whether it is right, its name, its value, and what was wanted.

    Raises, when it is called:
        OptionError: it is not right.

    >>> checks("ProcessExecutor")(is_count(2), "workers", 2, "a whole number from 1")
    """

    def check(is_right: bool, name: str, value: object, wanted: str) -> None:
        if not is_right:
            raise refused(executor, name, value, f"give {wanted}")

    return check


def refused(executor: str, name: str, value: object, fix: str) -> OptionError:
    """The error of an option that is not allowed."""
    return OptionError(f"{executor}({name}={value!r}) is not allowed", fix=fix, option=name)


def is_flag(value: object) -> bool:
    """True or False, and not what counts as one of them.

    >>> is_flag(False), is_flag(0)
    (True, False)
    """
    return isinstance(value, bool)


def is_count(value: object) -> bool:
    """A whole number from 1.

    >>> is_count(1), is_count(0), is_count(True), is_count(1.0)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_time(value: object) -> bool:
    """Seconds from 0, and not for ever.

    >>> is_time(0), is_time(0.5), is_time(-1), is_time(float("inf")), is_time(float("nan"))
    (True, True, False, False, False)
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")


def is_text(value: object) -> bool:
    """Text that is not empty."""
    return isinstance(value, str) and bool(value)


def are_names(value: Any) -> bool:
    """Several names of environment variables, and not one piece of text.

    >>> are_names(("HOME", "TZ")), are_names("HOME"), are_names(["A=B"])
    (True, False, False)
    """
    return _are_several(value) and all(is_text(name) and "=" not in name for name in value)


def are_paths(value: Any) -> bool:
    """Several paths, or pieces of text, and not one.

    >>> are_paths(("/data", "/out:rw")), are_paths("/data"), are_paths([""])
    (True, False, False)
    """
    return _are_several(value) and all(is_text(item) or isinstance(item, os.PathLike) for item in value)


def _are_several(value: object) -> bool:
    return isinstance(value, (tuple, list, set, frozenset))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
