"""What a worker prints, cut into lines for the log of the attempt that is running, and bounded."""

from __future__ import annotations

import os
from typing import Final

from treadle.contracts import Sink

READ_BYTES: Final = 64 * 1024
LINE_CHARS: Final = 64 * 1024
MOST_LINES: Final = 10_000
MOST_BYTES: Final = 4 * 1024 * 1024
"""Of one attempt and stream; what is more is read, counted, and dropped, so that no step can fill the log."""
TAIL_CHARS: Final = 2000
_REST: Final = 256 * 1024


class Printed:
    """One pipe of a worker.

    Args:
        fd: the end to read from; it belongs to this object.
        stream: ``"stdout"`` or ``"stderr"``.
        level: under which its lines are recorded.
    """

    def __init__(self, fd: int, stream: str, level: str) -> None:
        os.set_blocking(fd, False)
        self.fd, self._stream, self._level = fd, stream, level
        self._sink: Sink | None = None
        self._begun = b""
        self._lines = self._bytes = self._dropped = 0
        self.tail = ""

    def begin(self, sink: Sink) -> None:
        """An attempt begins: what was printed before it belongs to nobody."""
        self._begun, self._sink, self.tail = b"", sink, ""
        self._lines = self._bytes = self._dropped = 0

    def read(self) -> bool:
        """Take what is there; False at the end of the pipe."""
        return self._read() is not None

    def _read(self) -> int | None:
        if self.fd < 0:
            return None
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError:
            return None
        if data:
            self._take(data)
        return len(data) or None

    def finish(self) -> None:
        """The attempt has ended: take what is still in the pipe, and the line that was begun."""
        left = _REST
        while left > 0 and (count := self._read()):
            left -= count
        if self._begun:
            self._say(self._begun)
        if self._dropped and self._sink is not None:
            self._sink.say(
                "warning", f"[{self._dropped:,} more bytes of {self._stream} were not recorded]", self._stream
            )
        self._begun, self._sink, self._dropped = b"", None, 0

    def close(self) -> None:
        """Give the pipe back."""
        os.close(self.fd)
        self.fd = -1

    def _take(self, data: bytes) -> None:
        if self._sink is None:  # nobody's, unless these are the last words of a worker that nobody has asked yet
            self.tail = f"{self.tail}{data.decode('utf-8', 'replace')}"[-TAIL_CHARS:].strip()
            return
        if self._lines >= MOST_LINES or self._bytes >= MOST_BYTES:
            self._dropped += len(data)
            return
        self._bytes += len(data)
        *lines, self._begun = (self._begun + data).split(b"\n")
        for line in lines:
            self._say(line)
        if len(self._begun) > LINE_CHARS:
            self._say(self._begun)
            self._begun = b""

    def _say(self, line: bytes) -> None:
        if self._sink is None or not line.strip():
            return
        text = line.decode("utf-8", "replace").rstrip("\r")[:LINE_CHARS]
        if self._lines >= MOST_LINES:
            self._dropped += len(line) + 1
            return
        self._lines += 1
        self.tail = f"{self.tail}\n{text}"[-TAIL_CHARS:].strip()
        self._sink.say(self._level, text, self._stream)
