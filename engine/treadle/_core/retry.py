"""Whether and when a failed attempt is tried again: pure arithmetic over a ``Retry`` policy."""

from __future__ import annotations

from treadle.errors import (
    CircuitOpen,
    EncodeError,
    LogUnavailable,
    StepNotImportable,
    StepTimeout,
    StepTypeError,
    ThreadsExhausted,
)
from treadle.options import Retry

NEVER_RETRIED = (CircuitOpen, EncodeError, LogUnavailable, StepNotImportable, StepTypeError, ThreadsExhausted)


def is_retried(policy: Retry, error: BaseException) -> bool:
    """Whether the policy covers this error: what ``on`` names, and step timeouts, never the engine's own refusals."""
    if isinstance(error, NEVER_RETRIED) or not isinstance(error, Exception):
        return False
    return isinstance(error, (StepTimeout, *policy.on))


def delay_before(policy: Retry, attempt: int, draw: float) -> float:
    """Seconds to wait before an attempt (2, 3, ...); ``draw`` is an even random number in [0, 1).

    >>> policy = Retry(max_attempts=5, delay=1, backoff=2, max_delay=3, jitter=False)
    >>> [delay_before(policy, attempt, 0.0) for attempt in (2, 3, 4)]
    [1.0, 2.0, 3.0]
    """
    try:
        delay = min(policy.delay * policy.backoff ** (attempt - 2), policy.max_delay)
    except OverflowError:
        delay = policy.max_delay
    return delay * draw if policy.jitter else delay


def next_attempt(
    policy: Retry, error: BaseException, used: int, attempt: int, elapsed: float, draw: float
) -> float | None:
    """Seconds until the next attempt, or ``None`` if there is none.

    Args:
        policy: the step's policy.
        error: what the attempt raised.
        used: attempts of this budget so far; those that a crash cut off are not counted.
        attempt: number that the next attempt would have.
        elapsed: seconds since the first attempt began.
        draw: an even random number in [0, 1).
    """
    if used >= policy.max_attempts or not is_retried(policy, error):
        return None
    delay = delay_before(policy, used + 1, draw)
    if policy.max_time is not None and elapsed + delay > policy.max_time:
        return None
    return delay
