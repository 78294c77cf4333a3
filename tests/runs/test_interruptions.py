"""Ends that nobody decided on: Ctrl-C, the end of the loop, the close of the engine. Such runs are interrupted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treadle import Engine, pipeline, step
from treadle.errors import EngineClosed, RunInterrupted

Drive = Callable[[Any], Any]

SCRIPT = """
import asyncio, sys, threading
from treadle import Engine, pipeline, step

@step
async def quick(x: int) -> int:
    return x

@step(cache=False)
async def forever(x: int) -> int:
    print("ready", flush=True)
    await asyncio.Event().wait()
    return x

@step(cache=False)
def stuck(x: int) -> int:
    print("ready", flush=True)
    threading.Event().wait()
    return x

@pipeline
async def long(x: int) -> int:
    await quick(x)
    return await forever(x)

@pipeline
def long_sync(x: int) -> int:
    quick(x)
    return forever(x)

@pipeline
async def in_a_thread(x: int) -> int:
    await quick(x)
    return await stuck(x)
"""


def start(folder: Path, body: str) -> subprocess.Popen[str]:
    """A Python program that has defined the pipelines above; its home is ``folder / "home"``."""
    script = folder / "program.py"
    script.write_text(SCRIPT + textwrap.dedent(body))
    environment = {**os.environ, "TREADLE_HOME": str(folder / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    )


def interrupt(folder: Path, body: str, runs: int = 1) -> tuple[int, str]:
    """Start a program, press Ctrl-C when so many runs say they are ready, and give exit code and standard error."""
    with start(folder, body) as program:
        assert program.stdout is not None
        said = ""
        while said.count("ready") < runs:  # two threads may say it at once, on one line
            said += (line := program.stdout.readline())
            assert line, "the program has ended before it was ready"
        program.send_signal(signal.SIGINT)
        _, error = program.communicate(timeout=20)
    return program.returncode, error


def statuses(folder: Path) -> dict[str, dict[str, str]]:
    """Status of every run and of its calls, from the home; no run is taken for another one's."""

    async def look() -> dict[str, dict[str, str]]:
        async with Engine(folder / "home") as engine:
            found = await engine.runs(children=True)
            return {
                run.pipeline: {"": run.status, **{name: call.status for name, call in run.step_results.items()}}
                for run in found
            }

    return asyncio.run(look())


@pytest.mark.parametrize("target", ["long", "long_sync", "in_a_thread"])
def test_ctrl_c_in_a_script_interrupts_the_run(tmp_path: Path, target: str) -> None:
    code, error = interrupt(tmp_path, f"{target}.run(1)")
    assert code in (130, -signal.SIGINT), error
    assert "KeyboardInterrupt" in error
    call = "stuck" if target == "in_a_thread" else "forever"
    assert statuses(tmp_path) == {target: {"": "interrupted", "quick": "succeeded", call: "interrupted"}}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_ctrl_c_under_a_runner_interrupts_attached_and_detached_runs(tmp_path: Path, loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    body = f"""
        async def main():
            async with Engine():
                handle = in_a_thread.start(1)
                await handle.accepted()
                await long(2)
        import {loop}
        with asyncio.Runner(loop_factory=getattr({loop}, "new_event_loop")) as runner:
            runner.run(main())
    """
    code, error = interrupt(tmp_path, body, runs=2)
    assert code in (130, -signal.SIGINT), error
    found = statuses(tmp_path)
    assert {name: calls[""] for name, calls in found.items()} == {"in_a_thread": "interrupted", "long": "interrupted"}
    assert found["long"]["quick"] == "succeeded"


def test_ctrl_c_with_the_default_engine_interrupts_the_run(tmp_path: Path) -> None:
    body = """
        async def main():
            await long(2)
        asyncio.run(main())
    """
    code, error = interrupt(tmp_path, body)
    assert code in (130, -signal.SIGINT), error
    assert statuses(tmp_path)["long"] == {"": "interrupted", "quick": "succeeded", "forever": "interrupted"}


def test_sigterm_leaves_a_run_that_the_next_engine_calls_interrupted(tmp_path: Path) -> None:
    with start(tmp_path, "long.run(1)") as program:
        assert program.stdout is not None
        program.stdout.readline()
        program.terminate()
        program.communicate(timeout=20)
    assert statuses(tmp_path)["long"][""] == "interrupted"


def test_the_end_of_the_loop_interrupts_a_detached_run(
    drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    started: list[asyncio.Event] = []

    @step(cache=False)
    async def forever() -> None:
        started[0].set()
        await asyncio.Event().wait()

    @pipeline
    async def long() -> None:
        await forever()

    async def main() -> str:
        started.append(asyncio.Event())
        handle = long.start()
        await started[0].wait()
        return handle.id

    drive(main())
    assert statuses(tmp_path) == {"long": {"": "interrupted", "forever": "interrupted"}}


def test_a_loop_that_ends_as_a_run_begins_leaves_no_running_run(
    drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))

    @step
    async def quick() -> int:
        return 1

    @pipeline
    async def first() -> int:
        return await quick()

    @pipeline
    async def second() -> int:
        return await quick()

    async def main() -> None:
        await first()
        second.start()

    drive(main())
    found = statuses(tmp_path)
    assert found["first"][""] == "succeeded"
    assert found.get("second", {"": "interrupted"})[""] == "interrupted"


# -- closing the engine -------------------------------------------------------------------


def gated(**options: Any) -> tuple[Any, asyncio.Event, asyncio.Event]:
    """A pipeline whose only step waits; with the events of its start and its gate."""
    started, gate = asyncio.Event(), asyncio.Event()

    @step(cache=False)
    async def waits(x: int) -> int:
        started.set()
        await gate.wait()
        return x

    @pipeline(**options)
    async def waiting(x: int) -> int:
        return await waits(x)

    return waiting, started, gate


@pytest.mark.asyncio
async def test_leaving_the_engine_waits_for_detached_runs(home: str) -> None:
    waiting, started, gate = gated()
    async with Engine(home) as engine:
        handle = waiting.start(3)
        await started.wait()
        asyncio.get_running_loop().call_later(0.05, gate.set)
    assert await handle == 3
    assert engine.health()["status"] == "closed"


@pytest.mark.asyncio
async def test_leaving_the_engine_interrupts_what_outlasts_close_timeout(home: str) -> None:
    waiting, started, _ = gated()
    async with Engine(home, close_timeout=0.1):
        handle = waiting.start(3)
        attached = asyncio.ensure_future(waiting(4))
        await started.wait()
    for awaitable in (handle, attached):
        with pytest.raises(RunInterrupted, match="recover"):
            await awaitable
    result = await handle.wait()
    assert result.status == "interrupted"
    assert isinstance(result.error, RunInterrupted)
    assert result.step_results["waits"].status == "interrupted"


@pytest.mark.asyncio
async def test_leaving_the_engine_by_an_exception_interrupts_at_once(home: str) -> None:
    waiting, started, _ = gated()
    begun = asyncio.get_running_loop().time()
    handles: list[Any] = []

    async def leave_by_an_exception() -> None:
        async with Engine(home, close_timeout=60):
            handles.append(waiting.start(3))
            await started.wait()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await leave_by_an_exception()
    assert asyncio.get_running_loop().time() - begun < 5
    with pytest.raises(RunInterrupted):
        await handles[0]


@pytest.mark.asyncio
async def test_a_run_that_has_been_cancelled_stays_cancelled_when_the_engine_closes(home: str) -> None:
    started, gate = asyncio.Event(), asyncio.Event()

    @step(cache=False)
    async def cleans_up() -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            await gate.wait()

    @pipeline
    async def untidy() -> None:
        await cleans_up()

    async with Engine(home, close_timeout=0.05):
        handle = untidy.start()
        await started.wait()
        cancelling = asyncio.ensure_future(handle.cancel())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.2, gate.set)
    await cancelling
    assert (await handle.wait()).status == "cancelled"


@pytest.mark.asyncio
async def test_an_interrupted_run_is_interrupted_down_to_its_children(home: str) -> None:
    child, started, _ = gated(name="child")

    @pipeline
    async def parent() -> int:
        return int(await child(1))

    async with Engine(home, close_timeout=0) as engine:
        handle = parent.start()
        await started.wait()
    with pytest.raises(RunInterrupted):
        await handle
    async with Engine(home) as engine:
        assert {run.pipeline: run.status for run in await engine.runs(children=True)} == {
            "parent": "interrupted", "child": "interrupted",
        }  # fmt: skip


@pytest.mark.asyncio
async def test_no_run_begins_on_an_engine_that_is_closing(home: str) -> None:
    waiting, started, gate = gated()
    engine = Engine(home)
    async with engine:
        handle = waiting.start(1)
        await started.wait()
        closing = asyncio.ensure_future(engine.close())
        await asyncio.sleep(0)
        with pytest.raises(EngineClosed):
            await engine.run(waiting, 2)
        gate.set()
        await closing
    assert await handle == 1
