"""Puts what inline steps say into their logs (logging, structlog, print if asked for); all of it passes through."""

from __future__ import annotations

import io
import logging
import sys
import traceback
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, TextIO

from treadle import events as ev
from treadle._runtime.context import active_call
from treadle.secret import masked

if TYPE_CHECKING:
    from treadle._runtime.calls.call import Call
    from treadle._runtime.engine import Engine

MESSAGE_CHARS = 64 * 1024


class Capture(logging.Handler):
    """The handler of one engine; it takes records of this engine's calls only."""

    def __init__(self, engine: Engine, *, prints: bool) -> None:
        super().__init__()
        self._engine, self._prints = engine, prints
        self.streams: list[_Tee] = []

    def install(self) -> None:
        """Begin."""
        logging.getLogger().addHandler(self)
        _installed.append(self)
        if self._prints:
            self.streams = [_Tee(self, "stdout"), _Tee(self, "stderr")]

    def remove(self) -> None:
        """End."""
        logging.getLogger().removeHandler(self)
        if self in _installed:
            _installed.remove(self)
        if not _installed:
            _leave_structlog()
        for stream in reversed(self.streams):
            stream.restore()

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record to the log of the call that said it."""
        if active_call.get() is None or record.name == "treadle":
            return
        try:
            text = self.format(record)
        except Exception:
            text = str(record.msg)
        self.say(record.levelname.lower(), text, "log")

    def say(self, level: str, message: str, stream: str) -> None:
        """Append a message to the log of the current call, if it is one of this engine."""
        call = active_call.get()
        if call is not None and call.run.engine is self._engine and not call.run.is_over:
            self.note(call, level, message, stream)

    def note(self, call: Call, level: str, message: str, stream: str) -> None:
        """Append a message to the log of a call; from any thread."""
        event = ev.Logged(
            at=call.run.now(), call=call.name, step=call.plan.name, attempt=call.attempt, level=level,
            message=masked(message)[:MESSAGE_CHARS], stream=stream,
        )  # fmt: skip
        if self._engine.is_on_loop():
            call.run.append(event)
        else:
            self._engine.call_on_loop(call.run.append, event)

    def attempt_ended(self, call: Call) -> None:
        """Note the last line of a call that has no line end."""
        for stream in self.streams:
            stream.end_line(call)


class _Tee(io.TextIOBase):
    """Stands in for ``sys.stdout`` or ``sys.stderr``, passes everything on, and notes whole lines of steps."""

    def __init__(self, capture: Capture, name: str) -> None:
        self._capture, self._name = capture, name
        self._level = "info" if name == "stdout" else "error"
        self._original: TextIO = getattr(sys, name)
        self._begun: dict[Call, str] = {}
        self._is_removed = False
        setattr(sys, name, self)

    def restore(self) -> None:
        """Put the original back, unless somebody else has replaced it meanwhile; that one goes on over this one."""
        self._is_removed = True
        while isinstance(current := getattr(sys, self._name), _Tee) and current._is_removed:
            setattr(sys, self._name, current._original)

    def write(self, text: str, /) -> int:
        """Pass a text on and note the lines in it."""
        call = active_call.get()
        if call is not None and not self._is_removed and call.run.engine is self._capture._engine:
            *lines, rest = (self._begun.pop(call, "") + text).split("\n")
            for line in filter(str.strip, lines):
                self._capture.say(self._level, line, self._name)
            if rest:
                self._begun[call] = rest[:MESSAGE_CHARS]
        return self._original.write(text)

    def end_line(self, call: Call) -> None:
        """Note what a call has printed without a line end."""
        rest = self._begun.pop(call, "")
        if rest.strip():
            self._capture.note(call, self._level, rest, self._name)

    def flush(self) -> None:
        """Flush the original."""
        self._original.flush()

    def close(self) -> None:
        """Nothing: the original is not ours to close or to flush, when this is forgotten."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


# -- structlog ----------------------------------------------------------------------------

_installed: list[Capture] = []
_joined: list[list[Any]] = []
"""The processor lists that have ours in them; loggers keep the list, so it is changed in place."""


def join_structlog() -> None:
    """If the program uses structlog, hear what it says; asked at the start of each run, for it may come late."""
    structlog = sys.modules.get("structlog")
    if structlog is None or not hasattr(structlog, "get_config"):
        return
    processors = structlog.get_config()["processors"]
    if isinstance(processors, list) and _note_structlog not in processors:
        processors.insert(max(0, len(processors) - 1), _note_structlog)  # before the renderer, after what adds to it
        _joined.append(processors)


def _leave_structlog() -> None:
    for processors in _joined:
        if _note_structlog in processors:
            processors.remove(_note_structlog)
    _joined.clear()


def _note_structlog(logger: Any, method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor that changes nothing; what goes on to ``logging`` is heard there."""
    call = active_call.get()
    if call is not None and not isinstance(logger, logging.Logger) and not call.run.is_over:
        facts = [
            f"{key}={value!r}" for key, value in entry.items() if key not in ("event", "level", "timestamp", "exc_info")
        ]
        text = " ".join([str(entry.get("event", "")), *facts])
        if entry.get("exc_info"):
            text += "\n" + traceback.format_exc()
        call.run.engine.capture.note(call, str(entry.get("level", method)), text, "log")
    return entry
