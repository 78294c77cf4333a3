"""What an engine leaves behind when it closes, or dies: a home, and nothing else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from storekit import ENGINE, open_files, threads, until

from treadle import Engine, pipeline, step
from treadle.errors import EngineClosed


@step(cache=False)
def blocking(x: int) -> int:
    return x + 1


@step(cache=False)
async def large(x: int) -> bytes:
    return bytes([x % 256]) * 100_000


@pipeline
async def work(n: int) -> int:
    results = await blocking.map(range(n))
    return len(results) + len(await large(n))


def left_in(home: Path) -> list[str]:
    """What is in a home beside its log, its blobs and its fixed files."""
    found = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
    return sorted(name for name in found if not name.startswith("blobs/") and name not in EXPECTED)


EXPECTED = {"treadle.db", "commit.lock", "generation", ".gitignore"}


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_an_engine_that_closes_leaves_no_file_thread_or_descriptor(home: Path, place: str) -> None:
    async def main() -> None:
        async with Engine(home if place == "disk" else "memory://") as engine:
            await engine.run(work, 3)  # what is opened once per process is open now
        before = open_files()
        for n in range(20):
            async with Engine(home if place == "disk" else "memory://") as engine:
                result = await engine.run(work, 3)
                assert await engine.runs(limit=1)
                assert result.value == 100_003
            await until(lambda: not threads())
            assert open_files() == before, n
        if place == "disk":
            assert left_in(home) == []

    asyncio.run(main())


@pytest.mark.parametrize("turns", range(12))
def test_a_query_that_is_cancelled_while_the_first_connection_opens_leaves_none(home: Path, turns: int) -> None:
    async def main() -> None:
        async with Engine(home) as engine:
            await engine.run(work, 3)
        before, threads_before = open_files(), threading.active_count()
        async with Engine(home) as engine:
            query = asyncio.create_task(engine.runs())
            for _ in range(turns):
                await asyncio.sleep(0)
            query.cancel()
        await until(lambda: threading.active_count() <= threads_before)
        assert open_files() == before

    asyncio.run(main())


def test_results_of_an_engine_in_memory_outlive_it() -> None:
    @pipeline
    async def keeping() -> bytes:
        return await large(7)

    async def main() -> None:
        async with Engine("memory://") as engine:
            result = await engine.run(keeping)
        assert result.value == bytes([7]) * 100_000
        assert result.step_results["large"].outputs["large"] == bytes([7]) * 100_000
        assert result.artifacts["large"].read() == bytes([7]) * 100_000

    asyncio.run(main())


def test_an_engine_in_memory_needs_no_fsspec() -> None:
    code = """
import asyncio, sys
from treadle import Engine
async def main():
    async with Engine("memory://") as engine:
        await engine.runs()
asyncio.run(main())
assert "fsspec" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ENGINE)}, check=True, timeout=60)


def test_the_environment_can_ask_for_an_engine_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_HOME", "memory://")
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        async with Engine() as engine:
            assert engine.durability == "memory"
            assert (await engine.run(work, 2)).success

    asyncio.run(main())
    assert os.listdir(tmp_path) == []


def test_durability_memory_keeps_nothing(home: Path) -> None:
    async def main() -> None:
        async with Engine(home, durability="memory") as engine:
            assert (await engine.run(work, 2)).success
        assert not home.exists()

    asyncio.run(main())


VICTIM = """
import asyncio, os, sys
from treadle import Engine, pipeline, step
from treadle.storage import failpoints

@step(cache=False)
async def large() -> bytes:
    return os.urandom(200_000)

@step(cache=False)
async def first() -> int:
    return 1

@pipeline
async def storing() -> int:
    await first()  # so the run is in the log before the process dies
    return len(await large())

async def main():
    async with Engine(sys.argv[1]) as engine:
        failpoints.arm("blob-temp-written")
        await engine.run(storing)

asyncio.run(main())
"""


@pytest.mark.crash
def test_what_a_killed_process_left_is_gone_after_the_next_open(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, str(home)], env={**os.environ, "PYTHONPATH": str(ENGINE)}, timeout=60
    )
    assert done.returncode == -9
    assert len(os.listdir(home / "tmp")) == 1
    assert len(os.listdir(home / "owners")) == 1

    async def main() -> None:
        began = time.perf_counter()
        async with Engine(home) as engine:
            assert os.listdir(home / "tmp") == []
            assert os.listdir(home / "owners") == [engine.id]
            assert [run.status for run in await engine.runs()] == ["interrupted"]
        assert time.perf_counter() - began < 5
        assert left_in(home) == []

    asyncio.run(main())


def test_opening_leaves_the_files_of_live_engines_alone(home: Path) -> None:
    async def main() -> None:
        async with Engine(home) as first, Engine(home) as second:
            assert sorted(os.listdir(home / "owners")) == sorted([first.id, second.id])
            values = await asyncio.gather(first.run(work, 5), second.run(work, 5))
            assert [result.value for result in values] == [100_005, 100_005]
            assert len(await first.runs()) == len(await second.runs()) == 2
        assert os.listdir(home / "owners") == []

    asyncio.run(main())


def test_an_engine_is_used_once(home: Path) -> None:
    async def main() -> None:
        engine = Engine(home)
        async with engine:
            with pytest.raises(EngineClosed, match=r"was open before.*make a new Engine for each"):
                async with engine:
                    pass
        with pytest.raises(EngineClosed, match=r"was closed before.*make a new Engine for each"):
            async with engine:
                pass
        with pytest.raises(EngineClosed):
            await engine.run(work, 1)
        await engine.close()
        async with Engine(home) as another:
            assert (await another.run(work, 1)).success

    asyncio.run(main())


def test_two_tasks_that_close_one_engine_both_wait_for_the_end(home: Path) -> None:
    async def main() -> None:
        engine = Engine(home, close_timeout=0.2)
        await engine.open()
        began = asyncio.Event()

        @pipeline
        async def waiting() -> None:
            began.set()
            await asyncio.Event().wait()

        await engine.start(waiting)
        await began.wait()
        await asyncio.gather(engine.close(), engine.close())
        assert os.listdir(home / "owners") == []

    asyncio.run(main())


def test_a_close_that_is_cancelled_still_gives_everything_back(home: Path) -> None:
    async def main() -> None:
        before = open_files()
        engine = Engine(home, close_timeout=60)
        await engine.open()
        began = asyncio.Event()

        @pipeline
        async def waiting() -> None:
            began.set()
            await asyncio.Event().wait()

        handle = await engine.start(waiting)
        await began.wait()
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await until(lambda: not threads())
        assert open_files() == before
        async with Engine(home) as engine:
            assert (await engine.get_run(handle.id)).status == "interrupted"

    asyncio.run(main())


@pytest.mark.slow
def test_an_engine_is_opened_and_closed_five_hundred_times(home: Path) -> None:
    async def main() -> None:
        async with Engine(home) as engine:
            await engine.run(work, 1)
        before = open_files()
        for _ in range(100):
            async with Engine(home):
                pass
        for _ in range(400):
            async with Engine("memory://"):
                pass
        await until(lambda: not threads())
        assert open_files() == before
        assert left_in(home) == []

    asyncio.run(main())
