"""Secrets of isolated steps: in the message that starts an attempt, and in nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import secret_steps as steps

from treadle import Engine, RunResult, Secret, pipeline
from treadle.errors import EncodeError

TEXT = "hunter2-s3cr3t-t0ken"


def _run(home: Path, step: Any, *args: Any) -> tuple[RunResult, list[str]]:
    @pipeline
    async def run() -> Any:
        return await step(*args)

    async def main() -> tuple[RunResult, list[str]]:
        async with Engine(home) as engine:
            result = await engine.run(run)
            return result, [record.message for record in await engine.logs(result.run_id)]

    return asyncio.run(main())


def _written(home: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file())


def test_a_worker_gets_the_secret_and_nothing_shows_it(tmp_path: Path) -> None:
    runs = [_run(tmp_path / "home", steps.sign, "hello", Secret(text)) for text in (TEXT, TEXT, "another-t0ken")]
    assert [result.value for result, _ in runs] == [f"hello/{len(TEXT)}/***", f"hello/{len(TEXT)}/***", "hello/13/***"]
    assert [result.step_results["sign"].cached for result, _ in runs] == [False, True, False]
    assert runs[0][1] == ["signing with ***"]
    assert TEXT.encode() not in _written(tmp_path / "home")


def test_a_secret_inside_a_container_reaches_the_worker(tmp_path: Path) -> None:
    result, _ = _run(tmp_path / "home", steps.sign_with, {"host": "db", "tokens": [Secret(TEXT)]})
    assert result.value == len(TEXT)
    assert TEXT.encode() not in _written(tmp_path / "home")


def test_what_a_worker_says_of_a_secret_is_masked_in_the_log(tmp_path: Path) -> None:
    secret = Secret(TEXT)
    result, _ = _run(tmp_path / "home", steps.refuse, secret)
    assert isinstance(result.error, ValueError)
    assert result.step_results["refuse"].metadata == {"used": "***"}
    assert TEXT not in str(result)
    assert TEXT.encode() not in _written(tmp_path / "home")
    del secret


def test_a_worker_cannot_return_a_secret(tmp_path: Path) -> None:
    result, _ = _run(tmp_path / "home", steps.give_back, Secret(TEXT))
    assert isinstance(result.error, EncodeError)
    assert "a Secret is never stored" in str(result.error)


def test_a_secret_beside_more_than_a_message_holds_is_refused(tmp_path: Path) -> None:
    result, _ = _run(tmp_path / "home", steps.sign_with, {"tokens": [Secret(TEXT)], "data": "x" * 100_000})
    assert isinstance(result.error, EncodeError)
    assert "pass the secret as an argument of its own" in str(result.error)
    assert TEXT.encode() not in _written(tmp_path / "home")
