"""Runs a coroutine on each kind of event loop; it knows nothing of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

KINDS = ("asyncio", "uvloop")
LIMIT_S = 60.0
"""After this a test is taken for hung: a deadlock is a failure with a traceback, and no lost hour."""


def run(kind: str, coroutine: Coroutine[Any, Any, Any], limit_s: float = LIMIT_S) -> Any:
    """As ``asyncio.run``, on the kind of loop that is named; skips where uvloop is not installed."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if kind == "uvloop":
        try:
            import uvloop
        except ImportError:
            coroutine.close()
            pytest.skip("uvloop is not installed")
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_limited(coroutine, limit_s))


async def _limited(coroutine: Coroutine[Any, Any, Any], limit_s: float) -> Any:
    async with asyncio.timeout(limit_s):
        return await coroutine
