"""Forgetting: which runs may go, which artifacts then nobody names, and how they are removed.

Theory of operation
* Only whole trees go: a run that is over, with its child runs, if they are over too.
* An artifact is named by the run that made it and by every run that took it from the cache.
  It goes when none of these is left, which may be long after its maker went.
* First the runs and the cache entries go, then, ``HIT_GRACE_S`` later, the artifacts that are
  still unnamed: a call that had found one in the cache before has recorded that by then.
* Bytes outside the log go when nothing names them and ``BLOB_GRACE_S`` has passed since their last
  use, because a commit that names them may be under way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import msgspec

from treadle import events as ev
from treadle._core.machine import TERMINAL
from treadle._runtime.code import explain
from treadle._runtime.views.artifact import ROUTED
from treadle.checks import Duration, check_whole, seconds
from treadle.errors import ArtifactDamaged, ArtifactStoreError, OptionError, RouteNotFound
from treadle.storage.reader import open_reader, unpack_segment
from treadle.storage.rows import ArtifactRow, Body
from treadle.storage.writer import Transaction

if TYPE_CHECKING:
    from treadle._runtime.engine import Engine

logger = logging.getLogger("treadle")

HIT_GRACE_S = 1.0
BLOB_GRACE_S = 24 * 3600.0
RUNS_PER_COMMIT = 200

_body = msgspec.msgpack.Decoder(Body).decode
_json = msgspec.json.encode


class Tree:
    """A run that is over, with its descendants."""

    __slots__ = ("ended_at", "is_over", "members", "pipeline")

    def __init__(self, root: str, pipeline: str, status: str, ended_at: float | None) -> None:
        self.members, self.pipeline, self.ended_at = [root], pipeline, ended_at or 0.0
        self.is_over = status in TERMINAL


class Census:
    """What a home holds, as far as forgetting is concerned; read in one go, so it is consistent.

    Args:
        path: the database.
    """

    def __init__(self, path: str) -> None:
        self.makers: dict[int, str] = {}
        self.sizes: dict[int, int] = {}
        self.named_by: dict[int, set[str]] = {}
        self.locations: set[str] = set()
        self.routed: dict[int, ArtifactRow] = {}
        with closing(open_reader(path)) as connection:
            connection.execute("BEGIN")
            self._read_runs(
                connection.execute("SELECT id, pipeline, status, parent, ended_at FROM runs ORDER BY number")
            )
            self._read_artifacts(connection.execute("SELECT id, body FROM artifacts"))
            for number, run_id in _taken(connection.execute("SELECT seq, run, first_artifact, body FROM log")):
                self.named_by.setdefault(number, set()).add(run_id)

    def _read_runs(self, rows: Iterable[Any]) -> None:
        found: dict[str, Tree] = {}
        trees: list[Tree] = []
        for run_id, pipeline, status, parent, ended_at in rows:
            tree = found.get(parent)
            if tree is None:
                tree = Tree(run_id, pipeline, status, ended_at)
                trees.append(tree)
            else:
                tree.members.append(run_id)
                tree.is_over &= status in TERMINAL
            found[run_id] = tree
        self.alive = set(found)
        self.trees = [tree for tree in trees if tree.is_over]

    def _read_artifacts(self, rows: Iterable[Any]) -> None:
        for number, packed in rows:
            body = _body(packed)
            self.makers[number], self.sizes[number] = body.run, body.size
            if body.location.startswith(ROUTED):
                self.routed[number] = ArtifactRow(body.output, body, number)
            elif body.location:
                self.locations.add(body.location)

    def unnamed(self, gone: set[str]) -> list[int]:
        """The artifacts that no run names once these are gone."""
        left = self.alive - gone
        return [
            number for number, maker in self.makers.items()
            if maker not in left and left.isdisjoint(self.named_by.get(number, ()))
        ]  # fmt: skip

    def old(self, before: float, keep_last: int) -> list[Tree]:
        """Trees that ended before a time, but for the newest of each pipeline."""
        seen: dict[str, int] = {}
        chosen: list[Tree] = []
        for tree in reversed(self.trees):
            rank = seen[tree.pipeline] = seen.get(tree.pipeline, 0) + 1
            if rank > keep_last and tree.ended_at <= before:
                chosen.append(tree)
        return chosen[::-1]

    def excess(self, chosen: list[Tree], limit: int) -> list[Tree]:
        """The oldest trees that must go, beside the chosen ones, so that the artifacts fit into ``limit`` bytes."""
        gone = {run_id for tree in chosen for run_id in tree.members}
        kept = self.alive - gone
        holders = {number: kept & {maker, *self.named_by.get(number, ())} for number, maker in self.makers.items()}
        names: dict[str, list[int]] = {}
        for number, runs in holders.items():
            for run_id in runs:
                names.setdefault(run_id, []).append(number)
        size = sum(self.sizes[number] for number, runs in holders.items() if runs)
        more: list[Tree] = []
        for tree in self.trees:
            if size <= limit:
                break
            if tree.members[0] in gone:
                continue
            more.append(tree)
            for run_id in tree.members:
                for number in names.get(run_id, ()):
                    holders[number].discard(run_id)
                    size -= 0 if holders[number] else self.sizes[number]
        return more


def _taken(rows: Iterable[Any]) -> Iterator[tuple[int, str]]:
    """What runs have taken from the cache: artifact and run."""
    for row in rows:
        for event in unpack_segment(*row):
            if isinstance(event, ev.CallCached):
                for number in event.artifacts:
                    yield number, row[1]


async def prune(engine: Engine, older_than: Duration | None, keep_last: int | None, dry_run: bool) -> dict[str, int]:
    """Forget runs that are over, then what only they named; without a rule of its own, by the engine's ``keep``."""
    limit: int | None = None
    by_rule = older_than is not None or keep_last is not None
    if not by_rule:
        if engine.keep is None:
            raise OptionError(
                "prune() was not told what may go",
                fix="give older_than= or keep_last= (keep_last=0 forgets all), or open the engine with keep=Keep(...)",
            )
        older_than, limit = engine.keep.runs_for, engine.keep.bytes
    if keep_last is not None:
        check_whole(keep_last, 0, "keep_last")
    age = seconds(older_than, "older_than") if older_than is not None else 0.0 if by_rule else None
    await engine.log.flush()
    census = await engine.io.run(Census, engine.archive.path)
    chosen = census.old(engine.clock.time() - age, keep_last or 0) if age is not None else []
    if limit is not None:
        chosen += await engine.io.run(census.excess, chosen, limit)
    if dry_run:
        going = census.unnamed({run_id for tree in chosen for run_id in tree.members})
        return _numbers(sum(len(tree.members) for tree in chosen), going, census)
    runs = 0
    for start in range(0, len(chosen), RUNS_PER_COMMIT):
        runs += await engine.log.transact(_Forget(chosen[start : start + RUNS_PER_COMMIT]))
    removed = await _collect(engine, runs)
    explain.describe_anew(engine)
    return removed


def _numbers(runs: int, artifacts: list[int], census: Census) -> dict[str, int]:
    return {"runs": runs, "artifacts": len(artifacts), "bytes": sum(census.sizes[number] for number in artifacts)}


class _Forget:
    """Removes trees of runs; to be run in a transaction."""

    def __init__(self, trees: list[Tree]) -> None:
        self._trees = trees

    def __call__(self, transaction: Transaction) -> int:
        """Gives the number of removed runs; a tree that has come to life again since the census stays."""
        execute = transaction.connection.execute
        members = {run_id for tree in self._trees for run_id in tree.members}
        rows = execute(_TOUCHED, (_json(list(members)), _json(sorted(TERMINAL)))).fetchall()
        touched = {run_id if run_id in members else parent for run_id, parent in rows}
        gone = [run_id for tree in self._trees if touched.isdisjoint(tree.members) for run_id in tree.members]
        if not gone:
            return 0
        _keep_numbers(transaction, gone)
        execute("INSERT INTO pruning(active) VALUES(1)")
        execute(f"DELETE FROM log WHERE run IN ({_LISTED})", (_json(gone),))
        execute(f"DELETE FROM runs WHERE id IN ({_LISTED})", (_json(gone),))
        execute("DELETE FROM pruning")
        return len(gone)


def _keep_numbers(transaction: Transaction, gone: list[str]) -> None:
    """Numbers are never given twice, also when the newest rows go."""
    execute = transaction.connection.execute
    events = execute(f"SELECT coalesce(sum(count), 0) FROM log WHERE run IN ({_LISTED})", (_json(gone),)).fetchone()[0]
    before = execute("SELECT value FROM counters WHERE name='pruned_events'").fetchone()
    seq, artifact = transaction.writer.last_numbers
    values = {"pruned_events": events + (before[0] if before else 0), "seq": seq, "artifact": artifact}
    for item in values.items():
        execute("INSERT OR REPLACE INTO counters(name, value) VALUES(?, ?)", item)


async def _collect(engine: Engine, runs: int) -> dict[str, int]:
    """Remove artifacts that no run names, then blobs that no artifact names."""
    census = await engine.io.run(Census, engine.archive.path)
    going = census.unnamed(set())
    if going:
        await engine.log.transact(lambda transaction: _uncache(transaction, going))
        await engine.clock.sleep(HIT_GRACE_S)
        await engine.log.flush()
        again = await engine.io.run(Census, engine.archive.path)
        going = [number for number in again.unnamed(set()) if number in set(going)]
        await engine.log.transact(lambda transaction: _remove(transaction, going))
        routed = [again.routed[number] for number in going if number in again.routed]
        await engine.io.run(_remove_routed, engine, routed)
        census.locations = (await engine.io.run(Census, engine.archive.path)).locations
    await engine.io.run(_sweep_blobs, engine, census.locations)
    return _numbers(runs, going, census)


def _uncache(transaction: Transaction, artifacts: list[int]) -> None:
    transaction.connection.execute(f"DELETE FROM cache WHERE artifact IN ({_LISTED})", (_json(artifacts),))


_UNUSED_PLANS = """DELETE FROM manifests WHERE substr(code, 1, 5) = CAST('plan:' AS BLOB) AND NOT EXISTS
    (SELECT 1 FROM cache WHERE key >= substr(code, 6, 8) AND key < substr(code, 6, 8) || x'ffffffffffffffffff')"""
"""Descriptions of what keys were made of, for steps that have no cache entry any more."""


def _remove(transaction: Transaction, artifacts: list[int]) -> None:
    _uncache(transaction, artifacts)
    _keep_numbers(transaction, [])
    transaction.connection.execute(_KEEP_VERSIONS, (_json(artifacts),))
    transaction.connection.execute(f"DELETE FROM artifacts WHERE id IN ({_LISTED})", (_json(artifacts),))
    transaction.connection.execute(f"DELETE FROM aliases WHERE artifact IN ({_LISTED})", (_json(artifacts),))
    transaction.connection.execute(_UNUSED_PLANS)


def _remove_routed(engine: Engine, rows: list[ArtifactRow]) -> None:
    """Remove bytes from the users' own places: only what rows have named, and only where this engine has the route.

    What was not recorded in the end stays there, since a place may hold what others have put into it.
    """
    for row in rows:
        try:
            place, location = engine.vault.place_of(row)
            place.delete(location)
        except (RouteNotFound, ArtifactStoreError, ArtifactDamaged) as error:
            logger.warning("the bytes of pruned artifact %s were not removed: %s", row.name, error)


def _sweep_blobs(engine: Engine, named: set[str]) -> None:
    store = engine.vault.blobs
    limit = time.time() - BLOB_GRACE_S
    for location, _, used_at in list(store.list()):
        if location not in named and used_at <= limit:
            store.delete(location, used_at)


_LISTED = "SELECT value FROM json_each(CAST(? AS TEXT))"
_KEEP_VERSIONS = f"""UPDATE names SET version =
    max(version, coalesce((SELECT max(a.version) FROM artifacts a WHERE a.name = names.id), 0))
    WHERE id IN (SELECT name FROM artifacts WHERE id IN ({_LISTED}))"""
_TOUCHED = """SELECT id, parent FROM runs
    WHERE (id IN (SELECT value FROM json_each(CAST(?1 AS TEXT)))
           AND status NOT IN (SELECT value FROM json_each(CAST(?2 AS TEXT))))
       OR (parent IN (SELECT value FROM json_each(CAST(?1 AS TEXT)))
           AND id NOT IN (SELECT value FROM json_each(CAST(?1 AS TEXT))))"""
