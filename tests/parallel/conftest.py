"""What the tests of ``parallel_map`` and ``amap`` share: a module that other processes can import, and a home."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

WORK = '''
import os
import time
from pathlib import Path

from treadle import step


class OwnError(Exception):
    def __init__(self, item):
        super().__init__(f"item {item}")
        self.item = item


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(one)


def square(x):
    return x * x


@step
def stepped(x):
    return x + 1


def pid(_):
    return os.getpid()


def fails_at_three(x):
    if x == 3:
        raise OwnError(x)
    return x


def raises_what_does_not_pickle(x):
    raise Unpicklable("a", "b")


def gives_a_lambda(x):
    return lambda: x


def dies(x):
    os._exit(7)


def exits(x):
    raise SystemExit("enough")


def hangs(folder):
    """Writes down who it is and does not return."""
    path = Path(folder) / f"pid-{os.getpid()}"
    path.with_suffix(".new").write_text("")
    path.with_suffix(".new").rename(path)
    while True:
        time.sleep(0.05)


def fails_when_another_hangs(folder):
    """The first process hangs, the second one fails when it sees that."""
    try:
        (Path(folder) / "first").mkdir()
    except FileExistsError:
        while not list(Path(folder).glob("pid-*[0-9]")):
            time.sleep(0.01)
        raise OwnError("second")
    hangs(folder)


def nested(x):
    from treadle import parallel_map

    return parallel_map(square, [x], backend="process")


def nested_threads(x):
    from treadle import parallel_map

    return parallel_map(square, [x, x + 1])
'''


@pytest.fixture
def home(tmp_path: Path) -> str:
    """A folder for an engine."""
    return str(tmp_path / "home")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Functions at the top level of a module, which worker processes import too."""
    (tmp_path / "treadle_test_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("treadle_test_work")
    sys.modules.pop("treadle_test_work", None)
