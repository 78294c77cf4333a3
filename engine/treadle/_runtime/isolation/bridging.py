"""How large values pass between the engine and workers that cannot reach its store: through a folder, for a while."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.storage.local_blobs import LocalBlobs

if TYPE_CHECKING:
    from treadle.contracts import ArtifactStore


class Bridge:
    """A private folder through which large values pass if workers cannot reach the engine's own store.

    A file has the name of its content, and a worker that makes what is there already writes nothing. So one that is not
    needed any more is only moved aside, until all attempts have ended that may have counted on it.
    """

    def __init__(self) -> None:
        import tempfile  # here and below: most engines bridge nothing

        self._folder = Path(tempfile.mkdtemp(prefix="treadle-"))
        self.blobs = LocalBlobs(self._folder / "blobs", self._folder / "tmp")
        self._aside = self._folder / "aside"
        self._aside.mkdir()
        self._needed: dict[str, int] = {}
        self._moved: dict[str, int] = {}  # location to the number of the first attempt after it
        self._attempts: dict[int, None] = {}
        self._count = 0
        self._lock = threading.RLock()  # what is given back by the collector may come at any time

    # -- attempts -------------------------------------------------------------------------

    def begun(self) -> int:
        """An attempt begins; gives its number."""
        with self._lock:
            self._count += 1
            self._attempts[self._count] = None
            return self._count

    def ended(self, number: int) -> None:
        """An attempt has ended, and its outputs are taken: remove what only it could have counted on."""
        with self._lock:
            del self._attempts[number]
            first = next(iter(self._attempts), self._count + 1)
            for location in [location for location, since in self._moved.items() if since <= first]:
                del self._moved[location]
                self._place_aside(location).unlink(missing_ok=True)

    # -- values ---------------------------------------------------------------------------

    def lend(self, data: bytes, checksum: bytes) -> str:
        """Have bytes there until they are given back as often as they were lent."""
        with self._lock:
            location = self.blobs.put(data, checksum)
            self._needed[location] = self._needed.get(location, 0) + 1
        return location

    def hold(self, locations: tuple[str, ...]) -> None:
        """Have what workers have put there until it is given back."""
        with self._lock:
            for location in locations:
                self._needed[location] = self._needed.get(location, 0) + 1
                path = self.blobs.folders[0] / location
                if location in self._moved and not path.exists():
                    path.parent.mkdir(exist_ok=True)
                    self._place_aside(location).replace(path)
                    del self._moved[location]

    def give_back(self, locations: tuple[str, ...]) -> None:
        """Move aside what nobody needs any more."""
        with self._lock:
            for location in locations:
                self._needed[location] -= 1
                if self._needed[location]:
                    continue
                del self._needed[location]
                try:
                    (self.blobs.folders[0] / location).replace(self._place_aside(location))
                except OSError:
                    continue  # a worker has said that it was there
                self._moved[location] = self._count + 1

    def take(self, location: str, size: int, checksum: bytes) -> bytes:
        """Bytes that a worker has put there, and that are held."""
        return self.blobs.get(location, size, checksum)

    def _place_aside(self, location: str) -> Path:
        return self._aside / location.replace("/", "-")

    def remove(self) -> None:
        """Remove the folder."""
        import shutil

        shutil.rmtree(self._folder, ignore_errors=True)


def bridge_for(store: ArtifactStore) -> Bridge | None:
    """What stands between workers and a store; ``None`` for a folder of this machine, which they reach themselves."""
    return None if isinstance(store, LocalBlobs) else Bridge()


class Lent:
    """Files on the bridge that a call needs; they are given back when nobody has this any more."""

    __slots__ = ("__weakref__",)

    def __init__(self, bridge: Bridge, locations: tuple[str, ...]) -> None:
        weakref.finalize(self, bridge.give_back, locations).atexit = False


class UnderWay:
    """An attempt that may put files on the bridge, as long as somebody has this."""

    __slots__ = ("__weakref__",)

    def __init__(self, bridge: Bridge) -> None:
        weakref.finalize(self, bridge.ended, bridge.begun()).atexit = False
