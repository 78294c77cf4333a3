"""What the tests of the log under fire share: looks at files, descriptors and threads, and programs of their own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

ENGINE = Path(__file__).parents[2] / "engine"


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def open_files() -> list[str]:
    """What this process holds open."""
    found: list[str] = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue  # the one that read the folder
    return sorted(found)


def threads() -> list[str]:
    """The engine's threads of this process that live."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("treadle"))


def run_python(code: str, *args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program with treadle on its path."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ENGINE), **environment},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


async def until(is_so: Callable[[], object], limit_s: float = 10.0) -> None:
    """Wait for what no event tells: the end of a thread, a state that another thread sets."""
    async with asyncio.timeout(limit_s):
        while not is_so():
            await asyncio.sleep(0.001)
