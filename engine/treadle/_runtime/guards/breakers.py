"""The circuit breakers of this process: one per step, shared by its runs and engines.

Knows who asks and tells the log what changed; when an attempt is let through is decided in ``_core.breaker``, under
one lock, since engines may live on several threads.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from treadle import events as ev
from treadle._core.breaker import Breaker, BreakerState
from treadle._runtime.guards.policies import CircuitBreaker
from treadle.errors import CircuitOpen

if TYPE_CHECKING:
    from treadle._runtime.calls.call import Call
    from treadle._runtime.code.identity import Known
    from treadle._runtime.step import Step

MOST = 1000
"""So many identities are remembered; beyond it those that have nothing to tell go first."""

_TEXT_CHARS = 200


class Guard:
    """One breaker, and what its refusals tell.

    Attributes:
        step: the step's name.
        breaker: what decides.
        last: the last failure, as text; an exception would hold on to frames.
        probe: run, call and ticket of the probe that is under way.
    """

    __slots__ = ("breaker", "last", "probe", "step")

    def __init__(self, step: str, policy: CircuitBreaker) -> None:
        self.step = step
        self.breaker = Breaker(policy.failure_threshold, policy.recovery_timeout)
        self.last = ""
        self.probe: tuple[str, str, int] | None = None


_lock = threading.Lock()
_of_steps: WeakKeyDictionary[Step[..., Any], dict[tuple[Any, ...], Guard]] = WeakKeyDictionary()
"""By step, name, outputs and settings: a step keeps its breaker while what it closes over changes."""

_of_identities: dict[tuple[Any, ...], Guard] = {}
"""By identity and settings: a step that is made again, by its factory or a reloaded module, finds its breaker here."""


def guard_of(step: Step[..., Any], known: Known, policy: CircuitBreaker) -> Guard:
    """The breaker of a step, of the same settings."""
    settings = (policy.failure_threshold, policy.recovery_timeout)
    named, same = (step.name, step.options.outputs, *settings), (known.identity, *settings)
    with _lock:
        mine = _of_steps.setdefault(step.base, {})
        guard = mine.get(named)
        if known.unhashable:  # its identity does not tell it from its sisters
            return guard or mine.setdefault(named, Guard(step.name, policy))
        guard = mine[named] = guard or _of_identities.get(same) or Guard(step.name, policy)
        if same not in _of_identities:
            if len(_of_identities) >= MOST:
                _make_room()
            _of_identities[same] = guard
        return guard


def _make_room() -> None:
    quiet = [key for key, guard in _of_identities.items() if _is_quiet(guard.breaker)]
    for key in quiet[: MOST // 2] or list(_of_identities)[: MOST // 10]:
        del _of_identities[key]


def _is_quiet(breaker: Breaker) -> bool:
    return breaker.state is BreakerState.CLOSED and not breaker.failures


# -- one attempt --------------------------------------------------------------------------


def admit(call: Call, guard: Guard) -> int:
    """Let an attempt through; gives its ticket.

    Raises:
        CircuitOpen: the breaker lets none through.
    """
    with _lock:
        answer = guard.breaker.admit(call.run.ticks())
        if not answer.ticket:
            raise _refusal(call, guard, answer.retry_after_s)
        if answer.is_probe:
            guard.probe = (call.run.id, call.name, answer.ticket)
    if answer.is_probe:
        call.run.append(ev.BreakerHalfOpened(at=call.run.now(), call=call.name, step=guard.step, attempt=call.attempt))
    return answer.ticket


def left_behind(call: Call, guard: Guard) -> None:
    """A call was given up although its body goes on: if that is the probe, another one may be."""
    probe = guard.probe
    if probe is not None and probe[:2] == (call.run.id, call.name):
        give_back(guard, probe[2])


def give_back(guard: Guard, ticket: int) -> None:
    """An attempt ended without a verdict."""
    with _lock:
        _forget_probe(guard, ticket)
        guard.breaker.given_back(ticket)


def succeeded(call: Call, guard: Guard, ticket: int) -> None:
    """An attempt returned."""
    with _lock:
        _forget_probe(guard, ticket)
        has_closed = guard.breaker.succeeded(ticket)
    if has_closed:
        call.run.append(ev.BreakerClosed(at=call.run.now(), call=call.name, step=guard.step, attempt=call.attempt))


def failed(call: Call, guard: Guard, ticket: int, error: BaseException) -> None:
    """The body raised, or took too long."""
    with _lock:
        _forget_probe(guard, ticket)
        has_opened = guard.breaker.failed(ticket, call.run.ticks())
        failures, recovery_s = guard.breaker.failures, guard.breaker.recovery_s
        guard.last = _text(error)
    if has_opened:
        event = ev.BreakerOpened(
            at=call.run.now(), call=call.name, step=guard.step, attempt=call.attempt,
            failures=failures, recovery_s=recovery_s,
        )  # fmt: skip
        call.run.append(event)


def _forget_probe(guard: Guard, ticket: int) -> None:
    if guard.probe is not None and guard.probe[2] == ticket:
        guard.probe = None


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:_TEXT_CHARS]
    except Exception:  # an exception whose text cannot be had
        return type(error).__name__


def _refusal(call: Call, guard: Guard, retry_after_s: float) -> CircuitOpen:
    is_probing = guard.breaker.state is BreakerState.PROBING
    what = "a probe is under way" if is_probing else f"the next attempt is let through in {retry_after_s:.3g} s"
    failures = guard.breaker.failures
    return CircuitOpen(
        f"call {call.name} was refused by the circuit breaker of step {guard.step}: {what}",
        why=f"{failures} attempts in a row failed, the last one with {guard.last}"
        if failures > 1
        else f"an attempt failed with {guard.last}",
        fix="try again later, or give the step an @on_failure(...)",
        retry_after_s=retry_after_s, step=guard.step, failures=failures,
    )  # fmt: skip


# -- looking ------------------------------------------------------------------------------


def health(now: float) -> dict[str, dict[str, Any]]:
    """What each breaker of this process does, by step; of several steps of one name the later ones are numbered."""
    found: dict[str, dict[str, Any]] = {}
    with _lock:
        guards = [*_of_identities.values(), *(guard for mine in _of_steps.values() for guard in mine.values())]
        for guard in dict.fromkeys(guards):
            name, number = guard.step, 1
            while name in found:
                number += 1
                name = f"{guard.step}_{number}"
            breaker = guard.breaker
            left_s = breaker.retry_after_s(now)
            is_open = breaker.state is BreakerState.OPEN and left_s > 0
            state = "closed" if breaker.state is BreakerState.CLOSED else "open" if is_open else "half_open"
            found[name] = {"state": state, "failures": breaker.failures, "retry_after_s": left_s}
    return found


def reset() -> None:
    """Forget the state of every breaker, as a new process would; for tests."""
    with _lock:
        _of_steps.clear()
        _of_identities.clear()
