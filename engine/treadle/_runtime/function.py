"""Runs the function of a pipeline, on the loop or in a thread, and lets go of one that does not stop; no calls here."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from treadle._runtime.calls import inline

if TYPE_CHECKING:
    from treadle._runtime.run import Run

PATIENCE_S = (1.0, 4.0, 1.0)
"""A pipeline function that swallows its cancellation is cancelled again after these, and then left behind."""


async def perform(run: Run) -> Any:
    """Call the function and give what it returns.

    Raises:
        asyncio.CancelledError: the run was told to stop.
        BaseException: whatever the function raises.
    """
    if run.target.is_static:
        from treadle._runtime.static import performing  # few pipelines are static

        return await performing.perform(run)
    if run.ending is not None:
        raise asyncio.CancelledError
    if run.target.is_async:
        return await _on_loop(run, run.target.fn(*run.args, **run.kwargs))
    return await _in_thread(run)


async def _on_loop(run: Run, function: Coroutine[Any, Any, Any]) -> Any:
    """An ``async`` pipeline has a task of its own, so that one that swallows its cancellation can be left behind."""
    body = run.loop.create_task(function)
    try:
        await asyncio.wait((body,))
    except asyncio.CancelledError:
        if run.ending is None:
            run.stop("interrupt")  # nobody told this run to stop, so its loop is ending
        await _end(run, body)
        raise
    return body.result()


async def _end(run: Run, body: asyncio.Task[Any]) -> None:
    for patience_s in (inline.GRACE_S,) if run.ending == "run_timeout" else PATIENCE_S:
        body.cancel()
        try:
            await asyncio.wait((body,), timeout=patience_s)
        except asyncio.CancelledError:
            break
        if body.done():
            break
    run.engine.leave_behind(body)


async def _in_thread(run: Run) -> Any:
    """A ``def`` pipeline has a thread of its own, so that it can wait for its calls."""
    future: asyncio.Future[Any] = run.loop.create_future()
    context = contextvars.copy_context()
    given = run, run.args, run.kwargs, context, future
    work = threading.Thread(target=_work, args=given, name=f"treadle-{run.name}", daemon=True)
    work.start()
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if run.ending is None:
            run.stop("interrupt")
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait((future,), timeout=inline.GRACE_S)
        raise


def _work(
    run: Run, args: tuple[Any, ...], kwargs: dict[str, Any], context: contextvars.Context, future: asyncio.Future[Any]
) -> None:
    result: Any = None
    error: BaseException | None = None
    run.thread_id = threading.get_ident()
    try:
        result = context.run(run.target.fn, *args, **kwargs)
    except StopIteration as stopped:
        error = RuntimeError("the pipeline raised StopIteration")
        error.__cause__ = stopped
    except BaseException as caught:
        error = caught
    finally:
        run.thread_id = 0
    run.engine.call_on_loop(_finish, future, result, error)


def _finish(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
