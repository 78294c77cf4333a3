"""S7: how much a hit of the cache costs, recorded, in a fan-out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from benchmarks.harness import Row, Settings, fresh_home, interleaved
from benchmarks.s01_fan_out import mapped
from treadle import Engine

COUNT = 10_000


def hits(settings: Settings) -> Sequence[Row]:
    """The same map twice: what the second one takes, and how much more than the first."""
    count = settings.count(COUNT)
    found = asyncio.run(_measure(settings.rounds, count))
    pairs = zip(found["hit"], found["miss"], strict=True)
    more = [(hit - miss) / count * 1e6 for hit, miss in pairs]
    return [
        Row("S7", "hits in a fan-out", "hits/s", [count / s for s in found["hit"]], 20_000, at_least=True),
        Row("S7", "a hit more than a miss", "us", more, 20.0),
    ]


async def _measure(rounds: int, count: int) -> dict[str, list[float]]:
    with fresh_home() as home:
        async with Engine(home) as engine:

            async def once(number: int) -> float:
                start = time.perf_counter()
                (await engine.run(mapped, number * count, count)).raise_for_failure()
                return time.perf_counter() - start

            return await interleaved(rounds, miss=once, hit=once)
