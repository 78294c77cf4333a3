"""The pipelines that the crash tests kill: one per shape, all seeded, each body with a line in a ledger.

A ledger line says which body began in which call of which run; it is written with one
``write`` to a file opened for appending, so it is there whatever happens to the process next.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from typing import Any

from treadle import Retry, current, pipeline, step

LEDGER = "TREADLE_TEST_LEDGER"
BIG = 100_000


def note(label: str) -> None:
    """Put down that a body begins."""
    call = current()
    _write(f"{call.run_id} {call.call} {call.attempt} {label}")


def acknowledged(label: str) -> None:
    """Put down that the pipeline has the outcome of a call."""
    _write(f"- - 0 {label}")


def _write(line: str) -> None:
    ledger = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(ledger, f"{line}\n".encode())
    finally:
        os.close(ledger)


@step
async def add(label: str, x: int, y: int = 1) -> int:
    note(label)
    return x + y


@step
def add_in_thread(label: str, x: int, y: int = 1) -> int:
    note(label)
    return x + y


@step
async def pause_and_add(label: str, x: int) -> int:
    note(label)
    await asyncio.sleep(0.001)
    return x + 1


@step
async def total(label: str, parts: list[int]) -> int:
    note(label)
    return sum(parts)


@step(retry=Retry(max_attempts=3, delay=0.001, jitter=False))
async def flaky(label: str, x: int) -> int:
    note(label)
    if current().attempt < 3:
        raise ConnectionError(f"{label} is not there yet")
    return x + 1


@step
async def broken(label: str) -> int:
    note(label)
    raise ValueError(label)


@step
async def blow_up(label: str, size: int) -> bytes:
    note(label)
    return bytes([size % 251]) * size


@step
async def measure(label: str, data: bytes) -> int:
    note(label)
    return len(data)


@pipeline
async def chain(seed: int) -> int:
    x = seed
    for i in range(4):
        x = await add(f"c{i}", x)
        acknowledged(f"c{i}")
    return x


@pipeline
async def fan_out(seed: int) -> int:
    labels = [f"f{i}" for i in range(5)]
    return await total("sum", pause_and_add.map(labels, [seed + i for i in range(5)]))  # type: ignore[arg-type]


@pipeline
async def diamond(seed: int) -> int:
    top = add.submit("top", seed)
    left, right = add.submit("left", top), add_in_thread.submit("right", top)
    return await add("bottom", left, right)  # type: ignore[arg-type]


@pipeline
async def inner(name: str, x: int) -> int:
    first = await add(f"{name}-1", x)
    return await add(f"{name}-2", first)


@pipeline
async def nested(seed: int) -> int:
    names = ["a", "b"]
    values = await asyncio.gather(*[inner(name, seed) for name in names])
    return await total("sum", list(values))


@pipeline
async def retrying(seed: int) -> int:
    return await add("after", await flaky("flaky", seed))


@pipeline
async def cached(seed: int) -> int:
    """The second of two runs with one input: its calls are hits, whichever run was killed."""
    return await add("k2", await add("k1", seed))


@pipeline
async def handled(seed: int) -> int:
    good = add.submit("good", seed)
    try:
        await broken("broken")
    except ValueError:
        return await add("instead", good)  # type: ignore[arg-type]
    return -1


@pipeline
def threads(seed: int) -> int:
    x = seed
    for i in range(3):
        x = add_in_thread(f"t{i}", x)
        acknowledged(f"t{i}")
    return x


@pipeline
async def large(seed: int) -> int:
    sizes = [BIG + seed, BIG + seed + 1]
    blobs = [blow_up.submit(f"blow{i}", size) for i, size in enumerate(sizes)]
    return await total("sum", [measure.submit(f"measure{i}", blob) for i, blob in enumerate(blobs)])  # type: ignore[arg-type,misc]


@pipeline
async def shuffled(seed: int) -> int:
    """Submits in another order each time it is performed."""
    order = list(range(5))
    random.SystemRandom().shuffle(order)
    return sum(await asyncio.gather(*[pause_and_add(f"s{i}", seed + i) for i in order]))


@pipeline
async def long_chain(seed: int) -> int:
    x = seed
    for i in range(40):
        x = await add(f"c{i}", x)
    return x


@pipeline
async def suicidal(seed: int) -> int:
    return await die("die", await add("before", seed))


@step
async def die(label: str, x: int) -> int:
    note(label)
    os.kill(os.getpid(), 9)
    return x


@pipeline
async def with_large_arguments(data: bytes, numbers: list[int]) -> int:
    return await add("one", len(data), await total("two", numbers))


# What each shape gives, and how often its bodies run if nothing is killed (once, if not named here).
EXPECTED: dict[str, Callable[[int], Any]] = {
    "chain": lambda seed: seed + 4,
    "fan_out": lambda seed: sum(seed + i + 1 for i in range(5)),
    "diamond": lambda seed: (seed + 2) * 2,
    "nested": lambda seed: (seed + 2) * 2,
    "retrying": lambda seed: seed + 2,
    "cached": lambda seed: seed + 2,
    "handled": lambda seed: seed + 2,
    "threads": lambda seed: seed + 3,
    "large": lambda seed: 2 * BIG + 2 * seed + 1,
    "shuffled": lambda seed: sum(seed + i + 1 for i in range(5)),
    "long_chain": lambda seed: seed + 40,
}
ATTEMPTS = {"flaky": 3}
SHAPES = [name for name in EXPECTED if name != "long_chain"]
