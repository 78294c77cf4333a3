"""Names of calls within a run: ``train``, ``train_2``, ``train[0]``; it knows nothing else of them."""

from __future__ import annotations

from collections.abc import Iterable


class Names:
    """Gives each call of a run a name of its own, by order of submission.

    It remembers one number per step name and nothing per call, so that a run of a
    million calls costs no more than a run of ten.

    >>> names = Names()
    >>> names.take("f"), names.take("f"), names.take("f_2"), names.take("f")
    ('f', 'f_2', 'f_2_2', 'f_3')
    """

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def take(self, base: str) -> str:
        """The next free name on this base; a map takes one for all its children."""
        counts = self._counts
        count = counts.get(base, 0) + 1
        name = base if count == 1 else f"{base}_{count}"
        while name in counts if count > 1 else self._is_given(name):
            count += 1
            name = f"{base}_{count}"
        counts[base] = count
        return name

    def copy(self) -> Names:
        """The same names are taken in the copy."""
        copy = Names()
        copy._counts.update(self._counts)
        return copy

    def _is_given(self, name: str) -> bool:
        """Whether a base of its own looks like a number that another base has given."""
        prefix, _, number = name.rpartition("_")
        return number.isdecimal() and 1 < int(number) <= self._counts.get(prefix, 0)


def child(base: str, index: int) -> str:
    """The name of one call of a map."""
    return f"{base}[{index}]"


def base_of(call: str) -> str:
    """The name of the map that a call belongs to, or the call's own.

    >>> base_of("f_2[17]"), base_of("f")
    ('f_2', 'f')
    """
    return call.rpartition("[")[0] if call.endswith("]") else call


def in_families(calls: Iterable[str]) -> list[str]:
    """Call names in their order, but the calls of a map stand together, by index, where the first of them was.

    A map makes its calls little by little, and other calls come in between.

    >>> in_families(["f[0]", "g", "f[10]", "f[9]", "h"])
    ['f[0]', 'f[9]', 'f[10]', 'g', 'h']
    """
    families: dict[str, list[tuple[int, str]]] = {}
    for call in calls:
        base, _, number = call[:-1].rpartition("[") if call.endswith("]") else ("", "", "")
        if number.isdecimal():
            families.setdefault(f"{base}[", []).append((int(number), call))
        else:
            families[call] = [(0, call)]
    return [call for family in families.values() for _, call in (sorted(family) if len(family) > 1 else family)]
