"""Who may start: limits, lanes of equal calls, and fair turns between them; pure counting.

Calls of one run that are subject to the same limits stand in one lane, first come, first
served. Lanes take turns, so one wide map cannot keep another run's calls from starting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Limit:
    """How many may be under way at once; ``capacity`` may change while some are."""

    __slots__ = ("capacity", "used")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0

    def __repr__(self) -> str:
        return f"<Limit {self.used}/{self.capacity}>"


Limits = tuple[Limit, ...]


class Lanes(Generic[T]):
    """Queues of what is ready to start, by the limits that it is subject to.

    >>> lanes, two = Lanes(), (Limit(2),)
    >>> for item in "abc":
    ...     lanes.push(item, two)
    >>> lanes.pop(), lanes.pop(), lanes.pop()
    ('a', 'b', None)
    >>> lanes.release(two)
    >>> lanes.pop()
    'c'
    """

    def __init__(self) -> None:
        self._lanes: dict[tuple[Hashable, Limits], deque[T]] = {}
        self._turn: deque[tuple[Hashable, Limits]] = deque()
        self._gone: set[T] = set()

    def push(self, item: T, limits: Limits, owner: Hashable = None) -> None:
        """Queue something for the moment when all its limits have room; each owner has lanes of its own."""
        key = (owner, limits)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = deque()
            self._turn.append(key)
        lane.append(item)

    def pop(self) -> T | None:
        """Start the next one whose limits have room, and count it; ``None`` if there is none."""
        for _ in range(len(self._turn)):
            key = self._turn[0]
            lane, limits = self._lanes[key], key[1]
            while self._gone and lane and lane[0] in self._gone:
                self._gone.discard(lane.popleft())
            if not lane:
                self._turn.popleft()
                del self._lanes[key]
                continue
            self._turn.rotate(-1)
            for limit in limits:
                if limit.used >= limit.capacity:
                    break
            else:
                for limit in limits:
                    limit.used += 1
                return lane.popleft()
        return None

    def release(self, limits: Limits) -> None:
        """Give back what ``pop`` counted."""
        for limit in limits:
            limit.used -= 1

    def remove(self, item: T) -> None:
        """Have what stands in a lane passed over: no search, so that a wide map is cancelled in linear time."""
        self._gone.add(item)

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values())) - len(self._gone)
