"""The zygote process that the crash tests fork their victims from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ENGINE = HERE.parent.parent / "engine"

Perform = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def child_environment() -> dict[str, str]:
    """The environment of processes that import treadle and the shapes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TREADLE_")}
    return environment | {"PYTHONPATH": f"{ENGINE}:{HERE}", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="session")
def perform(child_environment: dict[str, str]) -> Iterator[Perform]:
    """Have a forked child do something with a home: ``perform("run", home, ...)`` gives how it ended."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "zygote.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    commands, answers = process.stdin, process.stdout

    def do(what: str, home: Path, **more: Any) -> dict[str, Any]:
        command = {"do": what, "home": str(home), "ledger": f"{home}.ledger", **more}
        commands.write(json.dumps(command) + "\n")
        commands.flush()
        line = answers.readline()
        assert line, "the zygote is gone"
        answer: dict[str, Any] = json.loads(line)
        return answer

    yield do
    commands.close()
    process.wait(10)
    answers.close()
