"""Same idempotency key and same input: one run, whoever asks, wherever, and however often."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from treadle import Engine, pipeline, step
from treadle.errors import IdempotencyConflict

Check = Callable[[Path], list[str]]


def _sibling(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


owners = _sibling("test_run_owners")
Other, begun, labels, peer, shapes_are_importable = (
    owners.Other, owners.begun, owners.labels, owners.peer, owners.shapes_are_importable
)  # fmt: skip


class World:
    def __init__(self) -> None:
        self.performed: Counter[Any] = Counter()
        self.failing = self.blocked = False
        self.reached, self.gate = asyncio.Event(), asyncio.Event()


WORLD = World()


@pytest.fixture(autouse=True)
def world() -> World:
    WORLD.__init__()  # type: ignore[misc]  # the steps hold this object
    return WORLD


@step(cache=False)
async def charge(amount: int) -> int:
    WORLD.performed[amount] += 1
    WORLD.reached.set()
    if WORLD.blocked:
        await WORLD.gate.wait()
    if WORLD.failing:
        raise ZeroDivisionError("no money")
    return amount


@pipeline
async def pay(amount: int, note: str = "") -> int:
    return await charge(amount) + 1


@pipeline
async def refund(amount: int) -> int:
    return -await charge(amount)


KEYED = pay.with_options(idempotency_key="order-1")


@pytest.mark.asyncio
async def test_two_hundred_starts_are_one_run(tmp_path: Path, world: World) -> None:
    async with Engine(tmp_path / "home") as engine:
        handles = await asyncio.gather(*[engine.start(KEYED, 5) for _ in range(200)])
        assert len({handle.id for handle in handles}) == 1
        assert await asyncio.gather(*handles) == [6] * 200
        assert len(await engine.runs()) == 1
    assert world.performed == {5: 1}


@pytest.mark.asyncio
async def test_two_engines_of_one_home_share_the_run(tmp_path: Path, world: World) -> None:
    async with Engine(tmp_path / "home") as first, Engine(tmp_path / "home") as second:
        results = await asyncio.gather(*[engine.run(KEYED, 5) for engine in (first, second) * 10])
        assert {result.run_id for result in results} == {results[0].run_id}
        assert [result.value for result in results] == [6] * 20
    assert world.performed == {5: 1}


@pytest.mark.asyncio
async def test_a_recorded_value_is_given_again(tmp_path: Path, world: World) -> None:
    async with Engine(tmp_path / "home") as engine:
        first = await engine.run(KEYED, 5)
    async with Engine(tmp_path / "home") as engine:
        again = await engine.run(KEYED, 5)
        assert await KEYED(5) == 6
    assert (again.run_id, again.value) == (first.run_id, 6)
    assert world.performed == {5: 1}


@pytest.mark.asyncio
async def test_a_recorded_error_is_raised_again(tmp_path: Path, world: World) -> None:
    world.failing = True
    async with Engine(tmp_path / "home") as engine:
        first = await engine.run(KEYED, 5)
        assert first.status == "failed"
    world.failing = False
    async with Engine(tmp_path / "home") as engine:
        again = await engine.run(KEYED, 5)
        assert (again.run_id, again.status) == (first.run_id, "failed")
        with pytest.raises(ZeroDivisionError, match="no money"):
            await KEYED(5)
    assert world.performed == {5: 1}


@pytest.mark.asyncio
async def test_a_cancelled_run_is_resumed_under_its_id(tmp_path: Path, world: World) -> None:
    world.blocked = True
    async with Engine(tmp_path / "home") as engine:
        handle = await engine.start(KEYED, 5)
        await world.reached.wait()
        await handle.cancel()
        world.blocked = False
        result = await engine.run(KEYED, 5)
    assert (result.run_id, result.value) == (handle.id, 6)
    assert world.performed == {5: 2}


@pytest.mark.asyncio
async def test_an_interrupted_run_is_resumed_under_its_id(tmp_path: Path, world: World) -> None:
    world.blocked = True
    async with Engine(tmp_path / "home") as engine:
        handle = await engine.start(KEYED, 5)
        await world.reached.wait()
        await engine.close(interrupt=True)
    world.blocked = False
    async with Engine(tmp_path / "home") as engine:
        results = await asyncio.gather(*[engine.run(KEYED, 5) for _ in range(20)])
    assert {(result.run_id, result.value) for result in results} == {(handle.id, 6)}
    assert world.performed == {5: 2}


@pytest.mark.asyncio
async def test_other_arguments_are_a_conflict_wherever_one_waits(tmp_path: Path, world: World) -> None:
    async with Engine(tmp_path / "home") as engine:
        first = await engine.run(KEYED, 5)
        with pytest.raises(IdempotencyConflict) as caught:
            await engine.start(KEYED, 6)
        assert caught.value.run_id == first.run_id
        with pytest.raises(IdempotencyConflict):
            await KEYED.start(6).accepted()
        with pytest.raises(IdempotencyConflict):
            await KEYED.start(6)
        with pytest.raises(IdempotencyConflict):
            await KEYED(6)
        with pytest.raises(IdempotencyConflict):
            await KEYED(5, note="another")
        assert len(await engine.runs()) == 1
    assert world.performed == {5: 1}


@pytest.mark.asyncio
async def test_keys_belong_to_a_pipeline(tmp_path: Path, world: World) -> None:
    async with Engine(tmp_path / "home"):
        assert await KEYED(5) == 6
        assert await refund.with_options(idempotency_key="order-1")(7) == -7
        assert await pay.with_options(idempotency_key="order-2")(5) == 6
    assert world.performed == {5: 2, 7: 1}


@pytest.mark.asyncio
async def test_a_cancelled_joiner_leaves_a_started_run_going(tmp_path: Path, world: World) -> None:
    world.blocked = True
    async with Engine(tmp_path / "home") as engine:
        handle = await engine.start(KEYED, 5)
        joiner = asyncio.ensure_future(KEYED(5))
        await world.reached.wait()
        await asyncio.wait((joiner,), timeout=0.05)
        joiner.cancel()
        await asyncio.wait((joiner,))
        world.gate.set()
        assert await handle == 6
    assert world.performed == {5: 1}


@pytest.mark.crash
@pytest.mark.asyncio
async def test_two_processes_share_the_run(tmp_path: Path, child_environment: dict[str, str], peer: Any) -> None:
    home, gate = tmp_path / "home", tmp_path / "gate"
    other = await Other.launch(home, child_environment, tmp_path)
    run_id = await other.ask("start", args=[str(gate), "x"], key="k")
    async with Engine(home) as engine:
        handle = await engine.start(peer.held.with_options(idempotency_key="k"), str(gate), "x")
        assert handle.id == run_id
        await begun(tmp_path, "X")
        gate.touch()
        assert await handle == "X"
        assert await other.hear("ended") == "X"
    await other.close()
    assert labels(tmp_path) == ["x", "X"]


@pytest.mark.crash
@pytest.mark.asyncio
async def test_who_waits_to_join_takes_over_from_a_killed_owner(
    tmp_path: Path, child_environment: dict[str, str], peer: Any, check_log: Check
) -> None:
    home, gate = tmp_path / "home", tmp_path / "gate"
    other = await Other.launch(home, child_environment, tmp_path)
    run_id = await other.ask("start", args=[str(gate), "x"], key="k")
    await begun(tmp_path, "X")
    async with Engine(home) as engine:
        waiting = asyncio.ensure_future(engine.run(peer.held.with_options(idempotency_key="k"), str(gate), "x"))
        done, _ = await asyncio.wait((waiting,), timeout=0.2)
        assert not done
        await other.kill()
        gate.touch()
        result = await waiting
    assert (result.run_id, result.value) == (run_id, "X")
    assert labels(tmp_path) == ["x", "X", "X"]
    assert check_log(home) == []
    await other.close()
