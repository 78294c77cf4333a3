"""Envelopes of the language's and the standard library's containers; what lies in them is the walk's business."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from itertools import chain
from typing import Any

import msgspec
from msgspec.msgpack import Ext

from treadle.errors import DecodeError
from treadle.storage.codecs import tags
from treadle.storage.codecs.walk import NotFit, Source, Walk, packs, pairs, reads, to_bytes

# What an untrusted envelope may name as a factory: it is called as soon as a consumer misses a key.
_HARMLESS_FACTORIES = (bool, bytes, complex, dict, float, frozenset, int, list, set, str, tuple, Counter, OrderedDict)


@packs(list)
def _list(value: list[Any], walk: Walk) -> Any:
    walk.mutable = True
    return walk.trees(value)


@packs(dict)
def _dict(value: dict[Any, Any], walk: Walk) -> Any:
    walk.mutable = True
    if not walk.are_plain(map(type, value)):
        return walk.ext(tags.DICT, _flat(value))
    if walk.are_plain(map(type, value.values())):
        return value
    walk.enter(value)
    plain, tree = walk.plain, walk.tree
    out = {key: item if type(item) in plain else tree(item) for key, item in value.items()}
    walk.depth -= 1
    return out


@reads(tags.DICT)
def _read_dict(data: memoryview, source: Source) -> dict[Any, Any]:
    return dict(pairs(source.read(data)))


@packs(tuple)
def _tuple(value: tuple[Any, ...], walk: Walk) -> Ext:
    return walk.ext(tags.TUPLE, value)


@reads(tags.TUPLE)
def _read_tuple(data: memoryview, source: Source) -> tuple[Any, ...]:
    return tuple(source.read(data))


@packs(set)
def _set(value: set[Any], walk: Walk) -> Ext:
    walk.mutable = True
    return Ext(tags.SET, _sorted(value, walk))


@reads(tags.SET)
def _read_set(data: memoryview, source: Source) -> set[Any]:
    return set(source.read(data))


@packs(frozenset)
def _frozenset(value: frozenset[Any], walk: Walk) -> Ext:
    return Ext(tags.FROZENSET, _sorted(value, walk))


@reads(tags.FROZENSET)
def _read_frozenset(data: memoryview, source: Source) -> frozenset[Any]:
    return frozenset(source.read(data))


@packs(OrderedDict)
def _ordered_dict(value: OrderedDict[Any, Any], walk: Walk) -> Ext:
    walk.mutable = True
    _refuse_attributes(value)
    return walk.ext(tags.ORDERED_DICT, _flat(value))


@reads(tags.ORDERED_DICT)
def _read_ordered_dict(data: memoryview, source: Source) -> OrderedDict[Any, Any]:
    return OrderedDict(pairs(source.read(data)))


@packs(defaultdict)
def _default_dict(value: defaultdict[Any, Any], walk: Walk) -> Ext:
    walk.mutable = True
    return walk.ext(tags.DEFAULT_DICT, [value.default_factory, *_flat(value)])


@reads(tags.DEFAULT_DICT)
def _read_default_dict(data: memoryview, source: Source) -> defaultdict[Any, Any]:
    factory, *items = source.read(data)
    if not source.trusted and factory is not None and factory not in _HARMLESS_FACTORIES:
        raise DecodeError(
            "untrusted bytes name a defaultdict factory that is not a plain builtin type",
            fix="have the step return a dict, or trust its workers with Engine(trust_workers=True)",
        )
    return defaultdict(factory, pairs(items))


@packs(Counter)
def _counter(value: Counter[Any], walk: Walk) -> Ext:
    walk.mutable = True
    _refuse_attributes(value)
    return walk.ext(tags.COUNTER, _flat(value))


@reads(tags.COUNTER)
def _read_counter(data: memoryview, source: Source) -> Counter[Any]:
    return Counter(dict(pairs(source.read(data))))


@packs(deque)
def _deque(value: deque[Any], walk: Walk) -> Ext:
    walk.mutable = True
    return walk.ext(tags.DEQUE, [value.maxlen, *value])


@reads(tags.DEQUE)
def _read_deque(data: memoryview, source: Source) -> deque[Any]:
    maxlen, *items = source.read(data)
    return deque(items, maxlen)


def _flat(value: dict[Any, Any]) -> list[Any]:
    return list(chain.from_iterable(value.items()))


def _sorted(value: set[Any] | frozenset[Any], walk: Walk) -> bytes:
    return to_bytes([msgspec.Raw(item) for item in sorted(_encoded(value, walk))])


def _encoded(value: set[Any] | frozenset[Any], walk: Walk) -> Iterator[bytes]:
    walk.enter(value)
    for item in value:
        yield to_bytes(walk.tree(item))
    walk.depth -= 1


def _refuse_attributes(value: Any) -> None:
    if vars(value):
        raise NotFit(f"this {type(value).__name__} carries attributes of its own")
