"""Options that cannot be: refused where they are written, by name, with what to write instead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from treadle import CachePolicy, Engine, Keep, pipeline, step
from treadle.errors import OptionError


def refused(make: Callable[[], object]) -> str:
    with pytest.raises(OptionError) as caught:
        make()
    text, _, where = str(caught.value).partition(" Where: ")
    assert where.startswith(f"{__file__}:")
    return text.removesuffix(".")


def plain(x: int) -> int:
    return x


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("metadata", "path"),
    [
        ({"when": {1, 2}}, "metadata['when'] is not plain data. Why: it is of type set"),
        ({"a": [1, {"b": object()}]}, "metadata['a'][1]['b'] is not plain data. Why: it is of type object"),
        ({"a": {1: 2}}, "metadata['a'][1] is not plain data. Why: a key is of type int"),
        ({3: 4}, "metadata[3] is not plain data. Why: a key is of type int"),
        ({"a": LOOP}, "metadata['a'][0] is not plain data. Why: it contains itself"),
        ({"a": 2**70}, "metadata['a'] is not plain data. Why: it has more than 64 bits"),
        ({"a": b"x"}, "metadata['a'] is not plain data. Why: it is of type bytes"),
        (["a"], "metadata=['a'] is not allowed. Fix: give a dict with text keys"),
    ],
)
def test_metadata_that_json_cannot_say_is_refused_with_its_place(metadata: Any, path: str) -> None:
    assert refused(lambda: step(metadata=metadata)(plain)).startswith(path)
    assert refused(lambda: step(plain).with_options(metadata=metadata)).startswith(path)


def test_metadata_is_copied_when_it_is_given() -> None:
    given: dict[str, Any] = {"a": [1, (2.5, None, True)], "b": {"c": "d"}}
    known = step(metadata=given)(plain)
    given["a"].append("later")
    assert known.options.metadata == {"a": [1, [2.5, None, True]], "b": {"c": "d"}}


def test_ignoring_a_parameter_that_a_step_does_not_have_is_refused() -> None:
    def fetch(url: str, client: object) -> str:
        return f"{url}{client}"

    text = refused(lambda: step(cache=CachePolicy(ignore=("clinet",)))(fetch))
    assert text == (
        "CachePolicy(ignore=...) names 'clinet', and fetch has no such parameter. Fix: did you mean 'client'?"
    )
    far = refused(lambda: step(fetch).with_options(cache=CachePolicy(ignore="zzz")))
    assert far.endswith("Fix: its parameters are: url, client")
    assert step(cache=CachePolicy(ignore="client"))(fetch)("u", 1) == "u1"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"keep": 3}, "keep=3 is not allowed. Fix: give Keep(runs_for='30d', bytes='10GB') or None"),
        ({"keep": {"runs_for": "30d"}}, "keep={'runs_for': '30d'} is not allowed"),
        ({"home": 3}, "home=3 is not allowed. Fix: give a folder, 'memory://' or None"),
        ({"home": ""}, "home='' is not allowed. Fix: give a folder, 'memory://' or None"),
        ({"artifacts": 3}, "artifacts=3 is not allowed. Fix: give a folder, a URL or None"),
        ({"artifacts": ""}, "artifacts='' is not allowed"),
        ({"allow_pickle": "no"}, "allow_pickle='no' is not allowed. Fix: give True or False"),
        ({"capture_print": 1}, "capture_print=1 is not allowed. Fix: give True or False"),
        ({"durability": 3}, "durability=3 is not allowed. Fix: give one of 'strict', 'relaxed', 'memory'"),
        ({"durability": "stricter"}, "durability='stricter' is not allowed. Fix: did you mean 'strict'?"),
        ({"threads": 0}, "threads=0 is not allowed. Fix: give a whole number from 1"),
        ({"max_concurrency": True}, "max_concurrency=True is not allowed"),
        ({"close_timeout": "soon"}, "close_timeout='soon' is not a duration"),
        ({"cache": "always"}, "cache='always' is not allowed"),
        ({"retry": -1}, "retry=-1 is not allowed"),
        ({"executors": ["container"]}, "executors=['container'] is no dict"),
    ],
)
def test_an_engine_refuses_what_it_cannot_mean(options: Any, text: str) -> None:
    assert refused(lambda: Engine(**options)).startswith(text)


def test_an_engine_takes_what_it_can_mean() -> None:
    Engine(None, keep=Keep(runs_for="1d"), artifacts=None, allow_pickle=False, capture_print=True, durability="memory")


@pytest.mark.parametrize("limit", [-1, 0, "x", 1.5, None, True])
@pytest.mark.asyncio
async def test_a_list_of_no_runs_cannot_be_asked_for(limit: Any) -> None:
    async with Engine("memory://") as engine:
        with pytest.raises(
            OptionError, match=rf"^limit={limit!r} is not allowed. Fix: give a whole number from 1. Where: "
        ):
            await engine.runs(limit=limit)


class Doubler:
    def __call__(self, x: int) -> int:
        return 2 * x


@pipeline
def flow() -> int:
    return 1


IN_A_DEF = "Fix: call it in a def, and decorate a def or an async def"


@pytest.mark.parametrize(
    ("thing", "name", "fix"),
    [
        (functools.partial(plain, 1), "@step got functools.partial(<function plain", IN_A_DEF),
        (Doubler(), "which is not a function but an object that can be called", IN_A_DEF),
        (
            Doubler,
            "@step got Doubler, which is not a function but a class",
            "Fix: decorate a def or an async def that makes an instance",
        ),
        (flow, "flow is a pipeline", "Fix: decorate the function with @step or with @pipeline, not both"),
        (
            functools.lru_cache(plain),
            "plain in a wrapper of type _lru_cache_wrapper, whose code is not known",
            IN_A_DEF,
        ),
        (len, "len is not written in Python, so its signature and its code are not known", IN_A_DEF),
        (print, "print is not written in Python", IN_A_DEF),
        ([].append, "append", "Fix: "),
        (3, "@step got 3, which is not a function but of type int", "Fix: decorate a def or an async def"),
    ],
)
def test_what_is_no_function_is_no_step(thing: Any, name: str, fix: str) -> None:
    for decorator in (step, step(retry=1)):
        text = refused(lambda decorator=decorator: decorator(thing))
        assert name in text
        assert fix in text


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"rates": "1/s"}, "rate"),
        ({"retries": 3}, "retry"),
        ({"max_retries": 3}, "retry"),
        ({"timeouts": 3}, "timeout"),
        ({"gpu": 1}, "resources"),
        ({"max_concurrency": 3}, "max_in_flight"),
        ({"rate_limit": "1/s"}, "rate"),
        ({"output": "a"}, "outputs"),
    ],
)
def test_an_option_of_another_name_is_recognised(options: dict[str, Any], meant: str) -> None:
    (name,) = options
    wanted = f"@step has no option {name!r}. Fix: did you mean {meant!r}?"
    assert refused(lambda: step(**options)(plain)) == wanted
    assert refused(lambda: step(plain).with_options(**options)) == wanted.replace("@step", "plain.with_options")


@pytest.mark.parametrize("option", ["inputs", "outputs"])
def test_names_that_belong_to_positions_are_no_set_which_has_no_order(option: str) -> None:
    options: dict[str, Any] = {option: {"one"}}
    assert refused(lambda: step(**options)(plain)) == (
        f"{option}={{'one'}} is not allowed. Fix: give a list of names: their order counts"
    )
