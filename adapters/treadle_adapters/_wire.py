"""What an engine and a worker say to each other, and how it is cut into frames; it knows no sockets and no processes.

A frame is four bytes of length (little-endian) and one message, a msgpack array that begins with its tag. The first
message of each side names the version of the protocol; a side that speaks another one is refused.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from treadle.contracts import Attempt, Performed, Raised
from treadle.errors import WorkerProtocolError

VERSION: Final = 1
MOST_BYTES: Final = 32 * 1024 * 1024
"""No frame is longer: what is large lies in the store, and a message names it."""
HEAD: Final = struct.Struct("<I")
ALONE: Final = "see what the step, or a library that it uses, writes to descriptors that are not its own"


# -- to the worker ------------------------------------------------------------------------


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Where it is: import path, folder, program, and the least level of logging; sent first, and when it changes."""

    version: int
    path: tuple[str, ...]
    folder: str
    program: str = ""
    log_level: int = 30


class Perform(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """An attempt; the answer carries its number."""

    number: int
    attempt: Attempt


class Leave(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Nothing more will come."""


ToWorker = Prepare | Perform | Leave


# -- from the worker ----------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """It listens."""

    version: int
    pid: int


class Said(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """A record of ``logging``."""

    level: str
    message: str


class Noted(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """Metadata of the call, a msgpack map."""

    facts: bytes


class Progressed(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """How far the step is."""

    done: float
    total: float | None = None


class Answered(msgspec.Struct, frozen=True, array_like=True, tag=24):
    """How an attempt ended, and whether the worker should perform no other."""

    number: int
    outcome: Performed | Raised
    is_spent: bool = False


FromWorker = Ready | Said | Noted | Progressed | Answered

_encode: Final = msgspec.msgpack.Encoder().encode
_to_worker: Final[msgspec.msgpack.Decoder[ToWorker]] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: Final[msgspec.msgpack.Decoder[FromWorker]] = msgspec.msgpack.Decoder(FromWorker)


def frame(message: ToWorker | FromWorker) -> bytes:
    """A message, ready to be sent.

    Raises:
        WorkerProtocolError: it is too large.

    >>> frame(Leave())
    b'\\x02\\x00\\x00\\x00\\x91\\x03'
    """
    body = _encode(message)
    if len(body) > MOST_BYTES:
        raise WorkerProtocolError(
            f"a message of {len(body):,} bytes is larger than the {MOST_BYTES:,} that a worker takes",
            fix="pass fewer values in one call, or put them into one list",
        )
    return HEAD.pack(len(body)) + body


class Frames:
    """Cuts what comes over a socket into messages.

    >>> frames = Frames()
    >>> frames.feed(frame(Ready(1, 7))[:5]), frames.feed(frame(Ready(1, 7))[5:])
    ([], [Ready(version=1, pid=7)])
    """

    def __init__(self) -> None:
        self._begun = bytearray()

    def feed(self, data: bytes) -> list[FromWorker]:
        """The messages that are complete with these bytes.

        Raises:
            WorkerProtocolError: what came is no message, or announces too large a one.
        """
        begun = self._begun
        begun += data
        found: list[FromWorker] = []
        start = 0
        while len(begun) - start >= HEAD.size:
            (length,) = HEAD.unpack_from(begun, start)
            if length > MOST_BYTES:
                raise WorkerProtocolError(
                    f"a worker announced a message of {length:,} bytes", why="it was killed for it", fix=ALONE
                )
            body = start + HEAD.size
            if len(begun) - body < length:
                break
            found.append(self._read(bytes(begun[body : body + length])))
            start = body + length
        if start:
            del begun[:start]
        return found

    @staticmethod
    def _read(body: bytes) -> FromWorker:
        try:
            return _from_worker.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise WorkerProtocolError(
                "a worker sent what is no message of the protocol", why=f"{error}; it was killed for it", fix=ALONE
            ) from error


def to_worker(body: bytes) -> ToWorker:
    """A message as the worker reads it; its sender is trusted."""
    return _to_worker.decode(body)


def length_of(head: bytes | bytearray) -> int:
    """What a frame's first four bytes announce."""
    length: int = HEAD.unpack(head)[0]
    return length
