"""What an attempt uses, as far as it can be told in a process that it shares with others.

CPU time of a sync step is exactly its own: the clock of the worker thread. An async step shares its thread with all
others, switched at every await, and no clock can tell them apart for less than it costs; it has none.

Memory belongs to the process. Its peak is exact if the process reached a new high during the attempt, and else the
larger of what it had at the beginning and at the end. It is taken for steps that name resources: it costs 16 µs a
call, and CPU time 2.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

if sys.platform != "win32":
    import resource

_UNIT = 1 if sys.platform == "darwin" else 1024


class Meter:
    """Measures the attempts of one call: CPU seconds add up, of memory the peak counts; ``None`` if not measured."""

    __slots__ = ("_before", "cpu_s", "peak_rss_bytes")

    def __init__(self) -> None:
        self.cpu_s: float | None = None
        self.peak_rss_bytes: int | None = None
        self._before = (0, 0)

    def timed(self, body: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a sync body and count the CPU time of its thread."""
        begun = time.thread_time()
        try:
            return body(*args, **kwargs)
        finally:
            self.cpu_s = (self.cpu_s or 0.0) + time.thread_time() - begun

    def begin(self) -> None:
        """An attempt whose memory is measured begins."""
        self._before = (_high_water(), _resident())

    def end(self) -> None:
        """It ended."""
        high, before = _high_water(), self._before
        peak = high if high > before[0] else max(before[1], _resident()) or high
        self.peak_rss_bytes = max(self.peak_rss_bytes or 0, peak) or None


def _high_water() -> int:
    """The most memory that the process ever had, in bytes; 0 if the system does not say."""
    if sys.platform == "win32":
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT


def _resident() -> int:
    """The memory that the process has now, in bytes; 0 if the system does not say."""
    if sys.platform != "linux":
        return 0
    try:
        file = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return 0  # no /proc here, or no descriptor left
    try:
        return int(os.read(file, 64).split()[1]) * os.sysconf("SC_PAGE_SIZE")
    finally:
        os.close(file)


class Measured:
    """What an attempt uses in a process that is its own, with the processes that it started and waited for.

    Args:
        memory: bytes by which the memory that the process can write to may grow; 0 for no bound. What goes beyond it is
            a ``MemoryError``.
    """

    __slots__ = ("_before", "_bounds", "_memory", "cpu_s", "peak_rss_bytes")

    def __init__(self, memory: int) -> None:
        self._memory, self._bounds, self._before = memory, (0, 0), 0.0
        self.cpu_s: float | None = None
        self.peak_rss_bytes: int | None = None

    def __enter__(self) -> Measured:
        self._before = _cpu()
        _begin_peak(self._before)
        if self._memory and sys.platform == "linux":
            self._bounds = resource.getrlimit(resource.RLIMIT_DATA)
            bound = _status("VmData:") + self._memory
            resource.setrlimit(resource.RLIMIT_DATA, (bound, self._bounds[1]))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """It ended; a second time, this does nothing."""
        if self._memory and sys.platform == "linux":
            resource.setrlimit(resource.RLIMIT_DATA, self._bounds)
            self._memory = 0
        if self.cpu_s is None:
            self.cpu_s = max(0.0, _cpu() - self._before)
            self.peak_rss_bytes = _high_water() or None


def _cpu() -> float:
    """CPU seconds of the process and of those that it has waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


_last_peak: tuple[int, float] | None = None
"""The peak of resident memory as it last began, and the CPU seconds of the process then."""
_QUIET_S: Final = 0.002


def _begin_peak(cpu_s: float) -> None:
    """Have the peak of resident memory begin anew, unless hardly anything has happened since it did (20 µs less)."""
    global _last_peak
    if _last_peak is None or _high_water() != _last_peak[0] or cpu_s - _last_peak[1] > _QUIET_S:
        _forget_peak()
        _last_peak = (_high_water(), cpu_s)


def _forget_peak() -> None:
    """Let the peak be what the memory is now; where the system cannot do that, it stays the process's."""
    try:
        file = os.open("/proc/self/clear_refs", os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(file, b"5")
    except OSError:
        return
    finally:
        os.close(file)


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes; 0 where there is none."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)
    except OSError:
        return 0
