"""The suite's own second try: `make unit` runs what failed once more, but never what may have lost something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

ONCE = """
import pytest
from pathlib import Path

def fails_once(name):
    mark = Path(__file__).with_name(name)
    if not mark.exists():
        mark.touch()
        raise AssertionError(name)
"""
UNSOUND = """
import sqlite3
from contextlib import closing

def test_a(tmp_path):
    try:
        fails_once("a")
    except AssertionError:
        with closing(sqlite3.connect(tmp_path / "treadle.db")) as log:
            log.execute("PRAGMA application_id=0x74726431")
            log.execute("PRAGMA user_version=1")
"""
CASES = {
    "one failed by chance": ("def test_a(): fails_once('a')", 0),
    "four failed by chance": ("@pytest.mark.parametrize('n', 'abcd')\ndef test_a(n): fails_once(n)", 1),
    "one that kills": ("@pytest.mark.crash\ndef test_a(): fails_once('a')", 1),
    "one that left an unsound log": (UNSOUND, 1),
}  # fmt: skip


@pytest.mark.parametrize(("code", "red"), CASES.values(), ids=list(CASES))
def test_only_a_few_tests_that_lose_nothing_have_a_second_try(
    tmp_path_factory: pytest.TempPathFactory, code: str, red: int
) -> None:
    folder = tmp_path_factory.mktemp("suite")
    for name in ("conftest.py", "checker.py"):
        shutil.copy(HERE / name, folder)
    (folder / "test_it.py").write_text(ONCE + code)
    (folder / "pytest.toml").write_text('[pytest]\nmarkers = ["crash: kills"]\n')
    environment = {**os.environ, "CI": "", "PYTEST_ADDOPTS": ""}

    def run(*options: str) -> int:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", *options, str(folder)]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False).returncode

    assert run("--cache-clear", *(["--numprocesses", "1"] if code is UNSOUND else []))
    assert bool(run("--second-try", "--last-failed", "--last-failed-no-failures", "none")) == bool(red)
