"""Steps of the Execution page that run in another process, which imports them from here."""

from __future__ import annotations

import os

from treadle import current, step


@step(outputs=["numbers"], runtime="isolated")
def load() -> list[int]:
    print("loading")
    return [1, 2, 3]


@step(outputs=["total"], runtime="isolated")
def add(numbers: list[int]) -> int:
    current().log_metadata(rows=len(numbers))
    return sum(numbers)


@step(runtime="isolated", cache=False)
def elsewhere(x: int) -> tuple[int, int]:
    return x, os.getpid()


@step(runtime="isolated", cache=False)
def told(pipe: str) -> str:
    """Wait until somebody writes into a named pipe."""
    with open(pipe) as stream:
        return stream.read()
