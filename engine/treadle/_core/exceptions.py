"""Exceptions made again from what was kept of them: their arguments and attributes; it knows no log and no worker."""

from __future__ import annotations

from types import FunctionType, NoneType
from typing import Any, Final, TypeVar

from treadle.errors import EncodeError, TreadleError

E = TypeVar("E", bound=BaseException)

_FIELDS: Final[dict[type[Exception], tuple[str, ...]]] = {
    OSError: ("filename", "filename2"), ImportError: ("name", "path"), NameError: ("name",), AttributeError: ("name",),
}  # fmt: skip


def fields_of(error: BaseException) -> list[Any]:
    """Descriptors of what a built-in class keeps beside its arguments and the exception's own dict."""
    return [vars(kind)[name] for kind, names in _FIELDS.items() if isinstance(error, kind) for name in names]


def made(kind: type[E], arguments: list[Any]) -> E:
    """An exception of these arguments, which has no attributes yet.

    Not by its own ``__init__``: what that was given is not what it has passed on to be the exception's arguments.

    >>> class Picky(Exception):
    ...     def __init__(self, *, code: int) -> None:
    ...         super().__init__(f"code {code}")
    >>> made(Picky, ["code 3"])
    Picky('code 3')
    """
    if issubclass(kind, TreadleError):
        error: E = kind.__new__(kind)
        error.args = tuple(arguments)
    else:
        error = kind.__new__(kind, *arguments)
        written = (FunctionType, NoneType)
        built_in: Any = next(base for base in kind.__mro__ if not isinstance(vars(base).get("__init__"), written))
        vars(built_in)["__init__"](error, *arguments)
    if issubclass(kind, EncodeError):
        error.__dict__["value"] = None  # the object has stayed where it was
    return error
