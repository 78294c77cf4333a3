"""Control groups of the kernel, where this process may make them: bounds for one worker and all that it starts.

Knows both versions of their file system, and nothing of workers. Whatever goes wrong here, steps are performed without.

Theory of operation
* The nursery moves into a group of its own once, below or beside the one that it was started in; so all its workers
  are born there, and none of them, nor what they start, can leave it. Moving costs the kernel some 10 ms.
* A worker that is at an attempt with ``resources`` moves into a group of its own below that, and sets its bounds.
* Who ends a worker reads its group's count of kills for want of memory, kills what is left in it, and removes it.
* The name of the nursery's group says whose it is. If nobody could remove it, the next nursery does.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PREFIX: Final = "treadle-"
SLACK_BYTES: Final = 32 * 1024 * 1024
"""More than a step asked for is allowed, so that its own limit is met first: a ``MemoryError`` says more."""
_PERIOD_US: Final = 100_000
_LEAST_QUOTA_US: Final = 1_000
_OWN: Final = "nursery"


class Tree:
    """The groups of one nursery: one folder per hierarchy that this process can write to.

    Args:
        folders: where they are.
        origins: the groups that this process has come from.
    """

    def __init__(self, folders: tuple[Path, ...], origins: tuple[Path, ...] = ()) -> None:
        self.folders, self._origins = folders, origins

    @classmethod
    def planted(cls) -> Tree | None:
        """Groups of this process, which moves into them; ``None`` where that is not possible."""
        if sys.platform != "linux":
            return None
        name = f"{PREFIX}{os.getpid()}-{_born_at(os.getpid())}"
        found = [(folder, places[0]) for places in _places() if (folder := _plant(places, name)) is not None]
        return cls(tuple([folder for folder, _ in found]), tuple([origin for _, origin in found])) if found else None

    def group(self, number: int) -> Group:
        """The group of a worker; it is there only if the worker has made it."""
        return Group(tuple([folder / str(number) for folder in self.folders]))

    def kill(self) -> None:
        """Kill all that is in it, but for this process."""
        for folder in self.folders:
            for inner in _inner(folder):
                _kill(inner)

    def uproot(self, within_s: float) -> None:
        """Kill all that is in it but for this process, move that one out, and remove the groups."""
        until = time.monotonic() + within_s
        for origin in self._origins:
            _write(origin / "cgroup.procs", "0")
        while not self.is_removed() and time.monotonic() < until:
            time.sleep(0.005)

    def is_removed(self) -> bool:
        """Kill what is in it, and remove it; false while something of it is still ending."""
        self.kill()
        return not [inner for folder in self.folders for inner in [*_inner(folder), folder] if not _remove(inner)]


class Group:
    """The group of one worker."""

    def __init__(self, folders: tuple[Path, ...]) -> None:
        self._folders = folders
        self._is_joined = False

    def bound(self, memory: int, cpu: float) -> None:
        """Allow this process, and all that it starts from now on, so many more bytes and so many cores; 0: no bound."""
        for folder in self._folders:
            if not self._is_joined:
                folder.mkdir(exist_ok=True)
            _bound_memory(folder, memory)
            _bound_cpu(folder, cpu)
            if not self._is_joined:
                (folder / "cgroup.procs").write_text("0")
        self._is_joined = True

    def release(self) -> None:
        """Take the bounds away."""
        for folder in self._folders:
            _bound_memory(folder, 0)
            _bound_cpu(folder, 0)

    def ended(self) -> int:
        """The worker is gone: kill what is left; says how many processes the kernel has killed for want of memory."""
        kills = 0
        for folder in self._folders:
            if folder.is_dir():
                kills = max(kills, _oom_kills(folder))
                _kill(folder)
        return kills

    def is_removed(self) -> bool:
        """Remove it; false while something of it is still ending."""
        return all(map(_remove, self._folders))


def is_swept() -> bool:
    """End what nurseries have left that were killed; false while something of that is still ending."""
    left = [folder for places in _places() for place in places for folder in place.glob(f"{PREFIX}*-*")]
    return not [folder for folder in left if _is_dead(folder.name) and not Tree((folder,)).is_removed()]


def _is_dead(name: str) -> bool:
    pid, _, born = name.removeprefix(PREFIX).partition("-")
    return pid.isdecimal() and _born_at(int(pid)) != born


# -- where groups are ---------------------------------------------------------------------


def _places() -> Iterator[list[Path]]:
    """For each hierarchy, the folders in which groups may be made, the best first."""
    own = _own_groups()
    hierarchies = _hierarchies()
    has_first = any({"memory", "cpu"} & controllers for controllers, _ in hierarchies)
    for controllers, root in hierarchies:
        if not controllers and has_first:
            continue  # of both versions, the controllers are with the first one
        if not controllers:
            here = _below(root, own.get("", "/"))
            # Version 2 allows no bounds in a group that has processes of its own, as ours has; beside it, it may.
            yield [here, *[folder for folder in here.parents if folder == root or root in folder.parents]]
        elif {"memory", "cpu"} & controllers:
            known = next(iter(controllers & own.keys()), None)
            yield [_below(root, own[known] if known else "/")]


def _hierarchies() -> list[tuple[set[str], Path]]:
    """What is mounted: controllers (none: version 2) and where."""
    found: dict[Path, set[str]] = {}
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split()[:3]
        if kind == "cgroup":
            found[Path(fields.split()[4])] = set(options.split(",")) & {"memory", "cpu"} or {"other"}
        elif kind == "cgroup2":
            found[Path(fields.split()[4])] = set()
    return [(controllers, root) for root, controllers in found.items()]


def _own_groups() -> dict[str, str]:
    """In which group this process is, by controller; under no name that of version 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return {}
    fields = [line.split(":", 2) for line in lines]
    return {controller: path for _, names, path in fields for controller in names.split(",")}


def _below(root: Path, path: str) -> Path:
    below = root / path.lstrip("/")
    return below if below.is_dir() else root  # in a container, paths begin elsewhere


def _plant(places: list[Path], name: str) -> Path | None:
    """A new group in the first place where it can have bounds, else where it can be at all, with this process in it."""
    made: Path | None = None
    for place in places:
        folder = place / name
        try:
            folder.mkdir()
            (folder / _OWN).mkdir()
        except OSError:
            _remove(folder)
            continue
        if place is places[0]:
            _write(place / "cgroup.subtree_control", "+memory +cpu")
        _write(folder / "cgroup.subtree_control", "+memory +cpu")
        is_best = (folder / _OWN / "memory.max").exists() or not (folder / "cgroup.controllers").exists()
        if is_best or made is None:
            if made is not None:
                _remove(made / _OWN)
                _remove(made)
            made = folder
        else:
            _remove(folder / _OWN)
            _remove(folder)
        if is_best:
            break
    if made is None or _write(made / _OWN / "cgroup.procs", "0"):
        return made
    _remove(made / _OWN)
    _remove(made)
    return None


# -- files --------------------------------------------------------------------------------


def _bound_memory(folder: Path, memory: int) -> None:
    bound = SLACK_BYTES + memory
    if (folder / "memory.max").exists():
        limit = str(_number(folder / "memory.current") + bound) if memory else "max"
        _write(folder / "memory.max", limit)
        _write(folder / "memory.swap.max", "0" if memory else "max")
    elif (folder / "memory.limit_in_bytes").exists():
        limit = str(_number(folder / "memory.usage_in_bytes") + bound) if memory else "-1"
        # The one that includes swap must never be the smaller one.
        names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        for name in names if memory else reversed(names):
            _write(folder / name, limit)


def _bound_cpu(folder: Path, cpu: float) -> None:
    quota = max(_LEAST_QUOTA_US, int(cpu * _PERIOD_US))
    if (folder / "cpu.max").exists():
        _write(folder / "cpu.max", f"{quota} {_PERIOD_US}" if cpu else "max")
    elif (folder / "cpu.cfs_quota_us").exists():
        _write(folder / "cpu.cfs_quota_us", str(quota) if cpu else "-1")


def _oom_kills(folder: Path) -> int:
    for name in ("memory.events", "memory.oom_control"):
        try:
            lines = (folder / name).read_text().splitlines()
        except OSError:
            continue
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return 0


def _inner(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if entry.is_dir()]
    except OSError:
        return []


def _kill(folder: Path) -> None:
    """Kill all processes of a group; each is looked for once more when its number cannot be another's any longer."""
    for pid in _members(folder):
        if pid == os.getpid():
            continue
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            if pid in _members(folder):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        except OSError:
            continue
        finally:
            os.close(fd)


def _members(folder: Path) -> list[int]:
    try:
        return [int(line) for line in (folder / "cgroup.procs").read_text().split()]
    except (OSError, ValueError):
        return []


def _remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _write(path: Path, text: str) -> bool:
    try:
        path.write_text(text)
    except OSError:
        return False
    return True


def _born_at(pid: int) -> str:
    """When a process was started, in clock ticks since the machine was; empty if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
