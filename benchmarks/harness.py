"""Rounds, medians, goals and the table. Knows nothing of what is measured."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.metadata
import os
import platform
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("treadle", "msgspec", "blake3", "anyio", "aiosqlite", "fsspec")


class Settings(msgspec.Struct, frozen=True):
    """How much to measure.

    ``rounds`` is the least number of samples of each row, ``scale`` multiplies the numbers
    of steps (the smoke test uses a tiny one), ``is_long`` asks for the soak of a million.
    """

    rounds: int = 5
    scale: float = 1.0
    seed: int = 1
    is_long: bool = False

    def count(self, number: int) -> int:
        """A number of steps, scaled."""
        return max(2, int(number * self.scale))


class Row(msgspec.Struct, frozen=True):
    """One line of the table: the samples of one quantity, and what they should be.

    ``relaxed`` is a wider bound for a first version; ``at_least`` turns the goal round.
    """

    bench: str
    what: str
    unit: str
    samples: Sequence[float]
    goal: float | None = None
    relaxed: float | None = None
    at_least: bool = False
    exact: bool = False

    @property
    def median(self) -> float:
        """The middle of the samples."""
        return statistics.median(self.samples)

    @property
    def mark(self) -> str:
        """Whether the goal is met: ``pass``, ``relaxed`` (only the wider bound), ``FAIL``, or nothing."""
        if self.goal is None:
            return ""
        if self._meets(self.goal):
            return "pass"
        return "relaxed" if self.relaxed is not None and self._meets(self.relaxed) else "FAIL"

    def _meets(self, bound: float) -> bool:
        if self.exact:
            return round(self.median, 2) == bound
        return self.median >= bound if self.at_least else self.median <= bound


Bench = Callable[[Settings], Sequence[Row]]
Case = Callable[[int], Awaitable[float]]
"""Measures once; the argument is the number of the round, to make inputs distinct."""


async def interleaved(rounds: int, **cases: Case) -> dict[str, list[float]]:
    """Measure the cases in turn, so that what the machine does meanwhile hits all of them alike.

    One round more is made first and forgotten: it pays for imports, first pages and the source code's fingerprints.
    """
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            gc.collect()
            seconds = await case(number)
            if number:
                found[name].append(seconds)
    return found


def ratios(measured: Sequence[float], base: Sequence[float]) -> list[float]:
    """Sample by sample, within each round."""
    return [a / b for a, b in zip(measured, base, strict=True)]


def micros(seconds: Sequence[float], count: int) -> list[float]:
    """Seconds for all as microseconds for each."""
    return [s / count * 1e6 for s in seconds]


@contextlib.contextmanager
def fresh_home() -> Iterator[Path]:
    """A folder on the project's disk, removed afterwards; a temporary file system would flush for free."""
    parent = ROOT / ".treadle"
    parent.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    try:
        yield folder / "home"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            parent.rmdir()


class Heartbeat:
    """Notes by how much a timer of one millisecond comes late: what the host's other handlers feel."""

    def __init__(self) -> None:
        self.worst_s = 0.0

    async def __aenter__(self) -> Heartbeat:
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0.01)
        self.worst_s = 0.0
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.002)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _beat(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.worst_s = max(self.worst_s, time.perf_counter() - before - 0.001)


def rss_bytes() -> int:
    """Resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def environment(settings: Settings) -> dict[str, str]:
    """What the numbers depend on."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if _is_installed(name)}
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **versions,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "seed": str(settings.seed),
    }


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


HEAD = ("bench", "what", "median", "min", "max", "n", "unit", "goal", "")


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    cells = [HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    lines = [_aligned(line, widths) for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths).rstrip(), *lines[1:]])


def _cells(row: Row) -> tuple[str, ...]:
    sign = "=" if row.exact else ">=" if row.at_least else "<="
    goal = "" if row.goal is None else f"{sign} {_number(row.goal)}"
    low, high = min(row.samples), max(row.samples)
    numbers = (_number(row.median), _number(low), _number(high), str(len(row.samples)))
    return row.bench, row.what, *numbers, row.unit, goal, row.mark


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    texts = [
        text.rjust(width) if 2 <= column <= 5 else text.ljust(width)
        for column, (text, width) in enumerate(zip(line, widths, strict=True))
    ]
    return "  ".join(texts).rstrip()
