"""``@retry``, ``@on_failure``, ``@when`` and ``@unless``: what users write; ``@CircuitBreaker`` is in ``policies``.

The overloads say nothing but ``Callable``: they let a type checker know the parameters of a lambda.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, overload

from treadle._runtime.guards.policies import ConditionMark, FallbackMark, Mark, RetryMark, without_parentheses
from treadle.checks import Duration
from treadle.errors import OptionError
from treadle.options import Retry


def retry(
    max_attempts: int = 3,
    delay: Duration = 0.1,
    backoff: float = 2.0,
    max_delay: Duration = 60.0,
    jitter: bool = True,
    on: type[Exception] | Sequence[type[Exception]] = (Exception,),
    max_time: Duration | None = None,
) -> Mark:
    """Try failed attempts of a step again; the same as ``@step(retry=Retry(...))``.

    It stands above or below ``@step``. The breaker guards each attempt, the retry goes around it, and the fallback
    comes last, in whatever order the decorators stand. Never retried: ``CircuitOpen``, ``EncodeError``,
    ``LogUnavailable``, cancellation.

    Args:
        max_attempts: attempts in all, the first one included.
        delay: wait before the second attempt (a duration).
        backoff: factor by which the wait grows from attempt to attempt.
        max_delay: upper limit of one wait (a duration).
        jitter: draw each wait evenly from 0 to its computed length.
        on: the exception types that are retried; step time-outs always are.
        max_time: no new attempt starts later than this after the first one (a duration).

    Raises:
        OptionError: a value is out of range, or the step has a retry policy already.

    >>> from treadle import retry, step
    >>> @step
    ... @retry(max_attempts=3, backoff=2.0)
    ... def load(url: str) -> str:
    ...     return url
    >>> load("a")
    'a'
    """
    mark = RetryMark(Retry())
    if callable(max_attempts):
        raise without_parentheses(mark)
    mark.policy = Retry(max_attempts, delay, backoff, max_delay, jitter, on, max_time)
    return mark


@overload
def on_failure(fallback: Callable[[Any], object]) -> Mark: ...
@overload
def on_failure(fallback: Callable[[Any, Any], object]) -> Mark: ...
@overload
def on_failure(fallback: Callable[..., object]) -> Mark: ...  # type: ignore[overload-cannot-match]  # it is, by three parameters
def on_failure(fallback: Callable[..., object]) -> Mark:
    """Have a function stand in for a step whose every attempt has failed.

    What it returns is the outcome of the call: the status is ``succeeded`` and ``StepResult.fallback`` is true; it is
    stored, and never cached. If it raises, the call fails with that error, and the first one is its context.

    Args:
        fallback: a function, ``def`` or ``async def``. Without parameters it is called plainly; if all its names are
            the step's, it gets these inputs; if it has one other name, the error. It runs where the step does, and has
            the step's timeout for itself.

    Raises:
        OptionError: it is no function, or its parameters are none of these.

    >>> from treadle import on_failure, step
    >>> @step
    ... @on_failure(lambda: {"status": "unavailable"})
    ... def fetch(url: str) -> dict[str, str]:
    ...     return {"status": "ok"}
    >>> fetch("a")
    {'status': 'ok'}
    """
    _check_function(fallback, "on_failure", "a function: @on_failure(lambda: {...})")
    return FallbackMark(fallback)


@overload
def when(predicate: Callable[[Any], object]) -> Mark: ...
@overload
def when(predicate: Callable[[Any, Any], object]) -> Mark: ...
@overload
def when(predicate: Callable[..., object]) -> Mark: ...  # type: ignore[overload-cannot-match]  # it is, by three parameters
def when(predicate: Callable[..., object]) -> Mark:
    """Perform a step only if a predicate of its inputs holds; else the call is skipped, and gives ``None``.

    A skipped call has the status ``skipped`` and is a success. A step that takes its output runs if it has a default
    for that input, else it is skipped too; in a list or another container the output is ``None``. Nothing of a skip is
    cached. Several conditions have to hold all; the one that stands highest is asked first.

    Args:
        predicate: a function, ``def`` or ``async def``, of some of the inputs. They are bound by name if all its names
            are the step's, else by position. If it raises, the call fails with that error. It runs where the step
            does, when all inputs are there, before the cache is asked.

    Raises:
        OptionError: it is no function, or takes more parameters than the step has.

    >>> from treadle import step, when
    >>> @step
    ... @when(lambda x: x > 100)
    ... def expensive(data: int) -> int:
    ...     return data * 2
    >>> expensive(1)  # outside of a run it is the plain function
    2
    """
    _check_function(predicate, "when", "a function of the step's inputs: @when(lambda x: x > 100)")
    return ConditionMark(predicate, True)


@overload
def unless(predicate: Callable[[Any], object]) -> Mark: ...
@overload
def unless(predicate: Callable[[Any, Any], object]) -> Mark: ...
@overload
def unless(predicate: Callable[..., object]) -> Mark: ...  # type: ignore[overload-cannot-match]  # it is, by three parameters
def unless(predicate: Callable[..., object]) -> Mark:
    """Skip a step if a predicate of its inputs holds: the opposite of ``when``.

    >>> from treadle import step, unless
    >>> @step
    ... @unless(lambda x: x is None)
    ... def process(data: str | None) -> str:
    ...     return str(data)
    """
    _check_function(predicate, "unless", "a function of the step's inputs: @unless(lambda x: x is None)")
    return ConditionMark(predicate, False)


def _check_function(given: object, option: str, wanted: str) -> None:
    if not callable(given) or isinstance(given, Mark):
        raise OptionError(f"@{option} got {given!r}, which is not a function", fix=f"give {wanted}", option=option)
    if inspect.isgeneratorfunction(given) or inspect.isasyncgenfunction(given):
        raise OptionError(
            f"@{option} got the generator {getattr(given, '__qualname__', given)}, which answers with an iterator",
            fix="let it return its answer instead of yielding it", option=option,
        )  # fmt: skip
