"""Steps that tests perform on a dask cluster; its workers import them from here."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from treadle import current, pipeline, step

FOREVER_S = 600


@step(runtime="dask", cache=False)
def pid(_: Any = 0) -> int:
    return os.getpid()


@step(runtime="dask", cache=False)
def place(_: Any = 0) -> int:
    """The dask worker, by the id of its process: it starts the nursery, which starts this."""
    nursery = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    return int(nursery[1])


@step(runtime="dask", cache=False)
def sleeps(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@step(runtime="dask", cache=False)
def waits(folder: str, name: str = "here") -> str:
    """Says who it is, and waits until it is told that it is enough; the first one of a folder, that is."""
    mine = Path(folder) / f"{name}-{os.getpid()}"
    is_first = not list(Path(folder).glob(f"{name}-*"))
    mine.touch()
    current().progress(1, 2)
    while is_first and not (Path(folder) / "enough").exists():
        time.sleep(0.01)
    return mine.name


@step(runtime="dask", cache=False, timeout=3.0, retry=1)
def takes_leave(folder: str) -> tuple[int, bool]:
    """Needs a while to end when it is asked to; says which attempt it is, and whether another one had ended before."""
    attempt, left = current().attempt, Path(folder) / "left"
    if attempt > 1:
        return attempt, left.exists()
    try:
        time.sleep(FOREVER_S)
    finally:
        time.sleep(0.5)
        print("the last word")
        left.touch()


@step(runtime="dask")
def ones(count: int) -> Any:
    return np.ones(count)


@step(runtime="dask")
def doubled(array: Any) -> Any:
    return array * 2


@step(runtime="dask")
def totals(arrays: Any) -> float:
    return float(sum(np.sum(array) for array in arrays))


@step(runtime="dask", cache=False)
def sees(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


@pipeline
async def waiting(folder: str) -> str:
    return await waits(folder)
