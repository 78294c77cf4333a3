"""``unmapped(value)``: what every call of a map gets whole; it knows nothing of maps."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Unmapped(Generic[T]):
    """An argument that every call of a map gets whole."""

    __slots__ = ("taken", "value")

    def __init__(self, value: T) -> None:
        self.value = value
        self.taken: Any = None

    def __repr__(self) -> str:
        return f"unmapped({self.value!r})"


def unmapped(value: T) -> Unmapped[T]:
    """Mark an argument of ``step.map`` that is not one item per call but the same for all.

    >>> unmapped([1, 2])
    unmapped([1, 2])
    """
    return Unmapped(value)
