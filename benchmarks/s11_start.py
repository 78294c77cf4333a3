"""S11: what a fresh process waits for: the import, and the first result that is on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.harness import ROOT, Row, Settings, fresh_home

SAMPLES = 7
IMPORT = "import time; start = time.perf_counter(); import treadle; print(time.perf_counter() - start)"
NAMES = IMPORT.replace("import treadle;", "from treadle import Engine, pipeline, step;")
FIRST = """
import sys, time
from treadle import Engine, pipeline, step
@step(version="1")
async def one() -> int:
    return 1
@pipeline
async def first() -> int:
    return await one()
import asyncio
async def main():
    async with Engine(sys.argv[1]) as engine:
        await engine.run(first)
        print(time.time())
asyncio.run(main())
"""


def start(settings: Settings) -> Sequence[Row]:
    """Fresh processes in turn: a bare interpreter, the import, the first durable result counted from exec."""
    found: list[tuple[float, float, float, float]] = []
    with tempfile.TemporaryDirectory(prefix="treadle-bench-") as bytecode:
        # Compiled once, as an installed package is, whatever this shell says about writing bytecode.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(max(SAMPLES, settings.rounds) + 1 if settings.scale >= 1 else 2):
            before = time.time()
            bare = _answer(environment, "import time; print(time.time())") - before
            imported, named = _answer(environment, IMPORT), _answer(environment, NAMES)
            with fresh_home() as home:
                before = time.time()
                found.append((bare, imported, named, _answer(environment, FIRST, home) - before))
    bares, imports, names, firsts = zip(*found[1:], strict=True)  # the first one compiles, and fills the disk cache
    return [
        Row("S11", "start of a bare interpreter", "ms", _millis(bares)),
        Row("S11", "import treadle", "ms", _millis(imports), 100.0),
        Row("S11", "from treadle import Engine, pipeline, step", "ms", _millis(names), 100.0),
        Row("S11", "first durable result, from exec", "ms", _millis(firsts), 250.0),
    ]


def _millis(seconds: Sequence[float]) -> list[float]:
    return [s * 1e3 for s in seconds]


def _answer(environment: dict[str, str], code: str, *args: Path) -> float:
    """The number that a program prints."""
    command = [sys.executable, "-c", code, *map(str, args)]
    answer = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE)
    return msgspec.json.decode(answer.stdout, type=float)
