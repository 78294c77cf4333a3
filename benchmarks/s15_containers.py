"""S15: what a step in a container costs: warm, cold beside ``docker run`` of the same image, and eight at once.

Needs a container engine and an image: DOCKER_HOST, if it is not the usual one, and TREADLE_CONTAINER_IMAGE.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import Row, Settings, fresh_home, interleaved, micros, ratios
from benchmarks.steps import isolated, slept
from treadle import Engine, pipeline
from treadle.errors import TreadleError
from treadle_adapters.container import IMAGE_VARIABLE, ContainerExecutor

WARM = 200
AT_ONCE = 8
NAP_S = 1.0
"""Long enough that all of them run at the same time."""


@pipeline
async def chain(start: int, count: int, runtime: str) -> int:
    step = isolated.with_options(runtime=runtime)
    for number in range(start, start + count):
        await step(number)
    return count


@pipeline
async def fan(count: int, seconds: float) -> int:
    await slept.with_options(runtime="fresh").map([seconds] * count)
    return count


def containers(settings: Settings) -> Sequence[Row]:
    """Steps in containers, if there can be any here."""
    try:
        found = asyncio.run(_measure(settings.rounds, settings.count(WARM)))
    except (TreadleError, ImportError) as error:
        print(f"skipping S15: {error}", file=sys.stderr)
        return []
    cold, run = found["cold"], found["run"]
    eight = [seconds - NAP_S for seconds in found["eight"]]
    return [
        Row("S15", "docker run, python -c pass", "ms", [seconds * 1e3 for seconds in run]),
        Row("S15", "step in a new container", "ms", [seconds * 1e3 for seconds in cold]),
        Row("S15", "new container / docker run", "x", ratios(cold, run), 1.5, 3.0),
        Row("S15", "step in a warm container, relaxed", "us/step", micros(found["warm"], settings.count(WARM))),
        Row("S15", f"{AT_ONCE} new containers at once", "s", eight),
        Row(
            "S15",
            f"{AT_ONCE} new containers / {AT_ONCE} docker runs at once",
            "x",
            ratios(eight, found["runs"]),
            1.5,
            3.0,
        ),
    ]


async def _measure(rounds: int, warm: int) -> dict[str, list[float]]:
    import aiodocker

    executors = {
        "container": ContainerExecutor(workers=1),
        "fresh": ContainerExecutor(workers=AT_ONCE, fresh=True),
    }
    with fresh_home() as home:
        async with Engine(home, durability="relaxed", executors=executors) as engine:
            # Fails here if there is no container engine, before the library below looks for one.
            (await engine.run(chain, -1, 1, "container")).raise_for_failure()
            async with aiodocker.Docker() as docker:

                async def timed(*run: Any) -> float:
                    start = time.perf_counter()
                    (await engine.run(*run)).raise_for_failure()
                    return time.perf_counter() - start

                return await interleaved(
                    rounds,
                    run=lambda _: _timed_runs(docker, 1),
                    cold=lambda number: timed(chain, -10 - number, 1, "fresh"),
                    warm=lambda number: timed(chain, number * warm, warm, "container"),
                    runs=lambda _: _timed_runs(docker, AT_ONCE),
                    eight=lambda _: timed(fan, AT_ONCE, NAP_S),
                )


async def _timed_runs(docker: Any, count: int) -> float:
    start = time.perf_counter()
    await asyncio.gather(*[_run(docker) for _ in range(count)])
    return time.perf_counter() - start


async def _run(docker: Any) -> None:
    """As ``docker run`` does: make, start, wait."""
    limits = [{"Name": name, "Soft": 4096, "Hard": 4096} for name in ("nofile", "nproc")]
    made = await docker.containers.create(
        {
            "Image": os.environ[IMAGE_VARIABLE],
            "Cmd": ["python3", "-c", "pass"],
            "HostConfig": {"NetworkMode": "none", "Ulimits": limits},
        }
    )
    await made.start()
    await made.wait()
    asyncio.get_running_loop().create_task(made.delete(force=True))  # as --rm does, in the background
