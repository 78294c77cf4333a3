"""The steps that are measured: they do nothing, so that what is left is the engine."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from typing import Any

from treadle import step

gate: contextvars.ContextVar[asyncio.Event] = contextvars.ContextVar("gate")


@step
async def trivial(number: int) -> int:
    return number


@step
async def pause(number: int) -> int:
    await asyncio.sleep(0.1)
    return number


@step
async def short_pause(number: int) -> int:
    await asyncio.sleep(0.02)
    return number


@step
async def held(number: int) -> int:
    await gate.get().wait()
    return number


@step(max_in_flight=1)
async def held_in_line(number: int) -> int:
    await gate.get().wait()
    return number


@step
def threaded(number: int) -> int:
    return number


@step(runtime="process")
def isolated(number: int) -> int:
    return number


@step(runtime="container", cache=False)
def slept(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@step(runtime="process", cache=False)
def filled(number: int, count: int) -> Any:
    import numpy as np

    return np.full(count, number)


@step(runtime="process", cache=False)
def counted_up(array: Any) -> Any:
    return array + 1


class Probe:
    """A number that a pipeline measures in its own middle."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read
        self._start = 0.0
        self.seen = 0.0

    def start(self) -> None:
        """From here."""
        self._start = self._read()

    def stop(self) -> None:
        """To here."""
        self.seen = self._read() - self._start


AnyStep = Any
"""A step as a parameter of a benchmark: which one does not matter to the type checker."""
