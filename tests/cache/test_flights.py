"""Equal calls at the same time are one execution; whoever waits takes over when the performing one fails."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from treadle import Retry, pipeline, step
from treadle.errors import EncodeError

DURABILITIES = ["strict", "relaxed", "memory"]
MANY = 200


class Scene:
    """What the bodies of a test share: they count themselves, and wait until they are let through."""

    def __init__(self) -> None:
        self.entered: list[Any] = []
        self.gate = asyncio.Event()
        self.arrived = asyncio.Event()
        self.lock = threading.Lock()

    async def enter(self, label: Any = None) -> int:
        self.entered.append(label)
        self.arrived.set()
        await self.gate.wait()
        return len(self.entered)


scene: Scene


@pytest.fixture(autouse=True)
def new_scene() -> None:
    global scene
    scene = Scene()


# A version stands for the code: it names the scene, which changes from test to test.
@step(version="1")
async def slow(x: Any) -> int:
    return await scene.enter(x)


def counts(result: Any) -> dict[str, int]:
    statuses = [call.status for call in result.step_results.values()]
    return {status: statuses.count(status) for status in sorted(set(statuses))}


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("way", ["submit", "map"])
def test_concurrent_equal_calls_are_one_execution(home: Any, durability: str, way: str) -> None:
    @pipeline
    async def p() -> list[int]:
        futures = [slow.submit(1) for _ in range(MANY)] if way == "submit" else list(slow.map([1] * MANY))
        await scene.arrived.wait()
        scene.gate.set()
        return await asyncio.gather(*futures)

    result = home.result(p, durability=durability)
    assert result.value == [1] * MANY
    assert scene.entered == [1]
    assert counts(result) == {"cached": MANY - 1, "succeeded": 1}


@pytest.mark.parametrize("durability", DURABILITIES)
def test_two_runs_of_an_engine_share_one_execution(home: Any, durability: str) -> None:
    @pipeline
    async def p() -> int:
        return await slow(1)

    async def main() -> list[Any]:
        async with home.engine(durability=durability) as engine:
            runs = [asyncio.ensure_future(engine.run(p)) for _ in range(5)]
            await scene.arrived.wait()
            scene.gate.set()
            return await asyncio.gather(*runs)

    results = home.drive(main())
    assert [result.value for result in results] == [1] * 5
    assert scene.entered == [1]
    assert sorted(result.step_results["slow"].status for result in results) == ["cached"] * 4 + ["succeeded"]


def test_equal_sync_steps_are_one_execution_too(home: Any) -> None:
    @step(version="1")
    def f(x: int) -> int:
        with scene.lock:
            scene.entered.append(x)
        return x

    @pipeline
    async def p() -> list[int]:
        return await f.map([1] * 50)

    assert home.value(p) == [1] * 50
    assert scene.entered == [1]


def test_calls_that_differ_are_not_joined(home: Any) -> None:
    @pipeline
    async def p() -> int:
        scene.gate.set()
        futures = [slow.submit(value) for value in (1, 1.0, True, "1")]
        await asyncio.gather(*futures)
        return len(futures)

    result = home.result(p)
    assert counts(result) == {"succeeded": 4}
    assert len(scene.entered) == 4


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_leader_that_fails_hands_over_to_the_next(home: Any, durability: str) -> None:
    @step(version="1")
    async def flaky(x: int) -> int:
        count = await scene.enter(x)
        if count <= 2:
            raise ValueError(f"attempt {count}")
        return count

    @pipeline(failure_mode="continue")
    async def p() -> list[Any]:
        futures = [flaky.submit(1) for _ in range(20)]
        await scene.arrived.wait()
        scene.gate.set()
        return [str(outcome) for outcome in await asyncio.gather(*futures, return_exceptions=True)]

    result = home.result(p, durability=durability)
    assert result.value == ["attempt 1", "attempt 2", *["3"] * 18]
    assert counts(result) == {"cached": 17, "failed": 2, "succeeded": 1}


def test_when_every_leader_fails_every_call_has_its_own_error(home: Any) -> None:
    @step(version="1")
    async def bad(x: int) -> int:
        raise ValueError(x)

    @pipeline(failure_mode="continue")
    async def p() -> list[str]:
        outcomes = await asyncio.gather(*(bad.submit(1) for _ in range(10)), return_exceptions=True)
        return [type(outcome).__name__ for outcome in outcomes]

    result = home.result(p)
    assert result.value == ["ValueError"] * 10
    assert counts(result) == {"failed": 10}


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_leader_that_is_cancelled_hands_over(home: Any, durability: str) -> None:
    @pipeline(failure_mode="continue")
    async def p() -> list[int]:
        leader, *others = [slow.submit(1) for _ in range(5)]
        await scene.arrived.wait()
        leader.cancel()
        scene.gate.set()
        return await asyncio.gather(*others)

    result = home.result(p, durability=durability)
    assert result.value == [2] * 4
    assert scene.entered == [1, 1]
    assert counts(result) == {"cached": 3, "cancelled": 1, "succeeded": 1}


def test_a_follower_that_is_cancelled_leaves_the_leader_going(home: Any) -> None:
    @pipeline(failure_mode="continue")
    async def p() -> list[int]:
        leader, follower, other = [slow.submit(1) for _ in range(3)]
        await scene.arrived.wait()
        await asyncio.sleep(0)
        follower.cancel()
        scene.gate.set()
        return [await leader, await other]

    result = home.result(p)
    assert result.value == [1, 1]
    assert counts(result) == {"cached": 1, "cancelled": 1, "succeeded": 1}


def test_the_cancelled_run_of_a_leader_does_not_take_the_other_run_with_it(home: Any) -> None:
    @pipeline
    async def p() -> int:
        return await slow(1)

    async def main() -> tuple[Any, Any]:
        async with home.engine() as engine:
            first = await engine.start(p)
            await scene.arrived.wait()
            second = await engine.start(p)
            await first.cancel()
            scene.gate.set()
            return await first.wait(), await second.wait()

    first, second = home.drive(main())
    assert first.status == "cancelled"
    assert second.value == 2
    assert second.step_results["slow"].status == "succeeded"


def test_a_leader_whose_output_cannot_be_stored_hands_over(home: Any) -> None:
    @step(version="1")
    async def odd(x: int) -> Any:
        return threading.Lock() if await scene.enter() == 1 else 2

    @pipeline(failure_mode="continue")
    async def p() -> list[Any]:
        futures = [odd.submit(1) for _ in range(3)]
        await scene.arrived.wait()
        scene.gate.set()
        return await asyncio.gather(*futures, return_exceptions=True)

    first, *others = home.value(p)
    assert isinstance(first, EncodeError)
    assert others == [2, 2]


def test_followers_hold_no_slot(home: Any) -> None:
    @step(version="1")
    async def release() -> None:
        scene.gate.set()

    @pipeline(max_concurrency=2)
    async def p() -> list[int]:
        futures = [slow.submit(1) for _ in range(10)]
        await release()
        return await asyncio.gather(*futures)

    assert home.value(p) == [1] * 10


def test_a_retried_leader_keeps_its_followers_waiting(home: Any) -> None:
    @step(version="1", retry=Retry(max_attempts=2, delay=0))
    async def f(x: int) -> int:
        count = await scene.enter()
        if count == 1:
            raise ValueError
        return count

    @pipeline
    async def p() -> list[int]:
        futures = [f.submit(1) for _ in range(5)]
        await scene.arrived.wait()
        scene.gate.set()
        return await asyncio.gather(*futures)

    result = home.result(p)
    assert result.value == [2] * 5
    assert counts(result) == {"cached": 4, "succeeded": 1}


# -- what is never cached -----------------------------------------------------------------


def test_failures_are_never_cached(home: Any) -> None:
    @step(version="1")
    async def f(x: int) -> int:
        scene.entered.append(x)
        raise ValueError

    @pipeline
    async def p() -> int:
        return await f(1)

    for expected in (1, 2, 3):
        assert home.result(p).error is not None
        assert len(scene.entered) == expected


def test_what_was_skipped_or_cancelled_is_never_cached(home: Any) -> None:
    fails = [True]

    @step(version="1", cache=False)
    async def source() -> int:
        if fails:
            raise ValueError
        return 1

    @step(version="1")
    async def sink(x: int) -> int:
        return x

    @pipeline(failure_mode="continue")
    async def p() -> Any:
        future = sink.submit(source.submit())
        return str(await asyncio.wait_for(asyncio.gather(future, return_exceptions=True), 20))

    result = home.result(p)
    assert (result.success, result.step_results["sink"].status) == (True, "skipped")  # its error was retrieved
    fails.clear()
    assert home.result(p).step_results["sink"].status == "succeeded"
