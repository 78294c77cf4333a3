"""Large bytes that a stranger has encoded: what they are and the digest of their content, derived, never believed.

Bytes, text and arrays are looked at as they pass by, piece by piece; a data frame has to be read once, since it counts
by its contents. What a consumer would get by decoding is decided by the bytes alone, so they can be stored as they
are. All else (envelopes, which name classes; pickles; registered codecs) is not for here.
"""

from __future__ import annotations

import codecs as texts
from collections.abc import Iterable
from typing import Any, Final

import blake3
import msgspec

from treadle.errors import DecodeError
from treadle.storage.codecs import arrays, frames, gate, raw
from treadle.storage.codecs.walk import to_bytes

_SAMPLES: Final[dict[str, Any]] = {"bytes": b"", "str": ""}


class Unopened(msgspec.Struct, frozen=True):
    """What bytes are, without their value.

    ``sample`` is of the value's type and shape, for those who ask what is known of it; its content is another one.
    """

    digest: bytes
    type_name: str
    sample: Any


def unopened(codec: str, size: int, checksum: bytes, pieces: Iterable[memoryview]) -> Unopened | None:
    """What large bytes are; ``None`` if that takes decoding and encoding them.

    Args:
        codec: as the stranger names it.
        size: how many bytes there are.
        checksum: their BLAKE3, which ``pieces`` is going to be held to by who gives them.
        pieces: the bytes, one after another; they are taken to the end if the answer is not ``None``.

    Raises:
        DecodeError: they are none of this codec.
    """
    if size <= raw.LARGE_BYTES:
        return None
    frame = frames.named(codec)
    if frame is not None:
        return _frame(codec, pieces)
    if codec == "numpy":
        sample = _array(size, pieces)
    elif codec in _SAMPLES:
        sample = _text(codec, pieces)
    else:
        return None
    if sample is None:
        return None
    digest = blake3.blake3(to_bytes(raw.tree(codec, checksum))).digest()
    return Unopened(digest, _name(sample), sample)


def _text(codec: str, pieces: Iterable[memoryview]) -> Any:
    reader = texts.getincrementaldecoder("utf-8")("strict") if codec == "str" else None
    try:
        for piece in pieces:
            if reader is not None:
                reader.decode(bytes(piece))
        if reader is not None:
            reader.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _wrong(codec, str(error)) from error
    return _SAMPLES[codec]


def _array(size: int, pieces: Iterable[memoryview]) -> Any:
    """An array of the same type and shape that has no memory; ``None`` for structures, whose padding is to be zero."""
    sample: Any = None
    for number, piece in enumerate(pieces):
        if number == 0:
            sample = arrays.shape_of_npy(bytes(piece), size)
            if sample is None or sample.nbytes <= raw.LARGE_BYTES:
                return None
    return sample


def _frame(codec: str, pieces: Iterable[memoryview]) -> Unopened:
    value = gate.decode(codec, b"".join(pieces), trusted=False)
    return Unopened(gate.digest(value, allow_pickle=False), _name(value), value)


def _name(value: Any) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _wrong(codec: str, why: str) -> DecodeError:
    return DecodeError(f"stored {codec} bytes cannot be decoded", why=why, fix="run the step again", codec=codec)
