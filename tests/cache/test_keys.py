"""What the cache key is made of: which changes perform a step again, and which find the stored outcome."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from treadle import CachePolicy, pipeline, step, unmapped
from treadle.errors import OptionError

HEADER = "from treadle import CachePolicy, pipeline, step\n"


def module_with(write: Any, options: str, body: str, *, extra: str = "", arguments: str = "x") -> Any:
    """A module with a step ``f`` of these options and a pipeline ``p`` that calls it."""
    return write(
        f"{HEADER}{extra}\n"
        f"@step{options}\n"
        f"async def f({arguments}):\n"
        f"    return {body}\n\n"
        f"@pipeline\n"
        f"async def p(*args, **kwargs):\n"
        f"    return await f(*args, **kwargs)\n"
    )


def status(home: Any, module: Any, *args: Any, **options: Any) -> str:
    found: str = home.statuses(module.p, *args, **options)["f"]
    return found


# -- code and inputs ----------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", "()", "(cache='code_hash')", "(cache=True)", "(cache=CachePolicy())"])
def test_by_default_code_and_inputs_are_the_key(home: Any, write: Any, options: str) -> None:
    first = module_with(write, options, "x + 1")
    assert status(home, first, 1) == "succeeded"
    assert status(home, first, 1) == "cached"
    assert status(home, first, 2) == "succeeded"
    edited = module_with(write, options, "x + 2")
    assert status(home, edited, 1) == "succeeded"
    assert home.value(edited.p, 1) == 3
    assert status(home, module_with(write, options, "x + 1  # as before"), 1) == "cached"


def test_input_hash_ignores_the_code(home: Any, write: Any) -> None:
    assert status(home, module_with(write, "(cache='input_hash')", "x + 1"), 1) == "succeeded"
    edited = module_with(write, "(cache='input_hash')", "x + 2")
    assert status(home, edited, 1) == "cached"
    assert home.value(edited.p, 1) == 2
    assert status(home, edited, 2) == "succeeded"


def test_input_hash_without_inputs_goes_by_the_code(home: Any, write: Any) -> None:
    first = module_with(write, "(cache='input_hash')", "1", arguments="")
    assert status(home, first) == "succeeded"
    assert status(home, first) == "cached"
    assert status(home, module_with(write, "(cache='input_hash')", "2", arguments="")) == "succeeded"


def test_code_hash_and_input_hash_share_no_entries(home: Any, write: Any) -> None:
    assert status(home, module_with(write, "(cache='input_hash')", "x + 1"), 1) == "succeeded"
    assert status(home, module_with(write, "(cache='code_hash')", "x + 1"), 1) == "succeeded"


def test_a_version_replaces_the_code(home: Any, write: Any) -> None:
    assert status(home, module_with(write, "(version='1')", "x + 1"), 1) == "succeeded"
    assert status(home, module_with(write, "(version='1')", "x + 2"), 1) == "cached"
    assert status(home, module_with(write, "(version=1)", "x + 2"), 1) == "cached"
    assert status(home, module_with(write, "(version='2')", "x + 2"), 1) == "succeeded"
    assert status(home, module_with(write, "(version='2')", "x + 2"), 2) == "succeeded"


def test_a_changed_helper_is_changed_code(home: Any, write: Any) -> None:
    helper = "def helper(x):\n    return x * {}\n"
    assert status(home, module_with(write, "", "helper(x)", extra=helper.format(2)), 1) == "succeeded"
    assert status(home, module_with(write, "", "helper(x)", extra=helper.format(2)), 1) == "cached"
    assert status(home, module_with(write, "", "helper(x)", extra=helper.format(3)), 1) == "succeeded"


def test_a_global_constant_that_is_named_counts_and_another_does_not(home: Any, write: Any) -> None:
    assert status(home, module_with(write, "", "x * K", extra="K = 1\nOTHER = 1\n"), 1) == "succeeded"
    assert status(home, module_with(write, "", "x * K", extra="K = 1\nOTHER = 2\n"), 1) == "cached"
    assert status(home, module_with(write, "", "x * K", extra="K = 2\nOTHER = 2\n"), 1) == "succeeded"


@pytest.mark.parametrize("names", [{"__name__": "cached_exec"}, {}], ids=["of a module", "of none"])
def test_a_function_made_by_exec_is_known_by_its_code(home: Any, names: dict[str, Any]) -> None:
    def made(text: str) -> Any:
        namespace = dict(names)
        exec(text, namespace)
        f = step(namespace["f"])

        @pipeline(name="p")
        async def p() -> Any:
            return await f()

        return p

    assert home.value(made("async def f():\n    return 1")) == 1
    assert home.value(made("async def f():\n    return 2")) == 2
    assert home.statuses(made("async def f():\n    return 2"))["f"] == "cached"


def test_a_factorys_steps_differ_by_what_they_close_over(home: Any) -> None:
    def make(kind: str, options: dict[str, int]) -> Any:
        @step
        async def train() -> str:
            return f"{kind} {options}"

        return train

    @pipeline
    async def p(kind: str, depth: int) -> str:
        return await make(kind, {"depth": depth})()

    assert home.value(p, "xgb", 1) == "xgb {'depth': 1}"
    assert home.value(p, "rf", 1) == "rf {'depth': 1}"
    assert home.value(p, "rf", 2) == "rf {'depth': 2}"
    assert home.statuses(p, "xgb", 1)["train"] == "cached"


def test_a_default_that_changes_is_another_step(home: Any, write: Any) -> None:
    for options in ("", "(cache='input_hash')"):
        assert status(home, module_with(write, options, "x + y", arguments="x, y=1"), 1) == "succeeded"
        assert status(home, module_with(write, options, "x + y", arguments="x, y=1"), 1) == "cached"
        assert status(home, module_with(write, options, "x + y", arguments="x, y=2"), 1) == "succeeded"


def test_the_name_and_the_outputs_are_part_of_what_a_step_is(home: Any) -> None:
    @step(cache="input_hash")
    async def f(x: int) -> tuple[int, int]:
        return x, x

    @pipeline
    async def p(variant: int) -> Any:
        copies = [f, f.with_options(name="g"), f.with_options(outputs=["a", "b"]), f.with_options(outputs=["b", "a"])]
        return await copies[variant](1)

    for variant in range(4):
        assert set(home.statuses(p, variant).values()) == {"succeeded"}
    for variant in range(4):
        assert set(home.statuses(p, variant).values()) == {"cached"}


# -- the policy ---------------------------------------------------------------------------


def test_inputs_false_is_the_literal_code_only_reading(home: Any, write: Any) -> None:
    options = "(cache=CachePolicy(inputs=False))"
    first = module_with(write, options, "x + 1")
    assert home.value(first.p, 1) == 2
    assert status(home, first, 5) == "cached"
    assert home.value(first.p, 5) == 2
    assert status(home, module_with(write, options, "x + 2"), 5) == "succeeded"


def test_ignored_parameters_are_not_in_the_key(home: Any, write: Any) -> None:
    module = module_with(
        write, "(cache=CachePolicy(ignore=('client', 'verbose')))", "x + 1", arguments="x, client, verbose=0"
    )
    assert status(home, module, 1, "a") == "succeeded"
    assert status(home, module, 1, "b") == "cached"
    assert status(home, module, 1, "b", 1) == "cached"
    assert status(home, module, 2, "b", 1) == "succeeded"


def test_an_ignored_argument_need_not_be_hashable(home: Any, caplog: pytest.LogCaptureFixture) -> None:
    @step(cache=CachePolicy(ignore=("client",)))
    async def f(client: Any, x: int) -> int:
        return x

    @pipeline
    async def p(x: int) -> int:
        return await f(threading.Lock(), x)

    with caplog.at_level(logging.WARNING, "treadle"):
        assert home.statuses(p, 1)["f"] == "succeeded"
        assert home.statuses(p, 1)["f"] == "cached"
        assert home.statuses(p, 2)["f"] == "succeeded"
    assert not [record for record in caplog.records if "client" in record.getMessage()]


def test_the_content_of_named_files_counts(home: Any, tmp_path: Path) -> None:
    path = tmp_path / "rules.txt"
    path.write_text("a")

    @step(cache=CachePolicy(files=(str(path),)))
    async def f() -> str:
        return path.read_text()

    @pipeline
    async def p() -> str:
        return await f()

    assert home.value(p) == "a"
    assert home.statuses(p)["f"] == "cached"
    path.write_text("b")
    assert home.value(p) == "b"
    path.unlink()
    with pytest.raises(OptionError, match=r"rules\.txt"):
        home.value(p)


def test_what_depends_on_names_counts(home: Any, write: Any) -> None:
    options = "(cache=CachePolicy(depends_on=(plugin,)))"
    plugin = "PLUGINS = {{}}\ndef plugin(x):\n    return x + {}\nPLUGINS['one'] = plugin\n"
    assert status(home, module_with(write, options, "x", extra=plugin.format(1)), 1) == "succeeded"
    assert status(home, module_with(write, options, "x", extra=plugin.format(1)), 1) == "cached"
    assert status(home, module_with(write, options, "x", extra=plugin.format(2)), 1) == "succeeded"


def test_a_key_function_replaces_the_input_digests(home: Any) -> None:
    seen: list[dict[str, Any]] = []

    def by_id(inputs: dict[str, Any]) -> str:
        seen.append(dict(inputs))
        return str(inputs["row"]["id"])

    @step(cache=CachePolicy(key=by_id))
    async def f(row: dict[str, Any], lock: Any = None, scale: int = 2) -> int:
        return int(row["id"]) * scale

    @pipeline
    async def p(number: int, noise: int) -> int:
        return await f({"id": number, "noise": noise}, threading.Lock())

    assert home.statuses(p, 1, 1)["f"] == "succeeded"
    assert home.statuses(p, 1, 2)["f"] == "cached"
    assert home.statuses(p, 2, 1)["f"] == "succeeded"
    assert set(seen[0]) == {"row", "lock", "scale"}
    assert seen[0]["scale"] == 2


def test_a_key_that_is_no_text_fails_the_call_and_says_so(home: Any) -> None:
    @step(cache=CachePolicy(key=lambda inputs: inputs["x"]))
    async def f(x: int) -> int:
        return x

    @pipeline
    async def p() -> int:
        return await f(1)

    with pytest.raises(OptionError, match=r"key=.* gave int"):
        home.value(p)


def test_an_entry_is_no_longer_used_from_its_age_on(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @step(cache=CachePolicy(expires_after="1h"))
    async def f(x: int) -> int:
        return x

    @pipeline
    async def p() -> Any:
        future = f.submit(1)
        await future
        return future.artifact.version

    assert home.value(p) == 1
    assert home.value(p) == 1

    import time

    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3601)
    assert home.value(p) == 2
    assert home.value(p) == 2


# -- off ----------------------------------------------------------------------------------


def test_cache_false_is_performed_each_time_and_never_joined(home: Any) -> None:
    count = 0

    @step(cache=False)
    async def f(x: int) -> int:
        nonlocal count
        count += 1
        return x

    @pipeline
    async def p() -> list[int]:
        return await f.map([1, 1, 1])

    assert set(home.statuses(p).values()) == {"succeeded"}
    assert set(home.statuses(p).values()) == {"succeeded"}
    assert count == 6


COUNTER: list[int] = []


@step
async def unset(x: int) -> int:
    return x


@step(cache=True)
async def always(x: int) -> int:
    return x


@pipeline
async def plain() -> None:
    await unset(1)
    await always(1)


@pipeline(cache=False)
async def off() -> None:
    await unset(1)
    await always(1)
    await unset.with_options(name="again", cache=True)(1)


@pipeline(cache="input_hash")
async def on() -> None:
    await unset(1)


def test_the_engines_default_is_for_steps_that_name_none(home: Any) -> None:
    home.statuses(plain)
    assert home.statuses(plain) == {"unset": "cached", "always": "cached"}
    assert home.statuses(plain, cache=False) == {"unset": "succeeded", "always": "cached"}


def test_the_pipelines_default_is_over_the_engines_and_the_steps_over_both(home: Any) -> None:
    home.statuses(off)
    assert home.statuses(off) == {"unset": "succeeded", "always": "cached", "again": "cached"}
    home.statuses(on, cache=False)
    assert home.statuses(on, cache=False) == {"unset": "cached"}


def test_debug_runs_use_no_cache(home: Any) -> None:
    home.statuses(plain)
    assert set(home.statuses(plain.with_options(debug=True)).values()) == {"succeeded"}


# -- one content, one digest --------------------------------------------------------------


@step
async def give(x: Any) -> Any:
    return x


@step
async def take(x: Any) -> Any:
    return x


VALUES: list[Any] = [
    7, "text", None, 2.5, True, b"bytes", [1, [2, (3,)]], {"a": {1, 2}}, (1, 2), datetime.date(2026, 1, 2),
    Decimal("1.10"), Path("a/b"), 1 << 80, np.arange(6).reshape(2, 3), np.float32(1.5), np.arange(40_000),
    "x" * 100_000, b"y" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_future_value_artifact_and_literal_have_one_key(home: Any, value: Any) -> None:
    @pipeline
    async def p() -> list[Any]:
        future = give.submit(value)
        awaited = await future
        ways = [value, future, awaited, future.artifact, future.output("give")]
        for way in ways:
            await take(way)
        return [take_of.status for take_of in [take.submit(way) for way in ways]]

    found = home.statuses(p)
    calls = [found["take"], *(found[f"take_{n}"] for n in range(2, 6))]
    assert calls == ["succeeded", "cached", "cached", "cached", "cached"]


def test_a_container_of_futures_has_the_key_of_the_container_of_values(home: Any) -> None:
    @pipeline
    async def p() -> None:
        await take({"a": [1, 2], "b": (3,)})
        await take({"a": [give.submit(1), 2], "b": (give.submit(3),)})
        await take([1, 2, 3])
        await take(give.map([1, 2, 3]))

    found = home.statuses(p)
    assert [found[name] for name in ("take", "take_2", "take_3", "take_4")] == [
        "succeeded",
        "cached",
        "succeeded",
        "cached",
    ]


@dataclasses.dataclass
class Point:
    x: int


@dataclasses.dataclass
class Spot:
    x: int


DIFFERENT: list[list[Any]] = [
    [1, 1.0, "1", True, b"1", Decimal(1), np.int64(1), np.int32(1), 1 + 0j, [1], (1,), {1}, frozenset({1}), {1: None}],
    [0, False, None, "", b"", [], (), {}, set(), 0.0, -0.0],
    ["1b2", ["1b2"], ["1b", "2"], ["1", "b2"], [["1b2"]], ["1b2", ""]],
    [{"a": 1, "b": 2}, {"a": 2, "b": 1}, {"ab": 12}, {"a": "1", "b": 2}],
    [np.zeros(4), np.zeros(4, "f4"), np.zeros((2, 2)), np.zeros((4, 1)), np.zeros(5), [0.0] * 4],
    [Point(1), Spot(1), {"x": 1}, (1,)],
    [[1, [2, 3]], [[1, 2], 3], [1, 2, 3], [1, (2, 3)]],
    [float("inf"), float("-inf"), float("nan"), 1e308],
    [int, float, Point, Spot, len, test_a_container_of_futures_has_the_key_of_the_container_of_values],
]


@pytest.mark.parametrize("values", DIFFERENT, ids=lambda values: repr(values[0])[:12])
def test_values_that_differ_in_type_shape_or_content_have_keys_of_their_own(home: Any, values: list[Any]) -> None:
    @pipeline
    async def p() -> None:
        for value in values:
            await take(value)

    assert set(home.statuses(p).values()) == {"succeeded"}
    assert set(home.statuses(p).values()) == {"cached"}


def test_arguments_are_not_run_together(home: Any) -> None:
    @step
    async def two(a: str, b: str = "", *rest: str, **named: str) -> None:
        return None

    calls: list[tuple[tuple[str, ...], dict[str, str]]] = [
        (("1b2", "3"), {}), (("1", "2b3"), {}), (("1b", "23"), {}), (("1b23",), {}), (("1", "2", "b3"), {}),
        (("1", "2", "b", "3"), {}), (("1", "2", "3", "b"), {}), (("1", "2"), {"b3": ""}), (("1", "2"), {"c": "3"}),
        (("1", "2"), {"c": "3", "d": "4"}), (("1", "2"), {"c": "4", "d": "3"}), (("1", "2"), {"named": "3"}),
        (("1", "2"), {"rest": "3"}),
    ]  # fmt: skip

    @pipeline
    async def p() -> None:
        for args, kwargs in calls:
            await two(*args, **kwargs)

    assert set(home.statuses(p).values()) == {"succeeded"}
    assert set(home.statuses(p).values()) == {"cached"}


def test_how_arguments_are_given_makes_no_difference(home: Any) -> None:
    @step
    async def f(a: int, b: int = 2, *, c: int = 3, **more: int) -> None:
        return None

    @step
    async def g(a: int, *, c: int = 3) -> None:
        return None

    @pipeline
    async def with_keyword_only() -> None:
        await g(1)
        await g(1, c=3)
        await g(a=1)

    assert list(home.statuses(with_keyword_only).values()) == ["succeeded", "cached", "cached"]

    @pipeline
    async def p() -> None:
        await f(1, x=1, y=2)
        await f(1, 2, y=2, x=1)
        await f(a=1, b=2, c=3, x=1, y=2)
        await f(y=2, c=3, x=1, b=2, a=1)

    assert list(home.statuses(p).values()) == ["succeeded", "cached", "cached", "cached"]


def test_a_keyword_may_have_the_name_of_a_positional_only_parameter(home: Any) -> None:
    @step
    async def f(x: int, /, **more: Any) -> Any:
        return x, more

    @pipeline
    async def p() -> list[Any]:
        return [await f(1, x=2), await f(2, x=1), await f(1, **{"*1": 3}), await f(1)]

    expected = [(1, {"x": 2}), (2, {"x": 1}), (1, {"*1": 3}), (1, {})]
    assert home.value(p) == expected
    assert home.value(p) == expected


def test_the_order_of_sets_and_dicts(home: Any) -> None:
    @pipeline
    async def p() -> None:
        await take({"b": 1, "a": 2})
        await take({"a": 2, "b": 1})
        await take({"q", "w", "e"})
        await take({"e", "q", "w"})

    found = list(home.statuses(p).values())
    assert found[3] == "cached"
    assert found[0] == "succeeded"


def test_one_element_in_the_middle_of_a_large_array_counts(home: Any) -> None:
    @step
    async def total(x: Any) -> int:
        return int(x.sum())

    @pipeline
    async def p(changed: bool) -> int:
        array = np.zeros(5_000, "i8")
        if changed:
            array[2_500] = 9
        return await total(array)

    assert home.value(p, False) == 0
    assert home.value(p, True) == 9
    assert home.value(p, False) == 0


def test_one_cell_in_the_middle_of_a_frame_counts(home: Any) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")

    @step
    async def total(frame: Any) -> int:
        return int(frame["a"].sum())

    @pipeline
    async def p(changed: int) -> int:
        frame = pandas.DataFrame({"a": [0] * 1000, "b": ["x"] * 1000})
        frame.loc[500, "a"] = changed
        return await total(frame)

    assert home.value(p, 0) == 0
    assert home.value(p, 99) == 99
    assert home.statuses(p, 99)["total"] == "cached"


# -- functions as values ------------------------------------------------------------------


def make_adder(n: int, table: list[int] | None = None) -> Any:
    def add(x: int) -> int:
        return x + n + len(table or [])

    return add


def make_default(n: int) -> Any:
    def add(x: int, by: int = n) -> int:
        return x + by

    return add


@step
async def call(function: Any, x: int) -> int:
    return int(function(x))


@pipeline
async def calling(make: Any, *args: Any) -> int:
    return await call(make(*args), 1)


@pytest.mark.parametrize("make", [make_adder, make_default], ids=["closure", "default"])
def test_functions_of_one_factory_are_different_arguments(home: Any, make: Any) -> None:
    assert home.value(calling, make, 1) == 2
    assert home.value(calling, make, 2) == 3
    assert home.statuses(calling, make, 1)["call"] == "cached"


def test_a_mutable_value_in_a_closure_counts_by_its_content(home: Any) -> None:
    assert home.value(calling, make_adder, 1, [1]) == 3
    assert home.value(calling, make_adder, 1, [1, 1]) == 4
    assert home.statuses(calling, make_adder, 1, [1])["call"] == "cached"


def test_functions_inside_of_other_values_count_the_same_way(home: Any) -> None:
    @step
    async def call_all(functions: dict[str, list[Any]]) -> int:
        return sum(function(1) for function in functions["all"])

    @pipeline
    async def p(n: int) -> int:
        return await call_all({"all": [make_adder(n), lambda x: x]})

    assert home.value(p, 1) == 3
    assert home.value(p, 2) == 4
    assert home.statuses(p, 1)["call_all"] == "cached"


def test_a_step_as_an_argument_counts_by_its_function(home: Any, write: Any) -> None:
    source = "from treadle import step\n\n@step\ndef inner(x):\n    return x + {}\n"

    @pipeline
    async def p(inner: Any) -> int:
        return await call(inner.fn, 1)

    assert home.value(p, write(source.format(1)).inner) == 2
    assert home.value(p, write(source.format(2)).inner) == 3


def test_a_function_that_closes_over_what_has_no_digest_is_not_cached(
    home: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def locked(lock: Any) -> Any:
        def run(x: int) -> int:
            with lock:
                return x

        return run

    with caplog.at_level(logging.WARNING, "treadle"):
        assert home.statuses(calling, lambda: locked(threading.Lock()))["call"] == "succeeded"
        assert home.statuses(calling, lambda: locked(threading.Lock()))["call"] == "succeeded"
    assert any("argument function cannot be hashed" in record.getMessage() for record in caplog.records)


# -- what cannot be hashed ----------------------------------------------------------------


class Client:
    """Holds a lock, as clients do: it can be neither stored nor hashed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Plain:
    """Has the default repr, with its address in it."""

    def __init__(self, n: int) -> None:
        self.n = n


def test_an_unhashable_argument_is_performed_and_hinted_once_by_name(
    home: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @step
    async def query(connection: Any, x: int) -> int:
        return x

    @pipeline
    async def p() -> list[int]:
        return await query.map(unmapped(Client()), [1, 1, 1])

    with caplog.at_level(logging.WARNING, "treadle"):
        assert set(home.statuses(p).values()) == {"succeeded"}
        assert set(home.statuses(p).values()) == {"succeeded"}
    hints = [record.getMessage() for record in caplog.records if "connection" in record.getMessage()]
    assert len(hints) == 1
    assert "step query is not cached: argument connection cannot be hashed" in hints[0]


def test_a_closure_variable_that_cannot_be_hashed_is_hinted_and_the_step_not_cached(
    home: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client()

    @step
    async def fetch(x: int) -> int:
        return x if client is not None else 0

    @pipeline
    async def p() -> int:
        return await fetch(1)

    with caplog.at_level(logging.WARNING, "treadle"):
        assert home.statuses(p)["fetch"] == "succeeded"
        assert home.statuses(p)["fetch"] == "succeeded"
    hints = [record.getMessage() for record in caplog.records if "fetch" in record.getMessage()]
    assert hints == ["step fetch is not cached: client of it cannot be hashed"]


def test_an_object_with_the_default_repr_is_known_by_its_content(home: Any) -> None:
    @step
    async def read(thing: Any) -> int:
        return int(thing.n)

    @pipeline
    async def p(n: int) -> int:
        return await read(Plain(n))

    assert home.value(p, 1) == 1
    assert home.statuses(p, 1)["read"] == "cached"
    assert home.value(p, 2) == 2
