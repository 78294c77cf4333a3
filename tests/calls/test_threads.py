"""Worker threads: daemons that deliver in batches; stuck ones are left behind, replaced, counted and limited."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

import pytest

from treadle import pipeline, step
from treadle._runtime.resources.threads import ThreadPool
from treadle.errors import StepTimeout, ThreadsExhausted


@step
def double(x: int) -> int:
    return 2 * x


class Stuck:
    """A sync step that hangs until it is let go."""

    def __init__(self) -> None:
        self.entered, self.release = threading.Semaphore(0), threading.Event()

        @step(timeout=0.05)
        def stuck(x: int = 0) -> int:
            self.entered.release()
            self.release.wait(20)
            return x

        self.step = stuck


@pytest.fixture
def stuck() -> Any:
    hanging = Stuck()
    yield hanging
    hanging.release.set()


def test_a_stuck_thread_is_left_behind_counted_and_replaced(stage: Any, stuck: Any) -> None:
    @pipeline
    async def runs() -> tuple[str, int]:
        try:
            await stuck.step()
        except StepTimeout as error:
            said = str(error)
        return said, await double(4)

    async def main() -> tuple[Any, ...]:
        async with stage.engine(threads=1) as engine:
            said, value = (await engine.run(runs)).value
            counted = engine.metrics()["threads_abandoned"], engine.metrics()["late_results"]
            stuck.release.set()
            while engine.metrics()["threads_abandoned"]:
                await asyncio.sleep(0.001)
            return said, value, counted, engine.metrics()["late_results"]

    with pytest.raises(ThreadsExhausted):
        stage.drive(main())
    stuck.release.clear()

    async def again() -> tuple[Any, ...]:
        async with stage.engine(threads=2) as engine:
            said, value = (await engine.run(runs)).value
            counted = engine.metrics()["threads_abandoned"], engine.metrics()["late_results"]
            stuck.release.set()
            while engine.metrics()["threads_abandoned"]:
                await asyncio.sleep(0.001)
            return said, value, counted, engine.metrics()["late_results"]

    said, value, counted, late = stage.drive(again())
    assert said.startswith("call stuck took longer than its timeout of 0.05 s")
    assert (value, counted, late) == (8, (1, 0), 1)


def test_when_as_many_threads_are_stuck_as_there_may_be_new_sync_calls_fail(stage: Any, stuck: Any) -> None:
    @pipeline(failure_mode="continue")
    async def runs() -> tuple[list[str], str]:
        timed_out = await asyncio.gather(*[stuck.step.submit(i) for i in range(2)], return_exceptions=True)
        try:
            await double(1)
        except ThreadsExhausted as error:
            return [type(e).__name__ for e in timed_out], str(error)
        return [], ""

    async def main() -> tuple[Any, ...]:
        async with stage.engine(threads=2) as engine:
            result = await engine.run(runs)
            health = engine.health()
            stuck.release.set()
            while engine.metrics()["threads_abandoned"]:
                await asyncio.sleep(0.001)

            @pipeline
            async def later() -> int:
                return await double(3)

            return (*result.value, health["status"], (await engine.run(later)).value, engine.health()["status"])

    timed_out, text, sick, value, healthy = stage.drive(main())
    assert timed_out == ["StepTimeout", "StepTimeout"]
    assert "2 worker threads are stuck" in text
    assert "pass timeouts to what they call" in text
    assert (sick, value, healthy) == ("degraded", 6, "ok")


def test_async_steps_go_on_while_every_thread_is_stuck(stage: Any, stuck: Any) -> None:
    @step
    async def inc(x: int) -> int:
        return x + 1

    @pipeline(failure_mode="continue")
    async def runs() -> int:
        await asyncio.gather(stuck.step.submit(), return_exceptions=True)
        return await inc(1)

    assert stage.value(runs, threads=1) == 2


def test_the_result_of_an_abandoned_thread_is_never_taken_for_the_calls(stage: Any, stuck: Any) -> None:
    """The first attempt hangs and returns late; the second one gives the value."""
    attempts: list[int] = []

    @step(timeout=0.05, retry=1)
    def flaky() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            stuck.release.wait(20)
            return "late"
        stuck.release.set()
        return "second"

    @pipeline
    async def runs() -> str:
        return await flaky()

    result = stage.result(runs, threads=3)
    assert result.value == "second"
    assert result.step_results["flaky"].attempts == 2


def test_a_cancellation_that_races_with_the_end_of_the_body_counts_no_stuck_thread(stage: Any) -> None:
    """Whatever comes first, the pool's count is right afterwards and its only thread works on."""

    @pipeline(failure_mode="continue")
    async def runs() -> int:
        for _ in range(50):
            future = double.submit(1)
            while future.status == "pending":
                await asyncio.sleep(0)
            future.cancel()
            await asyncio.gather(future, return_exceptions=True)
        return 1

    async def main() -> tuple[float, int]:
        async with stage.engine(threads=4) as engine:
            assert (await engine.run(runs)).value == 1
            deadline = time.monotonic() + 10
            while engine.metrics()["threads_abandoned"] and time.monotonic() < deadline:
                await asyncio.sleep(0.001)
            return engine.metrics()["threads_abandoned"], engine.pool._threads

    abandoned, threads = stage.drive(main())
    assert abandoned == 0
    assert 0 <= threads <= 4


def test_no_more_threads_than_allowed_work_at_once(stage: Any) -> None:
    lock = threading.Lock()
    running = peak = 0

    @step
    def busy(x: int) -> int:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        time.sleep(0.001)
        with lock:
            running -= 1
        return x

    @pipeline
    async def runs() -> int:
        return len(await busy.map(range(60)))

    assert stage.value(runs, threads=3) == 60
    assert peak == 3


def test_an_idle_thread_keeps_nothing_of_its_last_job_alive(stage: Any) -> None:
    class Result:
        """Something that can be watched."""

    watched: list[weakref.ref[Any]] = []

    def make() -> Any:
        result = Result()
        watched.append(weakref.ref(result))
        return result

    async def main() -> None:
        pool = ThreadPool(1, asyncio.get_running_loop(), "test")
        await pool.run(make)
        gc.collect()
        deadline = time.monotonic() + 10
        while watched[0]() is not None and time.monotonic() < deadline:
            await asyncio.sleep(0.001)
        assert watched[0]() is None
        pool.close()

    stage.drive(main())


def test_a_job_that_is_abandoned_before_it_started_is_never_started(stage: Any) -> None:
    performed: list[str] = []
    release = threading.Event()

    async def main() -> None:
        pool = ThreadPool(1, asyncio.get_running_loop(), "test")
        pool.start(lambda: release.wait(10), lambda result, error: None)
        second = pool.start(lambda: performed.append("second"), lambda result, error: performed.append("told"))
        pool.abandon(second)
        release.set()
        await pool.run(lambda: performed.append("third"))
        assert (performed, pool.abandoned, pool.late) == (["third"], 0, 0)
        pool.close()

    stage.drive(main())


SCRIPT = """
import asyncio, threading, time
from treadle import Engine, pipeline, step

@step(timeout=0.05)
def stuck():
    threading.Event().wait(600)

@pipeline
async def runs():
    await stuck()

async def main():
    async with Engine("memory://", threads=2) as engine:
        result = await engine.run(runs)
        print(type(result.error).__name__)

asyncio.run(main())
print("end of main")
"""


def test_the_end_of_the_process_does_not_wait_for_stuck_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert done.stdout.split("\n")[:2] == ["StepTimeout", "end of main"], done.stderr
    assert done.returncode == 0
