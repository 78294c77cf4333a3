"""What bodies raise: ordinary and odd exceptions, each of which ends its call and nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import subprocess
import sys
from typing import Any

import pytest

from treadle import pipeline, step
from treadle.errors import OptionError, RunCancelled


class Unprintable(Exception):
    """Neither its text nor its repr can be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Takes no notes: its attributes cannot be set."""

    code: int


class Picky(Exception):
    """Cannot be made from its ``args``."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{code} {detail}")
        self.code, self.detail = code, detail


class Closed(Exception):
    """Nothing of it can be looked at, not even what it is; while a test wants that, as others look at all objects."""

    is_closed = False

    def __getattribute__(self, name: str) -> Any:
        if Closed.is_closed:
            raise RuntimeError(f"no {name}")
        return super().__getattribute__(name)


class OwnBase(BaseException):
    """Derived from ``BaseException``, as some test tools do."""


def raising(error: Any, *, sync: bool) -> Any:
    """A step that raises this."""

    def body() -> None:
        raise error

    async def async_body() -> None:
        raise error

    return step(name="raises", cache=False)(body if sync else async_body)


@step
async def inc(x: int) -> int:
    return x + 1


async def outcome(stage: Any, raises: Any) -> tuple[Any, Any]:
    """The result of a run whose step raises, and a proof that the engine goes on."""

    @pipeline
    async def runs() -> None:
        await raises()

    @pipeline
    async def after() -> int:
        return await inc(1)

    async with stage.engine(close_timeout=5) as engine:
        result = await engine.run(runs)
        stored = await engine.get_run(result.run_id)
        assert (await engine.run(after)).value == 2
        assert engine.metrics()["calls_running"] == 0
        return result, stored.step_results["raises"]


@pytest.mark.parametrize("sync", [True, False], ids=["thread", "loop"])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("plain"), Unprintable(), Frozen(3), Picky(4, detail="d"), OwnBase("base"),
        ExceptionGroup("several", [ValueError(1), ExceptionGroup("inner", [KeyError("k")])]), TimeoutError("own"),
        BaseExceptionGroup("base", [OwnBase("x")]), UnicodeDecodeError("utf-8", b"\\xff", 0, 1, "bad"),
        StopAsyncIteration("stop"), MemoryError(), RecursionError("deep"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_error_of_a_body_is_raised_as_itself_and_ends_its_call_only(
    stage: Any, error: BaseException, sync: bool
) -> None:
    result, recorded = stage.drive(outcome(stage, raising(error, sync=sync)))
    assert result.error is error
    assert result.status == recorded.status == "failed"


@pytest.mark.parametrize("sync", [True, False], ids=["thread", "loop"])
@pytest.mark.parametrize("error", [SystemExit(3), StopIteration("stop")], ids=["SystemExit", "StopIteration"])
def test_what_asyncio_cannot_carry_is_the_cause_of_a_runtime_error(
    stage: Any, error: BaseException, sync: bool
) -> None:
    result, recorded = stage.drive(outcome(stage, raising(error, sync=sync)))
    assert type(result.error) is RuntimeError
    assert result.error.__cause__ is error
    assert type(error).__name__ in str(result.error)
    assert recorded.status == "failed"


def test_a_keyboard_interrupt_raised_on_a_worker_thread_fails_the_step_only(stage: Any) -> None:
    result, _ = stage.drive(outcome(stage, raising(KeyboardInterrupt(), sync=True)))
    assert isinstance(result.error.__cause__, KeyboardInterrupt)


KEYBOARD = """
import asyncio, sys
from treadle import Engine, pipeline, step

@step
async def interrupted():
    raise KeyboardInterrupt

@pipeline
async def runs():
    await interrupted()

async def main():
    async with Engine(sys.argv[1]) as engine:
        await engine.run(runs)

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted")

async def look():
    async with Engine(sys.argv[1]) as engine:
        print([(run.pipeline, run.status) for run in await engine.runs()])

asyncio.run(look())
"""


def test_a_keyboard_interrupt_in_an_async_body_ends_the_loop_and_interrupts_the_run(tmp_path: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KEYBOARD, str(tmp_path / "home")],
        capture_output=True, text=True, timeout=60, env={"PYTHONPATH": ":".join(sys.path)}, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["interrupted", "[('runs', 'interrupted')]"], done.stderr


@pytest.mark.parametrize("sync", [True, False], ids=["thread", "loop"])
def test_a_body_that_raises_a_cancellation_of_its_own_is_a_cancelled_call(stage: Any, sync: bool) -> None:
    result, recorded = stage.drive(outcome(stage, raising(asyncio.CancelledError("own"), sync=sync)))
    assert recorded.status == "cancelled"
    assert isinstance(result.error, RunCancelled)


def test_a_user_error_carries_a_note_with_run_call_and_attempt(stage: Any) -> None:
    result, _ = stage.drive(outcome(stage, raising(ValueError("x"), sync=False)))
    assert result.error.__notes__ == [f"in call raises of run {result.run_id}, attempt 1"]


def test_the_traceback_of_a_user_error_shows_the_line_that_raised(stage: Any) -> None:
    import traceback

    result, _ = stage.drive(outcome(stage, raising(ValueError("x"), sync=True)))
    assert "raise error" in "".join(traceback.format_exception(result.error))


@pytest.mark.parametrize("sync", [True, False], ids=["thread", "loop"])
def test_the_traceback_of_a_user_error_does_not_show_how_the_engine_came_to_the_body(stage: Any, sync: bool) -> None:
    import traceback

    result, _ = stage.drive(outcome(stage, raising(ValueError("x"), sync=sync)))
    files = [frame.filename for frame in traceback.extract_tb(result.error.__traceback__)]
    assert files[-1] == __file__
    assert {"lifecycle.py", "inline.py", "threads.py"}.isdisjoint(map(os.path.basename, files))


def test_one_exception_object_may_be_raised_by_many_calls(stage: Any) -> None:
    error = ValueError("shared")

    @step
    async def raises(x: int) -> int:
        raise error

    @pipeline
    async def runs() -> int:
        return sum(result.error is error for result in await raises.map(range(100)).settled())

    assert stage.value(runs) == 100
    assert len(error.__notes__) <= 100


def test_a_def_around_an_async_def_says_that_nobody_awaits_it(stage: Any) -> None:
    async def fetch(x: int) -> int:
        return x

    @step(persist=False)
    @functools.wraps(fetch)
    def traced(x: int) -> Any:
        return fetch(x)

    @pipeline
    async def run() -> Any:
        return await traced(1)

    with pytest.raises(OptionError, match="step fetch is a def that returned a coroutine, which nobody awaits"):
        stage.value(run)


@pytest.mark.parametrize("sync", [True, False])
def test_an_exception_that_cannot_be_looked_at_fails_its_call_and_no_other(
    stage: Any, sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Closed, "is_closed", True)
    raises = raising(Closed("x"), sync=sync)

    @step(cache=False)
    def on_a_thread(x: int) -> int:
        return x

    @pipeline(failure_mode="continue")
    async def runs() -> int:
        before = [on_a_thread.submit(x) for x in range(20)]
        odd = raises.submit()
        after = [on_a_thread.submit(x) for x in range(20)]
        await asyncio.wait([odd, *before, *after])
        return sum(future.result() for future in (*before, *after))

    result = stage.result(runs)
    assert result.status == "failed"
    assert result.step_results["raises"].status == "failed"
    assert [r.status for name, r in result.step_results.items() if name != "raises"] == ["succeeded"] * 40
