"""The host's loop comes first: however wide a map is, little of it happens in one turn of the loop."""

from __future__ import annotations

import asyncio
from typing import Any

from treadle import pipeline, step
from treadle._core.admission import Lanes, Limit
from treadle._runtime import lifecycle
from treadle._runtime.scheduler import STARTS_PER_TURN


class Turns:
    """Counts what happens between two turns of the loop."""

    def __init__(self) -> None:
        self.count = self.most = self.turns = 0
        self._going = True

    def happened(self) -> None:
        """One more in this turn."""
        self.count += 1
        self.most = max(self.most, self.count)

    def turn(self) -> None:
        """The loop has gone round."""
        self.count = 0
        self.turns += 1
        if self._going:
            asyncio.get_running_loop().call_soon(self.turn)

    def stop(self) -> None:
        """No more counting."""
        self._going = False


def test_a_wide_map_makes_starts_and_ends_few_calls_per_loop_turn(stage: Any, monkeypatch: Any) -> None:
    count = 20_000 if stage.home == "memory://" else 4_000
    bodies, made, ended = Turns(), Turns(), Turns()
    make, publish = lifecycle.bind, lifecycle.publish

    def counted_make(*args: Any) -> Any:
        made.happened()
        return make(*args)

    def counted_publish(*args: Any) -> None:
        ended.happened()
        publish(*args)

    monkeypatch.setattr(lifecycle, "bind", counted_make)
    monkeypatch.setattr(lifecycle, "publish", counted_publish)

    @step(persist=False, cache=False)
    async def trivial(x: int) -> int:
        bodies.happened()
        return x

    @pipeline
    async def wide() -> int:
        return sum(await trivial.map(range(count)))

    async def main() -> int:
        async with stage.engine() as engine:
            for turns in (bodies, made, ended):
                turns.turn()
            value: int = (await engine.run(wide)).value
            for turns in (bodies, made, ended):
                turns.stop()
            return value

    assert stage.drive(main()) == count * (count - 1) // 2
    bound = 2 * STARTS_PER_TURN
    assert max(bodies.most, made.most, ended.most) <= bound, (bodies.most, made.most, ended.most)
    assert bodies.turns >= count // STARTS_PER_TURN


def test_a_request_is_served_in_the_middle_of_a_wide_map(stage: Any) -> None:
    """Lanes take turns: a call that comes late does not stand behind the thousands that came before."""
    performed = 0
    performed_before: list[int] = []
    hold, asked = asyncio.Event(), asyncio.Event()

    @step(persist=False, cache=False)
    async def trivial(x: int) -> int:
        nonlocal performed
        await hold.wait()
        performed += 1
        return x

    @pipeline
    async def wide() -> int:
        return len(await trivial.map(range(5_000)))

    @step
    async def quick() -> str:
        performed_before.append(performed)
        return "served"

    @pipeline
    async def request() -> str:
        future = quick.submit()
        asked.set()
        return await future

    async def main() -> tuple[str, int]:
        async with stage.engine(max_concurrency=8) as engine:
            running = await engine.start(wide)
            while len(engine.scheduler) < 4_000:
                await asyncio.sleep(0)
            serving = asyncio.create_task(engine.run(request))
            await asked.wait()
            hold.set()
            served: str = (await serving).value
            return served, await running

    assert stage.drive(main()) == ("served", 5_000)
    assert performed_before[0] < 100


def test_lanes_take_turns_and_respect_every_limit() -> None:
    lanes: Lanes[str] = Lanes()
    shared, own = Limit(3), Limit(1)
    for i in range(3):
        lanes.push(f"wide {i}", (shared,))
        lanes.push(f"narrow {i}", (shared, own))
    assert [lanes.pop() for _ in range(4)] == ["wide 0", "narrow 0", "wide 1", None]
    lanes.release((shared, own))
    assert lanes.pop() == "narrow 1"
    assert (shared.used, own.used, len(lanes)) == (3, 1, 2)


def test_removing_from_a_long_lane_is_quick() -> None:
    """Counted in comparisons: cancelling a wide map must not be quadratic."""
    compared = 0

    class Item:
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return self is other

        __hash__ = object.__hash__

    lanes: Lanes[Item] = Lanes()
    limits = (Limit(0),)
    items = [Item() for _ in range(2_000)]
    for item in items:
        lanes.push(item, limits)
    for item in reversed(items[1:]):
        lanes.remove(item)
    assert (len(lanes), lanes.pop()) == (1, None)
    limits[0].capacity = 5
    assert (lanes.pop(), lanes.pop(), len(lanes)) == (items[0], None, 0)
    assert compared < 10_000
