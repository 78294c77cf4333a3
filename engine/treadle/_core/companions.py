"""Functions that stand beside a step, predicates and fallbacks: which of the step's inputs each of them takes.

Knows signatures, and refuses one that does not fit when the step is made; calls nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from treadle._core.binding import Binder
from treadle.errors import OptionError

Given = Mapping[str, Any]
"""The inputs of a call by parameter; ``*args`` is a tuple among them, ``**kwargs`` a dict."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_COLLECTING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def inputs_by_name(binder: Binder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All inputs of a call by parameter, defaults filled in, in the signature's order.

    >>> def f(a, b=2, *rest, **more): ...
    >>> inputs_by_name(Binder(f), (1,), {"c": 3})
    {'a': 1, 'b': 2, 'rest': (), 'more': {'c': 3}}
    """
    known = {**binder.defaults, **binder.bind(args, kwargs)}
    if len(known) < len(binder.names):
        keywords = _collector_of_keywords(binder)
        known |= {name: {} if name == keywords else () for name in binder.names if name not in known}
    return {name: known[name] for name in binder.names}


def _collector_of_keywords(binder: Binder) -> str:
    """The name of the step's ``**kwargs``, or nothing."""
    kind = inspect.Parameter.VAR_KEYWORD
    return next((name for name, parameter in binder.signature.parameters.items() if parameter.kind is kind), "")


class Companion:
    """A function beside a step.

    Attributes:
        fn: the function.
        is_async: whether calling it gives a coroutine, as far as that can be seen.
    """

    __slots__ = ("_binder", "_collects", "_keywords", "_named", "fn", "is_async")

    def __init__(self, fn: Callable[..., Any], binder: Binder, parameters: list[inspect.Parameter]) -> None:
        self.fn, self._binder, self._keywords = fn, binder, _collector_of_keywords(binder)
        is_async = inspect.iscoroutinefunction
        self.is_async = is_async(fn) or is_async(getattr(type(fn), "__call__", None))  # noqa: B004
        self._named = [parameter for parameter in parameters if parameter.kind not in _COLLECTING]
        self._collects = {parameter.kind for parameter in parameters} & set(_COLLECTING)

    def _required(self) -> list[inspect.Parameter]:
        return [parameter for parameter in self._named if parameter.default is inspect.Parameter.empty]

    def _by_name(self, given: Given) -> Arguments:
        """What it names, and all the rest if it has ``**kwargs``."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter in self._named:
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                args.append(given.get(parameter.name, parameter.default))
            elif parameter.name in given:
                kwargs[parameter.name] = given[parameter.name]
        if inspect.Parameter.VAR_KEYWORD in self._collects:
            taken = {parameter.name for parameter in self._named}
            rest = {name: value for name, value in given.items() if name != self._keywords}
            rest |= given.get(self._keywords, {})
            kwargs |= {name: value for name, value in rest.items() if name not in taken}
        return tuple(args), kwargs


class Condition(Companion):
    """A predicate that decides whether a step is performed.

    Its parameters are bound by name if all of them are the step's, else by position; what has a default and is not
    the step's is left alone.

    Args:
        predicate: the function.
        wanted: the truth that lets the step be performed: True of ``when``, False of ``unless``.
        step: the step's name.
        binder: of the step.

    Raises:
        OptionError: the step has fewer parameters than the predicate takes.

    >>> def f(data, limit=10): ...
    >>> Condition(lambda x: x > 100, True, "f", Binder(f)).arguments({"data": 1, "limit": 10})
    ((1,), {})
    >>> Condition(lambda limit: limit, True, "f", Binder(f)).arguments({"data": 1, "limit": 10})
    ((), {'limit': 10})
    """

    __slots__ = ("_count", "wanted")

    def __init__(self, predicate: Callable[..., Any], wanted: bool, step: str, binder: Binder) -> None:
        super().__init__(predicate, binder, _of_a_predicate(predicate))
        self.wanted = wanted
        required = self._required()
        self._count = -1
        is_by_name = all(parameter.name in binder.names for parameter in required)
        if is_by_name and (required or inspect.Parameter.VAR_POSITIONAL not in self._collects):
            return
        self._count = len(required)
        if any(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in required):
            raise _unbindable(self, step, binder, "it has a keyword-only parameter that is none of the step's")
        if self._count > len(binder.names):
            raise _unbindable(self, step, binder, f"it takes {self._count} and the step has {len(binder.names)}")

    def arguments(self, given: Given) -> Arguments:
        """What to call the predicate with."""
        if self._count < 0:
            return self._by_name(given)
        values = list(given.values())
        return tuple(values if inspect.Parameter.VAR_POSITIONAL in self._collects else values[: self._count]), {}


def _unbindable(condition: Condition, step: str, binder: Binder, why: str) -> OptionError:
    word = "when" if condition.wanted else "unless"
    return OptionError(
        f"the predicate of @{word} cannot take its parameters from step {step}",
        why=f"{why} ({', '.join(binder.names) or 'none'})",
        fix="name the step's parameters in the predicate, or give it no more parameters than the step has",
        option=word,
    )


class Fallback(Companion):
    """What stands in for a step that failed.

    Without parameters it is called plainly; if all its names are the step's it gets these inputs; if its one name is
    another, the error. What has a default and is not the step's is left alone.

    Raises:
        OptionError: its parameters are neither.

    >>> def f(data): ...
    >>> Fallback(lambda error: str(error), "f", Binder(f)).arguments({"data": 1}, ValueError("no"))
    ((ValueError('no'),), {})
    """

    __slots__ = ("takes",)

    def __init__(self, fn: Callable[..., Any], step: str, binder: Binder) -> None:
        super().__init__(fn, binder, _parameters(fn) or [])
        self.takes: Literal["nothing", "inputs", "error"] = "nothing"
        required = [parameter for parameter in self._required() if parameter.name not in binder.names]
        known = [parameter for parameter in self._named if parameter.name in binder.names]
        if not required:
            self.takes = "inputs" if known or (self._collects and not self._named) else "nothing"
        elif len(required) == 1 and not known:
            self.takes = "error"
        else:
            raise OptionError(
                f"the fallback of @on_failure takes {', '.join(parameter.name for parameter in self._named)},"
                f" which step {step} cannot give",
                why=f"its parameters are {', '.join(binder.names) or 'none'}",
                fix="let it take nothing, or one parameter (the error), or parameters named as the step's",
                option="on_failure",
            )

    def arguments(self, given: Given, error: BaseException) -> Arguments:
        """What to call the fallback with."""
        if self.takes == "inputs":
            if not self._named and inspect.Parameter.VAR_POSITIONAL in self._collects:
                return tuple(given.values()), {}
            return self._by_name(given)
        if self.takes == "nothing":
            return (), {}
        (parameter,) = [parameter for parameter in self._required() if parameter.name not in self._binder.names]
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            return (), {parameter.name: error}
        return (error,), {}


def _parameters(fn: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """The parameters of a function; ``None`` for a class written in C, such as ``dict``, that does not tell."""
    try:
        return list(inspect.signature(fn).parameters.values())
    except (ValueError, TypeError):
        return None


def _of_a_predicate(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    """As ``_parameters``, but ``bool`` and its like take one value, however optional that is to them."""
    value = inspect.Parameter("value", inspect.Parameter.POSITIONAL_ONLY)
    parameters = _parameters(fn)
    if parameters is None:
        return [value]
    is_builtin = getattr(fn, "__code__", None) is None and all(
        parameter.kind is inspect.Parameter.POSITIONAL_ONLY for parameter in parameters
    )
    return [value, *parameters[1:]] if is_builtin and parameters else parameters
