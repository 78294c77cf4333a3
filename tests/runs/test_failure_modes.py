"""What one failure does to the rest of a run, and what counts as handled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from treadle import Engine, RunResult, pipeline, step
from treadle.errors import UpstreamFailed

Drive = Callable[[Any], Any]


@step(cache=False)
async def fails(text: str) -> int:
    raise ValueError(text)


@step(cache=False)
async def adds(*numbers: int) -> int:
    return sum(numbers)


class Gates:
    """Steps that wait to be let through, made for the loop of one test."""

    def __init__(self) -> None:
        self.gate, self.started = asyncio.Event(), asyncio.Event()

        @step(cache=False)
        async def waits(x: int) -> int:
            self.started.set()
            await self.gate.wait()
            return x

        self.waits = waits

        @step(cache=False)
        async def fails_late(text: str) -> int:
            await self.started.wait()
            raise ValueError(text)

        self.fails_late = fails_late


def calls(result: RunResult[Any]) -> dict[str, str]:
    return {name: call.status for name, call in result.step_results.items()}


# -- fail_fast ----------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_fail_fast_cancels_what_is_in_flight_and_what_waits(home: str) -> None:
    gates = Gates()

    @pipeline
    async def three() -> int:
        waiting = gates.waits.submit(1)
        after = adds.submit(waiting, 1)
        await gates.fails_late("no")
        return await after

    async with Engine(home) as engine:
        result = await engine.run(three)
        assert result.status == "failed"
        assert calls(result) == {"waits": "cancelled", "adds": "cancelled", "fails_late": "failed"}
        assert [str(error) for error in result.errors] == ["no"]


@pytest.mark.asyncio
async def test_fail_fast_also_applies_to_an_unhandled_failure_after_the_function_returned(home: str) -> None:
    gates = Gates()

    @pipeline
    async def careless() -> str:
        gates.waits.submit(1)
        gates.fails_late.submit("unseen")
        return "returned"

    async with Engine(home) as engine:
        result = await engine.run(careless)
        assert (result.status, str(result.error)) == ("failed", "unseen")
        assert calls(result) == {"waits": "cancelled", "fails_late": "failed"}


@pytest.mark.asyncio
async def test_a_dynamic_run_waits_for_its_function_before_a_failure_counts(home: str) -> None:
    gates = Gates()

    @pipeline
    async def patient() -> int:
        failing = fails.submit("handled")
        await asyncio.wait([failing])
        gates.gate.set()
        value = await gates.waits(7)
        assert isinstance(failing.exception(), ValueError)
        return value

    async with Engine(home) as engine:
        result = await engine.run(patient)
        assert (result.status, result.value) == ("succeeded", 7)
        assert calls(result) == {"fails": "failed", "waits": "succeeded"}


# -- stop ---------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_stop_lets_running_calls_finish_and_starts_nothing_new(home: str) -> None:
    gates = Gates()

    @pipeline(failure_mode="stop")
    async def three() -> None:
        waiting = gates.waits.submit(1)
        adds.submit(waiting, 1)
        try:
            await gates.fails_late("no")
        finally:
            asyncio.get_running_loop().call_later(0.05, gates.gate.set)

    async with Engine(home) as engine:
        result = await engine.run(three)
        assert result.status == "failed"
        assert calls(result) == {"waits": "succeeded", "adds": "cancelled", "fails_late": "failed"}
        assert result.outputs["waits"] == 1


@pytest.mark.asyncio
async def test_stop_cancels_calls_that_stand_in_line(home: str) -> None:
    gates = Gates()

    @pipeline(failure_mode="stop", max_concurrency=2)
    async def many() -> None:
        gates.fails_late.submit("no")
        gates.waits.map(range(5))
        asyncio.get_running_loop().call_later(0.05, gates.gate.set)

    async with Engine(home) as engine:
        result = await engine.run(many)
        assert result.status == "failed"
        assert calls(result)["waits[0]"] == "succeeded"
        assert list(calls(result).values()).count("cancelled") >= 3
        assert len(calls(result)) == 6


@pytest.mark.asyncio
async def test_a_stopping_run_can_still_be_cancelled(home: str) -> None:
    gates = Gates()

    @pipeline(failure_mode="stop")
    async def three() -> None:
        gates.waits.submit(1)
        await gates.fails_late("no")

    async with Engine(home) as engine:
        handle = three.start()
        async for event in handle.events():
            if event.kind == "CallFailed":
                break
        await handle.cancel()
        result = await engine.get_run(handle.id)
        assert result.status == "cancelled"
        assert calls(result) == {"waits": "cancelled", "fails_late": "failed"}


# -- continue -----------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_continue_lets_everything_finish_but_the_dependents_of_what_failed(home: str) -> None:
    @pipeline(failure_mode="continue")
    async def diamond() -> str:
        bad, good = fails.submit("no"), adds.submit(1, 2)
        on_bad, on_good = adds.submit(bad, 1), adds.submit(good, 1)
        adds.submit(on_bad, on_good)
        adds.submit(on_good, 10)
        return "returned"

    async with Engine(home) as engine:
        result = await engine.run(diamond)
        assert result.status == "failed"
        assert str(result.error) == "no"
        assert calls(result) == {
            "fails": "failed", "adds": "succeeded", "adds_2": "skipped", "adds_3": "succeeded", "adds_4": "skipped",
            "adds_5": "succeeded",
        }  # fmt: skip
        assert result.step_results["adds_2"].skip_reason == "upstream"
        assert dict(result.outputs) == {"adds": 3, "adds_3": 4, "adds_5": 14}


@pytest.mark.asyncio
async def test_errors_come_in_the_order_of_submission(home: str) -> None:
    gates = Gates()

    @pipeline(failure_mode="continue")
    async def several() -> None:
        gates.started.clear()
        gates.fails_late.submit("first submitted, fails last")
        early = fails.submit("second")
        fails.submit("third")
        await asyncio.wait([early])
        gates.started.set()

    async with Engine(home) as engine:
        result = await engine.run(several)
        texts = ["first submitted, fails last", "second", "third"]
        assert [str(error) for error in result.errors] == texts
        again = await engine.get_run(result.run_id)
        assert [str(error) for error in again.errors] == texts


@pytest.mark.asyncio
async def test_equal_errors_of_several_calls_are_all_listed(home: str) -> None:
    @pipeline(failure_mode="continue")
    async def several() -> None:
        fails.map(["same"] * 3)

    async with Engine(home) as engine:
        result = await engine.run(several)
        assert len(result.errors) == 3
        assert len((await engine.get_run(result.run_id)).errors) == 3


@pytest.mark.asyncio
async def test_the_exception_that_leaves_the_function_comes_first(home: str) -> None:
    @pipeline(failure_mode="continue")
    async def own_error() -> None:
        future = fails.submit("of a step")
        await asyncio.wait([future])
        raise KeyError("own")

    async with Engine(home) as engine:
        result = await engine.run(own_error)
        assert [type(error) for error in result.errors] == [KeyError, ValueError]
        with pytest.raises(KeyError):
            await own_error()
        assert [type(error) for error in (await engine.get_run(result.run_id)).errors] == [KeyError, ValueError]


# -- handled or not -----------------------------------------------------------------------


async def by_await(future: Any) -> None:
    with pytest.raises(ValueError, match="no"):
        await future


async def by_gather(future: Any) -> None:
    (error,) = await asyncio.gather(future, return_exceptions=True)
    assert isinstance(error, ValueError)


async def by_result(future: Any) -> None:
    await asyncio.wait([future])
    with pytest.raises(ValueError, match="no"):
        future.result()


async def by_exception(future: Any) -> None:
    await asyncio.wait([future])
    assert isinstance(future.exception(), ValueError)


async def by_wait_for(future: Any) -> None:
    with pytest.raises(ValueError, match="no"):
        await asyncio.wait_for(future, 10)


async def by_shield(future: Any) -> None:
    with pytest.raises(ValueError, match="no"):
        await asyncio.shield(future)


async def by_as_completed(future: Any) -> None:
    for each in asyncio.as_completed([future]):
        with pytest.raises(ValueError, match="no"):
            await each


async def by_a_dependent(future: Any) -> None:
    with pytest.raises(UpstreamFailed) as caught:
        await adds(future, 1)
    assert isinstance(caught.value.__cause__, ValueError)
    assert (caught.value.call, caught.value.upstream) == ("adds", "fails")


async def by_a_dependent_of_a_dependent(future: Any) -> None:
    last = adds.submit([adds.submit({"x": future})])
    with pytest.raises(UpstreamFailed) as caught:
        await last
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.upstream == "fails"


@pytest.mark.parametrize(
    "handle",
    [by_await, by_gather, by_result, by_exception, by_wait_for, by_shield, by_as_completed, by_a_dependent,
     by_a_dependent_of_a_dependent],
)  # fmt: skip
def test_a_failure_is_handled_when_its_exception_was_retrieved(drive: Drive, home: str, handle: Any) -> None:
    @pipeline
    async def copes() -> str:
        await handle(fails.submit("no"))
        return "coped"

    async def main() -> None:
        async with Engine(home) as engine:
            result = await engine.run(copes)
            assert (result.status, result.value, result.errors) == ("succeeded", "coped", [])
            assert result.step_results["fails"].status == "failed"
            assert str(result.step_results["fails"].error) == "no"

    drive(main())


@pytest.mark.asyncio
async def test_settled_counts_as_handling_every_failure_of_a_map(home: str) -> None:
    @pipeline
    async def copes() -> list[str]:
        results = await fails.map(["a", "b", "c"]).settled()
        return [f"{result.name} {result.status} {result.error}" for result in results]

    async with Engine(home) as engine:
        result = await engine.run(copes)
        assert result.status == "succeeded"
        assert result.value == ["fails[0] failed a", "fails[1] failed b", "fails[2] failed c"]


@pytest.mark.asyncio
async def test_waiting_without_retrieving_does_not_handle_a_failure(home: str) -> None:
    @pipeline
    async def looks_away() -> str:
        await asyncio.wait([fails.submit("no")])
        return "returned"

    async with Engine(home) as engine:
        result = await engine.run(looks_away)
        assert (result.status, str(result.error)) == ("failed", "no")


@pytest.mark.asyncio
async def test_handling_one_failure_does_not_handle_another(home: str) -> None:
    @pipeline
    async def half() -> str:
        first, second = fails.submit("handled"), fails.submit("not handled")
        with pytest.raises(ValueError, match="handled"):
            await first
        await asyncio.wait([second])
        return "returned"

    async with Engine(home) as engine:
        result = await engine.run(half)
        assert (result.status, str(result.error)) == ("failed", "not handled")
        assert [str(error) for error in result.errors] == ["not handled", "handled"]


@pytest.mark.asyncio
async def test_a_def_pipeline_handles_failures_in_the_same_ways(home: str) -> None:
    @pipeline
    def copes() -> int:
        handled = 0
        future = fails.submit("no")
        handled += isinstance(future.exception(), ValueError)
        for attempt in (lambda: fails("no"), lambda: fails.submit("no").result(), lambda: adds(fails.submit("no"), 1)):
            try:
                attempt()
            except (ValueError, UpstreamFailed):
                handled += 1
        return handled

    @pipeline
    def careless() -> str:
        fails.submit("no")
        return "returned"

    async with Engine(home) as engine:
        assert (await engine.run(copes)).value == 4
        assert str((await engine.run(careless)).error) == "no"


@pytest.mark.asyncio
async def test_a_call_that_takes_a_failed_map_is_skipped_with_its_cause(home: str) -> None:
    @step(cache=False)
    async def odd_fails(x: int) -> int:
        if x % 2:
            raise ValueError(f"odd {x}")
        return x

    @step(cache=False)
    async def total(xs: list[int]) -> int:
        return sum(xs)

    @pipeline(failure_mode="continue")
    async def reduce() -> int:
        return await total(odd_fails.map(range(4)))

    async with Engine(home) as engine:
        result = await engine.run(reduce)
        assert isinstance(result.error, UpstreamFailed)
        assert result.step_results["total"].skip_reason == "upstream"
        assert calls(result)["odd_fails[2]"] == "succeeded"


@pytest.mark.asyncio
async def test_an_unknown_failure_mode_is_refused(home: str) -> None:
    with pytest.raises(ValueError, match="fail_fast"):
        pipeline(failure_mode="explode")  # type: ignore[call-overload]  # the mistake under test


@pytest.mark.asyncio
async def test_with_options_changes_the_failure_mode_of_one_run(home: str) -> None:
    @pipeline
    async def two() -> None:
        fails.submit("no")
        adds.submit(adds.submit(1), 1)

    async with Engine(home) as engine:
        result = await engine.run(two.with_options(failure_mode="continue"))
        assert result.status == "failed"
        assert calls(result) == {"fails": "failed", "adds": "succeeded", "adds_2": "succeeded"}


# -- calls that were not made yet ---------------------------------------------------------


@step(cache=False)
async def fails_at_ten(x: int) -> int:
    if x == 10:
        raise ValueError(x)
    await asyncio.Event().wait()
    return x


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", ["fail_fast", "stop"])
async def test_every_call_of_a_map_has_a_result_although_not_all_were_made(home: str, mode: str) -> None:
    made: list[int] = []
    has_failed = asyncio.Event()

    @step(cache=False, max_in_flight=1)
    async def one_by_one(x: int) -> int:
        made.append(x)
        if x == 10:
            raise ValueError(x)
        if x > 10:
            await has_failed.wait()
        return x

    @pipeline(failure_mode=mode)  # type: ignore[arg-type]
    async def wide() -> list[int]:
        try:
            return await one_by_one.map(range(3000))
        finally:
            has_failed.set()

    async with Engine(home) as engine:
        result = await engine.run(wide)
        assert result.status == "failed"
        found = calls(result)
    assert len(found) == 3000
    statuses = [found[f"one_by_one[{index}]"] for index in range(3000)]
    assert statuses[:11] == ["succeeded"] * 10 + ["failed"]
    assert len(made) <= 20
    assert {found[f"one_by_one[{index}]"] for index in range(20, 3000)} == {"cancelled"}
    assert result.step_results["one_by_one[2999]"].step == "one_by_one"


@pytest.mark.asyncio
async def test_a_map_that_is_cancelled_at_once_has_settled_results_for_all_its_items(home: str) -> None:
    @pipeline
    async def wide() -> tuple[int, set[str]]:
        futures = fails_at_ten.map(range(11, 5000))
        futures.cancel()
        results = await futures.settled()
        return len(results), {result.status for result in results}

    async with Engine(home) as engine:
        result = await engine.run(wide)
    assert result.value == (4989, {"cancelled"})


class Broken:
    """By its type alone it is part of a fingerprint."""

    numbers = frozenset({3})


broken = Broken()


@step(cache=False, max_in_flight=1)
async def mended(x: int) -> int:
    if x in broken.numbers:
        raise ValueError(x)
    return x


@pipeline
async def mended_map() -> list[int]:
    return await mended.map(range(500))


@pytest.mark.asyncio
async def test_calls_that_were_not_made_are_made_by_a_resume(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Engine(home) as engine:
        failed = await engine.run(mended_map)
        assert failed.status == "failed"
        monkeypatch.setattr(broken, "numbers", frozenset(), raising=False)
        resumed = await engine.resume(failed.run_id)
        assert resumed.value == list(range(500))
        assert list(calls(resumed).values()) == ["succeeded"] * 500
        assert [call.reused for call in resumed.step_results.values()].count(True) >= 3
