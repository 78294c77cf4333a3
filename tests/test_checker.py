"""The log checker sees every kind of damage that it is there to see, and nothing wrong in a sound log."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from treadle import Engine, Retry, current, pipeline, step

pytestmark = pytest.mark.damaged_home

Check = Callable[[Path], list[str]]
CHECKER = Path(__file__).with_name("checker.py")


@step
async def one(x: int) -> int:
    return x + 1


@step(retry=Retry(2, delay=0))
async def twice(x: int) -> int:
    if current().attempt == 1:
        raise ConnectionError
    return x


@step
async def much(x: int) -> bytes:
    return bytes([x]) * 100_000


@pipeline
async def child(x: int) -> int:
    return await one(x)


@pipeline
async def parent(x: int) -> int:
    first = await one(x)
    return len(await much(first)) + await twice(first) + await child(x + 7)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound home with two runs, a child run, a retry, cache hits and a blob."""
    home = tmp_path_factory.mktemp("template") / "home"

    async def fill() -> None:
        async with Engine(home) as engine:
            for _ in range(2):
                (await engine.run(parent, 1)).raise_for_failure()

    asyncio.run(fill())
    return home


@pytest.fixture
def home(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "home"))


@contextmanager
def opened(home: Path) -> Iterator[Callable[..., Any]]:
    """The database without its guards against change."""
    connection = sqlite3.connect(home / "treadle.db", isolation_level=None)
    for trigger in ("log_keeps_rows", "log_keeps_bytes"):
        connection.execute(f"DROP TRIGGER {trigger}")
    yield connection.execute
    connection.close()


def edit(home: Path, change: Callable[[list[list[Any]]], None], which: int = 0) -> None:
    """Change the events of a run: of the first one accepted, or of another one."""
    with opened(home) as execute:
        run = execute("SELECT id FROM runs ORDER BY number LIMIT 1 OFFSET ?", (which,)).fetchone()[0]
        rows = execute("SELECT seq, body FROM log WHERE run=? ORDER BY seq", (run,)).fetchall()
        segments = [(seq, msgspec.msgpack.decode(body)) for seq, body in rows]
        events = [event for _, segment in segments for event in segment]
        change(events)
        for seq, segment in segments:
            execute("UPDATE log SET body=? WHERE seq=?", (msgspec.msgpack.encode(segment), seq))


def nth(events: list[list[Any]], tag: int, n: int = 0) -> list[Any]:
    return [event for event in events if event[0] == tag][n]


def test_a_sound_log_has_no_problems(home: Path, check_log: Check) -> None:
    assert check_log(home) == []


def test_the_checker_changes_nothing(home: Path, check_log: Check) -> None:
    before = (home / "treadle.db").read_bytes()
    check_log(home)
    assert (home / "treadle.db").read_bytes() == before


def test_it_imports_nothing_of_the_engine(home: Path) -> None:
    code = f"import runpy, sys; sys.argv = ['checker', {str(home)!r}]\n"
    code += f"try: runpy.run_path({str(CHECKER)!r}, run_name='__main__')\n"
    code += "except SystemExit as end: print(end.code, [m for m in sys.modules if m.startswith('treadle')])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stdout.splitlines() == ["1 sound", "0 []"], result


def test_the_command_fails_on_damage(home: Path) -> None:
    next(path for path in (home / "blobs").rglob("*") if path.is_file()).write_bytes(b"short")
    result = subprocess.run([sys.executable, str(CHECKER), str(home)], capture_output=True, text=True)
    assert result.returncode == 1
    assert "bytes" in result.stdout


STATEMENTS = [
    ("DELETE FROM log WHERE seq=(SELECT max(seq) FROM log WHERE seq < (SELECT max(seq) FROM log))", "missing"),
    ("UPDATE log SET count=count+1 WHERE seq=1", "says"),
    ("UPDATE log SET body=x'c1' WHERE seq=1", "cannot be read"),
    ("UPDATE runs SET status='failed'", "status 'failed' in runs, 'succeeded' in the log"),
    ("UPDATE runs SET epoch=2", "epoch 2 in runs, 1 in the log"),
    ("UPDATE runs SET ended_at=NULL", "ended at None"),
    ("UPDATE runs SET owner=''", "no owner"),
    ("UPDATE runs SET pipeline='other'", "pipeline 'other'"),
    ("UPDATE runs SET parent='nobody' WHERE parent<>''", "parent nobody does not exist"),
    ("DELETE FROM runs WHERE number=1", "no row in runs"),
    ("DELETE FROM log WHERE run=(SELECT id FROM runs ORDER BY number LIMIT 1)", "has no events"),
    ("DELETE FROM artifacts WHERE id=1", "artifact 1 is named and does not exist"),
    ("DELETE FROM artifacts WHERE id=1", "cache entry"),
    ("UPDATE artifacts SET version=0 WHERE id=1", "has version 0"),
    ("DELETE FROM names", "has no name"),
    ("INSERT INTO pruning VALUES(1)", "left open"),
    ("INSERT INTO cache VALUES(zeroblob(32), 900, 1)", "names artifacts [900]"),
    ("INSERT INTO cache VALUES(x'00', 1, 1)", "key of 1 bytes"),
    ("INSERT OR REPLACE INTO counters VALUES('pruned_events', 3)", "3 were pruned"),
]


@pytest.mark.parametrize(("statement", "expected"), STATEMENTS)
def test_a_changed_table_is_seen(statement: str, expected: str, home: Path, check_log: Check) -> None:
    with opened(home) as execute:
        execute(statement)
    assert any(expected in problem for problem in check_log(home)), check_log(home)


def test_two_artifacts_of_one_version_are_seen(home: Path, check_log: Check) -> None:
    with opened(home) as execute:
        execute("DROP INDEX artifacts_by_version")
        execute("INSERT INTO artifacts SELECT 99, name, version, body FROM artifacts WHERE id=1")
    assert any("exists twice" in problem for problem in check_log(home))


def test_changed_bytes_of_a_small_artifact_are_seen(home: Path, check_log: Check) -> None:
    with opened(home) as execute:
        body = msgspec.msgpack.decode(execute("SELECT body FROM artifacts WHERE id=1").fetchone()[0])
        body[10] = bytes([body[10][0] ^ 1]) + body[10][1:]
        execute("UPDATE artifacts SET body=? WHERE id=1", (msgspec.msgpack.encode(body),))
    assert any("do not match their checksum" in problem for problem in check_log(home))


def test_an_artifact_without_bytes_is_seen(home: Path, check_log: Check) -> None:
    with opened(home) as execute:
        body = msgspec.msgpack.decode(execute("SELECT body FROM artifacts WHERE id=1").fetchone()[0])
        body[10], body[11] = None, ""
        execute("UPDATE artifacts SET body=? WHERE id=1", (msgspec.msgpack.encode(body),))
    assert any("neither bytes nor a location" in problem for problem in check_log(home))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "were stored"),
        (lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), "do not match their checksum"),
    ],
)
def test_a_damaged_blob_is_seen(damage: Callable[[Path], object], expected: str, home: Path, check_log: Check) -> None:
    damage(next(path for path in (home / "blobs").rglob("*") if path.is_file()))
    assert any(expected in problem for problem in check_log(home))


ACCEPTED, RESUMED, SUCCEEDED, FAILED = 1, 2, 3, 4
SCHEDULED, STARTED, COMPLETED, REUSED, RETRYING, CALL_FAILED = 20, 21, 22, 24, 25, 26


def _remark(event: list[Any]) -> None:
    """Make an event one of those that say nothing of a call's state."""
    event[:] = [42, *event[1:7], 1.0, None]


EDITS: list[tuple[str, Callable[[list[list[Any]]], None], str]] = [
    ("no acceptance", lambda e: _remark(nth(e, ACCEPTED)), "not RunAccepted"),
    ("accepted twice", lambda e: nth(e, SCHEDULED).__setitem__(slice(None), nth(e, ACCEPTED)), "accepted twice"),
    ("not started", lambda e: _remark(nth(e, STARTED)), "without having started"),
    ("attempt left out", lambda e: nth(e, STARTED).__setitem__(4, 2), "attempt 2 begins after 0"),
    ("attempt unknown", lambda e: nth(e, COMPLETED).__setitem__(4, 5), "attempt 5 completed without"),
    ("retried and not run", lambda e: nth(e, RETRYING).__setitem__(4, 3), "attempt 3 is retried"),
    (
        "two outcomes",
        lambda e: nth(e, COMPLETED, 1).__setitem__(slice(2, 4), nth(e, COMPLETED)[2:4]),
        "has an outcome, and tag 22",
    ),
    (
        "started again",
        lambda e: nth(e, STARTED, 1).__setitem__(slice(2, 5), nth(e, STARTED)[2:5]),
        "has an outcome, and tag 21",
    ),
    ("no outcome", lambda e: _remark(nth(e, COMPLETED)), "have no outcome"),
    ("two steps", lambda e: nth(e, COMPLETED).__setitem__(3, "other"), "and of step other"),
    ("unknown artifact", lambda e: nth(e, COMPLETED).__setitem__(7, [700]), "does not exist"),
    ("another's artifact", lambda e: nth(e, COMPLETED).__setitem__(7, [2]), "names artifact"),
    ("no call", lambda e: nth(e, STARTED).__setitem__(2, ""), "names no call"),
    ("own number", lambda e: nth(e, STARTED).__setitem__(5, 7), "of its own"),
    (
        "life after the end",
        lambda e: nth(e, SCHEDULED).__setitem__(slice(None), [5, 1.0, "", "", 0, 0, "", ""]),
        "after the run was cancelled",
    ),
    (
        "epoch left out",
        lambda e: nth(e, SCHEDULED).__setitem__(slice(None), [2, 1.0, "", "", 0, 0, "", 5, "x", "keep"]),
        "epoch 5",
    ),
    (
        "reused out of nothing",
        lambda e: nth(e, STARTED).__setitem__(slice(None), [24, *nth(e, STARTED)[1:7], False]),
        "reused without",
    ),
    ("an attempt after the fallback", lambda e: nth(e, RETRYING).__setitem__(0, 30), "fell back, and tag 21 follows"),
    ("a fallback of nothing", lambda e: nth(e, RETRYING).__setitem__(0, 30), "does not say what it is"),
    (
        "a probe that never began",
        lambda e: nth(e, STARTED).__setitem__(slice(None), [46, *nth(e, STARTED)[1:7]]),
        "through, and tag 22 follows",
    ),
    (
        "a breaker that nothing opened",
        lambda e: nth(e, SCHEDULED).__setitem__(slice(None), [45, *nth(e, SCHEDULED)[1:7], 5, 30.0]),
        "changes its breaker without an attempt",
    ),
    (
        "skipped for no known reason",
        lambda e: nth(e, STARTED).__setitem__(slice(None), [27, *nth(e, STARTED)[1:7], "mood"]),
        "was skipped because of 'mood'",
    ),
]


@pytest.mark.parametrize(("change", "expected"), [row[1:] for row in EDITS], ids=[row[0] for row in EDITS])
def test_a_changed_event_is_seen(
    change: Callable[[list[list[Any]]], None], expected: str, home: Path, check_log: Check
) -> None:
    edit(home, change)
    assert any(expected in problem for problem in check_log(home)), check_log(home)


def test_an_event_after_the_end_of_its_run_is_seen(home: Path, check_log: Check) -> None:
    with opened(home) as execute:
        run = execute("SELECT id FROM runs ORDER BY number LIMIT 1").fetchone()[0]
        seq, first = execute("SELECT seq + count, first_artifact FROM log ORDER BY seq DESC LIMIT 1").fetchone()
        body = msgspec.msgpack.encode([[20, 1.0, "late", "late", 0, 0, ""]])
        execute("INSERT INTO log VALUES(?, ?, 1, ?, ?)", (seq, run, first, body))
    assert any("after the run was succeeded" in problem for problem in check_log(home))


def test_a_broken_page_is_seen(home: Path, check_log: Check) -> None:
    path = home / "treadle.db"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 512] = os.urandom(512)
    path.write_bytes(data)
    assert check_log(home)


def test_something_that_is_no_log_is_said_to_be_none(tmp_path: Path, check_log: Check) -> None:
    (tmp_path / "treadle.db").write_bytes(b"not a database at all, but long enough to be looked at" * 20)
    assert any("cannot be read" in problem for problem in check_log(tmp_path))
