"""What an engine can be asked about its past and present; it reads and never writes."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

from treadle import events as ev
from treadle._core.machine import CallState, RunStatus
from treadle._runtime.guards import breakers
from treadle._runtime.views.artifact import Artifact, Vault
from treadle._runtime.views.results import RunResult
from treadle._runtime.views.step_results import StepResult
from treadle.checks import check_choice, check_text, check_whole
from treadle.errors import ArtifactNotFound, EngineClosed, OptionError, ResultNotReady, RunNotFound, TreadleError
from treadle.storage import schema

if TYPE_CHECKING:
    from treadle._runtime.calls.call import Call
    from treadle._runtime.engine import Engine

FOREIGN_POLL_S = 0.1
"""How often the log is asked for what other processes wrote, while somebody follows it."""
LAST_EVENTS = 1000

_COLUMNS = ("id", "pipeline", "target", "status", "owner", "epoch", "created_at", "ended_at", "recoverable")


_ALIASED = "a.id IN (SELECT l.artifact FROM aliases l JOIN names m ON m.id = l.name WHERE m.name=?)"
_BY_ALIAS = (f"{_ALIASED} AND a.version=?", _ALIASED)
"""Artifacts by the name of what they hold: of one version, or of any."""


def check_pipeline(target: object) -> None:
    """Refuse to run what is no pipeline.

    Raises:
        OptionError: says what to pass.
    """
    if hasattr(target, "fn") and hasattr(target, "target"):
        return
    if inspect.iscoroutine(target):
        target.close()
        fix = "pass the pipeline and its arguments, engine.run(p, 1), not a call of it"
    elif hasattr(target, "fn"):
        fix = "call the step in a function decorated with @pipeline, and run that"
    else:
        fix = "decorate the function with @pipeline"
    raise OptionError(f"{target!r:.200} is not a pipeline", fix=fix, option="target")


async def run_row(engine: Engine, run_id: str) -> dict[str, Any]:
    """The row of a run in the table of runs."""
    check_text(run_id, "run_id", "the id of a run, such as handle.id or result.run_id")
    engine.check_readable()
    rows = await engine.reader.rows(f"SELECT {', '.join(_COLUMNS)} FROM runs WHERE id=?", (run_id,))
    if not rows:
        here = engine.runs_here.get(run_id)
        if here is not None:
            return {
                "id": run_id,
                "pipeline": here.name,
                "status": "running",
                "owner": engine.id,
                "target": here.target.target,
            }
        raise RunNotFound(f"there is no run {run_id!r} in {engine._place}", fix="`await engine.runs()` lists them")
    return dict(zip(_COLUMNS, rows[0], strict=True))


async def runs(
    engine: Engine, pipeline: str | None, status: str | None, limit: int, children: bool
) -> list[RunResult[Any]]:
    """Runs, newest first."""
    engine.check_readable()
    check_whole(limit, 1, "limit")
    if status is not None:
        check_choice(status, get_args(RunStatus), "status")
    where: list[str] = [] if children else ["parent=''"]
    parameters: list[Any] = []
    if pipeline is not None:
        check_text(pipeline, "pipeline", "the name of a pipeline")
    for column, value in (("pipeline", pipeline), ("status", status)):
        if value is not None:
            where.append(f"{column}=?")
            parameters.append(value)
    condition = f"WHERE {' AND '.join(where)}" if where else ""
    sql = f"SELECT id, pipeline FROM runs {condition} ORDER BY number DESC LIMIT ?"
    rows = await engine.reader.rows(sql, [*parameters, limit])
    return [RunResult(run_id, name, engine.archive) for run_id, name in rows]


async def events(engine: Engine, run_id: str | None, after: int, follow: bool) -> AsyncIterator[ev.Event]:
    """Events from the log, and new ones as they are committed."""
    engine.check_readable()
    if run_id is not None:
        await run_row(engine, run_id)
    news = asyncio.Event()
    engine.log.committed.append(news.set)
    try:
        while True:
            news.clear()
            while batch := await _batch(engine, run_id, after):
                for event in batch:
                    after = event.seq
                    yield event
            if not follow or engine.is_closed or (run_id is not None and await _is_over(engine, run_id, after)):
                return
            try:
                await asyncio.wait_for(news.wait(), FOREIGN_POLL_S)
            except TimeoutError:
                continue
    finally:
        engine.log.committed.remove(news.set)


async def _batch(engine: Engine, run_id: str | None, after: int) -> list[ev.Event]:
    """The next events; also the last ones, from under an engine that was closed meanwhile."""
    try:
        return await engine.reader.events(run_id, after)
    except EngineClosed:
        return list(itertools.islice(engine.archive.events(run_id, after), LAST_EVENTS))


async def _is_over(engine: Engine, run_id: str, after: int) -> bool:
    try:
        rows = await engine.reader.rows("SELECT status FROM runs WHERE id=?", (run_id,))
    except EngineClosed:
        return False
    return bool(rows) and rows[0][0] != "running" and not await _batch(engine, run_id, after)


async def logs(engine: Engine, run_id: str, step: str | None) -> list[ev.Logged]:
    """What the steps of a run said."""
    engine.check_readable()
    await engine.log.flush()
    return [
        event
        async for event in events(engine, run_id, 0, False)
        if isinstance(event, ev.Logged) and step in (None, event.step, event.call)
    ]


async def artifact(engine: Engine, name: str, version: int | None) -> Artifact[Any]:
    """An artifact by name, the newest or of one version."""
    engine.check_readable()
    check_text(name, "name", "the name of an output, or that of a Model or Dataset")
    where, parameters = "n.name=?", [name]
    if version is not None:
        check_whole(version, 0, "version")
        where, parameters = f"{where} AND a.version=?", [name, str(version)]
    rows = await engine.reader.artifacts(f"{where} ORDER BY a.version DESC LIMIT 1", parameters)
    rows += await engine.reader.artifacts(f"{_BY_ALIAS[version is None]} ORDER BY a.id DESC LIMIT 1", parameters)
    rows.sort(key=lambda row: row.id, reverse=True)
    if not rows:
        wanted = f"{name!r}" if version is None else f"{name!r} version {version}"
        raise ArtifactNotFound(
            f"there is no artifact {wanted} in {engine._place}",
            fix="an artifact has the name of its step or output, and that of the Model or Dataset that it is",
        )
    return Artifact(rows[0], engine.vault)


async def step_results(engine: Engine, run_id: str, names: Sequence[str]) -> list[StepResult]:
    """Results of single calls of a run that goes on."""
    await engine.log.flush()
    run = engine.runs_here.get(run_id)
    result: RunResult[Any] = RunResult(run_id, "", engine.archive, run)
    if run is not None:
        result.take_errors(run.errors_of_calls())
    calls = result.step_results
    return [calls[name] for name in names]


def artifact_of(call: Call, output: str | None, vault: Vault) -> Artifact[Any]:
    """One stored output of an ended call."""
    if call.state is not CallState.ENDED:
        raise ResultNotReady(f"call {call.name} has not ended, so it has no artifact yet", fix="await it first")
    rows = [row for row in call.rows or () if output in (None, row.name)]
    if len(rows) == 1:
        return Artifact(rows[0], vault)
    if rows:
        names = ", ".join(row.name for row in rows)
        raise TreadleError(
            f"call {call.name} has several outputs: {names}", fix="use .artifacts, or .output(name).artifact"
        )
    if call.outcome == "skipped":
        raise TreadleError(
            f"call {call.name} was skipped, so it has no artifact",
            why="a condition left it out, or an input of it failed",
            fix="look at its .status first; awaiting a call that a condition left out gives None",
        )
    why = "its step has persist=False" if call.outcome in ("succeeded", "cached") else f"its outcome is {call.outcome}"
    raise TreadleError(f"call {call.name} has no stored output", why=why)


def metrics(engine: Engine) -> dict[str, float]:
    """Counters and gauges; of a closed engine, the last ones."""
    if engine.is_new:
        engine.check_readable()  # which refuses
    return {
        "log_flushes": engine.log.commits,
        "log_events": engine.log.event_count,
        "runs_running": len(engine.runs_here),
        "calls_running": engine.scheduler.running,
        "calls_ready": len(engine.scheduler),
        "calls_active": sum(len(run.active) for run in engine.runs_here.values()),
        "threads_abandoned": engine.pool.abandoned,
        "bodies_abandoned": engine.abandoned,
        "late_results": engine.pool.late,
    }


def health(engine: Engine) -> dict[str, Any]:
    """Whether the engine can work."""
    log = engine.log.unavailable if engine.is_open else None
    exhausted = engine.is_open and engine.pool.abandoned >= engine.pool.size
    problems = [str(log)] if log is not None else []
    if exhausted:
        problems.append("every worker thread is stuck; see ThreadsExhausted")
    return {
        "status": "closed" if not engine.is_open else "degraded" if problems else "ok",
        "problems": problems,
        "log": "unavailable" if log is not None else "ok",
        "home": str(getattr(engine, "home", "")),
        "format": schema.FORMAT,
        "durability": engine.durability,
        "breakers": breakers.health(engine.clock.monotonic()) if engine.is_open else {},
        "runs_running": len(engine.runs_here),
        "threads_abandoned": engine.pool.abandoned if engine.is_open else 0,
    }
