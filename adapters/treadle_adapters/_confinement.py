"""What a container may and sees, as the request that makes it.

Knows limits, users, environment and mounts; asks no container engine and starts nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import msgspec

from treadle.contracts import Attempt
from treadle.errors import ExecutorUnavailable
from treadle_adapters import _contained as inside
from treadle_adapters import _mounts, _owners
from treadle_adapters._exchange import Exchange

LABEL: Final = "treadle.owner"
NOBODY: Final = 65534
LEAST_MEMORY: Final = 6 * 1024 * 1024
"""Less is refused by container engines, with an error that speaks of something else."""
LEAST_CORES: Final = 0.01
_PASSED: Final = ("LANG", "TZ")


class Confinement(msgspec.Struct, frozen=True):
    """The options of an executor that are about what its containers may.

    ``memory``, ``tmp`` are bytes, ``cpus`` cores, 0 for no limit; ``user`` is ``None`` where it is chosen here.
    """

    image: str
    python: str
    network: str
    user: tuple[int, int] | None
    env: tuple[str, ...]
    mounts: tuple[_mounts.Mount, ...]
    memory: int
    cpus: float
    pids: int
    tmp: int

    def ids(self, is_rootless: bool) -> tuple[int, int]:
        """User and group inside: never root of this machine."""
        if self.user is not None:
            return self.user
        if is_rootless:
            return 0, 0  # which is this user, seen from outside
        return (os.geteuid(), os.getegid()) if os.geteuid() else (NOBODY, NOBODY)

    def owner(self, is_rootless: bool) -> int:
        """Whom files belong to that are written inside, as numbered outside; -1 if that is not known."""
        uid = self.ids(is_rootless)[0]
        if not is_rootless:
            return uid
        return os.geteuid() if uid == 0 else -1

    def request(
        self, attempt: Attempt, code: _mounts.Code, exchange: Exchange, folder: Path, *, is_rootless: bool
    ) -> dict[str, Any]:
        """The body of a ``POST /containers/create``.

        Args:
            attempt: the first one that it is for.
            code: the import path.
            exchange: its folders.
            folder: all folders of this executor, which it is not to see.
            is_rootless: whether root inside is this user outside.

        Raises:
            ExecutorUnavailable: what is to be mounted is not there.
        """
        uid, gid = self.ids(is_rootless)
        return {
            "Image": self.image,
            "Entrypoint": [self.python, "-B", "-c", inside.BOOT, *code.path],
            "Cmd": [],
            "User": f"{uid}:{gid}",
            "WorkingDir": "/",
            "Env": self._environment(),
            "Labels": _labels(attempt),
            "Healthcheck": {"Test": ["NONE"]},
            "StopSignal": "SIGKILL",  # process 1 heeds nothing else, and an engine that stops would wait ten seconds
            "HostConfig": {
                **self._limits(attempt),
                "AutoRemove": True,
                "NetworkMode": self.network,
                "ReadonlyRootfs": True,
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges"],
                "LogConfig": {"Type": "none"},  # so that what is printed past the worker fills no disk
                "Tmpfs": {"/tmp": f"rw,nosuid,nodev,exec,mode=1777,size={self.tmp}"},
                "Mounts": [_bind(mount) for mount in self._mounts(attempt, code, exchange, folder)],
            },
        }

    def _mounts(self, attempt: Attempt, code: _mounts.Code, exchange: Exchange, folder: Path) -> list[_mounts.Mount]:
        shown = [*(_mounts.Mount(entry, entry) for entry in code.folders), *self.mounts]
        for mount in shown:
            if not os.path.exists(mount.source):  # podman would make it
                raise ExecutorUnavailable(
                    f"{mount.source} is to be mounted into containers, and is not there",
                    fix="make it, or name another one",
                )
        private = (*_mounts.private_folders(attempt.store, attempt.store_tmp), folder)
        return [
            *shown,
            *_mounts.of_treadle(),
            _mounts.Mount(str(exchange.line), inside.LINE),
            _mounts.Mount(str(exchange.out), inside.OUTBOX, True),
            # No tmpfs: podman would copy into that what it is to hide.
            *(_mounts.Mount(str(exchange.nothing), place) for place in _mounts.hidden(private, shown)),
        ]

    def _limits(self, attempt: Attempt) -> dict[str, Any]:
        needs = attempt.needs
        memory, cores = needs.memory or self.memory, needs.cpu or self.cpus
        limits: dict[str, Any] = {"PidsLimit": self.pids, "Ulimits": _ulimits()}
        if memory:
            limits["Memory"] = limits["MemorySwap"] = max(memory, LEAST_MEMORY)
        if cores:
            # More than there are is refused, and this is the same machine; so is less than a hundredth.
            limits["NanoCpus"] = int(max(LEAST_CORES, min(cores, os.cpu_count() or cores)) * 1e9)
        if needs.gpu:
            limits["DeviceRequests"] = [{"Count": needs.gpu, "Capabilities": [["gpu"]]}]
        return limits

    def _environment(self) -> list[str]:
        passed = [name for name in os.environ if name in _PASSED or name.startswith("LC_") or name in self.env]
        return [*([] if "HOME" in passed else ["HOME=/tmp"]), *(f"{name}={os.environ[name]}" for name in passed)]


def kind_of(attempt: Attempt, code: _mounts.Code) -> tuple[Any, ...]:
    """What makes two attempts need two containers."""
    needs = attempt.needs
    return needs.cpu, needs.memory, needs.gpu, needs.gpu_type, attempt.store, code.folders


def _labels(attempt: Attempt) -> dict[str, str]:
    """For people who look at their containers; what runs in a warm one later is not written there."""
    return {
        LABEL: _owners.me(),
        "treadle.home": str(Path(attempt.store).parent),
        "treadle.run": attempt.run_id,
        "treadle.step": attempt.step,
    }


def _bind(mount: _mounts.Mount) -> dict[str, Any]:
    return {"Type": "bind", "Source": mount.source, "Target": mount.target, "ReadOnly": not mount.is_writable}


def _ulimits() -> list[dict[str, Any]]:
    """Always said: an engine's own defaults may be more than the kernel lets it give."""
    import resource  # not everywhere; where it is not there are no containers either

    limits: list[dict[str, Any]] = [{"Name": "core", "Soft": 0, "Hard": 0}]
    for name, number, soft, hard in (
        ("nofile", resource.RLIMIT_NOFILE, 4096, 16384),
        ("nproc", resource.RLIMIT_NPROC, 8192, 16384),
    ):
        here = resource.getrlimit(number)[1]
        most = hard if here == resource.RLIM_INFINITY else min(hard, here)
        limits.append({"Name": name, "Soft": min(soft, most), "Hard": most})
    return limits
