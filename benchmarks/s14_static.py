"""S14: static pipelines: what compiling costs, how it grows, and a static step against a dynamic one.

Processor time is measured, since a busy machine changes it less than the clock's, and a static run that waited less
would look like one that does less.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.harness import Case, Row, Settings, fresh_home, interleaved, micros, ratios
from benchmarks.steps import trivial
from treadle import Engine, Pipeline, pipeline, step

STEPS = 600
CHAINED = 150
COMPILED = 10_000
SECONDS, OF_A_TENTH, OF_DYNAMIC = 1.0, 12.5, 1.0
RELAXED = 1.1


@pipeline
async def dynamic(start: int, count: int) -> int:
    return len(await asyncio.gather(*[trivial.submit(number) for number in range(start, start + count)]))


@pipeline
async def dynamic_of_many(inputs: dict[str, int]) -> int:
    return len(await asyncio.gather(*[each.submit(inputs[f"x{index}"]) for index, each in enumerate(many)]))


@pipeline
async def dynamic_chain(start: int, count: int) -> Any:
    value: Any = start
    for _ in range(count):
        value = trivial.submit(value)
    return value


@pipeline
async def dynamic_chain_of_many(start: int) -> Any:
    value: Any = start
    for each in links:
        value = each.submit(value)
    return value


many: tuple[Any, ...] = ()
links: tuple[Any, ...] = ()
"""The steps of the wired pipelines, each of which has a plan of its own in a run."""


@pipeline(static=True)
def static(start: int, count: int) -> Any:
    return [trivial.submit(number) for number in range(start, start + count)]


@pipeline(static=True)
def static_chain(start: int, count: int) -> Any:
    value: Any = start
    for _ in range(count):
        value = trivial.submit(value)
    return value


def static_pipelines(settings: Settings) -> Sequence[Row]:
    """Measure compiling from names and from a function, and running the same steps both ways."""
    count, chained, large = settings.count(STEPS), settings.count(CHAINED), settings.count(COMPILED)
    found = asyncio.run(_measure(settings.rounds, count, chained, large))
    growth = ratios(found["wired"], found["wired_tenth"])
    compiling = [Row("S14", f"compile {large:,} wired steps", "s", found["wired"], SECONDS, 2 * SECONDS)]
    compiling += [Row("S14", f"compile {large:,} steps / {large // 10:,} steps", "x", growth, OF_A_TENTH, 15.0)]
    compiling += [Row("S14", f"compile a function of {large:,} steps", "s", found["function"], SECONDS, 2 * SECONDS)]
    return [*compiling, *_against_dynamic(found, count, chained)]


PAIRS = (
    ("fan-out, wired", "run_wired", "dynamic_of_many"),
    ("fan-out, function", "static", "dynamic"),
    ("chain, wired", "run_wired_chain", "dynamic_chain_of_many"),
    ("chain, function", "static_chain", "dynamic_chain"),
)
"""Static against dynamic; the time for compiling a function is taken off, it has rows of its own."""


def _against_dynamic(found: dict[str, list[float]], count: int, chained: int) -> list[Row]:
    rows: list[Row] = []
    for what, static_form, dynamic_form in PAIRS:
        steps = chained if what.startswith("chain") else count
        own, other = found[static_form], found[dynamic_form]
        rows.append(Row("S14", f"{what}: dynamic", "us/step", micros(other, 2 * steps)))
        rows.append(Row("S14", f"{what}: static", "us/step", micros(own, 2 * steps)))
        rows.append(Row("S14", f"{what}: static / dynamic", "x", ratios(own, other), OF_DYNAMIC, RELAXED))
    return rows


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


async def _measure(rounds: int, count: int, chained: int, large: int) -> dict[str, list[float]]:
    wide = Pipeline("wide").add_steps(
        *[trivial.with_options(inputs=[f"x{n}"], outputs=[f"y{n}"]) for n in range(count)]
    )
    row = Pipeline("row").add_steps(
        *[trivial.with_options(inputs=[f"c{n}"], outputs=[f"c{n + 1}"]) for n in range(chained)]
    )
    wide.compile([f"x{n}" for n in range(count)])
    row.compile(["c0"])
    global many, links
    many, links = wide.steps, row.steps
    with fresh_home() as home:
        async with Engine(home) as engine:
            found = await interleaved(rounds, **_compiling_cases(large))
            return {**found, **await _in_pairs(rounds, _running_cases(engine, wide, row, count, chained))}


async def _in_pairs(rounds: int, cases: dict[str, Case]) -> dict[str, list[float]]:
    """Each pair as dynamic, static, static, dynamic: whoever always came second would pay for the other's pages."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for _, static_form, dynamic_form in PAIRS:
            seconds = dict.fromkeys((static_form, dynamic_form), 0.0)
            for name in (dynamic_form, static_form, static_form, dynamic_form):
                gc.collect()
                seconds[name] += await cases[name](number)
            for name, sum_s in seconds.items() if number else ():
                found[name].append(sum_s)
    return found


def _compiling_cases(large: int) -> dict[str, Case]:
    async def wired(_: int) -> float:
        return _compiling(_chain(large))

    async def wired_tenth(_: int) -> float:
        return _compiling(_chain(large // 10))

    async def function(number: int) -> float:
        return _cpu(lambda: static.compile(number, large))

    return {"wired": wired, "wired_tenth": wired_tenth, "function": function}


def _running_cases(engine: Engine, wide: Pipeline, row: Pipeline, count: int, chained: int) -> dict[str, Case]:
    """Static and dynamic in turn; no two runs share inputs."""
    numbers = iter(range(0, 1 << 60, count + chained + 2))

    def case(target: Any, *args: Any, compiled: bool = False) -> Case:
        async def run(_: int) -> float:
            start = next(numbers)
            before = time.process_time()
            (await engine.run(target, start, *args)).raise_for_failure()
            seconds = time.process_time() - before
            return seconds - _cpu(lambda: target.prepared(engine, {}, (start, *args), {})) if compiled else seconds

        return run

    def by_name(target: Any, name: str, many_names: int) -> Case:
        async def run(_: int) -> float:
            start = next(numbers)
            inputs = {f"{name}{n}": start + n for n in range(many_names)}
            before = time.process_time()
            (await engine.run(target, inputs)).raise_for_failure()
            return time.process_time() - before

        return run

    return {
        "dynamic_of_many": by_name(dynamic_of_many, "x", count),
        "run_wired": by_name(wide, "x", count),
        "dynamic": case(dynamic, count),
        "static": case(static, count, compiled=True),
        "dynamic_chain_of_many": case(dynamic_chain_of_many),
        "run_wired_chain": by_name(row, "c", 1),
        "dynamic_chain": case(dynamic_chain, chained),
        "static_chain": case(static_chain, chained, compiled=True),
    }  # fmt: skip


def _compiling(pipe: Pipeline) -> float:
    gc.collect()  # making the steps is no part of it
    seconds = _cpu(pipe.compile)
    graph = pipe.compile()
    assert len(graph.edges) == len(graph) - 1
    return seconds


def _cpu(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before
