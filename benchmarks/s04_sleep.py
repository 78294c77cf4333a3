"""S4: steps that wait, all at once: the engine must not stand between them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from benchmarks.harness import Row, Settings, fresh_home, interleaved, ratios
from benchmarks.steps import pause
from treadle import Engine, pipeline

IDEAL_S = 0.1
SMALL, LARGE = 1_000, 10_000


@pipeline
async def pauses(start: int, count: int) -> int:
    return len(await pause.map(range(start, start + count)))


async def _raw(count: int) -> None:
    await asyncio.gather(*[asyncio.create_task(asyncio.sleep(IDEAL_S)) for _ in range(count)])


def sleeping(settings: Settings) -> Sequence[Row]:
    """1,000 sleeps against the ideal, 10,000 against bare asyncio."""
    small, large = settings.count(SMALL), settings.count(LARGE)
    found = asyncio.run(_measure(settings.rounds, small, large))
    ideal = [seconds / IDEAL_S for seconds in found["small"]]
    return [
        Row("S4", f"{small:,} x sleep(0.1)", "s", found["small"]),
        Row("S4", f"{small:,} / ideal", "x", ideal, 1.3),
        Row("S4", f"{large:,} x sleep(0.1)", "s", found["large"]),
        Row("S4", f"{large:,} / raw asyncio", "x", ratios(found["large"], found["bare"]), 2.0),
    ]


async def _measure(rounds: int, small: int, large: int) -> dict[str, list[float]]:
    with fresh_home() as home:
        async with Engine(home) as engine:

            async def of(start: int, count: int) -> float:
                before = time.perf_counter()
                (await engine.run(pauses, start, count)).raise_for_failure()
                return time.perf_counter() - before

            async def few(number: int) -> float:
                return await of(number * (small + large), small)

            async def many(number: int) -> float:
                return await of(number * (small + large) + small, large)

            async def bare(_: int) -> float:
                before = time.perf_counter()
                await _raw(large)
                return time.perf_counter() - before

            return await interleaved(rounds, small=few, bare=bare, large=many)
