"""Errors of isolated steps say what happened once, where, why, and what helps."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile_steps as steps
import pytest

from treadle import Engine, pipeline
from treadle._runtime.isolation import remote_errors
from treadle.contracts import Attempt, Performed, Raised, Sink
from treadle.errors import DecodeError, ExecutorNotFound, ExecutorUnavailable, StepNotImportable, TreadleError
from treadle.storage import codecs
from treadle.worker import Worker

MODULES = {
    "needs_a_library": "import a_library_that_is_not_there",
    "has_a_wrong_option": "from treadle import step\n@step(retry=-1)\ndef work(): pass",
    "divides_by_zero": "1 / 0",
    "has_no_step": "",
}


class Silent:
    """Takes nothing."""

    def say(self, level: str, message: str, stream: str) -> None: ...

    def note(self, facts: bytes) -> None: ...

    def progress(self, done: float, total: float | None) -> None: ...


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("module", "why", "fix"),
    [
        ("not_there_at_all", "no module 'not_there_at_all' on the import path", "install it where the worker runs"),
        ("not_there.at_all", "no module 'not_there' on the import path", "install it where the worker runs"),
        ("needs_a_library", "No module named 'a_library_that_is_not_there'", "install a_library_that_is_not_there"),
        ("has_a_wrong_option", "OptionError", "give"),
        ("divides_by_zero", "ZeroDivisionError: division by zero", "imported by another process"),
        ("has_no_step", "the module has no work", "at the top level"),
    ],
)
def test_a_step_that_a_worker_does_not_find_says_what_would_help(
    modules: None, module: str, why: str, fix: str
) -> None:
    outcome = Worker().perform(Attempt("run", "work", "work", 1, "token", module, "work"), Silent())
    assert isinstance(outcome, Raised)
    error = remote_errors.rebuilt(outcome)
    assert isinstance(error, StepNotImportable)
    assert why in error.why
    assert fix in error.fix
    assert [str(error).count(word) for word in ("Why:", "Fix:")] == [1, 1]


# -- where --------------------------------------------------------------------------------


class Away:
    """An executor that is never there, or whose workers are not."""

    trusted = False
    slots = None

    def __init__(self, *, opens: bool) -> None:
        self.opens = opens

    async def open(self) -> None:
        await asyncio.sleep(0)
        if not self.opens:
            raise ExecutorUnavailable("it is away")

    async def perform(self, attempt: Attempt, sink: Sink) -> Performed | Raised:
        raise ExecutorUnavailable("its workers are away")

    async def close(self) -> None: ...


@pytest.mark.parametrize("opens", [False, True])
def test_an_executor_that_is_away_is_named_by_each_call_that_needs_it(tmp_path: Path, opens: bool) -> None:
    @pipeline
    async def flow() -> list[Any]:
        futures = [steps.fine.with_options(runtime="away").submit(number) for number in range(2)]
        await asyncio.wait(futures)
        return [future.exception() for future in futures]

    async def main() -> Any:
        async with Engine(tmp_path / "home", executors={"away": Away(opens=opens)}) as engine:
            return await engine.run(flow)

    result = asyncio.run(main())
    for name, error in zip(("fine", "fine_2"), result.value, strict=True):
        assert type(error) is ExecutorUnavailable
        assert error.where == f"call {name} of run {result.run_id}, on executor 'away'"
        assert [note for note in error.__notes__ if note.startswith("in call")] == [
            f"in call {name} of run {result.run_id}, attempt 1"
        ]


def test_an_error_of_a_submit_names_the_line_that_submits(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> list[TreadleError]:
        found: list[TreadleError] = []
        for runtime in ("nowhere", "process"):
            try:
                lambdas = steps.fine if runtime == "nowhere" else local
                lambdas.with_options(runtime=runtime).submit(1)
            except TreadleError as error:
                found.append(error)
        return found

    from treadle import step

    @step
    def local(number: int) -> int:
        return number

    async def main() -> Any:
        async with Engine("memory://", executors={"process": Away(opens=False)}) as engine:
            return (await engine.run(flow)).value

    found = asyncio.run(main())
    assert [type(error) for error in found] == [ExecutorNotFound, StepNotImportable]
    line = flow.fn.__code__.co_firstlineno + 6
    assert [error.where for error in found] == [f"{__file__}:{line}"] * 2


# -- what strangers send ------------------------------------------------------------------


def test_bytes_of_strangers_that_are_refused_say_what_would_help() -> None:
    function = bytes(codecs.encode([len]).data)
    with pytest.raises(DecodeError) as refused:
        codecs.decode("msgpack", function, trusted=False)
    assert "trust_workers=True" in refused.value.fix
