"""The steps and pipelines of the conformance suite: plain bodies that every executor can import from here."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from treadle._runtime.guards.decorators import retry
from treadle._runtime.pipeline import pipeline
from treadle._runtime.step import step

POLL_S = 0.01


class ZooError(Exception):
    """An error of the user's own, with an attribute and a signature of its own."""

    def __init__(self, code: int, *, hint: str = "") -> None:
        super().__init__(f"code {code}")
        self.code, self.hint = code, hint


@dataclasses.dataclass
class Point:
    """A value of a class of the user's own."""

    x: int
    tags: tuple[str, ...] = ()


def _current() -> Any:
    """``treadle.current()``, by a way that the fingerprint of these steps does not follow: it is long from in here."""
    return importlib.import_module("treadle").current()


def note(folder: str, name: str) -> int:
    """Append to a file, and say how many have done so: the bodies' only memory that outlives a worker."""
    path = Path(folder) / name
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, b".")
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


@contextmanager
def alive(folder: str) -> Generator[None]:
    """Hold a lock that is given back when this process ends, however it does; then say that the body has begun."""
    fd = os.open(Path(folder) / "alive", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        note(folder, "hanging")
        yield
    finally:
        os.close(fd)


def tell(word: str) -> None:
    """Say a word on each stream."""
    print(f"printed {word}")  # noqa: T201  # what becomes of it is the test
    print(f"complained {word}", file=sys.stderr)  # noqa: T201
    logging.getLogger("zoo").warning("logged %s", word)


@step
def echo(value: Any, *rest: Any, **more: Any) -> Any:
    return [value, rest, more] if rest or more else value


@step
async def echo_async(value: Any, *rest: Any, **more: Any) -> Any:
    return [value, rest, more] if rest or more else value


@step(outputs=("low", "high"))
def bounds(values: list[int]) -> tuple[int, int]:
    return min(values), max(values)


@step(outputs=("low", "high"))
async def bounds_async(values: list[int]) -> tuple[int, int]:
    return min(values), max(values)


@step
def fail(code: int) -> None:
    raise ZooError(code, hint="on purpose")


@step
async def fail_async(code: int) -> None:
    raise ZooError(code, hint="on purpose")


@step(cache=False)
def talk(word: str) -> str:
    tell(word)
    here = _current()
    here.log_metadata(word=word, attempt=here.attempt)
    here.progress(1, 2)
    token: str = here.token
    return token


@step(cache=False)
async def talk_async(word: str) -> str:
    tell(word)
    here = _current()
    here.log_metadata(word=word, attempt=here.attempt)
    here.progress(1, 2)
    token: str = here.token
    return token


@step
def count(folder: str, name: str = "count") -> int:
    return note(folder, name)


@step
async def count_async(folder: str, name: str = "count") -> int:
    return note(folder, name)


@retry(max_attempts=3, delay=0)
@step
def third_time(folder: str) -> int:
    seen = note(folder, "third")
    if seen < 3:
        raise ConnectionError(f"attempt {seen}")
    return seen


@retry(max_attempts=3, delay=0)
@step
async def third_time_async(folder: str) -> int:
    seen = note(folder, "third")
    if seen < 3:
        raise ConnectionError(f"attempt {seen}")
    return seen


@step(cache=False)
def hang(folder: str) -> None:
    tell("early")
    with alive(folder):
        while not (Path(folder) / "stop").exists():
            time.sleep(POLL_S)


@step(cache=False)
async def hang_async(folder: str) -> None:
    tell("early")
    with alive(folder):
        while not (Path(folder) / "stop").exists():  # noqa: ASYNC110  # another process says when
            await asyncio.sleep(POLL_S)


@step
def blob(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


@step
async def blob_async(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


@step
def text(size: int) -> str:
    return "äb" * (size // 3)


@step
async def text_async(size: int) -> str:
    return "äb" * (size // 3)


@step
def length(data: bytes) -> int:
    return len(data)


@step
async def length_async(data: bytes) -> int:
    return len(data)


@step
def die_once(folder: str) -> int:
    seen = note(folder, "dead")
    if seen < 2:
        os._exit(3)
    return seen


@step
def die(code: int, folder: str) -> None:
    note(folder, "died")
    os._exit(code)


@step
def be_killed(folder: str) -> None:
    note(folder, "killed")
    os.kill(os.getpid(), signal.SIGKILL)


STEPS = {
    name: (globals()[name], globals()[f"{name}_async"])
    for name in ("echo", "bounds", "fail", "talk", "count", "third_time", "hang", "blob", "text", "length")
}


def of(name: str, runtime: str, *, is_async: bool) -> Any:
    """A step of the zoo, as a body of one kind, told where to run."""
    return STEPS[name][is_async].with_options(runtime=runtime)


@pipeline
async def counted_then_failed(folder: str, runtime: str, is_async: bool) -> list[int]:
    first = await of("count", runtime, is_async=is_async)(folder, "first")
    if not (Path(folder) / "mended").exists():
        raise RuntimeError("not mended yet")
    return [first, await of("count", runtime, is_async=is_async)(folder, "second")]
