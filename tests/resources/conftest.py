"""What the tests of resources, rates and groups share: a home of their own, and patience without sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

Until = Callable[[Callable[[], object]], Awaitable[None]]


@pytest.fixture
def home(tmp_path: Path) -> str:
    """A folder for an engine."""
    return str(tmp_path / "home")


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, home: str) -> str:
    """Both ways in which a call is acknowledged: after its commit, and at once."""
    return home if request.param == "disk" else "memory://"


@pytest.fixture
def until() -> Until:
    """Waits for something that no event tells."""

    async def wait(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0)

    return wait
