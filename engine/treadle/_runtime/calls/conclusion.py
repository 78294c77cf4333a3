"""How a run ends: the failure mode, the wait for every call, the value that is kept, and the last fact in the log.

Knows what the function has returned or raised, and what was asked of the run; the run's own state is in ``run``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from treadle import events as ev
from treadle._core.binding import find, replace
from treadle._runtime.calls import inputs, stopping
from treadle._runtime.calls.call import Ending, StepFuture
from treadle._runtime.calls.failures import cancelled, described, failure_of, interrupted
from treadle._runtime.maps.mapping import MapFuture
from treadle._runtime.plan import hint, logger
from treadle._runtime.views.artifact import Artifact
from treadle.contracts import INLINE_BYTES
from treadle.errors import EncodeError, LogUnavailable, RunInterrupted, RunTimeout, TreadleError
from treadle.storage import failpoints
from treadle.storage.log import again
from treadle.storage.rows import ArtifactRow, Body, Part
from treadle.storage.writer import Transaction

if TYPE_CHECKING:
    from treadle._runtime.run import Run


async def end_calls(run: Run, value: Any, error: BaseException | None) -> tuple[Any, BaseException | None]:
    """Apply the failure mode, wait for every call, and resolve futures in what was returned."""
    _take_all(run, value)
    while True:
        if run.ending is None and (error is not None or run.unhandled()):
            _apply_failure_mode(run)
        try:
            await _until_idle(run)
            if error is None and not run.unhandled():
                value = await _resolve_value(value)
            break
        except asyncio.CancelledError as caught:
            error = error or caught
            if run.ending is None and run.task is not None and run.task.cancelling():
                run.stop("interrupt")
        except BaseException as caught:
            error = error or caught
    if error is None or (isinstance(error, asyncio.CancelledError) and run.ending == "failure"):
        error = next(iter(run.unhandled()), error)
    return value, error


def _take_all(run: Run, value: Any) -> None:
    """The function has returned, so nobody takes results of lazy maps any more: they make all their calls."""
    returned = set(find((value,), (MapFuture,)))
    for feeder in list(run.feeders):
        if feeder in returned and not feeder.has_given_away:
            feeder.keep_all()
        else:
            feeder.abandon()


def _apply_failure_mode(run: Run) -> None:
    if run.failure_mode != "continue":
        stopping.skip_behind(run.active)
    if run.failure_mode == "fail_fast":
        for child in list(run.children):
            child.stop(for_a_child("failure"))
        run.stop_calls("failure")
    elif run.failure_mode == "stop":
        run.ending = "failure"
        for call in list(run.active):
            if call.task is None or call.slots is None:
                stopping.stop(call, "failure")
        for feeder in list(run.feeders):
            feeder.halt()


def answer_failures(run: Run) -> None:
    """Apply the failure mode if something has failed that nobody handles."""
    if run.ending is None and run.failure_mode != "continue" and run.failure_count and run.unhandled():
        _apply_failure_mode(run)


async def _until_idle(run: Run) -> None:
    while run.active or run.feeders or run.children:
        answer_failures(run)
        run.failures_seen = run.failure_count
        run.idle = run.loop.create_future()
        run._wake_if_idle()  # that answer may have ended all there was, where outcomes wait for no commit
        await run.idle


class Outputs(dict[str, Any]):
    """What a wired pipeline gives: futures by output name."""


async def _resolve_value(value: Any) -> Any:
    """Futures and artifacts in the returned value become what they stand for."""
    if isinstance(value, Outputs):
        values = {name: await future for name, future in value.items()}
        return {name: values[name] for name, future in value.items() if future.status != "skipped"}
    found = list(find((value,), (StepFuture, MapFuture, Artifact)))
    if not found:
        return value
    content: dict[int, Any] = {}
    for item in found:
        content[id(item)] = await item.load() if isinstance(item, Artifact) else await item
    return replace(value, (StepFuture, MapFuture, Artifact), lambda item: content[id(item)])


async def record(run: Run, value: Any, error: BaseException | None) -> None:
    """Write how the run ended, and wait until the log has it."""
    run.ended_at = run.now()
    try:
        event, status = await _ending_event(run, value, error)
    except BaseException as caught:  # the value could not be stored, or the run was stopped meanwhile
        run.value = run.value_row = None
        event, status = await _ending_event(run, None, caught)
    part = run.append(event)
    if isinstance(event, ev.RunSucceeded) and run.value_row is not None:
        part.artifacts.append(run.value_row)
    part.ended = (status, run.ended_at)
    run.engine.log.sync()
    committed = run.committed(part)
    run.is_sealed = True
    failpoints.hit("run-ending")
    try:
        await asyncio.shield(committed)
    except asyncio.CancelledError:
        await committed
    run.status = status
    why = f": {described(event.failure)}" if isinstance(event, ev.RunFailed) else ""
    logger.log(20 if status == "succeeded" else 30, "run %s of %s %s%s", run.id, run.name, status, why)
    if run.memory is not None and status != "interrupted":
        ending = asyncio.ensure_future(_end_unclaimed_children(run))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending


UNCLAIMED = "the run that it is a child of no longer asked for it"


async def _end_unclaimed_children(run: Run) -> None:
    """Cancel the child runs that a resumed run no longer asked for; nothing else would ever take them up."""
    engine = run.engine
    try:
        if await engine.reader.rows("SELECT 1 FROM runs WHERE parent=? AND status='interrupted' LIMIT 1", (run.id,)):
            await engine.log.transact(_cancel_children(run.id))
    except TreadleError as error:
        hint(f"interrupted child runs of run {run.id} could not be ended: {error}")


def _cancel_children(parent: str) -> Callable[[Transaction], None]:
    def work(transaction: Transaction) -> None:
        todo = [parent]
        while todo:
            rows = transaction.connection.execute(
                "SELECT id, epoch FROM runs WHERE parent=? AND status='interrupted'", (todo.pop(),)
            ).fetchall()
            for run_id, epoch in rows:
                part, now = Part(run_id, epoch), time.time()
                part.events.append(ev.RunCancelled(at=now, reason=UNCLAIMED))
                part.ended = ("cancelled", now)
                transaction.append(part)
                todo.append(run_id)

    return work


async def _ending_event(run: Run, value: Any, error: BaseException | None) -> tuple[ev.Event, str]:
    now = run.ended_at
    if run.ending == "run_timeout":
        run.error = RunTimeout(
            f"run {run.id} of {run.name} took longer than its timeout of {run.timeout_s:g} s",
            fix="raise the pipeline's timeout", timeout_s=run.timeout_s,
        )  # fmt: skip
        return ev.RunFailed(at=now, failure=failure_of(run.error)), "failed"
    if run.ending == "caller" or (run.ending != "interrupt" and isinstance(error, asyncio.CancelledError)):
        run.error = cancelled(run.id)
        return ev.RunCancelled(
            at=now, reason="caller" if run.ending == "caller" else "the pipeline itself"
        ), "cancelled"
    if run.ending == "interrupt":
        run.error = interrupted(run.id)
        return ev.RunInterrupted(at=now, reason="the engine, the loop or the process ended"), "interrupted"
    if error is not None:
        run.error = error
        if isinstance(error, LogUnavailable):  # a submit was refused, which is nothing that the pipeline did
            return ev.RunInterrupted(at=now, reason="the log could not be written"), "interrupted"
        return ev.RunFailed(at=now, failure=failure_of(error)), "failed"
    run.value = value
    await _store_value(run, value)
    unclaimed = run.memory.unclaimed if run.memory is not None else 0
    first = len(run.part().artifacts)
    artifacts = (first,) if run.value_row is not None else ()
    return ev.RunSucceeded(
        at=now, artifacts=artifacts, reused=run.reused, performed=run.performed, unclaimed=unclaimed
    ), "succeeded"  # fmt: skip


async def _store_value(run: Run, value: Any) -> None:
    engine = run.engine
    if run.target.is_wired:
        return  # its value is its outputs, and those are stored
    try:
        encoded = inputs.encode_quickly(engine, value) or await engine.io.run(inputs.encode, engine, value)
    except EncodeError as error:
        hint(f"the value of pipeline {run.name} is not kept in the log: {error.what}")
        return
    body = Body(
        encoded.digest, encoded.checksum, len(encoded.data), encoded.codec, encoded.type_name,
        run.id, "", "", run.now(), run.now() - run.created_at,
    )  # fmt: skip
    if body.size <= INLINE_BYTES:
        body.data = bytes(encoded.data)
    else:
        body.location = await engine.io.run(engine.vault.blobs.put, encoded.data, encoded.checksum)
    run.value_row = ArtifactRow(f"run:{run.name}", body)


def settle_errors(run: Run) -> None:
    """Keep the errors, and let the calls go that held them."""
    calls = (*run.failed, *run.skipped)
    run.call_errors = run.errors_of_calls()
    failed = sorted(run.failed, key=lambda call: call.order)
    every = [call.error for call in failed if call.error is not None] + run.map_errors
    every += [child.error for child in run.failed_children if child.error is not None]
    first = [run.error] if run.error is not None else []
    run.errors = [*first, *(error for error in every if error is not run.error)]
    for call in calls:
        for future in call.futures():
            if future.done() and not future.cancelled():
                future._log_traceback = False
        call.forget()
    run.failed.clear()
    run.skipped.clear()


def for_a_child(ending: Ending) -> Ending:
    """What the end of a parent is for its children: they are cancelled, or cut off with it."""
    return "interrupt" if ending == "interrupt" else "caller"


def lost_error(error: BaseException, own: BaseException | None) -> BaseException:
    """What the awaiter of a lost run sees: the log's error, with the run's own as its cause."""
    if isinstance(own, LogUnavailable) or not isinstance(error, LogUnavailable):
        return own if isinstance(own, LogUnavailable) else error
    return again(error, own if isinstance(own, Exception) and not isinstance(own, RunInterrupted) else None)
