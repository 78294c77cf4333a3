"""What the tests of executors share: steps that other processes can import, and a look at what is left afterwards."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # once: workers import the steps of these tests from here, too

import container_host  # noqa: E402  # it lies beside this file


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children() -> set[int]:
    """The processes that this one has started and that live."""
    found: set[int] = set()
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            found.add(int(entry))
    return found


@pytest.fixture
def gone() -> Callable[[set[int]], set[int]]:
    """Waits up to two seconds for processes to be gone; gives those that are not."""

    def wait(pids: set[int]) -> set[int]:
        until = time.monotonic() + 2.0
        while (left := {pid for pid in pids if is_alive(pid)}) and time.monotonic() < until:
            time.sleep(0.01)
        return left

    return wait


@pytest.fixture(scope="session")
def opened_once() -> None:
    """uvloop keeps two descriptors from its first loop on, which are not ours."""
    try:
        import uvloop
    except ImportError:
        return
    uvloop.new_event_loop().close()


def descriptors() -> Counter[str]:
    """What this process has open, by what it is (numbers of sockets and pipes left out: only their kind tells)."""
    found: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        try:
            found[os.readlink(f"/proc/self/fd/{number}").partition(":[")[0]] += 1
        except OSError:  # the one that the listing itself was read through
            continue
    return found


def descriptors_left(before: Counter[str]) -> Counter[str]:
    """What is open and was not before; a thread that is ending has up to two seconds to close its own."""
    until = time.monotonic() + 2.0
    while (left := descriptors() - before) and time.monotonic() < until:
        time.sleep(0.01)
    return left


@pytest.fixture(autouse=True)
def nothing_is_left(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened_once: None
) -> Iterator[None]:
    """After each test: no process, no descriptor, no temporary file that was not there before."""
    before, open_before = children(), descriptors()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield
    assert children() <= before
    assert not descriptors_left(open_before)
    assert not [path for path in tmp_path.rglob("tmp/*") if path.is_file()]
    assert not list((tmp_path / "temporary").iterdir())
    if "dask" in request.path.name:
        gc.collect()  # tornado's futures complain when they are collected; let that not be in another test


# -- container engines --------------------------------------------------------------------


@pytest.fixture(scope="session")
def docker() -> Iterator[str]:
    """Address of a Docker daemon that only these tests use."""
    yield from _engine("docker")


@pytest.fixture(scope="session")
def podman() -> Iterator[str]:
    """Address of Podman's compatible socket, served for these tests alone."""
    yield from _engine("podman")


def _engine(kind: str) -> Iterator[str]:
    try:
        with container_host.running(kind) as engine:
            yield engine.address
    except container_host.NoEngine as reason:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI has to test containers, and there is no {kind}: {reason}")
        pytest.skip(f"no {kind}: {reason}")
