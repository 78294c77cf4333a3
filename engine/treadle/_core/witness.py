"""What a walk over code has read: as long as none of it has changed, its outcome stands and need not be found again.

Knows names in namespaces, the parts of functions and classes, and contents of mutable values; reads no source, which
never changes for code that is loaded. Taking a fingerprint costs 60 to 5,000 µs, asking its witness 2 to 10.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from itertools import repeat
from operator import is_
from types import CellType, FunctionType, ModuleType
from typing import Any

from treadle._core.holding import attributes_of, code_within, is_code
from treadle._core.plain import is_frozen, members, plain_types

_MISSING = object()
_Read = Callable[[Any], Iterable[object]]


class Witness:
    """Collects what was read, by identity; what can change in place is compared by its content.

    Attributes:
        is_complete: everything that was read can be looked at again; if not, ``holds`` is always false.
    """

    def __init__(self) -> None:
        self.is_complete = True
        self._names: dict[int, tuple[dict[str, object], dict[str, object]]] = {}
        self._functions: dict[int, tuple[FunctionType, object, object, object, object]] = {}
        self._cells: dict[int, tuple[CellType, object]] = {}
        self._states: dict[tuple[Hashable, int], tuple[_Read, Any, tuple[object, ...]]] = {}
        self._contents: dict[int, tuple[Any, Callable[[object], bytes], bytes]] = {}

    # -- what was read --------------------------------------------------------------------

    def name(self, namespace: dict[str, object], name: str) -> None:
        """A name was looked up in the globals of a function or module; it need not be there."""
        known = self._names.get(id(namespace)) or self._names.setdefault(id(namespace), (namespace, {}))
        known[1].setdefault(name, namespace.get(name, _MISSING))

    def function(self, fn: FunctionType) -> None:
        """The code, closure variables, defaults and ``__wrapped__`` of a function were read."""
        if id(fn) in self._functions:
            return
        wrapped = fn.__dict__.get("__wrapped__", _MISSING)
        self._functions[id(fn)] = (fn, fn.__code__, fn.__defaults__, fn.__kwdefaults__, wrapped)
        self._cells.update((id(cell), (cell, _content(cell))) for cell in fn.__closure__ or ())
        if fn.__kwdefaults__:
            self._state(members, fn.__kwdefaults__)

    def foreign_function(self, fn: FunctionType) -> None:
        """A library's function was searched for code of the project."""
        if fn.__closure__ or fn.__dict__:
            self._state(code_within, fn)

    def cls(self, cls: type) -> None:
        """The bases and attributes of a class were read."""
        self._state(_class_state, cls)

    def module(self, module: ModuleType) -> None:
        """All that a module defines was read."""
        self._state(_module_state, module)

    def container(self, container: object) -> None:
        """The members of a built-in container were read, each for itself."""
        self._state(members, container)

    def instance(self, value: object) -> None:
        """An object was searched for attributes that are code."""
        self._state(held_code, value)

    def step(self, value: Any) -> None:
        """The function of a step or pipeline was read."""
        self._state(_function_of_step, value)

    def content(self, value: object, digest_value: Callable[[object], bytes], digest: bytes) -> None:
        """A value was digested."""
        if not is_frozen(value):
            self._contents[id(value)] = (value, digest_value, digest)
            self._state(_carriers, value)

    def _state(self, read: _Read, subject: Any) -> None:
        key = (read, id(subject))
        if key not in self._states:
            self._states[key] = (read, subject, tuple(read(subject)))

    # -- whether it still is so -----------------------------------------------------------

    def holds(self) -> bool:
        """Whether all that was read is still the same."""
        if not self.is_complete:
            return False
        try:
            return self._names_hold() and self._functions_hold() and self._states_hold() and self._contents_hold()
        except Exception:  # a value that cannot be digested any more, a dict that another thread is changing
            return False

    def _names_hold(self) -> bool:
        return all(
            all(map(is_, map(namespace.get, bound, repeat(_MISSING)), bound.values()))
            for namespace, bound in self._names.values()
        )

    def _functions_hold(self) -> bool:
        for fn, code, defaults, keywords, wrapped in self._functions.values():
            if (
                fn.__code__ is not code
                or fn.__defaults__ is not defaults
                or fn.__kwdefaults__ is not keywords
                or fn.__dict__.get("__wrapped__", _MISSING) is not wrapped
            ):
                return False
        return all(_content(cell) is held for cell, held in self._cells.values())

    def _states_hold(self) -> bool:
        for read, subject, expected in self._states.values():
            found = tuple(read(subject))
            if len(found) != len(expected) or not all(map(is_, found, expected)):
                return False
        return True

    def _contents_hold(self) -> bool:
        return all(digest_value(value) == digest for value, digest_value, digest in self._contents.values())


def held_code(value: object) -> list[object]:
    """List the code that an object keeps under its attributes, as a decorator's object does with the function."""
    return [item for _, item in sorted(attributes_of(value).items()) if is_code(item)]


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _class_state(cls: type) -> list[object]:
    return [type(cls), *cls.__bases__, *vars(cls), *vars(cls).values()]


def _module_state(module: ModuleType) -> list[object]:
    return [*vars(module), *vars(module).values()]


def _function_of_step(value: Any) -> tuple[object]:
    return (value.fn,)


def _carriers(value: object) -> list[type]:
    # Equal digests do not tell a class from its reloaded namesake, whose methods may be others.
    return sorted(plain_types(value) or (), key=id)
