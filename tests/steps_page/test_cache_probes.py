"""Caching, probe by probe: where the original gives a wrong answer without a word, treadle gives the right one.

The probes and the table of what goes into a key are those of section 4 of the study of the original. Where code has to
change between two runs, each run is a process of its own.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from treadle import CachePolicy, Pipeline, context, pipeline, step

# -- the probes ---------------------------------------------------------------------------


def test_probe_01_the_default_step_follows_its_upstream() -> None:
    def etl(value: int) -> Pipeline:
        @step(outputs=["number"], version=str(value))
        def load() -> int:
            return value

        @step(inputs=["number"], outputs=["doubled"])
        def double(number: int) -> int:
            return number * 2

        etl = Pipeline("etl")
        etl.add_steps(load, double)
        return etl

    assert etl(1).run().outputs["doubled"] == 2
    assert etl(10).run().outputs["doubled"] == 20
    again = etl(10).run()
    assert again.outputs["doubled"] == 20
    assert again.step_results["double"].cached


def test_probe_02_input_hash_sees_a_cell_in_the_middle_of_a_frame() -> None:
    pandas = pytest.importorskip("pandas")

    @step(inputs=["frame"], outputs=["sum"], cache="input_hash")
    def total(frame: Any) -> int:
        return int(frame["a"].sum())

    sums = Pipeline("sums")
    sums.add_step(total)
    frame = pandas.DataFrame({"a": [0] * 1000, "b": ["x"] * 1000})
    changed = frame.copy()
    changed.loc[500, "a"] = 99
    assert sums.run(inputs={"frame": frame}).outputs["sum"] == 0
    assert sums.run(inputs={"frame": changed}).outputs["sum"] == 99
    again = sums.run(inputs={"frame": frame.copy()})
    assert (again.outputs["sum"], again.step_results["total"].cached) == (0, True)


@pytest.mark.parametrize("change", ["dtype", "index", "column name", "order of columns"])
def test_probe_02_input_hash_sees_all_of_a_frame(change: str) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2], "b": [3, 4]})
    other = {
        "dtype": frame.astype({"a": "float64"}),
        "index": frame.set_axis([5, 6], axis=0),
        "column name": frame.rename(columns={"a": "c"}),
        "order of columns": frame[["b", "a"]],
    }[change]

    @step(inputs=["frame"], cache="input_hash")
    def look(frame: Any) -> str:
        return f"{list(frame.columns)} {list(frame.index)} {list(map(str, frame.dtypes))}"

    looking = Pipeline("looking")
    looking.add_step(look)
    first, second = (looking.run(inputs={"frame": one}).outputs["look"] for one in (frame, other))
    assert first != second


def test_probe_03_input_hash_sees_one_element_of_a_large_array() -> None:
    numpy = pytest.importorskip("numpy")

    @step(inputs=["values"], outputs=["sum"], cache="input_hash")
    def total(values: Any) -> int:
        return int(values.sum())

    sums = Pipeline("sums")
    sums.add_step(total)
    values = numpy.zeros(5000, dtype=numpy.int64)
    changed = values.copy()
    changed[2500] = 9
    assert sums.run(inputs={"values": values}).outputs["sum"] == 0
    assert sums.run(inputs={"values": changed}).outputs["sum"] == 9
    assert sums.run(inputs={"values": values.copy()}).step_results["total"].cached


class Plain:
    """An object with the default repr, which has an address in it."""

    def __init__(self, number: int) -> None:
        self.number = number


def test_probe_04_an_object_with_the_default_repr_hits_on_a_rerun() -> None:
    @step(inputs=["thing"], cache="input_hash")
    def take(thing: Plain) -> int:
        return thing.number

    taking = Pipeline("taking")
    taking.add_step(take)
    assert taking.run(inputs={"thing": Plain(1)}).outputs["take"] == 1
    again = taking.run(inputs={"thing": Plain(1)})
    assert (again.outputs["take"], again.step_results["take"].cached) == (1, True)
    assert taking.run(inputs={"thing": Plain(2)}).outputs["take"] == 2


CODE = """
    from treadle import Pipeline, step

    def helper(x):
        return x * <helper>

    @step(cache="<cache>")
    def work(<parameter>):
        # <comment>
        return helper(1) + <inner>

    p = Pipeline("p")
    p.add_step(work)
    result = p.run(inputs=<inputs>)
    result.raise_for_failure()
    print(result.outputs["work"], result.step_results["work"].cached)
"""


def edits(**changed: object) -> dict[str, object]:
    """The script's gaps, filled."""
    return {
        "helper": 1, "cache": "code_hash", "parameter": "x", "comment": "", "inner": 0, "inputs": "{'x': 1}", **changed,
    }  # fmt: skip


def test_probe_05_input_hash_does_not_run_again_for_changed_code(script: Any) -> None:
    assert script(CODE, **edits(cache="input_hash")) == ["1 False"]
    assert script(CODE, **edits(cache="input_hash", inner=1)) == ["1 True"]
    assert script(CODE, **edits(cache="input_hash", inner=1, inputs="{'x': 2}")) == ["2 False"]


@pytest.mark.parametrize("cache", ["input_hash", "code_hash"])
def test_probe_06_without_inputs_changed_code_runs_again(script: Any, cache: str) -> None:
    given = {"cache": cache, "parameter": "", "inputs": "{}"}
    assert script(CODE, **edits(**given)) == ["1 False"]
    assert script(CODE, **edits(**given)) == ["1 True"]
    assert script(CODE, **edits(**given, inner=1)) == ["2 False"]


def test_probe_07_two_steps_of_one_factory_have_their_own_entries() -> None:
    def create_training_step(model_type: str) -> Any:
        @step(outputs=["model"])
        def train() -> str:
            return model_type

        return train

    def trained(kind: str) -> Any:
        training = Pipeline("training")
        training.add_step(create_training_step(kind))
        return training.run()

    assert trained("xgb").outputs["model"] == "xgb"
    assert trained("rf").outputs["model"] == "rf"
    assert trained("xgb").step_results["train"].cached


def test_probe_08_a_changed_helper_runs_the_step_again(script: Any) -> None:
    assert script(CODE, **edits()) == ["1 False"]
    assert script(CODE, **edits(helper=2)) == ["2 False"]
    assert script(CODE, **edits()) == ["1 True"]


def test_probe_09_an_unrelated_context_parameter_does_not_matter() -> None:
    @step(outputs=["model"])
    def train(learning_rate: float) -> float:
        return learning_rate * 2

    def trained(**given: Any) -> Any:
        training = Pipeline("training", context=context(**given))
        training.add_step(train)
        return training.run()

    assert trained(learning_rate=0.5).outputs["model"] == 1.0
    assert trained(learning_rate=0.5, batch_size=32).step_results["train"].cached
    changed = trained(learning_rate=0.25, batch_size=32)
    assert (changed.outputs["model"], changed.step_results["train"].cached) == (0.5, False)


def test_probe_10_a_changed_function_that_has_no_source_runs_again() -> None:
    def made(text: str) -> Any:
        namespace: dict[str, Any] = {"__name__": "made_by_exec"}
        exec(f"def work():\n    return {text}", namespace)
        p = Pipeline("p")
        p.add_step(step(namespace["work"]))
        return p.run()

    assert made("1").outputs["work"] == 1
    assert made("2").outputs["work"] == 2
    assert made("1").step_results["work"].cached


def test_probe_11_an_output_that_cannot_be_stored_is_an_error_that_says_so(home: Path) -> None:
    @step
    def gives() -> Any:
        return threading.Lock()

    p = Pipeline("p")
    p.add_step(gives)
    result = p.run()
    assert not result.success
    assert "persist=False" in str(result.error)
    assert [path for path in home.rglob("*") if path.is_file() and path.parent.name in ("tmp", "blobs")] == []

    uncached = Pipeline("uncached")
    uncached.add_step(gives.with_options(persist=False))
    assert uncached.run().success


TOGETHER = threading.Barrier(4, timeout=20)  # there are at least five worker threads


def test_probe_12_twelve_steps_on_twelve_threads_are_twelve_entries() -> None:
    @step
    def work(x: int) -> int:
        TOGETHER.wait()
        return x * x

    @pipeline
    async def p() -> list[int]:
        return await work.map(range(12))

    assert p.run().value == [x * x for x in range(12)]
    again = p.run()
    assert again.value == [x * x for x in range(12)]
    assert [call.status for call in again.step_results.values()] == ["cached"] * 12


def test_where_the_documents_contradict_each_other_both_code_and_inputs_count(script: Any) -> None:
    assert script(CODE, **edits()) == ["1 False"]
    assert script(CODE, **edits(inputs="{'x': 2}")) == ["1 False"]  # performed again for another input
    assert script(CODE, **edits(inputs="{'x': 2}")) == ["1 True"]
    assert script(CODE, **edits(inner=5)) == ["6 False"]  # and for other code


def test_the_literal_reading_of_the_page_can_be_had_by_name() -> None:
    @step(cache=CachePolicy(inputs=False))
    def work(x: int) -> int:
        return x

    p = Pipeline("p")
    p.add_step(work)
    assert p.run(inputs={"x": 1}).outputs["work"] == 1
    assert p.run(inputs={"x": 2}).outputs["work"] == 1


# -- what exactly goes into the key -------------------------------------------------------


def test_key_row_code_hash_does_not_look_at_comments(script: Any) -> None:
    assert script(CODE, **edits()) == ["1 False"]
    assert script(CODE, **edits(comment="a comment that explains everything")) == ["1 True"]


def test_key_row_code_hash_does_not_look_at_decorator_lines() -> None:
    def plain(x: int) -> int:
        return x + 1

    for options in ({}, {"retry": 3}, {"timeout": 60}):
        p = Pipeline("p")
        p.add_step(step(**options)(plain))
        result = p.run(inputs={"x": 1})
        assert result.step_results["plain"].cached is bool(options)


LIMIT = 3


def test_key_row_code_hash_looks_at_globals(monkeypatch: pytest.MonkeyPatch) -> None:
    @step
    def limited() -> int:
        return LIMIT

    p = Pipeline("p")
    p.add_step(limited)
    assert p.run().outputs["limited"] == 3
    monkeypatch.setitem(globals(), "LIMIT", 4)
    assert p.run().outputs["limited"] == 4


def test_key_row_code_hash_looks_at_defaults() -> None:
    def with_default(value: int) -> Any:
        @step
        def work(x: int = value) -> int:
            return x

        p = Pipeline("p")
        p.add_step(work)
        return p.run()

    assert with_default(1).outputs["work"] == 1
    assert with_default(2).outputs["work"] == 2
    assert with_default(1).step_results["work"].cached


def test_key_row_input_hash_tells_types_apart() -> None:
    @step(cache="input_hash")
    def name(x: Any) -> str:
        return type(x).__name__

    p = Pipeline("p")
    p.add_step(name)
    found = [p.run(inputs={"x": x}).outputs["name"] for x in (1, 1.0, "1", True, [1], (1,), None)]
    assert found == ["int", "float", "str", "bool", "list", "tuple", "NoneType"]


def test_key_row_a_version_stands_for_the_code(script: Any) -> None:
    versioned = CODE.replace('cache="<cache>"', 'version="<version>"')
    given = {name: value for name, value in edits().items() if name != "cache"}
    assert script(versioned, **given, version=1) == ["1 False"]
    assert script(versioned, **{**given, "inner": 7}, version=1) == ["1 True"]
    assert script(versioned, **{**given, "inner": 7}, version=2) == ["8 False"]


def test_key_row_a_callable_gets_the_inputs_by_name() -> None:
    asked: list[dict[str, Any]] = []

    def by_day(inputs: dict[str, Any]) -> str:
        asked.append(dict(inputs))
        return str(inputs["when"])[:10]

    @step(cache=CachePolicy(key=by_day))
    def report(when: str, verbose: bool = False) -> str:
        return when

    p = Pipeline("p")
    p.add_step(report)
    assert p.run(inputs={"when": "2024-05-01 09:00"}).outputs["report"] == "2024-05-01 09:00"
    assert p.run(inputs={"when": "2024-05-01 17:00"}).outputs["report"] == "2024-05-01 09:00"
    assert p.run(inputs={"when": "2024-05-02 09:00"}).outputs["report"] == "2024-05-02 09:00"
    assert asked[0] == {"when": "2024-05-01 09:00", "verbose": False}


def test_key_row_none_is_a_result_like_others() -> None:
    @step
    def nothing(x: int) -> None:
        return None

    p = Pipeline("p")
    p.add_step(nothing)
    p.run(inputs={"x": 1})
    again = p.run(inputs={"x": 1})
    assert again.step_results["nothing"].cached
    assert again.outputs == {"nothing": None}


def test_key_row_the_pipeline_s_name_does_not_matter_and_the_step_s_module_does(script: Any) -> None:
    @step
    def work(x: int) -> int:
        return x

    one, two = Pipeline("one"), Pipeline("two")
    one.add_step(work)
    two.add_step(work)
    one.run(inputs={"x": 1})
    assert two.run(inputs={"x": 1}).step_results["work"].cached
    assert script(CODE, **edits()) == ["1 False"]  # a step of the same name elsewhere


def test_explain_cache_names_what_changed_between_two_processes(script: Any) -> None:
    explained = (
        CODE
        + """
    print(work.explain_cache(<asked>))
"""
    )
    given = edits(asked=1)
    assert script(explained, **given)[1].startswith("work: hit: version 1 of work")
    text = explained.replace("result = p.run", "print(work.explain_cache(<asked>))\n    result = p.run", 1)
    first = script(text, **{**given, "helper": 2, "asked": 1})[0]
    assert first.startswith("work: miss: code of ")
    assert first.endswith("helper changed")
