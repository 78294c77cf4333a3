"""Envelopes of enums, named tuples and structs, and of classes and functions as values; and the packer of any class."""

from __future__ import annotations

import enum
import types
from abc import ABCMeta
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec
from msgspec.msgpack import Ext

from treadle.errors import DecodeError, EncodeError, TreadleError
from treadle.storage.codecs import tags
from treadle.storage.codecs.names import changed, class_named, kind_of, name_for, name_of, resolve
from treadle.storage.codecs.records import HEAP_TYPE, pack_record, pickles_itself, record_of
from treadle.storage.codecs.walk import CodeDigest, NotFit, Packer, Refused, Source, Walk, packs, reads

_STRUCT_TYPE: Final[type] = type(msgspec.Struct)


def packer_for(kind: type) -> Packer | None:
    """The packer for instances of this class, or None if its instances are more than an envelope can hold."""
    for qualifies, packer in _KINDS:
        if qualifies(kind):
            # Asked anew in every walk: a name may have been rebound to another class since.
            return packer if name_of(kind) is not None else None
    return None


# -- enums ----------------------------------------------------------------------------------


def _enum(value: Any, walk: Walk) -> Ext:
    kind = kind_of(value)
    if kind.__members__.get(value.name) is value:
        return walk.ext(tags.ENUM, (name_for(kind), value.name))
    if issubclass(kind, enum.Flag) and kind(value.value) == value:
        return walk.ext(tags.FLAG, (name_for(kind), value.value))
    raise NotFit(f"{value!r} is not a member of its enum")


@reads(tags.ENUM)
def _read_enum(data: memoryview, source: Source) -> Any:
    name, member = source.read(data)
    kind = class_named(name, source, enum.EnumMeta)
    if member not in kind.__members__:
        raise DecodeError(f"stored value is {name} member {member!r}, which the enum no longer has", name=name)
    return kind.__members__[member]


@reads(tags.FLAG)
def _read_flag(data: memoryview, source: Source) -> Any:
    name, bits = source.read(data)
    return class_named(name, source, enum.EnumMeta)(bits)


# -- named tuples ---------------------------------------------------------------------------


def _is_named_tuple(kind: type[Any]) -> bool:
    fields = getattr(kind, "_fields", None)
    return fields is not None and issubclass(kind, tuple) and not pickles_itself(kind, tuple)


def _named_tuple(value: Any, walk: Walk) -> Ext:
    kind = kind_of(value)
    if len(value) != len(kind._fields) or getattr(value, "__dict__", None):
        raise NotFit(f"this {kind.__qualname__} carries more than its fields")
    return walk.ext(tags.NAMED_TUPLE, (name_for(kind), list(kind._fields), *value))


@reads(tags.NAMED_TUPLE)
def _read_named_tuple(data: memoryview, source: Source) -> Any:
    name, fields, *items = source.read(data)
    kind = class_named(name, source, type)
    if not _is_named_tuple(kind) or list(kind._fields) != fields or len(items) != len(fields):
        raise changed(name)
    return cast("Any", tuple).__new__(kind, items)


# -- structs --------------------------------------------------------------------------------


def _struct(value: Any, walk: Walk) -> Ext:
    kind = kind_of(value)
    if getattr(value, "__dict__", None):
        raise Refused(f"this {kind.__qualname__} has other attributes than its fields")
    try:
        fields = {name: getattr(value, name) for name in kind.__struct_fields__}
    except AttributeError as error:
        raise NotFit(f"this {kind.__qualname__} has a field that was never set: {error}") from None
    if hasattr(kind, "__post_init__") and not _is_made_again(kind, fields):
        raise Refused(f"{kind.__qualname__}.__post_init__ changes or refuses the fields of an instance made again")
    walk.mutable = walk.mutable or not kind.__struct_config__.frozen
    items = [name_for(kind)]
    for pair in fields.items():
        items += pair
    return walk.ext(tags.STRUCT, items)


@reads(tags.STRUCT)
def _read_struct(data: memoryview, source: Source) -> Any:
    name, *items = source.read(data)
    kind = class_named(name, source, _STRUCT_TYPE)
    if tuple(items[::2]) != kind.__struct_fields__:
        raise changed(name)
    return kind(**dict(zip(items[::2], items[1::2], strict=True)))


def _is_made_again(kind: Any, fields: dict[str, Any]) -> bool:
    # A struct cannot be made without its __post_init__, which may change what it is given; pickle runs it as well.
    try:
        again = kind(**fields)
        parts = [(getattr(again, name), item) for name, item in fields.items()]
        return all(part is item or (type(part) is type(item) and bool(part == item)) for part, item in parts)
    except Exception:  # of the user's __post_init__ or __eq__
        return False


# -- classes and functions as values --------------------------------------------------------


@packs(type, ABCMeta, enum.EnumMeta, _STRUCT_TYPE, types.FunctionType, types.BuiltinFunctionType)
def pack_code(value: Any, walk: Walk) -> Ext:
    """A function, a class or a step: by fingerprint in a digest, by name in what is stored."""
    if walk.code_digest is not None and _is_written(value):
        walk.exact = False
        if walk.digesting:
            return Ext(tags.CODE, _fingerprint(value, walk.code_digest))
    return walk.ext(tags.NAMED, (name_for(value),))


@reads(tags.NAMED)
def _read_named(data: memoryview, source: Source) -> Any:
    (name,) = source.read(data)
    found = resolve(name, trusted=source.trusted)
    if not source.trusted and not isinstance(found, type):
        raise DecodeError(
            f"untrusted bytes name the function {name!r}; they may name classes only",
            fix="have the step return data, or trust its workers with Engine(trust_workers=True)",
            name=name,
        )
    return found


def _fingerprint(value: Any, code_digest: CodeDigest) -> bytes:
    try:
        return bytes(code_digest(value))
    except TreadleError:
        raise
    except Exception as error:
        # Not NotFit: then it would count by its name, and a change of its code would go unseen.
        label = getattr(value, "__qualname__", repr(value))
        raise EncodeError(f"{label} has no fingerprint", why=str(error), path="value", value=value) from error


def _is_written(value: Any) -> bool:
    """Whether it is written in Python, so that it has code to take a fingerprint of."""
    if isinstance(value, type):
        return bool(value.__flags__ & HEAP_TYPE)
    return not isinstance(value, types.BuiltinFunctionType)


def is_code(value: Any) -> bool:
    """Whether a value without an entry of its own counts as code: a class, or an object that stands for a function."""
    return isinstance(value, type) or getattr(kind_of(value), "__treadle_code__", False) is True


_KINDS: Final[tuple[tuple[Callable[[type], bool], Packer], ...]] = (
    (lambda kind: isinstance(kind, enum.EnumMeta), _enum),
    (lambda kind: isinstance(kind, _STRUCT_TYPE), _struct),
    (_is_named_tuple, _named_tuple),
    (lambda kind: record_of(kind) is not None, pack_record),
)
