"""Starts a dask cluster for tests, in a process of its own; ``dask_host`` is that process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent


class Cluster:
    """A scheduler and its workers, which the test may kill."""

    def __init__(self, host: subprocess.Popen[str]) -> None:
        self._host = host
        self.address = self._line()
        assert self.address.startswith("tcp://127.0.0.1:")

    def pids(self) -> set[int]:
        """The processes of the workers."""
        return set(json.loads(self._ask("pids")))

    def stop(self) -> None:
        """End all of it."""
        assert self._ask("stop") == "stopped"

    def kill(self) -> None:
        """End all of it at once, as a machine does that loses its power."""
        os.killpg(self._host.pid, signal.SIGKILL)
        self._host.wait()

    def _ask(self, what: str) -> str:
        assert self._host.stdin is not None
        self._host.stdin.write(f"{what}\n")
        self._host.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._host.stdout is not None
        return self._host.stdout.readline().strip()


@contextmanager
def cluster(workers: int = 2, *resources: str, port: int = 0, **environment: str) -> Iterator[Cluster]:
    """A cluster of so many workers with one thread each.

    Args:
        workers: how many.
        *resources: what each of them declares, as ``"GPU=1"``.
        port: of the scheduler; 0 for any that is free.
        **environment: what else is in the environment of its processes.
    """
    path = os.pathsep.join([str(HERE), *sys.path])
    command = [sys.executable, str(HERE / "dask_host.py"), str(workers), str(port), *resources]
    host = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path, **environment}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        yield Cluster(host)
    finally:
        assert host.stdin is not None
        assert host.stdout is not None
        host.stdin.close()
        host.wait(20)
        host.stdout.close()
