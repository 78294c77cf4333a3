"""Tags and metadata of steps and pipelines are on record with every call and run, whatever becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from treadle import Engine, Secret, current, pipeline, step, when
from treadle.events import MetadataLogged

Drive = Callable[[Any], Any]


@step(tags=["io", "slow"], metadata={"team": "data", "sla": {"hours": 4}})
async def load(n: int) -> int:
    current().log_metadata(team="nobody", rows=n)
    return n


@step(cache=False, metadata={"kind": "fails"})
async def fails(n: int) -> int:
    raise ValueError(n)


@when(lambda n: n > 100)
@step(tags="conditional")
async def left_out(n: int) -> int:
    return n


@step
async def plain(n: int) -> int:
    return n


opened: asyncio.Event


@step(cache=False, tags=["gate"], metadata={"at": "options"})
async def gate(n: int) -> int:
    current().log_metadata(at="attempt")
    await opened.wait()
    return n


@pipeline(tags=["nightly"], failure_mode="continue")
async def everything() -> int:
    await load.map([1, 2])
    renamed = load.with_options(tags=["other"], metadata={"team": "web"})
    await asyncio.gather(renamed(3), load(4), renamed(5))
    plain.submit(await left_out(1) or 7)
    plain.submit(fails.submit(1))
    return await plain(6)


@pipeline(tags=["gated"])
async def gated() -> int:
    return await gate(1)


@pytest.mark.asyncio
async def test_every_call_has_the_tags_and_metadata_of_its_own_options(home: str) -> None:
    async with Engine(home) as engine:
        first = await engine.run(everything)
        again = await engine.run(everything.with_options(tags=["by hand"]))
        assert (first.success, again.success) == (False, False)
    assert (first.tags, again.tags) == (("nightly",), ("by hand",))
    for result, logged in ((first, True), (again, False)):
        calls = result.step_results
        said = {"team": "nobody", "rows": 1} if logged else {"team": "data"}
        assert calls["load[0]"].metadata == {"sla": {"hours": 4}, **said}
        assert calls["load[0]"].tags == ("io", "slow")
        team = "nobody" if logged else "web"
        assert [calls[name].tags for name in ("load_2", "load_3", "load_4")] == [("other",), ("io", "slow"), ("other",)]
        assert [calls[name].metadata["team"] for name in ("load_2", "load_4")] == [team, team]
        assert (calls["left_out"].status, calls["left_out"].tags) == ("skipped", ("conditional",))
        assert (calls["fails"].metadata, calls["fails"].tags) == ({"kind": "fails"}, ())
        assert (calls["plain"].metadata, calls["plain"].tags) == ({}, ())


@pytest.mark.asyncio
async def test_a_step_without_them_costs_no_event(home: str) -> None:
    @pipeline
    async def bare() -> int:
        return await plain(1)

    async with Engine(home) as engine:
        await engine.run(bare)
        assert not [event async for event in engine.events() if isinstance(event, MetadataLogged)]


@pytest.mark.asyncio
async def test_a_resumed_call_says_it_again_below_what_it_said_of_itself(home: str) -> None:
    global opened
    opened = asyncio.Event()
    async with Engine(home, close_timeout=0) as engine:
        handle = await engine.start(gated)
        async for event in handle.events():
            if isinstance(event, MetadataLogged) and event.attempt:
                break
    opened.set()
    async with Engine(home) as engine:
        (result,) = await engine.recover()
        assert (result.value, result.tags) == (1, ("gated",))
        assert (result.step_results["gate"].metadata, result.step_results["gate"].tags) == (
            {"at": "attempt"},
            ("gate",),
        )


@pytest.mark.asyncio
async def test_a_secret_in_them_is_masked(home: str) -> None:
    secret = Secret("open-sesame")
    named = plain.with_options(tags=[f"for {secret.value}"], metadata={"key": [secret.value]})

    @pipeline
    async def bare() -> int:
        return await named(1)

    async with Engine(home) as engine:
        call = (await engine.run(bare)).step_results["plain"]
    assert (call.tags, call.metadata) == (("for ***",), {"key": ["***"]})
