"""Parameters that are filled by name: the context of a pipeline, and which arguments of a call it gives; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from treadle._core.binding import Binder


class Context(Mapping[str, Any]):
    """Named values that fill the parameters of steps; it cannot be changed.

    Values are read as attributes or as items; ``ctx | {"a": 1}`` gives a new context with other values laid over.

    >>> ctx = Context({"rate": 0.1})
    >>> ctx.rate, ctx["rate"], dict(ctx | {"epochs": 3})
    (0.1, 0.1, {'rate': 0.1, 'epochs': 3})
    """

    __slots__ = ("_values",)
    _values: dict[str, Any]

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_values", dict(values))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        if name == "_values":  # of a copy that has none yet
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            known = ", ".join(self._values) or "nothing"
            raise AttributeError(f"the context has no {name!r}; it has {known}") from None

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"a context cannot be changed; use `ctx | {{{name!r}: ...}}` for a changed copy")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a context cannot be changed")

    def __or__(self, other: Mapping[str, Any]) -> Context:
        return Context({**self._values, **other})

    def __ror__(self, other: Mapping[str, Any]) -> Context:
        return Context({**other, **self._values})

    def __reduce__(self) -> tuple[Any, ...]:
        return Context, (self._values,)

    def __repr__(self) -> str:
        return f"context({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"


def context(**values: Any) -> Context:
    """Values that fill the parameters of steps by name: ``Pipeline("training", context=context(learning_rate=0.1))``.

    A step's parameter that no argument, no output of another step and no input of the run gives takes the value of its
    name from here; only then its default counts. ``**kwargs`` of a step take nothing.

    Returns:
        An immutable mapping whose values are attributes, too.

    >>> context(learning_rate=0.1, epochs=3).epochs
    3
    """
    return Context(values)


def filled(binder: Binder, values: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, with what a call does not give and the context has.

    >>> filled(Binder(lambda a, b, c=1: 0), {"a": 7, "b": 8, "d": 9}, (1,), {})
    {'b': 8}
    """
    given = binder.positional[: len(args)]
    more = {n: values[n] for n in binder.by_name if n in values and n not in kwargs and n not in given}
    return {**kwargs, **more} if more else kwargs
