"""The engine's process is killed with steps and their programs running: nothing of it is left two seconds later."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, sys
from pathlib import Path
import hostile_steps as steps
from treadle import Engine, pipeline
from treadle_adapters.process import ProcessExecutor

@pipeline
async def flow(folder):
    for number in range(10):
        (Path(folder) / str(number)).mkdir()
    await asyncio.gather(*[
        steps.starts.submit(f"{folder}/{number}", number % 2 == 0, True) for number in range(10)
    ])

async def main(folder):
    async with Engine(f"{folder}/home", executors={"process": ProcessExecutor(workers=10)}) as engine:
        await engine.run(flow, folder)

asyncio.run(main(sys.argv[1]))
"""


COUNT = 20
SEEDS = int(os.environ.get("TREADLE_TEST_ORPHANS", "4"))


def engine_process(folder: Path) -> subprocess.Popen[bytes]:
    """An engine with ten steps that hang, each with a program of its own; half of those are daemons."""
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], env=environment, stdin=subprocess.DEVNULL)


def pids_in(folder: Path) -> set[int]:
    return {int(path.name.removeprefix("pid-")) for path in folder.glob("[0-9]/pid-*")}


@pytest.mark.crash
@pytest.mark.linux
def test_nothing_survives_an_engine_that_was_killed(tmp_path: Path, gone: Callable[[set[int]], set[int]]) -> None:
    with engine_process(tmp_path) as engine:
        until = time.monotonic() + 30
        while len(pids_in(tmp_path)) < COUNT and time.monotonic() < until:
            time.sleep(0.01)
        pids = pids_in(tmp_path)
        assert len(pids) == COUNT
        engine.send_signal(signal.SIGKILL)
    assert gone(pids) == set()


@pytest.mark.crash
@pytest.mark.linux
@pytest.mark.parametrize("seed", range(SEEDS))
def test_nothing_survives_an_engine_that_was_killed_at_any_moment(
    tmp_path: Path, seed: int, gone: Callable[[set[int]], set[int]]
) -> None:
    with engine_process(tmp_path) as engine:
        until = time.monotonic() + 30
        while not (tmp_path / "0").exists() and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(random.Random(seed).uniform(0.0, 1.5))
        engine.send_signal(signal.SIGKILL)
    time.sleep(0.5)  # a program that was just being started writes down who it is, if it lives
    assert gone(pids_in(tmp_path)) == set()
