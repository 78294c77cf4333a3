"""What travels to the writer: one batch of facts per commit, sorted by run; it knows no SQL."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from treadle.events import Event

EVENTS_PER_COMMIT = 1000
"""A batch is closed at so many events, so no row of the log has many more."""


class Body(msgspec.Struct, array_like=True, gc=False):
    """What the log knows of one artifact, beside its name and version.

    ``data`` holds the bytes of a small one, ``location`` names the blob of a large one.
    ``digest`` is the content digest, ``checksum`` the BLAKE3 of the stored bytes.
    """

    digest: bytes
    checksum: bytes
    size: int
    codec: str
    type_name: str
    run: str
    call: str
    output: str
    at: float
    duration_s: float = 0.0
    data: bytes | None = None
    location: str = ""
    step: str = ""
    metadata: bytes = b""
    shape: str = ""


class ArtifactRow(msgspec.Struct, gc=False):
    """An artifact on its way to the log; the writer fills in ``id`` at commit, and ``version`` if it is not reserved.

    ``alias`` is a second name by which it is to be found.
    """

    name: str
    body: Body
    id: int = 0
    version: int = 0
    alias: str = ""


class Waiter(Protocol):
    """Somebody who wants to know that a commit has happened, or why not."""

    def on_commit(self, error: BaseException | None, /) -> None: ...


class Part:
    """What one run adds to one commit: all of it gets in, or none."""

    __slots__ = ("artifacts", "cache", "ended", "epoch", "events", "run_id", "waiters")

    def __init__(self, run_id: str, epoch: int) -> None:
        self.run_id = run_id
        self.epoch = epoch
        self.events: list[Event] = []
        self.artifacts: list[ArtifactRow] = []
        self.cache: list[tuple[bytes, int, int]] = []
        self.waiters: list[Waiter] = []
        self.ended: tuple[str, float] | None = None


class Batch:
    """What one transaction writes."""

    __slots__ = ("accepted", "count", "manifests", "parts", "sync")

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}
        self.accepted: list[list[Any]] = []
        self.manifests: list[tuple[bytes, bytes]] = []
        self.count = 0
        self.sync = False
