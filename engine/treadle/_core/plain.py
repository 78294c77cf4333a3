"""Which values are plain data, and so count by their content; nothing here digests them.

Plain are scalars, the standard value types, enum members, dataclass instances, structs and named tuples,
arrays and frames, and the built-in containers of these. A client, a lock, a model or a generator is not:
what it holds is state, not a constant of the program.
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

_SCALARS: frozenset[type] = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, range, slice, type(...), type(NotImplemented)}
)
_FROZEN: frozenset[type] = _SCALARS - {bytearray, slice}
_FROZEN_MODULES: frozenset[str] = frozenset(
    {"datetime", "decimal", "fractions", "ipaddress", "pathlib", "re", "uuid", "zoneinfo"}
)
_SEQUENCES: frozenset[type] = frozenset({list, tuple, set, frozenset, collections.deque})
_MAPPINGS: frozenset[type] = frozenset(
    {dict, collections.OrderedDict, collections.defaultdict, collections.Counter, MappingProxyType}
)
# By top-level package and name: the core must not import most of these.
_VALUE_TYPES = frozenset(
    {
        ("datetime", "date"),
        ("datetime", "time"),
        ("datetime", "timedelta"),
        ("datetime", "tzinfo"),
        ("decimal", "Decimal"),
        ("fractions", "Fraction"),
        ("ipaddress", "_IPAddressBase"),
        ("numpy", "dtype"),
        ("numpy", "generic"),
        ("numpy", "ndarray"),
        ("pandas", "DataFrame"),
        ("pandas", "Index"),
        ("pandas", "Series"),
        ("pathlib", "PurePath"),
        ("polars", "DataFrame"),
        ("polars", "Series"),
        ("pyarrow", "Table"),
        ("re", "Pattern"),
        ("torch", "Tensor"),
        ("uuid", "UUID"),
    }
)


def plain_types(value: object) -> frozenset[type] | None:
    """Name the types of the instances in ``value`` that carry code (enums, dataclasses, structs).

    Returns:
        None if ``value``, or anything inside it, is not plain data.

    >>> plain_types({"a": [1, 2.5, (None, b"x")]})
    frozenset()
    >>> plain_types([object()]) is None
    True
    """
    carriers: set[type] = set()
    seen: dict[int, object] = {}
    level: list[object] = [value]
    # Level by level, with the work in C: a list of a million numbers takes 20 ms.
    while not set(map(type, level)) <= _SCALARS:
        new = {id(item): item for item in level if type(item) not in _SCALARS and id(item) not in seen}
        seen.update(new)
        level = []
        for item in new.values():
            try:
                inner = _contents(item, carriers)
            except Exception:  # an attribute may be a property that fails
                return None
            if inner is None:
                return None
            level.extend(inner)
    return frozenset(carriers)


def is_frozen(value: object) -> bool:
    """Tell whether a plain value can never change in place; of a doubtful one, say no.

    >>> is_frozen((1, "a", frozenset({2}))), is_frozen(([],))
    (True, False)
    """
    kind: type[object] = type(value)
    if kind in _FROZEN:
        return True
    if kind is tuple or kind is frozenset:
        return all(map(is_frozen, members(value)))
    return issubclass(kind, enum.Enum) or (kind.__module__ in _FROZEN_MODULES and _is_value_type(kind))


def is_container(value: object) -> bool:
    """Tell whether ``value`` is a built-in container of exactly such a type."""
    return type(value) in _SEQUENCES or type(value) in _MAPPINGS


def members(container: Any) -> list[object]:
    """List what a built-in container holds; of a mapping, keys and values in turn."""
    # Copied first, in one step: another thread may be at work on it.
    if type(container) in _MAPPINGS:
        return [part for pair in list(container.items()) for part in pair]
    return list(container)


def _contents(value: object, carriers: set[type]) -> Iterable[object] | None:
    """What a plain value holds, nothing for a simple one; None if it is not plain."""
    if is_container(value):
        return members(value)
    kind: type[object] = type(value)
    if issubclass(kind, enum.Enum):
        carriers.add(kind)
        return ()
    fields = _fields(value)
    if fields is None:
        return () if _is_value_type(kind) else None
    carriers.add(kind)
    return fields


def _fields(value: object) -> list[object] | None:
    kind: type[object] = type(value)
    for mark in ("__dataclass_fields__", "__struct_fields__", "_fields" if tuple in kind.__mro__ else ""):
        names: Any = getattr(kind, mark, None) if mark else None
        if names is not None:
            return [getattr(value, name, None) for name in names]
    return None


def _is_value_type(kind: type) -> bool:
    return any((base.__module__.partition(".")[0], base.__name__) in _VALUE_TYPES for base in kind.__mro__)
