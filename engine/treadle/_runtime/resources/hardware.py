"""How many cores and how much memory this process may use: what the machine has, less what its control groups leave.

Knows files and system calls; does not know engines or steps.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def cores(root: Path = ROOT) -> float:
    """Cores: those that the process may run on, or the quota of its control group if that is less."""
    try:
        count = float(len(os.sched_getaffinity(0)))
    except (AttributeError, OSError):  # macOS and Windows have no such question
        count = float(os.cpu_count() or 1)
    for folder in _groups(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if not period:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            count = min(count, int(quota) / int(period))
    return count


def memory_bytes(root: Path = ROOT) -> int | None:
    """Bytes of memory: the machine's, or the bound of its control group if that is less; ``None`` if nobody says."""
    found = [] if (total := _physical()) is None else [total]
    files = [folder / name for folder in _groups(root, "memory") for name in ("memory.max", "memory.limit_in_bytes")]
    found += [int(text) for text in map(_text, files) if text.isdigit()]
    return min(found, default=None)


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return _physical_on_windows()


def _physical_on_windows() -> int | None:
    if sys.platform != "win32":
        return None
    import ctypes  # nobody else needs it

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32), ("load", ctypes.c_uint32), ("total", ctypes.c_uint64),
            ("rest", ctypes.c_uint64 * 6),
        )  # fmt: skip

    status = Status(length=ctypes.sizeof(Status))
    return int(status.total) if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the process's control group and of those above it, of both versions; some may not exist."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        top = mount / controllers if controllers else mount
        folder = top / path.lstrip("/")
        yield folder
        for above in folder.parents:
            if not above.is_relative_to(top):
                break
            yield above


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
