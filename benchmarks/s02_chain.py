"""S2 and S3: steps one after the other, each awaited; flushes are counted, since disks differ more than programs."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Row, Settings, fresh_home, interleaved, micros, ratios
from benchmarks.steps import Probe, trivial
from treadle import Engine, pipeline

COUNT = 300
RELAXED_COUNT = 2_000


class Flusher:
    """A thread that appends a page and flushes it: the least that a durable answer can cost."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._queue: queue.SimpleQueue[asyncio.Future[None] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._work, daemon=True).start()

    def flush(self) -> asyncio.Future[None]:
        """Done when the page is on the disk."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._queue.put(future)
        return future

    def close(self) -> None:
        """End the thread and close the file."""
        self._queue.put(None)

    def _work(self) -> None:
        page = bytes(4096)
        while (future := self._queue.get()) is not None:
            os.write(self._file, page)
            os.fdatasync(self._file)
            self._loop.call_soon_threadsafe(future.set_result, None)
        os.close(self._file)


async def _chain(engine: Engine, start: int, count: int, probe: Probe | None = None) -> float:
    """Seconds for the steps alone, without the run's own beginning and end."""
    clock = Probe(time.perf_counter)

    @pipeline
    async def chain(first: int) -> int:
        value = await trivial(first)
        for each in (clock, probe):
            if each is not None:
                each.start()
        for _ in range(count):
            value = await trivial(value + 1)
        for each in (clock, probe):
            if each is not None:
                each.stop()
        return value

    (await engine.run(chain, start)).raise_for_failure()
    return clock.seen


def strict_chain(settings: Settings) -> Sequence[Row]:
    """S2: flushes per step, and the time against one flush and one thread round trip."""
    count = settings.count(COUNT)
    found, flushes = asyncio.run(_measure_strict(settings.rounds, count))
    return [
        Row("S2", "fdatasync + thread round trip", "us", micros(found["flush"], count)),
        Row("S2", "awaited chain, strict", "us/step", micros(found["chain"], count)),
        Row("S2", "flushes per step", "flushes", flushes, 1.0, exact=True),
        Row("S2", "chain / (fdatasync + round trip)", "x", ratios(found["chain"], found["flush"]), 1.5),
    ]


async def _measure_strict(rounds: int, count: int) -> tuple[dict[str, list[float]], list[float]]:
    flushes: list[float] = []
    with fresh_home() as home, fresh_home() as other:
        other.mkdir()
        flusher = Flusher(other / "file")
        async with Engine(home) as engine:

            async def flush(_: int) -> float:
                start = time.perf_counter()
                for _ in range(count):
                    await flusher.flush()
                return time.perf_counter() - start

            async def chain(number: int) -> float:
                probe = Probe(lambda: engine.metrics()["log_flushes"])
                seconds = await _chain(engine, number * (count + 1), count, probe)
                flushes.append(probe.seen / count)
                return seconds

            found = await interleaved(rounds, flush=flush, chain=chain)
        flusher.close()
    return found, flushes[1:]


def relaxed_chain(settings: Settings) -> Sequence[Row]:
    """S3: the same chain when answers need not wait for the disk."""
    count = settings.count(RELAXED_COUNT)
    found = asyncio.run(_measure_relaxed(settings.rounds, count))
    return [Row("S3", "awaited chain, relaxed", "us/step", found, 50.0)]


async def _measure_relaxed(rounds: int, count: int) -> list[float]:
    with fresh_home() as home:
        async with Engine(home, durability="relaxed") as engine:

            async def chain(number: int) -> float:
                return await _chain(engine, number * (count + 1), count)

            found = await interleaved(rounds, chain=chain)
    return micros(found["chain"], count)
