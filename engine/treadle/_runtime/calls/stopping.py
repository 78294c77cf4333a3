"""How a call is ended from outside: at once if nothing of it runs, else by cancelling its task, again, and then not.

Why it is ended, the caller says; how that is recorded, ``recording``.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable
from types import CoroutineType
from typing import Any, Final, cast

from treadle import events as ev
from treadle._core.machine import CallState
from treadle._runtime.calls.call import Call, Ending
from treadle._runtime.calls.recording import fail, skip
from treadle._runtime.guards import breakers

EDGES_S: Final = (1.0, 5.0)
"""A body that swallows its cancellation is cancelled again after these, and then left behind."""


def stop(call: Call, ending: Ending) -> bool:
    """End a call that has no outcome yet; False if it has one."""
    if call.is_settled:
        return False
    if call.ending is None or ending == "interrupt":
        call.ending = ending
    if call.task is None or not _is_walking(call.task):
        _stop_at_once(call)
        return True
    call.task.cancel()
    if call.state is CallState.PERFORMING and call.plan.is_on_loop:
        call.timer = call.run.engine.clock.call_later(EDGES_S[0], _press, call, call.task, 1)
    return True


def skip_behind(calls: Iterable[Call]) -> None:
    """Skip all that waits for something that has failed, however far behind it, before the rest is cancelled."""
    todo = [call for call in calls if _is_lost(call)]
    for call in todo:  # it grows
        group = call.group._dependents if call.group is not None else ()
        for dependent in (*(call.dependents or ()), *group):
            if dependent.state is CallState.WAITING:
                skip(dependent, call)
                todo.append(dependent)


def stop_late(call: Call, producers: Iterable[Call], ending: Ending) -> None:
    """End a call that comes when its run is ending: it is skipped if something that it takes has failed."""
    lost = next(filter(_is_lost, producers), None) if ending == "failure" and not call.is_settled else None
    if lost is not None:
        skip(call, lost)
    else:
        stop(call, ending)


def _is_lost(call: Call) -> bool:
    return call.is_settled and call.outcome in ("failed", "skipped") and call.error is not None


def _is_walking(task: asyncio.Task[None]) -> bool:
    """Whether a task has made its first step; one that is cancelled before never makes it."""
    return inspect.getcoroutinestate(cast("CoroutineType[Any, Any, None]", task.get_coro())) not in _NOT_WALKING


_NOT_WALKING = (inspect.CORO_CREATED, inspect.CORO_CLOSED)


def _stop_at_once(call: Call) -> None:
    task, call.task = call.task, None
    if task is not None:
        task.cancel()
    scheduler = call.run.engine.scheduler
    scheduler.remove(call)
    scheduler.release(call)
    fail(call, asyncio.CancelledError())


def _press(call: Call, task: asyncio.Task[None], edge: int) -> None:
    """The body swallowed its cancellation: ask again, and at last leave it behind."""
    if call.is_settled or call.task is not task:
        return
    task.cancel()
    if edge < len(EDGES_S):
        call.timer = call.run.engine.clock.call_later(EDGES_S[edge] - EDGES_S[edge - 1], _press, call, task, edge + 1)
        return
    call.run.engine.leave_behind(task)
    if call.plan.guard is not None:
        breakers.left_behind(call, call.plan.guard)
    call.run.append(ev.ThreadAbandoned(at=call.run.now(), call=call.name, step=call.plan.name, attempt=call.attempt))
    call.task = None
    call.run.engine.scheduler.release(call)
    fail(call, asyncio.CancelledError())
