"""``treadle.current()`` and context variables: what a body knows of its call, and what it sees of its submitter."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from typing import Any

import pytest

from treadle import EncodeError, Retry, current, pipeline, step

request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")


def facts() -> tuple[str, str, int]:
    here = current()
    return here.run_id, here.call, here.attempt


@step
async def on_loop(x: int = 0) -> Any:
    return facts()


@step
def on_thread(x: int = 0) -> Any:
    return facts()


def test_a_body_knows_its_run_call_and_attempt_on_loop_and_thread(stage: Any) -> None:
    @pipeline
    async def asks() -> list[Any]:
        return [await on_loop(), await on_thread(), await on_thread(1), *await on_loop.map([5])]

    result = stage.result(asks)
    names = ["on_loop", "on_thread", "on_thread_2", "on_loop_2[0]"]
    assert result.value == [(result.run_id, name, 1) for name in names]


def test_it_crosses_to_tasks_and_threads_that_a_body_starts(stage: Any) -> None:
    @step
    async def starts() -> list[str]:
        async def inner() -> str:
            return current().call

        return [await asyncio.create_task(inner()), await asyncio.to_thread(lambda: current().call)]

    @pipeline
    async def asks() -> list[str]:
        return await starts()

    assert stage.value(asks) == ["starts", "starts"]


def test_the_token_is_the_same_for_all_attempts_and_differs_between_calls_and_runs(stage: Any) -> None:
    tokens: list[str] = []
    attempts: list[int] = []

    @step(retry=Retry(max_attempts=3, delay=0))
    async def flaky(x: int) -> str:
        tokens.append(current().token)
        attempts.append(current().attempt)
        if len(tokens) < 3:
            raise ValueError("again")
        return current().token

    @pipeline
    async def asks() -> list[str]:
        return [await flaky(1), await flaky(2)]

    async def main() -> tuple[list[str], list[str]]:
        async with stage.engine() as engine:
            return (await engine.run(asks)).value, (await engine.run(asks)).value

    first, second = stage.drive(main())
    assert len(set(tokens[:3])) == 1
    assert attempts[:4] == [1, 2, 3, 1]
    assert len({*first, *second}) == 4


def test_the_deadline_is_the_end_of_this_attempt(stage: Any) -> None:
    @step(timeout=30)
    async def limited() -> float | None:
        return current().deadline

    @step
    def unlimited() -> float | None:
        return current().deadline

    @pipeline
    async def asks() -> tuple[float | None, float | None, float]:
        before = time.time()
        return await limited(), await unlimited(), before

    deadline, none, before = stage.value(asks)
    assert before + 30 <= deadline <= time.time() + 30
    assert none is None


def test_logged_metadata_and_progress_are_in_the_result_and_the_log(stage: Any) -> None:
    @step
    async def measures() -> None:
        current().log_metadata(rows=3, source="a")
        current().log_metadata(rows=4, nested={"k": [1, 2]})
        current().progress(1, 2)

    @step
    def measures_on_a_thread() -> None:
        current().log_metadata(thread=True)
        current().progress(0.5)

    @pipeline
    async def runs() -> None:
        await measures()
        await measures_on_a_thread()

    async def main() -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
        async with stage.engine() as engine:
            result = await engine.run(runs)
            steps = result.step_results
            events = [event async for event in engine.events(result.run_id)]
            done = [(e.call, e.done, e.total) for e in events if e.kind == "Progressed"]  # type: ignore[attr-defined]
            return steps["measures"].metadata, steps["measures_on_a_thread"].metadata, done

    first, second, done = stage.drive(main())
    assert first == {"rows": 4, "source": "a", "nested": {"k": [1, 2]}}
    assert second == {"thread": True}
    assert done == [("measures", 1, 2), ("measures_on_a_thread", 0.5, None)]


def test_metadata_that_is_no_plain_data_is_refused(stage: Any) -> None:
    @step
    async def measures() -> str:
        try:
            current().log_metadata(lock=threading.Lock())
        except EncodeError as error:
            return error.fix
        return ""

    @pipeline
    async def runs() -> str:
        return await measures()

    assert stage.value(runs) == "pass numbers, texts, lists and dicts"


def test_what_a_body_says_after_its_call_has_ended_is_dropped(stage: Any) -> None:
    entered, release, said = threading.Event(), threading.Event(), threading.Event()

    @step
    def late() -> None:
        here = current()
        entered.set()
        release.wait(10)
        here.log_metadata(late=True)
        here.progress(1)
        said.set()

    @pipeline
    async def runs() -> None:
        future = late.submit()
        await asyncio.to_thread(entered.wait, 10)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        release.set()
        await asyncio.to_thread(said.wait, 10)

    result = stage.result(runs)
    assert result.success
    assert result.step_results["late"].metadata == {}


# -- context variables --------------------------------------------------------------------


@step
async def sees(x: int = 0) -> str:
    return request.get()


@step
def sees_on_a_thread(x: int = 0) -> str:
    return request.get()


def test_context_variables_are_captured_at_submit(stage: Any) -> None:
    @pipeline
    async def sets() -> list[str]:
        seen = []
        for name in ("one", "two"):
            request.set(name)
            seen += [sees.submit(), sees_on_a_thread.submit(), *sees.map([1])]
        request.set("later")
        return [*await asyncio.gather(*seen), await sees(), await sees_on_a_thread()]

    assert stage.value(sets) == ["one", "one", "one", "two", "two", "two", "later", "later"]


def test_the_callers_context_reaches_the_run_and_its_steps(stage: Any) -> None:
    @pipeline
    async def asks() -> list[str]:
        return [request.get(), await sees(), await sees_on_a_thread()]

    @pipeline
    def script() -> list[str]:
        request.set("script " + request.get())
        return [request.get(), sees(), sees_on_a_thread.submit().result(), *sees.map([1]).result()]

    async def main() -> tuple[Any, Any]:
        async with stage.engine() as engine:
            request.set("r1")
            return (await engine.run(asks)).value, (await engine.run(script)).value

    asked, scripted = stage.drive(main())
    assert asked == ["r1"] * 3
    assert scripted == ["script r1"] * 4


def test_what_a_body_sets_does_not_leak_back_or_to_other_calls(stage: Any) -> None:
    @step
    async def sets(x: int) -> str:
        before = request.get()
        request.set(f"body {x}")
        return before

    @step
    def sets_on_a_thread(x: int) -> str:
        before = request.get()
        request.set(f"thread {x}")
        return before

    @pipeline(max_concurrency=1)
    async def runs() -> list[str]:
        request.set("mine")
        return [*await sets.map(range(3)), *await sets_on_a_thread.map(range(3)), await sets(9), request.get()]

    assert stage.value(runs, threads=1) == ["mine"] * 8
