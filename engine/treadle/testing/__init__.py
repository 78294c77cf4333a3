"""A kit for tests of pipelines: an engine that keeps nothing, and a clock that stands still until it is told to move.

>>> import asyncio
>>> from treadle import pipeline, step
>>> from treadle.testing import memory_engine
>>> @step
... async def double(x: int) -> int:
...     return 2 * x
>>> @pipeline
... async def twice(x: int) -> int:
...     return await double(await double(x))
>>> async def main() -> int:
...     async with memory_engine() as engine:
...         return (await engine.run(twice, 3)).value
>>> asyncio.run(main())
12
"""

from treadle._runtime.guards.breakers import reset as reset_breakers
from treadle.testing.clock import VirtualClock
from treadle.testing.engines import memory_engine

__all__ = ["VirtualClock", "memory_engine", "reset_breakers"]
