"""Crash points cost nothing while nobody asks for them, and strike exactly where they are told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from treadle.errors import OptionError
from treadle.storage import failpoints

THREE_HITS = """
from treadle.storage import failpoints
for number in range(1, 4):
    failpoints.hit("other")
    failpoints.hit("here")
    print(number, flush=True)
"""


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


def run(variable: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), failpoints.VARIABLE: variable}
    command = [sys.executable, "-c", THREE_HITS]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.crash
def test_the_environment_kills_the_process_at_the_named_hit() -> None:
    ended = run("here:2")
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "1\n")


def test_a_point_that_is_reached_less_often_kills_nothing() -> None:
    ended = run("here:4")
    assert (ended.returncode, ended.stdout) == (0, "1\n2\n3\n")


@pytest.mark.parametrize("variable", ["here", "here:", ":2", "here:two", "here:0", ""])
def test_a_malformed_variable_stops_the_import(variable: str) -> None:
    ended = run(variable)
    assert ended.returncode == 1
    assert "OptionError" in ended.stderr


def test_an_action_runs_once_at_its_hit_and_its_error_comes_out_there() -> None:
    failpoints.arm("here", 2, lambda: 1 / 0)
    failpoints.hit("here")
    failpoints.hit("other")
    with pytest.raises(ZeroDivisionError):
        failpoints.hit("here")
    failpoints.hit("here")


def test_several_points_are_armed_side_by_side() -> None:
    seen: list[str] = []
    failpoints.arm("a", 1, lambda: seen.append("a"))
    failpoints.arm("b", 1, lambda: seen.append("b"))
    failpoints.hit("b")
    failpoints.hit("a")
    assert seen == ["b", "a"]


def test_disarming_makes_every_point_free_again() -> None:
    failpoints.arm("here", 1, lambda: 1 / 0)
    failpoints.disarm()
    failpoints.hit("here")
    assert failpoints.hit is callable


@pytest.mark.parametrize(("name", "nth"), [("", 1), ("here", 0), ("here", -1)])
def test_a_point_that_can_never_be_reached_is_refused(name: str, nth: int) -> None:
    with pytest.raises(OptionError):
        failpoints.arm(name, nth)
