"""Steps that do what no step should do; imported by tests and by the workers that suffer from them."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from treadle import current, pipeline, step

FOREVER_S = 600


class OddError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Argued(Exception):
    @property
    def args(self) -> Any:
        raise RuntimeError("no arguments")


class Fatal(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class Untouchable(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


class Stateful(Exception):
    def __init__(self, one: int, two: object) -> None:
        super().__init__(one)
        self.two = two


@step(runtime="process", cache=False)
def fine(number: int) -> int:
    return number + 1


@step(runtime="process", cache=False)
def pid(_: int = 0) -> int:
    return os.getpid()


@step(runtime="process", cache=False)
def exits(code: int) -> None:
    os._exit(code)


@step(runtime="process", cache=False)
def segfaults() -> None:
    ctypes.string_at(0)


@step(runtime="process", cache=False)
def kills_itself(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(FOREVER_S)


@step(runtime="process", cache=False)
def kills_its_parent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(FOREVER_S)


@step(runtime="process", cache=False, timeout=0.5)
def stops_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@step(runtime="process", cache=False, timeout=0.5)
def swallows_everything() -> None:
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            continue


@step(runtime="process", cache=False, timeout=0.5)
async def blocks_its_loop() -> None:
    time.sleep(FOREVER_S)  # noqa: ASYNC251  # that is its fault


@step(runtime="process", cache=False, timeout=1.0)
def cleans_up(folder: str) -> None:
    try:
        time.sleep(FOREVER_S)
    finally:
        (Path(folder) / "cleaned").touch()


@step(runtime="process", cache=False)
def raises_system_exit() -> None:
    sys.exit("enough")


@step(runtime="process", cache=False)
def raises_keyboard_interrupt() -> None:
    raise KeyboardInterrupt


@step(runtime="process", cache=False)
def raises_odd() -> None:
    raise OddError


@step(runtime="process", cache=False)
def raises_argued() -> None:
    raise Argued


@step(runtime="process", cache=False)
def raises_fatal() -> None:
    raise Fatal


@step(runtime="process", cache=False)
def raises_untouchable() -> None:
    raise Untouchable


@step(runtime="process", cache=False)
def logs_what_is_no_text() -> int:
    logging.addLevelName(35, 5)  # type: ignore[arg-type]
    logging.getLogger("hostile").log(35, "half a character: \ud800")
    return 1


@step(runtime="process", cache=False)
def progresses(done: Any, total: Any = None) -> int:
    current().progress(done, total)
    return 1


@step(runtime="process", cache=False, outputs=tuple(f"out{number}" for number in range(700)))
def gives_many() -> list[str]:
    return ["x" * 60_000] * 700  # equal ones are one file


@step(runtime="process", cache=False)
def raises_stateful() -> None:
    raise Stateful(1, {"two": (2,)})


@step(runtime="process", cache=False)
def raises_local() -> None:
    class LocalError(Exception):
        pass

    raise LocalError("only known there")


@step(runtime="process", cache=False)
def recurses(depth: int = 0) -> int:
    return recurses.fn(depth + 1)


@step(runtime="process", cache=False)
def gives_a_lambda() -> Any:
    return lambda: 0


@step(runtime="process", cache=False)
def closes_all() -> int:
    os.closerange(0, 256)
    return 1


@step(runtime="process", cache=False)
def forks(exits: bool) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if exits:
        sys.exit(3)
    return -1


@step(runtime="process", cache=False)
def prints(count: int, width: int) -> None:
    line = "x" * (width - 1) + "\n"
    for _ in range(count):
        sys.stdout.write(line)


@step(runtime="process", cache=False)
def prints_from_everywhere() -> None:
    print("from python")
    print("to stderr", file=sys.stderr)
    os.write(1, b"from the descriptor\n")
    subprocess.run([sys.executable, "-c", "print('from a program')"], check=True)
    print("without an end", end="")


@step(runtime="process", cache=False)
def talks_nonsense(data: bytes) -> None:
    """Writes to the socket of the protocol, which it finds among its descriptors."""
    for fd in range(3, 64):
        try:
            with socket.socket(fileno=os.dup(fd)) as line:
                if line.family == socket.AF_UNIX:
                    line.sendall(data)
        except OSError:
            continue
    time.sleep(FOREVER_S)


@step(runtime="process", cache=False, resources={"memory": "64Mi"})
def eats(size: int) -> int:
    return len(bytearray(size))


@step(runtime="process", cache=False, resources={"memory": "1Gi"})
def burns(size: int) -> int:
    data = bytearray(size)
    data[::4096] = b"x" * len(data[::4096])
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    return len(data)


@step(runtime="process", cache=False)
def leaves_a_thread() -> int:
    threading.Thread(target=time.sleep, args=(FOREVER_S,)).start()
    return 1


@step(runtime="process", cache=False)
def starts(folder: str, daemon: bool, waits: bool) -> int:
    """Starts a program that outlives it, in a session of its own and with another parent if ``daemon``."""
    program = "import os, sys, time; open(sys.argv[1] + str(os.getpid()), 'x').close(); time.sleep(600)"
    command = [sys.executable, "-S", "-E", "-c", program, f"{folder}/pid-"]
    if daemon:
        if os.fork() == 0:
            os.setsid()
            subprocess.Popen(command)
            os._exit(0)
    else:
        subprocess.Popen(command)
    while not list(Path(folder).glob("pid-*")):
        time.sleep(0.005)
    (Path(folder) / f"pid-{os.getpid()}").touch()
    while waits and not (Path(folder) / "enough").exists():
        time.sleep(0.01)
    return current().attempt


@pipeline
async def started_and_waiting(folder: str) -> int:
    return await starts(folder, True, True)


@step(runtime="process", cache=False)
def says(word: str) -> str:
    return word


class Slotted:
    """A value that nothing but pickle can store."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return Slotted, (self.number,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and other.number == self.number

    __hash__ = None  # type: ignore[assignment]


@step(cache=False)
def gives_what_only_pickles() -> dict[str, Slotted]:
    return {"slots": Slotted(3)}


@step(runtime="process", cache=False)
def dies_while_it_writes() -> bytes:
    os.fsync = lambda _: os._exit(9)
    return bytes(1_000_000)


@step(runtime="process", cache=False)
def sees() -> dict[str, Any]:
    return {"env": dict(os.environ), "folder": os.getcwd(), "path": sys.path, "argv": sys.argv}


@step(runtime="process", cache=False)
def ones(count: int) -> Any:
    import numpy as np

    return np.ones(count)


@step(runtime="process", cache=False)
def zeros(_: int) -> bytes:
    return bytes(200_000)


@step(runtime="process", cache=False, outputs=("one", "other"))
def zeros_twice() -> tuple[bytes, bytes]:
    return bytes(200_000), bytes(200_000)


@step(runtime="process", cache=False)
def total(array: Any) -> int:
    return int(array.sum())


@step(runtime="process", cache=False)
def table(count: int) -> dict[str, Any]:
    return {"x": list(range(count)), "y": (1,)}


@step(runtime="process", cache=False, outputs=("small", "large"))
def pair(count: int) -> Any:
    import numpy as np

    return count, np.full(count, 7)


def kinds_of(value: Any) -> Any:
    """The types in a value, at every depth, and whether its arrays can be written to."""
    if type(value) in (list, tuple):
        return type(value)(map(kinds_of, value))
    if type(value) is dict:
        return {key: kinds_of(item) for key, item in value.items()}
    flags = getattr(value, "flags", None)
    return type(value).__name__ if flags is None else (type(value).__name__, flags.writeable, value.shape)


@step(runtime="process", cache=False)
def sees_of(value: Any) -> Any:
    return kinds_of(value)


@step(runtime="process")
def reduced(values: Any) -> int:
    return sum(int(value.sum()) for value in values)


@step(runtime="process", cache=False)
def gives_back(value: Any) -> Any:
    return value


@step(runtime="process", cache=False, resources={"memory": "64Mi"})
def eats_what_is_shared(size: int) -> int:
    """Takes memory that is no process's own, which no limit of a process counts."""
    shared = mmap.mmap(-1, size)
    for start in range(0, size, 4096):
        shared[start] = 1
    return size


@step(runtime="process", cache=False)
def share_of_a_core(seconds: float) -> float:
    """How much of a core a busy loop gets."""
    begun, used = time.monotonic(), time.process_time()
    while time.monotonic() - begun < seconds:
        pass
    return (time.process_time() - used) / (time.monotonic() - begun)


@step(runtime="process", cache=False)
def floods_the_protocol(message: bytes, count: int) -> int:
    """Sends one message of the protocol over and over."""
    for fd in range(3, 64):
        try:
            with socket.socket(fileno=os.dup(fd)) as line:
                if line.family == socket.AF_UNIX:
                    for _ in range(count):
                        line.sendall(message)
        except OSError:
            continue
    return count
