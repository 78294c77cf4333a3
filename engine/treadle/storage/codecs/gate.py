"""The gate between values and bytes: which codec a value gets, and the one place where bytes become values again."""

from __future__ import annotations

from typing import Any, Final

import blake3
import msgspec

from treadle.contracts import Codec
from treadle.errors import DecodeError, EncodeError
from treadle.storage.codecs import arrays, envelope, foreign, pickled, raw, registry
from treadle.storage.codecs.located import locate
from treadle.storage.codecs.walk import PACKERS, SCALARS, CodeDigest, NotFit, Refused, to_bytes

_hash: Final = blake3.blake3
_are_scalars: Final = SCALARS.issuperset
_MAX_PLACE: Final = 120
_LARGE: Final = raw.LARGE_BYTES
_SCALAR_NAMES: Final[dict[type, str]] = {kind: f"builtins.{kind.__name__}" for kind in SCALARS}
_FIX: Final = (
    "return plain data, define the class or function at the top level of a module, register_codec(...) for its type, "
    "or persist=False on the step"
)


class Encoded(msgspec.Struct, frozen=True, gc=False):
    """A value as bytes.

    ``codec`` names how; ``data`` is what is stored and ``checksum`` its BLAKE3, for integrity only. ``digest`` is the
    digest of the content: equal for equal values of equal types, in every process, whatever the bytes are.
    ``type_name`` is for people; ``mutable`` says that a consumer could change the value, or a part of it, in place.
    """

    codec: str
    data: bytes
    digest: bytes
    checksum: bytes
    type_name: str
    mutable: bool


def encode(
    value: object, *, code_digest: CodeDigest | None = None, allow_pickle: bool = True, reveals: bool = False
) -> Encoded:
    """The bytes of a value, by the first codec that gives it back as it is.

    Args:
        value: anything; it is not changed, and must not be while this runs.
        code_digest: the fingerprint of a function or class, which then counts by it in the digest, not by its name.
        allow_pickle: whether pickle is tried last.
        reveals: the bytes go to a worker and nowhere else, so a ``Secret`` may be among them.

    Raises:
        EncodeError: no codec can store it; ``path`` is the place inside the value.

    >>> encoded = encode({"rows": (1, 2)})
    >>> encoded.codec, decode(encoded.codec, encoded.data)
    ('msgpack', {'rows': (1, 2)})
    """
    data = _fast(type(value), value)
    if data is None:
        return _encode_any(value, code_digest, allow_pickle, reveals)
    digest = _hash(data).digest()
    name = _SCALAR_NAMES.get(type(value))
    if name is None:
        return Encoded("msgpack", data, digest, digest, f"builtins.{type(value).__name__}", True)
    return Encoded("msgpack", data, digest, digest, name, False)


def plain_digest(value: object) -> bytes:
    """The digest of the content of plain data, such as a number or a text; the one that ``encode`` gives.

    >>> plain_digest("hi") == encode("hi").digest
    True
    """
    data = _fast(type(value), value)
    return _encode_any(value, None, True).digest if data is None else _hash(data).digest()


def in_pieces(value: Any) -> tuple[Encoded, tuple[bytes | memoryview, ...]] | None:
    """A large array as what ``encode`` would give, its bytes apart and not copied; ``None`` for all other values.

    ``data`` of the first is empty then; the pieces are good as long as the array is not changed.
    """
    if not arrays.is_array(value) or value.nbytes <= _LARGE or _codec_for(value) is not None:
        return None
    try:
        pieces = arrays.npy_pieces(value)
    except NotFit:
        return None
    hasher = _hash()
    for piece in pieces:
        hasher.update(piece)
    check = hasher.digest()
    content = _hash(to_bytes(raw.tree("numpy", check))).digest()
    return Encoded("numpy", b"", content, check, "numpy.ndarray", True), pieces


def for_others(value: object, encoded: Encoded) -> Encoded:
    """The same content in bytes that other programs can read, where there are such: also small arrays, bytes and text.

    >>> for_others("hi", encode("hi")).data
    b'hi'
    """
    file = raw.as_file(value, -1) if encoded.codec == "msgpack" else None
    if file is None:
        return encoded
    return msgspec.structs.replace(encoded, codec=file[0], data=file[1], checksum=checksum(file[1]))


def digest(value: object, *, code_digest: CodeDigest | None = None, allow_pickle: bool = True) -> bytes:
    """The content digest alone, 32 bytes: what ``encode`` gives, and also of what can be hashed but not stored.

    Raises:
        EncodeError: the value cannot be hashed; ``path`` is the place inside it.

    >>> digest(1) == encode(1).digest, digest(1) == digest(True)
    (True, False)
    """
    data = _fast(type(value), value)
    if data is None:
        file = None if _codec_for(value) else raw.as_file(value)
        if file is not None:
            data = to_bytes(raw.tree(file[0], checksum(file[1])))
        else:
            data = _canonical(value, code_digest, allow_pickle)
    return _hash(data).digest()


def decode(codec: str, data: bytes, *, trusted: bool = True, allow_pickle: bool = True) -> Any:
    """The value of stored bytes. Nothing else in this package turns bytes into objects.

    Args:
        codec: what ``encode`` named, from the log; it is never guessed from the bytes.
        data: the bytes, of which the caller has checked length and checksum.
        trusted: whether this home's own processes wrote them. Untrusted bytes are never unpickled, import no module,
            and name no functions.
        allow_pickle: whether trusted bytes may be unpickled.

    Raises:
        DecodeError: the bytes are broken, need something that is not there, or may not be decoded.
    """
    try:
        if codec == "msgpack":
            return envelope.unpack(data, trusted=trusted)
        if codec == "pickle":
            return _unpickle(data, trusted and allow_pickle, trusted)
        if codec in registry.BUILTIN_NAMES:
            return raw.from_file(codec, data)
        return registry.decoded(registry.named(codec), codec, data, trusted=trusted)
    except DecodeError:
        raise
    except Exception as error:  # broken bytes can raise anything, RecursionError and MemoryError among it
        raise DecodeError(
            f"stored {codec} bytes cannot be decoded",
            why=f"{type(error).__name__}: {error}",
            fix="run the step that made them again",
            codec=codec,
        ) from error


def checksum(data: bytes) -> bytes:
    """BLAKE3 of bytes, 32 bytes."""
    return _hash(data).digest()


def format_digest(value: bytes) -> str:
    """A digest as text, with its algorithm.

    >>> format_digest(bytes(32))[:12]
    'blake3:00000'
    """
    return f"blake3:{value.hex()}"


def parse_digest(text: str) -> bytes:
    """The digest that ``format_digest`` has written; raises ``ValueError`` for anything else.

    >>> parse_digest(format_digest(bytes(32))) == bytes(32)
    True
    """
    algorithm, _, digits = text.partition(":")
    if algorithm != "blake3" or len(digits) != 64 or digits != digits.lower():
        raise ValueError(f"not a blake3 digest: {text!r}")
    return bytes.fromhex(digits)


def _fast(kind: type[object], value: Any) -> bytes | None:
    """The envelope of a small scalar, or of a list or dict of scalars: what nearly every call passes. None: ask on."""
    try:
        if kind in SCALARS:
            if (kind is str or kind is bytes) and len(value) > _LARGE // 4:
                return None
        elif kind is list:
            if not _are_scalars(map(type, value)):
                return None
        elif kind is not dict or not (_are_scalars(map(type, value)) and _are_scalars(map(type, value.values()))):
            return None
        return to_bytes(value)
    except (OverflowError, UnicodeEncodeError):
        return None


def _encode_any(value: object, code_digest: CodeDigest | None, allow_pickle: bool, reveals: bool = False) -> Encoded:
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    codec = _codec_for(value)
    try:
        if codec is not None:
            return _encode_foreign(codec, value, name)
        file = raw.as_file(value)
        if file is not None:
            check = checksum(file[1])
            return Encoded(*file, _hash(to_bytes(raw.tree(file[0], check))).digest(), check, name, file[0] == "numpy")
        data, walk = envelope.pack(value, code_digest, reveals=reveals)
    except Refused as error:
        raise _not_storable(value, str(error), allow_pickle) from error
    except NotFit as error:
        return _encode_pickle(value, code_digest, allow_pickle, name, error)
    check = checksum(data)
    content = check if walk.exact else _hash(_canonical(value, code_digest, allow_pickle)).digest()
    return Encoded("msgpack", data, content, check, name, walk.mutable)


def _codec_for(value: object) -> Codec | None:
    return None if type(value) in PACKERS else registry.find(value)


def _encode_foreign(codec: Codec, value: object, name: str) -> Encoded:
    data = b""

    def visit(walk: Any) -> Any:
        nonlocal data
        data = foreign.encoded(codec, value, walk)
        return foreign.content_tree(codec, value, walk, data)

    canonical, _ = envelope.walking(visit, opaque=pickled.pack_opaque, digesting=True)
    return Encoded(
        codec.name, data, _hash(canonical).digest(), checksum(data), name, getattr(codec, "mutable", True) is not False
    )


def _encode_pickle(
    value: object, code_digest: CodeDigest | None, allow_pickle: bool, name: str, reason: NotFit
) -> Encoded:
    if not allow_pickle:
        raise _not_storable(value, str(reason), allow_pickle) from reason
    try:
        data = pickled.dumps(value)
    except NotFit as error:
        raise _not_storable(value, str(error), allow_pickle) from error
    content = _hash(_canonical(value, code_digest, allow_pickle)).digest()
    return Encoded("pickle", data, content, checksum(data), name, True)


def _canonical(value: object, code_digest: CodeDigest | None, allow_pickle: bool) -> bytes:
    try:
        return envelope.canonical(value, code_digest, allow_pickle=allow_pickle)
    except NotFit as error:
        path, part = locate(value, lambda item: not _digests(item, code_digest, allow_pickle))
        raise EncodeError(
            f"{path} cannot be hashed: it is {_described(part)}", why=str(error), fix=_FIX, path=path, value=value
        ) from error


def _not_storable(value: object, reason: str, allow_pickle: bool) -> EncodeError:
    path, part = locate(value, lambda item: not _stores(item, allow_pickle))
    place = path if len(path) <= _MAX_PLACE else f"{path[:_MAX_PLACE]}..."
    why = reason if allow_pickle else f"{reason}; and pickle is not allowed here"
    return EncodeError(f"{place} cannot be stored: it is {_described(part)}", why=why, fix=_FIX, path=path, value=value)


def _stores(value: object, allow_pickle: bool) -> bool:
    try:
        envelope.pack(value)
    except Refused:
        return False
    except NotFit:
        if not allow_pickle:
            return False
        try:
            pickled.dumps(value)
        except NotFit:
            return False
    return True


def _digests(value: object, code_digest: CodeDigest | None, allow_pickle: bool) -> bool:
    try:
        envelope.canonical(value, code_digest, allow_pickle=allow_pickle)
    except NotFit:
        return False
    return True


def _described(part: object) -> str:
    label: object = getattr(part, "__qualname__", None)
    kind = f"{type(part).__module__}.{type(part).__qualname__}".removeprefix("builtins.")
    return f"a {kind}" if label is None else f"the {kind} {label}"


def _unpickle(data: bytes, allowed: bool, trusted: bool) -> Any:
    if not allowed:
        raise DecodeError(
            "stored value is a pickle, which may not be loaded here",
            why="pickle is switched off for this engine" if trusted else "an untrusted worker wrote it",
            fix="allow_pickle=True on the engine" if trusted else "trust_workers=True on the engine, if you do",
            codec="pickle",
        )
    return pickled.loads(data)
