"""What decorators beside ``@step`` ask of it: retry, fallback, breaker and conditions, in whatever order they stand.

Knows how marks get from a function to its step; what they lead to is in ``handling`` and ``breakers``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any, TypeVar

from treadle._core.binding import Binder
from treadle._core.companions import Condition, Fallback
from treadle._record import record
from treadle.checks import check_whole, seconds
from treadle.errors import OptionError
from treadle.options import UNSET, Retry, StepOptions

T = TypeVar("T")

MARKS = "__treadle_marks__"
"""Attribute of a function that is not a step yet: the marks that were laid on it, the nearest first."""


class Mark:
    """A decorator that says something of a step: below ``@step`` it marks the function, above it changes a copy."""

    word: str = "mark"

    def __call__(self, target: T, /) -> T:
        """Mark a function, or give a changed copy of a step.

        Raises:
            OptionError: it is neither, or has a mark already that excludes this one.
        """
        step: Any = target
        if hasattr(type(target), "_marked"):
            marked: T = step._marked(self)
            return marked
        if getattr(type(target), "__treadle_callable__", False) or inspect.isclass(target) or not callable(target):
            what = getattr(target, "__qualname__", repr(target))
            raise OptionError(
                f"@{self.word} got {what}, and it belongs to a step",
                fix=f"write @{self.word}(...) above a def or an async def that has @step",
                option=self.word,
            )
        if isinstance(target, Mark):
            raise without_parentheses(target)
        if isinstance(target, FunctionType):
            step = _copied(target)  # it may be made a step several times, each with marks of its own
        try:
            setattr(step, MARKS, (*getattr(target, MARKS, ()), self))
        except (AttributeError, TypeError):
            raise OptionError(
                f"@{self.word} cannot mark {target!r}",
                fix="call it in a def, and decorate that",
                option=self.word,
            ) from None
        result: T = step
        return result

    def laid(self, base: Policies, step: str, binder: Binder) -> Policies:
        """A step's policies with this mark laid on them."""
        raise TypeError(self.word)


def _copied(fn: FunctionType) -> FunctionType:
    """A function of the same code, globals and cells, with attributes of its own."""
    copy = FunctionType(fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__)
    copy.__kwdefaults__ = fn.__kwdefaults__
    for name in ("__module__", "__qualname__", "__doc__", "__annotations__", "__type_params__"):
        if hasattr(fn, name):
            setattr(copy, name, getattr(fn, name))
    copy.__dict__.update(fn.__dict__)
    return copy


def without_parentheses(mark: Mark) -> OptionError:
    """The error of ``@on_failure`` where ``@on_failure(fallback)`` was meant."""
    return OptionError(
        f"@{mark.word} was given a function to decorate, or stands above something that is not a function",
        fix=f"write it with parentheses: @{mark.word}(...)",
        option=mark.word,
    )


@record
class Policies:
    """What decorators ask of one step, beside its options.

    Attributes:
        fallback: what stands in when every attempt has failed.
        breaker: what guards each attempt.
        conditions: what has to hold for the step to be performed, all of them.
    """

    fallback: Fallback | None = None
    breaker: CircuitBreaker | None = None
    conditions: tuple[Condition, ...] = ()


NONE = Policies()


def lay(
    marks: Sequence[Mark], step: str, options: StepOptions, policies: Policies, binder: Binder
) -> tuple[StepOptions, Policies]:
    """A step's options and policies with marks laid on them.

    Raises:
        OptionError: there are two of a kind that excludes the other, or a function does not fit the step.
    """
    for mark in marks:
        if isinstance(mark, RetryMark):
            if options.retry is not UNSET:
                raise _twice(step, "retry", "leave out one of @retry(...) and @step(retry=...)")
            options = options.over(StepOptions(retry=mark.policy))
        else:
            policies = mark.laid(policies, step, binder)
    return options, policies


def _twice(step: str, word: str, fix: str) -> OptionError:
    return OptionError(f"step {step} is given two of {word}", fix=fix, option=word)


class RetryMark(Mark):
    """``@retry(...)``: another way to write the option ``retry=``."""

    word = "retry"

    def __init__(self, policy: Retry) -> None:
        self.policy = policy

    def __repr__(self) -> str:
        return f"<@retry of {self.policy}>"


class FallbackMark(Mark):
    """``@on_failure(...)``."""

    word = "on_failure"

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def laid(self, base: Policies, step: str, binder: Binder) -> Policies:
        """A step's policies with this fallback."""
        if base.fallback is not None:
            raise _twice(step, self.word, "call the second one in the first")
        return replace(base, fallback=Fallback(self.fn, step, binder))

    def __repr__(self) -> str:
        return f"<@on_failure {getattr(self.fn, '__name__', self.fn)!s}>"


class ConditionMark(Mark):
    """``@when(...)`` and ``@unless(...)``."""

    def __init__(self, predicate: Callable[..., Any], wanted: bool) -> None:
        self.predicate, self.wanted = predicate, wanted
        self.word = "when" if wanted else "unless"

    def laid(self, base: Policies, step: str, binder: Binder) -> Policies:
        """A step's policies with this condition, too; the one that stands highest is asked first."""
        condition = Condition(self.predicate, self.wanted, step, binder)
        return replace(base, conditions=(condition, *base.conditions))

    def __repr__(self) -> str:
        return f"<@{self.word} {getattr(self.predicate, '__name__', self.predicate)!s}>"


class CircuitBreaker(Mark):
    """Stop attempts of a step for a while when too many in a row have failed.

    After ``failure_threshold`` failures that follow each other the breaker opens: attempts are refused with
    ``treadle.errors.CircuitOpen``, which is not retried. When ``recovery_timeout`` is over, one attempt is let through:
    if it succeeds, all are again; if it fails, the breaker stays open for another ``recovery_timeout``. It guards each
    attempt of the step, so ``@retry`` goes around it and ``@on_failure`` comes last, however the decorators stand.

    Its state belongs to the step and to this process: runs and engines share it. What counts as a failure is an
    exception of the body or a time-out, not a cancellation.

    Args:
        failure_threshold: attempts in a row that fail until it opens.
        recovery_timeout: how long it stays open (a duration).

    Raises:
        OptionError: a value is out of range.

    >>> from treadle import CircuitBreaker, step
    >>> @step
    ... @CircuitBreaker(failure_threshold=5, recovery_timeout="30s")
    ... async def ask(question: str) -> str:
    ...     return question.upper()
    """

    word = "CircuitBreaker"

    def __init__(self, failure_threshold: int = 5, recovery_timeout: Any = 30.0) -> None:
        if callable(failure_threshold):
            raise without_parentheses(self)
        check_whole(failure_threshold, 1, "failure_threshold")
        self.failure_threshold = failure_threshold
        self.recovery_timeout: float = seconds(recovery_timeout, "recovery_timeout")

    def laid(self, base: Policies, step: str, binder: Binder) -> Policies:
        """A step's policies with this breaker."""
        if base.breaker is not None:
            raise _twice(step, self.word, "leave one of them out")
        return replace(base, breaker=self)

    def __repr__(self) -> str:
        return f"CircuitBreaker(failure_threshold={self.failure_threshold}, recovery_timeout={self.recovery_timeout:g})"
