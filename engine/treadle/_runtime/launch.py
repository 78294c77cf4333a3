"""How a run comes to be: accepted with its arguments, joined by its idempotency key, or found in its parent's past."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from treadle._core.binding import find, replace
from treadle._core.machine import TERMINAL
from treadle._runtime.calls import inputs
from treadle._runtime.calls.call import StepFuture
from treadle._runtime.defaults import default_engine
from treadle._runtime.home import acceptance
from treadle._runtime.home.resuming import Changed, resume
from treadle._runtime.maps.mapping import MapFuture
from treadle._runtime.run import Run, context_for
from treadle._runtime.views.artifact import Artifact
from treadle._runtime.views.results import RunResult
from treadle.errors import ArtifactDamaged, DecodeError, EncodeError, IdempotencyConflict
from treadle.storage.rows import Part
from treadle.storage.writer import Transaction

if TYPE_CHECKING:
    from treadle._runtime.engine import Engine
    from treadle._runtime.pipeline import PipelineFn

References = (StepFuture, MapFuture, Artifact)

POLL_S = 0.05

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_run_id() -> str:
    """A new id: 26 characters that sort by time, 48 bits of milliseconds and 80 random ones (as in ULID)."""
    number = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10), "big")
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


class Launched:
    """A run that was started here, joined, or found to be over; ``run`` is ``None`` if it is not performed here."""

    __slots__ = ("_target", "engine", "run", "run_id")

    def __init__(
        self, run_id: str, run: Run | None, engine: Engine | None, target: PipelineFn[..., Any] | None = None
    ) -> None:
        self.run_id, self.run, self.engine, self._target = run_id, run, engine, target

    async def elsewhere(self) -> None:
        """Wait for a run of another engine to be over; if that engine dies, the run is taken up here."""
        while self.run is None and self.engine is not None:
            row = await self.engine.run_row(self.run_id)
            status, owner = row["status"], row["owner"]
            if status in TERMINAL:
                return
            self.run = self.engine.runs_here.get(self.run_id)
            if self.run is None and (status == "interrupted" or not self.engine.is_alive(owner)):
                self.run = await resume(self.engine, self.run_id, changed="keep", target=self._target)
            if self.run is None:
                await asyncio.sleep(POLL_S)

    async def result(self) -> RunResult[Any]:
        """The result of the ended run."""
        if self.run is not None:
            self.run.was_observed = True
            return RunResult(self.run.id, self.run.name, self.run.engine.archive, self.run)
        assert self.engine is not None
        return await self.engine.get_run(self.run_id)


def is_deferred(
    target: PipelineFn[..., Any], parent: Run | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Whether something has to be awaited before the run can begin."""
    if target.options.idempotency_key or (parent is not None and parent.memory is not None):
        return True
    if has_references(args, kwargs):
        return True
    given = (kwargs.get("inputs") or {}) if target.is_wired else kwargs
    return not all(map(inputs.is_quick, (*args, *given.values(), *(target.options.context or {}).values())))


def has_references(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether arguments stand for values that have to be awaited or loaded."""
    return next(find((args, kwargs), References), None) is not None


def begin(
    engine: Engine,
    target: PipelineFn[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parent: Run | None,
    run_id: str,
) -> Run:
    """Accept a run and start its function; the acceptance shares a flush with what the run does first."""
    engine.check_usable()
    run = Run(engine, run_id, target, engine.pipeline_defaults.over(target.options), args, kwargs, parent)
    acceptance.accept(run, acceptance.store(run))
    run.start()
    return run


async def _begin_slowly(
    engine: Engine,
    target: PipelineFn[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parent: Run | None,
    run_id: str,
    given: tuple[int, ...],
) -> Run:
    """As ``begin``; arguments that are large are encoded and stored on a thread."""
    run = Run(engine, run_id, target, engine.pipeline_defaults.over(target.options), args, kwargs, parent)
    run.artifacts_given = given
    stored = await engine.io.run(acceptance.store, run)
    engine.check_usable()
    acceptance.accept(run, stored)
    run.start()
    return run


# -- with something to wait for -----------------------------------------------------------


async def launch(
    engine: Engine | None,
    target: PipelineFn[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parent: Run | None,
    run_id: str,
) -> Launched:
    """Start a run that needs an engine opened, its arguments resolved, or its key or past looked up first."""
    engine = engine or await default_engine()
    engine.check_usable()
    given = _artifacts_among(engine, args, kwargs)
    args = tuple([await _resolved(value) for value in args])
    kwargs = {name: await _resolved(value) for name, value in kwargs.items()}
    if target.is_static:
        target = target.prepared(engine, context_for(parent, target.options), args, kwargs)
    if target.options.idempotency_key:
        return await _launch_once(engine, target, args, kwargs, parent, run_id, given)
    if parent is not None and parent.memory is not None:
        again = await _child_again(engine, target, args, kwargs, parent)
        if again is not None:
            return again
    return Launched(run_id, await _begin_slowly(engine, target, args, kwargs, parent, run_id, given), engine)


def _artifacts_among(engine: Engine, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    """The artifacts of this home that arguments stand for: the pipeline gets values, and their lineage goes on."""
    found: Iterable[Artifact[Any]] = find((args, kwargs), (Artifact,))
    return tuple(dict.fromkeys(artifact.id for artifact in found if artifact.is_in(engine.archive)))


async def _resolved(value: Any) -> Any:
    found = list(find((value,), References))
    if not found:
        return value
    content = {id(item): await item.load() if isinstance(item, Artifact) else await item for item in found}
    return replace(value, References, lambda item: content[id(item)])


async def _launch_once(
    engine: Engine,
    target: PipelineFn[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parent: Run | None,
    run_id: str,
    given: tuple[int, ...],
) -> Launched:
    """One run per key and input, whoever asks: join it, take its outcome, take it up again, or be the first."""
    run = Run(engine, run_id, target, engine.pipeline_defaults.over(target.options), args, kwargs, parent)
    run.artifacts_given = given
    stored = await engine.io.run(acceptance.store, run)
    assert stored is not None
    canonical = acceptance.arguments((), target.binder.canonical(args, kwargs), run.context)
    written = await engine.io.run(inputs.encode, engine, canonical if run.context else canonical[1])
    digest, key = written.digest, target.options.idempotency_key
    held: list[Part] = []

    def accept(transaction: Transaction) -> tuple[str, bytes, str, str] | None:
        known = transaction.connection.execute(
            "SELECT id, arguments_digest, status, owner FROM runs WHERE pipeline=? AND key=?", (run.name, key)
        ).fetchone()
        if known is not None:
            return tuple(known)
        transaction.connection.execute(
            "INSERT INTO runs(id, pipeline, target, status, owner, parent, key, arguments_digest, created_at)"
            " VALUES(?, ?, ?, 'running', ?, ?, ?, ?, ?)",
            (run.id, run.name, target.target, engine.id, parent.id if parent else "", key, digest, run.created_at),
        )
        part = Part(run.id, 1)
        part.events.append(acceptance.accepted(run, stored, part))
        held.append(part)
        transaction.append(part)
        return None

    known = await engine.log.transact(accept)
    if known is None:
        run.accepted.set_result(None)
        run.start()
        return Launched(run.id, run, engine)
    known_id, known_digest, status, owner = known
    if known_digest != digest:
        raise IdempotencyConflict(
            f"idempotency key {key!r} of pipeline {run.name} was used with other arguments, by run {known_id}",
            fix="use a new key for new arguments",
            run_id=known_id,
        )
    return await _join(engine, target, known_id, status, owner)


async def _join(engine: Engine, target: PipelineFn[..., Any], run_id: str, status: str, owner: str) -> Launched:
    run = engine.runs_here.get(run_id)
    is_stopped = status in ("cancelled", "interrupted") or (status == "running" and not engine.is_alive(owner))
    if run is None and is_stopped:
        run = await resume(engine, run_id, changed="keep", target=target)
    return Launched(run_id, run or engine.runs_here.get(run_id), engine, target)


async def _child_again(
    engine: Engine, target: PipelineFn[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], parent: Run
) -> Launched | None:
    """In a resumed run, a child with the same pipeline and arguments is the same child."""
    try:
        context = context_for(parent, target.options)
        wanted = inputs.encode(engine, acceptance.arguments(args, kwargs, context)).digest
    except EncodeError:
        return None
    rows = await engine.reader.rows(
        "SELECT id, status, target FROM runs WHERE parent=? AND pipeline=? ORDER BY number", (parent.id, target.name)
    )
    for run_id, status, name in rows:
        if run_id in parent.claimed_children or name != target.target:
            continue
        record = engine.archive.record(run_id)
        if acceptance.digest_in(engine, record) != wanted:
            continue
        parent.claimed_children.add(run_id)
        if status == "succeeded" and await engine.io.run(_has_value, engine, run_id):
            return Launched(run_id, None, engine)
        if run_id in engine.runs_here:
            continue
        mode: Changed = "keep" if parent.memory is None or parent.memory.keep_stale else "rerun"
        resumed = await resume(engine, run_id, changed=mode, target=target, parent=parent)
        if resumed is not None:
            return Launched(run_id, resumed, engine)
    return None


def _has_value(engine: Engine, run_id: str) -> bool:
    """Whether the recorded value of a run can still be loaded; of a wired one, that are the outputs of its calls."""
    record = engine.archive.record(run_id)
    numbers = [record.value]
    if record.accepted is not None and record.accepted.wired:
        calls = [call for call in record.calls.values() if call.status in ("succeeded", "cached")]
        if not all(call.artifacts for call in calls):
            return False  # one was not persisted
        numbers = [number for call in calls for number in call.artifacts]
    rows = engine.archive.artifacts(numbers)
    try:
        return len(rows) == len(numbers) and all(engine.vault.value(row) is not rows for row in rows)
    except (ArtifactDamaged, DecodeError):
        return False
