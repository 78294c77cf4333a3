"""Classes and functions by name: ``module:Qualname``, and only where that name leads back to the very same object."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from treadle.errors import DecodeError

_MISSING = object()


def name_of(thing: Any) -> str | None:
    """The name under which ``thing`` is found again, or None if there is none.

    >>> name_of(dict), name_of(lambda: 0)
    ('builtins:dict', None)
    """
    module, qualname = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str):
        return None
    return f"{module}:{qualname}" if leads_to(module, qualname) is thing else None


def leads_to(module: str, qualname: str) -> Any:
    """What an imported module holds under that name, or None. Nothing is imported, no ``__getattr__`` is called."""
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(part, _MISSING)
        if found is _MISSING:
            return None
    return found


def resolve(name: str, *, trusted: bool) -> Any:
    """What a stored name stands for; its module is imported only on behalf of trusted bytes.

    Raises:
        DecodeError: nothing of that name is there.
    """
    module, _, qualname = name.partition(":")
    if trusted and module not in sys.modules:
        _import(module, name)
    found = leads_to(module, qualname)
    if found is None:
        raise DecodeError(
            f"stored value needs {qualname!r} of module {module!r}, which is not there",
            why="it was moved or renamed" if module in sys.modules else "untrusted bytes never import a module",
            fix="keep the old name as an alias, or run the step again",
            name=name,
        )
    return found


def _import(module: str, name: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise DecodeError(
            f"stored value needs {name!r}, and module {module!r} cannot be imported",
            why=str(error),
            fix="install it, or run the step again",
            name=name,
        ) from error
