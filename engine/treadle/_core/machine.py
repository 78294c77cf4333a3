"""The states of a call and of a run, as tables; the only place that says what may follow what.

Theory of operation
    A call is a small machine. Something happens to it (a ``Trigger``), and the table
    says in which state it is afterwards. What the table does not name is illegal: it
    raises, and the state stays. The shell asks first and acts second, so a late
    timeout, a second cancel or a result that nobody waits for any more cannot undo an
    outcome: an ended call answers ``LATE`` triggers with itself.

    The log keeps the same facts as events; ``STATUS_OF`` says which status each
    event leaves behind, and ``replay`` folds a log with it.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal

from treadle import events

CallStatus = Literal["pending", "running", "succeeded", "cached", "failed", "skipped", "cancelled", "interrupted"]
RunStatus = Literal["running", "succeeded", "failed", "cancelled", "interrupted"]


class CallState(Enum):
    """Where a call is in its life."""

    WAITING = "its inputs are not all there"
    READY = "it waits for a slot"
    LOOKING = "its key is made and the cache is asked"
    FOLLOWING = "an equal call is performed, and it takes that one's outcome"
    PERFORMING = "an attempt is being made"
    DELAYED = "an attempt is due later: after a retry's delay, or when the step's rate lets it start"
    STORING = "it has an outcome that is not committed yet"
    ENDED = "its outcome is in the log, or can never be"

    __hash__ = object.__hash__  # Enum's own is written in Python, and the table is asked on the hot path


class Trigger(Enum):
    """What can happen to a call."""

    INPUTS_READY = "the last input arrived"
    ADMITTED = "it has a slot"
    FOLLOW = "an equal call is in flight"
    HAND_OVER = "the equal call gave no outcome"
    PACE = "the step's rate lets no attempt begin yet"
    START = "an attempt begins"
    RETRY = "an attempt failed, another one is due"
    OUTCOME = "an outcome is known: success, hit, reuse, failure, skip, cancel"
    COMMITTED = "the outcome is in the log"

    __hash__ = object.__hash__


_S, _T = CallState, Trigger

CALLS: Final[dict[tuple[CallState, Trigger], CallState]] = {
    (_S.WAITING, _T.INPUTS_READY): _S.READY,
    (_S.WAITING, _T.OUTCOME): _S.STORING,
    (_S.READY, _T.ADMITTED): _S.LOOKING,
    (_S.READY, _T.OUTCOME): _S.STORING,
    (_S.LOOKING, _T.FOLLOW): _S.FOLLOWING,
    (_S.LOOKING, _T.PACE): _S.DELAYED,
    (_S.LOOKING, _T.START): _S.PERFORMING,
    (_S.LOOKING, _T.OUTCOME): _S.STORING,
    (_S.FOLLOWING, _T.HAND_OVER): _S.READY,
    (_S.FOLLOWING, _T.OUTCOME): _S.STORING,
    (_S.PERFORMING, _T.RETRY): _S.DELAYED,
    (_S.PERFORMING, _T.OUTCOME): _S.STORING,
    (_S.DELAYED, _T.ADMITTED): _S.LOOKING,
    (_S.DELAYED, _T.OUTCOME): _S.STORING,
    (_S.STORING, _T.COMMITTED): _S.ENDED,
}

SETTLED: Final = frozenset({CallState.STORING, CallState.ENDED})


class IllegalTransition(AssertionError):
    """A trigger came in a state that does not know it: a fault of the engine, never of its user."""


def after(state: CallState, trigger: Trigger) -> CallState:
    """The state that follows, or ``IllegalTransition`` and no change.

    >>> after(CallState.READY, Trigger.ADMITTED).name
    'LOOKING'
    """
    try:
        return CALLS[state, trigger]
    except KeyError:
        raise illegal(state, trigger) from None


def illegal(state: CallState, trigger: Trigger) -> IllegalTransition:
    """The complaint that a trigger does not belong to a state."""
    return IllegalTransition(f"{trigger.name} in state {state.name}")


STATUS_OF: Final[dict[type[events.Event], CallStatus]] = {
    events.CallScheduled: "pending",
    events.CallStarted: "running",
    events.CallRetrying: "pending",
    events.CallCompleted: "succeeded",
    events.CallCached: "cached",
    events.CallFailed: "failed",
    events.CallSkipped: "skipped",
    events.CallCancelled: "cancelled",
    events.CallInterrupted: "interrupted",
}

RUN_STATUS_OF: Final[dict[type[events.Event], RunStatus]] = {
    events.RunAccepted: "running",
    events.RunResumed: "running",
    events.RunSucceeded: "succeeded",
    events.RunFailed: "failed",
    events.RunCancelled: "cancelled",
    events.RunInterrupted: "interrupted",
}

TERMINAL: Final = frozenset({"succeeded", "failed", "cancelled"})
"""Runs in these states are over; an interrupted one can be taken up again."""

RESUMABLE: Final = frozenset({"interrupted", "failed", "cancelled"})
"""What ``engine.resume`` takes up; ``engine.recover`` takes interrupted runs only."""
