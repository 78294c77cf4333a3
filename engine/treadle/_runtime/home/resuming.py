"""How a run is taken up again from the log: its pipeline found, its past loaded, and the run claimed."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Literal

from treadle import events as ev
from treadle._core.machine import RESUMABLE
from treadle._core.replay import Memory, RunRecord
from treadle._runtime.calls.failures import failure_of
from treadle._runtime.home import acceptance
from treadle._runtime.run import Run
from treadle.errors import RunNotFound, RunPoisoned
from treadle.storage import failpoints
from treadle.storage.rows import Part
from treadle.storage.writer import Transaction

if TYPE_CHECKING:
    from treadle._runtime.engine import Engine
    from treadle._runtime.pipeline import PipelineFn

Changed = Literal["rerun", "keep"]

RECOVERIES = 3
"""After so many recoveries without a new outcome, a run is given up as poisoned."""
OWNER_DIED = "the process of its engine ended"
"""Why a run is interrupted that its engine had no time to end; only such ends count towards poison."""


def find_target(target: str, script: str = "") -> PipelineFn[..., Any] | None:
    """The pipeline that a recorded run names, imported if need be; ``None`` if it is not to be found.

    Args:
        target: ``module:qualified.name``.
        script: the file of the module ``__main__`` that is meant.
    """
    if script != acceptance.script_of(target):
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
    kept = acceptance.KeptOptions.read(record.accepted.options if record.accepted is not None else b"")
    target = target or find_target(row["target"], kept.script)
    if target is None:
        raise RunNotFound(
            f"run {run_id} is of pipeline {row['target']}, which cannot be imported here",
            fix="resume it where the pipeline is defined at module level, in the same module",
        )
    stored = await engine.io.run(acceptance.stored_in, engine, record)
    if stored is None:
        raise RunNotFound(
            f"run {run_id} cannot be resumed: its arguments are not in the log", fix="start it again with its arguments"
        )
    args, kwargs, *more = await engine.io.run(acceptance.decoded, engine, stored)
    states = ("interrupted",) if recovery else RESUMABLE if parent is None else (*RESUMABLE, "succeeded")
    outcomes = await _outcomes(engine, record)
    claimed = await engine.log.transact(
        _claim(engine, run_id, changed, states, outcomes if recovery else None, record.reason == OWNER_DIED)
    )
    if claimed is None:
        return None
    failpoints.hit("resume-claimed")
    epoch, poisoned = claimed
    if poisoned:
        raise RunPoisoned(
            f"run {run_id} was recovered {RECOVERIES} times without a new outcome, and is not tried again",
            why="its process died each time, and a step may be what kills it",
            fix="look at its last started call; `await engine.resume(run_id)` tries it once more",
            run_id=run_id,
        )
    options = kept.over(engine.pipeline_defaults.over(target.options), engine)
    record = await engine.io.run(engine.archive.record, run_id)
    run = Run(engine, run_id, target, options, tuple(args), dict(kwargs), parent)
    run.use_context(more[0] if more else {})
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
    engine: Engine, run_id: str, changed: Changed, states: Collection[str], outcomes: int | None, died: bool
) -> Callable[[Transaction], tuple[int, bool] | None]:
    """Compare and set (owner, epoch), in one transaction; gives the new epoch, and whether the run is poisoned.

    Args:
        engine: who claims.
        run_id: what.
        changed: recorded with it.
        states: the run must be in one of these, or be a dead engine's.
        outcomes: for a recovery, how many outcomes the run has by now.
        died: the run was cut off by a death, which it may have caused, and not by an orderly end.
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
            recoveries = (recoveries if outcomes <= seen else 0) + (died or status == "running")
            seen = outcomes
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
