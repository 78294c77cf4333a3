"""How durations and sizes are written, and how a wrong option is refused; it knows no option in particular."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from treadle.errors import OptionError

if TYPE_CHECKING:
    from datetime import timedelta

Duration: TypeAlias = "float | int | str | timedelta"


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|w)\s*"
_SIZES = {
    "": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4,
    "kib": 1024, "mib": 1024**2, "gib": 1024**3, "tib": 1024**4,
}  # fmt: skip


def seconds(value: object, option: str = "duration") -> float:
    """Read a duration: a number of seconds, a ``timedelta``, or text like ``"30d"``, ``"12h"``, ``"90s"``.

    Raises:
        OptionError: if it is none of these, or negative, or not finite.

    >>> from datetime import timedelta
    >>> seconds("1.5h"), seconds(2), seconds(timedelta(minutes=1))
    (5400.0, 2.0, 60.0)
    """
    number: float | None = None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str) and (match := re.fullmatch(_DURATION, value)):
        number = float(match[1]) * _UNITS[match[2]]
    else:
        from datetime import timedelta  # the module takes longer to load than all of this one

        number = value.total_seconds() if isinstance(value, timedelta) else None
    if number is None or not math.isfinite(number) or number < 0:
        raise OptionError(
            f"{option}={value!r} is not a duration",
            fix="give seconds (30, 0.5), a timedelta, or text such as '90s', '12h' or '30d'",
            option=option,
        )
    return number


def size_bytes(value: object, option: str = "bytes") -> int:
    """Read a size: a number of bytes or text like ``"10GB"`` or ``"512MiB"``.

    >>> size_bytes("10GB"), size_bytes("1KiB"), size_bytes(7)
    (10000000000, 1024, 7)
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)):
        unit = _SIZES.get(match[2].lower())
        if unit is not None:
            return int(float(match[1]) * unit)
    raise OptionError(
        f"{option}={value!r} is not a size", fix="give bytes (1024) or text such as '10GB'", option=option
    )


def check_known(given: Iterable[str], known: Sequence[str], what: str) -> None:
    """Refuse option names that do not exist, with the nearest name that does."""
    for name in given:
        if name not in known:
            hint = nearest(name, known) or f"the options are: {', '.join(sorted(known))}"
            raise OptionError(f"{what} has no option {name!r}", fix=hint, option=name)


def check_text(value: object, option: str, wanted: str) -> None:
    """Refuse what is no text."""
    check(isinstance(value, str), option, value, wanted)


def check_choice(value: object, known: Sequence[str], option: str) -> None:
    """Refuse a value of an option that is none of these texts, with the nearest one."""
    if value not in known:
        hint = nearest(value, known) or f"give one of {', '.join(map(repr, known))}"
        raise OptionError(f"{option}={value!r} is not allowed", fix=hint, option=option)


_ELSEWHERE = {
    "concurrency": "max_in_flight", "cpu": "resources", "deadline": "timeout", "env": "runtime", "executor": "runtime",
    "gpu": "resources", "gpu_count": "resources", "group": "execution_group", "label": "tags", "labels": "tags",
    "max_attempts": "retry", "max_concurrency": "max_in_flight", "max_retries": "retry", "memory": "resources",
    "meta": "metadata", "on_error": "failure_mode", "params": "context", "parallelism": "max_in_flight",
    "rate_limit": "rate", "retries": "retry", "upstream": "after", "wait_for": "after",
}  # fmt: skip
"""What other engines call it."""


def nearest(name: object, known: Iterable[str]) -> str:
    """A hint at the known name that a wrong one may have meant; empty if there is none.

    >>> nearest("timeouts", ("retry", "timeout")), nearest("max_retries", ("retry", "timeout"))
    ("did you mean 'timeout'?", "did you mean 'retry'?")
    """
    import difflib  # only a mistake pays for it

    names, text = tuple(known), str(name)
    meant = _ELSEWHERE.get(text)
    near = [meant] if meant in names else difflib.get_close_matches(text, names, n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def check_whole(value: object, least: int, option: str) -> None:
    """Refuse what is no whole number, or is too small."""
    check(is_int(value, least), option, value, f"a whole number from {least}")


def check_flag(value: object, option: str) -> None:
    """Refuse what is neither True nor False."""
    check(isinstance(value, bool), option, value, "True or False")


def check_place(value: object, option: str, wanted: str) -> None:
    """Refuse what is no path, and an empty one."""
    is_path = bool(value) if isinstance(value, (str, bytes)) else hasattr(value, "__fspath__")
    check(value is None or is_path, option, value, wanted)


def check(ok: bool, option: str, value: object, wanted: str) -> None:
    """Refuse a value of an option that is not ``ok``, saying what is wanted."""
    if not ok:
        raise OptionError(f"{option}={value!r:.200} is not allowed", fix=f"give {wanted}", option=option)


def is_int(value: object, least: int) -> bool:
    """Whether it is a whole number, and large enough."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_factor(value: object) -> bool:
    """Whether it is a finite number from 1."""
    return isinstance(value, (int, float)) and value >= 1 and math.isfinite(value)


def is_flag(value: object) -> bool:
    """Whether it is True or False."""
    return isinstance(value, bool)


def is_exception_class(value: object) -> bool:
    """Whether it can be named in ``on=(...)``."""
    return isinstance(value, type) and issubclass(value, Exception)
