"""Codecs that users register, and the built-in ones of the same shape; who is asked, and in which order."""

from __future__ import annotations

import threading
from typing import Any, Final, cast

from treadle.contracts import Codec
from treadle.errors import DecodeError, EncodeError, OptionError
from treadle.storage.codecs import frames
from treadle.storage.codecs.walk import NotFit, Refused

BUILTIN_NAMES: Final = frozenset({"msgpack", "bytes", "str", "numpy", "pickle"})
_adding = threading.Lock()
_registered: tuple[Codec, ...] = ()


def register_codec(codec: Codec) -> None:
    """Use a codec for the values that it accepts, also inside of other values, before all built-in ones.

    Values of the language's own plain types and containers are never offered. A codec of a name that is registered
    already replaces the earlier one.

    Args:
        codec: see ``Codec``.

    Raises:
        OptionError: the codec has no name, or that of a built-in one.
    """
    global _registered
    name = getattr(codec, "name", None)
    if not isinstance(name, str) or not name or name in BUILTIN_NAMES or name.startswith("parquet"):
        raise OptionError(
            f"a codec cannot be named {name!r}",
            why="the name is stored beside the bytes and must be its own",
            fix=f"any other name than {', '.join(sorted(BUILTIN_NAMES))} and parquet...",
        )
    with _adding:
        _registered = (*(known for known in _registered if known.name != name), codec)


def is_used() -> bool:
    """Whether any codec is registered."""
    return bool(_registered)


def find(value: object) -> Codec | None:
    """The codec that accepts the value: the newest registered one, else a built-in one for data frames."""
    for codec in reversed(_registered):
        if codec.accepts(value):
            return codec
    return frames.find(value)


def named(name: str) -> Codec | None:
    """The codec of that name."""
    return next((codec for codec in _registered if codec.name == name), None) or frames.named(name)


def encoded(codec: Codec, value: object) -> bytes:
    """The codec's bytes of a value; whatever goes wrong in it is an ``EncodeError``, or ``NotFit`` to try the next."""
    try:
        data = cast("object", codec.encode(value))
    except (NotFit, EncodeError):
        raise
    except Exception as error:
        raise Refused(f"codec {codec.name!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(data, bytes | bytearray):
        raise Refused(f"codec {codec.name!r} gave {type(data).__name__}, not bytes")
    return bytes(data)


def own_digest(codec: Codec, value: object) -> bytes | None:
    """The codec's own digest of a value's content, or None if it has none."""
    own: Any = getattr(codec, "digest", None)
    if own is None:
        return None
    try:
        return bytes(own(value))
    except Exception as error:
        raise EncodeError(
            f"codec {codec.name!r} cannot digest a value", why=str(error), path="value", value=value
        ) from error


def decoded(codec: Codec | None, name: str, data: bytes, *, trusted: bool) -> Any:
    """The value of a codec's bytes, if there is such a codec and if it may be given them."""
    if codec is None:
        raise DecodeError(
            f"codec {name!r} is not known here", fix="register_codec(...) before the value is loaded", codec=name
        )
    if not trusted and getattr(codec, "safe", False) is not True:
        raise DecodeError(
            f"codec {name!r} is not declared safe, and the bytes come from an untrusted worker",
            fix="set safe = True on the codec if its decode runs no code that the bytes choose",
            codec=name,
        )
    return codec.decode(data)
