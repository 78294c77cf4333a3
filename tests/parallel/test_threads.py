"""``parallel_map`` on threads: order, errors, bounds, context, and its place inside of steps."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from treadle import Engine, current, parallel_map, pipeline, step
from treadle.errors import OptionError, RunInsideLoop, TreadleError

COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


def square(x: int) -> int:
    return x * x


@step
def stepped(x: int) -> int:
    return x + 1


@step
async def async_step(x: int) -> int:
    return x


async def double(x: int) -> int:
    return 2 * x


def test_results_come_in_the_order_of_the_items_not_of_their_ends() -> None:
    last_is_done = threading.Event()

    def first_ends_last(x: int) -> int:
        if x == 3:
            last_is_done.set()
        elif x == 0:
            assert last_is_done.wait(10)
        return 10 * x

    assert parallel_map(first_ends_last, [0, 1, 2, 3], num_workers=2) == [0, 10, 20, 30]


def test_as_many_items_are_performed_at_once_as_there_are_workers() -> None:
    meeting = threading.Barrier(4, timeout=10)
    assert parallel_map(lambda x: (meeting.wait(), x)[1], range(8), num_workers=4) == list(range(8))


def test_no_more_items_are_performed_at_once_than_there_are_workers() -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def count(_: int) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        threading.Event().wait(0.001)
        with lock:
            now[0] -= 1

    parallel_map(count, range(50), num_workers=3)
    assert 1 < most[0] <= 3


def test_no_items_give_an_empty_list_and_start_no_thread() -> None:
    before = threading.active_count()
    assert parallel_map(square, []) == []
    assert threading.active_count() == before


def test_one_worker_goes_through_the_items_one_by_one() -> None:
    seen: list[int] = []
    parallel_map(seen.append, range(20), num_workers=1)
    assert seen == list(range(20))


def test_any_iterable_will_do_and_is_read_only_a_little_ahead() -> None:
    read: list[int] = []
    done: list[int] = []
    ahead: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            ahead.append(len(read) - len(done))
            yield number

    assert parallel_map(lambda x: (done.append(x), x)[1], items(), num_workers=2) == list(range(100))
    assert max(ahead) <= 6


def test_items_are_read_in_the_calling_thread() -> None:
    threads: set[int] = set()

    def items() -> Iterator[int]:
        for number in range(5):
            threads.add(threading.get_ident())
            yield number

    parallel_map(square, items())
    assert threads == {threading.get_ident()}


def test_the_first_error_is_raised_and_what_was_not_begun_never_is() -> None:
    begun: list[int] = []

    def fail(x: int) -> int:
        begun.append(x)
        if x == 2:
            raise ValueError("no twos")
        return x

    with pytest.raises(ValueError, match="no twos") as caught:
        parallel_map(fail, range(1000), num_workers=2)
    assert len(begun) < 20
    assert any("item 2" in note for note in caught.value.__notes__)
    assert "fail" in {frame.name for frame in caught.traceback}


def test_of_several_errors_the_one_raised_first_in_time_is_raised() -> None:
    second_failed = threading.Event()

    def fail(x: int) -> None:
        if x == 0:
            assert second_failed.wait(10)
            threading.Event().wait(0.05)
            raise ValueError("item 0")
        second_failed.set()
        raise KeyError("item 1")

    with pytest.raises(KeyError):
        parallel_map(fail, [0, 1], num_workers=2)


def test_items_that_were_begun_have_ended_when_the_error_is_raised() -> None:
    is_in, ended = threading.Event(), threading.Event()

    def work(x: int) -> None:
        if x == 0:
            is_in.set()
            threading.Event().wait(0.05)
            ended.set()
        else:
            assert is_in.wait(10)
            raise ValueError

    with pytest.raises(ValueError):
        parallel_map(work, [0, 1], num_workers=2)
    assert ended.is_set()


def test_an_error_of_the_iterable_is_raised_like_one_of_the_function() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("the file ended")

    with pytest.raises(LookupError, match="the file ended"):
        parallel_map(square, items())


def test_system_exit_of_the_function_reaches_the_caller() -> None:
    with pytest.raises(SystemExit):
        parallel_map(lambda _: exit_now(), range(5))


def exit_now() -> None:
    raise SystemExit(3)


def test_threads_end_with_the_call() -> None:
    before = set(threading.enumerate())
    parallel_map(square, range(100), num_workers=8)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
        assert thread.daemon


def test_an_error_leaves_no_circle_of_references() -> None:
    class Item:
        pass

    def fail(_: Item) -> None:
        raise ValueError

    def use() -> weakref.ref[Item]:
        item = Item()
        with pytest.raises(ValueError):
            parallel_map(fail, [item])
        return weakref.ref(item)

    found = use()
    gc.collect()
    assert found() is None


def test_context_variables_are_carried_and_changes_stay_with_their_item() -> None:
    COLOUR.set("red")

    def look(x: int) -> str:
        seen = COLOUR.get()
        COLOUR.set(str(x))
        return seen

    assert parallel_map(look, range(10), num_workers=2) == ["red"] * 10
    assert COLOUR.get() == "red"


def test_it_nests() -> None:
    def rows(x: int) -> list[int]:
        return parallel_map(lambda y: x * y, range(4), num_workers=2)

    assert parallel_map(rows, range(4), num_workers=2) == [[x * y for y in range(4)] for x in range(4)]


def test_a_step_stands_for_its_plain_function() -> None:
    assert parallel_map(stepped, [1, 2]) == [2, 3]


@pytest.mark.parametrize("number", [0, -1, 1.5, "4", None, True])
def test_a_number_of_workers_that_makes_no_sense_is_refused(number: Any) -> None:
    with pytest.raises(OptionError, match="num_workers"):
        parallel_map(square, [1], num_workers=number)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(OptionError, match="backend"):
        parallel_map(square, [1], backend="fibre")  # type: ignore[call-overload]  # on purpose


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(OptionError, match="not a function"):
        parallel_map([1], square)  # type: ignore[call-overload]  # on purpose


@pytest.mark.parametrize("f", [double, async_step, lambda x: double(x)])
def test_an_async_function_is_sent_to_amap(f: Any) -> None:
    with pytest.raises(OptionError, match="amap"):
        parallel_map(f, [1])


# -- inside of runs -------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_step_with_every_thread_of_the_engine_taken_still_gets_its_own(home: str) -> None:
    meeting = threading.Barrier(2, timeout=10)

    @step(cache=False)
    def fan_out(x: int) -> list[int]:
        meeting.wait()
        return parallel_map(lambda y: parallel_map(square, [x, y])[1], range(10), num_workers=3)

    @pipeline
    async def both() -> list[list[int]]:
        return await fan_out.map([1, 2])

    async with Engine(home, threads=2):
        assert await asyncio.wait_for(both(), 20) == [[y * y for y in range(10)]] * 2


@pytest.mark.asyncio
async def test_functions_know_the_call_that_they_work_for(home: str) -> None:
    @step
    def names() -> list[str]:
        return parallel_map(lambda _: current().call, range(3))

    @pipeline
    async def ask() -> list[str]:
        return await names()

    async with Engine(home):
        assert await ask() == ["names"] * 3


@pytest.mark.asyncio
async def test_steps_called_by_the_function_are_plain_in_a_step(home: str) -> None:
    @step
    def outer() -> list[int]:
        return parallel_map(lambda x: stepped(x), [1, 2])

    @pipeline
    async def run() -> list[int]:
        return await outer()

    async with Engine(home) as engine:
        result = await engine.run(run)
        assert result.value == [2, 3]
        assert list(result.step_results) == ["outer"]


def test_a_def_pipeline_may_use_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))

    @pipeline
    def run() -> list[int]:
        return parallel_map(square, [stepped(1), stepped(2)])

    assert run.run().value == [4, 9]


@pytest.mark.asyncio
async def test_the_error_of_an_item_fails_the_step_as_itself(home: str) -> None:
    @step
    def fails() -> None:
        parallel_map(lambda x: 1 // x, [1, 0])

    @pipeline
    async def run() -> None:
        await fails()

    async with Engine(home):
        with pytest.raises(ZeroDivisionError):
            await run()


@pytest.mark.asyncio
async def test_a_cancelled_step_begins_no_more_items(home: str) -> None:
    loop = asyncio.get_running_loop()
    is_in, may_go, over = asyncio.Event(), threading.Event(), asyncio.Event()
    begun: list[int] = []
    error: list[BaseException] = []

    def item(x: int) -> None:
        begun.append(x)
        loop.call_soon_threadsafe(is_in.set)
        assert may_go.wait(10)

    @step
    def long() -> None:
        try:
            parallel_map(item, range(100), num_workers=2)
        except BaseException as caught:
            error.append(caught)
            raise
        finally:
            loop.call_soon_threadsafe(over.set)

    @pipeline
    async def run() -> None:
        await long()

    async with Engine(home):
        task = asyncio.create_task(run())
        await is_in.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(over.wait(), 10)
        assert isinstance(error[0], asyncio.CancelledError)
        may_go.set()
    assert len(begun) <= 2


@pytest.mark.asyncio
async def test_a_step_that_times_out_begins_no_more_items(home: str) -> None:
    loop = asyncio.get_running_loop()
    over, may_go = asyncio.Event(), threading.Event()

    @step(timeout=0.05)
    def long() -> None:
        try:
            parallel_map(lambda _: may_go.wait(10), range(100))
        finally:
            loop.call_soon_threadsafe(over.set)

    @pipeline
    async def run() -> None:
        await long()

    async with Engine(home):
        with pytest.raises(TimeoutError):
            await run()
        await asyncio.wait_for(over.wait(), 10)
        may_go.set()


@pytest.mark.asyncio
async def test_it_refuses_to_block_the_loop_of_a_run(home: str) -> None:
    @step
    async def blocks() -> list[int]:
        return parallel_map(square, [1])

    @pipeline
    async def in_step() -> list[int]:
        return await blocks()

    @pipeline
    async def in_pipeline() -> list[int]:
        return parallel_map(square, [1])

    async with Engine(home):
        for refused in (in_step, in_pipeline):
            with pytest.raises(RunInsideLoop, match="amap") as caught:
                await refused()
            assert isinstance(caught.value, TreadleError)


@pytest.mark.asyncio
async def test_in_a_debugged_run_the_items_are_performed_one_by_one_in_the_same_thread(home: str) -> None:
    threads: list[int] = []

    @step
    def fan_out() -> list[int]:
        def item(x: int) -> int:
            threads.append(threading.get_ident())
            return x

        return parallel_map(item, range(4), num_workers=4)

    @pipeline
    async def run() -> list[int]:
        return await fan_out()

    async with Engine(home):
        assert await run.with_options(debug=True)() == [0, 1, 2, 3]
    assert set(threads) == {threading.get_ident()}
