"""Who may start: limits, lanes of equal calls, and fair turns between them; pure counting.

Theory of operation
    Calls of one run that are subject to the same limits stand in one lane, first come, first
    served. Lanes take turns, so one wide map cannot keep another run's calls from starting.

    What a call needs is taken all at once or not at all, so nobody holds one thing while
    waiting for another. A lane whose turn comes and that lacks nothing but resources (a
    ``Claim``) is *owed*: from then on what it needs is set aside from what is free, and others
    may take only the rest. So what is large starts as soon as enough has come back, however
    many small ones there are, and what needs other resources passes by meanwhile. A lane that
    waits for a plain limit, or for its ``Pace``, sets nothing aside.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class Limit:
    """How many may be under way at once; ``capacity`` may change while some are."""

    __slots__ = ("capacity", "used")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0

    def __repr__(self) -> str:
        return f"<Limit {self.used}/{self.capacity}>"


class Claim:
    """So much of several limits, for one call of a step; each amount is within the limit's capacity."""

    __slots__ = ("amounts",)

    def __init__(self, amounts: Iterable[tuple[Limit, int]]) -> None:
        self.amounts = tuple(amounts)

    def fits(self, set_aside: dict[Limit, int]) -> bool:
        """Whether all of it is free, beside what is set aside for others."""
        return all(limit.used + set_aside.get(limit, 0) + amount <= limit.capacity for limit, amount in self.amounts)

    def set_aside(self, amounts: dict[Limit, int]) -> None:
        """Add it to what is set aside."""
        for limit, amount in self.amounts:
            amounts[limit] = amounts.get(limit, 0) + amount

    def take(self, times: int = 1) -> None:
        """Count it; give it back with -1."""
        for limit, amount in self.amounts:
            limit.used += times * amount

    def __repr__(self) -> str:
        return f"<Claim {', '.join(f'{amount} of {limit!r}' for limit, amount in self.amounts)}>"


class Paced(Protocol):
    """What lets calls start at certain times only; see ``rate.Pace``."""

    @property
    def opens_at(self) -> float:
        """The time from which the next call may start."""
        ...

    def is_open(self, now: float) -> bool:
        """Whether a call may start."""
        ...

    def take(self, now: float) -> None:
        """A call starts."""
        ...


Limits = tuple[Limit | Claim | Paced, ...]


class _Lane(Generic[T]):
    """A queue, and what those in it are subject to."""

    __slots__ = ("claim", "is_plain", "items", "key", "limits", "pace")

    def __init__(self, key: tuple[Hashable, Limits]) -> None:
        self.key = key
        self.items: deque[T] = deque()
        self.limits: tuple[Limit, ...] = tuple([limit for limit in key[1] if type(limit) is Limit])
        self.claim: Claim | None = None
        self.pace: Paced | None = None
        for limit in key[1]:
            if isinstance(limit, Claim):
                self.claim = limit
            elif not isinstance(limit, Limit):
                self.pace = limit
        self.is_plain = self.claim is None and self.pace is None

    def is_held_up(self, now: float) -> bool:
        """Whether something else than resources keeps it from starting."""
        return any(limit.used >= limit.capacity for limit in self.limits) or (
            self.pace is not None and not self.pace.is_open(now)
        )

    def take(self, now: float) -> None:
        """Count what its first one needs."""
        for limit in self.limits:
            limit.used += 1
        if self.claim is not None:
            self.claim.take()
        if self.pace is not None:
            self.pace.take(now)


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
        self._lanes: dict[tuple[Hashable, Limits], _Lane[T]] = {}
        self._turn: deque[_Lane[T]] = deque()
        self._gone: set[T] = set()
        self._owed: dict[_Lane[T], None] = {}
        self._set_aside: dict[Limit, int] = {}
        self._paced: dict[_Lane[T], None] = {}

    def push(self, item: T, limits: Limits, owner: Hashable = None) -> None:
        """Queue something for the moment when all its limits have room; each owner has lanes of its own."""
        key = (owner, limits)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key)
            self._turn.append(lane)
            if lane.pace is not None:
                self._paced[lane] = None
        lane.items.append(item)

    def pop(self, now: float = 0.0) -> T | None:
        """Start the next one whose limits have room, and count it; ``None`` if there is none.

        Args:
            now: the time, for what is paced.
        """
        if self._owed or self._set_aside:
            lane = self._first_owed(now)
            if lane is not None:
                return self._start(lane, now)
        turn = self._turn
        for _ in range(len(turn)):
            lane = turn[0]
            if self._gone:
                self._pass_over(lane)
            if not lane.items:
                self._close(lane)
                continue
            turn.rotate(-1)
            if lane.is_plain:
                for limit in lane.limits:
                    if limit.used >= limit.capacity:
                        break
                else:
                    for limit in lane.limits:
                        limit.used += 1
                    return lane.items.popleft()
            elif lane not in self._owed and not lane.is_held_up(now):
                if lane.claim is None or lane.claim.fits(self._set_aside):
                    return self._start(lane, now)
                self._owed[lane] = None
                lane.claim.set_aside(self._set_aside)
        return None

    def take(self, limits: Limits, now: float = 0.0) -> bool:
        """Count one that stands in no lane, if its limits have room for it; it passes all that stand in lanes."""
        lane: _Lane[T] = _Lane((None, limits))
        if lane.is_held_up(now) or not (lane.claim is None or lane.claim.fits(self._set_aside)):
            return False
        lane.take(now)
        return True

    def release(self, limits: Limits) -> None:
        """Give back what ``pop`` counted; a start at a pace is not given back."""
        for limit in limits:
            if type(limit) is Limit:
                limit.used -= 1
            elif isinstance(limit, Claim):
                limit.take(-1)

    def remove(self, item: T) -> None:
        """Have what stands in a lane passed over: no search, so that a wide map is cancelled in linear time."""
        self._gone.add(item)

    @property
    def is_paced(self) -> bool:
        """Whether somebody may be waiting for a time; ``pop`` has to be told the time then."""
        return bool(self._paced)

    @property
    def opens_at(self) -> float | None:
        """The next time at which a pace lets somebody start; earlier than now if limits are in the way."""
        return min((lane.pace.opens_at for lane in self._paced if lane.pace is not None), default=None)

    def __len__(self) -> int:
        return sum(len(lane.items) for lane in self._lanes.values()) - len(self._gone)

    # -- lanes ----------------------------------------------------------------------------

    def _first_owed(self, now: float) -> _Lane[T] | None:
        """The lane that has waited longest for resources which are there now; sets aside what the others need."""
        self._set_aside.clear()
        for lane in [*self._owed]:
            self._pass_over(lane)
            if not lane.items:
                del self._owed[lane]
            elif lane.claim is not None and not lane.is_held_up(now):
                if lane.claim.fits(self._set_aside):
                    del self._owed[lane]
                    return lane
                lane.claim.set_aside(self._set_aside)
        return None

    def _start(self, lane: _Lane[T], now: float) -> T:
        lane.take(now)
        return lane.items.popleft()

    def _pass_over(self, lane: _Lane[T]) -> None:
        items = lane.items
        while self._gone and items and items[0] in self._gone:
            self._gone.discard(items.popleft())

    def _close(self, lane: _Lane[T]) -> None:
        """The lane at the front of the turn is empty."""
        self._turn.popleft()
        del self._lanes[lane.key]
        self._owed.pop(lane, None)
        self._paced.pop(lane, None)
