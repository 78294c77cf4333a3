"""How a run comes to be: accepted with its arguments, joined by its idempotency key, or taken up again from the log."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from treadle import events as ev
from treadle._core.binding import find, replace
from treadle._core.machine import RESUMABLE, TERMINAL
from treadle._core.replay import Memory, RunRecord
from treadle._runtime import inputs
from treadle._runtime.artifact import Artifact
from treadle._runtime.call import StepFuture
from treadle._runtime.defaults import default_engine
from treadle._runtime.failures import failure_of
from treadle._runtime.mapping import MapFuture
from treadle._runtime.plan import hint, logger
from treadle._runtime.results import RunResult
from treadle._runtime.run import Run
from treadle.errors import (
    ArgumentNotStorable,
    ArtifactDamaged,
    DecodeError,
    EncodeError,
    IdempotencyConflict,
    OptionError,
    RunNotFound,
    RunPoisoned,
)
from treadle.options import FailureMode, PipelineOptions
from treadle.storage import codecs, failpoints, owners
from treadle.storage.rows import ArtifactRow, Body, Part
from treadle.storage.writer import Transaction

if TYPE_CHECKING:
    from treadle._runtime.engine import Engine
    from treadle._runtime.pipeline import PipelineFn

References = (StepFuture, MapFuture, Artifact)
Changed = Literal["rerun", "keep"]

INLINE_BYTES = 64 * 1024
POLL_S = 0.05
RECOVERIES = 3
"""After so many recoveries without a new outcome, a run is given up as poisoned."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_run_id() -> str:
    """A new id: 26 characters that sort by time, 48 bits of milliseconds and 80 random ones (as in ULID)."""
    number = int(time.time() * 1000) << 80 | int.from_bytes(secrets.token_bytes(10), "big")
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
    if next(find((args, kwargs), References), None) is not None:
        return True
    return not all(map(inputs.is_quick, (*args, *kwargs.values())))


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
    _accept(run, _arguments(run))
    run.start()
    return run


async def _begin_slowly(
    engine: Engine,
    target: PipelineFn[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parent: Run | None,
    run_id: str,
) -> Run:
    """As ``begin``; arguments that are large are encoded and stored on a thread."""
    run = Run(engine, run_id, target, engine.pipeline_defaults.over(target.options), args, kwargs, parent)
    stored = await engine.io.run(_arguments, run)
    engine.check_usable()
    _accept(run, stored)
    run.start()
    return run


class _Stored(msgspec.Struct):
    """Arguments as the log keeps them: in the event, or beside it if they are large."""

    encoded: codecs.Encoded
    location: str = ""


def _arguments(run: Run) -> _Stored | None:
    """Encode the arguments, and store large ones; ``None`` if they cannot be kept."""
    try:
        encoded = inputs.encode(run.engine, [list(run.args), run.kwargs])
    except EncodeError as error:
        if run.options.idempotency_key:
            raise ArgumentNotStorable(
                f"pipeline {run.name} has an idempotency key, and argument {_parameter(run, error)} cannot be stored",
                why=error.what,
                fix="pass plain data (an address instead of a client), or leave the idempotency key away",
                parameter=_parameter(run, error),
            ) from error
        run.recoverable = False
        hint(f"runs of pipeline {run.name} cannot be resumed: argument {_parameter(run, error)} cannot be stored")
        return None
    if len(encoded.data) <= INLINE_BYTES:
        return _Stored(encoded)
    return _Stored(encoded, run.engine.vault.blobs.put(encoded.data, encoded.checksum))


def _parameter(run: Run, error: EncodeError) -> str:
    bound = run.target.binder.bind(run.args, run.kwargs)
    for name, value in bound.items():
        try:
            inputs.encode(run.engine, value)
        except EncodeError:
            return name
    return getattr(error, "path", "")


def _accept(run: Run, stored: _Stored | None) -> None:
    engine = run.engine
    log = engine.log
    part = run.part()  # before the row, so that row and event are in one commit
    log.accept(
        [
            run.id,
            run.name,
            run.target.target,
            engine.id,
            run.parent.id if run.parent else "",
            run.recoverable,
            run.created_at,
        ]
    )
    run.append(_accepted(run, stored, part))
    part.waiters.append(_Accepted(run))
    log.kick()
    logger.log(logging.INFO, "run %s of %s started", run.id, run.name)
    failpoints.hit("accepted")


def _accepted(run: Run, stored: _Stored | None, part: Part) -> ev.RunAccepted:
    """The event; large arguments go beside it, as an artifact."""
    data, codec = b"", ""
    if stored is not None:
        encoded = stored.encoded
        data, codec = bytes(encoded.data), encoded.codec
        if stored.location:
            body = Body(
                encoded.digest, encoded.checksum, len(data), codec, encoded.type_name, run.id, "", "", run.created_at,
                location=stored.location,
            )  # fmt: skip
            part.artifacts.append(ArtifactRow(f"arguments:{run.name}", body))
            data = b""
    return ev.RunAccepted(
        at=run.created_at, pipeline=run.name, parent=run.parent.id if run.parent else "", parent_call=run.parent_call,
        arguments=data, codec=codec, recoverable=run.recoverable, options=_Options.of(run).packed(),
    )  # fmt: skip


class _Options(msgspec.Struct, omit_defaults=True):
    """What a resume has to know beside the arguments; ``script`` is the file of a pipeline in ``__main__``."""

    name: str | None = None
    failure_mode: FailureMode | None = None
    timeout: float | None = None
    max_concurrency: int | None = None
    tags: tuple[str, ...] = ()
    script: str = ""

    @classmethod
    def of(cls, run: Run) -> _Options:
        options = run.options
        return cls(
            name=options.name or None, failure_mode=options.failure_mode or None, timeout=options.timeout or None,
            max_concurrency=options.max_concurrency or None, tags=options.tags or (), script=_script(run.target.target),
        )  # fmt: skip

    def packed(self) -> bytes:
        return b"" if self == _Options() else msgspec.msgpack.encode(self)

    @classmethod
    def read(cls, packed: bytes) -> _Options:
        return msgspec.msgpack.decode(packed, type=cls) if packed else cls()

    def over(self, options: PipelineOptions) -> PipelineOptions:
        given = {name: getattr(self, name) for name in ("name", "failure_mode", "timeout", "max_concurrency", "tags")}
        return options.over(PipelineOptions(**{name: value for name, value in given.items() if value}))


def _script(target: str) -> str:
    """The file of a pipeline that a script defines; every script's module has the name ``__main__``."""
    if not target.startswith("__main__:"):
        return ""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return os.path.realpath(file) if file else "interactive"


class _Accepted:
    """Tells a run that its acceptance is in the log."""

    __slots__ = ("run",)

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_commit(self, error: BaseException | None, /) -> None:
        future = self.run.accepted
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


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
    args = tuple([await _resolved(value) for value in args])
    kwargs = {name: await _resolved(value) for name, value in kwargs.items()}
    if target.options.idempotency_key:
        return await _launch_once(engine, target, args, kwargs, parent, run_id)
    if parent is not None and parent.memory is not None:
        again = await _child_again(engine, target, args, kwargs, parent)
        if again is not None:
            return again
    return Launched(run_id, await _begin_slowly(engine, target, args, kwargs, parent, run_id), engine)


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
) -> Launched:
    """One run per key and input, whoever asks: join it, take its outcome, take it up again, or be the first."""
    run = Run(engine, run_id, target, engine.pipeline_defaults.over(target.options), args, kwargs, parent)
    stored = await engine.io.run(_arguments, run)
    assert stored is not None
    digest, key = stored.encoded.digest, target.options.idempotency_key
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
        part.events.append(_accepted(run, stored, part))
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
        wanted = inputs.encode(engine, [list(args), kwargs]).digest
    except EncodeError:
        return None
    rows = await engine.reader.rows(
        "SELECT id, status, target FROM runs WHERE parent=? AND pipeline=? ORDER BY number", (parent.id, target.name)
    )
    for run_id, status, name in rows:
        if run_id in parent.claimed_children or name != target.target:
            continue
        record = engine.archive.record(run_id)
        if _recorded_digest(engine, record) != wanted:
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
    """Whether the recorded value of a run can still be loaded."""
    rows = engine.archive.artifacts([engine.archive.record(run_id).value])
    try:
        return bool(rows) and engine.vault.value(rows[0]) is not rows
    except (ArtifactDamaged, DecodeError):
        return False


def _recorded_digest(engine: Engine, record: RunRecord) -> bytes:
    try:
        stored = _stored_arguments(engine, record)
        return inputs.encode(engine, _decoded(engine, stored)).digest if stored is not None else b""
    except (ArtifactDamaged, DecodeError, EncodeError):
        return b""


def _decoded(engine: Engine, stored: tuple[str, bytes]) -> Any:
    return codecs.decode(stored[0], stored[1], trusted=True, allow_pickle=engine.vault.allow_pickle)


def _stored_arguments(engine: Engine, record: RunRecord) -> tuple[str, bytes] | None:
    accepted = record.accepted
    if accepted is None or not accepted.codec:
        return None
    if accepted.arguments:
        return accepted.codec, accepted.arguments
    rows = engine.archive.named_in_run(f"arguments:{record.pipeline}", record.run_id)
    return (accepted.codec, engine.vault.data(rows[0])) if rows else None


# -- again --------------------------------------------------------------------------------


def find_target(target: str, script: str = "") -> PipelineFn[..., Any] | None:
    """The pipeline that a recorded run names, imported if need be; ``None`` if it is not to be found.

    Args:
        target: ``module:qualified.name``.
        script: the file of the module ``__main__`` that is meant.
    """
    if script != _script(target):
        return None
    module, _, qualified = target.partition(":")
    try:
        found: Any = sys.modules.get(module) or importlib.import_module(module)
        for part in qualified.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return found if hasattr(found, "fn") and hasattr(found, "target") else None


async def resume(
    engine: Engine,
    run_id: str,
    *,
    changed: Changed,
    target: PipelineFn[..., Any] | None = None,
    parent: Run | None = None,
    recovery: bool = False,
) -> Run | None:
    """Take a run up again: claim it, load its past, and perform the function again.

    Returns ``None`` if it is somebody else's just now.

    Raises:
        RunNotFound: there is no such run, or its pipeline or arguments are not to be had.
        RunPoisoned: it was recovered too often without a new outcome.
    """
    row = await engine.run_row(run_id)
    record = await engine.io.run(engine.archive.record, run_id)
    kept = _Options.read(record.accepted.options if record.accepted is not None else b"")
    target = target or find_target(row["target"], kept.script)
    if target is None:
        raise RunNotFound(
            f"run {run_id} is of pipeline {row['target']}, which cannot be imported here",
            fix="resume it where the pipeline is defined at module level, in the same module",
        )
    stored = await engine.io.run(_stored_arguments, engine, record)
    if stored is None:
        raise RunNotFound(
            f"run {run_id} cannot be resumed: its arguments are not in the log", fix="start it again with its arguments"
        )
    args, kwargs = await engine.io.run(_decoded, engine, stored)
    states = ("interrupted",) if recovery else RESUMABLE if parent is None else (*RESUMABLE, "succeeded")
    outcomes = await _outcomes(engine, record)
    claimed = await engine.log.transact(_claim(engine, run_id, changed, states, outcomes if recovery else None))
    if claimed is None:
        return None
    failpoints.hit("resume-claimed")
    epoch, poisoned = claimed
    if poisoned:
        raise RunPoisoned(
            f"run {run_id} was recovered {RECOVERIES} times without a new outcome, and is not tried again",
            why="a step may be killing the process",
            fix="look at its last started call; `await engine.resume(run_id)` tries it once more",
            run_id=run_id,
        )
    options = kept.over(engine.pipeline_defaults.over(target.options))
    record = await engine.io.run(engine.archive.record, run_id)
    run = Run(engine, run_id, target, options, tuple(args), dict(kwargs), parent)
    run.name, run.epoch, run.created_at = record.pipeline, epoch, record.created_at
    run.memory = Memory(record, keep_stale=changed == "keep")
    run.is_detached = parent is None
    run.accepted.set_result(None)
    run.start()
    return run


async def _outcomes(engine: Engine, record: RunRecord) -> int:
    """How many outcomes a run and its child runs have recorded."""
    count = sum(1 for call in record.calls.values() if call.is_reusable)
    for (child,) in await engine.reader.rows("SELECT id FROM runs WHERE parent=?", (record.run_id,)):
        count += await _outcomes(engine, await engine.io.run(engine.archive.record, child))
    return count


def _claim(
    engine: Engine, run_id: str, changed: Changed, states: Collection[str], outcomes: int | None
) -> Callable[[Transaction], tuple[int, bool] | None]:
    """Compare and set (owner, epoch), in one transaction; gives the new epoch, and whether the run is poisoned.

    Args:
        engine: who claims.
        run_id: what.
        changed: recorded with it.
        states: the run must be in one of these, or be a dead engine's.
        outcomes: for a recovery, how many outcomes the run has by now.
    """

    def claim(transaction: Transaction) -> tuple[int, bool] | None:
        execute = transaction.connection.execute
        found = execute("SELECT status, owner, epoch, recoveries, outcomes FROM runs WHERE id=?", (run_id,)).fetchone()
        if found is None:
            return None
        status, owner, epoch, recoveries, seen = found
        if engine.is_alive(owner) if status == "running" else status not in states:
            return None
        if outcomes is None:
            recoveries = 0
        else:
            recoveries, seen = (recoveries + 1 if outcomes <= seen else 1), outcomes
        if recoveries > RECOVERIES:
            transaction.append(_poisoned(run_id, epoch))
            return epoch, True
        part = Part(run_id, epoch + 1)
        part.events.append(ev.RunResumed(at=time.time(), epoch=epoch + 1, engine=engine.id, changed=changed))
        transaction.append(part)
        execute(
            "UPDATE runs SET status='running', owner=?, epoch=?, ended_at=NULL, recoveries=?, outcomes=? WHERE id=?",
            (engine.id, epoch + 1, recoveries, seen, run_id),
        )
        return epoch + 1, False

    return claim


def _poisoned(run_id: str, epoch: int) -> Part:
    now = time.time()
    error = RunPoisoned(f"run {run_id} was recovered {RECOVERIES} times without a new outcome")
    part = Part(run_id, epoch)
    part.events.append(ev.RunFailed(at=now, failure=failure_of(error)))
    part.ended = ("failed", now)
    return part


def sweep(engine_id: str, home: Any) -> Any:
    """Mark as interrupted what belongs to engines that are dead; to be run in a transaction."""

    def work(transaction: Transaction) -> int:
        rows = transaction.connection.execute(
            "SELECT id, owner, epoch FROM runs WHERE status='running' AND owner<>?", (engine_id,)
        ).fetchall()
        alive: dict[str, bool] = {}
        count = 0
        for run_id, owner, epoch in rows:
            if owner not in alive:
                alive[owner] = owners.is_alive(home, owner)
            if alive[owner]:
                continue
            part = Part(run_id, epoch)
            now = time.time()
            part.events.append(ev.RunInterrupted(at=now, reason="the process of its engine ended"))
            part.ended = ("interrupted", now)
            transaction.append(part)
            count += 1
        return count

    return work


__all__ = ["Launched", "OptionError", "begin", "find_target", "is_deferred", "launch", "new_run_id", "resume", "sweep"]
