"""What the tests of debugging share: a program on a terminal of its own."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


class Terminal:
    """A Python program on a pseudo-terminal, and somebody who types."""

    def __init__(self, script: Path, home: Path) -> None:
        import pty

        self._master, theirs = pty.openpty()
        # A plain prompt: no colours, no line editing, and a width at which nothing is wrapped.
        env = {**os.environ, "TREADLE_HOME": str(home), "TERM": "dumb", "COLUMNS": "200", "PYTHON_COLORS": "0"}
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
        )
        os.close(theirs)
        self.text = ""
        self._seen = 0

    def until(self, wanted: str, seconds: float = 30.0) -> str:
        """Read until a text comes; gives what came before it, since the last time."""
        deadline = time.monotonic() + seconds
        while (place := self.text.find(wanted, self._seen)) < 0:
            assert time.monotonic() < deadline, f"{wanted!r} did not come:\n{self.text}"
            if not self._read():
                raise AssertionError(f"the program ended before {wanted!r}:\n{self.text}")
        said, self._seen = self.text[self._seen : place], place + len(wanted)
        return said

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], 0.2)
        if not ready:
            return True
        try:
            data = os.read(self._master, 4096)
        except OSError:  # how Linux says that nobody holds the other end any more
            return False
        self.text += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._master, f"{line}\n".encode())

    def ask(self, line: str) -> str:
        """Type a line at the debugger's prompt, and read what it says up to the next one."""
        self.type(line)
        return self.until("(Pdb) ").removeprefix(line).strip()

    def end(self) -> int:
        """Read to the end; gives the exit code."""
        deadline = time.monotonic() + 30
        while self._read():
            assert time.monotonic() < deadline, self.text
        return self.process.wait(10)

    def close(self) -> None:
        """Whatever happens, the program ends."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[[str], Terminal]]:
    """Starts a program on a terminal of its own."""
    pytest.importorskip("pty")
    opened: list[Terminal] = []

    def start(code: str) -> Terminal:
        script = tmp_path / "program.py"
        script.write_text(code)
        opened.append(Terminal(script, tmp_path / "home"))
        return opened[-1]

    yield start
    for program in opened:
        program.close()


@pytest.fixture
def home(tmp_path: Path) -> str:
    """A folder for an engine."""
    return str(tmp_path / "home")
