"""The life of one call, in eight verbs.

    bind → await inputs → key → look up → perform → store → record → resolve

``bind`` and ``await_inputs`` happen when a call is submitted, for nothing but a record
and a future. When its inputs are there and a slot is free, ``start`` makes the ``key``
and does the ``look up`` for a batch of calls at once. What has to be performed gets a
task, in which ``live`` walks on to ``record``; ``resolve`` follows when the log has it.
What ends a call from outside, at any point of this, is in ``stopping``.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from treadle import events as ev
from treadle._core import retry
from treadle._core.machine import CallState, Trigger
from treadle._core.outputs import is_carried
from treadle._runtime.calls import groups, inline, inputs, recall, validation
from treadle._runtime.calls.call import Call, StepFuture
from treadle._runtime.calls.failures import failure_of
from treadle._runtime.calls.recording import add_root, fail, leave_out, record, skip, skip_without
from treadle._runtime.calls.references import Reference
from treadle._runtime.context import active_call
from treadle._runtime.guards import absence, breakers, handling
from treadle._runtime.isolation import isolated
from treadle._runtime.isolation.distant import part_of
from treadle._runtime.maps.mapping import MapFuture
from treadle._runtime.plan import Plan
from treadle._runtime.resources import routes
from treadle.contracts import Performed
from treadle.errors import LogUnavailable, RunInterrupted, StepCrashed
from treadle.storage import failpoints
from treadle.storage.log import again
from treadle.storage.rows import ArtifactRow

if TYPE_CHECKING:
    from treadle._runtime.run import Run

MOST_CRASHES = 3
"""A call whose process died so often is the cause of it."""


# -- 1. bind ------------------------------------------------------------------------------


def bind(
    run: Run, plan: Plan, name: str, index: int | None, args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> Call:
    """Make the record of a new call; its arguments have been checked against the signature."""
    call = Call(run, plan, name, index, args, kwargs)
    run.active[call] = None
    run.submitted += 1
    call.order = run.submitted
    if run.memory is None:
        run.append(ev.CallScheduled(at=run.now(), call=name, step=plan.name))
        if plan.notes is not None:
            run.append(plan.notes.of(call))
    return call


# -- 2. await inputs ----------------------------------------------------------------------


def await_inputs(call: Call, awaited: Sequence[Reference] = ()) -> None:
    """Note who has to end before this call can start; start it if that is nobody."""
    for reference in awaited:
        if isinstance(reference, MapFuture):
            reference.feed(call)
        else:
            _depend(call, reference._call)
    if call.state is CallState.WAITING and not call.pending:
        ready(call)


def _depend(call: Call, producer: Call) -> None:
    if producer.state is CallState.ENDED:
        if producer.outcome not in ("succeeded", "cached"):
            if absence.is_left_out(producer):
                absence.take(call, producer)
            else:
                input_ended(call, producer)
        return
    call.pending += 1
    if producer.dependents is None:
        producer.dependents = []
    producer.dependents.append(call)


def input_ended(call: Call, producer: Call) -> None:
    """An input has its outcome: the call comes closer to its start, or is skipped."""
    if producer.outcome in ("succeeded", "cached"):
        input_came(call)
    elif absence.is_left_out(producer):
        if call.state is CallState.WAITING:
            absence.take(call, producer)
        input_came(call)
    elif call.state is CallState.WAITING:
        if call.run.ending is None or producer.outcome in ("failed", "skipped"):
            skip(call, producer)  # else it is cancelled like its input: the run ends
    elif call.roots is not None:
        add_root(call, producer)


def input_came(call: Call) -> None:
    """One input less to wait for."""
    if call.state is CallState.WAITING:
        call.pending -= 1
        if not call.pending:
            ready(call)


def input_missing(call: Call, group: str, error: BaseException) -> None:
    """A map that the call takes whole has fewer calls than items."""
    if call.state is CallState.WAITING:
        skip_without(call, group, error)


def ready(call: Call) -> None:
    """All inputs are there: stand in line for a slot."""
    if call.lacks:
        leave_out(call, call.lacks)
        return
    call.move(Trigger.INPUTS_READY)
    call.run.engine.scheduler.push(call)


def start(calls: list[Call]) -> None:
    """Slots are free: say what each call is, ask for all of them at once what is known, and perform the rest."""
    asked: list[tuple[Call, inputs.Values]] = []
    for call in calls:
        call.move(Trigger.ADMITTED)
        try:
            values = inputs.plain(call) if call.plan.executor is None else isolated.plain(call)
            if values is None:
                _give_task(call, None)
            else:
                key(call, values)
                if call.plan.conditions:
                    _give_task(call, values)
                else:
                    asked.append((call, values))
        except Exception as error:
            fail(call, error)
            call.run.engine.scheduler.release(call)
    for call, values in recall.look_up(asked):
        _give_task(call, values)


def _give_task(call: Call, values: inputs.Values | None) -> None:
    context = call.context if call.context is not None else contextvars.copy_context()
    if call.group is not None:
        context = context.copy()  # all calls of a map are submitted in one context
    call.task = call.run.loop.create_task(live(call, values), context=context)


# -- the walk -----------------------------------------------------------------------------


async def live(call: Call, values: inputs.Values | None) -> None:
    """The rest of the walk, for calls whose outcome was not known at once."""
    active_call.set(call)
    task = call.task
    try:
        if values is None:
            values = await (inputs.load(call) if call.plan.executor is None else isolated.load(call))
            key(call, values)
        if recall.has_questions(call) and await recall.look_up_patiently(call, values):
            return
        try:
            await perform(call, values)
        except (Exception, SystemExit) as error:
            if not handling.is_replaced(call, error):
                raise
            await stand_in(call, values, inline.contained(call, error))
        if task is call.task:
            record(call)
    except BaseException as error:
        if not call.is_settled and task is call.task:
            fail(call, inline.contained(call, error))
        if isinstance(error, GeneratorExit) or (isinstance(error, KeyboardInterrupt) and call.plan.is_on_loop):
            raise  # Ctrl-C comes to the loop's thread only
    finally:
        if call.plan.execution_group is None:
            call.run.engine.scheduler.release(call)
        else:
            groups.walked(call)
        if call.is_settled:
            call.put_down()


# -- 3. key, 4. look up: see ``recall`` for what can be known ------------------------------


def key(call: Call, values: inputs.Values) -> None:
    """Say what the call is: ``identity`` (step and inputs), and the cache key, if it has one."""
    plan = call.plan
    call.inputs = values.inputs
    call.identity = identity = blake3(plan.identity + b"".join(values.digests.values())).digest()
    if plan.policy is not None and not call.run.debug:
        call.key = plan.cache_key(identity, values)
    values.bound = values.digests = _NOTHING  # half a KB that each running call would keep
    if plan.executor is None:
        values.inputs = ()


_NOTHING: dict[str, Any] = {}


# -- 5. perform ---------------------------------------------------------------------------


async def perform(call: Call, values: inputs.Values) -> None:
    """Make attempts until one returns and its outputs are stored, or the retry policy has enough."""
    run, plan = call.run, call.plan
    if plan.pace is not None:
        await run.engine.scheduler.pace(call)
    call.started_clock = run.ticks()
    crashes, is_first = 0, True
    while True:
        ticket = 0 if plan.guard is None or run.debug else breakers.admit(call, plan.guard)
        begin_attempt(call, is_first=is_first)
        is_first = False
        try:
            value = await (
                plan.attempt(call, values)
                if plan.guard is None or not ticket
                else handling.guarded(call, plan.guard, ticket, values)
            )
            if call.ending is not None:
                raise asyncio.CancelledError  # the body swallowed it
            failpoints.hit("performed")
            if not (plan.keeps_simply and store_at_once(call, value)):
                await store(call, value)
            return
        except Exception as error:
            crashes += isinstance(error, StepCrashed)
            delay = _delay(call, error) if crashes < MOST_CRASHES else None
            if delay is None:
                raise
            failure = failure_of(error)
        finally:
            if run.engine.capture.streams:
                run.engine.capture.attempt_ended(call)
        await wait_to_retry(call, failure, delay)


def begin_attempt(call: Call, *, is_first: bool) -> None:
    """Say that a body is about to be called; the first time, also which call this is and what it takes."""
    run, plan = call.run, call.plan
    call.attempt += 1
    call.budget += 1
    call.move(Trigger.START)
    run.performed += 1
    call.attempt_at = run.now()
    run.append(
        ev.CallStarted(
            at=call.attempt_at, call=call.name, step=plan.name, attempt=call.attempt,
            identity=call.identity, code=plan.code, inputs=call.inputs, key=call.key,
        )
        if is_first
        else ev.CallStarted(
            at=call.attempt_at, call=call.name, step=plan.name, attempt=call.attempt, identity=b"", code=b"",
            key=call.key,
        )
    )  # fmt: skip
    if plan.fallback is None:
        call.inputs = ()  # said; a running call need not keep them
    failpoints.hit("started")


async def wait_to_retry(call: Call, failure: ev.Failure, delay: float) -> None:
    """Let go of the slot, and stand in line again when the delay is over."""
    run = call.run
    part = run.append(
        ev.CallRetrying(
            at=run.now(), call=call.name, step=call.plan.name, attempt=call.attempt, failure=failure, delay_s=delay
        )
    )
    committed = run.committed(part) if run.engine.is_strict else None
    failpoints.hit("retrying")
    call.move(Trigger.RETRY)
    run.engine.scheduler.release(call)
    await run.engine.clock.sleep(delay)
    if committed is not None:
        await committed  # so that a crash repeats this attempt at the most, and not those before
    await run.engine.scheduler.admit_attempt(call)
    call.move(Trigger.ADMITTED)


def _delay(call: Call, error: BaseException) -> float | None:
    if call.run.debug or call.ending not in (None, "timeout"):
        return None
    elapsed = call.run.ticks() - call.started_clock
    call.ending = None
    return retry.next_attempt(
        call.plan.retry, error, call.budget, call.attempt + 1, elapsed, call.run.engine.clock.random()
    )


async def stand_in(call: Call, values: inputs.Values, error: BaseException) -> None:
    """Have the step's fallback give the outcome, while its error is the context of what that may raise."""
    handling.tell_fallback(call, error)
    recall.hand_over(call)
    value = await handling.fall_back(call, values, error)
    if call.ending is not None:
        raise asyncio.CancelledError  # the fallback swallowed it
    await store(call, value)


# -- 6. store -----------------------------------------------------------------------------


def store_at_once(call: Call, value: Any) -> bool:
    """What ``store`` does with the most frequent output, one of plain data; False if this is another one."""
    run = call.run
    if run.engine.routes is not None:
        return False
    row = inputs.keep_plain_output(call, call.plan.output_names[0], value, run.ticks() - call.started_clock)
    if row is None:
        return False
    failpoints.hit("encoding")
    call.value, call.rows = value, (row,)
    return True


async def store(call: Call, value: Any) -> None:
    """Encode the outputs; what is large goes to the artifact store, durably, before anything names it."""
    plan = call.plan
    if plan.executor is not None and type(value) is Performed:
        value = await isolated.keep(call, value)
        if call.rows is not None:
            return
    call.value = value
    values, call.shape = plan.split(value)
    if call.shape and not is_carried(value, call.shape):
        call.value = plan.join(values, call.shape, plan.output_names)
    if plan.promised is not None:
        validation.check_outputs(plan, values)
    if not plan.persist:
        return
    failpoints.hit("encoding")
    engine = call.run.engine
    seconds = call.run.ticks() - call.started_clock
    rows: list[ArtifactRow] = []
    for name, item in zip(plan.output_names, values, strict=True):
        target = None if engine.routes is None else engine.routes.find(item)
        if target is None:
            rows.append(await inputs.keep(call, name, item, seconds))
        else:
            rows.append(await routes.keep(call, name, item, target, seconds))
    call.rows = tuple(rows)


# -- 7. record: see ``recording`` ---------------------------------------------------------


# -- 8. resolve ---------------------------------------------------------------------------


def resolve(call: Call, error: BaseException | None) -> None:
    """The commit has happened, or could not: tell everybody who waits."""
    if call.key:
        engine = call.run.engine
        if engine.flights.get(call.key) is call:
            del engine.flights[call.key]
            if engine.followers:
                for flight in engine.followers.pop(call.key, ()):
                    if not flight.done():
                        flight.set_result(True)
    if call.state is not CallState.ENDED:
        publish(call, error)
    call.key = b""


def publish(call: Call, error: BaseException | None) -> None:
    """Give the outcome to the futures and to the calls that wait for this one."""
    if error is not None:
        _lose(call, error)
    call.move(Trigger.COMMITTED)
    failpoints.hit("resolved")
    run = call.run
    if call.future is not None or call.derived:
        for future in call.futures():
            if not future.done():
                fill(call, future)
    heir = groups.ended(call) if call.plan.execution_group is not None else None
    dependents, call.dependents = call.dependents, None
    if heir is not None:
        _follow(heir, call)
    if dependents:
        for dependent in dependents:
            if dependent is not heir:
                input_ended(dependent, call)
    run.call_ended(call)


def _follow(call: Call, producer: Call) -> None:
    """The last input has come from a call of the same execution group: go on in its place."""
    call.pending -= 1
    call.move(Trigger.INPUTS_READY)
    call.run.engine.scheduler.hand_over(producer, call)


def _lose(call: Call, error: BaseException) -> None:
    """The outcome could not be committed, so it must not look like one."""
    own = call.error
    call.error = (
        again(error, own if isinstance(own, Exception) else None) if isinstance(error, LogUnavailable) else error
    )
    call.rows = None
    if call.outcome != "failed":
        call.outcome = "failed"
        call.run.failed.append(call)


def fill(call: Call, future: StepFuture[Any]) -> None:
    """Give the outcome to one future."""
    match call.outcome:
        case "succeeded" | "cached":
            value = call.value
            if future._output and call.plan.outputs:
                value = part_of(call.plan, value, future._output)
            asyncio.Future.set_result(future, value)
        case "skipped" if call.error is None:
            asyncio.Future.set_result(future, None)
        case "cancelled":
            asyncio.Future.cancel(future, future._cancel_message)
        case "interrupted":
            error = RunInterrupted(
                f"call {call.name} was cut off when its run was interrupted", fix="resume the run", run_id=call.run.id
            )
            asyncio.Future.set_exception(future, error)
            future._log_traceback = False  # the run says so once; 10,000 calls of a map need not
        case _:
            assert call.error is not None
            asyncio.Future.set_exception(future, call.error)
