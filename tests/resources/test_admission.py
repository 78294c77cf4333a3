"""What an engine has bounds what runs at once, fairly, and nothing that waits holds anything."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from treadle import Engine, Retry, pipeline, step
from treadle.testing import VirtualClock, memory_engine


class Gauge:
    """Counts what is under way."""

    def __init__(self) -> None:
        self.now: dict[str, float] = {}
        self.most: dict[str, float] = {}

    async def use(self, **amounts: float) -> None:
        """Use something for a few turns of the loop."""
        for name, amount in amounts.items():
            self.now[name] = self.now.get(name, 0) + amount
            self.most[name] = max(self.most.get(name, 0), self.now[name])
        for _ in range(5):
            await asyncio.sleep(0)
        for name, amount in amounts.items():
            self.now[name] -= amount


@pytest.mark.asyncio
async def test_what_the_engine_has_bounds_what_runs_at_once_over_all_runs(place: str) -> None:
    gauge = Gauge()

    @step(resources={"cpu": "1500m"}, cache=False)
    async def half(x: int) -> int:
        await gauge.use(cpu=1.5, calls=1)
        return x

    @step(resources={"cpu": 1, "memory": "1Gi"}, cache=False)
    async def wide(x: int) -> int:
        await gauge.use(cpu=1, memory=1, calls=1)
        return x

    @pipeline
    async def both() -> int:
        first, second = half.map(range(20)), wide.map(range(20))
        return len(await first) + len(await second)

    async with Engine(place, resources={"cpu": 4, "memory": "2Gi"}) as engine:
        results = await asyncio.gather(*[engine.run(both) for _ in range(3)])
    assert [result.value for result in results] == [40] * 3
    assert gauge.most["cpu"] <= 4
    assert gauge.most["memory"] == 2
    assert gauge.most["calls"] > 1


@pytest.mark.asyncio
async def test_sync_steps_are_bounded_too() -> None:
    import threading

    lock, state = threading.Lock(), {"now": 0, "most": 0}

    @step(resources={"gpu": 1}, cache=False)
    def on_gpu(x: int) -> int:
        with lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        sum(range(20_000))
        with lock:
            state["now"] -= 1
        return x

    @pipeline
    async def many() -> int:
        return len(await on_gpu.map(range(30)))

    async with Engine("memory://", threads=8, resources={"gpu": 2}) as engine:
        assert (await engine.run(many)).value == 30
    assert state["most"] <= 2


@pytest.mark.asyncio
async def test_a_large_call_is_not_starved_by_small_ones() -> None:
    order: list[str] = []

    @step(resources={"cpu": 1}, cache=False)
    async def small(x: int) -> None:
        order.append("small")
        await asyncio.sleep(0)

    @step(resources={"cpu": 4}, cache=False)
    async def large() -> None:
        order.append("large")

    @pipeline
    async def mixed() -> None:
        smalls = small.map(range(500))
        await smalls[0]
        await large()

    async with Engine("memory://", resources={"cpu": 4}) as engine:
        (await engine.run(mixed)).raise_for_failure()
    assert order.count("small") == 500
    assert order.index("large") < 80


@pytest.mark.asyncio
async def test_small_calls_pass_a_large_one_that_waits_for_another_resource() -> None:
    hold, passed = asyncio.Event(), []

    @step(resources={"gpu": 1}, cache=False)
    async def on_gpu(x: int) -> int:
        await hold.wait()
        return x

    @step(resources={"cpu": 1}, cache=False)
    async def on_cpu(x: int) -> int:
        passed.append(x)
        return x

    @step(cache=False)
    async def anywhere(x: int) -> int:
        passed.append(x)
        return x

    @pipeline
    async def mixed() -> int:
        held = on_gpu.map(range(3))
        await on_cpu.map(range(5))
        await anywhere.map(range(5))
        hold.set()
        return len(await held)

    async with Engine("memory://", resources={"cpu": 2, "gpu": 1}) as engine:
        assert (await engine.run(mixed)).value == 3
    assert len(passed) == 10


@pytest.mark.asyncio
async def test_calls_that_need_the_same_things_in_any_mixture_do_not_deadlock(place: str) -> None:
    gauge = Gauge()
    needs: list[dict[str, Any]] = [
        {"cpu": cpu, "memory": memory, "gpu": gpu} for cpu in (0, 1, 3) for memory in (0, 2, 4) for gpu in (0, 1, 2)
    ]

    def make(need: dict[str, Any]) -> Any:
        @step(name="need", resources=need, max_in_flight=2, cache=False, persist=False)
        async def body(x: int) -> int:
            await gauge.use(**need)
            return x

        return body

    steps = [make(need) for need in needs]

    @pipeline
    async def mixture() -> int:
        maps = [body.map(range(4)) for body in steps]
        return sum([len(await done) for done in maps])

    options: dict[str, Any] = {"max_concurrency": 5, "resources": {"cpu": 3, "memory": 4, "gpu": 2}}
    async with Engine(place, **options) as engine, asyncio.timeout(20):
        results = await asyncio.gather(engine.run(mixture), engine.run(mixture))
    assert [result.value for result in results] == [4 * len(needs)] * 2
    assert gauge.most == {"cpu": 3, "memory": 4, "gpu": 2}


@pytest.mark.asyncio
async def test_child_runs_and_their_pipelines_hold_nothing() -> None:
    @step(resources={"cpu": 1}, cache=False)
    async def work(x: int) -> int:
        return x + 1

    @pipeline
    async def nested(depth: int) -> int:
        inner = await nested(depth - 1) if depth else 0
        return await work(inner)

    async with Engine("memory://", resources={"cpu": 1}) as engine, asyncio.timeout(20):
        assert (await engine.run(nested, 6)).value == 7


@pytest.mark.asyncio
async def test_the_delay_before_a_retry_holds_nothing() -> None:
    order: list[str] = []

    @step(resources={"cpu": 1}, retry=Retry(2, delay=60, jitter=False), cache=False)
    async def shaky() -> None:
        order.append("shaky")
        if order.count("shaky") == 1:
            raise ConnectionError

    @step(resources={"cpu": 1}, cache=False)
    async def steady() -> None:
        order.append("steady")

    @pipeline
    async def both() -> None:
        first = shaky.submit()
        await steady()
        await first

    clock = VirtualClock()
    async with memory_engine(clock=clock, resources={"cpu": 1}) as engine:
        handle = await engine.start(both)
        assert await clock.wait_for_timer() == 60
        assert order == ["shaky", "steady"]
        await clock.advance(60)
        await handle
    assert order == ["shaky", "steady", "shaky"]


@pytest.mark.asyncio
async def test_a_cancelled_call_gives_back_what_it_had_and_what_it_waited_for(until: Any) -> None:
    running: list[int] = []
    hold = asyncio.Event()

    @step(resources={"cpu": 2}, cache=False)
    async def large(x: int) -> int:
        running.append(x)
        await hold.wait()
        return x

    @step(resources={"cpu": 1}, cache=False)
    async def small() -> str:
        return "done"

    @pipeline
    async def cancelling() -> str:
        first, second = large.submit(1), large.submit(2)
        await until(lambda: running == [1])
        third = small.submit()
        second.cancel()  # it stands in line, and two cores are set aside for it
        first.cancel()
        return await third

    async with Engine("memory://", resources={"cpu": 2}) as engine, asyncio.timeout(20):
        handle = await engine.start(cancelling.with_options(failure_mode="continue"))
        result = await handle.wait()
        limits = engine.capacity.limits
        assert {name: limit.used for name, limit in limits.items()} == dict.fromkeys(limits, 0)
    assert result.step_results["small"].status == "succeeded"
    assert running == [1]


@pytest.mark.asyncio
async def test_options_of_a_call_count_before_those_of_its_step() -> None:
    gauge = Gauge()

    @step(resources={"cpu": 4}, cache=False)
    async def work(x: int) -> int:
        await gauge.use(calls=1)
        return x

    @pipeline
    async def lighter() -> None:
        await work.with_options(resources={"cpu": 1}).map(range(8))

    @pipeline
    async def free() -> None:
        await work.with_options(resources=None).map(range(8))

    async with Engine("memory://", resources={"cpu": 4}) as engine:
        (await engine.run(lighter)).raise_for_failure()
        assert gauge.most["calls"] == 4
        (await engine.run(free)).raise_for_failure()
        assert gauge.most["calls"] == 8


@pytest.mark.asyncio
async def test_results_and_cache_keys_do_not_know_resources(place: str) -> None:
    @step(resources={"cpu": 1})
    async def work(x: int) -> int:
        return x + 1

    @pipeline
    async def twice() -> list[int]:
        return [await work(1), await work.with_options(resources={"memory": "1Mi"})(1)]

    async with Engine(place) as engine:
        result = await engine.run(twice)
        assert result.value == [2, 2]
        assert [call.status for call in result.step_results.values()] == ["succeeded", "cached"]
