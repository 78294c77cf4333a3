"""A resumed run takes over what it has recorded, by content and not by position, and performs the rest."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from treadle import Engine, Retry, RunResult, current, pipeline, step
from treadle.errors import ArgumentNotStorable, RunInterrupted, RunNotFound
from treadle.events import CallReused, DamageFound, RunResumed


class World:
    """What the steps look at and leave traces in; a test changes it between a run and its resume."""

    def __init__(self) -> None:
        self.performed: Counter[str] = Counter()
        self.blocked: set[str] = set()
        self.failing: set[str] = set()
        self.order: list[str] = []
        self.tokens: list[tuple[str, str]] = []
        self.reached = asyncio.Event()

    async def visit(self, label: str) -> None:
        self.performed[label] += 1
        self.tokens.append((label, current().token))
        if label in self.blocked:
            self.reached.set()
            await asyncio.Event().wait()
        if label in self.failing:
            raise ValueError(label)


WORLD = World()


@pytest.fixture(autouse=True)
def world() -> World:
    WORLD.__init__()  # type: ignore[misc]  # the steps hold this object
    return WORLD


@step(cache=False)
async def work(label: str) -> str:
    await WORLD.visit(label)
    return label.upper()


@step(cache=False)
async def also(label: str, before: str = "") -> str:
    await WORLD.visit(label)
    return before + label


@step(cache=False, retry=Retry(max_attempts=2, delay=0, jitter=False))
async def stubborn(label: str) -> str:
    await WORLD.visit(f"{label}{current().attempt}")
    return label


@step(persist=False)
async def fleeting(label: str) -> str:
    await WORLD.visit(label)
    return label


@step(cache=False)
async def bulky(label: str) -> bytes:
    await WORLD.visit(label)
    return label.encode() * 100_000


@pipeline
async def gathered() -> list[str]:
    return list(await asyncio.gather(*[work(label) for label in WORLD.order]))


@pipeline
async def one_by_one() -> list[str]:
    return [await work(label) for label in WORLD.order]


@pipeline
async def mapped() -> list[str]:
    return await work.map(list(WORLD.order))


@pipeline
async def dependent() -> str:
    first = work.submit("first")
    second = also.submit("second", first)  # type: ignore[arg-type]
    return await also("third", second)  # type: ignore[arg-type]


@pipeline
async def persistent_one() -> str:
    return await stubborn("s")


@pipeline
async def with_fleeting() -> str:
    return await fleeting("gone") + await work("stays") + await work("last")


@pipeline
async def with_bulky() -> int:
    return len(await bulky("b")) + len(await work("small")) + len(await work("last"))


@pipeline
async def part(label: str) -> str:
    return await work(f"{label}1") + await work(f"{label}2")


@pipeline
async def whole() -> str:
    return "".join([await part(label) for label in WORLD.order])


@pipeline(failure_mode="fail_fast")
async def with_arguments(data: Any, client: Any = None) -> int:
    await work("held")
    return len(data)


async def interrupt(home: Path, target: Any, *args: Any) -> str:
    """Start a run, wait until a body blocks, and close the engine on it; gives the run's id."""
    async with Engine(home) as engine:
        handle = await engine.start(target, *args)
        await WORLD.reached.wait()
        await engine.close(interrupt=True)
        with pytest.raises(RunInterrupted):
            await handle
    WORLD.blocked.clear()
    return str(handle.id)


async def recovered(home: Path) -> RunResult[Any]:
    """Recover the only interrupted run of a home."""
    async with Engine(home) as engine:
        [result] = await engine.recover()
        return result


# -- by content ---------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_another_order_takes_the_same_outcomes(tmp_path: Path, world: World) -> None:
    world.order, world.blocked = ["a", "b", "c"], {"c"}
    await interrupt(tmp_path / "home", gathered)
    world.order = ["c", "b", "a"]
    result = await recovered(tmp_path / "home")
    assert result.value == ["C", "B", "A"]
    assert world.performed == {"a": 1, "b": 1, "c": 2}
    assert (result.reused, result.performed, result.unclaimed) == (2, 1, 0)
    assert {name: call.reused for name, call in result.step_results.items()} == {
        "work": True,
        "work_2": True,
        "work_3": False,
    }
    assert {call.status for call in result.step_results.values()} == {"succeeded"}


@pytest.mark.asyncio
async def test_another_branch_gets_names_of_its_own_and_leaves_the_rest_unclaimed(tmp_path: Path, world: World) -> None:
    world.order, world.blocked = ["a", "b", "c"], {"c"}
    run_id = await interrupt(tmp_path / "home", gathered)
    world.order = ["x", "a", "c", "y"]
    async with Engine(tmp_path / "home") as engine:
        result = await engine.resume(run_id)
    assert result.value == ["X", "A", "C", "Y"]
    assert world.performed == {"a": 1, "b": 1, "c": 2, "x": 1, "y": 1}
    assert (result.reused, result.performed, result.unclaimed) == (1, 3, 1)
    values = {name: call.outputs["work"] for name, call in result.step_results.items()}
    assert {name: values[name] for name in ("work", "work_2", "work_3")} == {"work": "A", "work_2": "B", "work_3": "C"}
    assert sorted(values.values()) == ["A", "B", "C", "X", "Y"]


@pytest.mark.asyncio
async def test_equal_calls_take_one_recorded_outcome_each(tmp_path: Path, world: World) -> None:
    world.order, world.blocked = ["a", "a", "b", "a"], {"b"}
    await interrupt(tmp_path / "home", one_by_one)
    result = await recovered(tmp_path / "home")
    assert result.value == ["A", "A", "B", "A"]
    assert world.performed == {"a": 3, "b": 2}


@pytest.mark.asyncio
async def test_calls_that_never_started_keep_their_names(tmp_path: Path, world: World) -> None:
    world.blocked = {"first"}
    await interrupt(tmp_path / "home", dependent)
    result = await recovered(tmp_path / "home")
    assert result.value == "FIRSTsecondthird"
    assert list(result.step_results) == ["work", "also", "also_2"]


@pytest.mark.asyncio
async def test_a_map_over_other_items_takes_what_is_the_same(tmp_path: Path, world: World) -> None:
    world.order, world.blocked = ["a", "b", "c"], {"c"}
    await interrupt(tmp_path / "home", mapped)
    world.order = ["n", "b", "a", "c"]
    result = await recovered(tmp_path / "home")
    assert result.value == ["N", "B", "A", "C"]
    assert world.performed == {"a": 1, "b": 1, "c": 2, "n": 1}
    assert len(result.step_results) == 4


@pytest.mark.asyncio
async def test_child_runs_are_the_same_children(tmp_path: Path, world: World) -> None:
    world.order, world.blocked = ["a", "b"], {"b2"}
    home = tmp_path / "home"
    await interrupt(home, whole)
    async with Engine(home) as engine:
        before = {run.run_id: run.status for run in await engine.runs(children=True)}
        world.order = ["b", "a"]
        [result] = await engine.recover()
        after = {run.run_id: run.status for run in await engine.runs(children=True)}
    assert sorted(before.values()) == ["interrupted", "interrupted", "succeeded"]
    assert after == dict.fromkeys(before, "succeeded")
    assert result.value == "B1B2A1A2"
    assert world.performed == {"a1": 1, "a2": 1, "b1": 1, "b2": 2}


# -- what is performed again --------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_failed_call_is_performed_again_with_a_new_budget_and_the_numbers_go_on(
    tmp_path: Path, world: World
) -> None:
    world.failing = {"s1", "s2", "s3"}
    async with Engine(tmp_path / "home") as engine:
        first = await engine.run(persistent_one)
        assert first.status == "failed"
        assert first.step_results["stubborn"].attempts == 2
        again = await engine.resume(first.run_id)
        assert again.value == "s"
    assert again.run_id == first.run_id
    assert again.step_results["stubborn"].attempts == 4
    assert world.performed == {"s1": 1, "s2": 1, "s3": 1, "s4": 1}


@pytest.mark.asyncio
async def test_an_attempt_that_was_cut_off_uses_up_no_retry(tmp_path: Path, world: World) -> None:
    world.blocked, world.failing = {"s1"}, {"s2"}
    await interrupt(tmp_path / "home", persistent_one)
    result = await recovered(tmp_path / "home")
    assert result.value == "s"
    assert result.step_results["stubborn"].attempts == 3


@pytest.mark.asyncio
async def test_attempts_that_failed_before_the_interruption_stay_counted(tmp_path: Path, world: World) -> None:
    world.failing, world.blocked = {"s1", "s3", "s4"}, {"s2"}
    await interrupt(tmp_path / "home", persistent_one)
    result = await recovered(tmp_path / "home")
    assert result.status == "failed"
    assert isinstance(result.error, ValueError)
    assert world.performed == {"s1": 1, "s2": 1, "s3": 1}


@pytest.mark.asyncio
async def test_a_cancelled_run_can_be_resumed_and_not_recovered(tmp_path: Path, world: World) -> None:
    world.order, world.blocked = ["a", "b"], {"b"}
    async with Engine(tmp_path / "home") as engine:
        handle = await engine.start(one_by_one)
        await world.reached.wait()
        await engine.cancel(handle.id)
        world.blocked.clear()
        assert await engine.recover() == []
        assert (await engine.get_run(handle.id)).status == "cancelled"
        result = await engine.resume(handle.id)
    assert result.value == ["A", "B"]
    assert world.performed == {"a": 1, "b": 2}


@pytest.mark.asyncio
async def test_what_was_not_stored_is_performed_again(tmp_path: Path, world: World) -> None:
    world.blocked = {"last"}
    await interrupt(tmp_path / "home", with_fleeting)
    result = await recovered(tmp_path / "home")
    assert result.value == "goneSTAYSLAST"
    assert world.performed == {"gone": 2, "stays": 1, "last": 2}
    assert list(result.step_results) == ["fleeting", "work", "work_2"]


@pytest.mark.asyncio
async def test_a_succeeded_run_is_not_performed_again(tmp_path: Path, world: World) -> None:
    world.order = ["a"]
    async with Engine(tmp_path / "home") as engine:
        first = await engine.run(one_by_one)
        again = await engine.resume(first.run_id)
        assert again.value == ["A"]
        assert await engine.recover() == []
    assert world.performed == {"a": 1}


@pytest.mark.damaged_home
@pytest.mark.asyncio
async def test_a_small_artifact_that_was_damaged_is_made_again(tmp_path: Path, world: World) -> None:
    world.blocked = {"last"}
    home = tmp_path / "home"
    await interrupt(home, with_bulky)
    connection = sqlite3.connect(home / "treadle.db", isolation_level=None)
    number, body = connection.execute(
        "SELECT a.id, a.body FROM artifacts a JOIN names n ON n.id = a.name WHERE n.name='work'"
    ).fetchone()
    connection.execute("UPDATE artifacts SET body=? WHERE id=?", (body.replace(b"SMALL", b"SHALL"), number))
    connection.close()
    async with Engine(home) as engine:
        [result] = await engine.recover()
        damages = [event async for event in engine.events(result.run_id) if isinstance(event, DamageFound)]
    assert result.value == 100_000 + 5 + 4
    assert world.performed == {"b": 1, "small": 2, "last": 2}
    assert [(event.call, event.artifact) for event in damages] == [("work", number)]


@pytest.mark.parametrize("damage", [b"", b"x", None])
@pytest.mark.asyncio
async def test_a_large_artifact_that_was_damaged_is_made_again(
    damage: bytes | None, tmp_path: Path, world: World
) -> None:
    world.blocked = {"last"}
    home = tmp_path / "home"
    await interrupt(home, with_bulky)
    [blob] = [path for path in (home / "blobs").rglob("*") if path.is_file()]
    if damage is None:
        blob.unlink()
    else:
        blob.write_bytes(damage * 100_000)
    result = await recovered(home)
    assert result.value == 100_000 + 5 + 4
    assert world.performed == {"b": 2, "small": 1, "last": 2}
    assert list(result.step_results) == ["bulky", "work", "work_2"]


@pytest.mark.asyncio
async def test_a_recovery_that_is_interrupted_at_once_loses_nothing(tmp_path: Path, world: World) -> None:
    world.order, world.blocked = ["a", "b", "c"], {"c"}
    home = tmp_path / "home"
    await interrupt(home, gathered)
    for turns in range(3):
        async with Engine(home) as engine:
            [handle] = await engine.recover(wait=False)
            world.blocked = {"c"}
            for _ in range(turns * 2):
                await asyncio.sleep(0)
            await engine.close(interrupt=True)
            with pytest.raises(RunInterrupted):
                await handle
        world.blocked = set()
    async with Engine(home) as engine:
        [run] = await engine.runs()
        result = await engine.resume(run.run_id)
    assert result.value == ["A", "B", "C"]
    assert (world.performed["a"], world.performed["b"]) == (1, 1)
    assert list(result.step_results) == ["work", "work_2", "work_3"]


# -- the token ----------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_token_is_the_same_for_attempts_and_resumes_and_differs_between_calls(
    tmp_path: Path, world: World
) -> None:
    world.order, world.blocked = ["a", "b", "c"], {"a", "b", "c"}
    home = tmp_path / "home"
    await interrupt(home, gathered)
    world.order = ["c", "a", "b"]
    await recovered(home)
    tokens: dict[str, set[str]] = {}
    for label, token in world.tokens:
        tokens.setdefault(label, set()).add(token)
    assert all(world.performed[label] == 2 for label in "abc")
    assert {len(found) for found in tokens.values()} == {1}
    assert len(set.union(*tokens.values())) == 3


# -- changed code -------------------------------------------------------------------------

EDITED = """
    from treadle import pipeline, step

    @step
    async def changes(x: int) -> int:
        TRACE.append("changes")
        return x + {added}

    @step
    async def stays(x: int) -> int:
        TRACE.append("stays")
        return x * 2

    @step
    async def ends(x: int) -> int:
        TRACE.append("ends")
        if x < 0 or BROKEN:
            raise OSError("broken")
        return x

    @pipeline
    async def p() -> int:
        return await ends(await changes(1) + await stays(10))

    class Trace:
        def __init__(self):
            self.seen = []
        def append(self, text):
            self.seen.append(text)

    class Switch:
        def __init__(self):
            self.on = True
        def __bool__(self):
            return self.on

    TRACE, BROKEN = Trace(), Switch()
"""


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Any]]:
    """A module whose code can be changed: ``edited(1)``, then ``edited(2)``."""
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    (tmp_path / "code").mkdir()
    name = "edited_pipeline"

    def write(added: int) -> Any:
        path = tmp_path / "code" / f"{name}.py"
        path.write_text(textwrap.dedent(EDITED.format(added=added)))
        os.utime(path, (added * 1000, added * 1000))  # another mtime, or Python takes its own cached bytecode
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield write
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("changed", "value", "performed"), [("rerun", 120, ["changes", "ends"]), ("keep", 22, ["ends"])]
)
@pytest.mark.asyncio
async def test_resume_performs_changed_steps_again_or_keeps_them(
    changed: Any, value: int, performed: list[str], edited: Callable[[int], Any], tmp_path: Path
) -> None:
    module = edited(1)
    async with Engine(tmp_path / "home") as engine:
        failed = await engine.run(module.p)
        assert failed.status == "failed"
    module = edited(99)
    module.BROKEN.on = False
    async with Engine(tmp_path / "home") as engine:
        result = await engine.resume(failed.run_id, changed=changed)
        events = [event async for event in engine.events(failed.run_id)]
    assert result.value == value
    assert module.TRACE.seen == performed
    # With another input it is another call, and the one that failed stays what it was.
    names = ["changes", "stays", "ends"]
    assert list(result.step_results) == (names if changed == "keep" else [*names, "ends_2"])
    assert result.unclaimed == 0
    stale = {event.call: event.stale for event in events if isinstance(event, CallReused)}
    assert stale == ({"stays": False} if changed == "rerun" else {"changes": True, "stays": False})
    assert [event.changed for event in events if isinstance(event, RunResumed)] == [changed]


# -- arguments ----------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_an_argument_that_cannot_be_stored_makes_a_run_that_cannot_be_recovered(
    tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.blocked = {"held"}
    home = tmp_path / "home"
    with caplog.at_level(logging.WARNING, "treadle"):
        run_id = await interrupt(home, with_arguments, "four", threading.Lock())
        world.reached.clear()
        world.blocked = {"held"}
        await interrupt(home, with_arguments, "four", threading.Lock())
    hints = [record for record in caplog.records if "argument client" in record.getMessage()]
    assert len(hints) == 1, "one hint, and no more"
    async with Engine(home) as engine:
        assert [(run.status, run.recoverable) for run in await engine.runs()] == [("interrupted", False)] * 2
        assert await engine.recover() == []
        with pytest.raises(RunNotFound, match="arguments"):
            await engine.resume(run_id)


@pytest.mark.asyncio
async def test_with_a_key_an_argument_that_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    async with Engine(tmp_path / "home") as engine:
        with pytest.raises(ArgumentNotStorable) as caught:
            await engine.start(with_arguments.with_options(idempotency_key="k"), "data", threading.Lock())
        assert caught.value.parameter == "client"
        assert await engine.runs() == []


@pytest.mark.asyncio
async def test_options_of_the_call_are_kept_over_a_resume(tmp_path: Path, world: World) -> None:
    world.order, world.blocked = ["a"], {"a"}
    run_id = await interrupt(tmp_path / "home", one_by_one.with_options(name="renamed"))
    result = await recovered(tmp_path / "home")
    assert (result.run_id, result.pipeline, result.value) == (run_id, "renamed", ["A"])


RECOVER = """
import asyncio, sys
from treadle import Engine
async def main():
    async with Engine(sys.argv[1]) as engine:
        for result in await engine.recover():
            print(result.pipeline, result.value, result.reused)
asyncio.run(main())
"""

START = """
import asyncio, sys
import crash_shapes
from treadle import Engine
from treadle.storage import failpoints
async def main():
    async with Engine(sys.argv[1]) as engine:
        failpoints.arm("performed", 2)
        await engine.run(crash_shapes.with_large_arguments, b"x" * 200_000, list(range(30_000)))
asyncio.run(main())
"""


@pytest.mark.crash
def test_a_new_process_imports_the_pipeline_and_loads_large_arguments(
    tmp_path: Path, child_environment: dict[str, str]
) -> None:
    environment = child_environment | {"TREADLE_TEST_LEDGER": str(tmp_path / "ledger")}
    home = str(tmp_path / "home")
    killed = subprocess.run(
        [sys.executable, "-c", START, home], env=environment, capture_output=True, text=True, timeout=60
    )
    assert killed.returncode == -9, killed.stderr
    other = subprocess.run(
        [sys.executable, "-c", RECOVER, home], env=environment, capture_output=True, text=True, timeout=60
    )
    assert other.stdout.splitlines() == [f"with_large_arguments {200_000 + sum(range(30_000))} 1"], other.stderr


@pytest.mark.asyncio
async def test_a_run_that_does_not_exist_is_not_found(tmp_path: Path) -> None:
    async with Engine(tmp_path / "home") as engine:
        with pytest.raises(RunNotFound):
            await engine.resume("nobody")
