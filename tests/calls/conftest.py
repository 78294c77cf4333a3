"""A stage for pipelines: an engine of their own, on each kind of loop, with a log on the disk and in memory."""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import loops

from treadle import Engine, RunResult


class Stage:
    """Runs pipelines, each on a new engine that caches nothing unless it is told to."""

    def __init__(self, kind: str, home: str) -> None:
        self.kind, self.home = kind, home

    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine's result."""
        return loops.run(self.kind, coroutine)

    def engine(self, **options: Any) -> Engine:
        """An engine to be opened."""
        return Engine(self.home, **{"cache": False, **options})

    def result(self, target: Any, *args: Any, **options: Any) -> RunResult[Any]:
        """How a run of the pipeline ended; ``options`` are the engine's."""

        async def main() -> RunResult[Any]:
            async with self.engine(**options) as engine:
                return await engine.run(target, *args)

        result: RunResult[Any] = self.drive(main())
        return result

    def value(self, target: Any, *args: Any, **options: Any) -> Any:
        """What the pipeline returned, or its error raised."""
        return self.result(target, *args, **options).value


@pytest.fixture(params=["asyncio-disk", "uvloop-memory"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    """Both loops, both ways a call is acknowledged: after the commit, and (in memory) at once."""
    kind, _, place = request.param.partition("-")
    return Stage(kind, "memory://" if place == "memory" else str(tmp_path / "home"))
