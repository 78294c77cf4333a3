"""One attempt of a call in this process: async bodies on the loop, sync bodies on a worker thread."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import CoroutineType
from typing import Any, NoReturn

from treadle._runtime.calls import groups
from treadle._runtime.calls.call import Call
from treadle._runtime.calls.inputs import Values
from treadle._runtime.resources.usage import Meter
from treadle.errors import OptionError, StepTimeout, ThreadsExhausted

GRACE_S = 0.03
"""How long a timed-out body may take to end before its call goes on without it."""


def attempt(call: Call, values: Values) -> Awaitable[Any]:
    """Call the step's function once; gives what is to be awaited, for a plain async body nothing but its coroutine.

    Raises (when awaited):
        StepTimeout: the attempt took longer than the step's timeout.
        ThreadsExhausted: too many threads are stuck.
        BaseException: whatever the body raises.
    """
    return _attempt(call, values) if call.plan.resources is None else _measured(call, values)


async def _measured(call: Call, values: Values) -> Any:
    """An attempt of a step that names resources: how much memory there was during it is part of its result."""
    meter = call.meter = call.meter or Meter()
    meter.begin()
    try:
        return await _attempt(call, values)
    finally:
        meter.end()


def _attempt(call: Call, values: Values) -> Awaitable[Any]:
    plan = call.plan
    if call.run.debug:
        return _by_itself(call, values)
    if not plan.is_async:
        return _in_thread(call, values)
    if plan.timeout is not None:
        return _on_loop_in_time(call, values, plan.timeout)
    body: Awaitable[Any] = plan.fn(*values.args, **values.kwargs)
    return body


async def _by_itself(call: Call, values: Values) -> Any:
    """For debugging: on this thread, one call at a time, without a timeout."""
    async with call.run.debug_lock:
        result = call.plan.fn(*values.args, **values.kwargs)
        return await result if call.plan.is_async else result


async def aside(
    call: Call, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, is_async: bool
) -> Any:
    """Call a function that stands beside the step where its body would run, with the step's timeout for itself.

    What it returns may have to be awaited.
    """
    if call.run.debug:
        async with call.run.debug_lock:
            result = fn(*args, **kwargs)
            return await result if is_async else result
    if not (is_async or call.plan.is_on_loop):
        return await _in_thread(call, Values(args, kwargs), fn)
    if is_async and call.plan.timeout is not None:
        return await _on_loop_in_time(call, Values(args, kwargs), call.plan.timeout, fn)
    result = fn(*args, **kwargs)
    return await result if is_async else result


async def _on_loop_in_time(
    call: Call, values: Values, timeout_s: float, fn: Callable[..., Coroutine[Any, Any, Any]] | None = None
) -> Any:
    """The body in a task of its own, so that one that swallows its cancellation can be left behind."""
    function, clock = fn or call.plan.fn, call.run.engine.clock
    returned_at = deadline = clock.monotonic() + timeout_s
    exits: list[SystemExit] = []

    async def perform() -> Any:
        nonlocal returned_at
        result = None
        try:
            result = await function(*values.args, **values.kwargs)
        except SystemExit as error:
            exits.append(error)  # raised in a task of its own, it would end the loop
        returned_at = clock.monotonic()
        return result

    body = call.run.loop.create_task(perform(), context=contextvars.copy_context())
    expired: asyncio.Future[None] = call.run.loop.create_future()
    timer = clock.call_later(timeout_s, ring, expired)
    try:
        await asyncio.wait((body, expired), return_when=asyncio.FIRST_COMPLETED)
        if not body.done():
            body.cancel()
            done, _ = await asyncio.wait((body,), timeout=GRACE_S)
            if not done:
                call.run.engine.leave_behind(body)
            elif not body.cancelled():
                body.exception()
            raise timed_out(call)
    except asyncio.CancelledError:
        body.cancel()
        await asyncio.wait((body,), timeout=GRACE_S)
        if not body.done():
            call.run.engine.leave_behind(body)
        elif not body.cancelled():
            body.exception()
        raise
    finally:
        timer.cancel()
    result = body.result()
    if returned_at > deadline:  # it held the loop up, so the timer could not ring
        raise timed_out(call)
    if exits:
        raise exits.pop()
    return result


def ring(expired: asyncio.Future[None]) -> None:
    """A timer has rung."""
    if not expired.done():
        expired.set_result(None)


async def _in_thread(call: Call, values: Values, fn: Callable[..., Any] | None = None) -> Any:
    engine = call.run.engine
    if engine.pool.abandoned >= engine.pool.size:
        raise ThreadsExhausted(
            f"call {call.name} has no thread: {engine.pool.abandoned} worker threads are stuck in steps that timed out"
            " or cancelled",
            fix="let sync steps return in time (pass timeouts to what they call), or use runtime='process'",
        )
    future: asyncio.Future[Any] = call.run.loop.create_future()
    context = contextvars.copy_context()
    meter = call.meter = call.meter or Meter()
    body = fn or call.plan.fn
    job = engine.pool.start(
        lambda: context.run(meter.timed, body, values.args, values.kwargs), partial(_finish, future), groups.lease(call)
    )
    timer = None
    if call.plan.timeout is not None:
        timer = call.run.engine.clock.call_later(call.plan.timeout, _expire, future)
    try:
        result = await future
        return result if type(result) is not CoroutineType or fn is not None else _refuse(call, result)
    except _Expired:
        engine.pool.abandon(job)  # the error is raised below, where it gets no context that holds this frame
    except asyncio.CancelledError:
        engine.pool.abandon(job)
        raise
    finally:
        if timer is not None:
            timer.cancel()
    raise timed_out(call)


def _refuse(call: Call, coroutine: Coroutine[Any, Any, Any]) -> NoReturn:
    coroutine.close()
    raise OptionError(
        f"step {call.plan.name} is a def that returned a coroutine, which nobody awaits",
        fix="make it an async def; a decorator around an async def has to be one, too: `return await f(...)`",
        option="step",
    )


class _Expired(BaseException):
    """The timer of a thread's attempt rang."""


def _expire(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(_Expired())


def _finish(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
        return
    if issubclass(type(error), StopIteration):  # not isinstance: an odd exception answers that by raising another one
        error = _wrapped("the step raised StopIteration", error)
    future.set_exception(error)


def contained(call: Call, error: BaseException) -> BaseException:
    """A body's error as one that asyncio can hand on: a task that awaits a ``SystemExit`` ends the whole loop."""
    if isinstance(error, (SystemExit, KeyboardInterrupt, GeneratorExit)):
        return _wrapped(f"step {call.plan.name} raised {error!r}, which fails the step and ends nothing else", error)
    return error


def _wrapped(text: str, cause: BaseException) -> RuntimeError:
    wrapped = RuntimeError(text)
    wrapped.__cause__ = cause
    return wrapped


def timed_out(call: Call) -> StepTimeout:
    """The error of an attempt that took too long."""
    timeout_s = call.plan.timeout or 0.0
    return StepTimeout(
        f"call {call.name} took longer than its timeout of {timeout_s:g} s",
        fix="raise the step's timeout, or make the step faster",
        timeout_s=timeout_s,
    )
