"""S8: sync steps on worker threads, against the same function handed to a bare executor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.harness import Row, Settings, fresh_home, interleaved, micros, ratios
from benchmarks.steps import threaded
from treadle import Engine, pipeline

COUNT = 2_000
THREADS = 6


@pipeline
async def mapped(start: int, count: int) -> int:
    return len(await threaded.map(range(start, start + count)))


def thread_steps(settings: Settings) -> Sequence[Row]:
    """A fan-out of steps that do nothing, on as many threads."""
    count = settings.count(COUNT)
    found = asyncio.run(_measure(settings.rounds, count))
    return [
        Row("S8", "bare executor hop, fan-out", "us", micros(found["hop"], count)),
        Row("S8", "sync step on a thread, strict", "us/step", micros(found["step"], count)),
        Row("S8", "sync step / executor hop", "x", ratios(found["step"], found["hop"]), 2.0),
    ]


async def _measure(rounds: int, count: int) -> dict[str, list[float]]:
    loop = asyncio.get_running_loop()
    with fresh_home() as home, ThreadPoolExecutor(THREADS) as pool:
        async with Engine(home, threads=THREADS) as engine:

            async def hop(_: int) -> float:
                start = time.perf_counter()
                await asyncio.gather(*[loop.run_in_executor(pool, threaded.fn, i) for i in range(count)])
                return time.perf_counter() - start

            async def steps(number: int) -> float:
                start = time.perf_counter()
                (await engine.run(mapped, number * count, count)).raise_for_failure()
                return time.perf_counter() - start

            return await interleaved(rounds, hop=hop, step=steps)
