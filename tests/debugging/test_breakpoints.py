"""``debug=True`` and a debugger on a real terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Start = Callable[[str], Any]

PROGRAM = """
import asyncio
from treadle import pipeline, step, parallel_map


@step(timeout=0.2, retry=3)
{kind} stops(x):
    doubled = 2 * x
    breakpoint()
    return doubled


@step
async def after(x):
    await asyncio.sleep(0)
    return x + 1


@pipeline(timeout=1)
{around}


result = work.with_options(debug=True).run(21)
print("the value is", result.value)
"""

ASYNC = "async def work(x):\n    return await after(await stops(x))"
SYNC = "def work(x):\n    return after(stops(x))"
MAPPED = "async def work(x):\n    return sum(await stops.map([x, x + 1]))"


@pytest.mark.parametrize("around", [ASYNC, SYNC], ids=["async pipeline", "def pipeline"])
@pytest.mark.parametrize("kind", ["async def", "def"])
def test_a_breakpoint_in_a_step_has_the_terminal(terminal: Start, kind: str, around: str) -> None:
    program = terminal(PROGRAM.format(kind=kind, around=around))
    program.until("(Pdb) ")
    assert program.ask("p doubled") == "42"
    assert "stops" in program.ask("where")
    assert program.ask("doubled = 100") == ""
    program.type("c")
    program.until("the value is 101")
    assert program.end() == 0


def test_time_at_the_prompt_is_no_timeout(terminal: Start) -> None:
    program = terminal(PROGRAM.format(kind="def", around=ASYNC))
    program.until("(Pdb) ")
    program.ask("import time; time.sleep(1.2)")  # longer than the step's and the pipeline's timeout
    program.type("c")
    program.until("the value is 43")
    assert program.end() == 0


def test_calls_of_a_map_stop_one_after_the_other(terminal: Start) -> None:
    program = terminal(PROGRAM.format(kind="async def", around=MAPPED))
    program.until("(Pdb) ")
    assert program.ask("p x") == "21"
    program.type("c")
    program.until("(Pdb) ")
    assert program.ask("p x") == "22"
    program.type("c")
    program.until("the value is 86")
    assert program.end() == 0


def test_stepping_on_goes_from_line_to_line(terminal: Start) -> None:
    program = terminal(PROGRAM.format(kind="async def", around=ASYNC))
    program.until("(Pdb) ")
    if "return doubled" not in program.text:  # from Python 3.13 on the prompt comes at the line of the breakpoint
        program.ask("n")
    assert "return doubled" in program.text
    program.type("c")
    program.until("the value is 43")
    assert program.end() == 0


def test_leaving_the_debugger_ends_the_program(terminal: Start) -> None:
    program = terminal(PROGRAM.format(kind="def", around=ASYNC))
    program.until("(Pdb) ")
    program.type("q")
    assert program.end() != 0
    assert "BdbQuit" in program.text


FAILING = """
import pdb, sys
from treadle import pipeline, step

ATTEMPTS = []

@step(retry=5)
{kind} fails(x):
    hidden = x * 3
    ATTEMPTS.append(x)
    raise LookupError("the original")

@pipeline
async def work(x):
    return await fails(x)

try:
    work.with_options(debug=True).run(7)
except LookupError:
    print("attempts", len(ATTEMPTS))
    pdb.post_mortem(sys.exc_info()[2])
"""


@pytest.mark.parametrize("kind", ["async def", "def"])
def test_the_original_traceback_leads_a_post_mortem_into_the_step(terminal: Start, kind: str) -> None:
    program = terminal(FAILING.format(kind=kind))
    program.until("attempts 1\n")
    program.until("(Pdb) ")
    assert program.ask("p hidden") == "21"
    program.type("q")
    assert program.end() == 0
