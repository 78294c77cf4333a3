"""Which engine serves a run, how many there can be, and what a closed or forked one says."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treadle import Engine, pipeline, step
from treadle.errors import EngineClosed, OptionError, StoreError

Drive = Callable[[Any], Any]


@step
async def double(x: int) -> int:
    return 2 * x


@pipeline
async def doubled(x: int) -> int:
    return await double(x)


@pipeline
def doubled_sync(x: int) -> int:
    return double(x)


async def count(engine: Engine) -> int:
    return len(await engine.runs(children=True))


def test_without_an_engine_the_loop_gets_a_default_one_that_closes_with_it(
    drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))

    async def main() -> None:
        assert await doubled(1) == 2
        assert await asyncio.gather(doubled(2), doubled_sync(3)) == [4, 6]
        assert await doubled.start(4) == 8

    drive(main())
    drive(main())

    async def look() -> list[str]:
        async with Engine(tmp_path / "home") as engine:
            return [run.status for run in await engine.runs()]

    assert asyncio.run(look()) == ["succeeded"] * 8


def test_a_default_engine_keeps_no_process_from_ending(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import asyncio\n"
        "from treadle import step, pipeline\n"
        "@step\n"
        "def f(x): return x\n"
        "@pipeline\n"
        "async def p(x): return await f(x)\n"
        "loop = asyncio.new_event_loop()\n"
        "print(loop.run_until_complete(p(7)))\n"  # and the loop is never closed
    )
    environment = {**os.environ, "TREADLE_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=20, check=True
    )
    assert done.stdout == "7\n"
    assert "Traceback" not in done.stderr


def test_an_engine_opened_in_another_task_serves_the_handlers_of_its_loop(drive: Drive, home: str) -> None:
    async def main() -> None:
        opened, leave = asyncio.Event(), asyncio.Event()
        engines: list[Engine] = []

        async def lifespan() -> None:
            async with Engine(home) as engine:
                engines.append(engine)
                opened.set()
                await leave.wait()

        async def handler(x: int) -> int:
            return await doubled(x)

        serving = asyncio.create_task(lifespan())
        await opened.wait()
        assert await asyncio.create_task(handler(3)) == 6
        assert await count(engines[0]) == 1
        leave.set()
        await serving

    drive(main())


@pytest.mark.asyncio
async def test_an_engine_entered_in_one_context_can_be_left_in_another(home: str) -> None:
    stack = Engine(home)
    await asyncio.create_task(_enter(stack))
    assert await doubled(1) == 2
    await asyncio.create_task(_leave(stack))
    with pytest.raises(EngineClosed):
        await stack.run(doubled, 1)


async def _enter(engine: Engine) -> None:
    await engine.__aenter__()


async def _leave(engine: Engine) -> None:
    await engine.__aexit__(None, None, None)


@pytest.mark.asyncio
async def test_two_homes_at_once_are_kept_apart(tmp_path: Path) -> None:
    async with Engine(tmp_path / "a") as a, Engine(tmp_path / "b") as b:
        first, second = await asyncio.gather(a.run(doubled, 1), b.run(doubled, 2))
        assert (first.value, second.value) == (2, 4)
        assert [run.value for run in await a.runs()] == [2]
        assert [run.value for run in await b.runs()] == [4]


@pytest.mark.asyncio
async def test_the_innermost_engine_serves_and_the_outer_one_again_afterwards(tmp_path: Path) -> None:
    async with Engine(tmp_path / "outer") as outer:
        await doubled(1)
        async with Engine(tmp_path / "inner") as inner:
            await doubled(2)
            assert (await count(outer), await count(inner)) == (1, 1)
        await doubled(3)
        assert await count(outer) == 2


@pytest.mark.asyncio
async def test_a_context_keeps_its_engine_when_another_task_opens_a_second_one(tmp_path: Path) -> None:
    opened, leave = asyncio.Event(), asyncio.Event()

    async def elsewhere() -> int:
        async with Engine(tmp_path / "second") as second:
            opened.set()
            await leave.wait()
            return await count(second)

    async with Engine(tmp_path / "first") as first:
        other = asyncio.create_task(elsewhere())
        await opened.wait()
        await doubled(1)
        assert await count(first) == 1
        leave.set()
        assert await other == 0


@pytest.mark.asyncio
async def test_a_pipelines_own_engine_comes_before_all_others(tmp_path: Path) -> None:
    async with Engine(tmp_path / "own") as own, Engine(tmp_path / "innermost") as innermost:
        assert await doubled.with_options(engine=own)(1) == 2
        assert await doubled.with_options(engine=own).start(2) == 4
        assert (await count(own), await count(innermost)) == (2, 0)


@pytest.mark.asyncio
async def test_children_run_on_the_engine_of_their_parent(tmp_path: Path) -> None:
    @pipeline
    async def parent(x: int) -> int:
        return await doubled(x)

    async with Engine(tmp_path / "a") as a, Engine(tmp_path / "b"):
        assert (await a.run(parent, 1)).value == 2
        assert await count(a) == 2


@pytest.mark.asyncio
async def test_two_engines_on_one_home_see_each_others_runs(home: str) -> None:
    async with Engine(home) as one, Engine(home) as two:
        first = await one.run(doubled, 1)
        second = await two.run(doubled, 1)
        assert second.step_results["double"].cached
        assert {run.run_id for run in await one.runs()} == {first.run_id, second.run_id}
        assert (await two.get_run(first.run_id)).value == 2


def test_each_thread_can_have_a_loop_and_an_engine(tmp_path: Path) -> None:
    async def main(name: str) -> Any:
        async with Engine(tmp_path / name) as engine:
            return [(await engine.run(doubled, x)).value for x in range(5)], await count(engine)

    async def both() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(asyncio.run, main(name)) for name in "ab"))

    assert asyncio.run(both()) == [([0, 2, 4, 6, 8], 5)] * 2


def test_two_threads_work_on_one_home_while_both_their_loops_are_busy(tmp_path: Path) -> None:
    async def main(first: int) -> list[int]:
        async with Engine(tmp_path / "home") as engine:
            is_over = asyncio.Event()
            busy = asyncio.create_task(compute_until(is_over))
            try:
                results = await asyncio.gather(*(engine.run(doubled, first + x) for x in range(10)))
            finally:
                is_over.set()
                await busy
            return [result.value for result in results]

    async def both() -> list[list[int]]:
        return await asyncio.gather(*(asyncio.to_thread(asyncio.run, main(first)) for first in (0, 5)))

    assert asyncio.run(both()) == [[2 * x for x in range(10)], [2 * x for x in range(5, 15)]]


async def compute_until(is_over: asyncio.Event) -> None:
    """Keep the loop busy, in turns of half a millisecond."""
    while not is_over.is_set():
        until = time.perf_counter() + 0.0005
        while time.perf_counter() < until:
            pass
        await asyncio.sleep(0)


# -- closed and forked --------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_closed_engine_says_so_and_what_to_do(home: str) -> None:
    engine = Engine(home)
    with pytest.raises(EngineClosed, match="async with"):
        await engine.run(doubled, 1)
    async with engine:
        await engine.run(doubled, 1)
    for attempt in (
        engine.run(doubled, 1),
        engine.start(doubled, 1),
        engine.recover(),
        engine.resume("x"),
        engine.prune(),
    ):
        with pytest.raises(EngineClosed, match=r"closed.*async with"):
            await attempt
    with pytest.raises(EngineClosed, match="new Engine"):
        await engine.open()


@pytest.mark.asyncio
async def test_a_closed_engine_answers_no_questions_about_its_home(home: str) -> None:
    async with Engine(home) as engine:
        result = await engine.run(doubled, 1)
    for question in (
        engine.runs(),
        engine.get_run(result.run_id),
        engine.logs(result.run_id),
        engine.artifact("double"),
    ):
        with pytest.raises(EngineClosed):
            await question
    with pytest.raises(EngineClosed):
        async for _ in engine.events():
            pass
    assert engine.health()["status"] == "closed"
    assert engine.metrics()["log_events"] > 0


@pytest.mark.asyncio
async def test_a_pipeline_bound_to_a_closed_engine_is_refused(home: str) -> None:
    async with Engine(home) as engine:
        bound = doubled.with_options(engine=engine)
    with pytest.raises(EngineClosed):
        await bound(1)


@pytest.mark.asyncio
async def test_closing_twice_is_harmless(home: str) -> None:
    async with Engine(home) as engine:
        await engine.run(doubled, 1)
        await engine.close()
        await engine.close()


FORKED = """
import asyncio, os, sys
from treadle import Engine, pipeline, step
from treadle.errors import EngineForked

@step
def f(x): return x

@pipeline
async def p(x): return await f(x)

async def main():
    async with Engine(sys.argv[1]) as engine:
        await engine.run(p, 1)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                engine.check_usable()
                text = "nothing was refused"
            except EngineForked as error:
                text = str(error)
            os.write(write, text.encode())
            os._exit(0)
        os.waitpid(child, 0)
        print(os.read(read, 1000).decode())
        print((await engine.run(p, 2)).value)

asyncio.run(main())
"""


def test_a_forked_engine_says_so_and_the_parents_goes_on(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path / "home")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=20,
        check=True,
    )
    refused, value = done.stdout.splitlines()
    assert "forked" in refused
    assert "after the fork" in refused
    assert value == "2"


@pytest.mark.parametrize(
    "options",
    [{"threads": 0}, {"threads": True}, {"max_concurrency": -1}, {"durability": "maybe"}, {"close_timeout": "soon"}],
)
def test_wrong_engine_options_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        Engine(**options)


def test_making_an_engine_touches_nothing(tmp_path: Path) -> None:
    Engine(tmp_path / "home")
    assert not (tmp_path / "home").exists()


@pytest.mark.asyncio
async def test_a_home_in_memory_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with Engine("memory://") as engine:
        result = await engine.run(doubled, 21)
    assert result.value == 42
    assert result.outputs["double"] == 42
    assert list(tmp_path.iterdir()) == []


def test_an_engine_sets_no_signal_handler_and_no_environment(home: str) -> None:
    import signal

    async def main() -> tuple[Any, Any]:
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}, dict(os.environ)
        async with Engine(home) as engine:
            await engine.run(doubled, 1)
            return before, (
                {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)},
                dict(os.environ),
            )

    before, during = asyncio.run(main())
    assert before == during


@pytest.mark.asyncio
async def test_a_run_that_could_not_begin_is_told_to_the_logger_even_if_nobody_awaits_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    handle = doubled.start(1)
    with pytest.raises(StoreError):
        await handle.accepted()
    assert f"run {handle.id} of doubled did not begin" in caplog.text
