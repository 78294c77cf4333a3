"""A circuit breaker as a table: when attempts are let through, and what their ends lead to; pure, told the time.

Theory of operation
    Closed, it lets every attempt through and counts failures that follow each other; a
    success begins the count anew. At the threshold it opens and refuses all. When the
    recovery time is over it is half open: the next attempt is let through as a probe, and
    while that one is under way all others are refused. A probe that succeeds closes it, one
    that fails opens it again, one that ends without a verdict (it was cancelled) gives its
    place to the next.

    Who is let through gets a ticket. An attempt that began before the state last changed
    has an old one, and its end has no say any more: of a thousand attempts that were under
    way when the fifth failure opened the breaker, none opens it again or closes it.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from treadle._core.machine import IllegalTransition


class BreakerState(Enum):
    """What a breaker does with the next attempt."""

    CLOSED = "every attempt is let through"
    OPEN = "every attempt is refused until the recovery time is over"
    HALF_OPEN = "the next attempt is let through, as a probe"
    PROBING = "the probe is under way, and the others are refused"


class BreakerTrigger(Enum):
    """What can happen to a breaker."""

    SUCCEEDED = "an attempt returned"
    FAILED = "an attempt failed, and the threshold is not reached"
    TRIPPED = "an attempt failed: the one that reaches the threshold, or the probe"
    DUE = "the recovery time is over"
    ADMITTED = "an attempt is let through"
    GIVEN_BACK = "an attempt ended without a verdict"


_S, _T = BreakerState, BreakerTrigger

BREAKERS: Final[dict[tuple[BreakerState, BreakerTrigger], BreakerState]] = {
    (_S.CLOSED, _T.ADMITTED): _S.CLOSED,
    (_S.CLOSED, _T.SUCCEEDED): _S.CLOSED,
    (_S.CLOSED, _T.FAILED): _S.CLOSED,
    (_S.CLOSED, _T.GIVEN_BACK): _S.CLOSED,
    (_S.CLOSED, _T.TRIPPED): _S.OPEN,
    (_S.OPEN, _T.DUE): _S.HALF_OPEN,
    (_S.HALF_OPEN, _T.ADMITTED): _S.PROBING,
    (_S.PROBING, _T.SUCCEEDED): _S.CLOSED,
    (_S.PROBING, _T.TRIPPED): _S.OPEN,
    (_S.PROBING, _T.GIVEN_BACK): _S.HALF_OPEN,
}


class Answer(NamedTuple):
    """What a breaker says to an attempt: a ticket, or 0 and the seconds until it is worth asking again."""

    ticket: int
    retry_after_s: float = 0.0
    is_probe: bool = False


class Breaker:
    """One breaker; whoever shares it between threads holds a lock.

    Args:
        threshold: failures in a row that open it.
        recovery_s: how long it stays open.

    >>> breaker = Breaker(threshold=2, recovery_s=30)
    >>> for second in (0.0, 1.0):
    ...     opened = breaker.failed(breaker.admit(second).ticket, second)
    >>> opened, breaker.admit(11.0)
    (True, Answer(ticket=0, retry_after_s=20.0, is_probe=False))
    >>> probe = breaker.admit(31.0)
    >>> probe.is_probe, breaker.admit(31.0).ticket, breaker.succeeded(probe.ticket), breaker.state.name
    (True, 0, True, 'CLOSED')
    """

    __slots__ = ("_generation", "_opened_at", "failures", "recovery_s", "state", "threshold")

    def __init__(self, threshold: int, recovery_s: float) -> None:
        self.threshold, self.recovery_s = threshold, recovery_s
        self.state = BreakerState.CLOSED
        self.failures = 0
        self._opened_at = 0.0
        self._generation = 1

    def admit(self, now: float) -> Answer:
        """Let an attempt through, or not."""
        left_s = self.retry_after_s(now)
        if self.state is BreakerState.OPEN and not left_s:
            self._move(BreakerTrigger.DUE)
        if self.state in (BreakerState.OPEN, BreakerState.PROBING):
            return Answer(0, left_s)
        state = self._move(BreakerTrigger.ADMITTED)
        return Answer(self._generation, is_probe=state is BreakerState.PROBING)

    def succeeded(self, ticket: int) -> bool:
        """An attempt returned; True if that closed the breaker."""
        if ticket != self._generation:
            return False
        was_probe = self.state is BreakerState.PROBING
        self._move(BreakerTrigger.SUCCEEDED)
        self.failures = 0
        return was_probe

    def failed(self, ticket: int, now: float) -> bool:
        """An attempt failed; True if that opened the breaker."""
        if ticket != self._generation:
            return False
        was_probe = self.state is BreakerState.PROBING
        self.failures = 1 if was_probe else self.failures + 1
        if not was_probe and self.failures < self.threshold:
            self._move(BreakerTrigger.FAILED)
            return False
        self._move(BreakerTrigger.TRIPPED)
        self._opened_at = now
        return True

    def given_back(self, ticket: int) -> None:
        """An attempt ended without a verdict."""
        if ticket == self._generation:
            self._move(BreakerTrigger.GIVEN_BACK)

    def retry_after_s(self, now: float) -> float:
        """Seconds until a probe is let through, if it is open, else 0.0."""
        if self.state is not BreakerState.OPEN:
            return 0.0
        self._opened_at = min(self._opened_at, now)  # the clock of another engine may have begun later
        return max(0.0, self._opened_at + self.recovery_s - now)

    def _move(self, trigger: BreakerTrigger) -> BreakerState:
        state = breaker_after(self.state, trigger)
        if state is not self.state:
            self.state = state
            self._generation += 1
        return state


def breaker_after(state: BreakerState, trigger: BreakerTrigger) -> BreakerState:
    """The state that follows, or ``IllegalTransition`` and no change.

    >>> breaker_after(BreakerState.CLOSED, BreakerTrigger.TRIPPED).name
    'OPEN'
    """
    try:
        return BREAKERS[state, trigger]
    except KeyError:
        raise IllegalTransition(f"{trigger.name} in state {state.name}") from None
