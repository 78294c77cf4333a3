"""What is known of a call before it is performed: from its run's past, from an equal call in flight, from the cache.

Order: an outcome that this run has recorded, an equal call that is being performed
in this engine, the cache. Looking and claiming happen without an await between them,
so that of equal calls exactly one is performed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from treadle import events as ev
from treadle._core.machine import Trigger
from treadle._core.replay import CallRecord
from treadle._runtime.calls.call import Call
from treadle._runtime.calls.inputs import freeze
from treadle._runtime.calls.recording import introduce, leave_out, record_hit, record_reuse
from treadle._runtime.guards import handling
from treadle._runtime.isolation import distant
from treadle.errors import ArtifactDamaged, DecodeError, RouteNotFound
from treadle.storage.rows import ArtifactRow

if TYPE_CHECKING:
    from treadle._runtime.calls.inputs import Values


def look_up(asked: list[tuple[Call, Values]]) -> list[tuple[Call, Values]]:
    """Settle at once the calls whose outcome is known and small; gives the others, in order.

    One query answers for all: each query hands the interpreter lock to other threads and may have to wait for it.
    """
    engine = asked[0][0].run.engine if asked else None
    if engine is None:
        return []
    keys = [call.key for call, _ in asked if call.key and call.key not in engine.flights]
    cached = engine.lookup.cached(keys) if keys else {}
    left: list[tuple[Call, Values]] = []
    for call, values in asked:
        if call.run.memory is not None:
            left.append((call, values))
            continue
        rows = cached.get(call.key)
        if rows and not _is_expired(call, rows) and _is_quick(call, rows) and _decode(call, rows):
            record_hit(call, rows)
            engine.scheduler.release(call)
            continue
        if call.key and not rows:
            engine.flights.setdefault(call.key, call)
        left.append((call, values))
    return left


def has_questions(call: Call) -> bool:
    """Whether more could be known of a call than ``look_up`` has found out."""
    run = call.run
    if run.memory is not None or call.plan.conditions:
        return True
    return bool(call.key) and run.engine.flights.get(call.key) is not call


async def look_up_patiently(call: Call, values: Values) -> bool:
    """As ``look_up`` for one call, waiting where that is needed; True if the call has its outcome."""
    if call.run.memory is not None and await _take_recorded(call):
        return True
    if call.plan.conditions and not await handling.is_wanted(call, values):
        leave_out(call)
        return True
    if not call.key:
        return False
    engine = call.run.engine
    while (leader := engine.flights.get(call.key)) is not None and leader is not call:
        if await _follow(call, leader):
            return True
    if leader is call:
        return False
    rows = engine.lookup.cached([call.key]).get(call.key)
    engine.flights[call.key] = call
    if rows and not _is_expired(call, rows) and await _load(call, rows):
        record_hit(call, rows)
        return True
    return False


async def _take_recorded(call: Call) -> bool:
    """Take what this resumed run has recorded for a call of this identity, or go on where the recorded call stopped."""
    memory = call.run.memory
    assert memory is not None
    known = memory.take(call.identity, call.plan.code)
    if known is not None:
        call.name, call.is_taking = known.name, True
        if await _is_usable(call, known):
            record_reuse(call, known)
            return True
        call.is_taking = False
    introduce(call, known or memory.reopen(call.identity))
    return False


async def _is_usable(call: Call, known: CallRecord) -> bool:
    if known.status == "skipped":
        return True
    rows = call.run.engine.lookup.artifacts(known.artifacts)
    return len(rows) == len(known.artifacts) and await _load(call, rows)


async def _follow(call: Call, leader: Call) -> bool:
    """Wait for an equal call, without a slot; True if it gave an outcome."""
    call.move(Trigger.FOLLOW)
    engine = call.run.engine
    engine.scheduler.release(call)
    flight: asyncio.Future[bool] = call.run.loop.create_future()
    engine.followers.setdefault(call.key, []).append(flight)
    if leader.is_settled:
        engine.log.kick()
    has_outcome = await flight
    rows = leader.rows
    if has_outcome and leader.outcome in ("succeeded", "cached") and rows and await _load(call, rows):
        record_hit(call, rows)
        return True
    call.move(Trigger.HAND_OVER)
    await engine.scheduler.admit(call)
    call.move(Trigger.ADMITTED)
    return False


def hand_over(call: Call) -> None:
    """The call has failed, whatever its fallback gives: how it ends is not for the cache, nor for its followers."""
    engine = call.run.engine
    if call.key and engine.flights.get(call.key) is call:
        del engine.flights[call.key]
        for flight in engine.followers.pop(call.key, ()):
            if not flight.done():
                flight.set_result(False)
    call.key = b""


# -- loading ------------------------------------------------------------------------------


def _is_quick(call: Call, rows: Sequence[ArtifactRow]) -> bool:
    vault = call.run.engine.vault
    return all(vault.is_quick(row) for row in rows)


async def _load(call: Call, rows: Sequence[ArtifactRow]) -> bool:
    """Load stored outputs as the call's value, large ones on a thread; False if they cannot be used."""
    if _is_quick(call, rows):
        return _decode(call, rows)
    if call.plan.executor is None:
        loaded: bool = await call.run.engine.io.run(_decode, call, rows)
        return loaded
    loaded = await call.run.engine.io.run(_look_at, call, rows)
    if loaded and distant.is_awaited(call.futures()):
        call.value = await call.value.load()
    return loaded


def _look_at(call: Call, rows: Sequence[ArtifactRow]) -> bool:
    """Whether outputs of an isolated call are sound; they are loaded when somebody here wants them."""
    engine = call.run.engine
    try:
        for row in rows:
            distant.verify(engine.vault, row)
    except RouteNotFound:
        return False
    except ArtifactDamaged as error:
        engine.call_on_loop(_report_damage, call, rows, str(error))
        return False
    shape = rows[0].body.shape
    call.rows, call.shape = tuple(rows), shape
    call.value = distant.Unloaded(rows, shape, call.plan, engine.vault, engine.io)
    return True


def _decode(call: Call, rows: Sequence[ArtifactRow]) -> bool:
    vault = call.run.engine.vault
    try:
        values = [vault.value(row) for row in rows]
        value = call.plan.join(values, rows[0].body.shape, call.plan.output_names, trusted=True)
    except RouteNotFound:
        return False  # it may be sound, but is out of reach from here
    except (ArtifactDamaged, DecodeError) as error:
        call.run.engine.call_on_loop(_report_damage, call, rows, str(error))
        return False
    for row, item in zip(rows, values, strict=True):
        if not vault.is_quick(row):
            freeze(item)
    call.rows, call.shape, call.value = tuple(rows), rows[0].body.shape, value
    return True


def _report_damage(call: Call, rows: Sequence[ArtifactRow], reason: str) -> None:
    for row in rows:
        event = ev.DamageFound(at=call.run.now(), call=call.name, step=call.plan.name, artifact=row.id, reason=reason)
        call.run.append(event)


def _is_expired(call: Call, rows: Sequence[ArtifactRow]) -> bool:
    policy = call.plan.policy
    limit = policy.expires_after if policy is not None else None
    return limit is not None and call.run.now() - rows[0].body.at >= limit
