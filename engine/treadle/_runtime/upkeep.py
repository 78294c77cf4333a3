"""Care for a home: runs of dead engines, recovery, cancelling from outside, and forgetting what is old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from treadle import events as ev
from treadle._runtime import launch
from treadle._runtime.plan import hint
from treadle._runtime.results import RunResult
from treadle.errors import EngineClosed, LogUnavailable, RunPoisoned, TreadleError
from treadle.options import Duration, seconds
from treadle.storage.rows import Body, Part
from treadle.storage.writer import Transaction

if TYPE_CHECKING:
    from treadle._runtime.engine import Engine

WATCH_S = 2.0
GRACE_S = 24 * 3600.0
"""Blobs that nothing names are kept this long: a commit that names them may be under way."""


async def watch(engine: Engine) -> None:
    """While the engine is open: renew its lock, and mark the runs of engines that have died."""
    last_prune = time.monotonic()
    while True:
        await asyncio.sleep(WATCH_S)
        engine.renew()
        try:
            await engine.sweep()
            if engine.keep is not None and time.monotonic() - last_prune > 3600:
                last_prune = time.monotonic()
                await prune(engine, engine.keep.runs_for, None, False)
        except LogUnavailable:
            continue


async def recover(engine: Engine, *, wait: bool) -> list[Any]:
    """Resume every interrupted run whose pipeline is to be had here."""
    await engine.sweep()
    rows = await engine.reader.rows(
        "SELECT id FROM runs WHERE status='interrupted' AND recoverable AND parent='' ORDER BY number", ()
    )
    runs, poisoned = [], []
    for (run_id,) in rows:
        try:
            run = await launch.resume(engine, run_id, changed="keep", recovery=True)
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
        return [engine.handle_of(run) for run in runs]
    if runs:
        await asyncio.wait([run.done for run in runs])
    over = [RunResult(run.id, run.name, engine.archive, run) for run in runs]
    return [*over, *[await engine.get_run(run_id) for run_id in poisoned]]


def cancel(run_id: str) -> Callable[[Transaction], bool]:
    """Cancel a run that no engine performs; to be run in a transaction."""

    def work(transaction: Transaction) -> bool:
        status, epoch = transaction.connection.execute("SELECT status, epoch FROM runs WHERE id=?", (run_id,)).fetchone()
        if status != "interrupted":
            return False
        part = Part(run_id, epoch)
        part.events.append(ev.RunCancelled(at=time.time(), reason="caller"))
        part.ended = ("cancelled", time.time())
        transaction.append(part)
        return True

    return work


# -- forgetting ---------------------------------------------------------------------------


async def prune(engine: Engine, older_than: Duration | None, keep_last: int | None, dry_run: bool) -> dict[str, int]:
    """Forget runs that are over, then what only they named."""
    before = time.time() - seconds(older_than, "older_than") if older_than is not None else time.time()
    result = await engine.log.transact(_forget(before, keep_last, dry_run))
    if not dry_run:
        await engine.io.run(_collect, engine)
    return {"runs": result[0], "artifacts": result[1], "bytes": result[2]}


def _forget(before: float, keep_last: int | None, dry_run: bool) -> Callable[[Transaction], tuple[int, int, int]]:
    def work(transaction: Transaction) -> tuple[int, int, int]:
        execute = transaction.connection.execute
        rows = execute(
            "SELECT id, row_number() OVER (PARTITION BY pipeline ORDER BY number DESC) FROM runs"
            " WHERE status IN ('succeeded', 'failed', 'cancelled') AND ended_at < ? AND parent=''",
            (before,),
        ).fetchall()
        runs = {run for run, rank in rows if keep_last is None or rank > keep_last}
        runs |= _children(transaction, runs)
        artifacts, size = _artifacts_of(transaction, runs)
        if not dry_run and runs:
            _keep_numbers(transaction, runs)
            execute("INSERT INTO pruning(active) VALUES(1)")
            for run in runs:
                execute("DELETE FROM log WHERE run=?", (run,))
                execute("DELETE FROM runs WHERE id=?", (run,))
            for artifact in artifacts:
                execute("DELETE FROM artifacts WHERE id=?", (artifact,))
            execute("DELETE FROM cache WHERE artifact NOT IN (SELECT id FROM artifacts)")
            execute("DELETE FROM pruning")
        return len(runs), len(artifacts), size

    return work


def _keep_numbers(transaction: Transaction, runs: set[str]) -> None:
    """Numbers are never given twice, also when the newest rows go."""
    execute = transaction.connection.execute
    gone = sum(execute("SELECT coalesce(sum(count), 0) FROM log WHERE run=?", (run,)).fetchone()[0] for run in runs)
    before = execute("SELECT value FROM counters WHERE name='pruned_events'").fetchone()
    seq, artifact = transaction.writer.last_numbers
    values = {"pruned_events": gone + (before[0] if before else 0), "seq": seq, "artifact": artifact}
    transaction.connection.executemany("INSERT OR REPLACE INTO counters(name, value) VALUES(?, ?)", list(values.items()))


def _children(transaction: Transaction, runs: set[str]) -> set[str]:
    found: set[str] = set()
    todo = list(runs)
    while todo:
        rows = transaction.connection.execute("SELECT id FROM runs WHERE parent=?", (todo.pop(),)).fetchall()
        todo += [run for (run,) in rows if run not in found]
        found.update(run for (run,) in rows)
    return found


def _artifacts_of(transaction: Transaction, runs: set[str]) -> tuple[list[int], int]:
    """Artifacts that these runs made, but for those that a kept run has taken from the cache."""
    decode = msgspec.msgpack.Decoder(Body).decode
    made: dict[int, int] = {}
    for number, body in transaction.connection.execute("SELECT id, body FROM artifacts"):
        facts = decode(body)
        if facts.run in runs:
            made[number] = facts.size
    if not made:
        return [], 0
    from treadle.storage.reader import unpack_segment

    for row in transaction.connection.execute("SELECT seq, run, first_artifact, body FROM log"):
        if row[1] in runs:
            continue
        for event in unpack_segment(*row):
            if isinstance(event, ev.CallCached):
                for number in event.artifacts:
                    made.pop(number, None)
    return list(made), sum(made.values())


def _collect(engine: Engine) -> int:
    """Remove blobs that nothing names and that are older than the grace."""
    named = engine.archive.locations()
    removed = 0
    limit = time.time() - GRACE_S
    for location, size, used_at in list(engine.vault.blobs.list()):
        if location not in named and used_at < limit and engine.vault.blobs.delete(location, used_at):
            removed += size
    return removed
