"""S10: a large array through an isolated step and back, beside what has to happen to its bytes in any case."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from blake3 import blake3

from benchmarks.harness import Row, Settings, fresh_home, interleaved, ratios, rss_bytes
from benchmarks.steps import AnyStep, Probe, counted_up, filled
from treadle import Engine, pipeline
from treadle_adapters.process import ProcessExecutor

BYTES = 100_000_000


@pipeline
async def there_and_back(number: int, count: int, probe: AnyStep) -> float:
    array = filled.submit(number, count)
    await asyncio.wait([array])
    probe.start()
    back = await counted_up(array)
    probe.stop()
    return float(back[0])


@pipeline
async def from_step_to_step(number: int, count: int, probe: AnyStep) -> float:
    probe.start()
    last = counted_up.submit(counted_up.submit(filled.submit(number, count)))
    await asyncio.wait([counted_up.submit(np.zeros(1))])
    while not last.done():  # noqa: ASYNC110  # to await it would load it
        await asyncio.sleep(0.005)
    probe.stop()
    return probe.seen


def arrays(settings: Settings) -> Sequence[Row]:
    """One array of 100 MB."""
    count = settings.count(BYTES // 8)
    found = asyncio.run(_measure(settings.rounds, count))
    grown = found.pop("grown")
    return [
        Row("S10", f"hash, write, mapped read of {count * 8 / 1e6:.0f} MB", "s", found["bare"]),
        Row("S10", "the array through an isolated step", "s", found["step"]),
        Row("S10", "isolated step / hash, write, read", "x", ratios(found["step"], found["bare"]), 1.5, 4.0),
        Row("S10", "growth here, from step to step", "MB", [max(size / 1e6, 0.001) for size in grown], 50.0),
    ]


async def _measure(rounds: int, count: int) -> dict[str, list[float]]:
    grown: list[float] = []
    with fresh_home() as home:
        home.parent.mkdir(exist_ok=True)
        async with Engine(home, executors={"process": ProcessExecutor(workers=1)}) as engine:

            async def bare(number: int) -> float:
                return _hash_write_read(home.parent / "bare", np.full(count, number))

            async def step(number: int) -> float:
                probe = Probe(time.perf_counter)
                (await engine.run(there_and_back, number, count, probe)).raise_for_failure()
                return probe.seen

            async def passed(number: int) -> float:
                probe = Probe(rss_bytes)
                (await engine.run(from_step_to_step, -1 - number, count, probe)).raise_for_failure()
                grown.append(probe.seen)
                return probe.seen

            found = await interleaved(rounds, bare=bare, step=step, passed=passed)
    return {"bare": found["bare"], "step": found["step"], "grown": grown[1:]}


def _hash_write_read(path: Path, array: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    start = time.perf_counter()
    blake3(memoryview(array).cast("B")).digest()
    with path.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    float(np.load(path, mmap_mode="r").sum())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds
