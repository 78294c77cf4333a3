"""What a call used is on its result, wherever that is read."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from treadle import Engine, Retry, RunResult, pipeline, step
from treadle.testing import memory_engine


def burn(seconds: float) -> None:
    """Use the CPU of this thread for so long, however busy the machine is."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


@step(resources={"cpu": 1, "memory": "1Mi"})
def busy(x: int) -> int:
    burn(0.02)
    return x


@step(resources={"cpu": 1, "memory": "1Mi"})
async def on_loop(x: int) -> int:
    burn(0.02)
    return x


@step(cache=False)
def plain(x: int) -> int:
    burn(0.01)
    return x


@pipeline
async def work() -> int:
    return await busy(1) + await on_loop(1) + await plain(1)


@pytest.mark.asyncio
async def test_cpu_seconds_and_peak_memory_are_on_the_result_and_in_the_log(home: str) -> None:
    def check(result: RunResult[Any]) -> None:
        used = {name: call.resources_used for name, call in result.step_results.items()}
        assert used["busy"]["cpu_seconds"] is not None
        assert 0.02 <= used["busy"]["cpu_seconds"] < 5
        assert used["on_loop"]["cpu_seconds"] is None, "the loop's thread is shared"
        assert used["plain"]["cpu_seconds"] is not None
        assert used["plain"]["cpu_seconds"] >= 0.01
        assert used["plain"]["peak_rss_bytes"] is None, "it names no resources"
        for name in ("busy", "on_loop"):
            peak = used[name]["peak_rss_bytes"]
            assert peak is not None
            assert 2**20 < peak < 2**40

    async with Engine(home) as engine:
        result = await engine.run(work)
        check(result)
    async with Engine(home) as engine:  # as another process would read it
        check(await engine.get_run(result.run_id))


@pytest.mark.asyncio
async def test_a_call_that_the_cache_had_used_nothing(place: str) -> None:
    async with Engine(place) as engine:
        await engine.run(work)
        result = await engine.run(work)
    assert result.step_results["busy"].status == "cached"
    assert result.step_results["busy"].resources_used == {"peak_rss_bytes": None, "cpu_seconds": None}


@pytest.mark.linux
@pytest.mark.asyncio
async def test_the_peak_is_that_of_the_attempt_and_not_of_what_ran_before() -> None:
    size = 200 * 2**20

    @step(resources={"memory": "300Mi"}, cache=False, persist=False)
    def large() -> None:
        bytearray(b"x") * size

    @step(resources={"memory": "1Mi"}, cache=False, persist=False)
    def small() -> None:
        return None

    @pipeline
    async def one_after_the_other() -> None:
        await small()
        await large()
        await small()

    Path("/proc/self/clear_refs").write_text("5")  # or what other tests took may be more than this one's peak
    async with memory_engine() as engine:
        result = await engine.run(one_after_the_other)
    before, most, after = [call.resources_used["peak_rss_bytes"] or 0 for call in result.step_results.values()]
    assert most >= before + size // 2
    assert after <= most - size // 2


@pytest.mark.asyncio
async def test_attempts_add_up_and_a_failed_call_has_used_something_too(place: str) -> None:
    @step(resources={"memory": "1Mi"}, retry=Retry(3, delay=0), cache=False)
    def failing() -> None:
        burn(0.01)
        raise ConnectionError

    @pipeline
    async def run() -> None:
        await failing()

    async with Engine(place) as engine:
        result = await engine.run(run)
        assert isinstance(result.error, ConnectionError)
    used = result.step_results["failing"].resources_used
    assert used["cpu_seconds"] is not None
    assert used["cpu_seconds"] >= 0.03
    assert used["peak_rss_bytes"]


@pytest.mark.asyncio
async def test_a_call_that_never_began_has_used_nothing(place: str) -> None:
    @step(resources={"cpu": 1})
    def broken(x: int) -> int:
        raise ValueError

    @pipeline
    async def run() -> None:
        busy.submit(broken.submit(1))

    async with Engine(place) as engine:
        result = await engine.run(run.with_options(failure_mode="continue"))
        assert not result.success
    assert result.step_results["busy"].resources_used == {"peak_rss_bytes": None, "cpu_seconds": None}


@pytest.mark.asyncio
async def test_another_thread_s_time_is_not_counted(until: Any) -> None:
    import threading

    begun, end = threading.Event(), threading.Event()

    @step(cache=False)
    def waiting() -> None:
        begun.set()
        end.wait(20)

    @step(cache=False)
    def burning() -> None:
        begun.wait(20)
        burn(0.2)
        end.set()

    @pipeline
    async def both() -> None:
        await asyncio.gather(waiting(), burning())

    async with memory_engine() as engine:
        result = await engine.run(both)
    used = {name: call.resources_used["cpu_seconds"] or 0.0 for name, call in result.step_results.items()}
    assert used["burning"] >= 0.2
    assert used["waiting"] < 0.1
