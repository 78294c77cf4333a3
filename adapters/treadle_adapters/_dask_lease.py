"""One attempt on a dask worker: its place, its large values if it has to carry them, and what it says.

Knows one engine's processes there through its ``Tenant``; who is a tenant is in ``_dask_house``.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from treadle.contracts import Attempt, Performed
from treadle.errors import ExecutorUnavailable, StepCrashed, TreadleError, WorkerProtocolError
from treadle.worker import described, store_of
from treadle_adapters import _dask_words as words
from treadle_adapters import _wire as wire
from treadle_adapters._peer import Surroundings

if TYPE_CHECKING:
    from treadle_adapters._dask_house import House, Tenant

FLUSH_S: Final = 0.02
FLUSH_CHARS: Final = 32 * 1024
MOST_RECORDS: Final = 10_000
MOST_CHARS: Final = 4 * 1024 * 1024
"""Of one attempt; what is printed is bounded by ``_streams`` already."""


class Lease:
    """The place of one attempt, and the attempt."""

    def __init__(self, house: House, tenant: Tenant, key: str) -> None:
        self.tenant, self.key, self.topic = tenant, key, tenant.tenancy.topic
        self.task: asyncio.Task[None] | None = None
        self.is_over, self._is_left = asyncio.Event(), False
        self.carried: Attempt
        self._house, self._folder = house, ""
        self._said = Said(house.worker, self)

    def begin(self, order: words.Order, attempt: Attempt, blobs: Mapping[str, bytes] | None) -> None:
        """Begin the attempt."""
        self.task = asyncio.get_running_loop().create_task(self._perform(order, attempt, blobs))
        self.task.add_done_callback(self._see_cancelled)

    def leave(self) -> None:
        """Nobody wants it any more."""
        self._is_left = True
        if self.is_over.is_set():
            self._house.end(self)
        elif self.task is None or self.task.done():
            self._finish(words.Ended())
        else:
            self.task.cancel()

    def finish(self) -> None:
        """Nothing of it is wanted any more, and it had an outcome."""
        self._finish(words.Ended())

    def _see_cancelled(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._finish(words.Ended())  # one that is cancelled before its first step never comes to its `finally`

    async def _perform(self, order: words.Order, attempt: Attempt, blobs: Mapping[str, bytes] | None) -> None:
        ended = words.Ended()
        try:
            ended = await self._ended(order, attempt, blobs)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            ended = words.Ended(None, _failed(error))
        finally:
            if self._folder and isinstance(ended.outcome, Performed) and _is_large(ended.outcome):
                self._said.add(ended)
                self._said.flush()  # the engine fetches them, and lets go
            else:
                self._finish(ended)

    async def _ended(self, order: words.Order, attempt: Attempt, blobs: Mapping[str, bytes] | None) -> words.Ended:
        if blobs is not None:
            attempt = await asyncio.to_thread(self._carry, attempt, blobs)
        executor = await self.tenant.executor()
        return words.Ended(await executor.perform_in(_surroundings(order.around, attempt.main), attempt, self._said))

    def _carry(self, attempt: Attempt, blobs: Mapping[str, bytes]) -> Attempt:
        """Put large inputs into a folder of this worker."""
        self._folder = tempfile.mkdtemp(prefix="treadle-", dir=self._house.worker.local_directory)
        folder = Path(self._folder)
        self.carried = msgspec.structs.replace(attempt, store=str(folder / "blobs"), store_tmp=str(folder / "tmp"))
        store = store_of(self.carried)
        for payload in attempt.payloads():
            if payload.location:
                store.put(blobs[payload.location], payload.checksum)
        return self.carried

    def _finish(self, ended: words.Ended) -> None:
        if self.is_over.is_set():
            return
        self._said.add(ended)
        self._said.flush()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self.is_over.set()
        if self._is_left:
            self._house.end(self)


class Said:
    """Sends on what a step says, some of it at a time."""

    def __init__(self, worker: Any, lease: Lease) -> None:
        self._worker, self._lease = worker, lease
        self._parts: list[words.Part] = []
        self._chars = self._records = self._recorded = 0
        self._is_full = False
        self._timer: asyncio.TimerHandle | None = None

    def say(self, level: str, message: str, stream: str) -> None:
        """A line."""
        if stream == "log":
            if self._is_full:
                return
            self._records, self._recorded = self._records + 1, self._recorded + len(message)
            self._is_full = self._records > MOST_RECORDS or self._recorded > MOST_CHARS
            if self._is_full:
                level, message = "warning", "[more records of logging are not recorded]"
        self._chars += len(message)
        self.add(words.Line(level, message, stream))

    def note(self, facts: bytes) -> None:
        """Metadata."""
        self._chars += len(facts)
        self.add(wire.Noted(facts))

    def progress(self, done: float, total: float | None) -> None:
        """How far the step is."""
        self.add(wire.Progressed(done, total))

    def add(self, part: words.Part) -> None:
        """Take one thing more."""
        self._parts.append(part)
        if self._chars >= FLUSH_CHARS:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Send what there is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._parts:
            body = words.pack(self._parts)
            self._parts, self._chars = [], 0
            self._worker.log_event(self._lease.topic, {"key": self._lease.key, "body": body})


def _is_large(outcome: Performed) -> bool:
    return any(output.payload.location for output in outcome.outputs)


def _surroundings(around: words.Around, main: str) -> Surroundings:
    """The engine's import path, if this worker has the same installation; else its own first, and what exists here."""
    own = [os.path.abspath(entry) for entry in sys.path]
    if around.installation == words.installation():
        path = list(around.path)
    else:
        path = [*own, *(entry for entry in around.path if entry not in own and os.path.exists(entry))]
    path += [entry for entry in own if entry not in path]
    return path, around.folder if os.path.isdir(around.folder) else os.getcwd(), main, around.log_level


def _failed(error: BaseException) -> words.Failed:
    """An error of the processes, not of the step."""
    if isinstance(error, TreadleError):
        kinds = (WorkerProtocolError, StepCrashed, ExecutorUnavailable)
        kind = next((kind.__name__ for kind in kinds if isinstance(error, kind)), "StepCrashed")
        if isinstance(error, StepCrashed):
            return words.Failed(
                kind, error.what, error.why, error.fix, error.exit_code, error.signal, error.oom
            )  # fmt: skip
        return words.Failed(kind, error.what, error.why, error.fix)
    raised = described(error)
    return words.Failed("StepCrashed", f"{raised.type_name}: {raised.message}", raised.traceback)
