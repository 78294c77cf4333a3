"""A process that has imported everything and started nothing; it forks one child per command, which lives and dies.

Commands come as lines of JSON on stdin, answers go to stdout, so that a trial costs a
fork (5 ms) instead of an interpreter with its imports (300 ms). No thread and no engine exists here.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import os
import signal
import sys
from typing import Any

import aiosqlite
import blake3
import crash_shapes
import fsspec
import structlog

import treadle
from treadle import Engine
from treadle.storage import failpoints

IMPORTED = (aiosqlite, blake3, fsspec, structlog)
HANGS_AFTER_S = 30


async def run(engine: Engine, command: dict[str, Any]) -> dict[str, Any]:
    """Run a shape from its beginning."""
    target = getattr(crash_shapes, command["shape"])
    result = await engine.run(target, command["seed"])
    if command["shape"] == "cached":
        result = await engine.run(target, command["seed"])
    return {"status": result.status, "value": result.value}


async def recover(engine: Engine, command: dict[str, Any]) -> dict[str, Any]:
    """Say what is there, and recover it."""
    del command
    before = [result.status for result in await engine.runs(children=True)]
    results = await engine.recover()
    after = [(result.pipeline, result.status) for result in await engine.runs()]
    values = [(r.pipeline, r.status, r.value if r.success else repr(r.error)) for r in results]
    return {"before": before, "recovered": values, "after": after}


async def main(command: dict[str, Any]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    if command.get("count"):

        def count(name: str) -> None:
            counts[name] = counts.get(name, 0) + 1

        failpoints.hit = count
    if command.get("failpoint"):
        failpoints.arm(command["failpoint"], command["nth"])
    async with Engine(command["home"], durability=command.get("durability", "strict")) as engine:
        answer = await (recover if command["do"] == "recover" else run)(engine, command)
    return {**answer, "counts": counts}


def child(command: dict[str, Any], pipe: int) -> None:
    """The life of a forked child."""
    faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)
    os.environ[crash_shapes.LEDGER] = command["ledger"]
    code = 1
    try:
        os.write(pipe, json.dumps(asyncio.run(main(command))).encode())
        code = 0
    except BaseException as error:
        os.write(pipe, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
    os._exit(code)


def perform(command: dict[str, Any]) -> dict[str, Any]:
    """Fork, wait, and say how the child ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        child(command, writing)
    os.close(writing)
    chunks = []
    while chunk := os.read(reading, 65536):
        chunks.append(chunk)
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    answer = json.loads(b"".join(chunks)) if chunks else {}
    return {**answer, "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "exit": status}


if __name__ == "__main__":
    assert treadle
    gc.collect()
    gc.freeze()  # or a child's first collection would copy every page it shares with this process
    for line in sys.stdin:
        print(json.dumps(perform(json.loads(line))), flush=True)
