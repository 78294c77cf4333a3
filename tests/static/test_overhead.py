"""A step of a static pipeline costs no more than one of a dynamic pipeline, counted in calls of functions.

Time says more, and a busy machine changes it (see ``benchmarks``, S14); calls are the same each time.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from treadle import Engine, Pipeline, pipeline, step

STEPS = 128
ALLOWED = 1.02
"""What is done once per run is shared by few steps here."""


@step(cache=False)
async def one_more(x: int) -> int:
    return x + 1


WIDE = [one_more.with_options(inputs=[f"x{n}"], outputs=[f"y{n}"]) for n in range(STEPS)]
LINKS = [one_more.with_options(inputs=[f"c{n}"], outputs=[f"c{n + 1}"]) for n in range(STEPS)]


@pipeline
async def wide(inputs: dict[str, int]) -> Any:
    return list(await asyncio.gather(*[each.submit(inputs[f"x{n}"]) for n, each in enumerate(WIDE)]))


@pipeline
async def chain(inputs: dict[str, int]) -> Any:
    value: Any = inputs["c0"]
    for each in LINKS:
        value = each.submit(value)
    return await value


@pipeline
async def wide_loop(start: int) -> Any:
    return list(await asyncio.gather(*[one_more.submit(start + n) for n in range(STEPS)]))


@pipeline
async def chain_loop(start: int) -> Any:
    value: Any = start
    for _ in range(STEPS):
        value = one_more.submit(value)
    return await value


@pipeline(static=True)
def wide_function(start: int) -> Any:
    return [one_more.submit(start + n) for n in range(STEPS)]


@pipeline(static=True)
def chain_function(start: int) -> Any:
    value: Any = start
    for _ in range(STEPS):
        value = one_more.submit(value)
    return value


RUNS = 4
"""So many runs are counted; the least counts."""

LOOP = os.path.dirname(asyncio.__file__)


class Counter:
    """Counts the calls of functions in this thread, also those that are written in C; not those that the loop makes.

    How many turns the loop takes depends on the writer's thread, and a busy machine changes that.
    """

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Counter:
        self._before = sys.getprofile()
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _note(self, frame: Any, event: str, _: Any) -> None:
        self.count += event in ("call", "c_call") and not frame.f_code.co_filename.startswith(LOOP)


async def calls_of(engine: Engine, target: Any, argument: Any) -> int:
    """How many calls of functions a run makes, at the least, when it is made again; its compiling is taken off."""
    (await engine.run(target, argument)).raise_for_failure()
    counts: list[int] = []
    for _ in range(RUNS):
        with Counter() as whole:
            result = await engine.run(target, argument)
        result.raise_for_failure()
        counts.append(whole.count)
    with Counter() as compiling:
        if target.is_static:
            target.prepared(engine, {}, (argument,), {})
    return min(counts) - compiling.count


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("make", "dynamic", "argument"),
    [
        (lambda: Pipeline("wide").add_steps(*WIDE), wide, {f"x{n}": n for n in range(STEPS)}),
        (lambda: Pipeline("chain").add_steps(*LINKS), chain, {"c0": 0}),
        (lambda: wide_function, wide_loop, 0),
        (lambda: chain_function, chain_loop, 0),
    ],
    ids=["wide, wired", "chain, wired", "wide, function", "chain, function"],
)
async def test_a_static_step_makes_no_more_calls_than_a_dynamic_one(
    make: Callable[[], Any], dynamic: Any, argument: Any
) -> None:
    async with Engine("memory://", durability="memory") as engine:
        static_calls = await calls_of(engine, make(), argument)
        dynamic_calls = await calls_of(engine, dynamic, argument)
    assert static_calls <= ALLOWED * dynamic_calls


def test_compiling_is_linear_counted_in_calls() -> None:
    counts = []
    for many in (200, 2000):
        pipe = Pipeline("chain").add_steps(
            *[one_more.with_options(inputs=[f"c{n}"], outputs=[f"c{n + 1}"]) for n in reversed(range(many))]
        )
        with Counter() as counter:
            pipe.compile(["c0"])
        counts.append(counter.count)
    assert counts[1] <= 10.5 * counts[0]
