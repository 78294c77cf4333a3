"""Pickle, the codec of last resort: bytes, a digest as canonical as pickle allows, and why something has no pickle."""

from __future__ import annotations

import io
import pickle
from types import FunctionType
from typing import Any, Final

import blake3
from msgspec.msgpack import Ext

from treadle.errors import EncodeError
from treadle.storage.codecs import tags
from treadle.storage.codecs.arrays import is_array
from treadle.storage.codecs.walk import MANY_VISITS, NotFit, Stop, Walk, repeats, to_bytes

_PROTOCOL: Final = 5
# Loading what was just written finds classes that pickle cannot make again; above this size it costs too much.
_VERIFIED_BYTES: Final = 16 * 1024 * 1024
_SETS: Final = (set, frozenset)
# What the walk raises inside of a pickler, to give up or to start again.
_OF_THE_WALK: Final = (NotFit, EncodeError, OverflowError, UnicodeEncodeError)


class _Repetition(Exception):
    """The value has few parts that are shared very often; without the memo each is written out again and again."""


def dumps(value: object) -> bytes:
    """The pickle of a value.

    Raises:
        NotFit: it has none, or none that can be loaded again.
    """
    try:
        data = pickle.dumps(value, _PROTOCOL)
    except Exception as error:  # whatever a __reduce__ of the user's raises
        raise NotFit(_reason(error)) from error
    if len(data) <= _VERIFIED_BYTES:
        _verify(value, data)
    return data


def loads(data: bytes) -> Any:
    """The value of a pickle; only the gate may call it, after it has asked where the bytes come from."""
    return pickle.loads(data)


def pack_opaque(value: object, walk: Walk) -> Ext:
    """What stands in a digest for a value without envelope: the digest of its canonical pickle."""
    walk.mutable = True
    walk.exact = False
    walk.enter(value)
    out = Ext(tags.OPAQUE, blake3.blake3(_canonical(value, walk)).digest())
    walk.depth -= 1
    return out


def pack_whole(value: object, walk: Walk) -> Ext:
    """The same for a value that reaches itself through a set: here the order of its sets counts."""
    walk.mutable = True
    walk.exact = False
    try:
        data = _pickle_of(value, walk, shared=True, plain=True)
    except _OF_THE_WALK:
        raise
    except Exception as error:
        raise Stop(_reason(error)) from error
    return Ext(tags.OPAQUE, blake3.blake3(data).digest())


class _Canonical(pickle.Pickler):
    """A pickle that depends on the value only: not on the order of sets, on hashes, or on which equal parts are one."""

    def __init__(self, file: io.BytesIO, value: object, walk: Walk, *, shared: bool, plain: bool) -> None:
        super().__init__(file, _PROTOCOL)
        self._value = value
        # Without the memo two equal strings give the same bytes whether they are one object or two.
        self.fast = not shared
        self._walk = walk
        self._apart = () if plain else _SETS
        self._shared = shared
        self._visits = 0
        self._seen: set[int] = set()

    def persistent_id(self, obj: object) -> bytes | None:
        if not self._shared:
            self._visits += 1
            if self._visits > MANY_VISITS and repeats(self._visits, obj, self._seen):
                raise _Repetition
        if obj is self._value:
            return None
        kind = type(obj)
        if (
            kind in self._apart
            or (kind is FunctionType and self._walk.code_digest is not None)
            or (self._apart and is_array(obj))
        ):
            return to_bytes(self._walk.tree(obj))
        return None


def _canonical(value: object, walk: Walk) -> bytes:
    depth = walk.depth
    try:
        return _pickle_of(value, walk, shared=False)
    except _OF_THE_WALK:
        raise
    except Exception:
        walk.depth = depth
    try:
        # A value that contains itself, or nearly all of whose parts are shared, needs the memo.
        return _pickle_of(value, walk, shared=True)
    except _OF_THE_WALK:
        raise
    except Exception as error:
        raise Stop(_reason(error)) from error


def _pickle_of(value: object, walk: Walk, *, shared: bool, plain: bool = False) -> bytes:
    file = io.BytesIO()
    _Canonical(file, value, walk, shared=shared, plain=plain).dump(value)
    return file.getvalue()


def _verify(value: object, data: bytes) -> None:
    try:
        again = loads(data)
    except Exception as error:
        raise NotFit(f"its pickle cannot be loaded again: {_reason(error)}") from error
    if type(again) is not type(value):
        raise NotFit(f"its pickle comes back as {type(again).__qualname__}")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error) or type(error).__name__
