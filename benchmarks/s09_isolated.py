"""S9: what an isolated step costs beside a bare round trip to a process, warm, fresh and at the very first."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.harness import Row, Settings, fresh_home, interleaved, micros, ratios
from benchmarks.steps import AnyStep, isolated
from treadle import Engine, pipeline
from treadle_adapters.process import ProcessExecutor

COUNT = 500
FRESH = 20
ECHO = """
import socket, sys
line = socket.socket(fileno=int(sys.argv[1]))
while data := line.recv(65536):
    line.sendall(data)
"""


@pipeline
async def chain(start: int, count: int, step: AnyStep) -> int:
    for number in range(start, start + count):
        await step(number)
    return count


def isolated_steps(settings: Settings) -> Sequence[Row]:
    """A chain of steps that do nothing in other processes, relaxed."""
    count, fresh = settings.count(COUNT), settings.count(FRESH)
    found = asyncio.run(_measure(settings.rounds, count, fresh))
    python = found["python"]
    return [
        Row("S9", "bare round trip over a socket", "us", micros(found["bare"], count)),
        Row("S9", "isolated step, warm worker, relaxed", "us/step", micros(found["warm"], count)),
        Row("S9", "isolated step / bare round trip", "x", ratios(found["warm"], found["bare"]), 3.0, 8.0),
        Row("S9", 'python -c "import msgspec"', "ms", [seconds * 1e3 for seconds in python]),
        Row("S9", "isolated step, fresh process", "ms/step", [s / fresh * 1e3 for s in found["fresh"]]),
        Row(
            "S9",
            "fresh process / python",
            "x",
            [s / fresh / p for s, p in zip(found["fresh"], python, strict=True)],
            1.3,
        ),
        Row("S9", "first step of an engine / python", "x", ratios(found["first"], python), 1.3, 6.0),
    ]


async def _measure(rounds: int, count: int, fresh: int) -> dict[str, list[float]]:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    echo = _echo(theirs)
    ours.setblocking(False)
    executors = {"process": ProcessExecutor(workers=1), "fresh": ProcessExecutor(workers=1, fresh=True)}
    message = struct.pack("<I", 200) + os.urandom(200)
    try:
        with fresh_home() as home:
            async with Engine(home, durability="relaxed", executors=executors) as engine:

                async def bare(_: int) -> float:
                    start = time.perf_counter()
                    for _ in range(count):
                        await loop.sock_sendall(ours, message)
                        await loop.sock_recv(ours, 65536)
                    return time.perf_counter() - start

                async def timed(number: int, many: int, step: AnyStep) -> float:
                    start = time.perf_counter()
                    (await engine.run(chain, number * many, many, step)).raise_for_failure()
                    return time.perf_counter() - start

                async def warm(number: int) -> float:
                    return await timed(number, count, isolated)

                async def cold(number: int) -> float:
                    return await timed(-1 - number, fresh, isolated.with_options(runtime="fresh"))

                return await interleaved(rounds, bare=bare, warm=warm, fresh=cold, python=_python, first=_first)
    finally:
        ours.close()
        echo.wait()


def _echo(line: socket.socket) -> subprocess.Popen[bytes]:
    with line:
        return subprocess.Popen([sys.executable, "-c", ECHO, str(line.fileno())], pass_fds=(line.fileno(),))


async def _python(_: int) -> float:
    return await asyncio.to_thread(_python_seconds)


def _python_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import msgspec"], check=True)
    return time.perf_counter() - start


async def _first(number: int) -> float:
    """From an open engine without any process to the first answer."""
    async with Engine("memory://", executors={"process": ProcessExecutor(workers=1)}) as engine:
        start = time.perf_counter()
        (await engine.run(chain, number, 1, isolated)).raise_for_failure()
        return time.perf_counter() - start
