"""S5: how long the host's loop stands still while a map runs, whatever its size.

A full pass of the garbage collector over all that the host has imported is part of that: 5 ms while its objects are in
the processor's cache, several times as long when they are not. A long map sees a few of them. ``gc.freeze()`` after the
imports takes those objects out of it, which is measured beside the rest.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence

from benchmarks.harness import Heartbeat, Row, Settings, fresh_home, interleaved
from benchmarks.steps import AnyStep, short_pause, trivial
from treadle import Engine, pipeline

GOAL_MS = 15.0
SMALL, LARGE = 10_000, 100_000


def stalls(settings: Settings) -> Sequence[Row]:
    """The worst lateness of a 1 ms heartbeat during maps of trivial and of slow steps."""
    small, large = settings.count(SMALL), settings.count(LARGE)
    found = asyncio.run(_measure(settings.rounds, small, large))
    labels = {
        "small": f"worst stall, map of {small:,} trivial",
        "small_slow": f"worst stall, map of {small:,} slow",
        "large": f"worst stall, map of {large:,} trivial",
        "large_slow": f"worst stall, map of {large:,} slow",
        "large_frozen": f"worst stall, map of {large:,} trivial, gc.freeze()",
        "large_slow_frozen": f"worst stall, map of {large:,} slow, gc.freeze()",
    }
    return [Row("S5", label, "ms", [s * 1e3 for s in found[name]], GOAL_MS) for name, label in labels.items()]


async def _measure(rounds: int, small: int, large: int) -> dict[str, list[float]]:
    with fresh_home() as home:
        async with Engine(home) as engine:
            numbers = iter(range(0, 10**12, large))

            async def worst(step: AnyStep, count: int) -> float:
                @pipeline
                async def mapped(start: int) -> int:
                    return len(await step.map(range(start, start + count)))

                async with Heartbeat() as beat:
                    (await engine.run(mapped, next(numbers))).raise_for_failure()
                return beat.worst_s

            async def frozen(step: AnyStep) -> float:
                gc.collect()
                gc.freeze()
                try:
                    return await worst(step, large)
                finally:
                    gc.unfreeze()

            return await interleaved(
                rounds,
                small=lambda _: worst(trivial, small),
                small_slow=lambda _: worst(short_pause, small),
                large=lambda _: worst(trivial, large),
                large_slow=lambda _: worst(short_pause, large),
                large_frozen=lambda _: frozen(trivial),
                large_slow_frozen=lambda _: frozen(short_pause),
            )
