"""Values to bytes and back: what a step returns becomes an artifact, and an artifact becomes the same value again.

``gate`` chooses the codec and is the only way in and out. ``envelope`` is the common codec, tagged msgpack: ``walk``
walks, ``leaves``, ``containers``, ``classes``, ``records`` and ``arrays`` know the types, ``names`` and ``tags`` what
stands for them. ``raw`` stores large bytes, text and arrays as they are, ``frames`` data frames as Parquet,
``registry`` and ``foreign`` what users register, and ``pickled`` the rest. ``located`` finds the part to blame.
"""

from treadle.contracts import Codec
from treadle.storage.codecs.gate import (
    Encoded,
    checksum,
    decode,
    digest,
    encode,
    for_others,
    format_digest,
    parse_digest,
)
from treadle.storage.codecs.registry import register_codec

__all__ = [
    "Codec",
    "Encoded",
    "checksum",
    "decode",
    "digest",
    "encode",
    "for_others",
    "format_digest",
    "parse_digest",
    "register_codec",
]
