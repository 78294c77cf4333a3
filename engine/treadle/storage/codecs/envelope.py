"""The tagged msgpack envelope as a whole: a value's bytes, its canonical bytes for the digest, and its way back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

# Importing them enters their packers and readers.
from treadle.storage.codecs import arrays, classes, containers, foreign, hidden, leaves, names, pickled, registry
from treadle.storage.codecs.walk import (
    LAZY_PACKERS,
    CodeDigest,
    NotFit,
    Packer,
    Source,
    Stop,
    Walk,
    to_bytes,
)

__all__ = ["canonical", "containers", "hidden", "leaves", "pack", "unpack", "walking"]

_SOURCES: Final = {trusted: Source(trusted=trusted) for trusted in (False, True)}


def pack(value: object, code_digest: CodeDigest | None = None, *, reveals: bool = False) -> tuple[bytes, Walk]:
    """The envelope of a value, and the walk that tells what was seen on the way.

    Raises:
        NotFit: some part of it has no faithful envelope.
    """
    return walking(lambda walk: walk.tree(value), code_digest=code_digest, reveals=reveals)


def canonical(value: object, code_digest: CodeDigest | None, *, allow_pickle: bool) -> bytes:
    """The bytes that the content digest is taken of; they are never stored.

    Raises:
        NotFit: the value cannot be digested.
    """
    opaque = pickled.pack_opaque if allow_pickle else None
    visits: tuple[Callable[[Walk], Any], ...] = (
        lambda walk: walk.tree(value),
        # It contains itself, or is too deep to be walked: then it counts as a whole.
        lambda walk: pickled.pack_opaque(value, walk),
        lambda walk: pickled.pack_whole(value, walk),
    )
    failure = NotFit()
    for visit in visits if allow_pickle else visits[:1]:
        try:
            return walking(visit, opaque=opaque, code_digest=code_digest, digesting=True)[0]
        except Stop as error:
            failure = error
    raise failure


def inner(value: object, code_digest: CodeDigest | None, *, allow_pickle: bool) -> bytes:
    """The canonical bytes of a value as they stand inside those of a container.

    Raises:
        NotFit, OverflowError, UnicodeEncodeError: the value makes a difference to all that is around it.
    """
    walk = Walk(_find, opaque=pickled.pack_opaque if allow_pickle else None, code_digest=code_digest, digesting=True)
    return to_bytes(walk.tree([value]))[1:]


def unpack(data: bytes | memoryview, *, trusted: bool) -> Any:
    """The value of an envelope; raises whatever broken bytes lead to."""
    return _SOURCES[trusted].read(data)


def walking(visit: Callable[[Walk], Any], **options: Any) -> tuple[bytes, Walk]:
    """Visit a value once more with care if msgpack refuses an int or a str that it cannot hold."""
    for careful in (False, True):
        walk = Walk(_find, careful=careful, **options)
        try:
            return to_bytes(visit(walk)), walk
        except (OverflowError, UnicodeEncodeError) as error:
            if careful:
                raise NotFit(str(error)) from error
        except RecursionError as error:
            raise Stop("it is nested too deeply") from error
        except ValueError as error:
            if "2**32" in str(error):  # msgpack's limit for one part
                raise NotFit(str(error)) from error
            raise
    raise AssertionError  # the second turn returns or raises


def _find(value: object, walk: Walk) -> Packer:
    codec = registry.find(value)
    if codec is not None:
        return partial(foreign.pack_with, codec)
    if classes.is_code(value):
        return classes.pack_code
    kind = type(value)
    packer = _lazy(kind) or arrays.packer_for(kind) or classes.packer_for(kind)
    if packer is not None:
        if not registry.is_used():  # a registered codec may accept one value of a type and not the next
            walk.plans[kind] = packer
        return packer
    raise NotFit(f"{kind.__module__}.{kind.__qualname__} has no envelope")


def _lazy(kind: type) -> Packer | None:
    packer = LAZY_PACKERS.get(f"{kind.__module__}:{kind.__qualname__}")
    return packer if packer is not None and names.leads_to(kind.__module__, kind.__qualname__) is kind else None
