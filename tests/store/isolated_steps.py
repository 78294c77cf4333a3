"""A step that other processes can import."""

from __future__ import annotations

from treadle import step


@step(runtime="process", cache=False)
def increment(value: int) -> int:
    return value + 1
