"""A service whose handlers await steps in processes; ASGI by hand, run by uvicorn in the tests."""

from __future__ import annotations

import json
import os
from contextlib import AsyncExitStack
from typing import Any

import hostile_steps as steps

from treadle import Engine, pipeline
from treadle_adapters.process import ProcessExecutor


@pipeline
async def worked(number: int) -> list[int]:
    return [await steps.fine(number), await steps.pid(number)]


stack = AsyncExitStack()
engine = Engine("memory://", executors={"process": ProcessExecutor(workers=2, grace=0.5)}, cache=False)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """``/3`` gives 4, the process that found out, and that of the service; ``/die`` what a step that dies becomes."""
    if scope["type"] == "lifespan":
        await receive()
        await stack.enter_async_context(engine)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await stack.aclose()
        await send({"type": "lifespan.shutdown.complete"})
        return
    number = scope["path"].strip("/")
    if number == "die":
        result = await engine.run(pipeline(dies))
        body: Any = type(result.error).__name__
    else:
        body = [*await worked(int(number)), os.getpid()]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


async def dies() -> None:
    await steps.exits(3)
