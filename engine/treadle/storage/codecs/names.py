"""Classes and functions by name: ``module:Qualname``, and only where that name leads back to the very same object."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from treadle.errors import DecodeError
from treadle.storage.codecs.walk import NotFit, Source

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
        is_here = module in sys.modules
        raise DecodeError(
            f"stored value needs {qualname!r} of module {module!r}, which is not there",
            why="it was moved or renamed" if is_here else "untrusted bytes never import a module",
            fix="keep the old name as an alias, or run the step again" if is_here else f"import {module} here, too",
            name=name,
        )
    return found


def kind_of(value: object) -> Any:
    """The type of a value; not typed further, since what is asked of it is not either."""
    return type(value)


def name_for(thing: Any) -> str:
    """The name of a thing that must have one; raises ``NotFit``."""
    name = name_of(thing)
    if name is None:
        label = getattr(thing, "__qualname__", type(thing).__name__)
        raise NotFit(f"{label} cannot be found again by the name of its module and its own")
    return name


def class_named(name: str, source: Source, meta: type) -> Any:
    """The class that a stored name stands for, an instance of ``meta``; raises ``DecodeError``."""
    found = resolve(name, trusted=source.trusted)
    if not isinstance(found, meta):
        raise changed(name)
    return found


def changed(name: str) -> DecodeError:
    """What to raise for a stored instance that its class does not fit any more."""
    return DecodeError(
        f"stored value is a {name}, whose fields or kind have changed since",
        fix="run the step again, or give the new class another name",
        name=name,
    )


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
