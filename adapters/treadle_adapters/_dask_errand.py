"""One attempt on its way to a dask worker and back: where it is, and how it ended; and the errors that say why not.

Knows what workers say (``_dask_words``), and no connection: that is ``_dask_link``.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from treadle.contracts import Attempt, Sink
from treadle.errors import ExecutorUnavailable, StepCrashed, TreadleError, WorkerProtocolError
from treadle_adapters import _dask_words as words
from treadle_adapters import _wire as wire

KINDS: Final = {kind.__name__: kind for kind in (StepCrashed, WorkerProtocolError, ExecutorUnavailable)}
GIVEN_UP: Final = "it has given up the place of the attempt"


class Errand:
    """An attempt on its way.

    ``arrived`` is done when a worker has a place for it, ``ended`` when it has been performed; both carry the error if
    that will never be.

    Args:
        key: of its place, dask's name for it.
        attempt: what is to be performed.
        sink: takes what the step says.
    """

    def __init__(self, key: str, attempt: Attempt, sink: Sink) -> None:
        loop = asyncio.get_running_loop()
        self.key, self.attempt, self.sink = key, attempt, sink
        self.place: Any = None
        self.watch: asyncio.Task[None] | None = None
        self.address, self.threads = "", 1
        self.is_begun = self.is_called_off = False
        self.arrived: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[words.Ended] = loop.create_future()

    def begin(self) -> None:
        """It begins now, and its time counts."""
        self.is_begun = True
        begun = getattr(self.sink, "begun", None)
        if begun is not None:
            begun()

    def fail(self, error: TreadleError) -> None:
        """It ends with an error, unless it has ended already."""
        for future in (self.arrived, self.ended):
            if not future.done():
                future.set_exception(error)
                future.exception()  # it may be that nobody waits for this one

    def lose(self, why: str) -> None:
        """It ends because what it was on is gone."""
        self.fail(self.lost(why))

    def lost(self, why: str) -> StepCrashed:
        """The error of that."""
        where = f"the dask worker {self.address}" if self.address else "the dask cluster"
        return StepCrashed(
            f"{where} was lost with the attempt on it", why=why,
            fix="retry=1 has the step tried again on another one", exit_code=None, signal=None, oom=False,
        )  # fmt: skip

    # -- what the worker says -------------------------------------------------------------

    def hear(self, said: dict[str, Any]) -> None:
        """Take a message of the worker; nonsense ends the errand."""
        try:
            if "body" not in said:
                self._arrive(said)
                return
            for part in words.unpack_parts.decode(said["body"]):
                self._take(part)
        except (msgspec.MsgspecError, UnicodeDecodeError, TypeError, ValueError, KeyError) as error:
            self.fail(WorkerProtocolError("a dask worker sent what is no message of the protocol", why=str(error)))

    def _arrive(self, said: dict[str, Any]) -> None:
        if self.arrived.done():
            self.lose("dask gave its task to another worker")
            return
        self.address, self.threads = str(said["address"]), int(said["threads"])
        ours = words.versions()
        theirs = {name: said.get(name) for name in ours}
        if theirs == ours:
            self.arrived.set_result(None)
        else:
            self.fail(
                ExecutorUnavailable(
                    f"the dask worker {self.address} has {words.shown(theirs)}, and the engine {words.shown(ours)}",
                    fix="install the same release of treadle and the same version of Python on both",
                )
            )

    def _take(self, part: words.Part) -> None:
        if isinstance(part, words.Line):
            self.sink.say(part.level, part.message, part.stream)
        elif isinstance(part, wire.Noted):
            self.sink.note(part.facts)
        elif isinstance(part, wire.Progressed):
            self.sink.progress(part.done, part.total)
        elif not self.ended.done():
            self.ended.set_result(part)

    def why_not(self, failed: words.Failed) -> TreadleError:
        """The error of an attempt that could not be performed to its end."""
        why = f"{failed.why}; on the dask worker {self.address}" if failed.why else f"on the dask worker {self.address}"
        kind = KINDS.get(failed.kind, StepCrashed)
        if not issubclass(kind, StepCrashed):
            return kind(failed.what, why=why, fix=failed.fix)
        return kind(
            failed.what, why=why, fix=failed.fix, exit_code=failed.exit_code, signal=failed.signal, oom=failed.oom
        )  # fmt: skip


def not_taken(error: BaseException) -> TreadleError:
    """Why a dask worker could not even hold a place."""
    if isinstance(error, ImportError):
        return ExecutorUnavailable(
            "a dask worker cannot import treadle", why=str(error), fix="install treadle[dask] where the workers run"
        )
    name = type(error).__name__
    if name == "KilledWorker":
        return StepCrashed("dask workers died with the attempt", why=str(error), exit_code=None, signal=None, oom=False)
    return ExecutorUnavailable("a dask worker could not begin the attempt", why=f"{name}: {error}")
