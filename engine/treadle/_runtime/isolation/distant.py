"""Values that were made elsewhere and are large: they stay where they are until somebody here wants them.

Between isolated steps such a value passes as the name of its artifact, so the engine's process never holds it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from treadle._runtime.calls.call import StepFuture
from treadle._runtime.context import active_call
from treadle.contracts import Payload
from treadle.storage import views
from treadle.storage.local_blobs import LocalBlobs

if TYPE_CHECKING:
    from treadle._runtime.plan import Plan
    from treadle._runtime.resources.threads import ThreadPool
    from treadle._runtime.views.artifact import Vault
    from treadle.storage.rows import ArtifactRow

T = TypeVar("T")
_NOTHING: Any = object()


class Unloaded:
    """Stands for the value of a call whose outputs are in the store; loads it once, for all who ask.

    Args:
        rows: its outputs.
        shape: in which shape the body returned them.
        plan: of its step.
        vault: where they are.
        io: threads to load on.
    """

    __slots__ = ("_io", "_lock", "_parts", "_plan", "_rows", "_shape", "_vault")

    def __init__(self, rows: Sequence[ArtifactRow], shape: str, plan: Plan, vault: Vault, io: ThreadPool) -> None:
        self._rows, self._shape, self._plan, self._vault, self._io = tuple(rows), shape, plan, vault, io
        self._parts: list[Any] = [_NOTHING] * len(self._rows)
        self._lock = threading.Lock()

    def part(self, index: int) -> Any:
        """What stands for one of several outputs: its value if it is small, else another one of these."""
        row = self._rows[index]
        if self._parts[index] is not _NOTHING or row.body.data is not None:
            return self._part(index)
        return Unloaded((row,), "", self._plan, self._vault, self._io)

    def read(self) -> Any:
        """The value; blocks if it was not loaded yet.

        Raises:
            ArtifactDamaged, DecodeError: it cannot be had.
        """
        with self._lock:
            values = [self._part(index) for index in range(len(self._rows))]
        return values[0] if len(values) == 1 else self._plan.join(values, self._shape, self._plan.output_names)

    async def load(self) -> Any:
        """The value, loaded on a thread."""
        if all(part is not _NOTHING for part in self._parts):
            return self.read()
        return await self._io.run(self.read)

    def _part(self, index: int) -> Any:
        if self._parts[index] is _NOTHING:
            self._parts[index] = value_of_row(self._vault, self._rows[index])
        return self._parts[index]

    def __repr__(self) -> str:
        return f"<value of {', '.join(row.name for row in self._rows)}, not loaded>"


def value_of_row(vault: Vault, row: ArtifactRow) -> Any:
    """The value of an artifact; an array in a file of this machine is a view of that file."""
    body = row.body
    if body.data is None and body.codec == "numpy" and is_in_store(row):
        payload = Payload(body.codec, body.digest, body.checksum, body.size, None, body.location)
        return views.load(vault.blobs, payload)
    return vault.value(row)


def verify(vault: Vault, row: ArtifactRow) -> None:
    """Make sure that the bytes of an artifact are those that were stored, without keeping them.

    Raises:
        ArtifactDamaged: they are not.
    """
    body = row.body
    if isinstance(vault.blobs, LocalBlobs) and is_in_store(row):
        vault.blobs.mapped(body.location, body.size, body.checksum).release()
    else:
        vault.data(row)


def is_in_store(row: ArtifactRow) -> bool:
    """Whether the bytes lie in the engine's own store, and not at a route's place."""
    from treadle._runtime.views.artifact import ROUTED

    return bool(row.body.location) and not row.body.location.startswith(ROUTED)


class DistantFuture(StepFuture[T]):
    """The future of an isolated call: its value is loaded when somebody awaits it or asks for its result.

    A task that is woken asks for the result, too, before its coroutine goes on, and throws it away: that must not block
    the loop. ``_wakes`` counts those that wait to be woken.
    """

    __slots__ = ("_wakes",)
    _wakes: int

    def __await__(self) -> Generator[Any, None, T]:
        if not self.done():
            waiting = active_call.get()
            if waiting is not None:
                self._call.check_cycle(waiting)
            self._asyncio_future_blocking = True
            self._wakes = getattr(self, "_wakes", 0) + 1
            yield self
        self._call.observed()
        value: Any = asyncio.Future.result(self)
        if type(value) is Unloaded:
            value = yield from value.load().__await__()
        return cast("T", value)

    __iter__ = __await__

    def result(self, timeout: float | None = None) -> T:
        """As ``StepFuture.result``; a large value is loaded, which blocks."""
        value: Any = super().result(timeout)
        if type(value) is not Unloaded:
            return cast("T", value)
        if getattr(self, "_wakes", 0):
            self._wakes -= 1
            return cast("T", value)
        return cast("T", value.read())


def part_of(plan: Plan, value: Any, output: str) -> Any:
    """One of several outputs, of what the body returned or of what stands for that."""
    index = plan.output_names.index(output)
    return value.part(index) if type(value) is Unloaded else plan.split(value)[0][index]


def arrived(value: Any) -> Any:
    """The value itself, loaded if it was not; blocks then."""
    return value.read() if type(value) is Unloaded else value


def is_awaited(futures: Sequence[asyncio.Future[Any]]) -> bool:
    """Whether somebody here waits for one of the futures."""
    return any(getattr(future, "_callbacks", None) for future in futures)
