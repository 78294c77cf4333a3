# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""The public interface as a user writes it; it is checked by mypy and pyright (`make types`) and never run.

`assert_type` pins what a checker must infer. A line with an ignore is a misuse that a checker must see: both tools
report an ignore that is not needed, so such a line fails as soon as the misuse goes through.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, assert_type

from treadle import (
    Artifact,
    CachePolicy,
    CircuitBreaker,
    Dataset,
    EncodeError,
    Engine,
    Keep,
    MapFuture,
    Metrics,
    Model,
    Pipeline,
    Resources,
    Retry,
    RunHandle,
    RunResult,
    Secret,
    StepFuture,
    StepResult,
    TreadleError,
    amap,
    context,
    current,
    on_failure,
    parallel_map,
    pipeline,
    retry,
    step,
    unless,
    unmapped,
    when,
)
from treadle._runtime.step import AsyncStep, Step, SyncStep
from treadle.contracts import Clock, Codec, Route
from treadle.errors import CircuitOpen, OptionError, RunCancelled, StepTimeout, UnobservedFailure, ValidationError
from treadle.events import CallCompleted, CallRetrying, Event, Logged, RunSucceeded
from treadle.testing import VirtualClock, memory_engine


@dataclass
class Page:
    url: str
    text: str


# -- every form of the decorators -----------------------------------------------------------


@step
async def fetch(number: int) -> str:
    return str(number)


@step
def parse(text: str) -> Page:
    return Page("", text)


@step()
async def area(width: int, height: int = 1) -> int:
    return width * height


@step(
    name="halves", outputs=["left", "right"], cache="input_hash",
    retry=Retry(max_attempts=3, delay="200ms", on=OSError), timeout=timedelta(seconds=3),
    max_in_flight=4, persist=True, version=2, tags=["a"], metadata={"team": "search"},
)  # fmt: skip
def split(text: str) -> tuple[str, str]:
    return text[:1], text[1:]


@step(cache=CachePolicy(ignore=("client",), expires_after="12h"), retry=2, timeout="30s")
async def ask(question: str, client: object = None) -> dict[str, Any]:
    return {question: client}


@step
async def total(sizes: list[int]) -> int:
    return sum(sizes)


@step
def untyped(text: str) -> Any:
    return text


@step
def nothing() -> None: ...


@step
@retry(max_attempts=3, delay="100ms", backoff=2.0, max_delay=timedelta(minutes=1), jitter=False, on=(OSError,))
@on_failure(lambda: "")
@CircuitBreaker(failure_threshold=5, recovery_timeout="30s")
async def handled_below(number: int) -> str:
    return str(number)


@CircuitBreaker()
@on_failure(lambda error: Page("", repr(error)))
@retry(on=OSError)
@when(lambda text: text != "")
@unless(str.isspace)
@step
def handled_above(text: str) -> Page:
    return Page("", text)


@retry(attempts=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue, reportUntypedFunctionDecorator]
async def bad_retry(number: int) -> str:
    return str(number)


@step
@when(True)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportCallIssue, reportArgumentType, reportUntypedFunctionDecorator]
async def bad_condition(number: int) -> str:
    return str(number)


@step(runtime="thread", inputs="text")
def bad_option_type(text: str) -> str:
    return text


@step(resources={"cpu": "4", "memory": "16Gi", "gpu": 1}, execution_group="training", rate="100/s")
def heavy(text: str) -> str:
    return text


@step(resources=Resources(gpu="nvidia-tesla-v100", gpu_count=2), execution_group=None, rate=None)
async def heavier(text: str) -> str:
    return text


@step(resources={"cpu": [4]})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
def bad_resources(text: str) -> str:
    return text


@step(rate=100)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
def bad_rate(text: str) -> str:
    return text


@step(retries=2)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportCallIssue, reportUntypedFunctionDecorator]
def bad_option_name(text: str) -> str:
    return text


@step(cache=CachePolicy(expires_after=[1]))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def bad_duration(text: str) -> str:
    return text


@pipeline
async def crawl(count: int, *, prefix: str = "") -> list[Page]:
    return await parse.map(fetch.map(range(count)))


@pipeline(name="etl", failure_mode="continue", timeout="1h", max_concurrency=8, cache=False, retry=1, tags=["nightly"])
def blocking(count: int) -> int:
    page: Page = parse(fetch.submit(count).result())
    return len(page.text)


@pipeline(failure_mode="carry_on")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
async def bad_failure_mode() -> None: ...


# -- what a step is ------------------------------------------------------------------------


async def steps_keep_their_signatures() -> None:
    assert_type(await fetch(1), str)
    assert_type(await area(2, height=3), int)
    assert_type(fetch.name, str)
    assert_type(parse.fn("x"), Page)
    assert_type(await fetch.fn(1), str)
    assert_type(untyped.fn("x"), Any)
    page: Page = await parse("x")
    print(page)

    await fetch("one")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await fetch(1, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await area(width=1, depth=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    parse(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fetch(1)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    not_awaited: str = fetch(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    not_text: int = await parse("x")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(not_awaited, not_text)


async def decorators_keep_what_they_decorate() -> None:
    below: AsyncStep[[int], str] = handled_below
    above: SyncStep[[str], Page] = handled_above
    print(below, above)
    assert_type(await handled_below(1), str)
    assert_type(handled_above.submit("x"), StepFuture[Page])
    assert_type(handled_below.map([1, 2]), MapFuture[str])
    assert_type(CircuitBreaker(failure_threshold=2).recovery_timeout, float)
    error = CircuitOpen("refused", retry_after_s=1.0)
    assert_type(error.retry_after_s, float)
    assert_type(error.failures, int)

    await handled_below("one")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    CircuitBreaker(threshold=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    on_failure({"status": "down"})  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def both_kinds_of_step_are_steps() -> None:
    on_the_loop: AsyncStep[[int], str] = fetch
    in_a_thread: SyncStep[[str], Page] = parse
    exact: list[Step[[int], str]] = [fetch]
    any_step: list[Step[..., object]] = [fetch, parse, area, split, untyped, nothing]
    print(on_the_loop, in_a_thread, exact, any_step)


async def a_def_step_is_a_value_in_a_def_pipeline_and_awaitable_in_another() -> None:
    text: str = upper("x")
    print(upper("x").title(), upper("x") + "y", len(upper("x")), upper("x")[0])
    print(text, await asyncio.gather(upper("x"), upper("y")), await asyncio.create_task(upper("z")))
    if upper("x") is None:
        return
    for index, letter in enumerate(sorted(upper("xyz"))):
        print(index, letter)


@step
def upper(text: str) -> str:
    return text.upper()


# -- futures -------------------------------------------------------------------------------


async def futures_are_asyncio_futures() -> None:
    future = fetch.submit(1)
    assert_type(future, StepFuture[str])
    assert_type(await future, str)
    assert_type(parse.submit("x"), StepFuture[Page])
    assert_type(future.result(), str)
    assert_type(future.result(timeout=3), str)
    assert_type(future.exception(), BaseException | None)
    assert_type(future.artifact, Artifact[str])
    assert_type(future.artifacts, dict[str, Artifact[Any]])
    assert_type(future.output("left"), StepFuture[Any])
    assert_type(future.name, str)
    assert_type(future.index, int | None)
    assert_type(future.cancel(), bool)
    assert_type(future.done(), bool)

    assert_type(await asyncio.gather(fetch.submit(1), area.submit(2)), tuple[str, int])
    assert_type(await asyncio.gather(fetch.submit(1), fetch(2)), tuple[str, str])
    assert_type(await asyncio.gather(*[fetch.submit(1)]), list[str])
    assert_type(await asyncio.wait_for(future, 1), str)
    assert_type(await asyncio.shield(future), str)
    done, pending = await asyncio.wait([fetch.submit(1), fetch.submit(2)])
    assert_type(done, set[StepFuture[str]])
    assert_type(pending, set[StepFuture[str]])
    for finished in asyncio.as_completed([future]):
        assert_type(await finished, str)
    async with asyncio.TaskGroup() as group:
        assert_type(group.create_task(fetch(1)), asyncio.Task[str])
        group.create_task(parse("x"))

    not_awaited: str = future  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    not_text: int = await future  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(not_awaited, not_text)


async def arguments_may_be_futures() -> None:
    future = fetch.submit(1)
    sizes = [area.submit(1), area.submit(2)]
    assert_type(parse.submit(future), StepFuture[Page])
    assert_type(parse.submit(text=future), StepFuture[Page])
    assert_type(area.submit(sizes[0], height=2), StepFuture[int])
    assert_type(total.submit(sizes), StepFuture[int])
    assert_type(total.submit(area.map([1, 2])), StepFuture[int])
    assert_type(parse.submit(future.artifact), StepFuture[Page])


# -- maps ----------------------------------------------------------------------------------


async def maps_take_items_of_the_first_parameter() -> None:
    texts = fetch.map([1, 2, 3])
    assert_type(texts, MapFuture[str])
    assert_type(await texts, list[str])
    assert_type(texts[0], StepFuture[str])
    assert_type(texts[1:], list[StepFuture[str]])
    assert_type(len(texts), int)
    assert_type(list(texts), list[StepFuture[str]])
    assert_type([await future async for future in texts], list[str])
    assert_type(await texts.settled(), list[StepResult])
    assert_type(texts.unpack(), tuple[list[StepFuture[Any]], ...])
    assert_type(await asyncio.gather(*texts), list[str])

    fetch.map(range(3))
    fetch.map(number for number in range(3))
    fetch.map(_numbers())
    fetch.map(area.map([1]))
    fetch.map([area.submit(1), 2])
    fetch.map(_list.submit())
    fetch.map(number=[1, 2])
    area.map([1, 2], height=unmapped(3))
    area.map(unmapped(3), [1, 2])
    parse.map(texts)
    assert_type(area.product([1, 2], [3, 4]), MapFuture[int])

    fetch.map(["a"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    fetch.map(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


@step
async def _list() -> list[int]:
    return [1]


async def _numbers() -> AsyncIterator[int]:
    yield 1


# -- one function over many items, and typed outputs ---------------------------------------


def _half(number: int) -> float:
    return number / 2


async def _name(number: int) -> str:
    return str(number)


async def items_at_once() -> None:
    assert_type(parallel_map(_half, [1, 2], num_workers=2), list[float])
    assert_type(parallel_map(_half, range(3), backend="process"), list[float])
    assert_type(parallel_map(parse, ["a"]), list[Page])
    assert_type(await amap(_name, [1, 2], limit=3), list[str])
    assert_type(await amap(_name, _numbers()), list[str])
    assert_type(await amap(fetch, [1]), list[str])

    parallel_map(_half, ["a"])  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    parallel_map(_half, [1], backend="fibre")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await amap(_half, [1])  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]


@step
def _learn(data: Dataset[list[int]], rate: float = 0.1) -> Model[dict[str, float]]:
    return Model({"rate": rate, "mean": sum(data.value) / len(data.value)}, name="demo", rows=len(data.value))


@step
def _judge(model: Model[dict[str, float]]) -> Metrics:
    return Metrics(mean=model.value["mean"])


@pipeline
async def learning(numbers: list[int]) -> Metrics:
    model = _learn.submit(Dataset(numbers, name="numbers"))
    assert_type(model, StepFuture[Model[dict[str, float]]])
    assert_type((await model).value, dict[str, float])
    return await _judge(await model)


class _Registry:
    def save(self, artifact: Artifact[Any], value: Model[Any]) -> None: ...


async def typed_outputs() -> None:
    route: Route = _Registry()
    async with Engine("./state", routes={Model: route, Dataset: "s3://bucket/data"}) as engine:
        result = await engine.run(learning, [1, 2])
        assert_type(result.value, Metrics)
        assert_type(result.value["mean"], Any)


# -- options of one call -------------------------------------------------------------------


async def options_change_no_signature() -> None:
    policy = Retry(max_attempts=2, max_delay=timedelta(minutes=1))
    patient = fetch.with_options(timeout="5m", retry=policy, after=[area.submit(1)])
    assert_type(await patient.with_options(resources={"cpu": 0.5}, rate="10/h", execution_group="g")(1), str)
    assert_type(await patient(1), str)
    assert_type(patient.submit(1), StepFuture[str])
    assert_type(parse.with_options(cache=False).fn("x"), Page)
    assert_type(crawl.with_options(debug=True, idempotency_key="k", engine=Engine()).run(3), RunResult[list[Page]])

    await patient("one")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fetch.with_options(retries=2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    crawl.with_options(retries=2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# -- pipelines, runs and results -----------------------------------------------------------


async def pipelines_keep_their_signatures() -> None:
    assert_type(await crawl(3), list[Page])
    assert_type(crawl.run(3, prefix="x"), RunResult[list[Page]])
    assert_type(blocking.run(3), RunResult[int])
    handle = crawl.start(3)
    assert_type(handle, RunHandle[list[Page]])
    assert_type(await handle, list[Page])
    assert_type(await handle.accepted(), RunHandle[list[Page]])
    assert_type(await handle.wait(), RunResult[list[Page]])
    assert_type(handle.id, str)
    assert_type(await asyncio.gather(*[crawl.start(1), crawl.start(2)]), list[list[Page]])
    await handle.cancel()
    async for event in handle.events():
        assert_type(event, Event)

    await crawl("three")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    crawl.start("three")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    crawl.run()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    crawl(3)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]


def results_are_typed(result: RunResult[list[Page]]) -> Iterator[object]:
    assert_type(result.value, list[Page])
    assert_type(result.success, bool)
    assert_type(result.error, BaseException | None)
    assert_type(result.errors, list[BaseException])
    assert_type(result.duration_seconds + result.time_saved_seconds, float)
    result.raise_for_failure()
    if result.status == "succeeded":
        yield result.run_id + result.pipeline + result.to_mermaid() + str(result)
    if result.status == "done":  # type: ignore[comparison-overlap]  # pyright: ignore[reportUnnecessaryComparison]
        yield None
    for name, call in result.step_results.items():
        assert_type(call, StepResult)
        assert_type(call.attempts, int)
        assert_type(call.error, BaseException | None)
        assert_type(call.load_inputs(), dict[str, Any])
        yield name, call.cached, call.skipped, call.skip_reason, call.reused, call.fallback, call.started_at
        yield [(given.digest, given.producer, given.inferred) for given in call.inputs.values()]
    for artifact in result.artifacts.values():
        assert_type(artifact, Artifact[Any])
        yield artifact.name, artifact.version, artifact.digest, artifact.size, artifact.codec, artifact.type
        yield artifact.producer.run_id, artifact.metadata, artifact.lineage()
    yield result.outputs["parse"]


async def artifacts_are_typed(artifact: Artifact[Page]) -> None:
    assert_type(artifact.read(), Page)
    assert_type(await artifact.load(), Page)
    wider: Artifact[object] = artifact
    print(wider)


# -- static pipelines ----------------------------------------------------------------------


@pipeline(static=True, context=context(prefix="x"), failure_mode="stop")
def static(urls: list[int], *, depth: int = 1) -> list[StepFuture[Page]]:
    return [parse.submit(fetch.submit(url)) for url in urls[:depth]]


wired = Pipeline("etl", context={"rate": 0.1}, timeout="1h", max_concurrency=2, tags=["nightly"])


async def static_pipelines_keep_their_signatures() -> None:
    graph = static.compile([1], depth=2)
    assert_type(graph.order, list[str])
    assert_type(graph.edges, list[tuple[str, str]])
    assert_type(graph.to_mermaid() + graph.to_dot(), str)
    assert_type(static.run([1]), RunResult[list[StepFuture[Page]]])

    static.compile(["a"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    pipeline(static=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


async def wired_pipelines_give_their_outputs_by_name() -> None:
    assert_type(wired.add_step(fetch), Pipeline)
    assert_type(wired.add_steps(parse, [area, upper]), Pipeline)
    assert_type(wired.run(inputs={"number": 1}, context=context(rate=1), debug=True), RunResult[dict[str, Any]])
    assert_type(await wired(inputs={"number": 1}), dict[str, Any])
    assert_type(await wired.run_async({"number": 1}), RunResult[dict[str, Any]])
    assert_type(await wired.start({"number": 1}).wait(), RunResult[dict[str, Any]])
    assert_type(wired.compile(["number"]).order, list[str])
    assert_type(wired.with_options(failure_mode="continue", context={"rate": 2}), Pipeline)
    async with Engine() as engine:
        assert_type(await engine.run(wired, inputs={}, context={"rate": 3}, debug=False), RunResult[dict[str, Any]])

    wired.add_step(len)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    wired.run([1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Pipeline("p", retries=2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@step
async def with_secret(token: Secret[str], retries: int = 0) -> int:
    assert_type(token.value, str)
    return len(token.value)


@pipeline
async def secrets() -> None:
    assert_type(Secret("x"), Secret[str])
    assert_type(await with_secret(Secret("x")), int)
    await with_secret("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# -- the engine ----------------------------------------------------------------------------


async def engines_run_pipelines() -> None:
    keep = Keep(runs_for="30d", bytes="10GB")
    options = Resources(cpu=4, memory="16Gi")
    async with Engine("./state", resources=options, overcommit="error") as engine:
        assert_type((await engine.run(crawl, 1)).step_results["fetch"].resources_used, dict[str, float | None])
        assert_type((await engine.run(crawl, 1)).step_results["fetch"].tags, tuple[str, ...])
        assert_type((await engine.run(crawl, 1)).tags, tuple[str, ...])
    async with Engine("./state", durability="relaxed", cache=False, retry=2, keep=keep, close_timeout="5s") as engine:
        assert_type(engine, Engine)
        result = await engine.run(crawl, 3, prefix="x")
        assert_type(result, RunResult[list[Page]])
        assert_type(await engine.start(blocking, 3), RunHandle[int])
        assert_type(await engine.resume(result.run_id), RunResult[Any])
        assert_type(await engine.get_run(result.run_id), RunResult[Any])
        assert_type(await engine.runs(pipeline="crawl", status="failed", limit=3), list[RunResult[Any]])
        assert_type(await engine.recover(), list[RunResult[Any]])
        assert_type(await engine.recover(wait=False), list[RunHandle[Any]])
        assert_type(await engine.artifact("parse", version=1), Artifact[Any])
        assert_type(await engine.prune(older_than="30d", keep_last=10, dry_run=True), dict[str, int])
        assert_type(engine.metrics()["log_flushes"], float)
        assert_type(engine.health(), dict[str, Any])
        await engine.cancel(result.run_id)
        async for event in engine.events(result.run_id, after=3, follow=True):
            print(event.seq, event.at, event.run_id, isinstance(event, CallCompleted | RunSucceeded | CallRetrying))
        for record in await engine.logs(result.run_id, step="fetch"):
            assert_type(record, Logged)
            print(record.at, record.call, record.step, record.attempt, record.level, record.message, record.stream)

        await engine.run(crawl, "three")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await engine.start(crawl)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        await engine.run(fetch, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]

    Engine(durability="sometimes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Keep(bytes=[1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# -- in a step, and the rest ---------------------------------------------------------------


@step
def reports_progress(count: int) -> str:
    here = current()
    here.log_metadata(rows=count)
    here.progress(1, count)
    assert_type(here.deadline, float | None)
    assert_type(here.attempt, int)
    return here.run_id + here.call + here.token


def policies_have_plain_values() -> None:
    assert_type(Retry(delay="1s", max_time=timedelta(hours=1)).delay, float)
    assert_type(CachePolicy(key=lambda inputs: str(inputs["url"]), files="a.txt").expires_after, float | None)
    assert_type(Keep(runs_for=timedelta(days=3)).runs_for, float | None)


def errors_are_what_they_say(error: TreadleError) -> None:
    assert_type(error.what + error.where + error.why + error.fix, str)
    if isinstance(error, EncodeError):
        assert_type(error.path, str)
    if isinstance(error, StepTimeout):
        assert_type(error.timeout_s, float)
    if isinstance(error, ValidationError):
        assert_type(error.problems, tuple[str, ...])
    timeout: TimeoutError = StepTimeout("late", timeout_s=3.0)
    warning: type[UserWarning] = UnobservedFailure
    bad: ValueError = OptionError("no")
    kinds: list[type[TreadleError]] = [RunCancelled, StepTimeout]
    print(timeout, warning, bad, kinds)


class Upper:
    """A codec of a user's own."""

    name = "upper"

    def accepts(self, value: object) -> bool:
        return isinstance(value, str)

    def encode(self, value: Any) -> bytes:
        return str(value).upper().encode()

    def decode(self, data: bytes) -> object:
        return data.decode()


async def the_test_kit_is_typed() -> None:
    codecs: list[Codec] = [Upper()]
    clock: Clock = VirtualClock(start=100.0)
    async with memory_engine(clock=clock) as engine:
        assert_type((await engine.run(crawl, 3)).value, list[Page])
    print(codecs)
