"""``await m.settled()``: a result for every item, whatever became of it; and ``.unpack()``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from treadle import Engine, StepResult, on_failure, pipeline, step, when
from treadle.testing import memory_engine

Until = Callable[[Callable[[], object]], Awaitable[None]]


@step(cache=False)
@when(lambda kind: kind != "skip")
@on_failure(lambda kind, error=None: _fall_back(kind))
async def varied(kind: str) -> str:
    if kind in ("fail", "fall"):
        raise ValueError(kind)
    if kind == "wait":
        await asyncio.Event().wait()
    return kind


def _fall_back(kind: str) -> str:
    if kind == "fail":
        raise LookupError(kind)
    return "fallen"


@step(cache=False)
async def needs(x: Any) -> Any:
    return x


@pytest.mark.parametrize("mode", ["fail_fast", "stop", "continue"])
@pytest.mark.asyncio
async def test_there_is_one_result_per_item_in_order_and_failures_count_as_handled(home: str, mode: str) -> None:
    found: list[StepResult] = []

    @pipeline(failure_mode=mode)  # type: ignore[call-overload, untyped-decorator]
    async def settles() -> list[str]:
        first = varied.map(["ok", "fail", "skip", "fall", "ok"])
        second = needs.map(first)
        found.extend(await first.settled())
        found.extend(await second.settled())
        return [result.status for result in found]

    async with Engine(home) as engine:
        result = await engine.run(settles)
        assert result.status == "succeeded"
        assert result.value[:5] == ["succeeded", "failed", "skipped", "succeeded", "succeeded"]
        assert result.value[5:] == ["succeeded", "skipped", "skipped", "succeeded", "succeeded"]
        assert [call.name for call in found] == [f"{name}[{i}]" for name in ("varied", "needs") for i in range(5)]
        assert isinstance(found[1].error, LookupError)
        assert [call.skip_reason for call in found[5:]] == [None, "upstream", "condition", None, None]
        assert [call.success for call in found[:5]] == [True, False, True, True, True]
        assert [call.fallback for call in found[:5]] == [False, False, False, True, False]
        assert [call.outputs.get("varied") for call in found[:5]] == ["ok", None, None, "fallen", "ok"]


@pytest.mark.asyncio
async def test_cancelled_items_have_results_too(until: Until) -> None:
    @pipeline(failure_mode="continue")
    async def settles() -> list[str]:
        items = varied.map(["ok", "wait", "skip"])
        await until(lambda: items[1].status == "running")
        items[1].cancel()
        return [result.status for result in await items.settled()]

    async with memory_engine() as engine:
        assert (await engine.run(settles)).value == ["succeeded", "cancelled", "skipped"]


@pytest.mark.asyncio
async def test_a_cancelled_map_settles(until: Until) -> None:
    @pipeline(failure_mode="continue")
    async def settles() -> list[str]:
        items = varied.map(["wait"] * 3)
        await until(lambda: items[2].status == "running")
        items.cancel()
        return [result.status for result in await items.settled()]

    async with memory_engine() as engine:
        assert (await engine.run(settles)).value == ["cancelled"] * 3


@pytest.mark.asyncio
async def test_no_items_settle_as_nothing_and_so_does_an_input_without_a_length() -> None:
    async def kinds() -> Any:
        for kind in ("ok", "fail", "skip"):
            yield kind

    @pipeline
    async def settles() -> Any:
        empty = await varied.map([]).settled()
        return empty, [result.status for result in await varied.map(kinds()).settled()]

    async with memory_engine() as engine:
        assert (await engine.run(settles)).value == ([], ["succeeded", "failed", "skipped"])


@pytest.mark.asyncio
async def test_several_outputs_unpack_into_one_list_of_futures_each() -> None:
    @step(outputs=["left", "right"], cache=False)
    @when(lambda x: x > 0)
    async def halves(x: int) -> tuple[int, int]:
        return x, -x

    @pipeline
    async def unpacks() -> Any:
        left, right = halves.map([1, 0, 2]).unpack()
        return [await needs.submit(left), [await future for future in right], [future.status for future in left]]

    async with memory_engine() as engine:
        assert (await engine.run(unpacks)).value == [
            [1, None, 2],
            [-1, None, -2],
            ["succeeded", "skipped", "succeeded"],
        ]
