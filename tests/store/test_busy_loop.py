"""A loop that is busy without a pause, and the log that has to be written beside it."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from tests import loops
from treadle import Engine, pipeline, step
from treadle.storage import courtesy

STEPS = 10
TURN_S = 0.0005
MOST_TURNS = 10_000
"""5 s: a hundred times what these steps take, and a tenth of what they took when nobody gave way."""


class Spinner:
    """A callback that computes for a moment and schedules itself again, as a host with too much to do."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.turns = loop, 0
        self.is_stopped = False

    def spin(self) -> None:
        self.turns += 1
        until = time.perf_counter() + TURN_S
        while time.perf_counter() < until:
            pass
        if not self.is_stopped and self.turns < MOST_TURNS:
            self.loop.call_soon(self.spin)


@step
async def increment(value: int) -> int:
    return value + 1


@pipeline
async def chain(value: int) -> int:
    for _ in range(STEPS):
        value = await increment(value)
    return value


@pytest.mark.parametrize("durability", ["strict", "relaxed"])
@pytest.mark.parametrize("kind", loops.KINDS)
def test_commits_come_while_the_loop_is_busy(
    kind: str, durability: Literal["strict", "relaxed"], tmp_path: Path
) -> None:
    async def scene() -> tuple[int, int]:
        spinner = Spinner(asyncio.get_running_loop())
        async with Engine(tmp_path / "home", durability=durability) as engine:
            spinner.spin()
            value = (await engine.run(chain, 0)).value
            turns, spinner.is_stopped = spinner.turns, True
        return value, turns

    value, turns = loops.run(kind, scene())
    assert value == STEPS
    assert turns < MOST_TURNS


@pytest.mark.parametrize(("share", "waits", "is_paused"), [(0.1, True, False), (0.9, True, True), (0.1, False, True)])
def test_only_a_loop_that_never_waits_or_computes_most_of_the_time_is_paused(
    share: float, waits: bool, is_paused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, paused = 0.0, list[float]()
    times = SimpleNamespace(perf_counter=lambda: clock, thread_time=lambda: clock * share, sleep=paused.append)
    monkeypatch.setattr(courtesy, "time", times)
    monkeypatch.setattr(courtesy, "_waits", lambda: clock * waits)

    async def scene() -> None:
        looks = 0
        looked = asyncio.Event()

        def patience() -> float | None:
            nonlocal looks, clock
            looks, clock = looks + 1, clock + 1.0
            if looks > 5:  # two when it is told to watch, and three looks
                looked.set()
            return 0.001 if looks <= 5 else None

        watcher = courtesy.Courtesy(asyncio.get_running_loop(), patience)
        watcher.watch()
        watcher.watch()
        await looked.wait()
        watcher.stop()

    asyncio.run(scene())
    assert paused == [courtesy.PAUSE_S] * 3 * is_paused


@pytest.mark.asyncio
async def test_the_loop_is_looked_at_sooner_when_somebody_begins_to_wait() -> None:
    loop = asyncio.get_running_loop()
    patience: list[float | None] = [3600.0]
    looks: list[float] = []

    def ask() -> float | None:
        looks.append(loop.time())
        return patience[0]

    watcher = courtesy.Courtesy(loop, ask)
    watcher.watch()
    patience[0] = 0.001
    watcher.watch()
    while len(looks) < 4:  # two of them when it was told to watch
        await asyncio.sleep(0.001)
    patience[0] = None
    await asyncio.sleep(0.01)
    seen = len(looks)
    await asyncio.sleep(0.01)
    assert len(looks) == seen
    watcher.stop()


@step(cache=False)
async def short(value: int) -> int:
    await asyncio.sleep(0.002)
    return value


@pytest.mark.asyncio
@pytest.mark.parametrize(("durability", "expected"), [("strict", courtesy.EVERY_S), ("relaxed", courtesy.RARELY_S)])
async def test_only_commits_that_somebody_waits_for_are_in_a_hurry(
    durability: Literal["strict", "relaxed"], expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float | None] = []
    watch = courtesy.Courtesy.watch

    def noted(self: courtesy.Courtesy) -> None:
        seen.append(self._patience())
        watch(self)

    @pipeline
    async def some() -> list[float | None]:
        await short(0)
        seen.clear()  # what came before was the run's acceptance, for which somebody did wait
        for value in range(30):
            await short(value)
        return list(seen)

    monkeypatch.setattr(courtesy.Courtesy, "watch", noted)
    async with Engine(tmp_path / "home", durability=durability) as engine:
        value = (await engine.run(some)).value
    assert set(value) - {None} == {expected}


@pytest.mark.asyncio
async def test_a_commit_behind_which_much_has_gathered_is_in_no_hurry(tmp_path: Path) -> None:
    release = threading.Event()

    @pipeline
    async def many() -> tuple[float | None, float | None]:
        log = engine.log
        held = asyncio.ensure_future(log.transact(lambda _: release.wait(30)))
        await asyncio.sleep(0)
        before = log._patience()
        futures = [increment.submit(value) for value in range(100)]
        await asyncio.sleep(0)
        after = log._patience()
        release.set()
        await held
        await asyncio.gather(*futures)
        return before, after

    async with Engine(tmp_path / "home") as engine:
        assert (await engine.run(many)).value == (courtesy.EVERY_S, courtesy.RARELY_S)
