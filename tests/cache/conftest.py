"""A home for the tests of cache and values: each pipeline runs on a new engine unless a test opens one."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import textwrap
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from treadle import Engine, RunResult

LIMIT_S = 8.0


class Home:
    """One home on the disk (or in memory), and how calls on it ended."""

    def __init__(self, path: str) -> None:
        self.path = path

    def engine(self, **options: Any) -> Engine:
        """An engine to be opened."""
        return Engine(self.path, **options)

    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine's result; a test that hangs fails."""

        async def limited() -> Any:
            async with asyncio.timeout(LIMIT_S):
                return await coroutine

        return asyncio.run(limited())

    def result(self, target: Any, *args: Any, **options: Any) -> RunResult[Any]:
        """How a run of the pipeline ended, on a new engine with these options."""

        async def main() -> RunResult[Any]:
            async with self.engine(**options) as engine:
                return await engine.run(target, *args)

        result: RunResult[Any] = self.drive(main())
        return result

    def value(self, target: Any, *args: Any, **options: Any) -> Any:
        """What the pipeline returned, or its error raised."""
        return self.result(target, *args, **options).value

    def statuses(self, target: Any, *args: Any, **options: Any) -> dict[str, str]:
        """How each call of a run ended."""
        result = self.result(target, *args, **options)
        result.raise_for_failure()
        return {name: call.status for name, call in result.step_results.items()}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A new home."""
    return Home(str(tmp_path / "home"))


Write = Callable[..., ModuleType]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Write a module and load it, or load a new version of it, as an edit and a restart (or a reload) would."""
    saved = set(sys.modules)
    folder = tmp_path / "source"
    folder.mkdir()
    count = 0

    def load(text: str, name: str = "cached_steps") -> ModuleType:
        nonlocal count
        count += 1
        path = folder / f"{name}_{count}.py"
        path.write_text(textwrap.dedent(text))
        os.utime(path, (1_600_000_000, 1_600_000_000))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in set(sys.modules) - saved:
        if name.startswith("cached_"):
            del sys.modules[name]
