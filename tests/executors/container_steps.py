"""Steps for containers: they look around, try what they may not do, and deceive the engine about their outputs."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from treadle import pipeline, step

FOREVER_S = 600
LARGE = 200_000


class Unknown:
    """A value that nothing but pickle can store."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Unknown, ()


@step(runtime="container", cache=False)
def looks_around(private: list[str]) -> dict[str, Any]:
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "ids": (os.getuid(), os.getgid()),
        "capabilities": int(status["CapEff"], 16),
        "no_new_privileges": status["NoNewPrivs"].strip(),
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "private": {path: _content(path) for path in private},
        "first": Path("/proc/1/cmdline").read_bytes()[:8].decode(errors="replace"),
        "here": os.getcwd(),
    }


def _content(path: str) -> list[str] | str:
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        return type(error).__name__


@step(runtime="container", cache=False)
def writes(paths: list[str]) -> list[str]:
    """Names those that it could write to."""
    found: list[str] = []
    for path in paths:
        try:
            Path(path).write_bytes(b"x")
        except OSError:
            continue
        found.append(path)
    return found


@step(runtime="container", cache=False)
def environment() -> dict[str, str]:
    return dict(os.environ)


@step(runtime="container", cache=False)
def forks(most: int) -> int:
    """How many processes it may have."""
    pids: list[int] = []
    try:
        while len(pids) < most:
            pid = os.fork()
            if pid == 0:
                time.sleep(FOREVER_S)
            pids.append(pid)
    except OSError:
        pass
    for pid in pids:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return len(pids)


@step(runtime="container", cache=False)
def where(_: int = 0) -> str:
    return socket.gethostname()


@step(runtime="container", cache=False, execution_group="etl")
def where_of_group(_: Any = None) -> str:
    time.sleep(0.05)
    return socket.gethostname()


@step(runtime="container", cache=False, resources={"memory": "96Mi"})
def eats(size: int) -> int:
    data = bytearray(size)
    data[::4096] = b"x" * len(data[::4096])
    return len(data)


@step(runtime="container", cache=False, resources={"cpu": "500m"})
def burns(seconds: float) -> float:
    """Processor time that it gets in so many seconds."""
    begun, until = time.process_time(), time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return time.process_time() - begun


@step(runtime="container", cache=False)
def swallows_everything(folder: str) -> None:
    Path(folder, "started").touch()
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            continue


@step(runtime="container", cache=False)
def stops_itself(folder: str) -> None:
    Path(folder, "started").touch()
    os.kill(os.getpid(), signal.SIGSTOP)


@step(runtime="container", cache=False)
def kills_the_first() -> str:
    """Nobody inside can kill process 1."""
    os.kill(1, signal.SIGKILL)
    os.kill(1, signal.SIGTERM)
    time.sleep(0.05)
    return "alive"


@step(runtime="container", cache=False)
def cleans_up(folder: str) -> None:
    try:
        Path(folder, "started").touch()
        time.sleep(FOREVER_S)
    finally:
        Path(folder, "cleaned").touch()


@step(runtime="container", cache=False)
def gives_what_only_pickles() -> Any:
    return [Unknown()]


@step(runtime="container", cache=False)
def total(data: Any) -> int:
    return len(data)


@step(runtime="container", cache=False)
def both(one: bytes, other: bytes) -> tuple[int, int]:
    return sum(one), sum(other)


@step(runtime="container", cache=False)
def array(count: int) -> Any:
    import numpy as np

    return np.arange(count)


# -- outputs that are not what they seem ----------------------------------------------------


@step(runtime="container", cache=False)
def deceives(how: str) -> bytes:
    """Its large output is put where and as it should not be: what stores outputs in the worker is replaced."""
    from treadle.storage.local_blobs import LocalBlobs

    put = LocalBlobs._put

    def lie(store: Any, *args: Any) -> str:
        location = put(store, *args)
        return LIES[how](store.folders[0], location) or location

    LocalBlobs._put = lie  # type: ignore[method-assign]
    return os.urandom(LARGE)


def _replaced(make: Callable[[Path, Path], object]) -> Callable[[Path, str], str | None]:
    def lie(root: Path, location: str) -> str | None:
        path = root / location
        real = path.rename(root / "real")
        make(path, real)
        return None

    return lie


def _shard_elsewhere(root: Path, location: str) -> None:
    shard = (root / location).parent
    shard.rename(root / "elsewhere")
    shard.symlink_to("../out/elsewhere")


LIES: dict[str, Callable[[Path, str], str | None]] = {
    "above it": lambda root, location: f"../line/{location}",
    "absolutely": lambda root, location: f"{root}/{location}",
    "as a link": _replaced(lambda path, real: path.symlink_to(real)),
    "as a second name": _replaced(lambda path, real: os.link(real, path)),
    "as a fifo": _replaced(lambda path, real: os.mkfifo(path)),
    "as a socket": _replaced(lambda path, real: socket.socket(socket.AF_UNIX).bind(str(path))),
    "as a folder": _replaced(lambda path, real: path.mkdir()),
    "in a folder that is a link": _shard_elsewhere,
    "with other bytes": _replaced(lambda path, real: path.write_bytes(bytes(LARGE))),
    "with fewer bytes": _replaced(lambda path, real: path.write_bytes(b"")),
    "not at all": _replaced(lambda path, real: None),
}


@step(runtime="container", cache=False)
def litters() -> bytes:
    """Leaves an outbox that is hard to remove."""
    folder = Path("/treadle/out")
    deep = folder / "deep"
    deep.mkdir()
    home = os.getcwd()
    os.chdir(deep)
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
    os.chdir(home)
    closed = folder / "closed"
    (closed / "in").mkdir(parents=True)
    closed.chmod(0)
    return os.urandom(LARGE)


@step(runtime="container", cache=False)
def waits_for_leave(folder: str) -> str:
    Path(folder, "started").touch()
    while not Path(folder, "leave").exists():
        time.sleep(0.01)
    return "done"


# -- for engines that die -----------------------------------------------------------------


@step(runtime="container", cache=False)
def starts_and_waits(folder: str, number: int) -> None:
    """Starts a program that leaves its session and its parent, and waits for ever."""
    import subprocess
    import sys

    program = "import sys, time; open(sys.argv[1], 'x').close(); time.sleep(600)"
    if os.fork() == 0:
        os.setsid()
        subprocess.Popen([sys.executable, "-S", "-E", "-c", program, f"{folder}/child-{number}"])
        os._exit(0)
    while not Path(f"{folder}/child-{number}").exists():
        time.sleep(0.005)
    Path(f"{folder}/parent-{number}").touch()
    time.sleep(FOREVER_S)


@pipeline
async def many_that_wait(folder: str, count: int) -> None:
    import asyncio

    await asyncio.gather(*[starts_and_waits.submit(folder, number) for number in range(count)])
