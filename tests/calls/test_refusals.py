"""What cannot be a step, and options that cannot be: each refused at decoration, with a text that helps."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from treadle import CachePolicy, Retry, pipeline, step
from treadle.errors import OptionError


def refusal(make: Any) -> str:
    with pytest.raises(OptionError) as caught:
        make()
    text, _, where = str(caught.value).partition(" Where: ")
    assert where.startswith(f"{__file__}:")
    return text.removesuffix(".")


def generator() -> Any:
    yield 1


async def async_generator() -> Any:
    yield 1


class Holder:
    def method(self) -> int:
        return 1

    @classmethod
    def of_the_class(cls) -> int:
        return 1

    @staticmethod
    def static(x: int) -> int:
        return x


def body(x: int) -> int:
    return x


# -- what cannot be a step ----------------------------------------------------------------


def test_a_method_is_refused_where_it_is_decorated() -> None:
    def define() -> None:
        class Service:
            @step
            def load(self) -> int:
                return 1

            del load

    text = refusal(define)
    assert "load is a method, and a step is a function" in text
    assert "move it to module level" in text


def test_an_async_method_with_options_is_refused() -> None:
    def define() -> None:
        class Service:
            @step(retry=2)
            async def load(self, x: int) -> int:
                return x

            del load

    assert "Service.load is a method" in refusal(define)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Holder().method, "Holder.method"),
        (lambda: Holder.method, "Holder.method"),
        (lambda: Holder.of_the_class, "Holder.of_the_class"),
        (lambda: classmethod(body), "body"),
        (lambda: staticmethod(body), "body"),
    ],
    ids=["bound", "function", "bound to the class", "classmethod object", "staticmethod object"],
)
def test_every_form_of_method_is_refused(make: Any, name: str) -> None:
    assert f"{name} is a method, and a step is a function" in refusal(lambda: step(make()))


def test_a_static_function_of_a_class_and_a_nested_function_are_no_methods() -> None:
    def nested(self: int) -> int:
        return self

    assert step(Holder.static)(3) == 3
    assert step(nested)(4) == 4


def test_generators_are_refused() -> None:
    assert refusal(lambda: step(generator)) == (
        "generator is a generator, and a step returns one value. Fix: return a list, or map a step over the items"
    )
    assert "async_generator is an async generator" in refusal(lambda: step(async_generator))


@pytest.mark.parametrize(
    ("thing", "name"), [(Holder, "Holder"), (42, "42"), ("text", "'text'"), (Holder(), "Holder object")]
)
def test_what_is_no_function_is_refused(thing: Any, name: str) -> None:
    text = refusal(lambda: step(thing))
    assert name in text
    assert "which is not a function" in text
    assert "decorate a def or an async def" in text


def test_a_step_of_a_step_is_refused() -> None:
    once = step(body)
    assert "body is a step already" in refusal(lambda: step(once))
    assert "with_options" in refusal(lambda: step(once))


def test_a_builtin_without_a_signature_is_refused() -> None:
    assert "signature" in refusal(lambda: step(max))


def test_wrapped_functions_and_lambdas_can_be_steps() -> None:
    @functools.wraps(body)
    def wrapper(*args: int) -> int:
        return body(*args) * 10

    assert step(wrapper)(1) == 10
    assert step(lambda: 3)() == 3


def test_pipelines_are_refused_for_the_same_reasons() -> None:
    assert "cannot be a pipeline" in refusal(lambda: pipeline(generator))
    assert "cannot be a pipeline" in refusal(lambda: pipeline(Holder))
    assert "is a step" in refusal(lambda: pipeline(step(body)))


# -- options ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"),
    [("retries", "retry"), ("timout", "timeout"), ("output", "outputs"), ("max_inflight", "max_in_flight")],
)
def test_an_unknown_option_names_the_nearest_one(name: str, near: str) -> None:
    text = refusal(lambda: step(**{name: 1}))
    assert text == f"@step has no option {name!r}. Fix: did you mean {near!r}?"


def test_an_unknown_option_that_is_near_nothing_lists_them_all() -> None:
    text = refusal(lambda: step(colour="red"))  # type: ignore[call-overload]
    assert "@step has no option 'colour'" in text
    assert "after, cache, " in text


def test_with_options_refuses_what_the_decorator_refuses() -> None:
    made = step(body)
    assert refusal(lambda: made.with_options(timout=3)) == (  # type: ignore[arg-type]
        "body.with_options has no option 'timout'. Fix: did you mean 'timeout'?"
    )
    assert "timeout=-1 is not" in refusal(lambda: made.with_options(timeout=-1))
    assert "after=3 is not allowed" in refusal(lambda: made.with_options(after=3))
    assert "use step.with_options(after=[...])" in refusal(lambda: step(after=[]))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("name", "", "name='' is not allowed. Fix: give a text that is not empty"),
        ("name", 3, "name=3 is not allowed"),
        ("retry", -1, "retry=-1 is not allowed. Fix: give a whole number of extra attempts, or Retry(...)"),
        ("retry", True, "retry=True is not allowed"),
        ("retry", 1.5, "retry=1.5 is not allowed"),
        ("timeout", 0, "timeout=0 is not allowed. Fix: give a duration above 0"),
        ("timeout", -2, "timeout=-2 is not a duration"),
        (
            "timeout",
            "soon",
            "timeout='soon' is not a duration. Fix: give seconds (30, 0.5), a timedelta, or text such as",
        ),
        ("timeout", float("nan"), "timeout=nan is not a duration"),
        ("timeout", True, "timeout=True is not a duration"),
        (
            "cache",
            "always",
            "cache='always' is not allowed. Fix: give 'code_hash', 'input_hash', True, False or CachePolicy",
        ),
        ("cache", 1.5, "cache=1.5 is not allowed"),
        ("outputs", [1, 2], "outputs=[1, 2] is not allowed. Fix: give names that are not empty"),
        ("outputs", ("a", "a"), "outputs=('a', 'a') is not allowed. Fix: give names that differ"),
        ("inputs", 5, "inputs=5 is not allowed. Fix: give a name or a list of names"),
        ("max_in_flight", 0, "max_in_flight=0 is not allowed. Fix: give a whole number from 1"),
        ("max_in_flight", "3", "max_in_flight='3' is not allowed"),
        ("persist", 1, "persist=1 is not allowed. Fix: give True or False"),
        ("runtime", "", "runtime='' is not allowed"),
        ("runtime", 3, "runtime=3 is not allowed"),
        ("version", 1.5, "version=1.5 is not allowed. Fix: give a text or a number"),
        ("tags", {"a": 1}, "tags={'a': 1} is not allowed"),
        ("metadata", ["a"], "metadata=['a'] is not allowed. Fix: give a dict with text keys"),
    ],
)
def test_a_value_that_is_not_allowed_says_what_is(option: str, value: Any, said: str) -> None:
    with pytest.raises(OptionError) as caught:
        step(**{option: value})(body)
    assert said in str(caught.value)
    assert caught.value.option == option  # type: ignore[attr-defined]
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: Retry(max_attempts=0), "max_attempts"),
        (lambda: Retry(backoff=0.5), "backoff"),
        (lambda: Retry(on=(BaseException,)), "on"),
        (lambda: Retry(on=()), "on"),
        (lambda: Retry(delay=-1), "delay"),
        (lambda: CachePolicy(key="text"), "key"),
        (lambda: CachePolicy(expires_after="never"), "expires_after"),
        (lambda: CachePolicy(ignore=(1,)), "ignore"),
    ],
)
def test_values_in_option_objects_are_checked_at_birth(make: Any, option: str) -> None:
    with pytest.raises(OptionError) as caught:
        make()
    assert f"{option}=" in str(caught.value)


def test_function_and_options_at_once_are_refused() -> None:
    assert "takes a function or options, not both" in refusal(lambda: step(body, retry=1))  # type: ignore[call-overload]
