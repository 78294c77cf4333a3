"""A loop that is busy without a pause, and the log that has to be written beside it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.parametrize("kind", loops.KINDS)
def test_commits_come_while_the_loop_is_busy(kind: str, tmp_path: Path) -> None:
    async def scene() -> tuple[int, int]:
        spinner = Spinner(asyncio.get_running_loop())
        async with Engine(tmp_path / "home") as engine:
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

        def is_needed() -> bool:
            nonlocal looks, clock
            looks, clock = looks + 1, clock + 1.0
            if looks == 4:
                looked.set()
            return looks < 4

        watcher = courtesy.Courtesy(asyncio.get_running_loop(), is_needed)
        watcher.watch()
        watcher.watch()
        await looked.wait()
        watcher.stop()

    asyncio.run(scene())
    assert paused == [courtesy.PAUSE_S] * 3 * is_paused
