"""What the executor of the documents does beyond the suite: it says all that is printed, and ends with its engine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import container_steps
import hostile_steps
import pytest
from documented import CommandExecutor

from treadle import Engine, pipeline
from treadle.testing.watching import is_held

prints: Any = hostile_steps.prints_from_everywhere.with_options(runtime="mine")
environment: Any = container_steps.environment.with_options(runtime="mine")


def test_all_that_is_printed_is_in_the_log_and_only_named_variables_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_ENGINE", "1")
    monkeypatch.setenv("ALLOWED", "2")

    @pipeline
    async def flow() -> Any:
        await prints()
        return await environment()

    async def main() -> Any:
        executors = {"mine": CommandExecutor(env=("ALLOWED",))}
        async with asyncio.timeout(60), Engine(tmp_path / "home", executors=executors) as engine:
            result = await engine.run(flow)
            return result.value, await engine.logs(result.run_id, prints.name)

    seen, said = asyncio.run(main())
    assert {(line.stream, line.message) for line in said} == {
        ("stdout", "from python"), ("stderr", "to stderr"), ("stdout", "from the descriptor"),
        ("stdout", "from a program"), ("stdout", "without an end"),
    }  # fmt: skip
    assert capfd.readouterr() == ("", "")
    assert seen["ALLOWED"] == "2"
    assert "SECRET_OF_THE_ENGINE" not in seen


def test_its_steps_end_with_an_engine_that_is_killed(tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), *sys.path])}
    command = [sys.executable, str(here / "killed_engine.py"), str(tmp_path)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as program:
        try:
            until = time.monotonic() + 60
            while not (tmp_path / "hanging").exists() and time.monotonic() < until:
                time.sleep(0.01)
            assert is_held(tmp_path / "alive")
            program.kill()
            while is_held(tmp_path / "alive") and time.monotonic() < until:
                time.sleep(0.01)
            assert not is_held(tmp_path / "alive")
        finally:
            program.kill()
            (tmp_path / "stop").touch()
        assert program.stderr is not None
        assert program.stderr.read() == ""
