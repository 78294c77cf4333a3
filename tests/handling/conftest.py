"""What the tests of decorators share: a home, pipelines made of one call, and breakers that begin anew."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from treadle import Engine, RunResult, pipeline
from treadle.events import Event
from treadle.testing import reset_breakers

Until = Callable[[Callable[[], object]], Awaitable[None]]


@pytest.fixture(autouse=True)
def every_breaker_is_new() -> Iterator[None]:
    """Their state lives as long as the process."""
    reset_breakers()
    yield
    reset_breakers()


@pytest.fixture
def home(tmp_path: Path) -> str:
    """A folder for an engine."""
    return str(tmp_path / "home")


@pytest.fixture
def until() -> Until:
    """Waits, with no time lost, for something that no event tells."""

    async def wait(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0)

    return wait


@pytest.fixture
def calling() -> Callable[..., Any]:
    """Makes a pipeline that calls a step once, with the arguments that the pipeline gets."""

    def make(step: Any, **options: Any) -> Any:
        @pipeline(name=f"calling_{step.name}", **options)
        async def once(*args: Any, **kwargs: Any) -> Any:
            return await step(*args, **kwargs)

        return once

    return make


@pytest.fixture
def events_of() -> Callable[..., Awaitable[list[Event]]]:
    """The events of a run, of the given kinds."""

    async def find(engine: Engine, result: RunResult[Any], *kinds: type[Event]) -> list[Event]:
        return [event async for event in engine.events(result.run_id) if not kinds or isinstance(event, kinds)]

    return find
