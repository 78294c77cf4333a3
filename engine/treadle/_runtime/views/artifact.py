"""A stored output as users hold it: facts at once, the value on demand, also after its engine is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from treadle._runtime.calls import facts
from treadle._runtime.views import page
from treadle._runtime.views.lineage import Lineage, trace
from treadle.errors import ArtifactDamaged, RouteNotFound
from treadle.storage import codecs
from treadle.storage.places import Place, quoted
from treadle.storage.rows import ArtifactRow

if TYPE_CHECKING:
    from treadle._runtime.views.archive import Archive
    from treadle.contracts import ArtifactStore

ROUTED = "route:"
"""Begins the location of bytes that lie at a route's place: ``route:<type>/<name>/<version>``."""

T_co = TypeVar("T_co", covariant=True)


class Producer(msgspec.Struct, frozen=True):
    """Where an artifact comes from."""

    run_id: str
    call: str
    step: str


class Vault:
    """Turns artifact rows into values; all a result needs after its engine is gone."""

    __slots__ = ("allow_pickle", "archive", "blobs", "home", "places")

    def __init__(self, home: str, blobs: ArtifactStore, *, allow_pickle: bool) -> None:
        self.home, self.blobs, self.allow_pickle = home, blobs, allow_pickle
        self.archive: Archive | None = None
        self.places: Mapping[str, Place] = {}

    def data(self, row: ArtifactRow) -> bytes:
        """The verified bytes of an artifact.

        Raises:
            ArtifactDamaged: they are missing or not those that were stored.
        """
        body = row.body
        if body.data is None:
            try:
                if body.location.startswith(ROUTED):
                    place, location = self.place_of(row)
                    return place.get(location, body.size, body.checksum)
                return self.blobs.get(body.location, body.size, body.checksum)
            except ArtifactDamaged as error:
                raise _damaged(row, error.why or error.what, error.path) from error
        if len(body.data) != body.size or codecs.checksum(body.data) != body.checksum:
            raise _damaged(row, "its bytes in the log's database are not those that were stored", self.home)
        return body.data

    def value(self, row: ArtifactRow) -> Any:
        """Verify and decode an artifact."""
        value = self.decode(row.body.codec, self.data(row))
        wrapper = facts.wrapper_in(row.body.metadata) if row.body.location.startswith(ROUTED) else None
        if wrapper is None:
            return value
        whole = self.decode(*wrapper)
        whole.value = value
        return whole

    def place_of(self, row: ArtifactRow) -> tuple[Place, str]:
        """The place of a routed artifact, and where it lies there.

        Raises:
            RouteNotFound: this engine has no route for its type, or none to a place.
        """
        key, _, location = row.body.location.removeprefix(ROUTED).partition("/")
        place = next((place for known, place in self.places.items() if quoted(known) == key), None)
        if place is None:
            name = row.body.type_name
            raise RouteNotFound(
                f"artifact {row.name} version {row.version}, a {name}, lies at a route that this engine does not have",
                fix="open the engine with the routes=... that it was stored with",
                type_name=name,
            )
        return place, location

    def decode(self, codec: str, data: bytes) -> Any:
        """Decode bytes that this home's own processes have written."""
        return codecs.decode(codec, data, trusted=True, allow_pickle=self.allow_pickle)

    def is_there(self, row: ArtifactRow) -> bool:
        """Whether the bytes exist with the right size; it does not read them."""
        if row.body.data is not None:
            return True
        if row.body.location.startswith(ROUTED):
            try:
                place, location = self.place_of(row)
            except RouteNotFound:
                return False
            return place.exists(location, row.body.size)
        return self.blobs.exists(row.body.location, row.body.size)

    @staticmethod
    def is_quick(row: ArtifactRow) -> bool:
        """Whether the value is so small that it may be decoded on the event loop."""
        return row.body.data is not None


def _damaged(row: ArtifactRow, why: str, path: str) -> ArtifactDamaged:
    return ArtifactDamaged(
        f"artifact {row.name} version {row.version} is damaged and was not decoded",
        why=why,
        fix="run its pipeline again, or restore the home from a backup",
        path=path,
    )


class Artifact(Generic[T_co]):
    """An immutable stored output: its name, version and origin, and its value on demand.

    Attributes are facts from the log; ``load()`` and ``read()`` fetch, verify and decode the value.
    """

    __slots__ = ("_row", "_vault")

    def __init__(self, row: ArtifactRow, vault: Vault) -> None:
        self._row, self._vault = row, vault

    @property
    def id(self) -> int:
        """Its number in this home; 0 while its commit is under way."""
        return self._row.id

    @property
    def name(self) -> str:
        """The name of the output (the step's name, if the step has one output)."""
        return self._row.name

    @property
    def version(self) -> int:
        """Its version among the artifacts of this name, from 1; 0 while its commit is under way, which gives it.

        With ``durability="strict"`` the commit comes before the value.
        """
        return self._row.version

    @property
    def digest(self) -> str:
        """The content digest, ``"blake3:<hex>"``: equal for equal values of equal types."""
        return codecs.format_digest(self._row.body.digest)

    @property
    def size(self) -> int:
        """Number of stored bytes."""
        return self._row.body.size

    @property
    def codec(self) -> str:
        """How the value became bytes."""
        return self._row.body.codec

    @property
    def type(self) -> str:
        """The value's type, by name."""
        return self._row.body.type_name

    @property
    def created_at(self) -> float:
        """Wall-clock time of its storing, seconds since the epoch."""
        return self._row.body.at

    @property
    def metadata(self) -> dict[str, Any]:
        """What is known of the value beside its content: shape, columns, size, class, and a wrapper's own facts."""
        return facts.shown(self._row.body.metadata)

    @property
    def producer(self) -> Producer:
        """The run, call and step that made it."""
        body = self._row.body
        return Producer(body.run, body.call, body.step)

    def read(self) -> T_co:
        """Fetch, verify and decode the value; blocks.

        Raises:
            ArtifactDamaged: the bytes are missing or not those that were stored; they were not decoded.
            DecodeError: the codec, a class or pickle is not available here.
        """
        value: T_co = self._vault.value(self._row)
        return value

    async def load(self) -> T_co:
        """As ``read``, without blocking the event loop."""
        if self._vault.is_quick(self._row):
            return self.read()
        return await asyncio.to_thread(self.read)

    def is_in(self, archive: Archive) -> bool:
        """Whether it belongs to that home."""
        own = self._vault.archive
        return own is not None and own.path == archive.path

    def lineage(self) -> Lineage:
        """What it was made of, back through every producer that the log knows; ``str`` draws it as a tree. Blocks."""
        assert self._vault.archive is not None
        return trace(self._vault.archive, self._row)

    def __repr__(self) -> str:
        return f"<Artifact {self.name} v{self.version} {self.type} {self.size} bytes>"

    def _repr_html_(self) -> str:
        producer = self.producer
        made = f"call {producer.call} of run {producer.run_id}" if producer.call else f"run {producer.run_id}"
        facts = [("type", self.type), ("size", f"{self.size:,} bytes"), ("codec", self.codec), ("made by", made)]
        facts += [("digest", self.digest), *((name, repr(value)) for name, value in self.metadata.items())]
        return page.facts_page(f"{self.name}, version {self.version}", facts)
