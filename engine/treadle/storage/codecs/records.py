"""Envelopes of dataclasses and attrs classes: the name of the class and its fields, where that is all there is.

An instance is rebuilt without its ``__init__``: what a constructor would check, count or open has happened already.
A class qualifies only if its fields are all there is to its instances, and if it has no own way of being pickled.
"""

from __future__ import annotations

import copyreg
import dataclasses
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from msgspec.msgpack import Ext

from treadle.storage.codecs import tags
from treadle.storage.codecs.names import changed, class_named, kind_of, name_for
from treadle.storage.codecs.walk import NotFit, Source, Walk, reads

HEAP_TYPE: Final = 1 << 9
"""The type flag of classes that are not built into the interpreter."""
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


def pack_record(value: Any, walk: Walk) -> Ext:
    """The envelope of an instance of a class that qualifies."""
    kind = kind_of(value)
    record = record_of(kind)
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
    kind = class_named(name, source, type)
    record = record_of(kind)
    if record is None or tuple(items[::2]) != record.in_dict + record.in_slots:
        raise changed(name)
    made: Any = object.__new__(kind)
    split = 2 * len(record.in_dict)
    if split:
        made.__dict__.update(zip(items[:split:2], items[1:split:2], strict=True))
    for field, value in zip(items[split::2], items[split + 1 :: 2], strict=True):
        object.__setattr__(made, field, value)
    return made


def record_of(kind: type) -> Record | None:
    """Where the fields of a class are, or None if it does not qualify; raises ``NotFit`` if it cannot be named."""
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
    return Record(name_for(kind), in_dict, tuple(field for field in fields if field in slots), _is_frozen(kind))


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


def _slots(base: type) -> tuple[str, ...]:
    slots: Any = base.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(_mangled(base, name) for name in names if name not in _NO_STATE)


def _mangled(base: type, name: str) -> str:
    private = name.startswith("__") and not name.endswith("__")
    return f"_{base.__name__.lstrip('_')}{name}" if private else name


def _is_plain(kind: Any) -> bool:
    """No state besides ``__dict__`` and slots, and no own way of being made or pickled that should be respected."""
    own_layout = any(base is not object and not base.__flags__ & HEAP_TYPE for base in kind.__mro__)
    return not own_layout and kind.__new__ is object.__new__ and not pickles_itself(kind)


def pickles_itself(kind: Any, base: type = object) -> bool:
    """Whether a class says itself how it is pickled, other than ``base`` and what dataclasses and attrs generate."""
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
