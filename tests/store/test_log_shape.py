"""What a commit costs and what an open home looks like: few statements however many rows, private files."""

from __future__ import annotations

import asyncio
import errno
import stat
from pathlib import Path

from treadle import Engine, pipeline, step
from treadle.errors import LogUnavailable, StoreUnwritable


@step
async def square(x: int) -> int:
    return x * x


@step(cache=False)
def triple(x: int) -> int:
    return 3 * x


@pipeline
async def wide(n: int) -> int:
    return sum(await square.map(range(n))) + sum(await triple.map(range(n // 10)))


def statements(home: Path, n: int) -> tuple[int, int]:
    """How many SQL statements the writer makes for a run of that width, and how many commits."""

    async def main() -> tuple[int, int]:
        async with Engine(home) as engine:
            await engine.run(wide, 10)
            seen: list[str] = []
            commits = engine.metrics()["log_flushes"]
            engine.log._writer.connection.set_trace_callback(seen.append)
            assert (await engine.run(wide, n)).success
            engine.log._writer.connection.set_trace_callback(None)
            sql = [line for line in seen if not line.startswith("--")]  # those are a trigger's
            return len(sql), int(engine.metrics()["log_flushes"] - commits)

    return asyncio.run(main())


def test_a_commit_takes_a_handful_of_statements_however_many_rows_it_has(tmp_path: Path) -> None:
    """Row by row, 5,000 calls would take 15,000 statements, each of which gives the interpreter lock away."""
    count, commits = statements(tmp_path / "home", 5000)
    assert count / commits <= 12
    assert count < 1500


def test_every_file_and_folder_of_an_open_home_is_private(home: Path) -> None:
    async def main() -> None:
        async with Engine(home) as engine:
            await engine.run(wide, 10)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [home, *home.rglob("*")]}
            folders = {path.name for path in [home, *home.rglob("*")] if path.is_dir()}
            assert {modes[name] for name in folders} == {0o700}
            assert {mode for name, mode in modes.items() if name not in folders} == {0o600}

    asyncio.run(main())


def test_an_error_of_the_system_keeps_what_it_was_given() -> None:
    """``OSError`` has attributes of its own, and its constructor would clear them."""
    error = StoreUnwritable("full", errno=errno.ENOSPC, filename="/data", path="/data")
    assert (error.errno, error.filename, error.path) == (errno.ENOSPC, "/data", "/data")
    assert LogUnavailable("full", errno=errno.EIO).errno == errno.EIO
