"""When the next call of a step may start, given its rate: pure arithmetic, times come in as seconds of one clock.

Theory of operation
    The generic cell rate algorithm (ITU-T I.371): each start moves ``due``, the time at which the next one would
    fall if all were evenly spaced, on by one interval. A start may come before its due time by as much as the burst
    allows, so a pause fills up to one second's worth of starts and no more.

    Times are counted in whole parts of a nanosecond, one for each start of the rate, in which an interval is a whole
    number: a million starts at ``"3/s"`` lose nothing to rounding.
"""

from __future__ import annotations

from treadle._core.admission import Limit
from treadle.limits import Rate

NANOSECONDS = 10**9

ROOM = 1000
"""How many calls of one step may wait for its rate at a time with all that they need; the others wait in line for
that, where a call is a record and no task. As many as a map reads ahead."""


class Pace:
    """The starts of one step in one engine.

    >>> pace, started = Pace(Rate(2, 1)), []
    >>> for now in (0.0, 0.0, 0.0, 0.4, 0.5, 0.5, 9.0, 9.0, 9.0):
    ...     if pace.is_open(now):
    ...         pace.take(now)
    ...         started.append(now)
    >>> started, pace.opens_at
    ([0.0, 0.0, 0.5, 9.0, 9.0], 9.5)
    """

    __slots__ = ("_due", "_interval", "_parts", "_tolerance", "room", "waiting")

    def __init__(self, rate: Rate) -> None:
        self._parts = rate.starts
        self._interval = rate.seconds * NANOSECONDS
        self._tolerance = (rate.burst - 1) * self._interval
        self._due: int | None = None
        self.room = Limit(ROOM)
        self.waiting = 0

    @property
    def opens_at(self) -> float:
        """The time from which the next call may start."""
        if self._due is None:
            return float("-inf")
        return -(-(self._due - self._tolerance) // self._parts) / NANOSECONDS

    def is_open(self, now: float) -> bool:
        """Whether a call may start."""
        return self._due is None or self._count(now) >= self._due - self._tolerance

    def take(self, now: float) -> None:
        """A call starts."""
        count = self._count(now)
        self._due = (count if self._due is None else max(self._due, count)) + self._interval

    def give_back(self) -> None:
        """The call that was to start did not: the next one may come in its place."""
        if self._due is not None:
            self._due -= self._interval

    def _count(self, now: float) -> int:
        return round(now * NANOSECONDS) * self._parts

    def __repr__(self) -> str:
        return f"<Pace of {self._parts} starts in {self._interval / NANOSECONDS:g} s>"
