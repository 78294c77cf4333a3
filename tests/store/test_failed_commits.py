"""A commit that fails, before or after it took effect: nothing is retried, doubled, lost from the middle or claimed."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from storekit import until

from treadle import Engine, pipeline, step
from treadle.errors import LogUnavailable

CALLS = 200


class Ledger:
    """Notes what was performed; no plain data, or it would count as a part of the steps' code."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def count(self, x: int) -> int:
        return self.seen.count(x)


performed = Ledger()


@step(cache=False)
async def square(x: int) -> int:
    performed.seen.append(x)
    return x * x


@pipeline
async def squares(n: int) -> int:
    return sum(await square.map(range(n)))


@pipeline
async def one_by_one(n: int) -> int:
    return sum([await square(x) for x in range(n)])


class Failing:
    """A connection whose n-th COMMIT fails with a disk error; ``late`` means after it took effect."""

    def __init__(self, connection: sqlite3.Connection, nth: int, *, late: bool, message: str) -> None:
        self._connection, self._nth, self._late, self._message = connection, nth, late, message
        self.is_closed = False
        self.after: list[str] = []

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        if self._nth <= 0:
            self.after.append(sql)
        if sql == "COMMIT":
            self._nth -= 1
            if self._nth == 0:
                if self._late:
                    self._connection.execute(sql)
                raise sqlite3.OperationalError(self._message)
        return self._connection.execute(sql, parameters)

    def close(self) -> None:
        self.is_closed = True
        self._connection.close()


def fail_commit(engine: Engine, nth: int, *, late: bool, message: str = "disk I/O error") -> Failing:
    """Have the engine's n-th commit from now on fail."""
    writer = engine.log._writer
    failing = Failing(writer.connection, nth, late=late, message=message)
    writer.connection = failing  # type: ignore[assignment]  # it stands for one
    return failing


@pytest.mark.parametrize("late", [False, True], ids=["before it took effect", "after it took effect"])
@pytest.mark.parametrize("target", [squares, one_by_one])
def test_a_failed_commit_is_never_retried_and_the_run_goes_on_from_the_log(
    home: Path, late: bool, target: Any, check_log: Callable[[Path], list[str]]
) -> None:
    async def main() -> None:
        performed.seen.clear()
        async with Engine(home) as engine:
            await engine.run(target, 2)
            performed.seen.clear()
            failing = fail_commit(engine, 2, late=late)
            handle = await engine.start(target, CALLS)
            with pytest.raises(LogUnavailable, match=r"disk I/O error.*tries again by itself") as caught:
                await handle
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
            assert failing.is_closed
            assert failing.after == []  # not one more statement on that connection
            assert engine.health()["status"] == "degraded"
            await until(lambda: engine.health()["status"] == "ok")
            result = await engine.get_run(handle.id)
            assert result.status == "interrupted"
            held = [call for call in result.step_results.values() if call.status == "succeeded"]
            again = await engine.resume(handle.id)
            assert again.value == sum(x * x for x in range(CALLS))
            # what the log held was not performed again, and what it did not hold once more at most
            assert sum(call.reused for call in again.step_results.values()) == len(held)
            assert max(performed.count(x) for x in range(CALLS)) <= 2
            assert sum(performed.count(x) == 1 for x in range(CALLS)) >= len(held)
        assert check_log(home) == []

    asyncio.run(main())


def test_an_outcome_that_was_committed_although_the_commit_failed_is_kept(home: Path) -> None:
    """Allowed, and documented: the future raised, the log holds the outcome; a resume takes it over."""

    async def main() -> None:
        performed.seen.clear()
        async with Engine(home) as engine:
            handle = await engine.start(one_by_one, 1)
            failing = fail_commit(engine, 1, late=True)
            with pytest.raises(LogUnavailable):
                await handle
            assert failing.is_closed
            await until(lambda: engine.health()["status"] == "ok")
            result = await engine.resume(handle.id)
            assert result.value == 0
            assert performed.seen == [0]

    asyncio.run(main())


def test_a_run_whose_acceptance_was_not_committed_never_existed(home: Path) -> None:
    async def main() -> None:
        async with Engine(home) as engine:
            fail_commit(engine, 1, late=False)
            with pytest.raises(LogUnavailable):
                await engine.start(squares, 100)
            await until(lambda: engine.health()["status"] == "ok" and not engine.runs_here)
            assert await engine.runs() == []
            assert [event async for event in engine.events()] == []
            assert (await engine.run(squares, 3)).value == 5

    asyncio.run(main())


def test_the_last_commit_of_a_run_fails_and_it_has_not_succeeded(home: Path) -> None:
    async def main() -> None:
        async with Engine(home) as engine:
            ending = asyncio.Event()
            go = asyncio.Event()

            @pipeline
            async def slow() -> int:
                await square(3)
                ending.set()
                await go.wait()
                return 1

            handle = await engine.start(slow)
            await ending.wait()
            await engine.log.flush()
            fail_commit(engine, 1, late=False)
            go.set()
            result = await handle.wait()
            assert result.status == "interrupted"
            assert not result.success
            with pytest.raises(LogUnavailable):
                result.raise_for_failure()
            await until(lambda: engine.health()["status"] == "ok")
            assert (await engine.get_run(handle.id)).status == "interrupted"

    asyncio.run(main())


@pytest.mark.parametrize("durability", ["strict", "relaxed"])
def test_a_run_that_lost_facts_leaves_a_prefix_and_other_runs_go_on(home: Path, durability: Any) -> None:
    async def main() -> None:
        async with Engine(home, durability=durability) as engine:
            gate = asyncio.Event()

            @pipeline
            async def patient() -> int:
                await gate.wait()
                return await square(5)

            other = await engine.start(patient)
            await engine.log.flush()
            fail_commit(engine, 20 if durability == "strict" else 3, late=False)
            handle = await engine.start(one_by_one, 400)
            result = await handle.wait()
            assert result.status == "interrupted"
            await until(lambda: engine.health()["status"] == "ok")
            gate.set()
            assert await other == 25
            names = [call.name for call in (await engine.get_run(handle.id)).step_results.values()]
            assert names == ["square", *(f"square_{n}" for n in range(2, 401))][: len(names)]
            assert len(names) < 400

    asyncio.run(main())


def test_a_body_that_goes_on_for_long_is_stopped_when_its_run_has_lost_facts(home: Path) -> None:
    async def main() -> None:
        began, is_broken = asyncio.Event(), asyncio.Event()

        @step(cache=False)
        async def endless() -> None:
            began.set()
            await asyncio.Event().wait()

        @pipeline
        async def mixed() -> None:
            forever = endless.submit()
            await is_broken.wait()
            await square(1)
            await forever

        async with Engine(home) as engine:
            handle = await engine.start(mixed)
            await began.wait()
            fail_commit(engine, 1, late=False)
            is_broken.set()
            with pytest.raises(LogUnavailable):
                async with asyncio.timeout(5):
                    await handle

    asyncio.run(main())


def test_closing_while_the_log_fails_does_not_hang(home: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            async with Engine(home, close_timeout=0.1) as engine:
                began = asyncio.Event()

                @pipeline
                async def waiting() -> None:
                    await square(1)
                    began.set()
                    await asyncio.Event().wait()

                handle = await engine.start(waiting)
                await began.wait()
                fail_commit(engine, 1, late=False)
        async with Engine(home) as engine:
            assert (await engine.get_run(handle.id)).status == "interrupted"

    asyncio.run(main())


def test_the_reason_of_every_refusal_is_an_exception_of_its_own(home: Path) -> None:
    """One instance that is raised again and again would collect the traceback of each place."""

    async def main() -> None:
        async with Engine(home) as engine:
            fail_commit(engine, 1, late=False)
            errors: list[BaseException] = []
            for _ in range(3):
                with pytest.raises(LogUnavailable) as caught:
                    await engine.start(squares, 1)
                errors.append(caught.value)
            assert len({id(error) for error in errors}) == 3

    asyncio.run(main())
