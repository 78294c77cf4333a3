"""What an engine can be asked: runs, events as they come, artifacts, health, numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from treadle import Engine, TreadleError, events, pipeline, step
from treadle.errors import ArtifactNotFound, RunNotFound

Drive = Callable[[Any], Any]


@step
async def double(x: int) -> int:
    return 2 * x


@step(cache=False)
async def fails() -> None:
    raise ValueError("no")


@pipeline
async def good(x: int) -> int:
    return await double(x)


@pipeline
async def bad() -> None:
    await fails()


@pipeline
async def parent(x: int) -> int:
    return await good(x)


@pytest.mark.asyncio
async def test_runs_are_listed_newest_first_and_filtered(home: str) -> None:
    async with Engine(home) as engine:
        first = await engine.run(good, 1)
        second = await engine.run(good, 2)
        third = await engine.run(bad)
        fourth = await engine.run(parent, 3)
        assert third.status == "failed"
        assert [run.run_id for run in await engine.runs()] == [fourth.run_id, third.run_id, second.run_id, first.run_id]
        assert [run.run_id for run in await engine.runs(pipeline="good")] == [second.run_id, first.run_id]
        assert [run.pipeline for run in await engine.runs(status="failed")] == ["bad"]
        assert [run.run_id for run in await engine.runs(limit=1)] == [fourth.run_id]
        assert [run.pipeline for run in await engine.runs(children=True, limit=2)] == ["good", "parent"]
        assert await engine.runs(pipeline="nothing of that name") == []
        with pytest.raises(TreadleError, match=r"'succeded'.*'succeeded'"):
            await engine.runs(status="succeded")


@pytest.mark.asyncio
async def test_what_is_not_there_is_said_with_its_name(home: str) -> None:
    async with Engine(home) as engine:
        for question in (engine.get_run("nope"), engine.resume("nope"), engine.cancel("nope"), engine.logs("nope")):
            with pytest.raises(RunNotFound, match=r"'nope'.*engine\.runs"):
                await question
        with pytest.raises(RunNotFound, match="nope"):
            _ = [event async for event in engine.events("nope")]
        with pytest.raises(ArtifactNotFound, match="'nope'"):
            await engine.artifact("nope")
        await engine.run(good, 1)
        with pytest.raises(ArtifactNotFound, match="'double' version 9"):
            await engine.artifact("double", 9)
        assert isinstance(RunNotFound(), LookupError)
        assert isinstance(ArtifactNotFound(), LookupError)


@pytest.mark.asyncio
async def test_artifacts_are_found_by_name_and_version(home: str) -> None:
    async with Engine(home) as engine:
        for x in (1, 2, 3):
            await engine.run(good, x)
        newest = await engine.artifact("double")
        assert (newest.version, await newest.load()) == (3, 6)
        oldest = await engine.artifact("double", version=1)
        assert (oldest.version, oldest.read(), oldest.producer.step) == (1, 2, "double")
        await engine.run(good, 1)
        assert (await engine.artifact("double")).version == 3


# -- events -------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_events_of_a_run_tell_its_whole_story(home: str) -> None:
    async with Engine(home) as engine:
        result = await engine.run(good, 1)
        found = [event async for event in engine.events(result.run_id)]
        assert [event.kind for event in found] == [
            "RunAccepted", "CallScheduled", "CallStarted", "CallCompleted", "RunSucceeded",
        ]  # fmt: skip
        assert {event.run_id for event in found} == {result.run_id}
        assert [event.seq for event in found] == sorted(event.seq for event in found)
        started = found[2]
        assert isinstance(started, events.CallStarted)
        assert (started.call, started.step, started.attempt) == ("double", "double", 1)
        assert [event.at for event in found] == sorted(event.at for event in found)
        after = [event async for event in engine.events(result.run_id, after=started.seq)]
        assert after == found[3:]


@pytest.mark.asyncio
async def test_the_events_of_all_runs_are_numbered_without_gaps(home: str) -> None:
    async with Engine(home) as engine:
        await asyncio.gather(*(engine.run(good, x) for x in range(10)))
        found = [event async for event in engine.events()]
        assert [event.seq for event in found] == list(range(1, len(found) + 1))
        assert len({event.run_id for event in found}) == 10
        assert [event async for event in engine.events(after=len(found) - 3)] == found[-3:]
        assert [event async for event in engine.events(after=len(found))] == []


def test_following_a_run_ends_with_it(drive: Drive, home: str, until: Any) -> None:
    async def main() -> None:
        gate, started = asyncio.Event(), asyncio.Event()

        @step(cache=False)
        async def waits() -> None:
            started.set()
            await gate.wait()

        @pipeline
        async def long() -> None:
            await waits()

        async with Engine(home) as engine:
            handle = await engine.start(long)
            seen: list[str] = []

            async def follow() -> None:
                async for event in engine.events(handle.id, follow=True):
                    seen.append(event.kind)  # noqa: PERF401  # one by one, as they come

            following = asyncio.create_task(follow())
            await started.wait()
            await until(lambda: "CallStarted" in seen)
            gate.set()
            await following
            assert seen[-1] == "RunSucceeded"
            assert seen == [event.kind async for event in handle.events()]

    drive(main())


@pytest.mark.asyncio
async def test_following_all_runs_ends_with_the_engine_and_misses_nothing(home: str) -> None:
    seen: list[int] = []
    async with Engine(home) as engine:

        async def follow() -> None:
            async for event in engine.events(follow=True):
                seen.append(event.seq)  # noqa: PERF401  # one by one, as they come

        following = asyncio.create_task(follow())
        await engine.run(good, 1)
        last = await engine.run(good, 2)
        written = engine.metrics()["log_events"]
    await asyncio.wait_for(following, 10)
    assert last.success
    assert seen == list(range(1, int(written) + 1))


@pytest.mark.asyncio
async def test_two_engines_of_one_home_can_follow_each_other(home: str) -> None:
    async with Engine(home) as here, Engine(home) as there:
        handle = await there.start(good, 1)
        kinds = [event.kind async for event in here.events(handle.id, follow=True)]
        assert kinds[0] == "RunAccepted"
        assert kinds[-1] == "RunSucceeded"


@pytest.mark.asyncio
async def test_leaving_a_followed_stream_leaves_nothing_behind(home: str) -> None:
    async with Engine(home) as engine:
        await engine.run(good, 1)
        listeners = len(engine.log.committed)
        stream = engine.events(follow=True)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]  # an async generator
        assert len(engine.log.committed) == listeners


# -- health and numbers -------------------------------------------------------------------


@pytest.mark.asyncio
async def test_health_and_metrics_tell_what_goes_on(home: str) -> None:
    gate, started = asyncio.Event(), asyncio.Event()

    @step(cache=False)
    async def waits() -> None:
        started.set()
        await gate.wait()

    @pipeline
    async def long() -> None:
        await waits()

    engine = Engine(home)
    assert engine.health()["status"] == "closed"
    async with engine:
        assert engine.health()["status"] == "ok"
        assert engine.health()["problems"] == []
        handle = await engine.start(long)
        await started.wait()
        numbers = engine.metrics()
        assert (numbers["runs_running"], numbers["calls_running"]) == (1, 1)
        assert engine.health()["runs_running"] == 1
        gate.set()
        await handle
        numbers = engine.metrics()
        assert (numbers["runs_running"], numbers["calls_running"], numbers["calls_ready"]) == (0, 0, 0)
        assert numbers["log_events"] == 5
        assert 0 < numbers["log_flushes"] <= 5
    assert engine.health()["status"] == "closed"
