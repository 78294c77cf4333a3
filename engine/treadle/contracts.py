"""What adapters fulfil: the protocols by which the engine reaches codecs, bytes, executors and the clock.

Their docstrings list obligations; the suites in ``treadle.testing`` hold every implementation to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Codec(Protocol):
    """How values of some type become bytes and back.

    Obligations: ``decode(encode(v))`` equals ``v`` with the same types at every depth; ``encode`` and ``decode`` may be
    called from several threads at once; ``name`` is stored beside the bytes and stays the same for ever.

    Three more attributes are looked up and may be left out:

    * ``digest(value) -> bytes``: a digest of the content. Without it the encoded bytes are hashed, so ``encode`` must
      then give equal bytes for equal values, in every process.
    * ``safe = True``: ``decode`` runs no code that the bytes choose; only then it is given untrusted bytes.
    * ``mutable = False``: its values cannot be changed in place.
    """

    @property
    def name(self) -> str:
        """The codec's name in the log, for example ``"onnx"``."""
        ...

    def accepts(self, value: object) -> bool:
        """Whether this codec is the one for the value; cheap, and it imports nothing."""
        ...

    def encode(self, value: Any) -> bytes:
        """The value as bytes."""
        ...

    def decode(self, data: bytes) -> object:
        """The value of bytes that ``encode`` has given."""
        ...


class ArtifactStore(Protocol):
    """Where large artifacts are kept. Every method blocks, may be called from any thread, and never hangs."""

    def put(self, data: bytes | memoryview, checksum: bytes) -> str:
        """Store bytes durably and atomically under their BLAKE3 digest; gives their location.

        Bytes that are there already are checked, not written again, and count as new for a collection.

        Raises:
            ArtifactStoreError: they could not be stored; nothing is left of the attempt.
        """
        ...

    def get(self, location: str, size: int, checksum: bytes) -> bytes:
        """Read bytes whose length and digest are right.

        Raises:
            ArtifactDamaged: they are missing, or are not those that were stored.
            ArtifactStoreError: the store could not be read; they may be sound.
        """
        ...

    def exists(self, location: str, size: int) -> bool:
        """Whether a blob of that size is there; its bytes are not read."""
        ...

    def delete(self, location: str, unless_used_since: float | None = None) -> bool:
        """Remove a blob; says whether there was one to remove.

        Args:
            location: as ``put`` or ``list`` gave it.
            unless_used_since: the time that ``list`` gave; the blob stays if a ``put`` has found it since then.
        """
        ...

    def list(self) -> Iterator[tuple[str, int, float]]:
        """Location, size in bytes and time of last use (seconds since 1970) of every blob."""
        ...


class Timer(Protocol):
    """Something that will happen, and can be called off."""

    def cancel(self) -> None:
        """Call it off; a second time, or too late, this does nothing."""
        ...


class Clock(Protocol):
    """Where an engine's time and chance come from, so that a test can hold both still."""

    def time(self) -> float:
        """Wall-clock time, seconds since 1970; it may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds that only go forward; for durations."""
        ...

    def random(self) -> float:
        """An even random number in [0, 1)."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    def call_later(self, seconds: float, fn: Callable[..., object], *args: Any) -> Timer:
        """Have a function called on the engine's loop after some time."""
        ...
