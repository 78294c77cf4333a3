"""Arguments to parameters: the binding of a call, and the search for futures in its arguments; pure."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

PLAIN: frozenset[type] = frozenset({int, str, float, bool, type(None), bytes, complex})
CONTAINERS: frozenset[type] = frozenset({list, tuple, dict, set, frozenset})


class Binder:
    """Binds arguments to the parameters of one function, fast where the signature is simple.

    >>> def f(a, b=2, *, c=3): ...
    >>> Binder(f).bind((1,), {"c": 4})
    {'a': 1, 'c': 4}
    >>> Binder(f).bind((), {})
    Traceback (most recent call last):
    TypeError: f() missing a required argument: 'a'
    """

    __slots__ = ("_name", "by_name", "defaults", "is_plain", "named", "names", "positional", "signature")

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._name = getattr(fn, "__name__", "step")
        self.signature = inspect.signature(fn)
        parameters = self.signature.parameters
        kinds = {parameter.kind for parameter in parameters.values()}
        self.names = tuple(parameters)
        collecting = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        self.named = tuple(name for name, parameter in parameters.items() if parameter.kind not in collecting)
        by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.positional = tuple(name for name, parameter in parameters.items() if parameter.kind in by_position)
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        self.by_name = tuple(name for name, parameter in parameters.items() if parameter.kind in by_name)
        self.defaults = {
            name: parameter.default
            for name, parameter in parameters.items()
            if parameter.default is not inspect.Parameter.empty
        }
        self.is_plain = kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD}

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """The given arguments by parameter name, without defaults, in the signature's order.

        Raises:
            TypeError: as a plain call would.
        """
        if self.is_plain and not kwargs and len(args) == len(self.names):
            return dict(zip(self.names, args, strict=True))
        try:
            return self.signature.bind(*args, **(kwargs or {})).arguments
        except TypeError as error:
            said = str(error)
            raise TypeError(f"{self._name}() {'got ' if said.startswith('too many') else ''}{said}") from None

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> None:
        """Raise ``TypeError`` if the arguments do not fit."""
        if not (self.is_plain and not kwargs and len(args) == len(self.names)):
            self.bind(args, kwargs)

    def canonical(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by parameter, plain defaults filled in: equal however a call is written."""
        given = self.bind(args, kwargs)
        filled = {name: value for name, value in self.defaults.items() if name not in given and type(value) in PLAIN}
        known = {**given, **filled}
        return {name: known[name] for name in self.names if name in known}

    def parameter(self, position: int) -> str:
        """The name of the parameter at a position (the last one, if the signature ends in ``*args``)."""
        return self.names[min(position, len(self.names) - 1)]


def find(values: Any, kinds: tuple[type, ...]) -> Iterator[Any]:
    """Every instance of ``kinds`` among the values, also in nested lists, tuples, dicts and sets.

    A container is looked into once, however often it occurs, so circles and shared parts cost nothing.

    >>> list(find([1, {"a": [range(2), (range(3),)]}], (range,)))
    [range(0, 2), range(0, 3)]
    """
    todo = [iter(values)]
    seen: set[int] = set()
    while todo:
        for value in todo[-1]:
            kind = type(value)
            if kind in PLAIN:
                continue
            if kind in CONTAINERS:
                inner = value.values() if kind is dict else value
                if id(value) in seen:
                    continue
                seen.add(id(value))
                if not PLAIN.issuperset(map(type, inner)):
                    todo.append(iter(inner))
                    break
            elif isinstance(value, kinds):
                yield value
        else:
            todo.pop()


def replace(value: Any, kinds: tuple[type, ...], new: Callable[[Any], Any]) -> Any:
    """A copy of nested containers in which every instance of ``kinds`` is replaced.

    >>> replace([1, {"a": (range(2),)}], (range,), list)
    [1, {'a': ([0, 1],)}]
    """
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind in CONTAINERS:
        if next(find((value,), kinds), None) is None:
            return value
        if kind is dict:
            return {k: new(v) if isinstance(v, kinds) else replace(v, kinds, new) for k, v in value.items()}
        return kind([new(item) if isinstance(item, kinds) else replace(item, kinds, new) for item in value])
    return new(value) if isinstance(value, kinds) else value


LOOKED_INTO = 64
"""So many objects of one argument are searched for what is hidden in them."""


def hidden(value: Any, kinds: tuple[type, ...], most: int = LOOKED_INTO) -> Iterator[tuple[Any, Any]]:
    """Instances of ``kinds`` where neither ``find`` nor ``replace`` looks, each with the object that it is in.

    That is in the keys of dicts, in containers of classes of their own, and in the fields of records. The search is
    cut short after ``most`` objects, since it is only there to tell of a mistake.

    >>> class Pair(tuple): ...
    >>> list(hidden([Pair([range(2), 1])], (range,)))
    [((range(0, 2), 1), range(0, 2))]
    """
    todo, seen = [value], set[int]()
    while todo and len(seen) < most:
        holder = todo.pop()
        kind = type(holder)
        if kind in PLAIN or id(holder) in seen or isinstance(holder, (type, *kinds)):
            continue
        seen.add(id(holder))
        if kind not in CONTAINERS:
            yield from ((holder, item) for item in find(parts(holder), kinds))
            continue
        if kind is dict and not PLAIN.issuperset(map(type, holder)):
            yield from ((holder, key) for key in find(holder, kinds))
        inner = holder.values() if kind is dict else holder
        if not PLAIN.issuperset(map(type, inner)):
            todo.extend(itertools.islice(inner, most))


def parts(holder: Any) -> list[Any]:
    """What a container of a class of its own holds, or a record of one of the usual kinds."""
    if isinstance(holder, dict):
        return [*holder, *holder.values()]
    if isinstance(holder, (tuple, list, set, frozenset)):
        return list(cast("Iterable[Any]", holder))
    kind: Any = type(holder)
    attrs = [attribute.name for attribute in getattr(kind, "__attrs_attrs__", ())]
    names = (*getattr(kind, "__dataclass_fields__", ()), *getattr(kind, "__struct_fields__", ()), *attrs)
    try:
        return [getattr(holder, name, None) for name in names]
    except Exception:  # a field may be a property that cannot be asked yet
        return []


def snapshot(value: Any, known: dict[int, Any] | None = None) -> Any:
    """A copy of nested containers as they are now, whatever their owner does to them later; what is in them is shared.

    >>> rows = [1, {"a": [2]}]
    >>> kept = snapshot((rows, 3))
    >>> rows[1]["a"].append(4)
    >>> kept
    ([1, {'a': [2]}], 3)
    """
    kind = type(value)
    if kind in PLAIN or kind not in CONTAINERS:
        return value
    known = {} if known is None else known
    if id(value) in known:
        return known[id(value)]
    if kind is list or kind is dict:
        copy: Any = kind(value)
        known[id(value)] = copy
        if PLAIN.issuperset(map(type, value if kind is list else value.values())):
            return copy
        for key, item in enumerate(value) if kind is list else value.items():
            copy[key] = snapshot(item, known)
        return copy
    return kind(value) if kind is set else kind(snapshot(item, known) for item in value)
