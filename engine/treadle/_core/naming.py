"""Names of calls within a run: ``train``, ``train_2``, ``train[0]``; it knows nothing else of them."""

from __future__ import annotations


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
        count = self._counts.get(base, 0) + 1
        while self._is_taken(name := base if count == 1 else f"{base}_{count}", base):
            count += 1
        self._counts[base] = count
        return name

    def copy(self) -> Names:
        """The same names are taken in the copy."""
        copy = Names()
        copy._counts.update(self._counts)
        return copy

    def _is_taken(self, name: str, base: str) -> bool:
        if name != base and name in self._counts:
            return True
        prefix, _, number = name.rpartition("_")
        return prefix != base and number.isdecimal() and 1 < int(number) <= self._counts.get(prefix, 0)


def child(base: str, index: int) -> str:
    """The name of one call of a map."""
    return f"{base}[{index}]"


def base_of(call: str) -> str:
    """The name of the map that a call belongs to, or the call's own.

    >>> base_of("f_2[17]"), base_of("f")
    ('f_2', 'f')
    """
    return call.rpartition("[")[0] if call.endswith("]") else call
