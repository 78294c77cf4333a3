"""Mappings by the names of calls, as users read them: lazy, and with an error that says what there is instead."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from treadle._core.naming import base_of
from treadle.errors import CallNotFound

V = TypeVar("V")

SHOWN = 20
"""So many names are listed in a repr or an error."""
MOST_COMPARED = 2000


class Lazy(Mapping[str, V]):
    """A mapping whose values are made when they are asked for; a name that it does not have is told the nearest one.

    What has a second name in ``other`` is found by that, too.
    """

    __slots__ = ("_make", "_other", "_owner", "_show", "_what")

    def __init__(
        self, make: dict[str, Callable[[], V]], what: str = "output", owner: str = "this result",
        show: Mapping[str, Callable[[], str]] | None = None, other: Mapping[str, Callable[[], V]] | None = None,
    ) -> None:  # fmt: skip
        self._make, self._what, self._owner, self._show, self._other = make, what, owner, show or {}, other or {}

    def __getitem__(self, key: str) -> V:
        make = self._make.get(key) or self._other.get(key)
        if make is None:
            raise not_found(key, self._make, self._what, self._owner)
        return make()

    def __contains__(self, key: object) -> bool:
        return key in self._make or key in self._other  # Mapping's own would load the value

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)

    def __repr__(self) -> str:
        first = itertools.islice(self._make, SHOWN)
        shown = [f"{name!r}: {self._show[name]() if name in self._show else '...'}" for name in first]
        return f"{{{', '.join(shown)}{', ...' if len(self) > SHOWN else ''}}}"


def not_found(key: object, known: Mapping[str, object], what: str, owner: str) -> CallNotFound:
    """Say what there is instead: the calls of a map, the outputs of a call, the nearest name, or what there is."""
    import difflib  # only a mistake pays for it

    names = dict.fromkeys(map(base_of, itertools.islice(known, MOST_COMPARED)))
    near = difflib.get_close_matches(base_of(str(key)), names, n=1)
    name = near[0] if near else ""
    parts = [one for one in known if isinstance(key, str) and one.startswith(f"{key}.")]
    members = [one for one in known if name and one.startswith(f"{name}[")]
    if parts:
        fix = f"{key} has several outputs: ask for {', '.join(map(repr, parts[:SHOWN]))}"
    elif members:
        fix = f"{name} is a map of {len(members)}: ask for {members[0]!r} to {members[-1]!r}"
    elif near:
        fix = f"did you mean {name!r}?"
    else:
        listed = ", ".join(itertools.islice(names, SHOWN)) + (", ..." if len(names) > SHOWN else "")
        fix = f"there is {listed}" if listed else f"there is no {what} at all"
    return CallNotFound(f"there is no {what} {key!r} in {owner}", fix=fix, name=key)
