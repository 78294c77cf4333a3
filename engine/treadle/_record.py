"""``@record``: a frozen value class without generated code; it knows fields and nothing of what they mean.

``dataclass(frozen=True)`` writes and compiles six functions for each class: 1.3 ms of every import of treadle.
A record is a dataclass all the same (``fields``, ``replace`` and ``is_dataclass`` work on it); only its methods are
shared by all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform, overload

if TYPE_CHECKING:
    from inspect import Signature

T = TypeVar("T")


@overload
@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T], /) -> type[T]: ...
@overload
@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(*, kw_only: bool = False) -> Callable[[type[T]], type[T]]: ...
def record(cls: type[T] | None = None, /, *, kw_only: bool = False) -> Any:
    """Make a class of annotated fields a frozen value: equal by its fields, hashable, with a telling ``repr``.

    Args:
        cls: the class; its ``__post_init__`` checks what was given, and sets what it changes with
            ``object.__setattr__``.
        kw_only: fields are given by name only.

    >>> @record
    ... class Point:
    ...     x: int
    ...     y: int = 0
    >>> Point(1), Point(1) == Point(1, y=0)
    (Point(x=1, y=0), True)
    """

    def make(cls: type[T]) -> type[T]:
        made: Any = dataclass(init=False, repr=False, eq=False, kw_only=kw_only)(cls)
        for name, method in _SHARED.items():
            if name not in vars(cls):
                setattr(made, name, method)
        made.__dataclass_params__.frozen = True  # codecs ask for it
        made.__record_fields__ = {each.name: each for each in fields(made)}  # asked for at every birth
        return cls

    return make if cls is None else make(cls)


def _fields(self: Any) -> dict[str, Field[Any]]:
    known: dict[str, Field[Any]] = self.__record_fields__
    return known


def _init(self: Any, /, *args: Any, **given: Any) -> None:
    known = _fields(self)
    if args:
        _place(self, args, given)
    if not given.keys() <= known.keys():
        name = next(name for name in given if name not in known)
        raise TypeError(f"{type(self).__name__}.__init__() got an unexpected keyword argument {name!r}")
    for name, each in known.items():
        value = given.get(name, each.default)
        if value is MISSING:
            raise TypeError(f"{type(self).__name__}.__init__() missing a required argument: {name!r}")
        object.__setattr__(self, name, value)
    check = getattr(self, "__post_init__", None)
    if check is not None:
        check()


def _place(self: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
    """Arguments by position become ones by name."""
    what = f"{type(self).__name__}.__init__()"
    by_position = [name for name, each in _fields(self).items() if not each.kw_only]
    if len(args) > len(by_position):
        raise TypeError(f"{what} takes {len(by_position)} positional arguments but {len(args)} were given")
    for name, value in zip(by_position, args, strict=False):
        if name in given:
            raise TypeError(f"{what} got multiple values for argument {name!r}")
        given[name] = value


def _repr(self: Any) -> str:
    shown = (f"{name}={getattr(self, name)!r}" for name, each in _fields(self).items() if each.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _compared(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, name) for name, each in _fields(self).items() if each.compare)


def _eq(self: Any, other: object) -> Any:
    return _compared(self) == _compared(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))


def _set(self: Any, name: str, value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delete(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


class _ShowsSignature:
    """What ``help`` and editors ask a class for; made when they do."""

    def __get__(self, instance: object, owner: type) -> Signature:
        from inspect import Parameter, Signature

        return Signature(
            [
                Parameter(
                    name,
                    Parameter.KEYWORD_ONLY if each.kw_only else Parameter.POSITIONAL_OR_KEYWORD,
                    default=Parameter.empty if each.default is MISSING else each.default,
                    annotation=each.type,
                )
                for name, each in _fields(owner).items()
            ]
        )


_SHARED: dict[str, Any] = {
    "__init__": _init,
    "__repr__": _repr,
    "__eq__": _eq,
    "__hash__": _hash,
    "__setattr__": _set,
    "__delattr__": _delete,
    "__signature__": _ShowsSignature(),
}
