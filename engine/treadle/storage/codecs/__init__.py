"""Values to bytes and back: what a step returns becomes an artifact, and an artifact becomes the same value again.

``gate`` chooses the codec and is the only way in and out. ``envelope`` is the common codec, tagged msgpack: ``walk``
walks, ``leaves``, ``containers``, ``classes``, ``records`` and ``arrays`` know the types, ``names`` and ``tags`` what
stands for them. ``raw`` stores large bytes, text and arrays as they are, ``frames`` data frames as Parquet,
``registry`` and ``foreign`` what users register, and ``pickled`` the rest. ``located`` finds the part to blame,
``unopened`` says what large bytes of strangers are, ``spliced`` digests a container around stored parts.
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
    in_pieces,
    parse_digest,
    plain_digest,
)
from treadle.storage.codecs.registry import register_codec
from treadle.storage.codecs.spliced import Stored
from treadle.storage.codecs.spliced import digest as spliced_digest
from treadle.storage.codecs.unopened import Unopened, unopened

__all__ = [
    "Codec",
    "Encoded",
    "Stored",
    "Unopened",
    "checksum",
    "decode",
    "digest",
    "encode",
    "for_others",
    "format_digest",
    "in_pieces",
    "parse_digest",
    "plain_digest",
    "register_codec",
    "spliced_digest",
    "unopened",
]
