"""The content digest of a container in which large stored values stand, taken without having those as values.

The canonical bytes of a container hold those of its parts unchanged, behind heads that say how long they are; so the
bytes of stored parts are put in as they come out of their files. A container of which that does not hold, or a part of
a codec whose bytes are not its content, is not for here: ``digest`` says so, and the value has to be had. One rarity
is not seen: a part with integers beyond 64 bits in it has another digest here; that costs a hit, and never gives a
wrong one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Final, NamedTuple

import blake3
from msgspec.msgpack import Ext

from treadle._core.binding import find
from treadle.storage.codecs import arrays, envelope, frames, registry, tags
from treadle.storage.codecs.walk import SCALARS, CodeDigest, NotFit, to_bytes

_MOST: Final = 2**32 - 1


class Stored(NamedTuple):
    """A stored value: what the log knows of it, and its bytes, piece by piece and checked."""

    codec: str
    digest: bytes
    checksum: bytes
    size: int
    pieces: Callable[[], Generator[memoryview, None, None]]


class _Spliced(NamedTuple):
    """Canonical bytes of known length; of a stored part they are those of its file from ``start`` on."""

    size: int
    chunks: list[bytes | tuple[Stored, int]]


def digest(
    value: Any,
    kind: type,
    stored: Callable[[Any], Stored],
    *,
    code_digest: CodeDigest | None = None,
    allow_pickle: bool = True,
) -> bytes | None:
    """What ``codecs.digest`` would give for the value with its parts; ``None`` if it cannot be had in this way.

    Args:
        value: lists, tuples and dicts, and what is in them.
        kind: the class of what stands in the place of stored parts.
        stored: says what an instance of it stands for.
        code_digest: the fingerprint of a function or class.
        allow_pickle: whether what has no other form counts by its pickle.

    Raises:
        ArtifactDamaged: the bytes of a part are not those that were stored.
    """

    def splice(part: Any) -> _Spliced:
        if type(part) is kind:
            return _part(stored(part))
        if next(find((part,), (kind,)), None) is not None:
            return _MAKERS[type(part)](part, splice)
        return _of(envelope.inner(part, code_digest, allow_pickle=allow_pickle))

    if type(value) is kind:
        return stored(value).digest
    try:
        whole = splice(value)
    except (NotFit, OverflowError, UnicodeEncodeError, RecursionError, ValueError):
        return None
    hasher = blake3.blake3()
    for chunk in whole.chunks:
        if isinstance(chunk, bytes):
            hasher.update(chunk)
        else:
            _update(hasher, *chunk)
    return hasher.digest()


def _update(hasher: Any, known: Stored, start: int) -> None:
    with closing(known.pieces()) as pieces:
        for piece in pieces:
            hasher.update(piece[start:])
            start = max(0, start - len(piece))


# -- containers ---------------------------------------------------------------------------


def _list(value: Any, splice: Callable[[Any], _Spliced]) -> _Spliced:
    return _joined(_head(len(value), 0x90, 16, None, b"\xdc", b"\xdd"), [splice(item) for item in value])


def _tuple(value: Any, splice: Callable[[Any], _Spliced]) -> _Spliced:
    return _extension(tags.TUPLE, _list(value, splice))


def _dict(value: dict[Any, Any], splice: Callable[[Any], _Spliced]) -> _Spliced:
    if not SCALARS.issuperset(map(type, value)):
        return _extension(tags.DICT, _list([part for pair in value.items() for part in pair], splice))
    parts = [part for key, item in value.items() for part in (_of(to_bytes(key)), splice(item))]
    return _joined(_head(len(value), 0x80, 16, None, b"\xde", b"\xdf"), parts)


def _set(value: Any, splice: Callable[[Any], _Spliced]) -> _Spliced:
    raise NotFit("the items of a set are sorted by their bytes")


_MAKERS: Final[dict[type, Callable[[Any, Callable[[Any], _Spliced]], _Spliced]]] = {
    list: _list, tuple: _tuple, dict: _dict, set: _set, frozenset: _set,
}  # fmt: skip


# -- parts --------------------------------------------------------------------------------


def _part(known: Stored) -> _Spliced:
    whole = _Spliced(known.size, [(known, 0)])
    if known.codec == "bytes":
        return _joined(_head(known.size, 0, 0, b"\xc4", b"\xc5", b"\xc6"), [whole])
    if known.codec == "str":
        return _joined(_head(known.size, 0xA0, 32, b"\xd9", b"\xda", b"\xdb"), [whole])
    if known.codec == "numpy":
        return _array(known)
    if known.codec == "msgpack" and known.digest == known.checksum:
        return whole
    codec = registry.named(known.codec)
    if codec is not None or frames.named(known.codec) is not None:
        return _of(to_bytes(Ext(tags.FOREIGN, to_bytes((known.codec, known.digest)))))
    raise NotFit(f"{known.codec} bytes are not the content")


def _array(known: Stored) -> _Spliced:
    with closing(known.pieces()) as pieces:
        head, start = arrays.canonical_head(bytes(next(pieces)))
    body = _Spliced(known.size - start, [(known, start)])
    return _extension(tags.ARRAY, _joined(head, [body]))


# -- msgpack ------------------------------------------------------------------------------


def _of(data: bytes) -> _Spliced:
    return _Spliced(len(data), [data])


def _joined(head: bytes, parts: list[_Spliced]) -> _Spliced:
    chunks: list[bytes | tuple[Stored, int]] = [head]
    for part in parts:
        chunks += part.chunks
    return _Spliced(len(head) + sum(part.size for part in parts), chunks)


def _extension(tag: int, inner: _Spliced) -> _Spliced:
    fixed = {1: b"\xd4", 2: b"\xd5", 4: b"\xd6", 8: b"\xd7", 16: b"\xd8"}.get(inner.size)
    head = fixed or _head(inner.size, 0, 0, b"\xc7", b"\xc8", b"\xc9")
    return _joined(head + bytes([tag]), [inner])


def _head(count: int, small: int, below: int, one: bytes | None, two: bytes, four: bytes) -> bytes:
    """What announces so many items or bytes: one byte if there are few, else also one, two or four bytes of length."""
    if count < below:
        return bytes([small | count])
    if one is not None and count < 2**8:
        return one + struct.pack(">B", count)
    if count < 2**16:
        return two + struct.pack(">H", count)
    if count > _MOST:
        raise NotFit("a part of 4 GiB has no place in msgpack")
    return four + struct.pack(">I", count)
