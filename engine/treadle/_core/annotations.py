"""Whether a value of one annotation can be an argument of another; pure, and nothing is imported to find out.

It says no only where no value fits both: a wrong refusal would stop a pipeline that works, and a missed one is found
when the step runs. So ``Any``, type variables, names that cannot be resolved, protocols and abstract classes of foreign
types pass; a base class passes where a derived one is asked for; of a union one member is enough; numbers of other
libraries are numbers; and a class that decides itself what its instances are is not second-guessed.
"""

from __future__ import annotations

import abc
import builtins
import collections
import collections.abc
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ForwardRef, Literal, TypeVar, Union

Unknown: Any = Any
"""Stands for every annotation that is missing or cannot be resolved."""

DEPTH = 20
_WRAPPERS = (typing.ClassVar, typing.Final, typing.Required, typing.NotRequired)
_ALWAYS = (Any, object, inspect.Parameter.empty, typing.NoReturn, typing.Never)
_TOWER = {float: (int,), complex: (int, float), bytes: (bytearray, memoryview)}
"""What type checkers accept in place of another class although it is no subclass (PEP 484, "The numeric tower")."""
_NUMBERS: dict[type, tuple[type, ...]] = {
    int: (numbers.Integral,), float: (numbers.Real,), complex: (numbers.Complex,)
}  # fmt: skip
"""What counts as a number of the language at run time, such as ``numpy.int64`` as an ``int``."""
_DECIDERS = (type, abc.ABCMeta)


class Annotations:
    """The annotations of one function, resolved; what cannot be is ``Unknown``.

    >>> def f(x: "int") -> "list[NotThere]": ...
    >>> found = Annotations(f, inspect.signature(f))
    >>> found.parameter("x"), found.returned
    (<class 'int'>, typing.Any)
    """

    __slots__ = ("_fn", "_names", "_signature")

    def __init__(self, fn: Callable[..., Any], signature: inspect.Signature) -> None:
        self._fn, self._signature = fn, signature
        self._names: Mapping[str, Any] | None = None

    def parameter(self, name: str) -> Any:
        """What a parameter takes."""
        parameter = self._signature.parameters.get(name)
        return self._resolved(parameter.annotation) if parameter is not None else Unknown

    @property
    def returned(self) -> Any:
        """What the function returns; of an ``async def``, what awaiting it gives."""
        return self._resolved(self._signature.return_annotation)

    def _resolved(self, annotation: Any) -> Any:
        if isinstance(annotation, type):
            return resolved(annotation, {})
        if self._names is None:
            self._names = _names_of(self._fn)
        return resolved(annotation, self._names)


def _names_of(fn: Callable[..., Any]) -> Mapping[str, Any]:
    inner = inspect.unwrap(fn) if hasattr(fn, "__wrapped__") else fn
    while isinstance(inner, (types.MethodType,)):
        inner = inner.__func__
    names: dict[str, Any] = getattr(inner, "__globals__", {})
    cells = getattr(inner, "__closure__", None)
    if not cells:
        return names
    closed: dict[str, Any] = {}
    for name, cell in zip(inner.__code__.co_freevars, cells, strict=True):
        try:
            closed[name] = cell.cell_contents
        except ValueError:
            continue  # not assigned yet
    return collections.ChainMap(closed, names)


def resolved(annotation: Any, names: Mapping[str, Any]) -> Any:
    """An annotation with its text looked up in a module's names."""
    if annotation is inspect.Parameter.empty:
        return Unknown
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    try:
        for _ in range(DEPTH):  # text in a text, where a module postpones its annotations
            if not isinstance(annotation, str):
                return annotation
            if annotation.isidentifier() and annotation in names:
                annotation = names[annotation]
            elif hasattr(builtins, annotation):
                annotation = getattr(builtins, annotation)
            else:
                annotation = eval(annotation, {"__builtins__": builtins.__dict__}, _Names(names))  # as Python itself
    except Exception:
        return Unknown
    return Unknown


class _Names(dict[str, Any]):
    """A module's names, inner text annotations left alone."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        super().__init__()
        self._names = names

    def __missing__(self, name: str) -> Any:
        return self._names[name]


def output_of(returned: Any, names: tuple[str, ...], index: int) -> Any:
    """The annotation of one of several outputs.

    >>> output_of(tuple[int, str], ("a", "b"), 1), output_of(dict[str, float], ("a", "b"), 0)
    (<class 'str'>, <class 'float'>)
    """
    if len(names) < 2:
        return returned
    plain = _plain(returned)
    arguments = typing.get_args(plain)
    origin = typing.get_origin(plain)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return arguments[0]
        return arguments[index] if len(arguments) == len(names) else Unknown
    if origin is list and arguments:
        return arguments[0]
    if isinstance(origin, type) and issubclass(origin, collections.abc.Mapping) and len(arguments) == 2:
        return arguments[1]
    fields = getattr(plain, "__annotations__", {})
    if typing.is_typeddict(plain):
        return fields.get(names[index], Unknown)
    order: tuple[str, ...] = getattr(plain, "_fields", ())  # of a NamedTuple
    return fields.get(order[index], Unknown) if len(order) == len(names) else Unknown


def item_of(annotation: Any) -> Any:
    """The annotation of the items that a map goes over.

    >>> item_of(list[int]), item_of(dict[str, int])
    (<class 'int'>, typing.Any)
    """
    plain = _plain(annotation)
    arguments = typing.get_args(plain)
    origin = typing.get_origin(plain)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return arguments[0]
    is_sequence = isinstance(origin, type) and issubclass(origin, collections.abc.Iterable)
    return arguments[0] if is_sequence and origin is not tuple and len(arguments) == 1 else Unknown


def accepts(wanted: Any, given: Any) -> bool:
    """Whether a value annotated ``given`` can be an argument annotated ``wanted``; False only if surely not.

    >>> accepts(float, int), accepts(str, int), accepts(int | None, int), accepts(list[int], list[str])
    (True, False, True, False)
    """
    try:
        return _accepts(wanted, given, DEPTH)
    except Exception:
        return True  # an annotation may be any object, also one that cannot be compared


def _accepts(wanted: Any, given: Any, depth: int) -> bool:
    if wanted is given or not depth:
        return True
    wanted, given = _plain(wanted), _plain(given)
    if _is_any(wanted) or _is_any(given) or isinstance(wanted, str) or isinstance(given, str):
        return True
    members = _members(given)
    if members is not None:
        return any(_accepts(wanted, member, depth - 1) for member in members)
    members = _members(wanted)
    if members is not None:
        return any(_accepts(member, given, depth - 1) for member in members)
    if typing.get_origin(given) is Literal or typing.get_origin(wanted) is Literal:
        return _accepts_literal(wanted, given, depth)
    return _accepts_class(wanted, given) and _accepts_arguments(wanted, given, depth)


def _plain(annotation: Any) -> Any:
    """The annotation without what says nothing about the value's class."""
    for _ in range(DEPTH):
        origin = typing.get_origin(annotation)
        if origin is Annotated or origin in _WRAPPERS:
            annotation = typing.get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):  # a NewType
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        elif isinstance(annotation, TypeVar):
            annotation = annotation.__bound__ or Unknown
        else:
            break
    return type(None) if annotation is None else annotation


def _is_any(annotation: Any) -> bool:
    return any(annotation is always for always in _ALWAYS) or isinstance(annotation, ForwardRef)


def _members(annotation: Any) -> tuple[Any, ...] | None:
    origin = typing.get_origin(annotation)
    return typing.get_args(annotation) if origin is Union or origin is types.UnionType else None


def _accepts_literal(wanted: Any, given: Any, depth: int) -> bool:
    values = typing.get_args(given) if typing.get_origin(given) is Literal else None
    allowed = typing.get_args(wanted) if typing.get_origin(wanted) is Literal else None
    if values is None:
        return any(_accepts(given, type(value), depth - 1) for value in allowed or ())
    if allowed is None:
        return any(_accepts(wanted, type(value), depth - 1) for value in values)
    return any(type(value) is type(other) and value == other for value in values for other in allowed)


def _class_of(annotation: Any) -> type | None:
    origin = typing.get_origin(annotation)
    found: Any = origin if origin is not None else annotation
    if not isinstance(found, type):
        return None
    return dict if typing.is_typeddict(found) else found


def _accepts_class(wanted: Any, given: Any) -> bool:
    one, other = _class_of(wanted), _class_of(given)
    if one is None or other is None or getattr(one, "_is_protocol", False):
        return True
    if decides_itself(one) or decides_itself(other) or _are_numbers(one, other):
        return True
    if issubclass(other, one) or issubclass(one, other) or issubclass(other, _TOWER.get(one, ())):
        return True
    # A class of another library may be registered with an abstract class later, or have a subclass that is.
    return isinstance(one, abc.ABCMeta) and other.__module__ != "builtins"


def decides_itself(kind: type) -> bool:
    """Whether ``isinstance`` asks the class, or can only say no, as for ``typing.IO``.

    >>> import typing
    >>> decides_itself(typing.TextIO), decides_itself(int), decides_itself(Mapping)
    (True, False, False)
    """
    if kind.__module__ == "typing":
        return True
    return not all(
        any(getattr(type(kind), name, None) is getattr(decider, name) for decider in _DECIDERS)
        for name in ("__instancecheck__", "__subclasscheck__")
    )


def _are_numbers(one: type, other: type) -> bool:
    """Whether numbers of two libraries, or of one and the language, could be the same, as they can when a step runs."""
    if issubclass(other, (*_NUMBERS.get(one, ()), *numbers_of_numpy(one))):
        return True
    if not numbers_of_numpy(other):
        return False
    if one is bool:
        return other.__name__ in ("bool", "bool_", "generic")
    return one in _NUMBERS and other.__name__ in ("generic", "number", "inexact")


def numbers_of_numpy(kind: type) -> tuple[type, ...]:
    """What stands for a class of numpy's numbers in arithmetic; nothing for all other classes, and nothing is imported.

    >>> numbers_of_numpy(int)
    ()
    """
    if kind.__module__ != "numpy" or not any(base.__name__ == "generic" for base in kind.__mro__):
        return ()
    if kind.__name__ in ("bool", "bool_"):
        return (bool,)
    if kind.__name__ in ("generic", "number"):
        return (numbers.Number,)
    kinds = () if kind.__name__ == "timedelta64" else (numbers.Integral, numbers.Real, numbers.Complex)
    return tuple([abstract for abstract in kinds if issubclass(kind, abstract)][:1])


def _accepts_arguments(wanted: Any, given: Any, depth: int) -> bool:
    """Type arguments, where both have them and they mean the same: element by element, and all items of a tuple."""
    one, other = typing.get_args(wanted), typing.get_args(given)
    if not one or not other:
        return True
    first, second = _class_of(wanted), _class_of(given)
    if first is None or second is None or issubclass(first, collections.abc.Callable):  # type: ignore[arg-type]  # an ABC
        return True
    if first is tuple or second is tuple:
        return _accepts_tuple(one, other, depth) if first is second else _accepts_items(first, one, other, depth)
    are_containers = all(issubclass(kind, collections.abc.Iterable) for kind in (first, second))
    if len(one) != len(other) or not (first is second or (are_containers and _are_standard(first, second))):
        return True
    return all(_accepts(a, b, depth - 1) for a, b in zip(one, other, strict=True))


def _are_standard(*kinds: type) -> bool:
    """Whether the type arguments of these mean items, or keys and values."""
    return all(kind.__module__ in ("builtins", "collections", "collections.abc", "typing") for kind in kinds)


def _accepts_tuple(one: tuple[Any, ...], other: tuple[Any, ...], depth: int) -> bool:
    if any(map(_is_unpacked, (*one, *other))):
        return True
    if Ellipsis in one or Ellipsis in other:
        wanted = [each for each in one if each is not Ellipsis]
        given = [each for each in other if each is not Ellipsis]
        count = max(len(wanted), len(given))
        wanted, given = wanted * (count // len(wanted)), given * (count // len(given))
        return all(_accepts(a, b, depth - 1) for a, b in zip(wanted, given, strict=False))
    return len(one) == len(other) and all(_accepts(a, b, depth - 1) for a, b in zip(one, other, strict=True))


def _accepts_items(first: type, one: tuple[Any, ...], other: tuple[Any, ...], depth: int) -> bool:
    """A tuple where a sequence of one item type is asked for."""
    if first is tuple or len(one) != 1 or not _are_standard(first):
        return True
    return all(_accepts(one[0], item, depth - 1) for item in other if item is not Ellipsis and not _is_unpacked(item))


def _is_unpacked(argument: Any) -> bool:
    """``*tuple[int, ...]`` inside of a tuple: any number of items."""
    return getattr(argument, "__unpacked__", False) is True or typing.get_origin(argument) is typing.Unpack


def shown(annotation: Any) -> str:
    """An annotation as a reader knows it.

    >>> shown(list[int]), shown(int)
    ('list[int]', 'int')
    """
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        return annotation.__qualname__
    return str(annotation).replace("typing.", "")
