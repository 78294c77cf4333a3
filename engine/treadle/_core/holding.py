"""What functions, classes and steps are called and what they hold; nothing here reads their code."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from types import FunctionType, MappingProxyType, MethodType
from typing import Any

_CLASS_DATA = frozenset({"__slots__", "__struct_fields__", "__struct_defaults__"})


_CODE: tuple[type, ...] = (FunctionType, type, functools.partial, MethodType, staticmethod, classmethod, property)


def code_within(fn: FunctionType) -> list[object]:
    """List the code that a library's function holds: what its decorator wrapped, or was given to dispatch to."""
    held = [*cells(fn).values(), *wrapped_by(fn)]
    registry = attributes_of(fn).get("registry")
    if type(registry) is MappingProxyType:  # of functools.singledispatch
        held += [*registry.values()]
    return [item for item in held if is_code(item)]


def is_step(value: object) -> bool:
    """Tell a step or a pipeline, which counts by its function, by the mark that its class carries."""
    return bool(getattr(type(value), "__treadle_callable__", False)) and getattr(value, "fn", None) is not None


def is_code(value: object) -> bool:
    """Tell what counts by its code from what counts by its value."""
    return issubclass(type(value), _CODE) or is_step(value) or bool(wrapped_by(value))


def module_name(fn: FunctionType) -> str:
    """Name the module whose globals ``fn`` uses; ``__module__`` may be that of a function it wraps."""
    return str(fn.__globals__.get("__name__", "?"))


def function_name(fn: FunctionType) -> str:
    """Name a function by where its code was written."""
    return f"{module_name(fn)}.{fn.__code__.co_qualname}"


def type_name(cls: type) -> str:
    """Name a class by its module and qualified name."""
    return f"{cls.__module__!s}.{cls.__qualname__!s}"


def cells(fn: FunctionType) -> dict[str, object]:
    """Map the closure variables of ``fn`` to their values; one that is not set yet is left out."""
    found: dict[str, object] = {}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue
    return found


def defaults(fn: FunctionType) -> dict[str, object]:
    """Map the parameters of ``fn`` that have a default to it."""
    positional = fn.__code__.co_varnames[: fn.__code__.co_argcount]
    values = fn.__defaults__ or ()
    return {**dict(zip(positional[len(positional) - len(values) :], values, strict=True)), **(fn.__kwdefaults__ or {})}


def labelled_state(fn: FunctionType) -> Iterator[tuple[str, object]]:
    """List closure variables and defaults of ``fn`` under their labels."""
    name = function_name(fn)
    for variable, value in cells(fn).items():
        yield f"closure variable {name}.{variable}", value
    for parameter, value in defaults(fn).items():
        yield f"default {name}.{parameter}", value


def short_digest(lines: list[str]) -> str:
    """Digest lines of text for use inside another line."""
    joined = "".join(f"{len(line)}:{line}" for line in lines)
    return "#" + hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def wrapped_by(value: object) -> list[object]:
    """List what a decorator's result says it wraps: one object or none."""
    attributes = attributes_of(value)
    return [attributes["__wrapped__"]] if "__wrapped__" in attributes else []


def attributes_of(value: object) -> dict[str, object]:
    """Take the attributes that an object holds itself; never asks a class' ``__getattr__``, which may invent some."""
    try:
        attributes: dict[str, object] | None = getattr(value, "__dict__", None)
    except Exception:  # a proxy without its object
        return {}
    return dict(attributes) if type(attributes) is dict else {}


def class_attributes(cls: type) -> Iterator[tuple[str, object]]:
    """List what a class defines itself: methods and data; of an enum its members; no bookkeeping attributes."""
    members_by_name: dict[str, Any] | None = vars(cls).get("_member_map_")  # an enum's
    for name, member in (members_by_name or {}).items():
        yield name, member._value_
    for name, value in list(vars(cls).items()):
        dunder = name.startswith("__") and name.endswith("__")
        if dunder and name not in _CLASS_DATA and not is_code(value):
            continue
        if members_by_name is not None and (name in members_by_name or (name.startswith("_") and name.endswith("_"))):
            continue
        if name != "_abc_impl":
            yield name, value
