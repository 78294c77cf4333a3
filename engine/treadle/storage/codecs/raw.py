"""Large bytes, text and arrays that are the whole value: stored as they are, so that other tools can read them."""

from __future__ import annotations

from typing import Any, Final

from msgspec.msgpack import Ext

from treadle.storage.codecs import arrays, tags
from treadle.storage.codecs.walk import NotFit, to_bytes

LARGE_BYTES: Final = 64 * 1024
"""Above this size, in bytes, an artifact is a file of its own."""


def as_file(value: Any, above: int = LARGE_BYTES) -> tuple[str, bytes] | None:
    """The codec and the bytes of a value above a size that is better stored without an envelope, or None."""
    if isinstance(value, bytes | str):
        return None if type(value) not in (bytes, str) else _text(value, above)
    if arrays.is_array(value) and value.nbytes > above:
        try:
            return "numpy", arrays.to_npy(value)
        except NotFit:
            return None
    return None


def tree(codec: str, checksum: bytes) -> Ext:
    """What the content digest of such a value is taken of: hashing megabytes twice would be a waste."""
    return Ext(tags.FILE, to_bytes((codec, checksum)))


def from_file(codec: str, data: bytes) -> Any:
    """The value of bytes that ``as_file`` has given."""
    if codec == "bytes":
        return bytes(data)
    if codec == "str":
        return bytes(data).decode()
    return arrays.from_npy(data)


def _text(value: bytes | str, above: int) -> tuple[str, bytes] | None:
    if isinstance(value, bytes):
        return ("bytes", value) if len(value) > above else None
    if len(value) * 4 <= above:
        return None
    try:
        data = value.encode()
    except UnicodeEncodeError:
        return None
    return ("str", data) if len(data) > above else None
