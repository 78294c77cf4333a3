"""Executors that break one promise each fail the suite of every executor, with what they have broken."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from documented import CommandExecutor

from treadle.contracts import Attempt, Executor, Performed, Raised, Sink
from treadle.errors import StepCrashed
from treadle.testing import conformance
from treadle.testing.conformance import ExecutorSuite

Outcome = Performed | Raised


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What never comes is not waited for long."""
    monkeypatch.setattr(conformance, "SOON_S", 1.0)


def fails(folder: Path, executor: Any, method: str, why: str) -> None:
    """See that the suite finds fault with an executor, in one of its tests."""

    class Suite(ExecutorSuite):
        runtime = "mine"

        def executors(self) -> Mapping[str, Executor]:
            return {"mine": executor}

    with pytest.raises(AssertionError, match=re.escape(why)):
        getattr(Suite(), method)(folder)


class NoKill(CommandExecutor):
    """Gives up an attempt when its body has begun, and lets that go on."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._begun = folder / "hanging"

    async def perform(self, attempt: Attempt, sink: Sink) -> Outcome:
        task = asyncio.ensure_future(super().perform(attempt, sink))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            while not self._begun.exists():
                await asyncio.sleep(0.01)
            raise


class Twice(CommandExecutor):
    """Tries again by itself what has crashed."""

    async def perform(self, attempt: Attempt, sink: Sink) -> Outcome:
        try:
            return await super().perform(attempt, sink)
        except StepCrashed:
            return await super().perform(attempt, sink)


class Swallows(CommandExecutor):
    """Has an error of its own for a worker that was killed."""

    async def perform(self, attempt: Attempt, sink: Sink) -> Outcome:
        try:
            return await super().perform(attempt, sink)
        except StepCrashed as error:
            if error.signal:
                raise RuntimeError("lost") from None
            raise


class Kept:
    """A sink that hands on later, or not at all."""

    def __init__(self, *, drops: str = "") -> None:
        self.said: list[tuple[str, tuple[Any, ...]]] = []
        self._drops = drops

    def say(self, level: str, message: str, stream: str) -> None:
        if stream != self._drops:
            self.said.append(("say", (level, message, stream)))

    def note(self, facts: bytes) -> None:
        self.said.append(("note", (facts,)))

    def progress(self, done: float, total: float | None) -> None:
        self.said.append(("progress", (done, total)))


class AtEnd(CommandExecutor):
    """Hands on what is said when the attempt has ended."""

    drops = ""

    async def perform(self, attempt: Attempt, sink: Sink) -> Outcome:
        kept = Kept(drops=self.drops)
        try:
            return await super().perform(attempt, kept)
        finally:
            for name, said in kept.said:
                getattr(sink, name)(*said)


class Mute(AtEnd):
    """Loses what is printed."""

    drops = "stdout"


class OneAtATime(CommandExecutor):
    """Has four slots, it says."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = asyncio.Lock()

    async def perform(self, attempt: Attempt, sink: Sink) -> Outcome:
        async with self._lock:
            return await super().perform(attempt, sink)


class LeavesOnClose(CommandExecutor):
    """Leaves a process behind."""

    left: subprocess.Popen[bytes] | None = None

    async def close(self) -> None:
        command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        self.left = subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: ASYNC220  # it outlives the loop


class Blocks(CommandExecutor):
    """Waits without letting anything else happen, for a file or for too long."""

    def __init__(self, until: Path | None = None) -> None:
        super().__init__()
        self._until = until

    async def perform(self, attempt: Attempt, sink: Sink) -> Outcome:
        ends = time.monotonic() + 60
        while time.monotonic() < ends and not (self._until and self._until.exists()):
            time.sleep(0.01)  # noqa: ASYNC251  # the fault itself
        return await super().perform(attempt, sink)


def test_bodies_that_go_on_after_a_cancellation_are_found(tmp_path: Path) -> None:
    fails(tmp_path, NoKill(tmp_path), "test_a_cancelled_run_ends_its_attempts", "whose body goes on")


def test_bodies_that_go_on_after_a_time_out_are_found(tmp_path: Path) -> None:
    fails(tmp_path, NoKill(tmp_path), "test_an_attempt_that_takes_too_long_times_out", "whose body goes on")


def test_bodies_that_are_performed_twice_are_found(tmp_path: Path) -> None:
    fails(tmp_path, Twice(), "test_a_worker_that_dies_is_an_error_of_its_attempt", "performed again, not by the engine")


def test_another_error_for_a_death_is_found(tmp_path: Path) -> None:
    fails(tmp_path, Swallows(), "test_a_worker_that_dies_is_an_error_of_its_attempt", "is no StepCrashed")


def test_a_log_that_comes_at_the_end_is_found(tmp_path: Path) -> None:
    fails(tmp_path, AtEnd(), "test_what_a_step_says_is_in_the_log_while_it_runs", "not in the log")


def test_lost_output_is_found(tmp_path: Path) -> None:
    method = "test_what_a_step_says_is_in_the_log_of_its_call"
    fails(tmp_path, Mute(), method, "is in the log 0 times as stdout")


def test_slots_that_are_not_there_are_found(tmp_path: Path) -> None:
    fails(tmp_path, OneAtATime(), "test_attempts_run_side_by_side_where_there_are_slots", "has 4 slots, and a second")


@pytest.fixture
def leaves() -> Iterator[LeavesOnClose]:
    executor = LeavesOnClose()
    yield executor
    assert executor.left is not None
    executor.left.communicate()


@pytest.mark.linux
def test_what_is_left_after_closing_is_found(tmp_path: Path, leaves: LeavesOnClose) -> None:
    fails(tmp_path, leaves, "test_nothing_is_left_when_it_is_closed", "these are left")


@pytest.mark.parametrize("ends", [True, False], ids=["until the body ends", "for good"])
def test_an_event_loop_that_is_blocked_is_an_error_and_no_wait_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    monkeypatch.setattr(conformance, "BLOCKED_S", 0.5)
    executor = Blocks(tmp_path / "stop" if ends else None)
    begun = time.monotonic()
    fails(tmp_path, executor, "test_an_attempt_that_takes_too_long_times_out", "blocked the event loop")
    assert time.monotonic() - begun < 55  # it would be 60
