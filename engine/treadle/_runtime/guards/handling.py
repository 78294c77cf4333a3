"""Conditions, breakers and fallbacks of calls, performed: whether a call is wanted, let through, and replaced.

Knows one call at a time; who takes what of its inputs is decided in ``_core.companions``, and what a skipped call
means for those that wait for it in ``absence``.
"""

from __future__ import annotations

from inspect import isawaitable
from typing import Any

from treadle import events as ev
from treadle._core.companions import inputs_by_name
from treadle._runtime.calls import inline
from treadle._runtime.calls.call import Call
from treadle._runtime.calls.failures import failure_of, hide_engine
from treadle._runtime.calls.inputs import Values
from treadle._runtime.calls.recording import note_call
from treadle._runtime.guards import breakers
from treadle._runtime.guards.breakers import Guard
from treadle.errors import LogUnavailable, RunFenced, ThreadsExhausted

_NOT_REPLACED = (LogUnavailable, RunFenced)
"""What cannot be recorded cannot be replaced."""


async def is_wanted(call: Call, values: Values) -> bool:
    """Ask the step's conditions, until one does not hold."""
    given = inputs_by_name(call.plan.binder, values.args, values.kwargs)
    for condition in call.plan.conditions:
        args, kwargs = condition.arguments(given)
        answer = await inline.aside(call, condition.fn, args, kwargs, is_async=condition.is_async)
        if isawaitable(answer):
            answer = await answer
        if bool(answer) is not condition.wanted:
            return False
    return True


async def guarded(call: Call, guard: Guard, ticket: int, values: Values) -> Any:
    """An attempt that the breaker has let through; how it ends is told to the breaker."""
    try:
        value = await call.plan.attempt(call, values)
    except ThreadsExhausted:
        breakers.give_back(guard, ticket)  # nothing has begun
        raise
    except (Exception, SystemExit) as error:
        breakers.failed(call, guard, ticket, error)
        raise
    except BaseException:
        breakers.give_back(guard, ticket)
        raise
    if call.ending is not None:
        breakers.give_back(guard, ticket)  # the body swallowed its cancellation
    else:
        breakers.succeeded(call, guard, ticket)
    return value


def is_replaced(call: Call, error: BaseException) -> bool:
    """Whether the step's fallback answers for this error: not while the call is being stopped."""
    return (
        call.plan.fallback is not None
        and not isinstance(error, _NOT_REPLACED)
        and call.ending is None
        and not call.is_settled
    )


def tell_fallback(call: Call, error: BaseException) -> None:
    """Append that the fallback takes over, and for which error."""
    run = call.run
    run.append(
        ev.CallFellBack(
            at=run.now(), call=call.name, step=call.plan.name, attempt=call.attempt, failure=failure_of(error),
            identity=call.identity, code=call.plan.code, inputs=call.inputs, key=call.key,
        )
    )  # fmt: skip
    hide_engine(error)
    note_call(call, error)


async def fall_back(call: Call, values: Values, error: BaseException) -> Any:
    """What the step's fallback gives."""
    fallback = call.plan.fallback
    assert fallback is not None
    args, kwargs = fallback.arguments(inputs_by_name(call.plan.binder, values.args, values.kwargs), error)
    try:
        value = await inline.aside(call, fallback.fn, args, kwargs, is_async=fallback.is_async)
        return await value if isawaitable(value) else value
    finally:
        call.run.engine.capture.attempt_ended(call)
