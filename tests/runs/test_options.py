"""Which level decides: the call over the step over the pipeline over the engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from treadle import CachePolicy, Engine, Retry, pipeline, step
from treadle.errors import OptionError


class Counted:
    """A step that fails until it has made enough attempts, with options of its own."""

    def __init__(self, **options: Any) -> None:
        self.attempts = 0

        @step(name="counted", cache=False, **options)
        async def counted() -> None:
            self.attempts += 1
            raise ValueError("no")

        self.step = counted


def once(n: int) -> Retry:
    return Retry(max_attempts=n, delay=0)


@pytest.mark.parametrize(
    ("engine", "of_pipeline", "of_step", "of_call", "attempts"),
    [
        (None, None, None, None, 1),
        (once(2), None, None, None, 2),
        (once(2), once(3), None, None, 3),
        (once(2), once(3), once(4), None, 4),
        (once(2), once(3), once(4), once(5), 5),
        (once(5), None, 0, None, 1),
        (once(5), 0, None, None, 1),
        (None, None, once(4), 0, 1),
    ],
)
@pytest.mark.asyncio
async def test_retries_are_decided_by_the_nearest_level(
    home: str, engine: Any, of_pipeline: Any, of_step: Any, of_call: Any, attempts: int
) -> None:
    counted = Counted(**({} if of_step is None else {"retry": of_step}))

    @pipeline
    async def one() -> None:
        await (counted.step if of_call is None else counted.step.with_options(retry=of_call))()

    target = one if of_pipeline is None else one.with_options(retry=of_pipeline)
    async with Engine(home, retry=engine) as opened:
        assert (await opened.run(target)).status == "failed"
    assert counted.attempts == attempts


@pytest.mark.parametrize(
    ("engine", "of_pipeline", "of_step", "of_call", "is_cached"),
    [
        (None, None, None, None, True),
        (False, None, None, None, False),
        (False, True, None, None, True),
        (True, False, None, None, False),
        (False, False, "input_hash", None, True),
        (True, True, False, None, False),
        (False, False, False, CachePolicy(), True),
        (True, True, True, False, False),
    ],
)
@pytest.mark.asyncio
async def test_caching_is_decided_by_the_nearest_level(
    home: str, engine: Any, of_pipeline: Any, of_step: Any, of_call: Any, is_cached: bool
) -> None:
    options = {} if of_step is None else {"cache": of_step}

    @step(**options)
    async def one_step() -> int:
        return 1

    @pipeline
    async def one() -> int:
        return await (one_step if of_call is None else one_step.with_options(cache=of_call))()

    target = one if of_pipeline is None else one.with_options(cache=of_pipeline)
    async with Engine(home, cache=engine) as opened:
        await opened.run(target)
        assert (await opened.run(target)).step_results["one_step"].cached is is_cached


@pytest.mark.asyncio
async def test_the_decorators_own_defaults_hold_for_the_steps_of_a_pipeline(home: str) -> None:
    counted = Counted()

    @pipeline(retry=once(3), cache=False)
    async def one() -> None:
        await counted.step()

    async with Engine(home) as engine:
        assert (await engine.run(one)).status == "failed"
    assert counted.attempts == 3


@pytest.mark.asyncio
async def test_a_child_follows_its_own_defaults(home: str) -> None:
    counted = Counted()

    @pipeline(retry=once(2))
    async def child() -> None:
        await counted.step()

    @pipeline(retry=once(9))
    async def parent() -> None:
        await child()

    async with Engine(home) as engine:
        assert (await engine.run(parent)).status == "failed"
    assert counted.attempts == 2


@pytest.mark.asyncio
async def test_with_options_leaves_the_original_alone(home: str) -> None:
    @pipeline(failure_mode="stop", timeout=5)
    async def one() -> str:
        return "value"

    changed = one.with_options(timeout=None, name="renamed", tags=["a"])
    assert (one.name, one.options.timeout, one.options.failure_mode) == ("one", 5.0, "stop")
    assert (changed.name, changed.options.timeout, changed.options.failure_mode) == ("renamed", None, "stop")
    async with Engine(home) as engine:
        result = await engine.run(changed)
        assert result.pipeline == "renamed"
        assert result.success
        assert [run.pipeline for run in await engine.runs(pipeline="renamed")] == ["renamed"]


@pytest.mark.asyncio
async def test_max_concurrency_of_a_pipeline_counts_its_calls(home: str) -> None:
    running = peak = 0

    @step(cache=False)
    async def counted(x: int) -> int:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        return x

    @pipeline
    async def wide() -> list[int]:
        return await counted.map(range(30))

    async with Engine(home) as engine:
        assert (await engine.run(wide.with_options(max_concurrency=3))).value == list(range(30))
        assert peak == 3
        peak = 0
        await engine.run(wide)
        assert peak > 3


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_concurrency", 0), ("retry", -1), ("cache", "sometimes"), ("tags", [1]), ("name", ""), ("failure_mode", 3)],
)
def test_wrong_values_fail_at_decoration(option: str, value: Any) -> None:
    async def one() -> None: ...

    with pytest.raises(OptionError, match=option):
        pipeline(**{option: value})(one)
    with pytest.raises(OptionError, match=option):
        pipeline(one).with_options(**{option: value})


def test_an_unknown_option_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(OptionError, match=r"failure_mod.*failure_mode"):
        pipeline(failure_mod="stop")  # type: ignore[call-overload]  # the mistake under test


@pytest.mark.parametrize("option", ["idempotency_key", "engine", "debug"])
def test_options_of_one_run_are_not_options_of_the_decorator(option: str) -> None:
    with pytest.raises(OptionError, match=rf"with_options\({option}="):
        pipeline(**{option: "x"})
