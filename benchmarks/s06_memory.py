"""S6: memory of calls that wait, of calls that run, and of a long stream of calls; each in a process of its own."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Iterator, Sequence

import msgspec

from benchmarks.harness import ROOT, Row, Settings, fresh_home, rss_bytes
from benchmarks.steps import gate, held, held_in_line, trivial
from treadle import Engine, pipeline

QUEUED, RUNNING, SOAK, LONG_SOAK = 100_000, 10_000, 200_000, 1_000_000


def memory(settings: Settings) -> Sequence[Row]:
    """Ask fresh processes, one per sample."""
    queued, running = settings.count(QUEUED), settings.count(RUNNING)
    soak = settings.count(LONG_SOAK if settings.is_long else SOAK)
    waiting = [_ask("queued", queued) for _ in range(settings.rounds)]
    started = [_ask("running", running) for _ in range(settings.rounds)]
    slope = [_ask("soak", soak) for _ in range(1 if settings.is_long else max(1, settings.rounds // 2))]
    return [
        Row("S6", f"per queued call, of {queued:,}, futures included", "KB", [b / queued / 1e3 for b in waiting], 1.0),
        Row("S6", f"{queued:,} queued, over idle", "MB", [b / 1e6 for b in waiting], 150.0),
        Row("S6", f"per running call, of {running:,}", "KB", [b / running / 1e3 for b in started], 3.0),
        Row("S6", f"slope in a soak of {soak:,}", "MB/100k", [b / 1e6 for b in slope], 0.5),
    ]


def _ask(what: str, count: int) -> float:
    command = [sys.executable, "-m", "benchmarks.s06_memory", what, str(count)]
    answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return msgspec.json.decode(answer.stdout, type=float)


# -- in the child -------------------------------------------------------------------------


async def held_calls(count: int, *, are_running: bool) -> float:
    """Bytes that ``count`` calls take while they wait, in line or in their bodies."""
    opened = asyncio.Event()
    gate.set(opened)
    step = held if are_running else held_in_line
    with fresh_home() as home:
        async with Engine(home) as engine:
            grown = 0.0

            @pipeline
            async def waiting() -> None:
                nonlocal grown
                gc.collect()
                before = rss_bytes()
                futures = list(step.map(range(count)))
                await _settled(engine, count if are_running else 1)
                gc.collect()
                grown = rss_bytes() - before
                for future in futures:
                    future.cancel()
                opened.set()

            await engine.run(waiting)
    return grown


async def _settled(engine: Engine, running: int) -> None:
    """Until as many calls run, and nothing is on its way to the log any more."""
    written = -1.0
    while engine.metrics()["calls_running"] < running or engine.metrics()["log_events"] != written:
        written = engine.metrics()["log_events"]
        await asyncio.sleep(0.1)


async def soak(count: int) -> float:
    """Bytes that memory grows by per 100,000 calls of a stream, from the straight line through its later part."""
    points: list[tuple[int, int]] = []
    with fresh_home() as home:
        async with Engine(home) as engine:

            @pipeline
            async def stream() -> int:
                done = 0
                async for _ in trivial.map(_numbers(count)):
                    done += 1
                    if done % max(1, count // 50) == 0 and done >= count // 4:
                        points.append((done, rss_bytes()))
                return done

            (await engine.run(stream)).raise_for_failure()
    return _slope(points) * 100_000


def _numbers(count: int) -> Iterator[int]:
    yield from range(count)


def _slope(points: Sequence[tuple[int, int]]) -> float:
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread if spread else 0.0


def main(what: str, count: int) -> None:
    """Measure in this process and print the number."""
    case = soak(count) if what == "soak" else held_calls(count, are_running=what == "running")
    print(asyncio.run(case))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
