"""What an engine and a dask worker say to each other; knows neither connections nor processes.

Everything is bytes of msgpack inside dask's own messages, so that nothing of it needs dask's pickles. Only the first
word of a worker is a plain dict: two releases that differ in all else still understand it.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import msgspec

from treadle.contracts import Performed, Raised
from treadle_adapters._wire import Noted, Progressed

VERSION: Final = 1


class Around(msgspec.Struct, frozen=True, array_like=True):
    """What steps are to find as in the engine's process: import path, folder, logging level; and its installation."""

    path: tuple[str, ...]
    folder: str
    log_level: int
    installation: tuple[str, str]


class Order(msgspec.Struct, frozen=True, array_like=True):
    """What a dask worker is to do: an ``Attempt`` (msgpack), and a blob that shows whether it reaches the store."""

    attempt: bytes
    around: Around
    proof: tuple[str, int] | None


class Tenancy(msgspec.Struct, frozen=True, array_like=True):
    """On whose behalf a dask worker works, where it answers, and what its processes may have."""

    engine: str
    topic: str
    env: tuple[str, ...] = ()
    grace_s: float = 2.0


# -- from the dask worker -----------------------------------------------------------------


class Line(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A line of output, or a record of ``logging``."""

    level: str
    message: str
    stream: str


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The attempt has no outcome; ``kind`` names the error of ``treadle.errors`` that says so."""

    kind: str
    what: str
    why: str = ""
    fix: str = ""
    exit_code: int | None = None
    signal: int | None = None
    oom: bool = False


class Ended(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The last that is said of an attempt."""

    outcome: Performed | Raised | None = None
    failed: Failed | None = None


Part = Line | Noted | Progressed | Ended

pack: Final = msgspec.msgpack.Encoder().encode
unpack_parts: Final[msgspec.msgpack.Decoder[tuple[Part, ...]]] = msgspec.msgpack.Decoder(tuple[Part, ...])
unpack_order: Final[msgspec.msgpack.Decoder[Order]] = msgspec.msgpack.Decoder(Order)
unpack_tenancy: Final[msgspec.msgpack.Decoder[Tenancy]] = msgspec.msgpack.Decoder(Tenancy)


def here(key: str, address: str, threads: int) -> dict[str, Any]:
    """The first that is said of an attempt: a dask worker has a place for it, and what it is."""
    return {"key": key, "address": address, "threads": threads, **versions()}


@cache
def _release() -> str:
    try:
        return importlib.metadata.version("treadle")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # run from its sources


def versions() -> dict[str, Any]:
    """What has to be the same on both sides.

    >>> sorted(versions())
    ['protocol', 'python', 'treadle']
    """
    return {"protocol": VERSION, "treadle": _release(), "python": f"{sys.version_info[0]}.{sys.version_info[1]}"}


def shown(versions: Mapping[str, Any]) -> str:
    """Them, in words.

    >>> shown({"treadle": "0.1.0", "protocol": 1, "python": "3.11"})
    'treadle 0.1.0 (protocol 1) on Python 3.11'
    """
    return f"treadle {versions['treadle']} (protocol {versions['protocol']}) on Python {versions['python']}"


def installation() -> tuple[str, str]:
    """Which Python, with which packages; equal in two processes that share them."""
    return sys.prefix, msgspec.__file__ or ""
