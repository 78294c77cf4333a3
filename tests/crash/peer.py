"""Another process with an engine on the same home, told over its stdin what to do; each answer is a line of JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import crash_shapes

from treadle import Engine, pipeline, step


@step(cache=False)
async def hold(gate: str, label: str) -> str:
    """Ends when the file ``gate`` exists."""
    crash_shapes.note(label.upper())
    while not os.path.exists(gate):  # another process makes the file
        await asyncio.sleep(0.005)
    return label.upper()


@step(cache=False)
async def before(label: str) -> str:
    crash_shapes.note(label)
    return label


@pipeline
async def held(gate: str, label: str) -> str:
    return await hold(gate, await before(label))


@step(cache=False)
async def small(i: int, j: int) -> int:
    return i * j


@pipeline
async def burst(i: int) -> int:
    return sum([await small(i, j) for j in range(3)])


async def start(engine: Engine, command: dict[str, Any]) -> Any:
    target = held.with_options(idempotency_key=command["key"]) if command.get("key") else held
    handle = await engine.start(target, *command["args"])
    tasks.add(asyncio.ensure_future(report(handle)))
    return handle.id


async def report(handle: Any) -> None:
    try:
        say("ended", await handle)
    except BaseException as error:
        say("failed", f"{type(error).__name__}: {error}")


async def recover(engine: Engine, command: dict[str, Any]) -> Any:
    del command
    return [result.run_id for result in await engine.recover()]


async def bursts(engine: Engine, command: dict[str, Any]) -> Any:
    results = [await engine.run(burst, i) for i in range(command["runs"])]
    return sum(result.value for result in results)


def say(what: str, value: Any) -> None:
    print(json.dumps([what, value]), flush=True)


tasks: set[asyncio.Future[Any]] = set()
VERBS = {"start": start, "recover": recover, "bursts": bursts}


async def main(home: str) -> None:
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    loop.add_reader(0, lambda: [lines.put_nowait(line) for line in os.read(0, 1 << 16).decode().splitlines() or [""]])
    async with Engine(Path(home), close_timeout=0.1) as engine:
        say("open", engine.id)
        while line := await lines.get():
            command = json.loads(line)
            say(command["do"], await VERBS[command["do"]](engine, command))
        loop.remove_reader(0)


if __name__ == "__main__":
    sys.modules["peer"] = sys.modules["__main__"]
    for name in ("held", "burst"):
        globals()[name].fn.__module__ = "peer"
    for name in ("hold", "before", "small"):
        globals()[name].fn.__module__ = "peer"
    asyncio.run(main(sys.argv[1]))
