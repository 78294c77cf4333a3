"""What the Steps page writes, construct by construct in words of our own: defined, and run in a pipeline.

What the page leaves open (``process``, ``train``, ``newsroom``) is given here. A snippet is loaded from its file,
so its steps have source text as in a reader's project.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from treadle import Pipeline, step

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")

SNIPPETS = Path(__file__).parent / "snippets"
FRAME = pd.DataFrame({"a": [1.0, None, 3.0]})


def load(name: str, **around: Any) -> SimpleNamespace:
    """A snippet's names, with what it needs around it."""
    return SimpleNamespace(**runpy.run_path(str(SNIPPETS / f"{name}.py"), init_globals=around))


def outputs(*steps: Any, **inputs: Any) -> dict[str, Any]:
    """What a pipeline of these steps gives."""
    whole = Pipeline("page")
    whole.add_steps(*steps)
    result = whole.run(inputs=inputs)
    result.raise_for_failure()
    return dict(result.outputs)


def down() -> Any:
    raise ConnectionError("down")


def double(data: Any, *more: Any) -> Any:
    return [x * 2 for x in data]


def ran(name: str) -> dict[str, Any]:
    """What a snippet's steps give."""
    match name:
        case "pure_functions":
            page = load(name, lying_around=FRAME)
            assert len(outputs(page.tidy_what_lies_around)["tidy_what_lies_around"]) == 2
            return {"rows": len(outputs(page.tidy, rows=FRAME)["tidied"])}
        case "single_responsibility":
            page = load(name, judge=lambda model: 0.9)
            assert outputs(page.everything_at_once, data=[1])["model"] == (None, 0.9)
            return outputs(page.fit, page.halve, data=[1])
        case "explicit":
            return outputs(load(name, process=double).clean, rows=[1])
        case "implicit":
            return outputs(load(name, process=double).clean, data=[1])
        case "anatomy":
            return outputs(load(name).doubled, number=21)
        case "full_configuration":
            page = load(name, train=lambda data, lr: [x * lr for x in data])
            return outputs(page.fit, orders=[2.0], rate_of_change=0.5)
        case "wiring":
            return dict(load(name).pipeline.run().outputs)
        case "multiple_outputs":
            return outputs(load(name).halve, data=[1, 2, 3, 4, 5])
        case "multiple_inputs":
            page = load(name)
            return outputs(page.pair, page.letters, page.numbers)
        case "context_injection":
            page = load(name, fitted="trained")
            page.pipeline.add_step(page.train)
            return dict(page.pipeline.run(inputs={"data": [1]}).outputs)
        case "routing":
            page = load(name, pd=pd, fitted_object={"w": 1}, df=FRAME)
            found = outputs(page.fit, page.numbers, data=FRAME)
            return {"names": [found["fit"].name, found["numbers"].name]}
        case "cache_strategies":
            page = load(name, sum_up=sum, clean=double, api=SimpleNamespace(fetch=lambda: 7))
            return outputs(page.summed_up, page.prepared, page.newest, data=[1, 2], settings={})
        case "retries":
            response = SimpleNamespace(json=lambda: {"ok": True})
            requests = SimpleNamespace(get=lambda url: response)
            page = load(name, requests=requests, API_URL="https://example.org", work_long=lambda: 1)
            return outputs(page.asked_elsewhere, page.takes_long)
        case "advanced_error_handling":
            return outputs(load(name, newsroom=SimpleNamespace(get_data=down)).news)
        case "resources":
            page = load(name)
            return outputs(page.on_cores, page.on_cards)
        case _:
            return more(name)


def more(name: str) -> dict[str, Any]:
    """The second half of the page."""
    match name:
        case "unit":
            page = load(name, pd=pd, np=np, tidy=load("pure_functions").tidy, fit=TRAIN)
            page.test_tidy()
            page.test_fit()
            return {}
        case "integration":
            load(name, numbers=step(outputs=["X"])(lambda: [1]), fit=FIT).test_two_steps_together()
            return {}
        case "lifecycle":
            result = load(name, pipeline=load("wiring").pipeline).result
            return {name: call.status for name, call in result.step_results.items()}
        case "pure_or_not":
            page = load(name, count_of_calls=0)
            return outputs(page.twice, page.doubled_and_counted, data=[1])
        case "names":
            page = load(name)
            good, bad = page.without_gaps, page.process.with_options(outputs=["out"])
            return {**outputs(good, rows=[1]), **outputs(bad, data=1)}
        case "focused":
            page = load(name, clean=double, engineer=double, train=sum)
            return outputs(page.tidy, page.measured, page.all_in_one, raw=[1])
        case "type_hints":
            path = Path.cwd() / "a.csv"
            path.write_text("a,b\n1,2\n")
            return {"shape": outputs(load(name).numbers, path=str(path))["dataframe"].shape}
        case "documented":
            page = load(name, pd=pd)
            assert page.guess.__doc__.startswith("Say for each row")
            return {"guess": page.guess(FRAME)}
        case "conditional":
            page = load(name)
            return outputs(page.large_only, page.if_any, data=7)
        case "parallel":
            return outputs(load(name, List=list, press=abs).all_parts, parts=[-3, 2, -1])
        case "dynamic_steps":
            whole = Pipeline("training")
            load(name, pipeline=whole, fit=lambda kind: f"a {kind}")
            return dict(whole.run().outputs)
        case _:
            raise LookupError(name)


@step(outputs=["model"])
def TRAIN(X: Any, y: Any, rate_of_change: float, rounds: int) -> Any:
    return SimpleNamespace(guess=lambda rows: rows)


@step(outputs=["model"])
def FIT(X: Any, rate_of_change: float) -> Any:
    return [rate_of_change * x for x in X]


GIVES: dict[str, dict[str, Any]] = {
    "pure_functions": {"rows": 2},
    "single_responsibility": {"split": None, "model": None},
    "explicit": {"tidy": [2]},
    "implicit": {"clean": [2]},
    "anatomy": {"result": 42},
    "full_configuration": {"fitted": [1.0]},
    "wiring": {"data": [1, 2, 3, 4, 5], "tidied": [2, 4, 6, 8, 10]},
    "multiple_outputs": {"first_part": [1, 2, 3, 4], "second_part": [5]},
    "multiple_inputs": {"data": [1, 2, 3], "marks": ["a", "b", "c"], "pairs": [(1, "a"), (2, "b"), (3, "c")]},
    "context_injection": {"model": "trained"},
    "routing": {"names": ["sorter", "rows"]},
    "cache_strategies": {"summed_up": 3, "prepared": [2, 4], "newest": 7},
    "retries": {"asked_elsewhere": {"ok": True}, "takes_long": 1},
    "advanced_error_handling": {"news": {"status": "no news"}},
    "resources": {"on_cores": None, "on_cards": None},
    "unit": {},
    "integration": {},
    "lifecycle": {"load": "succeeded", "process": "succeeded"},
    "pure_or_not": {"twice": [2], "doubled_and_counted": [2]},
    "names": {"gapless": None, "out": None},
    "focused": {"gapless_rows": None, "measures": None, "all_in_one": 4},
    "type_hints": {"shape": (1, 2)},
    "documented": {"guess": None},
    "conditional": {"if_any": None},
    "parallel": {"all_parts": [3, 2, 1]},
    "dynamic_steps": {
        "xgboost_fitted": "a xgboost", "random_forest_fitted": "a random_forest", "neural_net_fitted": "a neural_net",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.stem for path in SNIPPETS.glob("*.py")))
def test_the_page_s_code_runs_as_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ran(name) == GIVES[name]


def test_every_snippet_is_run() -> None:
    assert sorted(GIVES) == sorted(path.stem for path in SNIPPETS.glob("*.py"))
