"""Control groups of the kernel around steps in processes, where this machine lets us make them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_steps as steps
import pytest

from treadle import Engine, RunResult, pipeline
from treadle.errors import StepCrashed
from treadle_adapters import _groups
from treadle_adapters.process import ProcessExecutor

LIMIT_S = 40.0
PROBE = "import sys; from treadle_adapters import _groups; tree = _groups.Tree.planted(); tree and tree.uproot(2)"
PROBE += "; sys.exit(tree is None)"


@pytest.fixture(scope="module", autouse=True)
def where_groups_can_be_made() -> None:
    """Only a process of its own can say: it has to move."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    if subprocess.run([sys.executable, "-c", PROBE], env=environment, timeout=LIMIT_S, check=False).returncode:
        pytest.skip("no control group can be made here")


def left() -> list[str]:
    """Groups of nurseries that are no more."""
    return [
        str(folder)
        for places in _groups._places()
        for place in places
        for folder in place.glob(f"{_groups.PREFIX}*")
        if _groups._is_dead(folder.name)
    ]


def is_clean() -> bool:
    """Whether no such group is left, now or soon; one of processes that nobody has reaped yet can stay a while."""
    until = time.monotonic() + 20.0
    while left() and time.monotonic() < until:
        time.sleep(0.01)
        _groups.is_swept()
    return not left()


def run(home: Path, *flows: Any) -> list[RunResult[Any]]:
    async def main() -> list[RunResult[Any]]:
        executors = {"process": ProcessExecutor(workers=1, grace=0.5)}
        async with asyncio.timeout(LIMIT_S), Engine(home, executors=executors) as engine:
            return [await engine.run(flow) for flow in flows]

    return asyncio.run(main())


def flow_of(target: Any, *args: Any) -> Any:
    @pipeline
    async def flow() -> Any:
        return await target(*args)

    return flow


def test_a_worker_that_the_kernel_ends_for_its_memory_is_an_error_that_says_so(tmp_path: Path) -> None:
    killed, after, small = run(
        tmp_path,
        flow_of(steps.eats_what_is_shared, 400 * 2**20),
        flow_of(steps.fine, 1),
        flow_of(steps.eats_what_is_shared, 2**20),
    )
    assert type(killed.error) is StepCrashed
    assert (killed.error.oom, killed.error.signal) == (True, signal.SIGKILL)
    assert "memory" in str(killed.error)
    assert (after.value, small.value) == (2, 2**20)
    assert is_clean()


def test_another_kill_is_not_taken_for_one_of_memory(tmp_path: Path) -> None:
    bounded = steps.kills_itself.with_options(resources={"memory": "1Gi"})
    error = run(tmp_path, flow_of(bounded, signal.SIGKILL))[0].error
    assert isinstance(error, StepCrashed)
    assert error.oom is False


def test_bounds_end_with_their_attempt(tmp_path: Path) -> None:
    bounded, free = run(
        tmp_path,
        flow_of(steps.eats_what_is_shared, 2**20),
        flow_of(steps.eats_what_is_shared.with_options(resources={"cpu": 1}), 200 * 2**20),
    )
    assert (bounded.value, free.value) == (2**20, 200 * 2**20)


def test_a_step_gets_no_more_of_a_core_than_it_asked_for(tmp_path: Path) -> None:
    slow = steps.share_of_a_core.with_options(resources={"cpu": 0.2})
    assert run(tmp_path, flow_of(slow, 1.0))[0].value < 0.5


PROGRAM = """
import asyncio, sys
from pathlib import Path
import hostile_steps as steps
from treadle import Engine
from treadle_adapters.process import ProcessExecutor

async def main(folder):
    async with Engine(f"{folder}/home", executors={"process": ProcessExecutor(workers=1)}) as engine:
        await engine.run(steps.started_and_waiting, folder)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.crash
@pytest.mark.parametrize("with_the_nursery", [False, True])
def test_what_a_killed_engine_leaves_is_ended_at_once_or_by_the_next_one(
    tmp_path: Path, with_the_nursery: bool, gone: Callable[[set[int]], set[int]]
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as engine:
        until = time.monotonic() + 30
        while len(list(tmp_path.glob("pid-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        pids = {int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")}
        assert len(pids) == 2
        if with_the_nursery:
            nursery = int(Path(f"/proc/{engine.pid}/task/{engine.pid}/children").read_text().split()[0])
            engine.send_signal(signal.SIGSTOP)
            os.kill(nursery, signal.SIGKILL)
        engine.send_signal(signal.SIGKILL)
    if with_the_nursery:
        assert run(tmp_path / "next", flow_of(steps.fine, 1))[0].value == 2
    assert gone(pids) == set()
    assert is_clean()


def test_a_place_where_nothing_can_be_made_is_passed_over(tmp_path: Path) -> None:
    assert _groups._plant([Path("/proc"), tmp_path / "missing" / "there"], "treadle-0-0") is None
