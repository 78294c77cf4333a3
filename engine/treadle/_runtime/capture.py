"""Puts what inline steps say into their logs: one logging handler, and print if asked for; everything passes through."""

from __future__ import annotations

import io
import logging
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from treadle import events as ev
from treadle._runtime.context import active_call

if TYPE_CHECKING:
    from treadle._runtime.engine import Engine

MESSAGE_CHARS = 64 * 1024


class Capture(logging.Handler):
    """The handler of one engine; it takes records of this engine's calls only."""

    def __init__(self, engine: Engine, *, prints: bool) -> None:
        super().__init__()
        self._engine, self._prints = engine, prints
        self._streams: list[_Tee] = []

    def install(self) -> None:
        """Begin."""
        logging.getLogger().addHandler(self)
        if self._prints:
            self._streams = [_Tee(self, "stdout"), _Tee(self, "stderr")]

    def remove(self) -> None:
        """End."""
        logging.getLogger().removeHandler(self)
        for stream in self._streams:
            stream.restore()

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record to the log of the call that said it."""
        if active_call.get() is None:
            return
        try:
            text = self.format(record)
        except Exception:
            text = str(record.msg)
        self.say(record.levelname.lower(), text, "log")

    def say(self, level: str, message: str, stream: str) -> None:
        """Append a message to the log of the current call, if it is one of this engine."""
        call = active_call.get()
        if call is None or call.run.engine is not self._engine or call.run.is_over:
            return
        event = ev.Logged(
            at=time.time(), call=call.name, step=call.plan.name, attempt=call.attempt, level=level,
            message=message[:MESSAGE_CHARS], stream=stream,
        )  # fmt: skip
        if self._engine.is_on_loop():
            call.run.append(event)
        else:
            self._engine.call_on_loop(call.run.append, event)


class _Tee(io.TextIOBase):
    """Stands in for ``sys.stdout`` or ``sys.stderr``, passes everything on, and notes whole lines of steps."""

    def __init__(self, capture: Capture, name: str) -> None:
        self._capture, self._name = capture, name
        self._original: TextIO = getattr(sys, name)
        self._rest = ""
        setattr(sys, name, self)

    def restore(self) -> None:
        """Put the original back, if nobody else has replaced it meanwhile."""
        if getattr(sys, self._name) is self:
            setattr(sys, self._name, self._original)

    def write(self, text: str, /) -> int:
        """Pass a text on and note the lines in it."""
        if active_call.get() is not None:
            for line in text.splitlines():
                if line.strip():
                    self._capture.say("info" if self._name == "stdout" else "error", line, self._name)
        return self._original.write(text)

    def flush(self) -> None:
        """Flush the original."""
        self._original.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)
