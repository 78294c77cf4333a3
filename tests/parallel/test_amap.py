"""``amap``: order, a bound, the first error, cancellation, and any kind of items."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from treadle import Engine, amap, current, pipeline, step
from treadle.errors import OptionError


async def double(x: int) -> int:
    return 2 * x


@step
async def stepped(x: int) -> int:
    return x + 1


@pytest.mark.asyncio
async def test_results_come_in_the_order_of_the_items() -> None:
    last = asyncio.Event()

    async def first_ends_last(x: int) -> int:
        if x == 0:
            await last.wait()
        elif x == 3:
            last.set()
        return x

    assert await amap(first_ends_last, range(4), limit=4) == [0, 1, 2, 3]


@pytest.mark.asyncio
async def test_no_more_than_the_limit_are_performed_at_once_and_no_fewer() -> None:
    now, most = 0, 0

    async def count(_: int) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    await amap(count, range(50), limit=7)
    assert most == 7


@pytest.mark.asyncio
async def test_items_are_read_as_places_come_free() -> None:
    read: list[int] = []
    gate = asyncio.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    async def wait(_: int) -> None:
        await gate.wait()

    task = asyncio.create_task(amap(wait, items(), limit=3))
    while len(read) < 3:
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(read) <= 4
    gate.set()
    await task
    assert len(read) == 100


@pytest.mark.asyncio
async def test_no_items_give_an_empty_list() -> None:
    assert await amap(double, []) == []


@pytest.mark.asyncio
async def test_async_iterables_and_steps_are_welcome() -> None:
    async def items() -> AsyncIterator[int]:
        for number in range(5):
            await asyncio.sleep(0)
            yield number

    assert await amap(double, items()) == [0, 2, 4, 6, 8]
    assert await amap(stepped, [1, 2]) == [2, 3]


@pytest.mark.asyncio
async def test_the_first_error_cancels_the_rest_and_waits_for_them() -> None:
    ended: list[int] = []

    async def work(x: int) -> None:
        if x == 2:
            await asyncio.sleep(0)
            raise ValueError("no twos")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(x)

    with pytest.raises(ValueError, match="no twos") as caught:
        await amap(work, range(100), limit=5)
    assert sorted(ended) == [0, 1, 3, 4]
    assert caught.value.__context__ is None


@pytest.mark.asyncio
async def test_an_error_is_not_kept_waiting_by_items_that_never_come() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async def fail(_: int) -> None:
        raise ValueError

    with pytest.raises(ValueError):
        await asyncio.wait_for(amap(fail, items()), 10)


@pytest.mark.asyncio
async def test_an_error_of_the_items_cancels_what_is_under_way() -> None:
    cancelled: list[int] = []

    async def items() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(0)
        raise LookupError

    async def work(x: int) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(x)
            raise

    with pytest.raises(LookupError):
        await amap(work, items())
    assert cancelled == [1]


@pytest.mark.asyncio
async def test_cancelling_it_cancels_every_task_and_goes_through() -> None:
    running, ended = 0, 0

    async def work(_: int) -> None:
        nonlocal running, ended
        running += 1
        try:
            await asyncio.Event().wait()
        finally:
            ended += 1

    task = asyncio.create_task(amap(work, range(100), limit=8))
    while running < 8:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert ended == 8


@pytest.mark.asyncio
async def test_a_second_cancellation_still_waits_for_the_tasks() -> None:
    in_cleanup, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(_: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            in_cleanup.set()
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                await may_end.wait()
            ended.set()

    task = asyncio.create_task(amap(work, [1]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await in_cleanup.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


@pytest.mark.asyncio
async def test_a_function_that_is_cancelled_from_within_ends_it() -> None:
    async def gives_up(_: int) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(amap(gives_up, [1, 2]), 10)


@pytest.mark.asyncio
@pytest.mark.parametrize("limit", [0, -1, 1.5, None, True])
async def test_a_limit_that_makes_no_sense_is_refused(limit: Any) -> None:
    with pytest.raises(OptionError, match="limit"):
        await amap(double, [1], limit=limit)


@pytest.mark.asyncio
async def test_a_function_that_is_not_async_is_sent_to_parallel_map() -> None:
    with pytest.raises(OptionError, match="parallel_map"):
        await amap(str, [1])  # type: ignore[call-overload]  # on purpose


@pytest.mark.asyncio
async def test_in_a_step_its_tasks_belong_to_the_call(home: str) -> None:
    @step
    async def names() -> list[str]:
        async def name(_: int) -> str:
            return current().call

        return await amap(name, range(3))

    @pipeline
    async def run() -> list[str]:
        return await names()

    async with Engine(home):
        assert await run() == ["names"] * 3


@pytest.mark.asyncio
async def test_in_a_pipeline_calls_of_steps_are_tracked(home: str) -> None:
    @pipeline
    async def run() -> list[int]:
        async def call(x: int) -> int:
            return await stepped(x)

        return await amap(call, range(3), limit=2)

    async with Engine(home) as engine:
        result = await engine.run(run)
        assert result.value == [1, 2, 3]
        assert list(result.step_results) == ["stepped", "stepped_2", "stepped_3"]
