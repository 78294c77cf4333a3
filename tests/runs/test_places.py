"""The place that the text of an error names: the user's line that led to it, once; or none, never somebody else's."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from treadle import Engine, Pipeline, pipeline, step
from treadle.errors import (
    EngineElsewhere,
    ExecutorNotFound,
    NotInRun,
    OptionError,
    PlaceholderUsed,
    RunNotFound,
    StepCrashed,
    StoreDamaged,
    StoreUnwritable,
    TreadleError,
    ValidationError,
    users_place,
)


@step(cache=False)
async def plain(x: Any = 0) -> Any:
    return x


@step(runtime="nowhere")
def nowhere() -> int:
    return 1


@step(runtime="process")
def submitting() -> None:
    plain.submit(1)


@step(runtime="process")
def dying() -> None:
    os._exit(3)


@step
async def pair(x: int, y: int) -> int:
    return x + y


def marked(error: BaseException, mark: str) -> bool:
    """Whether the error names the line of this file that has the mark, once, and at the end of its text."""
    assert isinstance(error, TreadleError)
    assert str(error).count("Where:") == 1
    assert str(error).endswith(f"Where: {error.where}")
    file, _, line = error.where.rpartition(":")
    text = Path(__file__).read_text().splitlines()[int(line) - 1]
    return file == __file__ and text.endswith(f"  # {mark}")


def caught(act: Callable[[], Any]) -> TreadleError:
    with pytest.raises(TreadleError) as error:
        act()
    return error.value


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# -- from where the user's line is ----------------------------------------------------------


def test_a_wrapper_of_the_standard_library_is_passed_over() -> None:
    @contextlib.contextmanager
    def entered() -> Iterator[Any]:
        yield plain.submit(1)  # in a context manager

    @functools.singledispatch
    def dispatched(x: object) -> Any:
        return plain.submit(x)  # dispatched

    with ThreadPoolExecutor(1) as threads:
        assert marked(caught(lambda: threads.submit(lambda: plain.submit(1)).result()), "on a thread")  # on a thread
    assert marked(caught(lambda: entered().__enter__()), "in a context manager")
    assert marked(caught(lambda: dispatched(1)), "dispatched")


@pytest.mark.parametrize("name", ["<stdin>", "<ipython-input-3-0d1f>", "<python-input-7>", "/tmp/ipykernel_1/123.py"])
def test_what_is_typed_into_a_prompt_or_a_notebook_is_named_by_its_cell(name: str) -> None:
    cell = compile("from treadle import step\n\nstep(retries=2)", name, "exec")
    assert caught(lambda: exec(cell, {})).where == f"{name}:3"


def test_generated_code_is_passed_over() -> None:
    def act() -> None:
        exec(compile("submit()", "<string>", "exec"), {"submit": plain.submit})  # generated

    assert marked(caught(act), "generated")


@pytest.mark.parametrize("server", ["anyio/_backends/_asyncio.py", "starlette/routing.py", "_pytest/python.py"])
def test_a_server_that_calls_what_it_was_given_is_no_place(server: str) -> None:
    for name in (server, "shop/orders.py"):
        file = os.path.join(os.sep, "venv", "lib", "python3.11", "site-packages", *name.split("/"))
        code = compile("act()", file, "exec")
        error = caught(functools.partial(exec, code, {"act": plain.submit}))
        assert error.where == ("" if name == server else f"{file}:1")


def test_a_loop_a_thread_and_a_task_group_are_no_place() -> None:
    failed: list[TreadleError] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failed.append(context["exception"]))  # type: ignore[arg-type]
        async with Engine("memory://") as engine:
            loop.call_soon(plain.submit, 1)
            with pytest.raises(NotInRun) as threaded:
                await anyio.to_thread.run_sync(plain.submit, 1)
            with pytest.raises(RunNotFound) as gathered:
                await asyncio.gather(engine.get_run("nobody"))
            with pytest.raises(BaseExceptionGroup) as grouped:
                async with anyio.create_task_group() as group:
                    group.start_soon(engine.get_run, "nobody")
            with pytest.raises(RunNotFound) as awaited:
                await engine.get_run("nobody")  # awaited
        failed.extend((threaded.value, gathered.value, *grouped.value.exceptions))  # type: ignore[arg-type]
        assert marked(awaited.value, "awaited")
        assert "there is no run 'nobody' in memory://. " in str(awaited.value)

    asyncio.run(main())
    assert [error.where for error in failed] == [""] * 4
    assert not any("Where:" in str(error) for error in failed)


def test_frames_that_end_without_a_users_line_are_no_place() -> None:
    assert users_place(None) == ""


# -- through the log, and from another process ----------------------------------------------


@pipeline
async def crashing() -> None:
    await dying()


@pipeline
async def submitting_there() -> None:
    await submitting()


@pipeline
async def unplaced() -> None:
    future = nowhere.submit()  # submitted
    await future


@pytest.mark.parametrize(
    ("target", "kind"), [(crashing, StepCrashed), (submitting_there, NotInRun), (unplaced, ExecutorNotFound)]
)
def test_an_error_reads_the_same_from_the_log_of_a_reopened_home(target: Any, kind: type, tmp_path: Path) -> None:
    async def main() -> tuple[BaseException | None, BaseException | None]:
        async with Engine(tmp_path) as engine:
            result = await engine.run(target)
        async with Engine(tmp_path) as engine:
            return result.error, (await engine.get_run(result.run_id)).error

    fresh, read = asyncio.run(main())
    assert isinstance(fresh, TreadleError)
    assert isinstance(read, TreadleError)
    assert type(fresh) is type(read) is kind
    assert str(fresh) == str(read)
    assert (fresh.what, fresh.why, fresh.fix, fresh.where) == (read.what, read.why, read.fix, read.where)
    assert str(read).count("Where:") == 1
    assert str(read).endswith(f" Where: {read.where}")


def test_a_submit_in_the_body_of_a_step_says_that_it_is_there(home: Path) -> None:
    @step
    async def body() -> None:
        plain.submit(1)

    @pipeline
    async def flow() -> None:
        await body()

    for target in (flow, submitting_there):
        error = target.run().error
        assert isinstance(error, NotInRun)
        assert "Why: this is the body of a step, in which steps and pipelines are plain functions. " in str(error)


# -- static pipelines -----------------------------------------------------------------------


@pipeline(static=True)
def unsound() -> Any:
    nowhere()  # with no executor
    return pair.map([1, 2], [3])  # unequal


def test_a_problem_names_its_place_once_and_the_list_of_them_has_none() -> None:
    error = caught(unsound.compile)
    assert isinstance(error, ValidationError)
    lines = Path(__file__).read_text().splitlines()
    for problem, mark in zip(error.problems, ("unequal", "with no executor"), strict=True):
        assert problem.count(__file__) == 1
        assert lines[int(problem.partition(f"{__file__}:")[2].partition(")")[0]) - 1].endswith(f"  # {mark}")
    assert error.where == ""
    assert "Where:" not in str(error)


def test_a_placeholder_in_the_hands_of_the_standard_library_names_the_users_line() -> None:
    @pipeline(static=True)
    def choosing() -> Any:
        return random.choice(plain())  # chosen

    error = caught(choosing.compile)
    assert isinstance(error, PlaceholderUsed)
    assert marked(error, "chosen")


@pytest.mark.parametrize("inputs", ["rows", 3, {1: 2}])
def test_wrong_inputs_of_a_wired_pipeline_are_refused_where_they_are_given(inputs: Any, home: Path) -> None:
    wired = Pipeline("wired").add_step(pair)
    for act in (lambda: wired.run(inputs), lambda: wired.compile(inputs)):  # given
        error = caught(act)
        assert isinstance(error, OptionError)
        assert f"inputs={inputs!r} of pipeline wired is not allowed. Fix: give a dict of values by name" in str(error)
        assert marked(error, "given")
    assert not home.exists()


# -- engines and homes ----------------------------------------------------------------------


def test_an_engine_is_refused_on_another_event_loop(tmp_path: Path) -> None:
    found: list[BaseException] = []

    async def main() -> None:
        async with Engine(tmp_path) as engine:

            async def elsewhere() -> None:
                for make in (lambda: engine.run(returning), lambda: returning.with_options(engine=engine)()):
                    with pytest.raises(EngineElsewhere) as error:
                        await make()  # elsewhere
                    found.append(error.value)
                for act in (engine.recover, lambda: engine.resume("nobody")):
                    with pytest.raises(EngineElsewhere):
                        await act()

            thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
            thread.start()
            await asyncio.to_thread(thread.join)
            assert (await engine.run(returning)).value == 1

    asyncio.run(main())
    assert len(found) == 2
    assert all("run_coroutine_threadsafe" in str(error) for error in found)


@pipeline
async def returning() -> int:
    return 1


@pytest.mark.parametrize("wrong", [3, None, returning])
def test_what_is_no_run_id_is_refused(wrong: Any) -> None:
    async def main() -> None:
        async with Engine("memory://") as engine:
            for ask in (engine.get_run, engine.resume, engine.cancel):
                with pytest.raises(OptionError, match=r"such as handle\.id or result\.run_id") as error:
                    await ask(wrong)  # asked
                assert marked(error.value, "asked")
            with pytest.raises(OptionError, match="name=3 is not allowed"):
                await engine.artifact(3)  # type: ignore[arg-type]
            with pytest.raises(OptionError, match="version='new' is not allowed"):
                await engine.artifact("x", "new")  # type: ignore[arg-type]
            with pytest.raises(OptionError, match=r"status='suceeded' is not allowed\. Fix: did you mean 'succeeded'"):
                await engine.runs(status="suceeded")

    asyncio.run(main())


@pytest.mark.parametrize("whole", [True, False])
def test_a_result_whose_home_was_removed_says_so_and_makes_nothing(whole: bool, home: Path) -> None:
    result = returning.run()
    shutil.rmtree(home) if whole else (home / "treadle.db").unlink()
    error = caught(lambda: result.step_results)  # looked at
    assert isinstance(error, StoreUnwritable)
    assert "has been removed" in str(error)
    assert marked(error, "looked at")
    assert not (home / "treadle.db").exists()


def test_a_result_whose_log_was_damaged_says_so(home: Path) -> None:
    result = returning.run()
    log = home / "treadle.db"
    log.write_bytes(log.read_bytes()[:100] + b"\xff" * (log.stat().st_size - 100))
    assert isinstance(caught(lambda: result.step_results), StoreDamaged)
    shutil.rmtree(home)  # of which a checker would make a finding


def test_an_error_without_a_text_is_its_place() -> None:
    assert str(TreadleError(where=None)) == ""
    assert marked(TreadleError(), "nothing said")  # nothing said


def test_what_is_no_pipeline_says_what_it_is() -> None:
    with pytest.raises(OptionError, match=r"returning is a pipeline already\. Fix: use with_options"):
        pipeline(returning)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match=r"dict cannot be a pipeline\. Why: it is a class\. Fix: "):
        pipeline(dict)


@pytest.mark.parametrize("ending", ["cancelled", "interrupted"])
def test_a_run_that_was_cut_off_reads_the_same_from_the_log(ending: str, tmp_path: Path) -> None:
    @pipeline
    async def endless() -> None:
        await asyncio.Event().wait()

    async def main() -> tuple[TreadleError, BaseException | None]:
        async with Engine(tmp_path, close_timeout=0) as engine:
            handle = await engine.start(endless)
            if ending == "cancelled":
                await handle.cancel()
        with pytest.raises(TreadleError) as fresh:
            await handle
        async with Engine(tmp_path) as engine:
            return fresh.value, (await engine.get_run(handle.id)).error

    fresh, read = asyncio.run(main())
    assert type(fresh) is type(read)
    assert str(fresh) == str(read)
    assert ending in str(read)
    assert fresh.where == ""
