"""Steps of one execution group, which pass large values to each other in the memory of their worker."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from treadle import step

held: list[Any] = []
GROUP: dict[str, Any] = {"runtime": "process", "execution_group": "one", "cache": False}


@step(**GROUP)
def made(kind: str, count: int = 50_000) -> Any:
    array = np.arange(count)
    match kind:
        case "array":
            return array
        case "array in another order":
            return np.asfortranarray(array.reshape(2, -1))
        case "part of an array":
            return array[1:]
        case "array that is held":
            held.append(array)
            return array
        case "bytes":
            return bytes(count * 8)
        case "text":
            return "ä" * count
        case "tuple":
            return tuple(range(count))
        case "list":
            held.append(list(range(count)))
            return held[-1]
        case _:
            return {"x": array, "y": [kind]}


@step(**GROUP, outputs=("one", "two"))
def two_made(count: int) -> Any:
    return np.zeros(count), [1] * count


def described(value: Any) -> Any:
    """All that a step could tell two values apart by."""
    if isinstance(value, np.ndarray):
        return "array", value.shape, str(value.dtype), value.flags.writeable, value.flags.c_contiguous, int(value.sum())
    if isinstance(value, dict):
        return {key: described(item) for key, item in value.items()}
    return type(value).__name__, len(value), value[:5]


@step(**GROUP)
def spoils_what_it_holds() -> int:
    for item in held:
        item[0] = 99
    return os.getpid()


@step(**GROUP)
def sees(value: Any) -> Any:
    return described(value)


@step(**GROUP)
def spoils(value: Any) -> Any:
    """Changes what it is given, and says what it was."""
    before = described(value)
    if isinstance(value, (list, dict)):
        value.clear()
    return before


@step(**GROUP)
def pid(_: int) -> int:
    return os.getpid()


@step(**GROUP)
def worker_of(_: int) -> int:
    """The process that it runs in."""
    return os.getpid()
