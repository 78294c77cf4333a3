"""Where in a value the part is that cannot be stored; slow and only asked once that is known."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, Final, cast

from treadle.secret import Secret

_LEAVES: Final = (str, bytes, bytearray, range, Secret)
_OWN: Final = "treadle._runtime."
"""Futures, handles, engines: what they are made of is nothing that a user could mend."""
_MAX_LEVELS: Final = 50
_MAX_PARTS: Final = 10_000


def locate(value: object, fails: Callable[[object], bool]) -> tuple[str, object]:
    """The path to the innermost part that fails, and that part.

    Args:
        value: something that fails.
        fails: whether a part cannot be stored either.

    >>> locate({"a": [1, {2}]}, lambda part: "{2}" in repr(part))
    ("value['a'][1]", {2})
    """
    path = "value"
    seen = {id(value)}
    for _ in range(_MAX_LEVELS):
        for step, part in _first(_parts(value)):
            if id(part) not in seen and fails(part):
                path, value = path + step, part
                seen.add(id(part))
                break
        else:
            break
    return path, value


def _first(parts: Iterator[tuple[str, object]]) -> Iterator[tuple[str, object]]:
    return (part for part, _ in zip(parts, range(_MAX_PARTS), strict=False))


def _parts(value: object) -> Iterator[tuple[str, object]]:
    kind, items = type(value), cast("Any", value)
    if issubclass(kind, _LEAVES) or kind.__module__.startswith(_OWN):
        return
    if issubclass(kind, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in items.items())
        yield from ((f".keys()[{place}]", key) for place, key in enumerate(items))
    elif issubclass(kind, Sequence | deque):
        yield from ((f"[{place}]", part) for place, part in enumerate(items))
    elif issubclass(kind, Set):
        yield from (("{...}", part) for part in items)
    if not issubclass(kind, type):
        yield from ((f".{name}", part) for name, part in _attributes(items))


def _attributes(value: Any) -> Iterator[tuple[str, object]]:
    yield from getattr(value, "__dict__", {}).items()
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            part = getattr(value, name, None)
            if part is not None:
                yield name, part
