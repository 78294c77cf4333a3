"""What every executor has to pass: derive a class from ``ExecutorSuite`` in a test module, and pytest runs all of it.

class TestMine(ExecutorSuite):
    runtime = "mine"

    def executors(self):
        return {"mine": MyExecutor()}
"""

from __future__ import annotations

import asyncio
import datetime
import decimal
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from treadle._runtime.engine import Engine
from treadle._runtime.guards.decorators import retry
from treadle._runtime.pipeline import pipeline
from treadle.contracts import Executor
from treadle.errors import RunCancelled, StepCrashed, StepNotImportable, StepTimeout
from treadle.storage import codecs
from treadle.testing import zoo
from treadle.testing.watching import Watch, comes_about, descendants, is_held

VALUES: list[Any] = [
    None, True, 0, -(2**70), 1.5, float("inf"), 2j, "", "ä\0", b"\xff", [1, (2, {3})], {"a": {1: [None]}},
    frozenset({1}),
    datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC), datetime.timedelta(days=1), decimal.Decimal("1.10"),
    Path("a/b"), zoo.Point(1, ("x",)), [zoo.Point(2)], range(3), Ellipsis,
]  # fmt: skip
LIMIT_S = 60.0
SOON_S = 10.0
"""How long an executor may take to end an attempt, to hand on what a step says, to begin what it has a slot for."""
BLOCKED_S = 10.0
"""How long the event loop may stand still."""

Scene = Callable[[Engine], Awaitable[Any]]


class ExecutorSuite:
    """Tests of one executor.

    Attributes:
        runtime: the name under which steps ask for it.
        is_async: whether bodies are ``async def``; executors that are not inline take both.
        is_isolated: whether bodies run in another process, which can be killed.
    """

    runtime = "inline"
    is_async = False
    is_isolated = True

    def executors(self) -> Mapping[str, Executor]:
        """What the engine is given as ``executors=``; new objects each time."""
        return {}

    def step(self, name: str) -> Any:
        """A step of the zoo that runs on this executor."""
        return zoo.of(name, self.runtime, is_async=self.is_async)

    def play(self, home: Path, scene: Scene, **options: Any) -> Any:
        """Run a scene on an engine of its own; bodies that hang end when there is a file ``stop`` beside its home."""
        watch = Watch(BLOCKED_S, (home.parent / "stop").touch)

        async def main() -> Any:
            turning = asyncio.create_task(watch.turn())
            try:
                async with asyncio.timeout(LIMIT_S), Engine(home, executors=self.executors(), **options) as engine:
                    return await scene(engine)
            finally:
                turning.cancel()
                watch.stop()

        try:
            outcome = asyncio.run(main())
        except BaseException as error:
            self.blames(watch, error)
            raise
        self.blames(watch)
        return outcome

    def blames(self, watch: Watch, error: BaseException | None = None) -> None:
        """Raise if the event loop stood still; whatever else has gone wrong then comes from that."""
        watch.stop()
        if watch.was_blocked:
            raise AssertionError(
                f"executor {self.runtime!r} has blocked the event loop for more than {BLOCKED_S:g} s, so that no"
                " time-out and no cancellation came about: wait with `await`, or in a thread (asyncio.to_thread)"
            ) from error

    async def ends(self, folder: Path) -> None:
        """See that no body that hung goes on, in another process, though nobody has let it end."""
        if self.is_isolated:
            ended = await comes_about(lambda: not is_held(folder / "alive"), SOON_S)
            assert ended, f"executor {self.runtime!r} has given up an attempt whose body goes on {SOON_S:g} s later"

    # -- values and types -----------------------------------------------------------------

    def test_values_come_back_equal_and_of_equal_types(self, tmp_path: Path) -> None:
        """Also at depth, and whatever their class."""
        echo = self.step("echo")

        @pipeline
        async def flow() -> list[Any]:
            values: list[Any] = await echo.map(VALUES)
            return values

        async def scene(engine: Engine) -> None:
            result = await engine.run(flow)
            assert codecs.digest(result.value) == codecs.digest(VALUES)

        self.play(tmp_path / "home", scene)

    def test_arguments_arrive_by_position_and_by_name(self, tmp_path: Path) -> None:
        """Futures among them too, in containers too."""
        echo = self.step("echo")

        @pipeline
        async def flow() -> Any:
            one = echo.submit(1)
            return await echo(one, [one, {"k": one}], 3, named=one, also=(one,))

        async def scene(engine: Engine) -> None:
            value = (await engine.run(flow)).value
            assert value == [1, ([1, {"k": 1}], 3), {"named": 1, "also": (1,)}]

        self.play(tmp_path / "home", scene)

    def test_several_outputs_are_single_futures(self, tmp_path: Path) -> None:
        """Each of them is an artifact, and can be passed on by itself."""
        bounds, echo = self.step("bounds"), self.step("echo")

        @pipeline
        async def flow() -> Any:
            future = bounds.submit([3, 1, 2])
            high = await echo(future.output("high"))
            return await future, high, future.artifacts["low"].read()

        async def scene(engine: Engine) -> None:
            assert (await engine.run(flow)).value == ((1, 3), 3, 1)

        self.play(tmp_path / "home", scene)

    def test_a_value_has_the_same_digest_wherever_it_was_made(self, tmp_path: Path) -> None:
        """So where a step runs is no part of its cache key."""
        here, there = zoo.echo, self.step("echo")

        @pipeline
        async def flow() -> Any:
            first, second = here.submit({"a": (1, 2)}), there.with_options(cache=False).submit({"a": (1, 2)})
            await second
            return (await first) and (first.artifact.digest, second.artifact.digest)

        async def scene(engine: Engine) -> None:
            first, second = (await engine.run(flow)).value
            assert first == second

        self.play(tmp_path / "home", scene)

    # -- errors ---------------------------------------------------------------------------

    def test_an_error_comes_back_as_itself(self, tmp_path: Path) -> None:
        """Type, arguments, attributes, and a traceback that names the line."""
        fail = self.step("fail")

        @pipeline
        async def flow() -> None:
            await fail(7)

        async def scene(engine: Engine) -> None:
            error = (await engine.run(flow)).error
            assert type(error) is zoo.ZooError
            assert (error.args, error.code, error.hint) == (("code 7",), 7, "on purpose")
            if self.is_isolated:
                assert any('raise ZooError(code, hint="on purpose")' in note for note in error.__notes__)

        self.play(tmp_path / "home", scene)

    def test_a_failed_attempt_is_tried_again(self, tmp_path: Path) -> None:
        """As often as the policy says."""
        third_time = self.step("third_time")

        @pipeline
        async def flow() -> int:
            value: int = await third_time(str(tmp_path))
            return value

        async def scene(engine: Engine) -> None:
            result = await engine.run(flow)
            assert result.value == 3
            assert next(iter(result.step_results.values())).attempts == 3

        self.play(tmp_path / "home", scene)

    # -- what a step says -----------------------------------------------------------------

    def test_what_a_step_says_is_in_the_log_of_its_call(self, tmp_path: Path) -> None:
        """Logging, metadata, progress, of other processes both streams; and its token is the call's."""
        talk = self.step("talk")

        @pipeline
        async def flow() -> list[str]:
            tokens: list[str] = await talk.map(["one", "two"])
            return tokens

        async def scene(engine: Engine) -> None:
            result = await engine.run(flow)
            for index, word in enumerate(("one", "two")):
                name = f"{talk.name}[{index}]"
                said = [(line.level, line.message, line.stream) for line in await engine.logs(result.run_id, name)]
                assert ("warning", f"logged {word}", "log") in said
                for stream, text in (("stdout", f"printed {word}"), ("stderr", f"complained {word}")):
                    times = [line[1:] for line in said].count((text, stream))
                    assert not self.is_isolated or times == 1, f"{text!r} is in the log {times} times as {stream}"
                assert result.step_results[name].metadata == {"word": word, "attempt": 1}
            assert len(set(result.value)) == 2
            kinds = [type(event).__name__ async for event in engine.events(result.run_id)]
            assert kinds.count("Progressed") == 2

        self.play(tmp_path / "home", scene)

    def test_what_a_step_says_is_in_the_log_while_it_runs(self, tmp_path: Path) -> None:
        """As it happens, and not when the step has ended."""
        hang = self.step("hang")
        wanted = {("logged early", "log")}
        if self.is_isolated:
            wanted |= {("printed early", "stdout"), ("complained early", "stderr")}

        @pipeline
        async def flow() -> None:
            await hang(str(tmp_path))

        async def scene(engine: Engine) -> None:
            handle = await engine.start(flow)
            assert await comes_about((tmp_path / "hanging").exists, LIMIT_S)
            said: set[tuple[str, str]] = set()
            until = time.monotonic() + SOON_S
            try:
                while not wanted <= said:
                    late = f"not in the log {SOON_S:g} s later, while the step runs: {sorted(wanted - said)}"
                    assert time.monotonic() < until, late
                    await asyncio.sleep(zoo.POLL_S)
                    said = {(line.message, line.stream) for line in await engine.logs(handle.id, hang.name)}
            finally:
                (tmp_path / "stop").touch()
            await handle

        self.play(tmp_path / "home", scene)

    # -- slots ----------------------------------------------------------------------------

    def test_attempts_run_side_by_side_where_there_are_slots(self, tmp_path: Path) -> None:
        """Two at least, if ``slots`` says so; one with ``queues`` may have them wait."""
        executor = self.executors().get(self.runtime)
        if executor is not None and (executor.slots == 1 or getattr(executor, "queues", False)):
            return
        hang = self.step("hang")

        @pipeline
        async def flow() -> None:
            await hang.map([str(tmp_path)] * 2)

        def have_both_begun() -> bool:
            begun = tmp_path / "hanging"
            return begun.exists() and begun.stat().st_size == 2

        async def scene(engine: Engine) -> None:
            handle = await engine.start(flow)
            try:
                both = await comes_about(have_both_begun, SOON_S)
            finally:
                (tmp_path / "stop").touch()
            await handle
            slots = "as many as there are" if executor is None else executor.slots
            assert both, f"executor {self.runtime!r} has {slots} slots, and a second attempt waits for the first one"

        self.play(tmp_path / "home", scene)

    # -- ends -----------------------------------------------------------------------------

    def test_an_attempt_that_takes_too_long_times_out(self, tmp_path: Path) -> None:
        """And the engine goes on."""
        hang, echo = self.step("hang").with_options(timeout=0.3), self.step("echo")

        @pipeline
        async def flow() -> Any:
            try:
                await hang(str(tmp_path))
            except StepTimeout:
                return await echo("after")

        async def scene(engine: Engine) -> None:
            begun = time.monotonic()
            try:
                result = await engine.run(flow)
                took_s = time.monotonic() - begun
                assert result.value == "after"
                await self.ends(tmp_path)
            finally:
                (tmp_path / "stop").touch()
            assert took_s < 10

        self.play(tmp_path / "home", scene)

    def test_a_cancelled_run_ends_its_attempts(self, tmp_path: Path) -> None:
        """And they are on record as cancelled."""
        hang = self.step("hang")

        @pipeline
        async def flow() -> None:
            await hang(str(tmp_path))

        async def scene(engine: Engine) -> None:
            handle = await engine.start(flow)
            while not (tmp_path / "hanging").exists():  # noqa: ASYNC110  # another process says when
                await asyncio.sleep(zoo.POLL_S)
            await handle.cancel()
            try:
                await handle
            except RunCancelled:
                await self.ends(tmp_path)
            else:
                raise AssertionError("the run was cancelled")
            finally:
                (tmp_path / "stop").touch()
            result = await engine.get_run(handle.id)
            assert [found.status for found in result.step_results.values()] == ["cancelled"]

        self.play(tmp_path / "home", scene)

    def test_a_worker_that_dies_is_an_error_of_its_attempt(self, tmp_path: Path) -> None:
        """It is tried again by the engine alone, three times at the most, which goes on."""
        if not self.is_isolated:
            return
        die_once = retry(max_attempts=2, delay=0)(zoo.die_once).with_options(runtime=self.runtime)
        die = retry(max_attempts=9, delay=0)(zoo.die).with_options(runtime=self.runtime)
        be_killed = zoo.be_killed.with_options(runtime=self.runtime)

        @pipeline(failure_mode="continue")
        async def flow() -> Any:
            lost = [die.submit(5, str(tmp_path)), be_killed.submit(str(tmp_path))]
            twice = await die_once(str(tmp_path))
            await asyncio.wait(lost)
            return twice, *[each.exception() for each in lost]

        async def scene(engine: Engine) -> None:
            result = await engine.run(flow)
            twice, left, killed = result.value
            for error, how in ((left, (5, None)), (killed, (None, 9))):
                assert isinstance(error, StepCrashed), f"{error!r} is no StepCrashed"
                assert (error.exit_code, error.signal) == how
            assert result.step_results["die"].attempts == 3
            times = {name: (tmp_path / name).stat().st_size for name in ("dead", "died", "killed")}
            assert times == {"dead": 2, "died": 3, "killed": 1}, "a body was performed again, not by the engine"
            assert (twice, result.step_results["die_once"].attempts) == (2, 2)

        self.play(tmp_path / "home", scene, durability="memory")

    def test_a_step_that_cannot_be_imported_elsewhere_is_refused_at_submit(self, tmp_path: Path) -> None:
        """Before anything runs."""
        if not self.is_isolated:
            return
        local = zoo.echo.with_options(runtime=self.runtime)
        local = type(local)(lambda value: value, local.options)

        @pipeline
        async def flow() -> None:
            local.submit(1)

        async def scene(engine: Engine) -> None:
            result = await engine.run(flow)
            assert isinstance(result.error, StepNotImportable)
            assert not result.step_results

        self.play(tmp_path / "home", scene)

    def test_nothing_is_left_when_it_is_closed(self, tmp_path: Path) -> None:
        """No process, of those that this one can find by asking who has started whom."""
        if not self.is_isolated:
            return
        echo, before = self.step("echo"), descendants()

        @pipeline
        async def flow() -> Any:
            return await echo(1)

        async def scene(engine: Engine) -> None:
            assert (await engine.run(flow)).value == 1

        self.play(tmp_path / "home", scene)
        until = time.monotonic() + SOON_S
        while (left := descendants() - before) and time.monotonic() < until:
            time.sleep(zoo.POLL_S)
        assert not left, f"executor {self.runtime!r} is closed, and of what it has started these are left: {left}"

    # -- large values ---------------------------------------------------------------------

    def test_large_values_pass_from_step_to_step(self, tmp_path: Path) -> None:
        """As files, also where the engine keeps nothing."""
        blob, length = self.step("blob"), self.step("length")

        @pipeline
        async def flow() -> Any:
            data = blob.submit(300_000)
            sizes = await length.map([data, b"x" * 200_000, b"y"])
            return sizes, await data

        async def scene(engine: Engine) -> None:
            sizes, data = (await engine.run(flow)).value
            assert sizes == [299_776, 200_000, 1]
            assert data == bytes(range(256)) * 1171

        for durability in ("strict", "memory"):
            self.play(tmp_path / durability, scene, durability=durability)

    def test_large_outputs_are_what_an_inline_step_would_have_stored(self, tmp_path: Path) -> None:
        """The same digest and the same bytes, whether the executor's workers are trusted or not; so keys are, too."""
        there = [self.step("blob"), self.step("text")]
        here = [zoo.blob, zoo.text]

        @pipeline
        async def flow(made: list[Any]) -> Any:
            futures = [each.submit(200_000) for each in made]
            await asyncio.wait(futures)
            artifacts = [future.artifact for future in futures]
            return [(each.digest, each.size, each.codec, each.type, each.metadata) for each in artifacts]

        async def scene(engine: Engine) -> None:
            first, second = [(await engine.run(flow, made)).value for made in (there, here)]
            assert first == second

        self.play(tmp_path / "home", scene, cache=False)

    # -- caching and resuming -------------------------------------------------------------

    def test_a_second_call_is_a_hit(self, tmp_path: Path) -> None:
        """Small values and large ones, in the next engine too."""
        count, blob = self.step("count"), self.step("blob")

        @pipeline
        async def flow() -> Any:
            data = await blob(100_000)
            return await count(str(tmp_path)), len(data)

        async def scene(engine: Engine) -> list[str]:
            result = await engine.run(flow)
            assert result.value == (1, 99_840)
            return [found.status for found in result.step_results.values()]

        assert self.play(tmp_path / "home", scene) == ["succeeded"] * 2
        assert self.play(tmp_path / "home", scene) == ["cached"] * 2

    def test_a_resumed_run_takes_what_is_recorded(self, tmp_path: Path) -> None:
        """And performs the rest."""

        async def fails(engine: Engine) -> str:
            result = await engine.run(zoo.counted_then_failed, str(tmp_path), self.runtime, self.is_async)
            assert result.status == "failed"
            return result.run_id

        run_id = self.play(tmp_path / "home", fails, cache=False)
        (tmp_path / "mended").touch()

        async def resumes(engine: Engine) -> None:
            result = await engine.resume(run_id)
            assert result.value == [1, 1]
            assert [found.reused for found in result.step_results.values()] == [True, False]

        self.play(tmp_path / "home", resumes, cache=False)
