"""S1: ten thousand steps at once, against bare tasks and against the least that tracking can cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from benchmarks.floor import Floor, raw
from benchmarks.harness import Row, Settings, fresh_home, interleaved, micros, ratios
from benchmarks.steps import trivial
from treadle import Engine, pipeline

COUNT = 10_000
OF_RAW, OF_FLOOR, MICROS = 5.0, 2.0, 38.0
RELAXED = 2.5


@pipeline
async def mapped(start: int, count: int) -> int:
    return len(await trivial.map(range(start, start + count)))


@pipeline
async def gathered(start: int, count: int) -> int:
    return len(await asyncio.gather(*[trivial.submit(number) for number in range(start, start + count)]))


def fan_out(settings: Settings) -> Sequence[Row]:
    """Measure ``map`` and ``submit`` with ``gather``, strict durability, all inputs distinct."""
    count = settings.count(COUNT)
    found = asyncio.run(_measure(settings.rounds, count))
    rows = [
        Row("S1", "raw create_task + gather", "us/step", micros(found["bare"], count)),
        Row("S1", "floor: 3 events, key, hash, commit", "us/step", micros(found["floor"], count)),
    ]
    for name, label in (("map", "map"), ("submit", "submit + gather")):
        own = found[name]
        rows += [
            Row("S1", f"{label}, strict", "us/step", micros(own, count), MICROS, MICROS * RELAXED),
            Row("S1", f"{label} / raw", "x", ratios(own, found["bare"]), OF_RAW, OF_RAW * RELAXED),
            Row("S1", f"{label} / floor", "x", ratios(own, found["floor"]), OF_FLOOR, OF_FLOOR * RELAXED),
        ]
    return rows


async def _measure(rounds: int, count: int) -> dict[str, list[float]]:
    with fresh_home() as home, fresh_home() as other:
        other.mkdir()
        floor = Floor(other / "floor.db")
        async with Engine(home) as engine:

            async def bare(_: int) -> float:
                start = time.perf_counter()
                await raw(count)
                return time.perf_counter() - start

            async def least(number: int) -> float:
                start = time.perf_counter()
                await asyncio.gather(*[floor.step(i) for i in range(number * count, (number + 1) * count)])
                return time.perf_counter() - start

            async def through_map(number: int) -> float:
                start = time.perf_counter()
                (await engine.run(mapped, 2 * number * count, count)).raise_for_failure()
                return time.perf_counter() - start

            async def through_submit(number: int) -> float:
                start = time.perf_counter()
                (await engine.run(gathered, (2 * number + 1) * count, count)).raise_for_failure()
                return time.perf_counter() - start

            found = await interleaved(rounds, bare=bare, floor=least, map=through_map, submit=through_submit)
        floor.close()
    return found
