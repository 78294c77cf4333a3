"""A program whose step hangs on the documents' executor, until a test kills the program."""

from __future__ import annotations

import asyncio
import sys

from documented import CommandExecutor

from treadle import Engine, pipeline
from treadle.testing import zoo

hang = zoo.hang.with_options(runtime="mine")


@pipeline
async def flow(folder: str) -> None:
    await hang(folder)


async def main() -> None:
    async with Engine("memory://", executors={"mine": CommandExecutor()}) as engine:
        await engine.run(flow, sys.argv[1])


if __name__ == "__main__":
    asyncio.run(main())
