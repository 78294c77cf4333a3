"""S14: static pipelines: what compiling costs, how it grows, and a static step against a dynamic one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import Row, Settings, fresh_home, interleaved, micros, ratios
from benchmarks.steps import trivial
from treadle import Engine, Pipeline, pipeline, step

STEPS = 2_000
COMPILED = 10_000
SECONDS, OF_A_TENTH, OF_DYNAMIC = 1.0, 15.0, 1.0
RELAXED = 1.25


@pipeline
async def dynamic(start: int, count: int) -> int:
    return len(await asyncio.gather(*[trivial.submit(number) for number in range(start, start + count)]))


@pipeline
async def dynamic_of_many(start: int) -> int:
    return len(await asyncio.gather(*[each.submit(start + index) for index, each in enumerate(many)]))


many: tuple[Any, ...] = ()
"""The steps of the wired pipeline, each of which has a plan of its own in a run."""


@pipeline(static=True)
def static(start: int, count: int) -> Any:
    return [trivial.submit(number) for number in range(start, start + count)]


def static_pipelines(settings: Settings) -> Sequence[Row]:
    """Measure compiling from names and from a function, and running the same steps both ways."""
    count, large = settings.count(STEPS), settings.count(COMPILED)
    found = asyncio.run(_measure(settings.rounds, count, large))
    growth = ratios(found["wired"], found["wired_tenth"])
    return [
        Row("S14", f"compile {large:,} wired steps", "s", found["wired"], SECONDS, 2 * SECONDS),
        Row("S14", f"compile {large:,} steps / {large // 10:,} steps", "x", growth, OF_A_TENTH),
        Row("S14", f"compile a function of {large:,} steps", "s", found["function"], SECONDS, 2 * SECONDS),
        Row("S14", "dynamic, one step many times", "us/step", micros(found["dynamic"], count)),
        Row("S14", "static function, with compiling", "us/step", micros(found["static"], count)),
        Row("S14", "dynamic, many steps", "us/step", micros(found["dynamic_of_many"], count)),
        Row("S14", "wired, many steps", "us/step", micros(found["run_wired"], count)),
        Row("S14", "wired / dynamic", "x", ratios(found["run_wired"], found["dynamic_of_many"]), OF_DYNAMIC, RELAXED),
    ]


def _chain(count: int) -> Pipeline:
    """A chain of steps, each of a function of its own, added from the end to the beginning."""
    pipe = Pipeline("chain")
    for index in reversed(range(count)):
        pipe.add_step(_link(index))
    return pipe


def _link(index: int) -> Any:
    @step(name=f"step_{index}", inputs=[f"a{index - 1}"] if index else (), outputs=[f"a{index}"])
    def body(value: int = 0) -> int:
        return value

    return body


def _wide(count: int) -> Pipeline:
    return Pipeline("wide").add_steps(
        *[trivial.with_options(inputs=[f"x{n}"], outputs=[f"y{n}"]) for n in range(count)]
    )


async def _measure(rounds: int, count: int, large: int) -> dict[str, list[float]]:
    with fresh_home() as home:
        async with Engine(home) as engine:
            wide = _wide(count)
            wide.compile([f"x{n}" for n in range(count)])
            global many
            many = wide.steps

            async def wired(_: int) -> float:
                return _compiling(_chain(large))

            async def wired_tenth(_: int) -> float:
                return _compiling(_chain(large // 10))

            async def function(number: int) -> float:
                start = time.perf_counter()
                static.compile(number, large)
                return time.perf_counter() - start

            async def run_dynamic(number: int) -> float:
                start = time.perf_counter()
                (await engine.run(dynamic, 4 * number * count, count)).raise_for_failure()
                return time.perf_counter() - start

            async def run_dynamic_of_many(number: int) -> float:
                start = time.perf_counter()
                (await engine.run(dynamic_of_many, (4 * number + 3) * count)).raise_for_failure()
                return time.perf_counter() - start

            async def run_static(number: int) -> float:
                start = time.perf_counter()
                (await engine.run(static, (4 * number + 1) * count, count)).raise_for_failure()
                return time.perf_counter() - start

            async def run_wired(number: int) -> float:
                inputs = {f"x{n}": (4 * number + 2) * count + n for n in range(count)}
                start = time.perf_counter()
                (await engine.run(wide, inputs=inputs)).raise_for_failure()
                return time.perf_counter() - start

            return await interleaved(
                rounds, wired=wired, wired_tenth=wired_tenth, function=function, dynamic=run_dynamic, static=run_static,
                dynamic_of_many=run_dynamic_of_many, run_wired=run_wired,
            )  # fmt: skip


def _compiling(pipe: Pipeline) -> float:
    start = time.perf_counter()
    graph = pipe.compile()
    seconds = time.perf_counter() - start
    assert len(graph.edges) == len(graph) - 1
    return seconds
