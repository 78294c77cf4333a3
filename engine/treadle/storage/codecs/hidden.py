"""The envelope of a ``Secret``: never in what is stored, by a keyed hash in what is hashed, whole only for workers."""

from __future__ import annotations

from typing import Any

from msgspec.msgpack import Ext

from treadle.secret import Secret
from treadle.storage.codecs import tags
from treadle.storage.codecs.walk import NotFit, Refused, Source, Walk, packs, reads


@packs(Secret)
def _secret(value: Secret[Any], walk: Walk) -> Ext:
    walk.exact = False
    if walk.digesting:
        if walk.code_digest is None:
            raise NotFit("a Secret counts by the key of a home, and there is none here")
        return Ext(tags.CODE, bytes(walk.code_digest(value)))
    if walk.reveals:
        return walk.ext(tags.SECRET, (value.value,))
    raise Refused("a Secret is never stored; let the step return what it made with it, not the secret itself")


@reads(tags.SECRET)
def _read_secret(data: memoryview, source: Source) -> Secret[Any]:
    (value,) = source.read(data)
    return Secret(value)
