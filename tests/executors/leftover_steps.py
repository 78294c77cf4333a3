"""Steps that start processes and do not wait for them; imported by tests and by the workers that inherit them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from treadle import step

started: list[subprocess.Popen[bytes]] = []


def zombies(of: int | None = None) -> int:
    """How many processes have ended and were not waited for; only the children of one, if given."""
    found = 0
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found += fields[0] == "Z" and (of is None or int(fields[1]) == of)
    return found


def _leave(count: int) -> None:
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            if os.fork() == 0:
                os._exit(0)
            os._exit(0)
        os.waitpid(pid, 0)


@step(runtime="process", cache=False)
def leaves_processes_that_end(count: int) -> tuple[int, int]:
    """Also says who it is, and how many zombies its process has."""
    _leave(count)
    return os.getpid(), zombies(os.getpid())


@step(runtime="process", cache=False)
def nothing() -> None: ...


@step(runtime="process", cache=False)
def starts_and_remembers() -> None:
    started.append(subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(7)"]))


@step(runtime="process", cache=False)
def asks_how_they_ended() -> list[int]:
    return [process.wait() for process in started]


@step(runtime="container", cache=False)
def leaves_in_its_container(count: int, lasting: bool) -> tuple[int, int]:
    """Gives a daemon that it has started, or 0, and how many zombies there are when those that ended had their time."""
    _leave(count)
    daemon = 0
    if lasting:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            daemon = os.fork()
            if daemon:
                os.write(write, daemon.to_bytes(4, "little"))
                os._exit(0)
            time.sleep(600)
            os._exit(0)
        os.waitpid(pid, 0)
        daemon = int.from_bytes(os.read(read, 4), "little")
    until = time.monotonic() + 10
    while (left := zombies()) and time.monotonic() < until:
        time.sleep(0.005)
    return daemon, left


@step(runtime="container", cache=False)
def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@step(runtime="container", cache=False)
def is_gone(pid: int) -> bool:
    """Waits for it, but not for long."""
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.005)
    return not Path(f"/proc/{pid}").exists()


@step(runtime="container", cache=False)
def crashes() -> None:
    os._exit(3)
