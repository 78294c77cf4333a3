"""Programs as the Steps page's reader writes them: in this process on a home of their own, or as scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

Script = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ``pipeline.run()`` keeps its state: the reader names no engine."""
    place = tmp_path / "home"
    monkeypatch.setenv("TREADLE_HOME", str(place))
    return place


@pytest.fixture(scope="session")
def starter() -> Iterator[subprocess.Popen[str]]:
    """The process that starts scripts."""
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("engine", "adapters"))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(Path(__file__).with_name("starter.py"))]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)


@pytest.fixture
def script(tmp_path: Path, home: Path, starter: subprocess.Popen[str]) -> Script:
    """Write a script and run it in a process of its own, as an edit and a new start would; gives what it printed."""
    path, output = tmp_path / "script.py", tmp_path / "output"

    def run(text: str, **edits: object) -> list[str]:
        source = textwrap.dedent(text)
        for name, value in edits.items():
            assert f"<{name}>" in source
            source = source.replace(f"<{name}>", str(value))
        path.write_text(source)
        assert starter.stdin is not None
        assert starter.stdout is not None
        starter.stdin.write(json.dumps({"script": str(path), "home": str(home), "output": str(output)}) + "\n")
        code = starter.stdout.readline().strip()
        printed = output.read_text()
        assert code == "0", printed
        return printed.splitlines()

    return run
