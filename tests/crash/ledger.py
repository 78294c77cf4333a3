"""What the crash tests compare: the ledger that bodies wrote, and the log as a kill left it."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import msgspec

COMPLETED, CACHED = 22, 23


class Line(NamedTuple):
    """One body that began."""

    run: str
    call: str
    attempt: int
    label: str


def read(path: Path) -> list[Line]:
    """The bodies that have begun so far."""
    return [Line(run, call, int(attempt), label) for run, call, attempt, label in _lines(path) if run != "-"]


def acknowledged(path: Path) -> set[str]:
    """What a pipeline was told to be done."""
    return {label for run, _, _, label in _lines(path) if run == "-"}


def _lines(path: Path) -> list[list[str]]:
    return [text.split(" ") for text in path.read_text().splitlines()] if path.exists() else []


def committed(home: Path) -> set[tuple[str, str]]:
    """(run, call) of every success in the log."""
    connection = _open(home)
    try:
        rows = connection.execute("SELECT run, body FROM log").fetchall()
    finally:
        connection.close()
    return {
        (run, event[2])
        for run, body in rows
        for event in msgspec.msgpack.decode(body)
        if event[0] in (COMPLETED, CACHED)
    }


def statuses(home: Path) -> dict[str, str]:
    """The status of every run by id."""
    connection = _open(home)
    try:
        return dict(connection.execute("SELECT id, status FROM runs ORDER BY number"))
    finally:
        connection.close()


def _open(home: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{(home / 'treadle.db').as_uri()}?mode=ro", uri=True)


def executions(lines: list[Line]) -> Counter[tuple[str, str]]:
    """How often each body began, by the run and what it was asked to do."""
    return Counter((line.run, line.label) for line in lines)
