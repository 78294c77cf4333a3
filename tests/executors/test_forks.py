"""A process that has forked children, as ``multiprocessing`` does, ends what it has started all the same."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from treadle_adapters.process import ProcessExecutor

pytestmark = pytest.mark.linux


@pytest.fixture
def forks() -> Iterator[Any]:
    """Forks a child that has all descriptors which are open then, until the end of the test."""
    ours, theirs, pids = os.pipe(), os.pipe(), []

    def fork() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which this child does not need
            pid = os.fork()
        if pid == 0:
            try:
                os.close(ours[1])
                os.write(theirs[1], b"x")
                os.read(ours[0], 1)
            finally:
                os._exit(0)
        pids.append(pid)
        os.read(theirs[0], 1)  # it has done what a child does first

    yield fork
    for end in (*ours, *theirs):
        os.close(end)
    for pid in pids:
        os.waitpid(pid, 0)


@pytest.mark.asyncio
async def test_workers_are_ended_in_peace_while_a_forked_child_lives(forks: Any) -> None:
    executor: Any = ProcessExecutor(workers=1)
    await executor.open()
    nursery = executor._nursery
    forks()
    await executor.close()
    assert nursery.returncode == 0  # nobody had to kill it, with what it would have looked for
