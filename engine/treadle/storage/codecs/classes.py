"""Envelopes of user classes: enums, named tuples, dataclasses, attrs classes and msgspec structs; and of code by name.

An instance is stored as the name of its class and its fields, and rebuilt without its ``__init__``: what a constructor
would check, count or open has happened already. A class qualifies only if the fields are all there is to its instances.
"""

from __future__ import annotations

import copyreg
import dataclasses
import enum
import types
from abc import ABCMeta
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast
from weakref import WeakKeyDictionary

import msgspec
from msgspec.msgpack import Ext

from treadle.errors import DecodeError, EncodeError, TreadleError
from treadle.storage.codecs import tags
from treadle.storage.codecs.names import name_of, resolve
from treadle.storage.codecs.walk import CodeDigest, NotFit, Packer, Refused, Source, Walk, packs, reads

_HEAP_TYPE: Final = 1 << 9
_STRUCT_TYPE: Final[type] = type(msgspec.Struct)
_OWN_PICKLING: Final = ("__getstate__", "__setstate__", "__getnewargs_ex__", "__getnewargs__")
_GENERATED: Final = ("_dataclass_getstate", "_dataclass_setstate", "slots_getstate", "slots_setstate")
_NO_STATE: Final = ("__dict__", "__weakref__")


class Record(NamedTuple):
    """Where the fields of a dataclass or attrs class are kept; it holds no reference to the class."""

    name: str
    in_dict: tuple[str, ...]
    in_slots: tuple[str, ...]
    frozen: bool


# Weak, so that a class made in a function or a notebook cell can go. None: the class does not qualify.
_RECORDS: Final[WeakKeyDictionary[type, Record | None]] = WeakKeyDictionary()


def packer_for(kind: type) -> Packer | None:
    """The packer for instances of this class, or None if its instances are more than an envelope can hold."""
    for qualifies, packer in _KINDS:
        if qualifies(kind):
            # Asked anew in every walk: a name may have been rebound to another class since.
            return packer if name_of(kind) is not None else None
    return None


# -- enums ----------------------------------------------------------------------------------


def _enum(value: Any, walk: Walk) -> Ext:
    kind = _kind(value)
    if kind.__members__.get(value.name) is value:
        return walk.ext(tags.ENUM, (_name(kind), value.name))
    if issubclass(kind, enum.Flag) and kind(value.value) == value:
        return walk.ext(tags.FLAG, (_name(kind), value.value))
    raise NotFit(f"{value!r} is not a member of its enum")


@reads(tags.ENUM)
def _read_enum(data: memoryview, source: Source) -> Any:
    name, member = source.read(data)
    kind = _class(name, source, enum.EnumMeta)
    if member not in kind.__members__:
        raise DecodeError(f"stored value is {name} member {member!r}, which the enum no longer has", name=name)
    return kind.__members__[member]


@reads(tags.FLAG)
def _read_flag(data: memoryview, source: Source) -> Any:
    name, bits = source.read(data)
    return _class(name, source, enum.EnumMeta)(bits)


# -- named tuples ---------------------------------------------------------------------------


def _is_named_tuple(kind: type[Any]) -> bool:
    fields = getattr(kind, "_fields", None)
    return fields is not None and issubclass(kind, tuple) and not _pickles_itself(kind, tuple)


def _named_tuple(value: Any, walk: Walk) -> Ext:
    kind = _kind(value)
    if len(value) != len(kind._fields) or getattr(value, "__dict__", None):
        raise NotFit(f"this {kind.__qualname__} carries more than its fields")
    return walk.ext(tags.NAMED_TUPLE, (_name(kind), list(kind._fields), *value))


@reads(tags.NAMED_TUPLE)
def _read_named_tuple(data: memoryview, source: Source) -> Any:
    name, fields, *items = source.read(data)
    kind = _class(name, source, type)
    if not _is_named_tuple(kind) or list(kind._fields) != fields or len(items) != len(fields):
        raise _changed(name)
    return cast("Any", tuple).__new__(kind, items)


# -- dataclasses and attrs classes ----------------------------------------------------------


def _record(value: Any, walk: Walk) -> Ext:
    kind = _kind(value)
    record = _record_of(kind)
    assert record is not None  # packer_for asked for it
    state: dict[str, Any] = getattr(value, "__dict__", {})
    if len(state) != len(record.in_dict) or not all(map(state.__contains__, record.in_dict)):
        raise NotFit(f"this {record.name} has other attributes than its fields")
    items = [record.name]
    for field in record.in_dict:
        items += field, state[field]
    try:
        for field in record.in_slots:
            items += field, object.__getattribute__(value, field)
    except AttributeError as error:
        raise NotFit(f"this {record.name} has a field that was never set: {error}") from None
    walk.mutable = walk.mutable or not record.frozen
    return walk.ext(tags.RECORD, items)


@reads(tags.RECORD)
def _read_record(data: memoryview, source: Source) -> Any:
    name, *items = source.read(data)
    kind = _class(name, source, type)
    record = _record_of(kind)
    if record is None or tuple(items[::2]) != record.in_dict + record.in_slots:
        raise _changed(name)
    made: Any = object.__new__(kind)
    split = 2 * len(record.in_dict)
    if split:
        made.__dict__.update(zip(items[:split:2], items[1:split:2], strict=True))
    for field, value in zip(items[split::2], items[split + 1 :: 2], strict=True):
        object.__setattr__(made, field, value)
    return made


def _record_of(kind: type) -> Record | None:
    try:
        return _RECORDS[kind]
    except KeyError:
        record = _RECORDS[kind] = _inspect(kind)
        return record


def _inspect(kind: type) -> Record | None:
    fields = _fields(kind)
    if fields is None or not _is_plain(kind):
        return None
    slots = [slot for base in kind.__mro__ for slot in _slots(base)]
    if len(set(slots)) != len(slots) or not set(slots) <= {*fields, *_NO_STATE}:
        return None
    in_dict = tuple(field for field in fields if field not in slots)
    return Record(_name(kind), in_dict, tuple(field for field in fields if field in slots), _is_frozen(kind))


def _fields(kind: Any) -> tuple[str, ...] | None:
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    attributes = getattr(kind, "__attrs_attrs__", None)
    return None if attributes is None else tuple(attribute.name for attribute in attributes)


def _is_frozen(kind: Any) -> bool:
    params: Any = getattr(kind, "__dataclass_params__", None)
    if params is not None:
        return bool(params.frozen)
    return "frozen" in getattr(kind.__setattr__, "__name__", "")


def _is_plain(kind: Any) -> bool:
    """No state besides ``__dict__`` and slots, and no own way of being made or pickled that should be respected."""
    own_layout = any(base is not object and not base.__flags__ & _HEAP_TYPE for base in kind.__mro__)
    return not own_layout and kind.__new__ is object.__new__ and not _pickles_itself(kind)


def _pickles_itself(kind: Any, base: type = object) -> bool:
    if kind.__reduce__ is not object.__reduce__ or kind.__reduce_ex__ is not object.__reduce_ex__:
        return True
    if kind in copyreg.dispatch_table:
        return True
    # A named tuple has a ``__getnewargs__``, and since Python 3.11 every object has a ``__getstate__``.
    names = _OWN_PICKLING if base is object else _OWN_PICKLING[:-1]
    hooks = [getattr(kind, name, None) for name in names]
    return any(
        hook is not None and hook is not object.__getstate__ and getattr(hook, "__name__", "") not in _GENERATED
        for hook in hooks
    )


def _slots(base: type) -> tuple[str, ...]:
    slots: Any = base.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(_mangled(base, name) for name in names if name not in _NO_STATE)


def _mangled(base: type, name: str) -> str:
    private = name.startswith("__") and not name.endswith("__")
    return f"_{base.__name__.lstrip('_')}{name}" if private else name


# -- structs --------------------------------------------------------------------------------


def _struct(value: Any, walk: Walk) -> Ext:
    kind = _kind(value)
    if getattr(value, "__dict__", None):
        raise Refused(f"this {kind.__qualname__} has other attributes than its fields")
    try:
        fields = {name: getattr(value, name) for name in kind.__struct_fields__}
    except AttributeError as error:
        raise NotFit(f"this {kind.__qualname__} has a field that was never set: {error}") from None
    if hasattr(kind, "__post_init__") and not _is_made_again(kind, fields):
        raise Refused(f"{kind.__qualname__}.__post_init__ changes or refuses the fields of an instance made again")
    walk.mutable = walk.mutable or not kind.__struct_config__.frozen
    items = [_name(kind)]
    for pair in fields.items():
        items += pair
    return walk.ext(tags.STRUCT, items)


@reads(tags.STRUCT)
def _read_struct(data: memoryview, source: Source) -> Any:
    name, *items = source.read(data)
    kind = _class(name, source, _STRUCT_TYPE)
    if tuple(items[::2]) != kind.__struct_fields__:
        raise _changed(name)
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
    return walk.ext(tags.NAMED, (_name(value),))


@reads(tags.NAMED)
def _read_named(data: memoryview, source: Source) -> Any:
    (name,) = source.read(data)
    found = resolve(name, trusted=source.trusted)
    if not source.trusted and not isinstance(found, type):
        raise DecodeError(f"untrusted bytes name the function {name!r}; they may name classes only", name=name)
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
        return bool(value.__flags__ & _HEAP_TYPE)
    return not isinstance(value, types.BuiltinFunctionType)


def is_code(value: Any) -> bool:
    """Whether a value without an entry of its own counts as code: a class, or an object that stands for a function."""
    return isinstance(value, type) or getattr(_kind(value), "__treadle_code__", False) is True


# -- shared ---------------------------------------------------------------------------------


def _kind(value: object) -> Any:
    return type(value)


def _name(thing: Any) -> str:
    name = name_of(thing)
    if name is None:
        label = getattr(thing, "__qualname__", type(thing).__name__)
        raise NotFit(f"{label} cannot be found again by the name of its module and its own")
    return name


def _class(name: str, source: Source, meta: type) -> Any:
    found = resolve(name, trusted=source.trusted)
    if not isinstance(found, meta):
        raise _changed(name)
    return found


def _changed(name: str) -> DecodeError:
    return DecodeError(
        f"stored value is a {name}, whose fields or kind have changed since",
        fix="run the step again, or give the new class another name",
        name=name,
    )


_KINDS: Final[tuple[tuple[Callable[[type], bool], Packer], ...]] = (
    (lambda kind: isinstance(kind, enum.EnumMeta), _enum),
    (lambda kind: isinstance(kind, _STRUCT_TYPE), _struct),
    (_is_named_tuple, _named_tuple),
    (lambda kind: _record_of(kind) is not None, _record),
)
