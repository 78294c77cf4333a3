"""The stored outputs of one result by number, read many at a time for who goes through them; it knows no names."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from treadle._runtime.views.artifact import Artifact
from treadle.errors import ArtifactNotFound

if TYPE_CHECKING:
    from treadle._runtime.views.archive import Archive
    from treadle.storage.rows import ArtifactRow

AT_ONCE = 128
"""So many rows are read at once; each has up to 64 KiB of a value in it."""


SHOWN_BYTES = 4096
"""A stored value of so many bytes at most is loaded to be shown among others."""
SHOWN_ITEMS = 3

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


class Shelf:
    """Artifacts whose rows are read when they are asked for: alone, or ahead if they are asked for one after another.

    To find one row the log is opened and closed; of 10,000 rows, one after another, that was most of four seconds.
    """

    __slots__ = ("_ahead", "_archive", "_count", "_expected", "_numbers")

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._numbers: list[int] = []
        self._ahead: dict[int, ArtifactRow] = {}
        self._expected, self._count = -1, 1

    def value(self, number: int) -> Callable[[], Any]:
        """What loads the value of the next artifact."""
        place = self._place(number)
        return lambda: self._archive.vault.value(self._row(place))

    def shown(self, number: int) -> Callable[[], str]:
        """What gives a short text of an artifact's value; a large one is not loaded for that."""
        return lambda: shown(self._archive, _by_number(self._archive, [number]).get(number))

    def artifact(self, number: int) -> Callable[[], Artifact[Any]]:
        """What gives the next artifact."""
        place = self._place(number)
        return lambda: Artifact(self._row(place), self._archive.vault)

    def _place(self, number: int) -> int:
        self._numbers.append(number)
        return len(self._numbers) - 1

    def _row(self, place: int) -> ArtifactRow:
        row = self._ahead.pop(place, None)
        if row is not None:
            return row
        self._count = min(2 * self._count, AT_ONCE) if place == self._expected else 1
        self._expected = place + self._count
        numbers = self._numbers[place : self._expected]
        rows = _by_number(self._archive, numbers)
        found = {place + index: rows[number] for index, number in enumerate(numbers) if number in rows}
        row = _there(found.pop(place, None), self._archive)
        self._ahead = found
        return row


def shown(archive: Archive, row: ArtifactRow | None) -> str:
    """A short text of a value: its ``repr``, cut short; of a large one only type and size."""
    if row is None:
        return "<pruned>"
    if row.body.size > SHOWN_BYTES:
        return f"<{row.body.type_name.removeprefix('builtins.')}, {row.body.size:,} bytes>"
    try:
        return _short.repr(archive.vault.value(row))
    except Exception:  # it is damaged, or its repr is; who asks for the value is told so
        return f"<{row.body.type_name}>"


def several_shown(archive: Archive, numbers: Sequence[int]) -> Callable[[], str]:
    """What gives a short text of the values of a map."""

    def text() -> str:
        rows = _by_number(archive, numbers[:SHOWN_ITEMS])
        items = [shown(archive, rows.get(number)) for number in numbers[:SHOWN_ITEMS]]
        return f"[{', '.join(items)}{f', ... {len(numbers):,} in all' if len(numbers) > SHOWN_ITEMS else ''}]"

    return text


def values(archive: Archive, numbers: Sequence[int]) -> Callable[[], list[Any]]:
    """What loads the values of several artifacts as a list."""
    return lambda: [archive.vault.value(row) for row in _rows(archive, numbers)]


def _rows(archive: Archive, numbers: Sequence[int]) -> Iterator[ArtifactRow]:
    for first in range(0, len(numbers), AT_ONCE):
        some = numbers[first : first + AT_ONCE]
        rows = _by_number(archive, some)
        yield from (_there(rows.get(number), archive) for number in some)


def _by_number(archive: Archive, numbers: Sequence[int]) -> dict[int, ArtifactRow]:
    return {row.id: row for row in archive.artifacts(numbers)}


def _there(row: ArtifactRow | None, archive: Archive) -> ArtifactRow:
    if row is None:
        raise ArtifactNotFound(
            f"a stored output of this result is no longer in {archive.path}",
            why="its run was pruned",
            fix="run the pipeline again, or keep runs for longer: Engine(keep=Keep(...))",
        )
    return row
