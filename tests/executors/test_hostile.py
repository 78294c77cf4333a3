"""Hostile steps in processes: each ends as documented, nothing is left of it, and the engine goes on."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_steps as steps
import msgspec
import numpy as np
import pytest

from treadle import EncodeError, Engine, RunResult, pipeline
from treadle.contracts import Performed
from treadle.errors import OptionError, RemoteError, StepCrashed, StepTimeout, WorkerProtocolError
from treadle_adapters import _wire as wire
from treadle_adapters.process import ProcessExecutor

LIMIT_S = 40


def perform(tmp_path: Path, target: Any, *args: Any) -> RunResult[Any]:
    """Run one step; afterwards another one, on the same engine, to see that it goes on."""

    @pipeline
    async def flow() -> Any:
        return await target(*args)

    @pipeline
    async def after() -> int:
        return await steps.fine(1)

    async def main() -> RunResult[Any]:
        executors = {"process": ProcessExecutor(workers=1, grace=1.0)}
        async with asyncio.timeout(LIMIT_S), Engine(tmp_path / "home", executors=executors) as engine:
            result = await engine.run(flow)
            assert (await engine.run(after)).value == 2
            said.extend(await engine.logs(result.run_id))
            result.error  # noqa: B018  # looked at
            return result

    said.clear()
    return asyncio.run(main())


said: list[Any] = []


@pytest.mark.parametrize(
    ("target", "args", "exit_code", "number"),
    [
        (steps.exits, (7,), 7, None),
        (steps.exits, (0,), 0, None),
        (steps.segfaults, (), None, signal.SIGSEGV),
        (steps.kills_itself, (signal.SIGKILL,), None, signal.SIGKILL),
        (steps.kills_itself, (signal.SIGABRT,), None, signal.SIGABRT),
        (steps.kills_its_parent, (), None, signal.SIGKILL),
    ],
)
def test_a_process_that_dies_is_an_error_that_says_how(
    tmp_path: Path, target: Any, args: tuple[Any, ...], exit_code: int | None, number: int | None
) -> None:
    error = perform(tmp_path, target, *args).error
    assert type(error) is StepCrashed
    assert (error.exit_code, error.signal, error.oom) == (exit_code, number, False)
    if number == signal.SIGSEGV:
        assert "string_at" in error.why


@pytest.mark.parametrize("target", [steps.stops_itself, steps.swallows_everything, steps.blocks_its_loop])
def test_a_step_that_does_not_want_to_end_is_ended(tmp_path: Path, target: Any) -> None:
    assert type(perform(tmp_path, target).error) is StepTimeout


def test_a_step_that_is_ended_may_clean_up(tmp_path: Path) -> None:
    assert type(perform(tmp_path, steps.cleans_up, str(tmp_path)).error) is StepTimeout
    assert (tmp_path / "cleaned").exists()


@pytest.mark.parametrize("target", [steps.raises_system_exit, steps.raises_keyboard_interrupt])
def test_exits_and_interrupts_fail_the_step_and_nothing_else(tmp_path: Path, target: Any) -> None:
    result = perform(tmp_path, target)
    assert result.status == "failed"
    assert type(result.error) is RuntimeError
    assert "ends nothing else" in str(result.error)


def test_an_exception_without_a_text_comes_back(tmp_path: Path) -> None:
    assert type(perform(tmp_path, steps.raises_odd).error) is steps.OddError


@pytest.mark.parametrize("runtime", ["inline", "process"])
@pytest.mark.parametrize("target", [steps.raises_argued, steps.raises_fatal])
def test_an_exception_whose_own_methods_raise_fails_the_step_only(tmp_path: Path, target: Any, runtime: str) -> None:
    result = perform(tmp_path, target.with_options(runtime=runtime, timeout=10))
    assert type(result.error) in (steps.Argued, steps.Fatal)


def test_an_exception_of_which_nothing_can_be_told_is_a_remote_error(tmp_path: Path) -> None:
    error = perform(tmp_path, steps.raises_untouchable).error
    assert type(error) is RemoteError
    assert "Untouchable" in str(error)


def test_what_cannot_be_written_in_a_log_is_written_as_well_as_it_can(tmp_path: Path) -> None:
    assert perform(tmp_path, steps.logs_what_is_no_text).value == 1
    assert [line.message for line in said if line.stream == "log"] == ["half a character: ?"]


@pytest.mark.parametrize("runtime", ["inline", "process"])
def test_progress_is_told_in_numbers(tmp_path: Path, runtime: str) -> None:
    given = [(1, 3), (np.int64(1), np.float32(3)), (True, None), (2**70, 2.0**80), ("half", 1), (1, "3"), (None, 1)]

    @pipeline
    async def flow() -> list[Any]:
        progresses = steps.progresses.with_options(runtime=runtime)
        return await asyncio.gather(*(progresses(*numbers) for numbers in given), return_exceptions=True)

    async def main() -> list[Any]:
        executors = {"process": ProcessExecutor(workers=1)}
        async with asyncio.timeout(LIMIT_S), Engine(tmp_path / "home", executors=executors) as engine:
            return list((await engine.run(flow)).value)

    *fine, half, third, nothing = asyncio.run(main())
    assert fine == [1] * 4
    assert [type(error) for error in (half, third, nothing)] == [OptionError] * 3


def test_many_outputs_that_are_too_much_for_a_message_are_stored(tmp_path: Path) -> None:
    result = perform(tmp_path, steps.gives_many)
    assert list(result.value) == ["x" * 60_000] * 700


def test_an_exception_comes_back_with_its_attributes(tmp_path: Path) -> None:
    error = perform(tmp_path, steps.raises_stateful).error
    assert type(error) is steps.Stateful
    assert (error.args, error.two) == ((1,), {"two": (2,)})


def test_an_exception_of_an_unknown_class_is_a_remote_error(tmp_path: Path) -> None:
    error = perform(tmp_path, steps.raises_local).error
    assert type(error) is RemoteError
    assert error.type_name.endswith("LocalError")
    assert "only known there" in error.traceback_text


def test_a_recursion_without_end_is_an_error_of_the_step(tmp_path: Path) -> None:
    assert type(perform(tmp_path, steps.recurses).error) is RecursionError


def test_an_output_that_cannot_be_stored_is_named(tmp_path: Path) -> None:
    error = perform(tmp_path, steps.gives_a_lambda).error
    assert type(error) is EncodeError
    assert error.path == "value"


def test_closing_every_descriptor_ends_the_worker_only(tmp_path: Path) -> None:
    assert isinstance(perform(tmp_path, steps.closes_all).error, StepCrashed)


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 64, b"\x04\x00\x00\x00\xc1\xc1\xc1\xc1", b"\x04\x00\x00\x00\x94\x18\x01\x00",
     wire.frame(wire.Noted(b"\xc1")), wire.frame(wire.Noted(b"\x01")), wire.frame(wire.Ready(99, 1)),
     wire.frame(wire.Answered(99, Performed(())))],
)  # fmt: skip
def test_a_worker_that_breaks_the_protocol_is_killed(tmp_path: Path, data: bytes) -> None:
    error = perform(tmp_path, steps.talks_nonsense, data).error
    assert type(error) is WorkerProtocolError
    assert error.fix


def test_a_flood_of_output_is_drained_and_bounded(tmp_path: Path) -> None:
    result = perform(tmp_path, steps.prints, 300_000, 100)
    assert result.status == "succeeded"
    assert len(said) <= 10_001
    assert "more bytes of stdout were not recorded" in said[-1].message


def peak_rss_bytes(*, anew: bool = False) -> int:
    """How much memory this process has had at most, since the last time that it began anew."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


OUTPUT_LINES = int(os.environ.get("TREADLE_TEST_OUTPUT_MB", "200")) * 1000


@pytest.mark.linux
def test_a_flood_of_output_takes_no_memory_here(tmp_path: Path) -> None:
    before = peak_rss_bytes(anew=True)
    assert perform(tmp_path, steps.prints, OUTPUT_LINES, 1000).status == "succeeded"
    assert peak_rss_bytes() - before < 64_000_000
    assert sum(len(line.message) for line in said) < 5_000_000


FLOODS = {
    "records": (wire.Said("info", "x" * 64_000), 3_000),
    "metadata": (wire.Noted(msgspec.msgpack.encode({"a": "x" * 64_000})), 3_000),
    "progress": (wire.Progressed(1.0, 2.0), 100_000),
}


@pytest.mark.linux
@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_messages_is_bounded(tmp_path: Path, kind: str) -> None:
    message, count = FLOODS[kind]
    before = peak_rss_bytes(anew=True)
    result = perform(tmp_path, steps.floods_the_protocol, wire.frame(message), count)
    assert result.status == "succeeded"
    assert peak_rss_bytes() - before < 64_000_000
    assert len(said) < 3_000
    assert sum(path.stat().st_size for path in (tmp_path / "home").glob("treadle.db*")) < 40_000_000


def test_all_that_is_printed_is_in_the_log(tmp_path: Path) -> None:
    perform(tmp_path, steps.prints_from_everywhere)
    lines = {(line.stream, line.message) for line in said}
    assert lines == {
        ("stdout", "from python"),
        ("stderr", "to stderr"),
        ("stdout", "from the descriptor"),
        ("stdout", "from a program"),
        ("stdout", "without an end"),
    }


@pytest.mark.linux
def test_more_memory_than_the_step_asked_for_is_refused(tmp_path: Path) -> None:
    assert type(perform(tmp_path, steps.eats, 10 * 2**30).error) is MemoryError
    assert perform(tmp_path, steps.eats, 2**20).value == 2**20


@pytest.mark.linux
def test_memory_and_time_of_an_attempt_are_on_its_result(tmp_path: Path) -> None:
    result = perform(tmp_path, steps.burns, 200 * 2**20)
    used = result.step_results["burns"].resources_used
    assert used["peak_rss_bytes"] > 200 * 2**20
    assert used["cpu_seconds"] >= 0.1


def test_a_copy_that_a_step_has_forked_answers_for_no_one(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> Any:
        forks = steps.forks.with_options(timeout=20)
        return [await forks(False), await forks(True), await steps.fine(1)]

    async def main() -> Any:
        executors = {"process": ProcessExecutor(workers=1)}
        async with Engine(tmp_path, executors=executors) as engine:
            return (await engine.run(flow)).value

    assert asyncio.run(main()) == [0, 3, 2]


def test_a_thread_that_is_left_behind_does_not_keep_the_worker(tmp_path: Path) -> None:
    assert perform(tmp_path, steps.leaves_a_thread).value == 1


@pytest.mark.linux
@pytest.mark.parametrize("daemon", [False, True])
def test_programs_that_a_step_has_started_end_with_the_engine(
    tmp_path: Path, daemon: bool, gone: Callable[[set[int]], set[int]]
) -> None:
    assert perform(tmp_path, steps.starts, str(tmp_path), daemon, False).value == 1
    pids = {int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")}
    assert len(pids) == 2
    assert gone(pids) == set()


@pytest.mark.linux
def test_programs_that_a_step_has_started_end_with_its_attempt(
    tmp_path: Path, gone: Callable[[set[int]], set[int]]
) -> None:
    ended = perform(tmp_path, steps.starts.with_options(timeout=1.5), str(tmp_path), True, True)
    assert type(ended.error) is StepTimeout
    pids = {int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")}
    assert len(pids) == 2
    assert gone(pids) == set()
