"""How executors and workers start when that fails at first: an executor is tried anew, and a worker leaves nothing."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import hostile_steps as steps
import pytest

from treadle import Engine, pipeline
from treadle.contracts import Attempt, Performed, Raised, Sink
from treadle.errors import ExecutorUnavailable, StepCrashed
from treadle.worker import Worker
from treadle_adapters._control import Control
from treadle_adapters._peer import Worker as Peer
from treadle_adapters.process import ProcessExecutor

away = steps.fine.with_options(runtime="away")


class Away:
    """An executor that can be opened when it is there again; it performs in this process."""

    trusted = False
    slots = None

    def __init__(self) -> None:
        self.is_there, self.tries = False, 0

    async def open(self) -> None:
        self.tries += 1
        await asyncio.sleep(0)
        if not self.is_there:
            raise ExecutorUnavailable("it is away")

    async def perform(self, attempt: Attempt, sink: Sink) -> Performed | Raised:
        return await asyncio.to_thread(Worker().perform, attempt, sink)

    async def close(self) -> None:
        self.is_there = False


def test_an_executor_that_could_not_be_opened_is_tried_anew_by_the_next_step(tmp_path: Path) -> None:
    executor = Away()

    @pipeline
    async def flow() -> list[int]:
        early = [away.submit(number) for number in range(3)]
        await asyncio.wait(early)
        assert {type(future.exception()) for future in early} == {ExecutorUnavailable}
        executor.is_there = True
        return [await away(7), await away(8)]

    async def main() -> object:
        async with Engine(tmp_path / "home", executors={"away": executor}) as engine:
            return (await engine.run(flow)).value

    assert asyncio.run(main()) == [8, 9]
    assert executor.tries <= 4


# -- too many open files ------------------------------------------------------------------


@contextmanager
def few_files(spare: int) -> Generator[None]:
    """This process may open so many files more, and no others."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, hard))
    taken: list[int] = []
    try:
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        for _ in range(spare):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.linux
def test_a_worker_for_which_there_are_not_enough_files_leaves_none_open() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        control = Control(ours, lambda *_: None, lambda: None)
        before = os.listdir("/proc/self/fd")
        for spare in range(6):  # it takes three pairs
            with few_files(spare), pytest.raises(OSError, match="open files"):
                control.fork(1)
            assert os.listdir("/proc/self/fd") == before
        control.close()
        theirs.close()

    asyncio.run(main())


@pytest.mark.linux
def test_too_many_open_files_are_an_error_of_the_step_and_the_engine_goes_on(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> int:
        await steps.fine(1)
        crashed = steps.exits.submit(3)
        await asyncio.wait([crashed])
        assert type(crashed.exception()) is StepCrashed
        with few_files(1):
            refused = steps.fine.submit(2)
            await asyncio.wait([refused])
        error = refused.exception()
        assert type(error) is ExecutorUnavailable
        assert "open files" in error.why
        return await steps.fine(3)

    async def main() -> object:
        async with Engine(tmp_path / "home", executors={"process": ProcessExecutor(workers=1)}) as engine:
            return (await engine.run(flow)).value

    assert asyncio.run(main()) == 4


class Silence:
    """A sink for what nobody reads."""

    def say(self, level: str, message: str, stream: str) -> None: ...

    def note(self, facts: bytes) -> None: ...

    def progress(self, done: float, total: float | None) -> None: ...


def test_a_worker_that_has_ended_before_it_is_asked_answers_that_it_has() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        worker = Peer(1, ours, out, err)
        os.write(err_end, b"no process could be started for it\n")
        for end in (out_end, err_end):
            os.close(end)
        theirs.close()
        worker.has_ended(os.EX_OSERR)
        attempt = Attempt("run", "fine", "fine", 1, "token", "hostile_steps", "fine")
        with pytest.raises(StepCrashed, match="no process could be started for it") as caught:
            await asyncio.wait_for(worker.begin(attempt, Silence(), ([], "/", "", 30)), 30)
        assert caught.value.exit_code == os.EX_OSERR

    asyncio.run(main())
