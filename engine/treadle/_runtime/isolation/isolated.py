"""One attempt of a call somewhere else: its inputs as they are stored, sent; its outputs as they are stored, taken.

Knows payloads and executors; how a call comes here and what becomes of its outcome is ``lifecycle``'s.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from treadle._core.binding import PLAIN, find, replace
from treadle._runtime import LOADED_AT
from treadle._runtime.calls import facts, inline, inputs
from treadle._runtime.calls.call import Call, StepFuture
from treadle._runtime.calls.inputs import Stand_ins, Values
from treadle._runtime.current import Current
from treadle._runtime.isolation import distant, nested, reaching, remote_errors, strangers
from treadle._runtime.isolation.bridging import Bridge, Lent, UnderWay
from treadle._runtime.isolation.executors import Placed
from treadle._runtime.isolation.sinks import CallSink
from treadle._runtime.maps.mapping import MapFuture
from treadle._runtime.maps.unmapped import Unmapped
from treadle._runtime.resources.usage import Meter
from treadle._runtime.views.artifact import Artifact
from treadle.contracts import INLINE_BYTES, Attempt, Needs, Output, Payload, Performed, Raised
from treadle.errors import EncodeError, ExecutorUnavailable, TreadleError, WorkerProtocolError, move
from treadle.events import Input
from treadle.storage import codecs, views
from treadle.storage.blob_checks import is_location, location_of
from treadle.storage.local_blobs import LocalBlobs
from treadle.storage.rows import ArtifactRow, Body

if TYPE_CHECKING:
    from treadle._runtime.code.identity import Identities
    from treadle._runtime.engine import Engine
    from treadle._runtime.plan import Plan
    from treadle.contracts import Timer

MOST_INLINE_BYTES = 4 * 1024 * 1024
"""Of all inputs of one call together; what is more lies in the store, however small."""
ENDING_S = 10.0
"""How long an executor may take to end an attempt that has timed out; the call goes on without it then."""
SHAPES = ("", "tuple", "list", "dict")


class Sent(Values, gc=False):
    """The arguments of a call as they travel."""

    payloads: tuple[Payload, ...] = ()
    """First those given by position, then those given by name."""
    linked: tuple[str, ...] = ()
    lent: Lent | None = None
    under_way: UnderWay | None = None


# -- inputs -------------------------------------------------------------------------------


def plain(call: Call) -> Values | None:
    """The inputs, if they are small and few; ``None`` if something has to be put somewhere, or is wanted here, too."""
    plan = call.plan
    if _is_wanted_here(plan):
        return None
    room, linked = MOST_INLINE_BYTES, list[str]()
    given: list[Input] = []
    payloads: list[Payload] = []
    for label, value in inputs.labelled(plan.binder, call.args, call.kwargs):
        producer = ""
        if type(value) in PLAIN:
            if not inputs.is_quick(value):
                return None
            encoded = codecs.encode(value)
            payload = Payload(encoded.codec, encoded.digest, encoded.checksum, len(encoded.data), bytes(encoded.data))
        elif isinstance(value, StepFuture) and (row := _row_of(value)) is not None:
            producer, body = inputs.origin(value), row.body
            payload = Payload(body.codec, body.digest, body.checksum, body.size, body.data)
            linked.append(label)
        else:
            return None
        room -= payload.size
        if payload.data is None or payload.size > INLINE_BYTES or room < 0:
            return None
        payloads.append(payload)
        given.append(Input(label, payload.digest, producer))
    return _as_sent(Sent(), plan, payloads, given, linked)


def _is_wanted_here(plan: Plan) -> bool:
    """Whether something in this process wants to see the inputs."""
    return (
        bool(plan.conditions) or plan.fallback is not None or (plan.policy is not None and plan.policy.key is not None)
    )


def _as_sent(sent: Sent, plan: Plan, payloads: list[Payload], given: list[Input], linked: list[str]) -> Sent:
    sent.payloads, sent.linked, sent.inputs = tuple(payloads), tuple(linked), tuple(given)
    sent.digests = inputs.in_order(plan, {item.name: item.digest for item in given})
    return sent


async def load(call: Call) -> Values:
    """The inputs as they are stored; what is not stored yet is encoded, and what is large is put where workers see it.

    Raises:
        EncodeError: an argument cannot be sent; it names the parameter.
    """
    plan, sent = call.plan, Sent()
    if _is_wanted_here(plan):
        here = await inputs.load(call)
        sent.args, sent.kwargs, sent.bound = here.args, here.kwargs, here.bound
    lent: list[str] = []
    given: list[Input] = []
    linked: list[str] = []
    payloads: list[Payload] = []
    room = MOST_INLINE_BYTES
    for label, value in inputs.labelled(plan.binder, call.args, call.kwargs):
        payload, producer, artifact = await _payload(call, label, value, room, lent)
        room -= len(payload.data or b"")
        payloads.append(payload)
        given.append(Input(label, payload.digest, producer, artifact))
        if producer or artifact:
            linked.append(label)
    if lent:
        bridge = reaching.bridge(call.run.engine, plan.executor)
        assert bridge is not None
        sent.lent = Lent(bridge, tuple(lent))
    return _as_sent(sent, plan, payloads, given, linked)


async def _payload(call: Call, label: str, value: Any, room: int, lent: list[str]) -> tuple[Payload, str, int]:
    """One argument, the call that it comes from, and the artifact that it is."""
    engine = call.run.engine
    if isinstance(value, StepFuture):
        row, producer = _row_of(value), inputs.origin(value)
        if row is not None:
            return await _stored(call, row, room, lent), producer, 0
    elif isinstance(value, Artifact):
        return await _stored(call, value._row, room, lent), "", value.id
    producer, content = "", value
    if isinstance(value, Unmapped):
        content = value.value
        if isinstance(content, (StepFuture, Artifact)):
            return await _payload(call, label, content, room, lent)
    if type(content) not in PLAIN:
        producer = ",".join(map(inputs.origin, find((content,), (StepFuture, MapFuture))))
        if nested.holds_any(content) and (payload := await _nested(call, label, content, room, lent)) is not None:
            return payload, producer, 0
    if type(content) in PLAIN or inputs.is_quick_argument(call, content):
        encoded = _encoded(call, label, content)
    else:
        encoded = await engine.io.run(_encoded, call, label, content)
    return await _sent(call, encoded, room, lent), producer, 0


async def _nested(call: Call, label: str, content: Any, room: int, lent: list[str]) -> Payload | None:
    """A container of large stored values; ``None`` if its digest takes those values."""
    engine = call.run.engine
    content = await engine.io.run(nested.held, content)
    digest = await engine.io.run(nested.digest, engine, content)
    if digest is None:
        return None
    skeleton, rows = nested.skeleton(content)
    parts = tuple([await _stored(call, row, 0, lent) for row in rows])
    payload = await _sent(call, await engine.io.run(_encoded, call, label, skeleton), room, lent)
    return msgspec.structs.replace(payload, digest=digest, parts=parts)


def _row_of(future: StepFuture[Any]) -> ArtifactRow | None:
    """Where a producer's output is stored, if it is one output and stored."""
    producer = future._call
    rows = producer.rows
    if rows is None or (len(rows) > 1 and not future._output):
        return None
    return rows[producer.plan.output_names.index(future._output) if future._output else 0]


async def _stored(call: Call, row: ArtifactRow, room: int, lent: list[str]) -> Payload:
    engine, body = call.run.engine, row.body
    if body.data is not None and body.size <= room:
        return Payload(body.codec, body.digest, body.checksum, body.size, body.data)
    if body.data is None and distant.is_in_store(row) and reaching.bridge(engine, call.plan.executor) is None:
        return Payload(body.codec, body.digest, body.checksum, body.size, None, body.location)
    if distant.is_in_store(row) or body.data is not None:
        data = await engine.io.run(engine.vault.data, row)
        return await _placed(call, Payload(body.codec, body.digest, body.checksum, body.size), data, lent)
    value = await engine.io.run(engine.vault.value, row)  # it lies at a route's place
    encoded = await engine.io.run(inputs.encode, engine, value)
    return await _sent(call, encoded, room, lent)


def _encoded(call: Call, label: str, content: Any) -> codecs.Encoded:
    if type(content) not in PLAIN and next(find((content,), Stand_ins), None) is not None:
        content = replace(content, Stand_ins, lambda item: inputs.content_of(item, None))
    engine = call.run.engine
    try:
        return inputs.encode(engine, content)
    except EncodeError as error:
        revealed = _revealed(engine, content)
        if revealed is not None:
            return revealed
        raise EncodeError(
            f"argument {label} of step {call.plan.name} cannot be sent to another process: {error.what}",
            why=error.why, fix="pass plain data, or make it in the step", path=error.path, value=error.value,
        ) from error  # fmt: skip


class Revealed(codecs.Encoded, frozen=True, gc=False):
    """Bytes with a secret among them: they go to the worker in the message, and nowhere else."""


def _revealed(engine: Engine, content: Any) -> Revealed | None:
    digest, pickles = engine.identities.code_digest, engine.vault.allow_pickle
    try:
        encoded = codecs.encode(content, code_digest=digest, allow_pickle=pickles, reveals=True)
    except EncodeError:
        return None
    return Revealed(*msgspec.structs.astuple(encoded))


async def _sent(call: Call, encoded: codecs.Encoded, room: int, lent: list[str]) -> Payload:
    size = len(encoded.data)
    if isinstance(encoded, Revealed) and size > min(INLINE_BYTES, room):
        raise EncodeError(
            f"an argument of step {call.plan.name} holds a Secret and {size:,} bytes, too many for a message",
            why="what is larger goes to the worker as a file, and a Secret is never written to one",
            fix="pass the secret as an argument of its own",
            path="value",
        )
    if size <= min(INLINE_BYTES, room):
        return Payload(encoded.codec, encoded.digest, encoded.checksum, size, bytes(encoded.data))
    payload = Payload(encoded.codec, encoded.digest, encoded.checksum, size)
    return await _placed(call, payload, encoded.data, lent)


async def _placed(call: Call, payload: Payload, data: bytes, lent: list[str]) -> Payload:
    """Put bytes where workers can read them."""
    engine = call.run.engine
    bridge = reaching.bridge(engine, call.plan.executor)
    if bridge is None:
        location: str = await engine.io.run(engine.vault.blobs.put, data, payload.checksum)
    else:
        location = await engine.io.run(bridge.lend, data, payload.checksum)
        lent.append(location)
    return Payload(payload.codec, payload.digest, payload.checksum, payload.size, None, location)


# -- the attempt --------------------------------------------------------------------------


def attempt(call: Call, values: Values) -> Awaitable[Any]:
    """Have the step's function called once, elsewhere; gives ``Performed``, which ``keep`` makes the call's value.

    Raises (when awaited):
        StepTimeout: the attempt took longer than the step's timeout; nothing of it runs any more.
        StepCrashed: its process died.
        BaseException: whatever the body has raised.
    """
    assert isinstance(values, Sent)
    return _attempt(call, values)


async def _attempt(call: Call, values: Sent) -> Performed:
    plan, engine = call.plan, call.run.engine
    placed = plan.executor
    assert placed is not None
    try:
        executor = await engine.executors.ready(placed)
    except TreadleError as error:  # whoever waits is given the same one
        own = _located(call, copy.copy(error))
        own.__dict__.pop("__notes__", None)
        raise own from error.__cause__
    bridge = reaching.bridge(engine, placed)
    if bridge is not None:
        values.under_way = UnderWay(bridge)
    request, sink = _request(call, values), CallSink(call)
    try:
        performing = executor.perform(request, sink)
        if not hasattr(performing, "__await__"):
            raise _no_outcome(executor, performing)
        if plan.timeout is None:
            outcome = await performing
        else:
            begun = sink.awaited() if placed.queues else None
            outcome = await _in_time(call, plan.timeout, performing, begun)
        if not isinstance(outcome, Performed | Raised):
            raise _no_outcome(executor, outcome)
    except TreadleError as error:
        _located(call, error)
        raise
    _note_usage(call, outcome)
    if isinstance(outcome, Raised):
        raise remote_errors.rebuilt(outcome)
    return outcome


def _no_outcome(executor: object, gave: object) -> ExecutorUnavailable:
    what = "None" if gave is None else type(gave).__name__
    return ExecutorUnavailable(
        f"{type(executor).__name__}.perform gave {what}, which is no outcome of an attempt",
        why="the engine awaits Performed or Raised",
        fix="make it `async def`, and return what treadle.worker.Worker().perform(attempt, sink) has returned",
    )


def _located(call: Call, error: TreadleError) -> TreadleError:
    """An error of the executor, which knows nothing of calls, with its place."""
    move(error, f"call {call.name} of run {call.run.id}, on executor {call.plan.runtime!r}")
    return error


async def _in_time(call: Call, timeout_s: float, performing: Any, begun: asyncio.Future[None] | None) -> Any:
    task: asyncio.Task[Any] = call.run.loop.create_task(performing)
    expired: asyncio.Future[None] = call.run.loop.create_future()
    timer: Timer | None = None
    try:
        if begun is not None:
            await asyncio.wait((task, begun), return_when=asyncio.FIRST_COMPLETED)
        timer = call.run.engine.clock.call_later(timeout_s, inline.ring, expired)
        await asyncio.wait((task, expired), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await _ended(task)
            raise inline.timed_out(call)
    except asyncio.CancelledError:
        await _ended(task)
        raise
    finally:
        if timer is not None:
            timer.cancel()
    return task.result()


async def _ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait((task,), timeout=ENDING_S)
    if task.done() and not task.cancelled():
        task.exception()


def _request(call: Call, values: Sent) -> Attempt:
    plan, engine = call.plan, call.run.engine
    module, qualname, main = plan.target
    count = len(call.args)
    labels = tuple(item.name for item in values.inputs)
    store, tmp = reaching.places(engine, plan.executor)
    return Attempt(
        call.run.id, call.name, plan.name, call.attempt, Current(call).token, module, qualname, main, plan.code,
        values.payloads[:count], dict(zip(call.kwargs or (), values.payloads[count:], strict=True)),
        labels, values.linked, plan.outputs, store, tmp, call.attempt_at, plan.timeout, plan.needs,
        f"{call.run.id}/{plan.worker_group}" if plan.worker_group else "", engine.vault.allow_pickle,
        source=plan.source, loaded_at=LOADED_AT,
    )  # fmt: skip


def needs_of(resources: Any) -> Needs:
    """A step's resources as they travel."""
    if resources is None:
        return Needs()
    return Needs(resources.cpu, resources.memory, resources.gpu_count, resources.gpu_type)


def _note_usage(call: Call, outcome: Performed | Raised) -> None:
    meter = call.meter = call.meter or Meter()
    if outcome.cpu_s is not None:
        meter.cpu_s = (meter.cpu_s or 0.0) + outcome.cpu_s
    if outcome.peak_rss_bytes is not None:
        meter.peak_rss_bytes = max(meter.peak_rss_bytes or 0, outcome.peak_rss_bytes)


# -- outputs ------------------------------------------------------------------------------


async def keep(call: Call, performed: Performed) -> Any:
    """Make what a worker has stored the call's outputs; gives the value if the engine has to store it itself.

    Raises:
        WorkerProtocolError: the worker says what cannot be.
        ArtifactDamaged: it names what is not in the store.
    """
    bridge = reaching.bridge(call.run.engine, call.plan.executor)
    if bridge is None:
        return await _keep(call, performed)
    payloads = [output.payload for output in performed.outputs]
    locations = tuple([item.location for item in payloads if item.data is None and is_location(item.location)])
    bridge.hold(locations)
    try:
        return await _keep(call, performed)
    finally:
        bridge.give_back(locations)


async def _keep(call: Call, performed: Performed) -> Any:
    plan, engine = call.plan, call.run.engine
    outputs = performed.outputs
    if len(outputs) != len(plan.output_names) or performed.shape.partition(":")[0] not in SHAPES:
        raise WorkerProtocolError(
            f"a worker gave {len(outputs)} outputs for step {plan.name}",
            why=f"it has {len(plan.output_names)}",
            fix="have the same release of treadle, and the same code, where the worker runs",
        )
    for output in outputs:
        await _check(call, output)
    trusted = _is_trusted(call)
    if engine.routes is not None or not plan.persist:
        values = [await engine.io.run(_value, call, output.payload, trusted) for output in outputs]
        return plan.join(values, performed.shape, plan.output_names, trusted=trusted)
    if trusted:
        call.shape = performed.shape
        seconds = call.run.ticks() - call.started_clock
        pairs = zip(plan.output_names, outputs, strict=True)
        call.rows = rows = tuple([await _row(call, name, output, seconds) for name, output in pairs])
    else:
        known = await strangers.unopened(call, reaching.store(engine, plan.executor), performed)
        values = [
            what.sample if what is not None else await engine.io.run(_value, call, output.payload, trusted)
            for what, output in zip(known, outputs, strict=True)
        ]
        if not any(known):
            return plan.join(values, performed.shape, plan.output_names)
        call.rows = rows = tuple(await strangers.rows(call, known, values, performed))
        for what, output, row in zip(known, outputs, rows, strict=True):
            if what is not None:
                row.body.location = await _final_location(call, output.payload)
    call.value = value_of(call, rows)
    if type(call.value) is distant.Unloaded and distant.is_awaited(call.futures()):
        call.value = await call.value.load()
    return None


async def _check(call: Call, output: Output) -> None:
    engine, payload = call.run.engine, output.payload
    is_sound = len(payload.digest) == 32 and len(payload.checksum) == 32
    if is_sound and payload.data is not None:
        is_sound = len(payload.data) == payload.size and codecs.checksum(payload.data) == payload.checksum
    elif is_sound:
        is_sound = payload.location == location_of(payload.checksum)
        store = reaching.store(engine, call.plan.executor)
        if isinstance(store, LocalBlobs):
            is_sound = is_sound and store.exists(payload.location, payload.size)
        else:
            is_sound = is_sound and await engine.io.run(store.exists, payload.location, payload.size)
    try:
        facts.shown(output.metadata)
    except Exception:
        is_sound = False
    if not is_sound:
        raise WorkerProtocolError(
            f"a worker gave an output of type {output.type_name[:100]!r} that is not what it says",
            why="its bytes do not have the size and checksum that it names, or lie outside of the store",
            fix="see that nothing else writes into the artifact store, and whose worker it is",
        )


def _is_trusted(call: Call) -> bool:
    placed = call.plan.executor
    return call.run.engine.trust_workers or (placed is not None and placed.executor.trusted)


def _value(call: Call, payload: Payload, trusted: bool) -> Any:
    engine, placed = call.run.engine, call.plan.executor
    allowed = engine.vault.allow_pickle
    if payload.data is not None:
        return codecs.decode(payload.codec, payload.data, trusted=trusted, allow_pickle=allowed)
    bridge = reaching.bridge(engine, placed)
    if bridge is None:
        return views.load(engine.vault.blobs, payload, trusted=trusted, allow_pickle=allowed)
    data = bridge.take(payload.location, payload.size, payload.checksum)
    return codecs.decode(payload.codec, data, trusted=trusted, allow_pickle=allowed)


async def _row(call: Call, name: str, output: Output, seconds: float) -> ArtifactRow:
    payload = output.payload
    body = Body(
        payload.digest, payload.checksum, payload.size, payload.codec, output.type_name,
        call.run.id, call.name, name, call.run.now(), seconds, data=payload.data, location=payload.location,
        step=call.plan.name, metadata=output.metadata, shape=call.shape,
    )  # fmt: skip
    if payload.data is None:
        body.location = await _final_location(call, payload)
    return ArtifactRow(name, body, alias=output.alias)


async def _final_location(call: Call, payload: Payload) -> str:
    bridge = reaching.bridge(call.run.engine, call.plan.executor)
    return payload.location if bridge is None else await call.run.engine.io.run(_over, bridge, call, payload)


def _over(bridge: Bridge, call: Call, payload: Payload) -> str:
    data = bridge.take(payload.location, payload.size, payload.checksum)
    return call.run.engine.vault.blobs.put(data, payload.checksum)


def value_of(call: Call, rows: Sequence[ArtifactRow]) -> Any:
    """The value of stored outputs if all are small, else what stands for it."""
    engine, plan = call.run.engine, call.plan
    if all(row.body.data is not None for row in rows):
        return plan.join([engine.vault.value(row) for row in rows], call.shape, plan.output_names)
    return distant.Unloaded(rows, call.shape, plan, engine.vault, engine.io)


def place(placed: Placed, plan: Plan, target: tuple[str, str, str], identities: Identities) -> None:
    """Have a plan performed by an executor."""
    plan.executor, plan.target = placed, target
    depends = plan.policy is not None and plan.policy.depends_on  # of which a worker knows nothing
    plan.source = identities.of(plan.step, plan.output_names, None).code if depends else plan.code
    plan.needs = needs_of(plan.resources)
    plan.worker_group, plan.execution_group = plan.execution_group or "", None
    plan.attempt, plan.future_type = attempt, distant.DistantFuture
