"""Large values on their way into a container: a step sees whole files, and none that changes under its eyes."""

from __future__ import annotations

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from treadle.contracts import Attempt, Payload
from treadle.errors import ExecutorUnavailable
from treadle_adapters._exchange import Exchange

pytestmark = pytest.mark.linux
NAMES = ("aa/11", "bb/22")


class Interrupted(Exchange):
    """Somebody stops it when it has placed one file."""

    def _place(self, source: Path, target: Path) -> None:
        super()._place(source, target)
        self.is_stopped = True


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with two large values."""
    for name in NAMES:
        path = tmp_path / "store" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(name.encode() * 1000)
    return tmp_path / "store"


@pytest.fixture(params=["linked", "copied"])
def uid(request: pytest.FixtureRequest) -> int:
    """Whom the container runs as."""
    return os.geteuid() + (request.param == "copied")


def attempt(store: Path, *names: str) -> Attempt:
    args = tuple(Payload("c", b"", b"", 1, location=name) for name in names)
    return Attempt("run", "call", "step", 1, "token", "module", "name", args=args, store=str(store))


def inbox(exchange: Exchange) -> set[str]:
    folder = exchange.line / "in"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_a_step_has_mapped_is_not_written_to_when_it_comes_again(tmp_path: Path, store: Path, uid: int) -> None:
    exchange: Any = Exchange(tmp_path / "exchange", uid)
    exchange.lend(attempt(store, NAMES[0]))
    before = (store / NAMES[0]).read_bytes()
    with (
        (exchange.line / "in" / NAMES[0]).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        exchange._place(store / NAMES[1], exchange.line / "in" / NAMES[0])
        assert os.fstat(file.fileno()).st_size == len(before)
        assert mapped[:] == before
    assert (store / NAMES[0]).read_bytes() == before
    exchange._place(store / NAMES[1], exchange.line / "in" / NAMES[0])  # the same once more
    assert inbox(exchange) == {NAMES[0]}


def test_what_was_stopped_is_stopped_between_files_and_leaves_none_to_the_next(
    tmp_path: Path, store: Path, uid: int
) -> None:
    exchange = Interrupted(tmp_path / "exchange", uid)
    with pytest.raises(ExecutorUnavailable):
        exchange.lend(attempt(store, *NAMES))
    assert len(inbox(exchange)) == 1
    exchange.is_stopped = False
    exchange.lend(attempt(store))
    assert inbox(exchange) == set()


def test_what_was_stopped_is_stopped_within_a_large_file(tmp_path: Path, store: Path) -> None:
    exchange = Exchange(tmp_path / "exchange", os.geteuid() + 1)
    (store / NAMES[0]).unlink()
    os.mkfifo(store / NAMES[0])
    with ThreadPoolExecutor() as threads:
        lending = threads.submit(exchange.lend, attempt(store, NAMES[0]))
        with open(os.open(store / NAMES[0], os.O_RDWR), "wb", buffering=0) as fifo:  # so that this waits for nobody
            fifo.write(b"x")
            exchange.is_stopped = True
            fifo.write(b"x")
            assert type(lending.exception(30)) is ExecutorUnavailable
    assert inbox(exchange) == set()


def test_a_file_that_was_missing_is_lent_when_it_is_there_again(tmp_path: Path, store: Path, uid: int) -> None:
    exchange = Exchange(tmp_path / "exchange", uid)
    held = (store / NAMES[0]).rename(tmp_path / "held")
    exchange.lend(attempt(store, *NAMES))
    assert inbox(exchange) == {NAMES[1]}
    held.rename(store / NAMES[0])
    exchange.lend(attempt(store, *NAMES))
    assert inbox(exchange) == set(NAMES)
