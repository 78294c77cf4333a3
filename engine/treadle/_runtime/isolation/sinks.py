"""What an isolated step says, on its way into the log of its run: as it comes, and bounded.

A worker may be hostile, and its step may log in an endless loop: neither may fill the log or this process's memory, and
what is no message of ours must not get into the log, where it would be found by who reads it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from treadle import events as ev
from treadle.errors import WorkerProtocolError
from treadle.secret import masked

if TYPE_CHECKING:
    from treadle._runtime.calls.call import Call

MESSAGE_CHARS: Final = 64 * 1024
MOST_ITEMS: Final = 10_000
MOST_BYTES: Final = 4 * 1024 * 1024
"""Of one attempt: so many records of logging, and so much metadata; streams are bounded where they are read."""
MOST_PROGRESS: Final = 1_000
PROGRESS_S: Final = 0.1
"""Beyond so many of one attempt, how far it is gets recorded so often at the most."""

_facts: Final = msgspec.msgpack.Decoder(dict[str, Any])


class CallSink:
    """Writes what an isolated step says into the log of its run."""

    __slots__ = (
        "_attempt", "_begun", "_bytes", "_call", "_items", "_name", "_next_progress", "_progress", "_run", "_step",
    )  # fmt: skip

    def __init__(self, call: Call) -> None:
        self._call, self._run, self._attempt = call, call.run, call.attempt
        self._begun: asyncio.Future[None] | None = None
        self._name, self._step = call.name, call.plan.name
        self._items = self._bytes = self._progress = 0
        self._next_progress = 0.0

    def awaited(self) -> asyncio.Future[None]:
        """Done when the executor says that the attempt has begun."""
        self._begun = self._run.loop.create_future()
        return self._begun

    def begun(self) -> None:
        """The attempt has waited in its executor, and begins now."""
        if self._begun is not None and not self._begun.done():
            self._begun.set_result(None)

    def say(self, level: str, message: str, stream: str) -> None:
        """A line of output, or a record of ``logging``."""
        if stream != "log" or self._has_room(len(message)):
            self._log(level, masked(message)[:MESSAGE_CHARS], stream)

    def note(self, facts: bytes) -> None:
        """Metadata.

        Raises:
            WorkerProtocolError: they are none.
        """
        try:
            _facts.decode(facts)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise WorkerProtocolError(
                "a worker sent metadata that is none",
                why=str(error),
                fix="have the step leave its worker's socket alone",
            ) from error
        if self._has_room(len(facts)):
            at = self._run.now()
            self._append(ev.MetadataLogged(at=at, call=self._name, step=self._step, attempt=self._attempt, body=facts))

    def progress(self, done: float, total: float | None) -> None:
        """How far the step is."""
        at = self._run.now()
        self._progress += 1
        if self._progress > MOST_PROGRESS:
            if at < self._next_progress:
                return
            self._next_progress = at + PROGRESS_S
        self._append(
            ev.Progressed(at=at, call=self._name, step=self._step, attempt=self._attempt, done=done, total=total)
        )

    def _has_room(self, size: int) -> bool:
        """Count an item in; the first one that is too much is told, once."""
        if self._items > MOST_ITEMS or self._bytes > MOST_BYTES:
            return False
        self._items += 1
        self._bytes += size
        if self._items <= MOST_ITEMS and self._bytes <= MOST_BYTES:
            return True
        self._log("warning", "[what this attempt logs from here on is not recorded: it is too much]", "log")
        return False

    def _log(self, level: str, message: str, stream: str) -> None:
        self._append(
            ev.Logged(
                at=self._run.now(), call=self._name, step=self._step, attempt=self._attempt, level=level,
                message=message, stream=stream,
            )
        )  # fmt: skip

    def _append(self, event: ev.Event) -> None:
        if not self._call.is_settled and not self._run.is_over:
            self._run.append(event)
