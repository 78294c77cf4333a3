"""Who ends a run: attached awaiters, callers, timeouts; and what is left behind of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from treadle import Engine, pipeline, step
from treadle.errors import RunCancelled, RunTimeout

Drive = Callable[[Any], Any]


class Slow:
    """A pipeline with one step that waits for a gate."""

    def __init__(self, **options: Any) -> None:
        self.gate, self.started = asyncio.Event(), asyncio.Event()
        self.cleaned = 0

        @step(name="wait", cache=False)
        async def wait(x: int) -> int:
            self.started.set()
            try:
                await self.gate.wait()
            finally:
                self.cleaned += 1
            return x

        @pipeline(name="slow", **options)
        async def slow(x: int) -> int:
            return await wait(x)

        self.pipeline = slow


def test_a_cancelled_await_cancels_the_run_and_leaves_complete_records(drive: Drive, home: str) -> None:
    async def main() -> None:
        slow = Slow()
        async with Engine(home) as engine:
            task = asyncio.create_task(_awaited(slow.pipeline, 1))
            await slow.started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            (result,) = await engine.runs()
            assert result.status == "cancelled"
            assert result.step_results["wait"].status == "cancelled"
            assert slow.cleaned == 1
            assert isinstance(result.error, RunCancelled)

    drive(main())


async def _awaited(target: Any, *args: Any) -> Any:
    return await target(*args)


@pytest.mark.asyncio
async def test_a_run_with_two_attached_awaiters_ends_with_the_last_of_them(home: str, until: Any) -> None:
    slow = Slow()
    keyed = slow.pipeline.with_options(idempotency_key="k")
    async with Engine(home) as engine:
        first = asyncio.create_task(_awaited(keyed, 1))
        await slow.started.wait()
        second = asyncio.create_task(_awaited(keyed, 1))
        (run,) = engine.runs_here.values()
        await until(lambda: run.attached == 2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await engine.runs())[0].status == "running"
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert (await engine.runs())[0].status == "cancelled"


@pytest.mark.asyncio
async def test_a_cancelled_await_leaves_the_detached_run_going(home: str) -> None:
    slow = Slow()
    async with Engine(home):
        handle = slow.pipeline.start(5)
        awaiting = asyncio.create_task(_finished(handle))
        await slow.started.wait()
        awaiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaiting
        assert handle.status == "running"
        slow.gate.set()
        assert await handle == 5


async def _finished(handle: Any) -> Any:
    return await handle


@pytest.mark.asyncio
async def test_an_attached_awaiter_of_a_detached_run_does_not_take_it_along(home: str, until: Any) -> None:
    slow = Slow()
    keyed = slow.pipeline.with_options(idempotency_key="k")
    async with Engine(home) as engine:
        handle = keyed.start(1)
        await slow.started.wait()
        attached = asyncio.create_task(_awaited(keyed, 1))
        (run,) = engine.runs_here.values()
        await until(lambda: run.attached)
        attached.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attached
        slow.gate.set()
        assert await handle == 1


@pytest.mark.asyncio
async def test_engine_run_is_attached_too(home: str) -> None:
    slow = Slow()
    async with Engine(home) as engine:
        task = asyncio.create_task(engine.run(slow.pipeline, 1))
        await slow.started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await engine.runs())[0].status == "cancelled"


@pytest.mark.asyncio
async def test_a_run_under_wait_for_is_cancelled_when_that_times_out(home: str) -> None:
    slow = Slow()
    async with Engine(home) as engine:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow.pipeline(1), 0.05)
        assert [run.status for run in await engine.runs()] in (["cancelled"], [])


@pytest.mark.asyncio
async def test_handle_cancel_is_in_the_log_when_it_returns_and_awaiting_raises(home: str) -> None:
    slow = Slow()
    async with Engine(home) as engine:
        handle = slow.pipeline.start(1)
        elsewhere = asyncio.create_task(_finished(handle))
        await slow.started.wait()
        await handle.cancel()
        assert (await engine.get_run(handle.id)).status == "cancelled"
        with pytest.raises(RunCancelled, match=handle.id) as caught:
            await elsewhere
        assert caught.value.run_id == handle.id
        assert (await handle.wait()).status == "cancelled"
        with pytest.raises(RunCancelled):
            await handle
        await handle.cancel()
        assert (await engine.get_run(handle.id)).status == "cancelled"


@pytest.mark.asyncio
async def test_engine_cancel_ends_a_run_by_its_id(home: str) -> None:
    slow = Slow()
    async with Engine(home) as engine:
        handle = await engine.start(slow.pipeline, 1)
        await slow.started.wait()
        await engine.cancel(handle.id)
        assert (await engine.get_run(handle.id)).status == "cancelled"
        with pytest.raises(RunCancelled):
            await handle


@pytest.mark.asyncio
async def test_cancelling_keeps_what_has_succeeded_and_marks_the_rest(home: str) -> None:
    gate, started = asyncio.Event(), asyncio.Event()

    @step
    async def quick(x: int) -> int:
        return x

    @step
    async def stuck(x: int) -> int:
        started.set()
        await gate.wait()
        return x

    @pipeline
    async def three() -> int:
        await quick(1)
        future = stuck.submit(2)
        return await quick(future)

    async with Engine(home) as engine:
        handle = three.start()
        await started.wait()
        await handle.cancel()
        result = await engine.get_run(handle.id)
        assert {name: call.status for name, call in result.step_results.items()} == {
            "quick": "succeeded", "stuck": "cancelled", "quick_2": "cancelled",
        }  # fmt: skip
        assert result.outputs["quick"] == 1


@pytest.mark.asyncio
async def test_a_pipeline_that_cancels_its_own_call_is_cancelled(home: str) -> None:
    slow = Slow()

    @step
    async def forever(x: int) -> int:
        await slow.gate.wait()
        return x

    @pipeline
    async def regrets() -> int:
        future = forever.submit(1)
        future.cancel()
        return await future

    async with Engine(home) as engine:
        result = await engine.run(regrets)
        assert result.status == "cancelled"
        assert isinstance(result.error, RunCancelled)


@pytest.mark.asyncio
async def test_a_run_goes_on_when_its_pipeline_copes_with_a_cancelled_call(home: str) -> None:
    slow = Slow()

    @step
    async def forever(x: int) -> int:
        await slow.gate.wait()
        return x

    @pipeline
    async def copes() -> str:
        future = forever.submit(1)
        await asyncio.sleep(0)
        future.cancel()
        try:
            await future
        except asyncio.CancelledError:
            return "coped"
        return "not cancelled"

    async with Engine(home) as engine:
        result = await engine.run(copes)
        assert (result.status, result.value) == ("succeeded", "coped")
        assert result.step_results["forever"].status == "cancelled"


@pytest.mark.asyncio
async def test_an_async_pipelines_cleanup_is_awaited_before_the_run_is_over(home: str) -> None:
    slow = Slow()
    seen: list[str] = []

    @step
    async def forever() -> None:
        slow.started.set()
        await slow.gate.wait()

    @pipeline
    async def tidy() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            seen.append("tidied")

    async with Engine(home) as engine:
        handle = tidy.start()
        await slow.started.wait()
        await handle.cancel()
        assert seen == ["tidied"]
        assert (await engine.get_run(handle.id)).status == "cancelled"


# -- def pipelines ------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_cancelled_def_pipeline_gets_the_cancellation_from_its_next_step_call(home: str) -> None:
    in_function, go_on, seen = threading.Event(), threading.Event(), []
    over = threading.Event()
    performed: list[int] = []

    @step
    def note(x: int) -> int:
        performed.append(x)
        return x

    @pipeline
    def sync() -> int:
        in_function.set()
        go_on.wait(10)
        try:
            return note(1)
        except BaseException as error:
            seen.append(type(error))
            raise
        finally:
            over.set()

    async with Engine(home) as engine:
        handle = sync.start()
        await asyncio.to_thread(in_function.wait, 10)
        await handle.cancel()
        assert (await engine.get_run(handle.id)).status == "cancelled"
        go_on.set()
        await asyncio.to_thread(over.wait, 10)
        assert seen == [asyncio.CancelledError]
        assert performed == []


@pytest.mark.asyncio
async def test_a_def_pipeline_that_waits_for_a_call_is_cancelled_in_that_wait(home: str) -> None:
    slow = Slow()
    seen: list[Any] = []

    @step
    async def forever() -> None:
        slow.started.set()
        await slow.gate.wait()

    @pipeline
    def sync() -> None:
        try:
            forever()
        except BaseException as error:
            seen.append(type(error))
            raise

    async with Engine(home) as engine:
        handle = sync.start()
        await slow.started.wait()
        await handle.cancel()
        assert (await engine.get_run(handle.id)).status == "cancelled"
        assert seen == [asyncio.CancelledError]


@pytest.mark.asyncio
async def test_a_timed_out_def_pipeline_gets_the_cancellation_from_its_next_step_call(home: str) -> None:
    go_on, over, seen = threading.Event(), threading.Event(), []

    @step
    def note(x: int) -> int:
        return x

    @pipeline(timeout=0.1)
    def sync() -> int:
        go_on.wait(10)
        try:
            return note.submit(1).result()
        except BaseException as error:
            seen.append(type(error))
            raise
        finally:
            over.set()

    async with Engine(home) as engine:
        result = await engine.run(sync)
        assert isinstance(result.error, RunTimeout)
        go_on.set()
        await asyncio.to_thread(over.wait, 10)
        assert seen == [asyncio.CancelledError]


# -- run timeouts -------------------------------------------------------------------------


def test_a_run_that_times_out_is_failed_with_run_timeout(drive: Drive, home: str) -> None:
    async def main() -> None:
        slow = Slow(timeout=0.1)
        async with Engine(home) as engine:
            begun = time.monotonic()
            with pytest.raises(RunTimeout, match=r"0\.1 s") as caught:
                await slow.pipeline(1)
            assert time.monotonic() - begun < 0.1 + 0.5
            assert isinstance(caught.value, TimeoutError)
            assert caught.value.timeout_s == 0.1
            (result,) = await engine.runs()
            assert result.status == "failed"
            assert isinstance(result.error, RunTimeout)
            assert result.step_results["wait"].status == "cancelled"

    drive(main())


@pytest.mark.asyncio
async def test_a_pipeline_that_swallows_its_timeout_is_left_behind(home: str) -> None:
    release = asyncio.Event()

    @pipeline(timeout=0.1)
    async def stubborn() -> str:
        while not release.is_set():
            try:
                await asyncio.wait_for(release.wait(), 5)
            except asyncio.CancelledError:
                continue
        return "late"

    async with Engine(home) as engine:
        begun = time.monotonic()
        result = await engine.run(stubborn)
        assert time.monotonic() - begun < 0.1 + 0.5
        assert isinstance(result.error, RunTimeout)
        assert engine.metrics()["bodies_abandoned"] == 1
        release.set()


@pytest.mark.asyncio
async def test_a_timeout_given_as_text_or_by_with_options_counts(home: str) -> None:
    slow = Slow(timeout="1h")
    async with Engine(home) as engine:
        result = await engine.run(slow.pipeline.with_options(timeout="50ms"), 1)
        assert isinstance(result.error, RunTimeout)
        assert result.error.timeout_s == 0.05


@pytest.mark.asyncio
async def test_a_timeout_also_ends_a_run_whose_function_has_returned(home: str) -> None:
    slow = Slow()

    @step
    async def forever() -> None:
        await slow.gate.wait()

    @pipeline(timeout=0.1)
    async def early() -> str:
        forever.submit()
        return "returned"

    async with Engine(home) as engine:
        assert isinstance((await engine.run(early)).error, RunTimeout)
