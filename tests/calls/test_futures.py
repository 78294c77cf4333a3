"""A call's future among asyncio's own tools, as an edge between calls, with several outputs, and cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import pytest

from treadle import pipeline, step
from treadle.errors import AwaitCycle, EncodeError, OptionError, ResultNotReady, TreadleError, UpstreamFailed


@step
async def inc(x: int) -> int:
    return x + 1


@step
async def show(value: Any) -> str:
    return repr(value)


@step
async def broken() -> int:
    raise ValueError("broken")


@step
async def forever() -> None:
    await asyncio.Event().wait()


@step(outputs=("low", "high"))
async def ends(xs: list[int]) -> Any:
    return min(xs), max(xs)


# -- asyncio's tools ----------------------------------------------------------------------


def test_gather_takes_futures_calls_and_maps(stage: Any) -> None:
    @pipeline
    async def gathers() -> list[Any]:
        return await asyncio.gather(inc.submit(1), inc(2), inc.map([3, 4]))

    assert stage.value(gathers) == [2, 3, [4, 5]]


def test_gather_with_exceptions_counts_as_handling(stage: Any) -> None:
    @pipeline
    async def gathers() -> list[str]:
        return [repr(x) for x in await asyncio.gather(broken.submit(), inc.submit(1), broken(), return_exceptions=True)]

    assert stage.value(gathers) == ["ValueError('broken')", "2", "ValueError('broken')"]


def test_wait_first_completed_and_as_completed(stage: Any) -> None:
    @pipeline
    async def waits() -> tuple[Any, ...]:
        stuck = forever.submit()
        done, pending = await asyncio.wait([stuck, inc.submit(1)], return_when=asyncio.FIRST_COMPLETED)
        stuck.cancel()
        completed = [await future for future in asyncio.as_completed([inc.submit(5), inc.submit(6)])]
        return [f.result() for f in done], pending == {stuck}, sorted(completed)

    assert stage.value(waits) == ([2], True, [6, 7])


def test_wait_for_cancels_the_call_when_the_time_is_up(stage: Any) -> None:
    @pipeline
    async def waits() -> tuple[str, int]:
        stuck = forever.submit()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stuck, 0.01)
        return stuck.status, await asyncio.wait_for(inc.submit(1), 10)

    result = stage.result(waits)
    assert result.value == ("cancelled", 2)
    assert result.step_results["forever"].status == "cancelled"


def test_shield_keeps_the_call_alive(stage: Any) -> None:
    gate = asyncio.Event()

    @step
    async def held() -> str:
        await gate.wait()
        return "kept"

    @pipeline
    async def shields() -> str:
        future = held.submit()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(future), 0.01)
        gate.set()
        return await future

    assert stage.value(shields) == "kept"


def test_task_groups_await_calls_and_pass_their_errors(stage: Any) -> None:
    @pipeline
    async def groups() -> tuple[int, str]:
        async with asyncio.TaskGroup() as group:
            one, two = group.create_task(inc(1)), group.create_task(inc(2))
        caught = ""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(broken())
                group.create_task(forever())
        except* ValueError as errors:
            caught = repr(errors.exceptions[0])
        return one.result() + two.result(), caught

    result = stage.result(groups)
    assert result.value == (5, "ValueError('broken')")
    assert result.step_results["forever"].status == "cancelled"


def test_a_done_callback_is_called_with_the_future(stage: Any) -> None:
    @pipeline
    async def listens() -> list[Any]:
        heard: list[Any] = []
        future = inc.submit(1)
        future.add_done_callback(lambda done: heard.append((done is future, done.result())))
        await future
        await asyncio.sleep(0)
        return heard

    assert stage.value(listens) == [(True, 2)]


def test_a_call_can_be_awaited_by_many_and_more_than_once(stage: Any) -> None:
    performed: list[int] = []

    @step
    async def once() -> int:
        performed.append(1)
        return 7

    @pipeline
    async def awaits() -> list[int]:
        future = once.submit()
        return [
            *await asyncio.gather(*[asyncio.ensure_future(_of(future)) for _ in range(5)]),
            await future,
            await future,
        ]

    async def _of(future: Any) -> int:
        value: int = await future
        return value

    assert stage.value(awaits) == [7] * 7
    assert performed == [1]


# -- cancelling ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["loop", "thread", "await"])
def test_cancel_cancels_the_call_for_all_who_await_it(stage: Any, where: str) -> None:
    @pipeline
    async def cancels() -> tuple[Any, ...]:
        future = forever.submit()
        dependent = inc.submit(future)
        awaiters = [asyncio.ensure_future(_await(future)) for _ in range(3)]
        while future.status != "running":
            await asyncio.sleep(0)
        if where == "loop":
            assert future.cancel() is True
        elif where == "thread":
            assert await asyncio.to_thread(future.cancel) is True
        else:
            awaiters[0].cancel()
        ended = [type(e) for e in await asyncio.gather(*awaiters, return_exceptions=True)]
        with pytest.raises(UpstreamFailed):
            await dependent
        return ended, future.cancelled(), future.cancel(), future.status

    async def _await(future: Any) -> None:
        await future

    result = stage.result(cancels)
    assert result.value == ([asyncio.CancelledError] * 3, True, False, "cancelled")
    assert result.step_results["inc"].status == "skipped"


@pytest.mark.parametrize("turns", range(6))
def test_a_call_can_be_cancelled_in_any_moment_of_its_start(stage: Any, turns: int) -> None:
    @pipeline
    async def cancels() -> str:
        future = forever.submit()
        for _ in range(turns):
            await asyncio.sleep(0)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        return future.status

    assert stage.value(cancels, max_concurrency=1) == "cancelled"


def test_a_cancelled_sync_step_lets_its_awaiter_go_at_once(stage: Any) -> None:
    entered, release = threading.Event(), threading.Event()

    @step
    def stuck() -> None:
        entered.set()
        release.wait(10)

    @pipeline
    async def cancels() -> str:
        future = stuck.submit()
        await asyncio.to_thread(entered.wait, 10)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        return future.status

    try:
        assert stage.value(cancels) == "cancelled"
    finally:
        release.set()


def test_a_body_that_swallows_its_cancellation_is_cancelled_all_the_same(stage: Any) -> None:
    @step
    async def stubborn() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "swallowed"

    @pipeline
    async def cancels() -> str:
        future = stubborn.submit()
        while future.status != "running":
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        return future.status

    assert stage.value(cancels) == "cancelled"


# -- edges --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        lambda f, g: f,
        lambda f, g: [f, 0, g],
        lambda f, g: (f, (g,)),
        lambda f, g: {"a": f, "b": [{"c": g}]},
        lambda f, g: {f},
        lambda f, g: frozenset([f]),
        lambda f, g: [[[[f]]], {"x": ({"y": g},)}],
    ],
    ids=["bare", "list", "tuple", "dict", "set", "frozenset", "deep"],
)
def test_futures_in_containers_are_edges_and_arrive_as_values(stage: Any, place: Any) -> None:
    @pipeline
    async def passes() -> tuple[str, str]:
        f, g = inc.submit(1), inc.submit(2)
        return await show(place(f, g)), await show(value=place(f, g))

    expected = repr(place(2, 3))
    result = stage.result(passes)
    assert result.value == (expected, expected)
    assert result.step_results["show"].inputs["value"].producer


def test_a_consumer_starts_when_all_its_inputs_are_there(stage: Any) -> None:
    gates = {name: asyncio.Event() for name in "abc"}

    @step
    async def held(name: str) -> str:
        await gates[name].wait()
        return name

    @step
    async def join(parts: list[str], last: str) -> str:
        return "".join(parts) + last

    @pipeline
    async def passes() -> tuple[list[str], str]:
        joined = join.submit([held.submit("a"), held.submit("b")], last=held.submit("c"))
        seen = []
        for name in "cba":
            seen.append(joined.status)
            gates[name].set()
            for _ in range(5):
                await asyncio.sleep(0)
        return seen, await joined

    assert stage.value(passes) == (["pending"] * 3, "abc")


def test_a_long_chain_of_futures_needs_no_deep_stack(stage: Any) -> None:
    @pipeline
    async def chains() -> int:
        future = inc.submit(0)
        for _ in range(1500):
            future = inc.submit(future)
        return await future

    assert stage.value(chains, durability="memory") == 1501


def test_a_long_chain_behind_a_failed_call_is_skipped_to_its_end(stage: Any) -> None:
    @pipeline
    async def chains() -> str:
        future = broken.submit()
        for _ in range(1500):
            future = inc.submit(future)
        try:
            await future
        except UpstreamFailed as error:
            return f"{error.upstream}: {error.__cause__}"
        return ""

    assert stage.value(chains, durability="memory") == "broken: broken"


def test_every_failed_input_of_a_skipped_call_is_handled_with_it(stage: Any) -> None:
    gate = asyncio.Event()

    @step
    async def broken_later() -> int:
        await gate.wait()
        raise KeyError("later")

    @pipeline(failure_mode="continue")
    async def passes() -> str:
        dependent = show.submit([broken.submit(), broken_later.submit()])
        try:
            await dependent
        except UpstreamFailed:
            gate.set()
        return "handled"

    assert stage.value(passes) == "handled"


def test_a_list_of_futures_may_be_filled_further_after_a_call_has_taken_it(stage: Any) -> None:
    @pipeline
    async def run() -> Any:
        numbers: list[Any] = []
        shown: list[Any] = []
        for x in range(3):
            numbers.append(inc.submit(x))
            shown += [show.submit(numbers), show.map([numbers])[0], show.submit(value={"all": numbers})]
        numbers.clear()
        return shown

    result = stage.value(run)
    assert result[0::3] == ["[1]", "[1, 2]", "[1, 2, 3]"]
    assert result[1::3] == result[0::3]
    assert result[2::3] == ["{'all': [1]}", "{'all': [1, 2]}", "{'all': [1, 2, 3]}"]


def test_a_call_in_a_container_of_a_pipelines_value_is_resolved(stage: Any) -> None:
    @pipeline
    async def returns() -> Any:
        return {"a": inc.submit(1), "b": [inc.submit(2), (inc.submit(3),)]}

    assert stage.value(returns) == {"a": 2, "b": [3, (4,)]}


def test_a_consumer_changes_its_own_copy_of_a_small_value(stage: Any) -> None:
    @step
    async def make() -> dict[str, list[int]]:
        return {"xs": [1]}

    @step
    async def change(value: dict[str, list[int]], own: list[int]) -> int:
        value["xs"].append(2)
        own.append(1)
        return len(value["xs"]) + len(own)

    @pipeline
    async def shares() -> tuple[Any, ...]:
        made, mine = make.submit(), [0]
        lengths = await asyncio.gather(*[change.submit(made, mine) for _ in range(3)])
        return lengths, await made, mine, await change([made][0], [])

    assert stage.value(shares) == ([4, 4, 4], {"xs": [1]}, [0], 3)


def test_a_large_array_is_shared_and_read_only(stage: Any) -> None:
    np = pytest.importorskip("numpy")

    @step
    async def make() -> Any:
        return np.zeros(100_000)

    @step
    async def change(array: Any) -> str:
        try:
            array[0] = 1
        except ValueError as error:
            return str(error)
        return "changed"

    @pipeline
    async def shares() -> tuple[str, float]:
        made = make.submit()
        said = await change(made)
        return said, float((await made)[0])

    assert stage.value(shares) == ("assignment destination is read-only", 0.0)


# -- outputs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [lambda: (1, 5), lambda: [1, 5], lambda: {"high": 5, "low": 1}], ids=["tuple", "list", "dict"]
)
def test_several_outputs_come_as_they_were_returned_and_one_by_one(stage: Any, given: Any) -> None:
    value = given()

    @step(outputs=["low", "high"])
    def both() -> Any:
        return value

    @pipeline
    async def uses() -> tuple[Any, ...]:
        future = both.submit()
        low, high = future.output("low"), future.output("high")
        chained = inc.submit(low)
        facts = repr(high), await low, await high, await chained, await future
        return *facts, sorted(future.artifacts), low.artifact.name, await future.output("high").artifact.load()

    result = stage.result(uses)
    assert result.value == ("<StepFuture both.high pending>", 1, 5, 2, value, ["high", "low"], "low", 5)
    assert dict(result.step_results["both"].outputs) == {"low": 1, "high": 5}
    assert result.outputs["both.low"] == 1


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ((1,), "tuple of 1"),
        ([1, 2, 3], "list of 3"),
        ({"low": 1, "other": 2}, "dict of 2"),
        (5, "int of 1"),
        ("ab", "str of 1"),
    ],
)
def test_a_wrong_number_of_outputs_is_an_error_that_says_so(stage: Any, returned: Any, said: str) -> None:
    @step(outputs=("low", "high"))
    def wrong() -> Any:
        return returned

    @pipeline
    async def uses() -> Any:
        return await wrong()

    with pytest.raises(OptionError) as caught:
        stage.value(uses)
    assert f"declares 2 outputs (low, high) and returned {said}" in str(caught.value)


def test_an_output_that_does_not_exist_is_refused(stage: Any) -> None:
    @pipeline
    async def uses() -> str:
        try:
            ends.submit([1]).output("hihg")
        except OptionError as error:
            return str(error)
        return ""

    text = stage.value(uses)
    assert "has no output 'hihg'" in text
    assert "low, high" in text


def test_the_artifact_of_a_call_with_one_output_and_with_several(stage: Any) -> None:
    @pipeline
    async def uses() -> tuple[Any, ...]:
        one, two = inc.submit(1), ends.submit([1, 2])
        try:
            _ = one.artifact
        except ResultNotReady as error:
            early = type(error).__name__
        await asyncio.gather(one, two)
        try:
            _ = two.artifact
        except TreadleError as error:
            several = str(error)
        return early, one.artifact.name, await one.artifact.load(), list(one.artifacts), several

    early, name, value, names, several = stage.value(uses)
    assert (early, name, value, names) == ("ResultNotReady", "inc", 2, ["inc"])
    assert "several outputs: low, high" in several


def test_artifacts_of_a_pending_call_are_not_ready(stage: Any) -> None:
    @pipeline
    async def uses() -> str:
        try:
            _ = inc.submit(1).artifacts
        except ResultNotReady as error:
            return error.fix
        return ""

    assert stage.value(uses) == "await it first"


def test_an_output_that_cannot_be_stored_says_where_and_how_to_mend_it(stage: Any) -> None:
    @step
    async def makes() -> Any:
        return {"lock": threading.Lock()}

    @pipeline
    async def uses() -> Any:
        return await makes()

    with pytest.raises(EncodeError) as caught:
        stage.value(uses)
    assert "persist=False" in str(caught.value)

    @pipeline
    async def keeps() -> bool:
        return isinstance((await makes.with_options(persist=False)())["lock"], type(threading.Lock()))

    assert stage.value(keeps) is True


# -- circles ------------------------------------------------------------------------------


def test_a_body_that_awaits_its_own_future_gets_an_error(stage: Any) -> None:
    futures: list[Any] = []

    @step
    async def selfish() -> None:
        await futures[0]

    @pipeline
    async def runs() -> tuple[str, ...]:
        futures.append(selfish.submit())
        try:
            await futures[0]
        except AwaitCycle as error:
            return error.calls
        return ()

    assert stage.value(runs) == ("selfish", "selfish")


@pytest.mark.parametrize("through", ["await", "gather", "wait_for"])
def test_two_bodies_that_await_each_other_get_an_error(stage: Any, through: str) -> None:
    futures: dict[str, Any] = {}
    both = asyncio.Barrier(2)

    @step
    async def waits(other: str) -> None:
        await both.wait()
        if through == "await":
            await futures[other]
        elif through == "gather":
            await asyncio.gather(futures[other])
        else:
            await asyncio.wait_for(futures[other], 10)

    @pipeline(failure_mode="continue")
    async def runs() -> list[str]:
        futures["a"] = waits.submit("b")
        futures["b"] = waits.submit("a")
        ended = await asyncio.gather(*futures.values(), return_exceptions=True)
        return [type(error).__name__ for error in ended]

    assert stage.value(runs) == ["AwaitCycle", "AwaitCycle"]


def test_a_body_that_awaits_a_call_which_waits_for_it_gets_an_error(stage: Any) -> None:
    futures: list[Any] = []

    @step
    async def first() -> int:
        value: int = await futures[0]
        return value

    @pipeline
    async def runs() -> str:
        producer = first.submit()
        futures.append(inc.submit([producer][0]))
        try:
            await producer
        except AwaitCycle as error:
            return " ".join(error.calls)
        return ""

    assert stage.value(runs) == "first inc first"


def test_a_sync_body_that_waits_for_its_own_future_gets_an_error(stage: Any) -> None:
    futures: list[Any] = []

    @step
    def selfish() -> None:
        futures[0].result()

    @pipeline
    async def runs() -> str:
        futures.append(selfish.submit())
        try:
            await futures[0]
        except AwaitCycle as error:
            return error.fix
        return ""

    assert "not in steps" in stage.value(runs)


@pytest.mark.parametrize("where", ["pipeline", "body"])
def test_a_run_that_awaits_its_own_handle_gets_an_error(stage: Any, where: str) -> None:
    handles: list[Any] = []
    given = asyncio.Event()

    @step
    async def awaits() -> None:
        await handles[0]

    @pipeline
    async def runs() -> str:
        await given.wait()
        try:
            await (handles[0] if where == "pipeline" else awaits())
        except AwaitCycle as error:
            return error.what
        return ""

    async def main() -> str:
        async with stage.engine() as engine:
            handles.append(await engine.start(runs))
            given.set()
            text: str = await handles[0]
            return text

    assert "awaits itself" in stage.drive(main())
