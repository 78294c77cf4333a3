"""Hostile steps on a dask cluster: each ends as in a process of this machine, and takes no dask worker with it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask_cluster
import hostile_steps as steps
import pytest
from dask_cluster import Cluster

from treadle import EncodeError, Engine, RunResult, pipeline
from treadle.errors import RemoteError, StepCrashed, StepTimeout, WorkerProtocolError
from treadle_adapters.dask import DaskExecutor

LIMIT_S = 90


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with dask_cluster.cluster(1) as made:
        before = made.pids()
        yield made
        assert made.pids() == before


Asked = tuple[Any, tuple[Any, ...]]


def perform(tmp_path: Path, cluster: Cluster, *asked: Asked) -> list[RunResult[Any]]:
    """Run steps one after another on one engine; after each of them another one, to see that the worker goes on."""

    @pipeline(failure_mode="continue")
    async def flow(number: int) -> Any:
        target, args = asked[number]
        return await target.with_options(runtime="dask")(*args)

    @pipeline
    async def after() -> int:
        return await steps.fine.with_options(runtime="dask")(1)

    async def main() -> list[RunResult[Any]]:
        executors = {"dask": DaskExecutor(cluster.address, grace=1.0)}
        async with asyncio.timeout(LIMIT_S), Engine(tmp_path / "home", executors=executors) as engine:
            results: list[RunResult[Any]] = []
            for number in range(len(asked)):
                results.append(await engine.run(flow, number))
                results[-1].error  # noqa: B018  # looked at
                assert (await engine.run(after)).value == 2
                said.append(await engine.logs(results[-1].run_id))
            return results

    said.clear()
    return asyncio.run(main())


said: list[Any] = []


def test_a_process_that_dies_is_an_error_that_says_how(tmp_path: Path, cluster: Cluster) -> None:
    deaths: list[tuple[Asked, int | None, int | None]] = [
        ((steps.exits, (7,)), 7, None),
        ((steps.segfaults, ()), None, signal.SIGSEGV),
        ((steps.kills_itself, (signal.SIGKILL,)), None, signal.SIGKILL),
        ((steps.kills_its_parent, ()), None, signal.SIGKILL),
    ]
    for result, (_, code, number) in zip(
        perform(tmp_path, cluster, *[asked for asked, *_ in deaths]), deaths, strict=True
    ):
        error = result.error
        assert type(error) is StepCrashed
        assert (error.exit_code, error.signal, error.oom) == (code, number, False)
        assert cluster.address.split(":")[0] in error.why


def test_a_step_that_does_not_want_to_end_is_ended(tmp_path: Path, cluster: Cluster) -> None:
    asked: list[Asked] = [(steps.stops_itself, ()), (steps.swallows_everything, ()), (steps.blocks_its_loop, ())]
    ended = perform(tmp_path, cluster, *asked, (steps.cleans_up.with_options(timeout=3), (str(tmp_path),)))
    assert [type(result.error) for result in ended] == [StepTimeout] * 4
    assert (tmp_path / "cleaned").exists()


def test_what_a_step_raises_comes_back_and_ends_nothing_else(tmp_path: Path, cluster: Cluster) -> None:
    kinds: dict[Any, type[BaseException]] = {
        steps.raises_system_exit: RuntimeError,
        steps.raises_keyboard_interrupt: RuntimeError,
        steps.raises_odd: steps.OddError,
        steps.raises_stateful: steps.Stateful,
        steps.raises_local: RemoteError,
        steps.recurses: RecursionError,
        steps.gives_a_lambda: EncodeError,
    }
    results = perform(tmp_path, cluster, *[(target, ()) for target in kinds])
    assert [type(result.error) for result in results] == list(kinds.values())


def test_a_process_that_breaks_the_protocol_is_killed(tmp_path: Path, cluster: Cluster) -> None:
    nonsense = [b"\xff" * 64, b"\x04\x00\x00\x00\xc1\xc1\xc1\xc1", b"\x04\x00\x00\x00\x94\x18\x01\x00"]
    *broken, closed = perform(
        tmp_path, cluster, *[(steps.talks_nonsense, (data,)) for data in nonsense], (steps.closes_all, ())
    )
    assert [type(result.error) for result in broken] == [WorkerProtocolError] * 3
    assert isinstance(closed.error, StepCrashed)


def test_all_that_is_printed_is_in_the_log_and_a_flood_of_it_is_bounded(tmp_path: Path, cluster: Cluster) -> None:
    flooded, _ = perform(tmp_path, cluster, (steps.prints, (300_000, 100)), (steps.prints_from_everywhere, ()))
    assert flooded.success
    assert len(said[0]) <= 10_001
    assert "more bytes of stdout were not recorded" in said[0][-1].message
    assert {(line.stream, line.message) for line in said[1]} == {
        ("stdout", "from python"),
        ("stderr", "to stderr"),
        ("stdout", "from the descriptor"),
        ("stdout", "from a program"),
        ("stdout", "without an end"),
    }


@pytest.mark.linux
def test_memory_is_bounded_and_measured_and_a_thread_left_behind_keeps_nothing(
    tmp_path: Path, cluster: Cluster
) -> None:
    asked: list[Asked] = [(steps.eats, (10 * 2**30,)), (steps.burns, (200 * 2**20,)), (steps.leaves_a_thread, ())]
    refused, measured, left = perform(tmp_path, cluster, *asked)
    assert type(refused.error) is MemoryError
    assert measured.step_results["burns"].resources_used["peak_rss_bytes"] > 200 * 2**20
    assert left.value == 1


@pytest.mark.linux
@pytest.mark.parametrize("waits", [False, True])
def test_programs_that_a_step_has_started_end_with_the_attempt_or_the_engine(
    tmp_path: Path, cluster: Cluster, waits: bool, gone: Callable[[set[int]], set[int]]
) -> None:
    @pipeline
    async def flow() -> int:
        return await steps.starts.with_options(runtime="dask")(str(tmp_path), True, waits)

    def pids() -> set[int]:
        return {int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")}

    async def main() -> None:
        executors = {"dask": DaskExecutor(cluster.address, grace=0.3)}
        async with asyncio.timeout(LIMIT_S), Engine(tmp_path / "home", executors=executors) as engine:
            handle = await engine.start(flow)
            while len(pids()) < 2:
                await asyncio.sleep(0.01)
            if waits:
                await handle.cancel()
                assert await asyncio.to_thread(gone, pids()) == set()
            else:
                assert await handle == 1

    asyncio.run(main())
    assert len(pids()) == 2
    assert gone(pids()) == set()
