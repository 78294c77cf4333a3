"""Care for a home: runs of dead engines, recovery, cancelling from outside, and now and then a prune."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from treadle import events as ev
from treadle._runtime.handle import RunHandle
from treadle._runtime.home import pruning, resuming
from treadle._runtime.plan import hint
from treadle._runtime.views.results import RunResult
from treadle.checks import check
from treadle.errors import EngineClosed, LogUnavailable, RunElsewhere, RunPoisoned, TreadleError
from treadle.storage import owners
from treadle.storage.rows import Part
from treadle.storage.writer import Transaction

if TYPE_CHECKING:
    from treadle._runtime.engine import Engine
    from treadle._runtime.run import Run

WATCH_S = 2.0
PRUNE_S = 3600.0
POLL_S = 0.05


async def watch(engine: Engine) -> None:
    """While the engine is open: renew its lock, and mark the runs of engines that have died."""
    last_prune = time.monotonic()
    while True:
        await asyncio.sleep(WATCH_S)
        engine.renew()
        try:
            await sweep(engine)
            if engine.keep is not None and time.monotonic() - last_prune > PRUNE_S:
                last_prune = time.monotonic()
                await pruning.prune(engine, None, None, False)
        except LogUnavailable:
            continue
        except (sqlite3.Error, TreadleError) as error:
            hint(f"the upkeep of {engine.home} failed: {error}")


async def resume(engine: Engine, run_id: str, changed: resuming.Changed) -> RunResult[Any]:
    """Resume one run and wait for its end; one that another process performs just now is taken up after it."""
    check(changed in ("rerun", "keep"), "changed", changed, "'rerun' or 'keep'")
    while True:
        row = await engine.run_row(run_id)
        if row["status"] == "succeeded":
            return await engine.get_run(run_id)
        run = engine.runs_here.get(run_id) or await resuming.resume(engine, run_id, changed=changed)
        if run is not None:
            await asyncio.shield(run.done)
            return RunResult(run.id, run.name, engine.archive, run)
        await asyncio.sleep(POLL_S)


async def recover(engine: Engine, *, wait: bool) -> list[Any]:
    """Resume every interrupted run whose pipeline is to be had here."""
    await sweep(engine)
    rows = await engine.reader.rows(
        "SELECT id FROM runs WHERE status='interrupted' AND recoverable AND parent='' ORDER BY number", ()
    )
    runs: list[Run] = []
    poisoned: list[str] = []
    for (run_id,) in rows:
        try:
            run = await resuming.resume(engine, run_id, changed="keep", recovery=True)
        except RunPoisoned as error:
            hint(str(error))
            poisoned.append(run_id)
        except (EngineClosed, LogUnavailable):
            raise
        except TreadleError as error:
            hint(f"run {run_id} cannot be recovered here: {error}")
        else:
            runs += [run] if run is not None else []
    if not wait:
        return [RunHandle.of(run) for run in runs]
    if runs:
        await asyncio.wait([run.done for run in runs])
    over: list[RunResult[Any]] = [RunResult(run.id, run.name, engine.archive, run) for run in runs]
    return over + [await engine.get_run(run_id) for run_id in poisoned]


async def cancel(engine: Engine, run_id: str) -> None:
    """Cancel a run of this engine, or an interrupted one; waits until that is in the log."""
    run = engine.runs_here.get(run_id)
    if run is not None:
        run.stop("caller")
        await asyncio.shield(run.done)
        return
    if (await engine.run_row(run_id))["status"] == "running":
        await sweep(engine)
    owner = await engine.log.transact(_cancel(run_id))
    if owner and owner != engine.id:
        raise RunElsewhere(
            f"run {run_id} is performed by another engine of this home ({owner}), and was not cancelled",
            fix="cancel it where it was started, or end that process and cancel it then",
            run_id=run_id, owner=owner,
        )  # fmt: skip


def _cancel(run_id: str) -> Callable[[Transaction], str]:
    """Cancel a run that no engine performs, or say which one does; to be run in a transaction."""

    def work(transaction: Transaction) -> str:
        status, epoch, owner = transaction.connection.execute(
            "SELECT status, epoch, owner FROM runs WHERE id=?", (run_id,)
        ).fetchone()
        if status == "interrupted":
            _end_cancelled(transaction, run_id, epoch, "caller")
        return str(owner) if status == "running" else ""

    return work


def _end_cancelled(transaction: Transaction, run_id: str, epoch: int, reason: str) -> None:
    part, now = Part(run_id, epoch), time.time()
    part.events.append(ev.RunCancelled(at=now, reason=reason))
    part.ended = ("cancelled", now)
    transaction.append(part)


async def sweep(engine: Engine) -> int:
    """Mark the runs of dead engines as interrupted; gives their number."""
    if not engine.is_shared:
        return 0
    if not await engine.reader.rows("SELECT 1 FROM runs WHERE status='running' AND owner<>? LIMIT 1", (engine.id,)):
        return 0
    return await engine.log.transact(_sweep(engine.id, engine.home))


def _sweep(engine_id: str, home: Any) -> Callable[[Transaction], int]:
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
            part.events.append(ev.RunInterrupted(at=now, reason=resuming.OWNER_DIED))
            part.ended = ("interrupted", now)
            transaction.append(part)
            count += 1
        return count

    return work
