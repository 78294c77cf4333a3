"""What a failure does to the rest of a static run: at once, since nobody can handle it; and every step has a result."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from treadle import Engine, Pipeline, pipeline, step
from treadle.errors import RunCancelled, RunTimeout, UpstreamFailed
from treadle.testing import VirtualClock


@pytest.fixture
def gate() -> asyncio.Event:
    return asyncio.Event()


def shape(gate: asyncio.Event, **options: Any) -> Pipeline:
    """``broken`` fails, ``after`` needs it; ``slow`` waits for the gate, and ``behind`` needs that."""

    @step(outputs=["a"], cache=False)
    async def broken() -> int:
        raise LookupError("broken")

    @step(cache=False)
    async def after(a: int) -> int:
        return a

    @step(outputs=["b"], cache=False)
    async def slow() -> int:
        await gate.wait()
        return 1

    @step(cache=False)
    async def behind(b: int) -> int:
        return b

    return Pipeline("p", **options).add_steps(slow, broken, after, behind)


def statuses(result: Any) -> dict[str, str]:
    return {name: step_result.status for name, step_result in result.step_results.items()}


@pytest.mark.asyncio
async def test_fail_fast_cancels_at_the_failure_although_nobody_awaits_it(home: str, gate: asyncio.Event) -> None:
    async with Engine(home) as engine:
        result = await asyncio.wait_for(engine.run(shape(gate)), 10)  # the gate never opens
        assert statuses(result) == {"slow": "cancelled", "broken": "failed", "after": "skipped", "behind": "cancelled"}
        assert result.status == "failed"
        assert isinstance(result.error, LookupError)
        assert isinstance(result.step_results["after"].error, UpstreamFailed)


@pytest.mark.asyncio
async def test_stop_lets_running_calls_finish_and_starts_nothing_new(home: str, gate: asyncio.Event) -> None:
    async with Engine(home) as engine:
        handle = await engine.start(shape(gate, failure_mode="stop"))
        async for event in handle.events():
            if event.kind == "CallSkipped":
                gate.set()
        result = await handle.wait()
        assert statuses(result) == {
            "slow": "succeeded", "broken": "failed", "after": "skipped", "behind": "cancelled",
        }  # fmt: skip
        assert not result.success


@pytest.mark.asyncio
async def test_continue_lets_everything_finish_but_what_depends_on_the_failure(home: str, gate: asyncio.Event) -> None:
    async with Engine(home) as engine:
        gate.set()
        result = await engine.run(shape(gate, failure_mode="continue"))
        assert statuses(result) == {
            "slow": "succeeded", "broken": "failed", "after": "skipped", "behind": "succeeded",
        }  # fmt: skip
        assert result.outputs == {"b": 1, "behind": 1}
        with pytest.raises(LookupError):
            _ = result.value


@pytest.mark.asyncio
async def test_awaiting_the_pipeline_raises_the_step_s_own_error(home: str, gate: asyncio.Event) -> None:
    async with Engine(home):
        with pytest.raises(LookupError, match="broken"):
            await shape(gate)()


@pytest.mark.asyncio
async def test_a_failure_while_many_steps_are_still_being_submitted_is_answered_at_once(home: str) -> None:
    performed = 0

    @step(cache=False)
    async def work() -> int:
        nonlocal performed
        performed += 1
        return 1

    @step(cache=False)
    async def broken() -> int:
        raise LookupError("broken")

    async with Engine(home, max_concurrency=4) as engine:
        result = await engine.run(Pipeline("p").add_steps(broken, [work] * 1000))
        found = list(statuses(result).values())
        assert len(found) == 1001
        assert performed < 900
        assert isinstance(result.error, LookupError)
        assert set(found) <= {"failed", "cancelled", "succeeded"}


@pytest.mark.parametrize("count", [3, 500])
@pytest.mark.asyncio
async def test_a_cancelled_run_has_a_result_for_every_step(home: str, count: int) -> None:
    started = asyncio.Event()

    @step(cache=False)
    async def forever() -> None:
        started.set()
        await asyncio.Event().wait()

    async with Engine(home) as engine:
        handle = await engine.start(Pipeline("p").add_steps([forever] * count))
        await started.wait()
        await handle.cancel()
        result = await handle.wait()
        assert isinstance(result.error, RunCancelled)
        assert set(statuses(result).values()) == {"cancelled"}
        assert len(result.step_results) == count


@pytest.mark.asyncio
async def test_a_run_that_is_cancelled_before_it_begins_has_a_result_for_every_step(home: str) -> None:
    @step(cache=False)
    async def never(x: int = 1) -> int:
        return x

    async with Engine(home) as engine:
        handle = Pipeline("p").add_steps([never] * 3).start()
        await handle.cancel()
        result = await handle.wait()
        assert result.status == "cancelled"
        assert statuses(result) == dict.fromkeys(("never", "never_2", "never_3"), "cancelled")
        assert engine.metrics()["calls_active"] == 0


@pytest.mark.asyncio
async def test_the_time_limit_of_the_run_ends_its_steps(home: str, gate: asyncio.Event) -> None:
    @step(outputs=["b"], cache=False)
    async def slow() -> int:
        gate.set()
        return await asyncio.Event().wait()

    @step
    async def behind(b: int) -> int:
        return b

    clock = VirtualClock()
    engine = Engine(home)
    engine.use_clock(clock)
    async with engine:
        handle = await engine.start(Pipeline("p", timeout=30).add_steps(behind, slow))
        await gate.wait()
        await clock.advance(31)
        result = await handle.wait()
        assert isinstance(result.error, RunTimeout)
        assert len(result.step_results) == 2


def test_debug_raises_the_step_s_own_error_out_of_run(default_home: object, gate: asyncio.Event) -> None:
    gate.set()
    with pytest.raises(LookupError, match="broken"):
        shape(gate).run(debug=True)


@pytest.mark.asyncio
async def test_debug_runs_one_step_after_another(home: str) -> None:
    running: list[str] = []
    most = 0

    @step
    async def work() -> int:
        nonlocal most
        running.append("work")
        most = max(most, len(running))
        await asyncio.sleep(0)
        running.pop()
        return 1

    async with Engine(home) as engine:
        assert (await engine.run(Pipeline("p").add_steps([work] * 5), debug=True)).success
        assert most == 1


@pytest.mark.asyncio
async def test_retries_time_outs_and_the_cache_are_those_of_any_step(home: str) -> None:
    attempts = 0

    @step(retry=2, outputs=["value"], cache="input_hash")
    def flaky() -> int:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise OSError("again")
        return attempts

    clock = VirtualClock()
    engine = Engine(home)
    engine.use_clock(clock)
    async with engine:
        handle = await engine.start(Pipeline("p").add_step(flaky))
        waiting = asyncio.ensure_future(handle.wait())
        while not waiting.done():
            await clock.advance(1)
        assert waiting.result().step_results["flaky"].attempts == 3


@pytest.mark.asyncio
async def test_a_map_that_fails_in_a_static_pipeline_fails_the_run(home: str, caplog: Any) -> None:
    @step(cache=False)
    async def odd(n: int) -> int:
        if n % 2:
            raise ValueError(str(n))
        return n

    @step(cache=False)
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    @pipeline(static=True, failure_mode="continue")
    def p() -> Any:
        return total(odd.map(range(4)))

    gc.collect()  # complaints about what other tests of this process have left are not this one's
    caplog.clear()

    async with Engine(home) as engine:
        result = await engine.run(p)
        assert statuses(result) == {
            "odd[0]": "succeeded", "odd[1]": "failed", "odd[2]": "succeeded", "odd[3]": "failed", "total": "skipped",
        }  # fmt: skip
        assert [str(error).splitlines()[0] for error in result.errors] == ["1", "3"]
    assert not [record for record in caplog.records if record.name == "asyncio"]


# -- child runs ---------------------------------------------------------------------------


@step(cache=False)
async def increase(n: int) -> int:
    return n + 1


@pytest.mark.asyncio
async def test_what_takes_the_value_of_a_failed_child_run_is_skipped(home: str) -> None:
    @pipeline
    async def child(n: int) -> int:
        raise LookupError("child")

    @pipeline(static=True, failure_mode="continue")
    def parent() -> Any:
        first = child(increase(1))  # type: ignore[arg-type]
        return [increase(first), increase(increase(first)), increase(10)]  # type: ignore[arg-type]

    async with Engine(home) as engine:
        result = await engine.run(parent)
        assert statuses(result) == {
            "increase": "succeeded", "increase_5": "succeeded",
            "increase_2": "skipped", "increase_3": "skipped", "increase_4": "skipped",
        }  # fmt: skip
        assert isinstance(result.error, LookupError)
        assert result.step_results["increase_2"].skip_reason == "upstream"


@pytest.mark.asyncio
async def test_a_child_run_whose_input_failed_never_begins(home: str) -> None:
    @step(cache=False)
    async def broken() -> int:
        raise LookupError("broken")

    @pipeline
    async def child(n: int) -> int:
        return n

    @pipeline(static=True, failure_mode="continue")
    def parent() -> Any:
        return increase(child(broken()))  # type: ignore[arg-type]

    async with Engine(home) as engine:
        result = await engine.run(parent)
        assert statuses(result) == {"broken": "failed", "increase": "skipped"}
        assert isinstance(result.error, LookupError)
        assert len(await engine.runs(children=True)) == 1


@pytest.mark.asyncio
async def test_a_failure_beside_a_child_run_cancels_it_under_fail_fast(home: str) -> None:
    started = asyncio.Event()

    @pipeline
    async def child() -> int:
        started.set()
        await asyncio.Event().wait()
        return 1

    @step(cache=False)
    async def broken() -> None:
        await started.wait()
        raise LookupError("broken")

    @pipeline(static=True)
    def parent() -> Any:
        broken()
        return increase(child())  # type: ignore[arg-type]

    async with Engine(home) as engine:
        result = await asyncio.wait_for(engine.run(parent), 10)
        assert statuses(result) == {"broken": "failed", "increase": "cancelled"}
        assert isinstance(result.error, LookupError)
        children = [run for run in await engine.runs(children=True) if run.pipeline == "child"]
        assert [run.status for run in children] == ["cancelled"]


@pytest.mark.asyncio
async def test_cancelling_a_run_cancels_its_child_runs_and_what_waits_for_them(home: str) -> None:
    started = asyncio.Event()

    @pipeline
    async def child() -> int:
        started.set()
        await asyncio.Event().wait()
        return 1

    @pipeline(static=True)
    def parent() -> Any:
        return increase(child())  # type: ignore[arg-type]

    async with Engine(home) as engine:
        handle = await engine.start(parent)
        await started.wait()
        await handle.cancel()
        result = await handle.wait()
        assert result.status == "cancelled"
        assert statuses(result) == {"increase": "cancelled"}
        assert {run.status for run in await engine.runs(children=True)} == {"cancelled"}


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", ["fail_fast", "stop", "continue"])
async def test_what_takes_the_value_of_a_failed_child_run_is_skipped_in_every_mode(home: str, mode: Any) -> None:
    @pipeline
    async def child() -> int:
        raise LookupError("broken")

    @pipeline(static=True, failure_mode=mode)
    def parent() -> Any:
        return increase(increase(child()))  # type: ignore[arg-type]

    async with Engine(home) as engine:
        result = await engine.run(parent)
        assert isinstance(result.error, LookupError)
        assert statuses(result) == {"increase": "skipped", "increase_2": "skipped"}
        assert {call.skip_reason for call in result.step_results.values()} == {"upstream"}


def _chain_behind_a_failure(gate: asyncio.Event, count: int, mode: Any) -> Any:
    """A step that fails, ``count`` more behind it, and one beside them."""

    @step(outputs=["v0"], cache=False)
    async def broken() -> int:
        raise LookupError("broken")

    @step(outputs=["beside"], cache=False)
    async def beside() -> None:
        await gate.wait()

    def link(number: int) -> Any:
        @step(name=f"link_{number}", inputs=[f"v{number}"], outputs=[f"v{number + 1}"])
        async def link(value: int) -> int:
            return value

        return link

    return Pipeline("chain", failure_mode=mode).add_steps(beside, broken, *map(link, range(count)))


@pytest.mark.parametrize("mode", ["fail_fast", "stop", "continue"])
@pytest.mark.parametrize("count", [3, 400])
@pytest.mark.asyncio
async def test_what_depends_on_a_failure_is_skipped_however_far_behind_it(
    home: str, gate: asyncio.Event, count: int, mode: Any
) -> None:
    async with Engine(home) as engine:
        handle = await engine.start(_chain_behind_a_failure(gate, count, mode))
        async for event in handle.events():
            if event.kind == "CallSkipped":
                gate.set()
        result = await handle.wait()
        behind = [call for name, call in result.step_results.items() if name.startswith("link_")]
        assert {(call.status, call.skip_reason) for call in behind} == {("skipped", "upstream")}
        assert len(behind) == count
        assert {str(call.error.__cause__) for call in behind if call.error is not None} == {"broken"}
        assert [str(error) for error in result.errors] == ["broken"]
        assert statuses(result)["beside"] == ("cancelled" if mode == "fail_fast" else "succeeded")


@pytest.mark.asyncio
async def test_what_takes_what_a_failed_map_was_for_is_skipped_as_well(home: str) -> None:
    @step(cache=False)
    async def odd(number: int) -> int:
        if number == 3:
            raise LookupError("three")
        await asyncio.Event().wait()
        return number

    @step(cache=False)
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    @step(cache=False)
    async def twice(number: int) -> int:
        return number * 2

    @pipeline(static=True)
    def work() -> Any:
        return twice(twice(total(odd.map([1, 2, 3]))))

    async with Engine(home) as engine:
        result = await engine.run(work)
        assert str(result.error) == "three"
        assert statuses(result) == {
            "odd[0]": "cancelled", "odd[1]": "cancelled", "odd[2]": "failed", "total": "skipped", "twice": "skipped",
            "twice_2": "skipped",
        }  # fmt: skip


@pytest.mark.parametrize("mode", ["fail_fast", "stop"])
@pytest.mark.parametrize("durability", ["strict", "relaxed", "memory"])
@pytest.mark.asyncio
async def test_a_failure_that_leaves_only_waiting_calls_ends_the_run_in_every_durability(
    home: str, durability: Any, mode: Any
) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    @step(cache=False)
    async def broken() -> int:
        begun.set()
        await go.wait()
        raise LookupError("broken")

    @step(cache=False)
    async def work(number: int) -> int:
        return number

    @pipeline(static=True, max_concurrency=1, failure_mode=mode)
    def line() -> Any:
        return broken(), work(work(work(1))), work.map([1, 2])

    @pipeline(max_concurrency=1, failure_mode=mode)
    async def dynamic() -> Any:
        broken.submit()
        last = work.submit(work.submit(work.submit(1)))
        return last, work.map([1, 2])

    place = "memory://" if durability == "memory" else home
    async with asyncio.timeout(20), Engine(place, durability=durability) as engine:
        for target in (line, dynamic):
            begun.clear()
            go.clear()
            handle = await engine.start(target)
            await begun.wait()
            go.set()
            result = await handle.wait()
            assert str(result.error) == "broken"
            found = statuses(result)
            assert found.pop("broken") == "failed"
            # Some more may be performed when the failed call has given its place back; nothing else depends on it.
            assert "cancelled" in found.values()
            assert set(found.values()) <= {"cancelled", "succeeded"}
