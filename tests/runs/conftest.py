"""What the tests of runs share: a home of their own, and both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

Until = Callable[[Callable[[], object]], Awaitable[None]]
Drive = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def home(tmp_path: Path) -> str:
    """A folder for an engine."""
    return str(tmp_path / "home")


@pytest.fixture(params=["asyncio", "uvloop"])
def drive(request: pytest.FixtureRequest) -> Drive:
    """Runs a coroutine to its end on a new loop, as ``asyncio.run`` does; once on each kind of loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(asyncio.wait_for(coroutine, 20))

    return run


@pytest.fixture
def until() -> Until:
    """Waits, with no time lost, for something that no event tells."""

    async def wait(condition: Callable[[], object]) -> None:
        while not condition():  # there is nothing to wait for
            await asyncio.sleep(0)

    return wait
