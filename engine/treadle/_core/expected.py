"""Which types a step's annotations ask for, as far as a value can be held to them; pure, and it never runs a step.

What is checked is the class: of ``list[int]`` that it is a list, of ``Model | None`` both. What has no class to compare
with (``Any``, type variables, protocols, ``Literal``, names that cannot be resolved) is not checked. Numbers are taken
as in arithmetic: an ``int`` will do for a ``float``, and numpy's numbers are numbers. An array or a frame will do for a
``Sequence`` or a ``Mapping`` whose methods it has.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, NewType, Union
from weakref import WeakKeyDictionary

from treadle._core.annotations import numbers_of_numpy
from treadle.kinds import Asset, Metrics

KINDS: Final = (Asset, Metrics)

_WIDER: Final[dict[type, tuple[type, ...]]] = {
    int: (int, numbers.Integral),
    float: (float, numbers.Real),
    complex: (complex, numbers.Complex),
    bytes: (bytes, bytearray, memoryview),
}
_ALSO: Final[dict[str, tuple[type, ...]]] = {"numpy.bool": (bool,), "numpy.bool_": (bool,)}
"""Classes of other libraries that stand for one of the language's own and do not say so."""


_ASKED: Final = "__abstractmethods__"


class Wanted:
    """What one annotation asks for.

    Attributes:
        text: the annotation, for people.
        is_kind: whether it names a ``Model``, ``Dataset`` or ``Metrics``.
    """

    __slots__ = ("is_kind", "text", "types")

    def __init__(self, wanted: tuple[type, ...], text: str) -> None:
        wide = [each for kind in wanted for each in _WIDER.get(kind) or (kind, *numbers_of_numpy(kind))]
        self.types = tuple(dict.fromkeys(wide))
        self.text = text
        self.is_kind = any(issubclass(kind, KINDS) for kind in wanted)

    def fits(self, value: object) -> bool:
        """Whether a value is of one of the types."""
        try:
            if isinstance(value, self.types):
                return True
        except Exception:  # of a metaclass's own __instancecheck__
            return True
        kind = type(value)
        also = _ALSO.get(f"{kind.__module__}.{kind.__qualname__}", ())
        return any(stands in self.types for stands in also) or self._is_alike(kind)

    def _is_alike(self, kind: type) -> bool:
        """Whether a class of a library has all that an abstract class asks for, such as an array as a sequence."""
        if kind.__module__ == "builtins":
            return False
        abstract = (each for each in self.types if each.__module__ == "collections.abc")
        return any(all(hasattr(kind, name) for name in getattr(each, _ASKED, ()) or ("",)) for each in abstract)

    def __repr__(self) -> str:
        return f"<wanted {self.text}>"


class Expected:
    """What a function's annotations say.

    Attributes:
        parameters: by name, for those that can be checked.
        wants_kind: whether a parameter is to be a ``Model``, ``Dataset`` or ``Metrics``.
        result: the annotation of what it returns, resolved; ``None`` if there is none.
    """

    __slots__ = ("parameters", "result", "wants_kind")

    def __init__(self, hints: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.parameters: dict[str, Wanted] = {}
        for name, annotation in hints.items():
            found = None if name == "return" else wanted(annotation)
            if found is not None:
                if name in defaults and defaults[name] is None:
                    found = (*found, type(None))
                self.parameters[name] = Wanted(found, _text(annotation))
        self.wants_kind = any(want.is_kind for want in self.parameters.values())
        self.result: Any = hints.get("return")

    def promised(self, outputs: Sequence[str]) -> dict[str, Wanted] | None:
        """What is to be held of the outputs: that they are a ``Model``, ``Dataset`` or ``Metrics``, where one is named.

        Args:
            outputs: the names of the step's outputs.
        """
        parts: Sequence[Any] = [self.result]
        if len(outputs) > 1:
            if typing.get_origin(self.result) is not tuple:
                return None
            parts = typing.get_args(self.result)
        if len(parts) != len(outputs):
            return None
        found: dict[str, Wanted] = {}
        for name, part in zip(outputs, parts, strict=True):
            kinds = wanted(part)
            if kinds is not None and (want := Wanted(kinds, _text(part))).is_kind:
                found[name] = want
        return found or None


_KNOWN: WeakKeyDictionary[Any, Expected | None] = WeakKeyDictionary()


def expected_of(fn: Callable[..., Any]) -> Expected | None:
    """What a function's annotations say; ``None`` if nothing of it can be checked."""
    try:
        return _KNOWN[fn]
    except (KeyError, TypeError):
        found = _read(fn)
    try:
        _KNOWN[fn] = found
    except TypeError:
        pass  # a callable that allows no weak references is read again
    return found


def _read(fn: Callable[..., Any]) -> Expected | None:
    hints = _hints(fn)
    if not hints:
        return None
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return None
    plain = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    expected = Expected({name: hint for name, hint in hints.items() if name == "return" or name in plain}, plain)
    return expected if expected.parameters or expected.result is not None else None


def _hints(fn: Callable[..., Any]) -> dict[str, Any]:
    """The annotations with their names resolved; those that cannot be are left out."""
    given: dict[str, Any] = dict(getattr(fn, "__annotations__", None) or {})
    if not any(isinstance(hint, str) for hint in given.values()):
        return given
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = inspect.unwrap(fn)
    known = dict(getattr(fn, "__globals__", {}))
    code = getattr(fn, "__code__", None)
    for name, cell in zip(getattr(code, "co_freevars", ()), getattr(fn, "__closure__", None) or (), strict=False):
        try:
            known[name] = cell.cell_contents
        except ValueError:
            continue  # it has no value yet
    resolved: dict[str, Any] = {}
    for name, hint in given.items():
        try:
            resolved[name] = eval(hint, known) if isinstance(hint, str) else hint  # as typing.get_type_hints does
        except Exception:  # imported for type checkers only, or local to another function
            continue
    return resolved


def wanted(annotation: Any) -> tuple[type, ...] | None:
    """The classes that an annotation allows; ``None`` if it cannot be checked.

    >>> wanted(list[int] | None)
    (<class 'list'>, <class 'NoneType'>)
    >>> wanted(Any) is None
    True
    """
    if annotation is None:
        return (type(None),)
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return wanted(typing.get_args(annotation)[0])
    if origin is Union or origin is types.UnionType:
        return _union(typing.get_args(annotation))
    if isinstance(annotation, NewType):
        return wanted(annotation.__supertype__)
    if type(annotation).__name__ == "TypeAliasType":
        return wanted(annotation.__value__)
    if typing.is_typeddict(annotation):
        return (dict,)
    return _class(annotation if origin is None else origin)


def _union(members: Sequence[Any]) -> tuple[type, ...] | None:
    found: list[type] = []
    for member in members:
        one = wanted(member)
        if one is None:
            return None
        found += one
    return tuple(found)


def _class(kind: Any) -> tuple[type, ...] | None:
    if not isinstance(kind, type) or kind is object or kind is Any or getattr(kind, "_is_protocol", False):
        return None
    if kind.__module__.startswith("treadle._"):
        return None  # futures and artifacts stand for values, and the body gets the values
    if kind.__module__.startswith(("typing", "pandera.")):
        return None  # names for type checkers, which have no instances
    return (kind,)


def _text(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
