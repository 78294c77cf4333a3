"""What a body returned, taken apart into the declared outputs; pure, and the same in the engine and in its workers.

The shape says what the outputs came in. A container of a class of its own, a named tuple say, is named by its class, if
the class can be found by its name and its items are all that an instance holds; ``fits`` tells. Any other counts as the
plain container that it is derived from, and is handed on as such, so that a hit gives what a miss gave.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Generic

from treadle.errors import OptionError

CONTAINERS: dict[str, type] = {"tuple": tuple, "list": list, "dict": dict}
_PLAIN = frozenset({tuple, list, dict, OrderedDict, Generic, object})
_OWN_MAKING = frozenset({"__new__", "__init__", "__setitem__", "__getstate__", "__reduce__", "__reduce_ex__"})


def split(step: str, outputs: tuple[str, ...], value: Any) -> tuple[list[Any], str]:
    """What a body returned as one value per output, and in which shape it came.

    Raises:
        OptionError: the number or the names do not match the declared outputs.

    >>> split("load", ("a", "b"), {"b": 2, "a": 1})
    ([1, 2], 'dict:builtins:dict:1,0')
    """
    if len(outputs) < 2:
        return [value], ""
    if isinstance(value, dict):
        given: Sequence[Any] = list(value)
        if set(given) == set(outputs):
            return [value[name] for name in outputs], _shape(value, "dict", [outputs.index(name) for name in given])
    elif isinstance(value, (tuple, list)):
        given = value
        if len(given) == len(outputs):
            return list(given), _shape(value, "list" if isinstance(value, list) else "tuple", [])
    else:
        given = [value]
    raise OptionError(
        f"step {step} declares {len(outputs)} outputs ({', '.join(outputs)}) and returned"
        f" {type(value).__name__} of {len(given)}",
        fix="return a tuple or list with one value per output, or a dict with the outputs' names",
        option="outputs",
    )


def is_carried(value: object, shape: str) -> bool:
    """Whether a shape says all there is to say of the container that outputs came in."""
    return ":" in shape or type(value) is CONTAINERS[shape]


def _shape(value: Any, base: str, order: list[int]) -> str:
    """``base``, or ``base:module:class``, and for a dict the places of its keys among the outputs."""
    kind: Any = type(value)
    if (kind is CONTAINERS[base] and order == sorted(order)) or not fits(kind, value):
        return base
    places = f":{','.join(map(str, order))}" if order else ""
    return f"{base}:{kind.__module__}:{kind.__qualname__}{places}"


def fits(kind: Any, value: Any) -> bool:
    """Whether an instance holds nothing but its items, and its class is found by its name."""
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    if found is not kind:
        return False
    if getattr(value, "__dict__", None):
        return False
    own = frozenset[str]() if issubclass(kind, tuple) and hasattr(kind, "_make") else _OWN_MAKING
    bases = [vars(base) for base in kind.__mro__ if base not in _PLAIN]
    return not any(base.get("__slots__") or own & base.keys() for base in bases)
