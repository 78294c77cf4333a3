"""Values of registered and built-in codecs in a walk: their bytes in what is stored, their content in digests."""

from __future__ import annotations

from typing import Any

import blake3
from msgspec.msgpack import Ext

from treadle.contracts import Codec
from treadle.storage.codecs import registry, tags
from treadle.storage.codecs.walk import NotFit, Source, Walk, reads, to_bytes


def pack_with(codec: Codec, value: object, walk: Walk) -> Ext:
    """What stands for a value of this codec in an envelope or a digest."""
    walk.mutable = walk.mutable or getattr(codec, "mutable", True)
    walk.exact = False
    if walk.digesting and walk.depth:
        # By the digest that it has alone, so that a container's can be taken without having the value.
        digest = blake3.blake3(to_bytes(content_tree(codec, value, walk))).digest()
        return Ext(tags.FOREIGN, to_bytes((codec.name, digest)))
    if walk.digesting:
        return content_tree(codec, value, walk)
    return Ext(tags.FOREIGN, to_bytes((codec.name, encoded(codec, value, walk))))


def encoded(codec: Codec, value: object, walk: Walk) -> bytes:
    """The codec's bytes; a codec that knows a value's contents is held to giving them back.

    Raises:
        NotFit: the value is not for this codec after all.
    """
    if not hasattr(codec, "content"):
        return registry.encoded(codec, value)
    try:
        data = codec.encode(value)
        same = _contents(codec, value, walk) == _contents(codec, codec.decode(data), walk)
    except NotFit:
        raise
    except Exception as error:  # every library has its own errors for what its format cannot hold
        raise NotFit(f"{codec.name} cannot hold it: {error}") from error
    if not same:
        raise NotFit(f"it does not come back from {codec.name} as it was")
    return data


def content_tree(codec: Codec, value: object, walk: Walk, data: bytes | None = None) -> Ext:
    """What stands for the value in a digest: its contents, else the codec's digest, else that of its bytes."""
    content: Any = getattr(codec, "content", None)
    if content is not None:
        return walk.ext(tags.FOREIGN, (codec.name, content(value)))
    own = registry.own_digest(codec, value)
    digest = own or blake3.blake3(data or registry.encoded(codec, value)).digest()
    return walk.ext(tags.FOREIGN, (codec.name, digest))


@reads(tags.FOREIGN)
def _read_foreign(data: memoryview, source: Source) -> Any:
    name, inner = source.read(data)
    return registry.decoded(registry.named(name), name, inner, trusted=source.trusted)


def _contents(codec: Codec, value: object, walk: Walk) -> bytes:
    other = Walk(walk.find, opaque=walk.opaque, digesting=True)
    return to_bytes(content_tree(codec, value, other))
