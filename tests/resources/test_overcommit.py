"""A step that asks for more than there is: it takes all there is and the log says so, or it is refused."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from treadle import Engine, Resources, pipeline, step
from treadle._runtime.resources import hardware
from treadle.errors import ResourcesExceeded
from treadle.events import ResourcesClamped


@step(resources={"cpu": "4", "memory": "16Gi"}, cache=False)
def train_cpu(x: int = 1) -> int:
    return x


@step(resources={"gpu": "nvidia-tesla-v100", "gpu_count": 2}, cache=False)
def train_gpu(x: int = 1) -> int:
    return x


@pipeline
async def training() -> int:
    return sum(await train_cpu.map(range(3))) + await train_gpu() + await train_cpu()


async def clamped(engine: Engine, run_id: str) -> list[ResourcesClamped]:
    return [event async for event in engine.events(run_id) if isinstance(event, ResourcesClamped)]


@pytest.mark.asyncio
async def test_more_than_there_is_is_clamped_and_told_once_per_step_and_run(place: str) -> None:
    async with Engine(place, resources={"cpu": 2, "memory": "8Gi"}) as engine:
        for _ in range(2):
            result = await engine.run(training)
            assert result.value == 5
            told = await clamped(engine, result.run_id)
            assert [(event.step, event.clamped) for event in told] == [
                ("train_cpu", (("cpu", 4.0, 2.0), ("memory", 16.0 * 2**30, 8.0 * 2**30))),
                ("train_gpu", (("gpu", 2.0, 0.0),)),
            ]
            assert {event.call for event in told} == {""}


@pytest.mark.asyncio
async def test_a_clamped_step_runs_alone(place: str) -> None:
    running, most = 0, 0

    @step(resources={"cpu": 64}, cache=False)
    async def greedy(x: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        running -= 1
        return x

    @pipeline
    async def many() -> int:
        return len(await greedy.map(range(5)))

    async with Engine(place, resources={"cpu": 2}) as engine:
        assert (await engine.run(many)).value == 5
    assert most == 1


@pytest.mark.asyncio
async def test_enough_is_not_told_of(place: str) -> None:
    resources = {"cpu": 4, "memory": "16Gi", "gpu": 2}
    async with Engine(place, resources=resources, overcommit="error") as engine:
        result = await engine.run(training)
        assert result.success
        assert await clamped(engine, result.run_id) == []


@pytest.mark.asyncio
async def test_a_copy_of_a_clamped_step_is_not_told_of_again() -> None:
    @pipeline
    async def copies() -> int:
        return await train_gpu(1) + await train_gpu.with_options(timeout=9)(2)

    async with Engine("memory://") as engine:
        result = await engine.run(copies)
        assert len(await clamped(engine, result.run_id)) == 1


@pytest.mark.asyncio
async def test_overcommit_error_refuses_the_call_and_says_what_there_is(place: str) -> None:
    @pipeline
    async def impossible() -> int:
        return await train_cpu()

    async with Engine(place, resources=Resources(cpu=2, memory="8Gi"), overcommit="error") as engine:
        result = await engine.run(impossible)
        error = result.error
        assert isinstance(error, ResourcesExceeded)
        assert isinstance(error, ValueError)
        assert "step train_cpu asks for cpu 4, memory 16Gi, and the engine has cpu 2, memory 8Gi" in str(error)
        assert "Engine(resources=...)" in error.fix
        assert (error.step, error.asked["cpu"], error.available["cpu"]) == ("train_cpu", 4.0, 2.0)
        assert not result.step_results


@pytest.mark.asyncio
@pytest.mark.parametrize("start", ["submit", "map", "again"])
async def test_it_is_refused_where_it_is_submitted_each_time(start: str) -> None:
    refused: list[str] = []

    @pipeline
    async def impossible() -> None:
        for _ in range(2):
            try:
                train_gpu.map([1]) if start == "map" else train_gpu.submit(1)
            except ResourcesExceeded as error:
                refused.append(error.step)

    async with Engine("memory://", overcommit="error") as engine:
        (await engine.run(impossible)).raise_for_failure()
    assert refused == ["train_gpu"] * 2


@pytest.mark.asyncio
async def test_a_gpu_of_another_type_is_none() -> None:
    @step(resources={"gpu": 1}, cache=False)
    async def any_gpu() -> str:
        return "any"

    @step(resources={"gpu": "a100"}, cache=False)
    async def a100() -> str:
        return "a100"

    @pipeline
    async def both() -> str:
        return await any_gpu() + await a100()

    typed: dict[str, Any] = {"gpu": "nvidia-tesla-v100", "gpu_count": 2}
    async with Engine("memory://", resources=typed, overcommit="error") as engine:
        error = (await engine.run(both)).error
        assert isinstance(error, ResourcesExceeded)
        assert "step a100 asks for gpu 1, and the engine has gpu 0 of type a100" in str(error)
    async with Engine("memory://", resources={"gpu": 1}, overcommit="error") as engine:
        assert (await engine.run(both)).value == "anya100", "of GPUs without a type any will do"


@pytest.mark.asyncio
async def test_what_is_clamped_is_told_again_when_a_run_is_taken_up(home: str) -> None:
    failing = True

    @step(resources={"gpu": 1})
    async def shaky() -> str:
        if failing:
            raise ConnectionError
        return "done"

    @pipeline(name="taken_up")
    async def run() -> str:
        return await shaky()

    async with Engine(home) as engine:
        result = await engine.run(run)
        assert result.status == "failed"
        failing = False
        import treadle._runtime.home.resuming as resuming

        assert (await (await resuming.resume(engine, result.run_id, changed="rerun", target=run)).done) is None
        assert len(await clamped(engine, result.run_id)) == 2


@pytest.mark.damaged_home
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda event: event, "clamped a second time"),
        (lambda event: [*event[:3], "", *event[4:]], "of no step"),
        (
            lambda event: [*event[:3], "x", *event[4:7], [["cpu", 2.0, 4.0]]],
            "asks for 2.0 of cpu, which is clamped to 4.0",
        ),
    ],
)
def test_the_log_checker_sees_a_clamp_that_cannot_be(home: str, check_log: Any, damage: Any, said: str) -> None:
    async def fill() -> None:
        async with Engine(home, resources={"cpu": 2, "memory": "64Gi"}) as engine:
            assert (await engine.run(training)).success

    asyncio.run(fill())
    assert check_log(home) == []
    connection = sqlite3.connect(Path(home) / "treadle.db", isolation_level=None)
    for trigger in ("log_keeps_rows", "log_keeps_bytes"):
        connection.execute(f"DROP TRIGGER {trigger}")
    rows = [
        (seq, msgspec.msgpack.decode(body)) for seq, body in connection.execute("SELECT seq, body FROM log").fetchall()
    ]
    clamp = next(event for _, events in rows for event in events if event[0] == 50)
    for seq, events in rows:
        for place, event in enumerate(events):
            if event[0] == 20 and event[3] == "train_gpu":  # a place in which another fact was
                events[place] = damage(clamp)
        connection.execute("UPDATE log SET body=? WHERE seq=?", (msgspec.msgpack.encode(events), seq))
    connection.close()
    assert any(said in problem for problem in check_log(home))


# -- the machine --------------------------------------------------------------------------


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_machine_has_at_least_a_core_and_some_memory() -> None:
    assert hardware.cores() > 0
    memory = hardware.memory_bytes()
    assert memory is not None
    assert memory > 2**20


def test_the_quota_of_a_control_group_counts_also_of_one_above(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
        "sys/fs/cgroup/a/b/memory.max": "1048576\n",
        "sys/fs/cgroup/a/memory.max": "max\n",
    }
    put(tmp_path, files)
    assert hardware.cores(tmp_path) == 0.5
    assert hardware.memory_bytes(tmp_path) == 1048576


def test_control_groups_of_the_first_version_count_too(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/x\n1:name=systemd:/x\n0::/\n",
        "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "25000\n",
        "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "2097152\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    put(tmp_path, files)
    assert hardware.cores(tmp_path) == 0.25
    assert hardware.memory_bytes(tmp_path) == 2097152


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    assert hardware.cores(tmp_path) >= hardware.cores()
    total, bound = hardware.memory_bytes(tmp_path), hardware.memory_bytes()
    assert total is not None
    assert bound is not None
    assert total >= bound


@pytest.mark.asyncio
async def test_an_engine_asks_the_machine_for_what_it_was_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 3.0)
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 5000)
    capacities = {}
    for name, given in {"nothing": None, "memory": {"memory": 7000, "gpu": 1}}.items():
        limits = Engine("memory://", resources=given).capacity.limits
        capacities[name] = {kind: limit.capacity for kind, limit in limits.items()}
    assert capacities == {
        "nothing": {"cpu": 3000, "memory": 5000, "gpu": 0},
        "memory": {"cpu": 3000, "memory": 7000, "gpu": 1},
    }


@pytest.mark.asyncio
async def test_what_nobody_knows_is_not_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "memory_bytes", lambda: None)

    @step(resources={"memory": "1000Gi"}, cache=False)
    async def large() -> str:
        return "done"

    @pipeline
    async def run() -> str:
        return await large()

    async with Engine("memory://", overcommit="error") as engine:
        assert (await engine.run(run)).value == "done"
