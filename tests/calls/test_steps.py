"""Calling a step: outside of runs, in pipelines of both kinds, and in the bodies of other steps."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from typing import Any

import pytest

from treadle import StepFuture, current, pipeline, step, unmapped
from treadle.errors import NotInRun, ResultNotReady


@step
async def inc(x: int) -> int:
    return x + 1


@step
def double(x: int) -> int:
    return 2 * x


@step
def where() -> str:
    return threading.current_thread().name


# -- outside of a run ---------------------------------------------------------------------


def test_outside_a_run_a_sync_step_is_its_function() -> None:
    assert double(4) == 8
    assert double.fn(4) == 8


def test_outside_a_run_an_async_step_is_its_coroutine_function() -> None:
    assert asyncio.run(inc(4)) == 5
    assert asyncio.run(inc.fn(4)) == 5


def test_fn_is_the_very_function_and_the_step_looks_like_it() -> None:
    def body(x: int, *, y: int = 1) -> int:
        """What it does."""
        return x + y

    wrapped = step(body)
    assert wrapped.fn is body
    assert wrapped.__doc__ == "What it does."
    assert wrapped.__name__ == wrapped.name == "body"
    assert repr(wrapped) == "<step body>"


@pytest.mark.parametrize("attempt", ["submit", "map", "product"])
def test_submitting_outside_a_run_says_what_to_do(attempt: str) -> None:
    arguments = (1,) if attempt == "submit" else ([1],)
    with pytest.raises(NotInRun) as caught:
        getattr(inc, attempt)(*arguments)
    assert f"inc.{attempt}(...) was called outside of a run" in str(caught.value)
    assert "@pipeline" in caught.value.fix


def test_current_outside_of_a_step_says_what_to_do() -> None:
    with pytest.raises(NotInRun, match="outside of a step"):
        current()


def test_a_run_that_has_ended_counts_as_outside(stage: Any) -> None:
    leaked: list[asyncio.Task[Any]] = []

    async def later(gate: asyncio.Event) -> tuple[Any, bool]:
        await gate.wait()
        try:
            double.submit(1)
        except NotInRun as error:
            return double(21), "has ended" in error.why
        return None, False

    async def main() -> Any:
        gate = asyncio.Event()

        @pipeline
        async def leaky() -> int:
            leaked.append(asyncio.create_task(later(gate)))
            return await inc(1)

        async with stage.engine() as engine:
            assert (await engine.run(leaky)).value == 2
            gate.set()
            return await leaked[0]

    assert stage.drive(main()) == (42, True)


# -- in an async pipeline -----------------------------------------------------------------


def test_await_gives_the_value_of_both_kinds_of_steps(stage: Any) -> None:
    @pipeline
    async def both(x: int) -> list[int]:
        return [await inc(x), await double(x), await inc(await double(x))]

    assert stage.value(both, 5) == [6, 10, 11]


def test_submit_gives_a_future_at_once_and_its_value_later(stage: Any) -> None:
    @pipeline
    async def submits() -> tuple[bool, bool, int]:
        future = double.submit(3)
        pending = not future.done()
        return pending, isinstance(future, StepFuture), await future

    assert stage.value(submits) == (True, True, 6)


def test_async_steps_run_on_the_loop_and_sync_steps_on_worker_threads(stage: Any) -> None:
    @step
    async def on_loop() -> str:
        return threading.current_thread().name

    @pipeline
    async def both() -> tuple[str, str, str]:
        return await on_loop(), await where(), threading.current_thread().name

    loop_name, worker, pipeline_name = stage.value(both)
    assert loop_name == pipeline_name
    assert worker != loop_name
    assert worker.startswith("treadle-step")


def test_sync_steps_run_at_the_same_time(stage: Any) -> None:
    barrier = threading.Barrier(3, timeout=10)

    @step
    def meet(x: int) -> int:
        barrier.wait()
        return x

    @pipeline
    async def together() -> list[int]:
        return await meet.map(range(3))

    assert stage.value(together, threads=3) == [0, 1, 2]


def test_a_call_that_is_never_awaited_warns_like_a_coroutine(stage: Any) -> None:
    @pipeline
    async def forgetful() -> str:
        inc(1)
        double(2)
        gc.collect()
        return "done"

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = stage.result(forgetful)
    texts = [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
    assert texts == ["coroutine 'inc' was never awaited", "coroutine 'double' was never awaited"]
    assert result.value == "done"
    assert list(result.step_results) == []


def test_wrong_arguments_are_a_type_error_at_the_call(stage: Any) -> None:
    @pipeline
    async def wrong() -> list[str]:
        texts = []
        for call in (lambda: inc(), lambda: inc.submit(1, 2), lambda: double.submit(y=1)):
            try:
                call()
            except TypeError as error:
                texts.append(str(error))
        return texts

    texts = stage.value(wrong)
    assert texts == [
        "inc() missing a required argument: 'x'",
        "inc() got too many positional arguments",
        "double() missing a required argument: 'x'",
    ]


def test_an_unawaited_call_among_the_arguments_is_refused_with_a_hint(stage: Any) -> None:
    @pipeline
    async def nested() -> str:
        mistake = inc(1)
        try:
            double.submit(mistake)
        except TypeError as error:
            return str(error)
        finally:
            mistake.close()
        return ""

    text = stage.value(nested)
    assert "inc" in text
    assert "inc.submit(" in text


def test_any_parameter_name_is_allowed(stage: Any) -> None:
    @step
    async def odd(self: int, fn: int, name: int, timeout: int, args: int, kwargs: int, index: int) -> int:
        return self + fn + name + timeout + args + kwargs + index

    @pipeline
    async def calls() -> list[int]:
        given = {"self": 1, "fn": 2, "name": 3, "timeout": 4, "args": 5, "kwargs": 6, "index": 7}
        return [await odd(**given), await odd.submit(**given), await odd(1, 2, 3, 4, 5, 6, 7)]

    assert stage.value(calls) == [28, 28, 28]


def test_defaults_keywords_varargs_and_positional_only_parameters_bind_as_in_python(stage: Any) -> None:
    @step
    async def shape(a: int, /, b: int = 2, *rest: int, c: int = 3, **more: int) -> tuple[Any, ...]:
        return a, b, rest, c, more

    @pipeline
    async def calls() -> list[Any]:
        return [await shape(1), await shape(1, 5, 6, 7, c=8, d=9), await shape(1, b=4, a=10)]

    assert stage.value(calls) == [(1, 2, (), 3, {}), (1, 5, (6, 7), 8, {"d": 9}), (1, 4, (), 3, {"a": 10})]


# -- in a body ----------------------------------------------------------------------------


def test_in_a_body_steps_and_pipelines_are_plain_functions(stage: Any) -> None:
    @pipeline
    async def inner(x: int) -> int:
        return await inc(x)

    @step
    async def outer(x: int) -> int:
        return await inc(x) + double(x) + await inner(x)

    @step
    def outer_sync(x: int) -> int:
        return double(x) + asyncio.run(inc(x))

    @pipeline
    async def calls() -> tuple[int, int]:
        return await outer(1), await outer_sync(1)

    result = stage.result(calls)
    assert result.value == (6, 4)
    assert list(result.step_results) == ["outer", "outer_sync"]


def test_submit_in_a_body_says_what_to_do(stage: Any) -> None:
    @step
    async def outer() -> str:
        try:
            inc.submit(1)
        except NotInRun as error:
            return str(error)
        return ""

    @pipeline
    async def calls() -> str:
        return await outer()

    assert "not in a step's body" in stage.value(calls)


# -- in a def pipeline --------------------------------------------------------------------


def test_in_a_def_pipeline_a_call_blocks_and_gives_the_value(stage: Any) -> None:
    @pipeline
    def script(x: int) -> tuple[int, int, str]:
        return inc(x), double(x), threading.current_thread().name

    one, two, thread = stage.value(script, 5)
    assert (one, two) == (6, 10)
    assert thread == "treadle-script"


def test_in_a_def_pipeline_result_waits(stage: Any) -> None:
    @pipeline
    def script() -> list[Any]:
        first = inc.submit(1)
        second = double.submit(first)
        mapped = double.map(range(4))
        return [
            second.result(),
            first.result(timeout=10),
            mapped.result(),
            second.exception(),
            [f.result() for f in mapped],
        ]

    assert stage.value(script) == [4, 2, [0, 2, 4, 6], None, [0, 2, 4, 6]]


def test_in_a_def_pipeline_result_with_a_timeout_raises_timeout_error(stage: Any) -> None:
    gate = threading.Event()

    @step
    def slow() -> str:
        gate.wait(10)
        return "late"

    @pipeline
    def script() -> tuple[str, str]:
        future = slow.submit()
        try:
            future.result(timeout=0.01)
        except TimeoutError as error:
            gate.set()
            return type(error).__name__, future.result(timeout=10)
        return "", ""

    assert stage.value(script) == ("TimeoutError", "late")


def test_in_a_def_pipeline_errors_come_as_themselves(stage: Any) -> None:
    @step
    async def broken() -> int:
        raise KeyError("k")

    @pipeline
    def script() -> str:
        try:
            broken()
        except KeyError as error:
            return f"caught {error}"
        return ""

    assert stage.value(script) == "caught 'k'"


def test_the_loop_goes_on_while_a_def_pipeline_blocks(stage: Any) -> None:
    seen = threading.Event()

    @step
    def waits_for_the_loop() -> bool:
        return seen.wait(10)

    @pipeline
    def script() -> bool:
        return waits_for_the_loop()

    async def main() -> bool:
        async with stage.engine() as engine:
            running = asyncio.ensure_future(engine.run(script))
            await asyncio.sleep(0)
            seen.set()
            return (await running).value

    assert stage.drive(main()) is True


def test_a_cancelled_def_pipeline_gets_the_cancellation_from_its_next_step_call(stage: Any) -> None:
    entered, cancelled, ended = threading.Event(), threading.Event(), threading.Event()
    performed: list[str] = []
    seen: list[type[BaseException]] = []

    @step
    def after() -> None:
        performed.append("after")

    @pipeline
    def script() -> None:
        entered.set()
        cancelled.wait(10)
        try:
            after()
        except BaseException as error:
            seen.append(type(error))
            raise
        finally:
            ended.set()

    async def main() -> str:
        async with stage.engine() as engine:
            handle = await engine.start(script)
            await asyncio.to_thread(entered.wait, 10)
            await handle.cancel()
            cancelled.set()
            await asyncio.to_thread(ended.wait, 10)
            return (await handle.wait()).status

    assert stage.drive(main()) == "cancelled"
    assert performed == []
    assert seen == [asyncio.CancelledError]


# -- the future of one call ---------------------------------------------------------------


def test_on_the_loop_result_of_a_pending_call_raises_with_a_hint(stage: Any) -> None:
    @pipeline
    async def asks() -> list[str]:
        future = inc.submit(1)
        texts = []
        for ask in (future.result, future.exception):
            try:
                ask()
            except ResultNotReady as error:
                texts.append(error.fix)
        await future
        return [*texts, str(future.result()), str(future.exception())]

    first, second, value, error = stage.value(asks)
    assert first == second
    assert "`await` the future" in first
    assert (value, error) == ("2", "None")


def test_a_future_tells_its_name_status_and_index(stage: Any) -> None:
    @step
    async def held(release: str) -> int:
        while not released:
            await asyncio.sleep(0)
        return 1

    released: list[int] = []

    @pipeline
    async def looks() -> list[Any]:
        future = held.submit("x")
        waits = inc.submit(future)
        facts: list[Any] = [future.name, future.index, future.status, repr(future)]
        while future.status == "pending":
            await asyncio.sleep(0)
        facts += [future.status, waits.status, repr(waits)]
        released.append(1)
        await waits
        return [*facts, future.status, repr(future), future.done()]

    assert stage.value(looks) == [
        *("held", None, "pending", "<StepFuture held pending>"),
        *("running", "pending", "<StepFuture inc pending>"),
        *("succeeded", "<StepFuture held succeeded>", True),
    ]


def test_calls_are_named_in_the_order_of_submission(stage: Any) -> None:
    @step(name="train")
    async def fit(x: int) -> int:
        return x

    @step(name="train")
    async def other(x: int) -> int:
        return x

    @pipeline
    async def names() -> list[str]:
        futures = [fit.submit(1), other.submit(2), fit.submit(3)]
        first, second = fit.map([1, 2]), fit.map([3])
        futures += [*first, *second]
        await asyncio.gather(*futures)
        return [first.name, second.name, *(future.name for future in futures)]

    result = stage.result(names)
    calls = ["train", "train_2", "train_3", "train_4[0]", "train_4[1]", "train_5[0]"]
    assert result.value == ["train_4", "train_5", *calls]
    assert list(result.step_results) == calls


def test_a_second_map_names_its_calls_after_itself(stage: Any) -> None:
    @pipeline
    async def maps() -> list[list[int]]:
        return [await inc.map([1]), await inc.map([2]), [await inc(5)]]

    result = stage.result(maps)
    assert list(result.step_results) == ["inc[0]", "inc_2[0]", "inc_3"]
    assert dict(result.outputs) == {"inc": [2], "inc_2": [3], "inc_3": 6}


# -- with_options -------------------------------------------------------------------------


def test_with_options_changes_a_copy_and_leaves_the_step(stage: Any) -> None:
    renamed = inc.with_options(name="plus_one", tags=["a"])
    assert (inc.name, renamed.name) == ("inc", "plus_one")
    assert renamed.fn is inc.fn

    @pipeline
    async def calls() -> int:
        return await renamed(1) + await inc(1)

    result = stage.result(calls)
    assert result.value == 4
    assert list(result.step_results) == ["plus_one", "inc"]


def test_after_makes_an_order_without_data(stage: Any) -> None:
    order: list[str] = []
    release = asyncio.Event()

    @step
    async def first() -> None:
        await release.wait()
        order.append("first")

    @step
    async def mapped(x: int) -> None:
        order.append("mapped")

    @step
    async def last() -> None:
        order.append("last")

    @pipeline
    async def calls() -> list[str]:
        one = first.submit()
        many = mapped.with_options(after=one).map([1, 2])
        end = last.with_options(after=[one, many]).submit()
        for _ in range(20):
            await asyncio.sleep(0)
        before = list(order)
        release.set()
        await end
        return before

    assert stage.value(calls) == []
    assert order == ["first", "mapped", "mapped", "last"]


def test_what_comes_after_a_failed_call_is_skipped(stage: Any) -> None:
    @step
    async def broken() -> None:
        raise ValueError("no")

    @pipeline(failure_mode="continue")
    async def calls() -> None:
        inc.with_options(after=[broken.submit()]).submit(1)

    result = stage.result(calls)
    assert result.step_results["inc"].status == "skipped"
    assert isinstance(result.error, ValueError)


def test_max_in_flight_of_a_step_holds_over_the_whole_engine(stage: Any) -> None:
    running, peak = 0, 0

    @step(max_in_flight=3)
    async def busy(x: int) -> int:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        for _ in range(10):
            await asyncio.sleep(0)
        running -= 1
        return x

    @pipeline
    async def many() -> int:
        singles = [busy.submit(i) for i in range(10)]
        return len(await busy.map(range(10))) + len(await asyncio.gather(*singles))

    async def main() -> None:
        async with stage.engine() as engine:
            results = await asyncio.gather(engine.run(many), engine.run(many))
            assert [result.value for result in results] == [20, 20]

    stage.drive(main())
    assert peak == 3


def test_max_in_flight_of_a_map_is_its_own(stage: Any) -> None:
    running = {"a": 0, "b": 0}
    peak = {"a": 0, "b": 0, "both": 0}

    @step(max_in_flight=50)
    async def busy(key: str, x: int) -> int:
        running[key] += 1
        peak[key] = max(peak[key], running[key])
        peak["both"] = max(peak["both"], sum(running.values()))
        for _ in range(10):
            await asyncio.sleep(0)
        running[key] -= 1
        return x

    @pipeline
    async def two() -> list[int]:
        a = busy.with_options(max_in_flight=2).map(unmapped("a"), range(20))
        b = busy.with_options(max_in_flight=4).map(unmapped("b"), range(20))
        return [*await a, *await b]

    assert stage.value(two) == [*range(20), *range(20)]
    assert (peak["a"], peak["b"]) == (2, 4)
    assert peak["both"] > 4


def test_many_copies_made_with_after_plan_the_step_once(stage: Any) -> None:
    @pipeline
    async def chain() -> int:
        last = inc.submit(0)
        for _ in range(30):
            last = inc.with_options(after=last).submit(1)
        return await last

    async def main() -> tuple[int, int]:
        async with stage.engine() as engine:
            handle = await engine.start(chain)
            run = engine.runs_here[handle.id]
            value = await handle
            return value, len(run._plans)

    assert stage.drive(main()) == (2, 1)


def test_a_blocked_def_pipeline_holds_no_worker_thread(stage: Any) -> None:
    @pipeline
    def inner(x: int) -> int:
        return double(x)

    @pipeline
    def outer() -> int:
        return inner(double(1))

    assert stage.value(outer, threads=1) == 4
