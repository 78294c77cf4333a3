"""Forgetting: only what is over goes, what is left stays whole, and nothing that was given out is given again."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from pathlib import Path

import pytest

from treadle import Engine, Keep, pipeline, step
from treadle._runtime.home import pruning, upkeep
from treadle.errors import ArtifactDamaged, ArtifactNotFound, OptionError, RunNotFound


class Ledger:
    """Counts what was performed; no plain data, or it would count as a part of the steps' code."""

    def __init__(self) -> None:
        self.seen: list[int] = []


performed = Ledger()


@step
async def small(x: int) -> int:
    performed.seen.append(x)
    return x + 1


@step
async def large(x: int) -> bytes:
    performed.seen.append(x)
    return bytes([x]) * 100_000


@pipeline
async def smalls(first: int) -> int:
    return sum(await small.map(range(first, first + 10)))


@pipeline
async def one_large(x: int) -> int:
    return len(await large(x))


@pipeline
async def other(x: int) -> int:
    return await small(x)


@pipeline
async def parent(x: int) -> int:
    return await other(x) + 1


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else happens in these homes, so there is nothing to wait for."""
    monkeypatch.setattr(pruning, "HIT_GRACE_S", 0.0)
    monkeypatch.setattr(pruning, "BLOB_GRACE_S", 0.0)
    performed.seen.clear()


def blobs(home: Path) -> list[Path]:
    return [path for path in (home / "blobs").rglob("*") if path.is_file()]


def test_the_log_cannot_be_changed_or_shortened(home: Path) -> None:
    async def main() -> None:
        async with Engine(home) as engine:
            await engine.run(smalls, 0)
        connection = sqlite3.connect(home / "treadle.db")
        before = connection.execute("SELECT count(*) FROM log").fetchone()
        for statement in ("UPDATE log SET body = x'00'", "UPDATE log SET seq = seq + 1", "DELETE FROM log"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)
        assert connection.execute("SELECT count(*) FROM log").fetchone() == before
        connection.close()

    asyncio.run(main())


def test_runs_that_are_over_are_forgotten_with_their_events_and_artifacts(home: Path) -> None:
    async def main() -> None:
        async with Engine(home) as engine:
            old = await engine.run(smalls, 0)
            artifact = await engine.artifact("small", 1)
            foreseen = await engine.prune(older_than=0, dry_run=True)
            assert (await engine.get_run(old.run_id)).success
            assert await engine.prune(older_than=0) == foreseen
            assert foreseen["runs"] == 1
            assert foreseen["artifacts"] == 11  # ten outputs, and the run's value
            with pytest.raises(RunNotFound):
                await engine.get_run(old.run_id)
            with pytest.raises(ArtifactNotFound):
                await engine.artifact("small", 1)
            assert artifact.read() == 1  # who holds it, holds its value
            assert [event async for event in engine.events()] == []
            # a pruned artifact is a miss
            performed.seen.clear()
            assert (await engine.run(smalls, 0)).value == 55
            assert sorted(performed.seen) == list(range(10))

    asyncio.run(main())


def test_numbers_and_versions_are_never_given_twice(home: Path) -> None:
    async def main() -> None:
        async with Engine(home) as engine:
            await engine.run(smalls, 0)
            last = max([event.seq async for event in engine.events()])
            newest = await engine.artifact("small")
            await engine.prune(keep_last=0)
            await engine.run(smalls, 0)
            assert min([event.seq async for event in engine.events()]) == last + 1
            assert (await engine.artifact("small")).version == newest.version + 10
            assert (await engine.artifact("small", 11)).id > newest.id
            await engine.prune(keep_last=0)
            last += len([event async for event in engine.events()])
        async with Engine(home) as engine:  # another process reads the numbers from the home
            await engine.run(smalls, 0)
            assert min([event.seq async for event in engine.events()]) > last
            assert (await engine.artifact("small")).version == newest.version + 20

    asyncio.run(main())


def test_the_newest_runs_of_each_pipeline_are_kept(home: Path) -> None:
    async def main() -> None:
        async with Engine(home, cache=False) as engine:
            ids = [(await engine.run(other, n)).run_id for n in range(5)]
            kept = (await engine.run(smalls, 0)).run_id
            assert (await engine.prune(keep_last=2))["runs"] == 3
            assert {run.run_id for run in await engine.runs()} == {kept, *ids[3:]}
            assert (await engine.prune(older_than="1h", keep_last=0))["runs"] == 0
            assert (await engine.prune(older_than=0, keep_last=2))["runs"] == 0

    asyncio.run(main())


def test_runs_that_can_still_go_on_are_never_touched(home: Path) -> None:
    async def main() -> None:
        began, go = asyncio.Event(), asyncio.Event()

        @pipeline
        async def waiting() -> int:
            await other(1)
            began.set()
            await go.wait()
            return await small(3)

        async with Engine(home, close_timeout=0) as engine:
            interrupted = await engine.start(waiting)
            await began.wait()
        began.clear()
        async with Engine(home) as engine:
            running = await engine.start(waiting)
            await began.wait()
            before = [event async for event in engine.events()]
            assert await engine.prune(keep_last=0) == {"runs": 0, "artifacts": 0, "bytes": 0}
            assert [event async for event in engine.events()] == before
            assert (await engine.get_run(interrupted.id)).status == "interrupted"
            go.set()
            assert await running == 4
            await engine.prune(keep_last=0)
            assert [run.run_id for run in await engine.runs()] == [interrupted.id]

    asyncio.run(main())


def test_a_run_goes_with_its_children_and_not_without_them(home: Path) -> None:
    async def main() -> None:
        async with Engine(home) as engine:
            await engine.run(parent, 1)
            assert len(await engine.runs(children=True)) == 2
            assert (await engine.prune(keep_last=0))["runs"] == 2
            assert await engine.runs(children=True) == []

    asyncio.run(main())


def test_what_a_kept_run_took_from_the_cache_stays_until_it_goes_too(home: Path) -> None:
    async def main() -> None:
        async with Engine(home) as engine:
            first = await engine.run(smalls, 0)
            second = await engine.run(smalls, 0)
            assert {call.status for call in second.step_results.values()} == {"cached"}
            assert (await engine.prune(keep_last=1))["artifacts"] == 1  # the first run's own value
            with pytest.raises(RunNotFound):
                await engine.get_run(first.run_id)
            assert [call.outputs["small"] for call in second.step_results.values()] == list(range(1, 11))
            performed.seen.clear()
            assert (await engine.run(smalls, 0)).value == 55
            assert performed.seen == []  # still a hit
            assert (await engine.prune(keep_last=0))["artifacts"] == 12
            assert (await engine.run(smalls, 0)).value == 55
            assert len(performed.seen) == 10

    asyncio.run(main())


def test_bytes_outside_the_log_are_collected_after_a_grace(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Engine(home) as engine:
            for x in range(3):
                await engine.run(one_large, x)
            kept = await engine.run(one_large, 9)
            assert len(blobs(home)) == 4
            monkeypatch.setattr(pruning, "BLOB_GRACE_S", 3600.0)
            assert (await engine.prune(keep_last=1))["bytes"] > 300_000
            assert len(blobs(home)) == 4
            stale = time.time() - 7200
            for path in blobs(home):
                os.utime(path, (stale, stale))
            await engine.prune(keep_last=1)
            assert len(blobs(home)) == 1
            assert kept.step_results["large"].outputs["large"] == bytes([9]) * 100_000
            performed.seen.clear()
            assert (await engine.run(one_large, 9)).value == 100_000
            assert (await engine.run(one_large, 0)).value == 100_000
            assert performed.seen == [0]

    asyncio.run(main())


def test_the_oldest_runs_go_when_a_home_is_too_large(home: Path) -> None:
    async def main() -> None:
        async with Engine(home, keep=Keep(bytes=250_000)) as engine:
            runs = [await engine.run(one_large, x) for x in range(5)]
            gone = await engine.prune()
            assert gone["runs"] == 3
            assert {run.run_id for run in await engine.runs()} == {run.run_id for run in runs[3:]}
            assert len(blobs(home)) == 2
            assert (await engine.prune())["runs"] == 0

    asyncio.run(main())


def test_an_engine_with_keep_forgets_by_itself(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "WATCH_S", 0.02)
    monkeypatch.setattr(upkeep, "PRUNE_S", 0.0)

    async def main() -> None:
        async with Engine(home, keep=Keep(runs_for=0)) as engine:
            run = await engine.run(smalls, 0)
            assert run.success
            async with asyncio.timeout(5):
                while await engine.runs():
                    await asyncio.sleep(0.01)

    asyncio.run(main())


def test_prune_must_be_told_what_may_go(home: Path) -> None:
    async def main() -> None:
        async with Engine(home) as engine:
            with pytest.raises(OptionError, match="not told what may go"):
                await engine.prune()
            with pytest.raises(OptionError, match="keep_last"):
                await engine.prune(keep_last=-1)
            with pytest.raises(OptionError, match="older_than"):
                await engine.prune(older_than="soon")

    asyncio.run(main())


def test_many_runs_are_forgotten_while_others_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "RUNS_PER_COMMIT", 7)

    async def main() -> None:
        async with Engine(home) as engine:
            for n in range(30):
                await engine.run(other, n)
            results = await asyncio.gather(
                engine.prune(keep_last=5), *(engine.run(smalls, 100 * n) for n in range(1, 10)), engine.run(other, 3)
            )
            assert all(result.success for result in results[1:])
            assert len(await engine.runs(pipeline="other")) in (5, 6)
            assert len(await engine.runs(pipeline="smalls")) == 9

    asyncio.run(main())


def test_a_result_whose_artifact_was_pruned_says_so_and_never_gives_a_wrong_value(home: Path) -> None:
    async def main() -> None:
        async with Engine(home) as engine:
            result = await engine.run(one_large, 1)
            artifact = result.artifacts["large"]
            await engine.prune(keep_last=0)
            for x in range(2, 5):
                await engine.run(one_large, x)
            with pytest.raises(ArtifactDamaged, match="missing"):
                artifact.read()

    asyncio.run(main())
