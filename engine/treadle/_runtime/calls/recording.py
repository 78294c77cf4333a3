"""The facts of a call's end, as events: success, hit, reuse, failure, skip, cancellation; each waits for its commit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from treadle import events as ev
from treadle._core.replay import CallRecord
from treadle._runtime.calls.call import Call
from treadle._runtime.calls.failures import failure_of, hide_engine, skipped_because
from treadle._runtime.calls.inputs import keep_plain
from treadle.errors import UpstreamFailed
from treadle.storage.rows import ArtifactRow, Part


def record(call: Call) -> None:
    """Append the success; its artifacts and its cache entry share the commit."""
    if call.is_settled:
        return
    run = call.run
    call.settle("succeeded")
    rows, meter = call.rows or (), call.meter
    part = run.append(
        ev.CallCompleted(
            at=run.now(), call=call.name, step=call.plan.name, attempt=call.attempt,
            artifacts=run.add_artifacts(rows, call.key), outputs=call.plan.outputs,
            duration_s=run.ticks() - call.started_clock,
            peak_rss_bytes=None if meter is None else meter.peak_rss_bytes,
            cpu_s=None if meter is None else meter.cpu_s,
        )
    )  # fmt: skip
    _wait_for_commit(call, part)


def record_hit(call: Call, rows: Sequence[ArtifactRow]) -> None:
    """Append that the cache, or an equal call, had the outcome."""
    run = call.run
    call.saved_s = rows[0].body.duration_s
    call.settle("cached")
    introduce(call)
    part = run.append(
        ev.CallCached(
            at=run.now(), call=call.name, step=call.plan.name, identity=call.identity, code=call.plan.code,
            artifacts=tuple([row.id for row in rows]), saved_s=call.saved_s, inputs=call.inputs,
            outputs=call.plan.outputs,
        )
    )  # fmt: skip
    _wait_for_commit(call, part)


def record_reuse(call: Call, known: CallRecord) -> None:
    """Append that a resumed run took over what it had recorded."""
    run = call.run
    run.reused += 1
    call.reused = True
    call.attempt = known.attempts
    call.settle(known.status)
    part = run.append(
        ev.CallReused(at=run.now(), call=call.name, step=call.plan.name, stale=known.code != call.plan.code)
    )
    _wait_for_commit(call, part)


def fail(call: Call, error: BaseException) -> None:
    """Append the failure, or the cancellation or interruption that the error stands for."""
    run = call.run
    if call.is_settled:
        return
    if isinstance(error, asyncio.CancelledError):
        _record_end(call, error)
        return
    call.error = error
    failure = failure_of(error)
    hide_engine(error)
    note_call(call, error)
    call.settle("failed")
    run.failed.append(call)
    if call.is_taking:
        _leave_as_recorded(call)
        return
    introduce(call)
    duration = run.ticks() - call.started_clock if call.attempt else 0.0
    meter = call.meter
    event = ev.CallFailed(
        at=run.now(), call=call.name, step=call.plan.name, attempt=call.attempt, failure=failure, duration_s=duration,
        inputs=keep_plain(call) if call.attempt else b"",
        peak_rss_bytes=None if meter is None else meter.peak_rss_bytes, cpu_s=None if meter is None else meter.cpu_s,
    )  # fmt: skip
    part = run.append(event)
    _wait_for_commit(call, part)


def note_call(call: Call, error: BaseException) -> None:
    """Note on an error where it was raised."""
    text = f"in call {call.name} of run {call.run.id}, attempt {call.attempt}"
    try:
        if text not in getattr(error, "__notes__", ()):  # a fallback may raise the error that it was given
            error.add_note(text)
    except Exception:
        return  # a frozen dataclass, for example, allows none


def skip(call: Call, producer: Call) -> None:
    """Append that an input has failed, so the call is not performed."""
    call.roots = list(producer.roots or [producer])
    _skip(call, call.roots[0].name, skipped_because(call, call.roots[0]))


def add_root(call: Call, producer: Call) -> None:
    """Another input of a skipped call has failed: who has seen the one error counts as having seen the other."""
    assert call.roots is not None
    call.roots.extend(producer.roots or [producer])
    if call.was_observed:
        call.observed()


def skip_without(call: Call, group: str, error: BaseException) -> None:
    """Append that the calls of a map that it takes whole could not all be made."""
    skipped = UpstreamFailed(
        f"call {call.name} was skipped because map {group} has not all of its calls",
        where=None,
        why=f"its input raised {type(error).__name__} while it was read, or it was cancelled",
        fix=f"mend the input of {group}; its error is the cause of this one",
        call=call.name,
        upstream=group,
    )
    skipped.__cause__ = error
    _skip(call, group, skipped)


def leave_out(call: Call, upstream: str = "") -> None:
    """Append that a condition left the call out: its own, or that of an input.

    A call that was left out by its own says what it is, so that a resume need not ask again.
    """
    run = call.run
    call.settle("skipped")
    introduce(call)
    event = ev.CallSkipped(at=run.now(), call=call.name, step=call.plan.name, reason="condition", upstream=upstream)
    if not upstream:
        event = msgspec.structs.replace(event, identity=call.identity, code=call.plan.code, inputs=call.inputs)
    part = run.append(event)
    _wait_for_commit(call, part)


def skip_behind(call: Call, upstream: str, error: BaseException | None) -> None:
    """Append that a child run, or what that takes, has not succeeded, so the call has nothing to take from it."""
    skipped = UpstreamFailed(
        f"call {call.name} was skipped because {upstream} did not succeed",
        where=None,
        fix=f"mend {upstream}; its error is the cause of this one",
        call=call.name,
        upstream=upstream,
    )
    skipped.__cause__ = error
    _skip(call, upstream, skipped)


def _skip(call: Call, upstream: str, error: BaseException) -> None:
    run = call.run
    call.settle("skipped")
    call.error = error
    run.skipped.append(call)
    introduce(call)
    part = run.append(
        ev.CallSkipped(at=run.now(), call=call.name, step=call.plan.name, reason="upstream", upstream=upstream)
    )
    _wait_for_commit(call, part)


def _record_end(call: Call, error: BaseException) -> None:
    """The call was told to stop: by a caller, a failure elsewhere, or the end of the engine."""
    run = call.run
    call.error = error
    is_cut_off = run.is_ending_early or call.ending == "interrupt" or _is_loop_ending(call)
    kind = ev.CallInterrupted if is_cut_off else ev.CallCancelled
    call.settle("interrupted" if is_cut_off else "cancelled")
    if call.is_taking or (is_cut_off and run.memory is not None and not call.is_introduced):
        _leave_as_recorded(call)
        return
    introduce(call)
    part = run.append(kind(at=run.now(), call=call.name, step=call.plan.name, attempt=call.attempt))
    _wait_for_commit(call, part)


def _is_loop_ending(call: Call) -> bool:
    """Its task was cancelled, and by nobody here."""
    return call.ending is None and call.task is not None and call.task.cancelling() > 0


def introduce(call: Call, again: CallRecord | None = None) -> None:
    """In a resumed run a call comes into the log when it is known which recorded call it is, if any."""
    run = call.run
    if run.memory is None or call.is_introduced:
        return
    call.is_introduced = True
    again = again or run.memory.unstarted(call.name, call.plan.name)
    if again is not None:
        call.name, call.attempt, call.budget = again.name, again.attempts, again.tries
    else:
        run.rename_if_taken(call)
    run.append(ev.CallScheduled(at=run.now(), call=call.name, step=call.plan.name))
    if call.plan.notes is not None:
        run.append(call.plan.notes.of(call))


def _leave_as_recorded(call: Call) -> None:
    """The call was stopped before it was known, or while it took over an outcome: what is recorded stands."""
    call.run.loop.call_soon(call.run.publish, call)


def _wait_for_commit(call: Call, part: Part) -> None:
    """Resolve when the log has it; in the weaker durabilities, at once.

    Then nobody waits for the commit but who follows the call, and facts may gather: a commit for each of them took more
    of the interpreter lock than the steps themselves.
    """
    part.waiters.append(call)
    engine = call.run.engine
    if engine.is_strict or engine.log.unavailable is not None or call.key in engine.followers:
        engine.log.kick()
    if not engine.is_strict and engine.log.unavailable is None:
        call.run.publish(call)
