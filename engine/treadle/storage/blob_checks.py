"""What every store of blobs has in common: how bytes are addressed, checked and refused; does no I/O.

A location is the BLAKE3 digest of the bytes, 64 hexadecimal digits as ``ab/cdef…``. Nothing that a user names
ever becomes part of a path, and a location that comes from elsewhere is checked against that form before it is used.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

from blake3 import blake3

from treadle.errors import ArtifactDamaged, ArtifactStoreError

DIGEST_BYTES: Final = 32

_LOCATION = re.compile(r"[0-9a-f]{2}/[0-9a-f]{62}")


def location_of(checksum: bytes) -> str:
    """The location of bytes with that BLAKE3 digest.

    >>> location_of(bytes(32))[:8]
    '00/00000'
    """
    if len(checksum) != DIGEST_BYTES:
        raise ValueError(f"a BLAKE3 digest has {DIGEST_BYTES} bytes, not {len(checksum)}")
    digits = checksum.hex()
    return f"{digits[:2]}/{digits[2:]}"


def is_location(text: str) -> bool:
    """Whether a text can be joined to a path as a location."""
    return _LOCATION.fullmatch(text) is not None


def verified(data: bytes, size: int, checksum: bytes, path: str) -> bytes:
    """The same bytes, if they are those that were stored.

    Raises:
        ArtifactDamaged: they are not.
    """
    if len(data) != size:
        damaged(path, f"it has {len(data)} bytes instead of {size}")
    if blake3(data).digest() != checksum:
        damaged(path, "its content has changed")
    return data


def damaged(path: str, why: str) -> NoReturn:
    """Refuse to give bytes out."""
    raise ArtifactDamaged(
        f"the artifact {path} is damaged and was not decoded",
        why=why,
        fix="perform its step again, or restore the file from a backup",
        path=path,
    )


def store_error(path: str, doing: str, error: BaseException) -> ArtifactStoreError:
    """What callers see when the store itself fails."""
    return ArtifactStoreError(
        f"the artifact store cannot {doing} {path}",
        why=str(error) or type(error).__name__,
        fix="check free space, rights and the connection to the store, then try again",
        path=path,
    )
