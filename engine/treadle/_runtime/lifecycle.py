"""The life of one call, in eight verbs.

    bind → await inputs → key → look up → perform → store → record → resolve

``bind`` and ``await_inputs`` happen when a call is submitted, for nothing but a record
and a future. When its inputs are there and a slot is free, ``live`` walks the verbs
from ``key`` to ``record`` in a task of its own; ``resolve`` follows when the log
has it. ``stop`` ends a call from outside, at any point of this.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from treadle import events as ev
from treadle._core import retry
from treadle._core.binding import PLAIN, find
from treadle._core.machine import CallState, Trigger
from treadle._core.replay import CallRecord
from treadle._runtime import inline, inputs
from treadle._runtime.call import Call, Ending, StepFuture
from treadle._runtime.context import active_call, active_run
from treadle._runtime.failures import failure_of, skipped_because
from treadle._runtime.mapping import MapFuture
from treadle._runtime.plan import Plan
from treadle.errors import ArtifactDamaged, DecodeError, ForeignFuture, LogUnavailable, RunInterrupted
from treadle.storage import failpoints
from treadle.storage.rows import ArtifactRow, Body, Part

if TYPE_CHECKING:
    from treadle._runtime.run import Run

INLINE_BYTES = 64 * 1024
EDGES_S = (1.0, 5.0)
"""A body that swallows its cancellation is cancelled again after these, and then left behind."""

References = (StepFuture, MapFuture)


# -- 1. bind ------------------------------------------------------------------------------


def bind(
    run: Run, plan: Plan, name: str, index: int | None, args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> Call:
    """Make the record of a new call; its arguments have been checked against the signature."""
    call = Call(run, plan, name, index, args, kwargs)
    run.active[call] = None
    if run.memory is None:
        run.append(ev.CallScheduled(at=time.time(), call=name, step=plan.name))
    return call


# -- 2. await inputs ----------------------------------------------------------------------


def await_inputs(call: Call, after: Iterable[StepFuture[Any]] = ()) -> None:
    """Note who has to end before this call can start; start it if that is nobody."""
    for value in call.args:
        if type(value) not in PLAIN:
            _await_value(call, value)
    if call.kwargs:
        for value in call.kwargs.values():
            if type(value) not in PLAIN:
                _await_value(call, value)
    for future in after:
        _await_value(call, future)
    if call.state is CallState.WAITING and not call.pending:
        ready(call)


def _await_value(call: Call, value: Any) -> None:
    for reference in find((value,), References):
        if reference._run_of() is not call.run if isinstance(reference, MapFuture) else reference._call.run is not call.run:
            raise ForeignFuture(
                f"call {call.name} got {reference!r}, which belongs to another run",
                fix="await it where it belongs and pass its value, or its .artifact",
            )
        if isinstance(reference, MapFuture):
            reference._feed(call)
        else:
            _depend(call, reference._call)


def _depend(call: Call, producer: Call) -> None:
    if producer.state is CallState.ENDED:
        if producer.outcome not in ("succeeded", "cached"):
            input_ended(call, producer)
        return
    call.pending += 1
    if producer.dependents is None:
        producer.dependents = []
    producer.dependents.append(call)


def input_ended(call: Call, producer: Call) -> None:
    """An input has its outcome: the call comes closer to its start, or is skipped."""
    if call.state is not CallState.WAITING:
        return
    if producer.outcome in ("succeeded", "cached"):
        call.pending -= 1
        if not call.pending:
            ready(call)
    else:
        skip(call, producer)


def ready(call: Call) -> None:
    """All inputs are there: stand in line for a slot."""
    call.move(Trigger.INPUTS_READY)
    call.run.engine.scheduler.push(call)


def start(call: Call) -> None:
    """A slot is free: live."""
    call.move(Trigger.ADMITTED)
    context = call.context or contextvars.copy_context()
    call.task = call.run.loop.create_task(live(call), context=context)


# -- the walk -----------------------------------------------------------------------------


async def live(call: Call) -> None:
    """From the free slot to the recorded outcome."""
    active_run.set(None)
    active_call.set(call)
    task = call.task
    try:
        values = inputs.plain(call) or await inputs.load(call)
        while not await look_up(call, values):
            value = await perform(call, values)
            if task is not call.task:
                return
            await store(call, value)
            record(call)
            return
    except BaseException as error:
        if not call.is_settled and task is call.task:
            fail(call, error)
        if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
            raise
    finally:
        if task is call.task:
            call.run.engine.scheduler.release(call)


# -- 3. key -------------------------------------------------------------------------------


def key(call: Call, values: inputs.Values) -> None:
    """Say what the call is: ``identity`` (step and inputs), and the cache key, if it has one."""
    plan = call.plan
    digests = values.digests
    call.inputs = values.inputs
    call.identity = blake3(plan.identity + b"".join(digests.values())).digest()
    if plan.policy is not None and not values.unhashable and not call.run.debug:
        call.key = plan.cache_key(call.identity, digests, lambda: values.bound)


# -- 4. look up ---------------------------------------------------------------------------


async def look_up(call: Call, values: inputs.Values) -> bool:
    """Take the outcome from this run's own past, from an equal call in flight, or from the cache."""
    key(call, values)
    run = call.run
    if run.memory is not None and await _take_recorded(call):
        return True
    if not call.key:
        return False
    flights = run.engine.flights
    while (leader := flights.get(call.key)) is not None and leader is not call:
        if await _follow(call, leader):
            return True
    rows = run.engine.lookup.cached(call.key)
    if rows and not _is_expired(call, rows) and await _take_rows(call, rows):
        _record_hit(call, rows)
        return True
    flights[call.key] = call
    return False


async def _take_recorded(call: Call) -> bool:
    memory = call.run.memory
    assert memory is not None
    while (known := memory.take(call.identity, call.plan.code)) is not None:
        rows = call.run.engine.lookup.artifacts(known.artifacts)
        if known.status == "skipped" or (len(rows) == len(known.artifacts) and await _take_rows(call, rows)):
            _record_reuse(call, known)
            return True
    again = memory.reopen(call.identity)
    if again is not None:
        call.run.rename(call, again.name)
        call.attempt = again.attempts
    else:
        call.run.rename_if_taken(call)
    call.run.append(ev.CallScheduled(at=time.time(), call=call.name, step=call.plan.name))
    return False


async def _follow(call: Call, leader: Call) -> bool:
    """Wait for an equal call; True if it gave an outcome."""
    call.move(Trigger.FOLLOW)
    run = call.run
    run.engine.scheduler.release(call)
    flight: asyncio.Future[None] = run.loop.create_future()
    run.engine.followers.setdefault(call.key, []).append(flight)
    await flight
    if leader.outcome in ("succeeded", "cached") and leader.rows and not leader.future.cancelled():
        rows = leader.rows
        if await _take_rows(call, rows):
            _record_hit(call, rows)
            return True
    call.move(Trigger.HAND_OVER)
    await run.engine.scheduler.admit(call)
    call.move(Trigger.ADMITTED)
    return False


async def _take_rows(call: Call, rows: list[ArtifactRow]) -> bool:
    """Load stored outputs as the call's value; False if they are gone or damaged, or not for this process."""
    vault = call.run.engine.vault
    try:
        if all(vault.is_quick(row) for row in rows):
            values = [vault.value(row) for row in rows]
        else:
            values = [await call.run.engine.io.run(vault.value, row) for row in rows]
    except (ArtifactDamaged, DecodeError) as error:
        for row in rows:
            call.run.append(ev.DamageFound(at=time.time(), call=call.name, step=call.plan.name, artifact=row.id, reason=str(error)))
        return False
    call.rows, call.shape = rows, _shape_of(rows)
    call.value = call.plan.join(values, call.shape, call.plan.output_names)
    return True


def _is_expired(call: Call, rows: list[ArtifactRow]) -> bool:
    policy = call.plan.policy
    limit = policy.expires_after if policy is not None else None
    return limit is not None and time.time() - rows[0].body.at >= limit


# -- 5. perform ---------------------------------------------------------------------------


async def perform(call: Call, values: inputs.Values) -> Any:
    """Make attempts until one returns or the retry policy has enough."""
    run, plan = call.run, call.plan
    call.started_at, call.started_clock = time.time(), time.perf_counter()
    identity, code, given = call.identity, plan.code, call.inputs
    while True:
        call.attempt += 1
        call.budget += 1
        call.move(Trigger.START)
        run.performed += 1
        call.attempt_at = time.time()
        run.append(
            ev.CallStarted(
                at=call.attempt_at, call=call.name, step=plan.name, attempt=call.attempt,
                identity=identity, code=code, inputs=given, key=call.key,
            )
        )  # fmt: skip
        failpoints.hit("started")
        identity, code, given = b"", b"", ()
        try:
            value = await inline.attempt(call, values)
            failpoints.hit("performed")
            return value
        except Exception as error:
            delay = _delay(call, error)
            if delay is None:
                raise
            failure = failure_of(error)
        run.append(
            ev.CallRetrying(
                at=time.time(), call=call.name, step=plan.name, attempt=call.attempt, failure=failure, delay_s=delay
            )
        )
        failpoints.hit("retrying")
        call.move(Trigger.RETRY)
        run.engine.scheduler.release(call)
        await asyncio.sleep(delay)
        await run.engine.scheduler.admit(call)
        call.move(Trigger.ADMITTED)


def _delay(call: Call, error: BaseException) -> float | None:
    if call.run.debug or call.ending not in (None, "timeout"):
        return None
    elapsed = time.perf_counter() - call.started_clock
    call.ending = None
    return retry.next_attempt(call.plan.retry, error, call.budget, call.attempt + 1, elapsed, random.random())


# -- 6. store -----------------------------------------------------------------------------


async def store(call: Call, value: Any) -> None:
    """Encode the outputs; what is large goes to the artifact store, durably, before anything names it."""
    call.value = value
    plan = call.plan
    values, call.shape = plan.split(value)
    if not plan.persist:
        return
    failpoints.hit("encoding")
    engine = call.run.engine
    seconds = time.perf_counter() - call.started_clock
    rows: list[ArtifactRow] = []
    for name, item in zip(plan.output_names, values, strict=True):
        encoded = inputs.encode_quickly(engine, item)
        if encoded is None:
            encoded = await engine.io.run(inputs.encode, engine, item)
        body = Body(
            encoded.digest, encoded.checksum, len(encoded.data), encoded.codec, encoded.type_name,
            call.run.id, call.name, name, time.time(), seconds, step=plan.name, shape=call.shape,
        )  # fmt: skip
        if body.size <= INLINE_BYTES:
            body.data = bytes(encoded.data)
        else:
            body.location = await engine.io.run(engine.vault.blobs.put, encoded.data, encoded.checksum)
            inputs.freeze(item)
        rows.append(ArtifactRow(name, body))
    call.rows = rows


# -- 7. record ----------------------------------------------------------------------------


def record(call: Call) -> None:
    """Append the success; its artifacts and its cache entry share the commit."""
    if call.is_settled:
        return
    run = call.run
    call.settle("succeeded")
    part = run.part()
    first = len(part.artifacts)
    rows = call.rows or ()
    part.artifacts.extend(rows)
    if call.key and rows:
        part.cache.append((call.key, first, len(rows)))
    run.append(
        ev.CallCompleted(
            at=time.time(), call=call.name, step=call.plan.name, attempt=call.attempt,
            artifacts=tuple(range(first, first + len(rows))), duration_s=time.perf_counter() - call.started_clock,
            outputs=call.plan.outputs,
        )
    )  # fmt: skip
    _wait_for_commit(call, part)


def _record_hit(call: Call, rows: list[ArtifactRow]) -> None:
    run = call.run
    call.saved_s = rows[0].body.duration_s
    call.settle("cached")
    if run.memory is not None:
        run.append(ev.CallScheduled(at=time.time(), call=call.name, step=call.plan.name))
    part = run.append(
        ev.CallCached(
            at=time.time(), call=call.name, step=call.plan.name, identity=call.identity, code=call.plan.code,
            artifacts=tuple(row.id for row in rows), saved_s=call.saved_s, inputs=call.inputs, outputs=call.plan.outputs,
        )
    )  # fmt: skip
    _wait_for_commit(call, part)


def _record_reuse(call: Call, known: CallRecord) -> None:
    run = call.run
    run.rename(call, known.name)
    run.reused += 1
    call.reused = True
    call.attempt = known.attempts
    call.settle(known.status)
    part = run.append(
        ev.CallReused(at=time.time(), call=call.name, step=call.plan.name, stale=known.code != call.plan.code)
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
    error.add_note(f"in call {call.name} of run {run.id}, attempt {call.attempt}")
    call.settle("failed")
    duration = time.perf_counter() - call.started_clock if call.attempt else 0.0
    event = ev.CallFailed(
        at=time.time(), call=call.name, step=call.plan.name, attempt=call.attempt, failure=failure_of(error), duration_s=duration
    )
    part = run.append(event)
    run.failed.append(call)
    _wait_for_commit(call, part)


def skip(call: Call, producer: Call) -> None:
    """An input has failed: the call is not performed."""
    run = call.run
    call.settle("skipped")
    call.roots = producer.roots or [producer]
    call.error = skipped_because(call, call.roots[0])
    run.skipped.append(call)
    if run.memory is not None:
        run.append(ev.CallScheduled(at=time.time(), call=call.name, step=call.plan.name))
    part = run.append(
        ev.CallSkipped(
            at=time.time(), call=call.name, step=call.plan.name, reason="upstream", upstream=call.roots[0].name
        )
    )
    _wait_for_commit(call, part)


def _record_end(call: Call, error: BaseException) -> None:
    """The call was told to stop: by a caller, a failure elsewhere, or the end of the engine."""
    run = call.run
    call.error = error
    kind = ev.CallInterrupted if run.is_ending_early or call.ending == "interrupt" else ev.CallCancelled
    call.settle("interrupted" if kind is ev.CallInterrupted else "cancelled")
    if run.memory is not None:
        run.append(ev.CallScheduled(at=time.time(), call=call.name, step=call.plan.name))
    part = run.append(kind(at=time.time(), call=call.name, step=call.plan.name, attempt=call.attempt))
    _wait_for_commit(call, part)


def _wait_for_commit(call: Call, part: Part) -> None:
    """Resolve when the log has it; in the weaker durabilities, at once."""
    part.waiters.append(call)
    engine = call.run.engine
    engine.log.kick()
    if not engine.is_strict and engine.log.unavailable is None:
        publish(call, None)


# -- 8. resolve ---------------------------------------------------------------------------


def resolve(call: Call, error: BaseException | None) -> None:
    """The commit has happened, or could not: tell everybody who waits."""
    engine = call.run.engine
    if call.key and engine.flights.get(call.key) is call:
        del engine.flights[call.key]
        for flight in engine.followers.pop(call.key, ()):
            if not flight.done():
                flight.set_result(None)
    if call.state is not CallState.ENDED:
        publish(call, error)
    call.key = b""


def publish(call: Call, error: BaseException | None) -> None:
    """Give the outcome to the futures and to the calls that wait for this one."""
    if error is not None:
        _lose(call, error)
    call.move(Trigger.COMMITTED)
    run = call.run
    for future in call.futures():
        if not future.done():
            _fill(call, future)
    dependents, call.dependents = call.dependents, None
    if dependents:
        for dependent in dependents:
            input_ended(dependent, call)
    call.args, call.kwargs, call.context, call.task, call.value = (), None, None, None, None
    run.call_ended(call)


def _lose(call: Call, error: BaseException) -> None:
    """The outcome could not be committed, so it must not look like one."""
    if isinstance(error, LogUnavailable):
        own = error
        error = LogUnavailable(own.what, why=own.why, fix=own.fix, path=getattr(own, "path", ""))
        error.__cause__ = call.error or own.__cause__
    call.error = error
    call.rows = None
    if call.outcome != "failed":
        call._status = "failed"
        call.run.failed.append(call)


def _fill(call: Call, future: StepFuture[Any]) -> None:
    match call.outcome:
        case "succeeded" | "cached":
            value = call.value
            if future._output and call.plan.outputs:
                value = call.plan.split(value)[0][call.plan.output_names.index(future._output)]
            asyncio.Future.set_result(future, value)
        case "skipped" if call.error is None:
            asyncio.Future.set_result(future, None)
        case "cancelled":
            asyncio.Future.cancel(future)
        case "interrupted":
            error = RunInterrupted(
                f"call {call.name} was cut off when its run was interrupted", fix="resume the run", run_id=call.run.id
            )
            asyncio.Future.set_exception(future, error)
        case _:
            assert call.error is not None
            asyncio.Future.set_exception(future, call.error)


# -- from outside -------------------------------------------------------------------------


def stop(call: Call, ending: Ending) -> bool:
    """End a call that has no outcome yet; False if it has one."""
    if call.is_settled:
        return False
    if call.ending is None or ending == "interrupt":
        call.ending = ending
    if call.task is None:
        call.run.engine.scheduler.remove(call)
        fail(call, asyncio.CancelledError())
        return True
    call.task.cancel()
    if call.state is CallState.PERFORMING and call.plan.is_async:
        call.run.loop.call_later(EDGES_S[0], _press, call, call.task, 1)
    return True


def _press(call: Call, task: asyncio.Task[None], edge: int) -> None:
    """The body swallowed its cancellation: ask again, and at last leave it behind."""
    if call.is_settled or call.task is not task:
        return
    task.cancel()
    if edge < len(EDGES_S):
        call.run.loop.call_later(EDGES_S[edge] - EDGES_S[edge - 1], _press, call, task, edge + 1)
        return
    call.run.engine.leave_behind(task)
    call.run.append(ev.ThreadAbandoned(at=time.time(), call=call.name, step=call.plan.name, attempt=call.attempt))
    call.task = None
    call.run.engine.scheduler.release(call)
    fail(call, asyncio.CancelledError())


def _shape_of(rows: list[ArtifactRow]) -> str:
    return rows[0].body.shape if rows else ""

