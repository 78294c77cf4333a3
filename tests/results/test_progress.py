"""The progress display of ``p.run()``: on a terminal, and nowhere else."""

from __future__ import annotations

import errno
import os
import pty
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from treadle import events as ev
from treadle._runtime.views.progress import Tally

pytest.importorskip("rich")

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys, threading
from treadle import pipeline, step

shown = threading.Event()

@step(cache=False)
def work(x: int) -> int:
    if x == 3:
        print("said by a step", flush=True)
        threading.Event().wait({pause})  # long enough to be seen
    return x

@pipeline
async def nightly(n: int) -> int:
    return sum(await work.map(range(n)))

{call}
"""


def run_on_a_terminal(tmp_path: Path, call: str, pause: float = 1.2, **environment: str) -> tuple[str, str]:
    """The program with standard error on a pseudo-terminal: what came there, and what came on standard output."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(call=call, pause=pause))
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "TREADLE_PROGRESS", "NO_COLOR")}
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("engine", "adapters"))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, stderr=theirs, stdin=subprocess.DEVNULL, text=True,
        env={**kept, "TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": paths, "TREADLE_HOME": str(tmp_path / "home"),
             **environment},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # the other end is closed
                raise
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert process.stdout is not None
    printed = process.stdout.read()
    process.stdout.close()
    assert process.wait(20) == 0, seen.decode()
    return seen.decode(), printed


RUN = "print(nightly.run(20).value)"


def test_on_a_terminal_it_shows_the_run_and_its_steps_and_leaves_nothing(tmp_path: Path) -> None:
    seen, printed = run_on_a_terminal(tmp_path, RUN)
    assert "nightly" in seen
    assert "work" in seen
    assert "/20" in seen
    assert "1 running" in seen
    assert seen.endswith("\x1b[2K") or seen.rstrip().endswith(("\x1b[?25h", "\x1b[2K"))  # lines erased, cursor back
    assert "\x1b[?25h" in seen
    assert printed == "said by a step\n190\n"  # standard output is no terminal here: untouched


def test_otherwise_nothing_is_printed(tmp_path: Path) -> None:
    """Switched off, under CI, on a dumb terminal, in a debug run, awaited, and without `rich`; all at the same time."""
    cases: list[tuple[str, dict[str, str]]] = [
        (RUN, {"TREADLE_PROGRESS": "0"}),
        (RUN, {"CI": "true"}),
        (RUN, {"TERM": "dumb"}),
        ("print(nightly.with_options(debug=True).run(20).value)", {}),
        ("import asyncio; print(asyncio.run(nightly(20)))", {}),
        (RUN, {"WITHOUT": "rich"}),
    ]

    def one(number: int) -> tuple[str, str]:
        call, environment = cases[number]
        folder = tmp_path / str(number)
        folder.mkdir()
        if "WITHOUT" in environment:
            (folder / "rich.py").write_text("raise ImportError('not installed')")
        return run_on_a_terminal(folder, call, pause=0.8, **environment)

    with ThreadPoolExecutor(len(cases)) as pool:
        assert list(pool.map(one, range(len(cases)))) == [("", "said by a step\n190\n")] * len(cases)


def test_a_short_run_shows_nothing_and_does_not_import_rich(tmp_path: Path) -> None:
    seen, printed = run_on_a_terminal(tmp_path, f"{RUN}; print('rich' in sys.modules)", pause=0.0)
    assert (seen, printed.splitlines()[-1]) == ("", "False")


def test_elsewhere_the_logger_tells_start_and_end(tmp_path: Path) -> None:
    logged = "import logging; logging.basicConfig(level='INFO', format='%(name)s %(levelname)s %(message)s')\n" + RUN
    seen, _ = run_on_a_terminal(tmp_path, logged, pause=0.0, TREADLE_PROGRESS="0")
    lines = [line.split() for line in seen.splitlines() if line.startswith("treadle ")]
    assert [(line[1], line[-1]) for line in lines] == [("INFO", "started"), ("INFO", "succeeded")]


def test_a_tally_counts_by_step_and_keeps_nothing_per_call() -> None:
    tally, at = Tally(), 0.0

    def take(*events: ev.Event) -> None:
        for event in events:
            tally.take(event)

    for index in range(1000):
        take(ev.CallScheduled(at=at, call=f"f[{index}]", step="f"))
    for index in range(10):
        take(ev.CallStarted(at=at, call=f"f[{index}]", step="f", attempt=1))
    count = tally.steps["f"]
    assert (count.ended, count.total, count.note) == (0, 1000, "10 running")
    failure = ev.Failure("builtins:ValueError", "no")
    take(
        ev.CallCompleted(at=at, call="f[0]", step="f", attempt=1),
        ev.CallRetrying(at=at, call="f[1]", step="f", attempt=1, failure=failure),
        ev.CallFailed(at=at, call="f[2]", step="f", attempt=1, failure=failure),
        ev.CallCached(at=at, call="f[11]", step="f"),
        ev.CallCancelled(at=at, call="f[12]", step="f"),
        ev.Progressed(at=at, call="f[3]", step="f", attempt=1, done=2.0, total=5.0),
    )
    assert (count.ended, count.total, count.note) == (4, 1000, "7 running, 1 cached, 1 failed, 2/5")
    assert list(tally.steps) == ["f"]


def test_what_a_resume_takes_over_counts_as_done() -> None:
    tally = Tally()
    tally.take(ev.CallScheduled(at=0.0, call="f", step="f"))
    tally.take(ev.RunResumed(at=0.0, epoch=2))
    tally.take(ev.CallReused(at=0.0, call="f", step="f"))
    tally.take(ev.CallStarted(at=0.0, call="g", step="f", attempt=1))
    assert (tally.steps["f"].ended, tally.steps["f"].total) == (1, 2)
