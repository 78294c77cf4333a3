"""A run has one owner: others leave a live one alone, take over from a dead one, and a late one is refused."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from treadle import Engine
from treadle.errors import RunFenced
from treadle.events import RunResumed

HERE = Path(__file__).parent
Check = Callable[[Path], list[str]]
pytestmark = [pytest.mark.crash, pytest.mark.linux]


@pytest.fixture(autouse=True)
def shapes_are_importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("TREADLE_TEST_LEDGER", str(tmp_path / "ledger"))
    yield
    for name in ("peer", "ledger"):
        sys.modules.pop(name, None)


@pytest.fixture
def peer() -> Any:
    """The module that the other process runs, too."""
    import peer

    return peer


class Other:
    """The other process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def launch(cls, home: Path, environment: dict[str, str], tmp_path: Path) -> Other:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(HERE / "peer.py"), str(home),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            env=environment | {"TREADLE_TEST_LEDGER": str(tmp_path / "ledger")},
        )  # fmt: skip
        other = cls(process)
        await other.hear("open")
        return other

    def tell(self, do: str, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **command}).encode() + b"\n")

    async def hear(self, expected: str) -> Any:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 20)
        assert line, f"the other process ended and never said {expected!r}"
        what, value = json.loads(line)
        assert what == expected, (what, value)
        return value

    async def ask(self, do: str, **command: Any) -> Any:
        self.tell(do, **command)
        return await self.hear(do)

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def stop(self, home: Path) -> None:
        """Suspend it, and not in the middle of a commit: nobody could write then until it goes on."""
        with open(home / "commit.lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.send(signal.SIGSTOP)
            while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                pass

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        await self.process.wait()

    async def close(self) -> None:
        if self.process.returncode is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            await asyncio.wait_for(self.process.wait(), 20)
        self.process._transport.close()  # type: ignore[attr-defined]  # else it warns when it is collected


def labels(tmp_path: Path) -> list[str]:
    ledger = tmp_path / "ledger"
    return [line.split(" ")[3] for line in ledger.read_text().splitlines()] if ledger.exists() else []


async def begun(tmp_path: Path, label: str, times: int = 1) -> None:
    """Wait until a body has begun so many times."""
    async with asyncio.timeout(20):
        while labels(tmp_path).count(label) < times:  # another process writes the ledger
            await asyncio.sleep(0.005)


@pytest.mark.asyncio
async def test_a_live_owners_run_is_left_alone(
    tmp_path: Path, child_environment: dict[str, str], check_log: Check
) -> None:
    home, gate = tmp_path / "home", tmp_path / "gate"
    other = await Other.launch(home, child_environment, tmp_path)
    run_id = await other.ask("start", args=[str(gate), "x"])
    await begun(tmp_path, "X")
    async with Engine(home) as engine:
        assert await engine.recover() == []
        assert [run.status for run in await engine.runs()] == ["running"]
        waiting = asyncio.ensure_future(engine.resume(run_id))
        done, _ = await asyncio.wait((waiting,), timeout=0.2)
        assert not done, "the resume of a live run has to wait for its owner"
        gate.touch()
        assert await other.hear("ended") == "X"
        assert (await waiting).value == "X"
        assert check_log(home) == []
    await other.close()
    assert labels(tmp_path) == ["x", "X"]


@pytest.mark.asyncio
async def test_a_killed_owners_run_is_seen_within_five_seconds_and_recovered(
    tmp_path: Path, child_environment: dict[str, str], peer: Any
) -> None:
    home, gate = tmp_path / "home", tmp_path / "gate"
    other = await Other.launch(home, child_environment, tmp_path)
    run_id = await other.ask("start", args=[str(gate), "x"])
    await begun(tmp_path, "X")
    async with Engine(home) as engine:
        assert [run.status for run in await engine.runs()] == ["running"]
        await other.kill()
        async with asyncio.timeout(5):
            while [run.status for run in await engine.runs()] != ["interrupted"]:  # real time is the test
                await asyncio.sleep(0.05)
        gate.touch()
        [result] = await engine.recover()
    assert (result.run_id, result.value, result.reused) == (run_id, "X", 1)
    assert labels(tmp_path) == ["x", "X", "X"]
    await other.close()


@pytest.mark.asyncio
async def test_recover_asks_the_owners_lock_itself(
    tmp_path: Path, child_environment: dict[str, str], peer: Any
) -> None:
    home, gate = tmp_path / "home", tmp_path / "gate"
    other = await Other.launch(home, child_environment, tmp_path)
    run_id = await other.ask("start", args=[str(gate), "x"])
    await begun(tmp_path, "X")
    gate.touch()
    async with Engine(home) as engine:
        await other.kill()
        result = await engine.resume(run_id)
        assert result.value == "X"
    await other.close()


@pytest.mark.asyncio
async def test_a_stopped_owner_is_not_taken_for_dead(
    tmp_path: Path, child_environment: dict[str, str], peer: Any
) -> None:
    home, gate = tmp_path / "home", tmp_path / "gate"
    other = await Other.launch(home, child_environment, tmp_path)
    await other.ask("start", args=[str(gate), "x"])
    await begun(tmp_path, "X")
    other.stop(home)
    try:
        gate.touch()
        async with Engine(home) as engine:
            assert await engine.recover() == []
            assert [run.status for run in await engine.runs()] == ["running"]
    finally:
        other.send(signal.SIGCONT)
    assert await other.hear("ended") == "X"
    await other.close()
    assert labels(tmp_path) == ["x", "X"]


@pytest.mark.asyncio
async def test_an_owner_that_was_replaced_is_refused(tmp_path: Path, peer: Any, check_log: Check) -> None:
    home, gate, other_gate = tmp_path / "home", tmp_path / "gate", tmp_path / "other"
    async with Engine(home) as first, Engine(home) as second:
        handle = await first.start(peer.held, str(gate), "x")
        await begun(tmp_path, "X")
        # What a lost lock looks like from outside: the file is gone, and with it the proof of life.
        (home / "owners" / first.id).unlink()
        [taken] = await second.recover(wait=False)
        await begun(tmp_path, "X", 2)
        seen = first.metrics()["log_events"]
        other_gate.touch()
        gate.touch()
        with pytest.raises(RunFenced):
            await handle
        assert await taken == "X"
        assert first.metrics()["log_events"] == seen, "events of the old epoch were accepted"
        events = [event async for event in second.events(handle.id)]
        [epoch] = [event.epoch for event in events if isinstance(event, RunResumed)]
        assert epoch == 2
        result = await second.get_run(handle.id)
        assert (result.status, result.value, result.reused) == ("succeeded", "X", 1)
    assert check_log(home) == []


@pytest.mark.asyncio
async def test_a_replaced_owner_is_refused_however_much_happens_in_between(
    tmp_path: Path, peer: Any, check_log: Check
) -> None:
    """Other runs commit before the lost one does: the refusal must not depend on who notices the take-over first."""
    home, gate = tmp_path / "home", tmp_path / "gate"
    async with Engine(home) as first, Engine(home) as second:
        handle = await first.start(peer.held, str(gate), "x")
        await begun(tmp_path, "X")
        (home / "owners" / first.id).unlink()
        [taken] = await second.recover(wait=False)
        await begun(tmp_path, "X", 2)
        assert (await first.run(peer.burst, 2)).value == 6
        await first.prune(older_than="10d")
        gate.touch()
        with pytest.raises(RunFenced):
            await handle
        assert await taken == "X"
    assert check_log(home) == []


@pytest.mark.asyncio
async def test_two_processes_write_at_the_same_time(
    tmp_path: Path, child_environment: dict[str, str], peer: Any, check_log: Check
) -> None:
    home, runs = tmp_path / "home", 60
    other = await Other.launch(home, child_environment, tmp_path)
    expected = sum(3 * i for i in range(runs))
    async with Engine(home) as engine:
        other.tell("bursts", runs=runs)
        results = [await engine.run(peer.burst, i) for i in range(runs)]
        assert sum(result.value for result in results) == expected
        assert await other.hear("bursts") == expected
    await other.close()
    assert check_log(home) == []
    connection = sqlite3.connect(home / "treadle.db")
    assert connection.execute(
        "SELECT count(*), count(DISTINCT owner) FROM runs WHERE status='succeeded'"
    ).fetchone() == (2 * runs, 2)
    connection.close()
