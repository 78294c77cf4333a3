"""``@pipeline(static=True)``: the function is called once, with placeholders, to see what it does."""

from __future__ import annotations

import asyncio
import collections
import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from treadle import Engine, Metrics, Model, pipeline, step, unmapped
from treadle.errors import EndlessPipeline, OptionError, PlaceholderUsed, TreadleError, ValidationError


@step
async def fetch(url: str) -> str:
    return f"<{url}>"


@step
def parse(page: str, *, strict: bool = False) -> dict[str, Any]:
    return {"page": page, "strict": strict}


@step
def count(pages: list[Any]) -> int:
    return len(pages)


@step(outputs=["low", "high"])
def split(numbers: list[int]) -> tuple[int, int]:
    return min(numbers), max(numbers)


@step
def add(*numbers: int) -> int:
    return sum(numbers)


@step
def increase(x: int, by: int = 1) -> int:
    return x + by


# -- what it can do -----------------------------------------------------------------------


@pytest.mark.asyncio
async def test_calls_submits_and_maps_become_a_graph_that_runs(home: str) -> None:
    @pipeline(static=True)
    def crawl(first: str, others: list[str]) -> Any:
        page = fetch(first)
        pages = fetch.map(others)
        return {"first": parse(page, strict=True), "count": count(pages), "same": [page, pages]}

    graph = crawl.compile("a", ["b", "c"])
    assert graph.order == ["fetch", "fetch_2", "parse", "count"]
    assert graph.edges == [("fetch", "parse"), ("fetch_2", "count")]
    async with Engine(home) as engine:
        result = await engine.run(crawl, "a", ["b", "c"])
        assert result.value == {
            "first": {"page": "<a>", "strict": True}, "count": 2, "same": ["<a>", ["<b>", "<c>"]],
        }  # fmt: skip
        assert set(result.step_results) == {"fetch", "fetch_2[0]", "fetch_2[1]", "parse", "count"}
        assert await crawl("a", ["b", "c"]) == result.value
        assert {r.status for r in (await engine.run(crawl, "a", ["b", "c"])).step_results.values()} == {"cached"}


def test_a_static_pipeline_runs_in_a_script(default_home: object) -> None:
    @pipeline(static=True)
    def once(n: int) -> int:
        return increase(increase.submit(n).result())

    assert once.run(1).value == 3
    assert once.with_options(failure_mode="stop").run(2).value == 4


@pytest.mark.asyncio
async def test_ordinary_control_flow_over_the_arguments_shapes_the_graph(home: str) -> None:
    @pipeline(static=True)
    def chain(length: int, doubled: bool = False) -> Any:
        value: Any = 0
        for _ in range(length):
            value = increase(value)
        return add(value, value) if doubled else value

    assert len(chain.compile(5)) == 5
    assert chain.compile(2, doubled=True).edges == [("increase", "increase_2"), ("increase_2", "add")]
    async with Engine(home) as engine:
        assert (await engine.run(chain, 7)).value == 7
        assert (await engine.run(chain, 3, doubled=True)).value == 6
        assert (await engine.run(chain, 0)).value == 0


@pytest.mark.asyncio
async def test_several_outputs_are_unpacked_indexed_or_named(home: str) -> None:
    @pipeline(static=True)
    def spread(numbers: list[int]) -> Any:
        both: Any = split(numbers)
        low, high = both
        return add(low, high), add(both[0], both["high"]), split.submit(numbers).output("low"), both

    async with Engine(home) as engine:
        assert (await engine.run(spread, [3, 1, 2])).value == (4, 4, 1, (1, 3))


@pytest.mark.asyncio
async def test_maps_go_over_lists_maps_futures_of_lists_and_combinations(home: str) -> None:
    @step
    def numbers(upto: int) -> list[int]:
        return list(range(upto))

    @pipeline(static=True)
    def maps(upto: int) -> Any:
        known = increase.map(range(upto), by=unmapped(10))
        later = increase.map(numbers(upto))
        again = increase.map(known, by=later)
        every = add.product([1, 2], (x for x in (10, 20)))
        lows, highs = split.map([[1, 2], [3, 4]]).unpack()  # type: ignore[misc]
        return [known, later, again, every, known[0], known[-1], [*known][1:], len(known), lows, highs]

    graph = maps.compile(3)
    assert graph.order == ["increase", "numbers", "increase_2", "increase_3", "add", "split"]
    assert 'n0["increase[3]"]' in graph.to_mermaid()
    assert "increase_2[#63;]" in graph.to_mermaid()
    async with Engine(home) as engine:
        assert (await engine.run(maps, 3)).value == [
            [10, 11, 12], [1, 2, 3], [11, 13, 15], [11, 21, 12, 22], 10, 12, [11, 12], 3, [1, 3], [2, 4],
        ]  # fmt: skip


@pytest.mark.asyncio
async def test_futures_in_containers_make_edges(home: str) -> None:
    @step
    def collect(parts: dict[str, Any]) -> Any:
        return [*sorted(parts["list"]), parts["tuple"][0]]

    @pipeline(static=True)
    def nested() -> Any:
        one, two = increase(1), increase(2)
        return collect({"list": [one, two], "tuple": (one, {"deep": two})})

    assert nested.compile().edges == [("increase", "collect"), ("increase_2", "collect")]
    async with Engine(home) as engine:
        assert (await engine.run(nested)).value == [2, 3, 2]


@pytest.mark.asyncio
async def test_after_makes_an_order_without_data(home: str) -> None:
    log: list[str] = []

    @step(cache=False)
    async def note(text: str) -> None:
        await asyncio.sleep(0)
        log.append(text)

    @pipeline(static=True)
    def ordered() -> None:
        first = note.submit("first")
        second = note.with_options(after=[first]).submit("second")
        note.with_options(after=second)("third")

    assert ordered.compile().edges == [("note", "note_2"), ("note_2", "note_3")]
    async with Engine(home) as engine:
        assert (await engine.run(ordered)).success
    assert log == ["first", "second", "third"]


@pytest.mark.asyncio
async def test_a_pipeline_called_in_a_static_one_is_a_child_run(home: str) -> None:
    @pipeline
    async def inner(n: int) -> int:
        return await increase(n, by=100)

    @pipeline(static=True)
    def static_inner(n: int) -> Any:
        return increase(n, by=1000)

    @pipeline(static=True)
    def outer(n: int) -> Any:
        a = increase(n)
        return add(inner(a), static_inner(inner.start(1)), increase(a))  # type: ignore[arg-type]

    graph = outer.compile(1)
    assert graph.order == ["increase", "inner", "inner_2", "static_inner", "increase_2", "add"]
    async with Engine(home) as engine:
        result = await engine.run(outer, 1)
        assert result.value == 102 + 1101 + 3
        assert len(await engine.runs(children=True)) == 4
        assert set(result.step_results) == {"increase", "increase_2", "add"}


@pytest.mark.asyncio
async def test_a_static_pipeline_in_a_dynamic_one_takes_futures(home: str) -> None:
    @pipeline(static=True)
    def twice(n: int) -> Any:
        return [increase(n)] * n

    @pipeline
    async def outer() -> Any:
        return await twice(increase.submit(1))  # type: ignore[arg-type]

    async with Engine(home) as engine:
        assert (await engine.run(outer)).value == [3, 3]


def test_in_the_body_of_a_step_and_as_a_plain_function_it_is_just_a_function(default_home: object) -> None:
    @pipeline(static=True)
    def plain(n: int) -> Any:
        return increase(n) + 1

    @step
    def body(n: int) -> int:
        return plain(n)  # type: ignore[return-value]

    @pipeline
    def outer() -> int:
        return body(1)

    assert plain.fn(1) == 3
    assert outer.run().value == 3


# -- what it cannot -----------------------------------------------------------------------


def test_an_async_function_cannot_be_static() -> None:
    with pytest.raises(OptionError, match="async def"):

        @pipeline(static=True)
        async def wrong() -> None: ...


def test_a_dynamic_pipeline_cannot_be_compiled() -> None:
    @pipeline
    def dynamic() -> None: ...

    with pytest.raises(OptionError, match="static=True"):
        dynamic.compile()


def test_wrong_arguments_of_steps_and_pipelines_are_all_collected() -> None:
    @pipeline
    async def child(n: int) -> int:
        return n

    @pipeline(static=True)
    def wrong() -> Any:
        a = increase(1, 2, 3)  # type: ignore[call-arg]
        b = increase(a, speed=2)  # type: ignore[call-arg]
        c = increase.map([1], [2], [3])
        d = child()  # type: ignore[call-arg]
        e = increase.map([1, 2], by=[1])
        f = increase.map(3)  # type: ignore[arg-type]
        return a, b, c, d, e, f

    with pytest.raises(ValidationError) as caught:
        wrong.compile()
    problems = caught.value.problems
    assert len(problems) == 6
    assert all("test_functions.py:" in problem for problem in problems)
    assert [problem.split(" (")[0] for problem in problems] == ["step increase"] * 3 + ["pipeline child"] + [
        "step increase"
    ] * 2
    assert "different lengths" in problems[4]


def test_wrong_arguments_of_the_pipeline_itself_are_a_type_error_at_the_call_and_a_problem_when_compiled() -> None:
    @pipeline(static=True)
    def one(n: int) -> Any:
        return increase(n)

    with pytest.raises(TypeError, match="'n'"):
        one.run()  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="'n'"):
        one.compile()  # type: ignore[call-arg]


def test_types_between_the_calls_of_a_function_are_compared() -> None:
    @pipeline(static=True)
    def wrong(urls: list[str]) -> Any:
        pages = fetch.map(urls)
        return add(count(pages)), increase.map(pages), increase(fetch("a"))  # type: ignore[arg-type]

    with pytest.raises(ValidationError) as caught:
        wrong.compile(["a"])
    first, second = caught.value.problems
    assert "takes int for parameter 'x', and step fetch" in first
    assert "gives str" in first
    assert "step increase_2" in second


def test_an_error_of_the_function_itself_comes_out_as_it_is(default_home: Any) -> None:
    @pipeline(static=True)
    def wrong() -> Any:
        increase(1)
        raise LookupError("no such file")

    with pytest.raises(LookupError, match="no such file") as caught:
        wrong.run()
    assert "static pipeline wrong" in caught.value.__notes__[0]
    assert not default_home.exists()


def test_a_call_whose_value_goes_nowhere_is_a_warning(warned: Any) -> None:
    @step
    def save(value: Any) -> None: ...

    @pipeline(static=True)
    def half() -> Any:
        a, _ = increase(1), increase(2)
        save(a)
        return increase(a)

    half.compile()
    (text,) = warned()
    assert "nobody uses what step increase_2" in text


def test_a_pipeline_that_returns_nothing_warns_of_nothing(warned: Any) -> None:
    @pipeline(static=True)
    def sink() -> None:
        count([increase(1)])

    sink.compile()
    assert warned() == []


# -- placeholders -------------------------------------------------------------------------


@step
def value() -> Any:
    return 1


MISUSE: dict[str, Any] = {
    "branches": lambda v: 1 if v else 2,
    "iterates": lambda v: [*v],
    "unpacks": lambda v: (lambda a, b: a)(*v),
    "compares": lambda v: v == 1,
    "orders": lambda v: v < 1,
    "formats": lambda v: f"{v}",
    "prints": str,
    "indexes": lambda v: v[0],
    "slices": lambda v: v[1:],
    "takes a key": lambda v: v["key"],
    "sets a key": lambda v: v.__setitem__("key", 1),
    "looks for an item": lambda v: 1 in v,
    "asks for the length": len,
    "adds": lambda v: v + 1,
    "adds to": lambda v: 1 + v,
    "joins": lambda v: "a" + v,
    "negates": lambda v: -v,
    "rounds": round,
    "makes an int": int,
    "makes a float": float,
    "indexes with": lambda v: [1, 2][v],
    "counts to": range,
    "calls": lambda v: v(),
    "takes an attribute": lambda v: v.score,
    "enters": lambda v: v.__enter__(),
    "awaits": lambda v: v.__await__(),
    "picks from a dict": lambda v: {1: 2}.get(v, v) if v in {1: 2} else v > 2,
}


@pytest.mark.parametrize("use", MISUSE.values(), ids=MISUSE)
def test_a_placeholder_explains_what_it_cannot_do(use: Any, default_home: Any) -> None:
    @pipeline(static=True)
    def misuse() -> Any:
        return use(value())

    with pytest.raises(PlaceholderUsed) as caught:
        misuse.run()
    text = str(caught.value)
    assert "of value" in text
    assert "not known before it runs" in text
    assert "misuse is static" in text
    assert "Fix:" in text
    assert "test_functions.py" in text
    assert caught.value.problems == (text,)
    assert isinstance(caught.value, (ValidationError, TypeError))
    assert not default_home.exists()


def test_a_placeholder_is_neither_copied_nor_pickled() -> None:
    @pipeline(static=True)
    def misuse() -> Any:
        return copy.deepcopy(value())

    with pytest.raises(PlaceholderUsed, match="copies or stores"):
        misuse.compile()


def test_problems_found_before_a_placeholder_was_used_are_told_with_it() -> None:
    @pipeline(static=True)
    def misuse() -> Any:
        increase(1, 2, 3)  # type: ignore[call-arg]
        return 1 if value() else 2

    with pytest.raises(PlaceholderUsed) as caught:
        misuse.compile()
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("use", [list, len, lambda m: m[0], bool, lambda m: m.unpack()])
def test_a_map_over_something_that_is_not_there_yet_has_no_items_yet(use: Any) -> None:
    @pipeline(static=True)
    def misuse() -> Any:
        return use(increase.map(value()))

    with pytest.raises(PlaceholderUsed, match="map"):
        misuse.compile()


def test_a_placeholder_can_be_shown_and_asked_whether_it_has_an_attribute() -> None:
    @pipeline(static=True)
    def shown() -> Any:
        v: Any = value()
        assert repr(v) == "<placeholder for value>"
        assert repr(increase.map([1])[0]) == "<placeholder for increase[0]>"
        assert repr(split([1])[1]) == "<placeholder for split.high>"  # type: ignore[index]
        assert not hasattr(v, "score")
        assert v.name == "value"
        return [{v, v}]

    shown.compile()


def test_an_output_that_a_step_does_not_have_is_an_option_error() -> None:
    @pipeline(static=True)
    def wrong() -> Any:
        return split.submit([1]).output("middle")

    with pytest.raises(OptionError, match="low, high"):
        wrong.compile()


def test_a_placeholder_of_another_compilation_is_refused() -> None:
    kept: list[Any] = []

    @pipeline(static=True)
    def keeper() -> Any:
        kept.append(value())
        return increase(kept[0])

    keeper.compile()
    with pytest.raises(ValidationError, match="another"):
        keeper.compile()


def test_run_inside_of_the_function_is_refused() -> None:
    @pipeline
    def inner() -> None: ...

    @pipeline(static=True)
    def outer() -> Any:
        return inner.run()

    with pytest.raises(PlaceholderUsed, match=r"inner\.run\(\)"):
        outer.compile()


@pytest.mark.asyncio
async def test_a_map_over_an_async_iterable_is_refused(home: str) -> None:
    async def numbers() -> Any:
        yield 1

    @pipeline(static=True)
    def wrong() -> Any:
        return increase.map(numbers())

    async with Engine(home) as engine:
        with pytest.raises(TreadleError, match="async iterable"):
            await engine.run(wrong)


class Span(NamedTuple):
    low: Any
    high: Any


@dataclass
class Row:
    cell: Any


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda value: Span(value, 1), "inside of a"), (Row, "inside of a"),
        (lambda value: [{"row": Row([value])}], "inside of a"), (Model, "inside of a"),
        (lambda value: Metrics(accuracy=value), "inside of a"),
        (lambda value: collections.OrderedDict(first=value), "inside of a"),
        (lambda value: {value: 1}, "as a key of a dict"),
        (lambda value: [value, ({(value, 2): 3},)], "as a key of a dict"),
    ],
)  # fmt: skip
def test_a_placeholder_where_nobody_would_put_the_value_in_is_a_problem(wrap: Any, place: str) -> None:
    @pipeline(static=True)
    def given_to_a_step() -> Any:
        return parse(wrap(fetch("a")))

    @pipeline(static=True)
    def returned() -> Any:
        return wrap(fetch("a"))

    for target in (given_to_a_step, returned):
        with pytest.raises(ValidationError, match=f"<placeholder for fetch> {place}") as caught:
            target.compile()
        assert len(caught.value.problems) == 1


def test_an_argument_counts_as_it_was_at_its_call_whatever_becomes_of_it_later(default_home: Any) -> None:
    @pipeline(static=True)
    def run() -> Any:
        pages: list[Any] = []
        numbers: list[int] = []
        by_name: dict[str, Any] = {"numbers": numbers}
        counts: list[Any] = []
        for number in range(3):
            pages.append(fetch(str(number)))
            numbers.append(number)
            counts += [count(pages), add.map(numbers), parse(by_name)]  # type: ignore[arg-type]
        pages.clear()
        by_name.clear()
        return counts

    result = run.run().value
    assert result[0::3] == [1, 2, 3]
    assert result[1::3] == [[0], [0, 1], [0, 1, 2]]
    assert [each["page"]["numbers"] for each in result[2::3]] == [[0], [0, 1], [0, 1, 2]]


def test_a_static_pipeline_that_calls_itself_without_end_is_refused_by_name() -> None:
    @pipeline(static=True)
    def endless(n: int) -> Any:
        return endless(n + 1)

    with pytest.raises(EndlessPipeline, match="endless -> endless") as caught:
        endless.compile(0)
    assert isinstance(caught.value, ValidationError)
    assert "does not end" in str(caught.value)
    assert "make the pipeline dynamic" in str(caught.value)


def test_static_pipelines_that_call_each_other_without_end_are_named_in_their_order() -> None:
    @pipeline(static=True)
    def ping(n: int) -> Any:
        return pong(n)

    @pipeline(static=True)
    def pong(n: int) -> Any:
        return ping(n)

    with pytest.raises(ValidationError, match=r"(ping -> pong -> ping|pong -> ping -> pong)"):
        ping.compile(0)


def test_a_recursion_that_ends_while_compiling_is_sound(default_home: object) -> None:
    @step(cache=False)
    def one(n: int) -> int:
        return n

    @pipeline(static=True)
    def down(n: int) -> Any:
        return one.submit(n) if n == 0 else down(n - 1)

    assert down.run(5).value == 0
