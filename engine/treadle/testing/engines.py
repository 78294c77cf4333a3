"""Engines for tests."""

from __future__ import annotations

from typing import Any

from treadle._runtime.engine import Engine
from treadle.contracts import Clock


def memory_engine(*, clock: Clock | None = None, **options: Any) -> Engine:
    """An engine that keeps nothing, for ``async with``.

    Args:
        clock: where its time comes from; a ``VirtualClock`` makes retries and timeouts wait for the test.
        **options: as for ``Engine``.

    >>> memory_engine(cache=False)
    <Engine new on memory://, 0 runs>
    """
    engine = Engine("memory://", **options)
    engine.use_clock(clock)
    return engine
