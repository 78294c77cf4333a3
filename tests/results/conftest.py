"""A home for the tests of results, and an engine on it for each run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from treadle import Engine, RunResult

LIMIT_S = 15.0


class Home:
    """One home on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def run(self, target: Any, *args: Any, **options: Any) -> RunResult[Any]:
        """How a run of the pipeline ended; its engine is closed."""

        async def main() -> RunResult[Any]:
            async with asyncio.timeout(LIMIT_S), Engine(self.path, **options) as engine:
                return await engine.run(target, *args)

        result = asyncio.run(main())
        assert result.status  # looked at, so that nothing warns
        return result


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A new home."""
    return Home(tmp_path / "home")
