"""An executor of your own: one command per attempt. With another command it is `ssh host python`, `srun python`, ...

It passes the conformance suite (tests/executors/test_conformance.py). What makes it an executor are the two attributes
and the three coroutines of the class; what a worker does is in ``treadle.worker``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import msgspec

from treadle.contracts import Attempt, Performed, Raised, Sink
from treadle.errors import StepCrashed

WORKER = """
import logging, os, sys
sys.path[:] = sys.argv[1:]
import msgspec
from treadle.contracts import Attempt
from treadle.worker import Worker
line = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # what the step prints goes to stderr, and not between the answers
class Sink(logging.Handler):
    def send(self, *message):
        body = msgspec.msgpack.encode(message)
        line.write(len(body).to_bytes(4, "big") + body)
        line.flush()
    def say(self, level, message, stream): self.send("say", level, message, stream)
    def note(self, facts): self.send("note", facts)
    def progress(self, done, total): self.send("progress", done, total)
    def emit(self, record): self.say(record.levelname.lower(), self.format(record), "log")
sink = Sink()
logging.getLogger().addHandler(sink)
sink.send("end", Worker().perform(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Attempt), sink))
"""


class CommandExecutor:
    """Performs each attempt in a process that a command starts; on another machine, it may not be ``trusted``."""

    slots = 4

    def __init__(self, *, trusted: bool = True) -> None:
        self.trusted = trusted

    async def open(self) -> None:
        """Nothing has to be there before."""

    async def perform(self, attempt: Attempt, sink: Sink) -> Performed | Raised:
        """Start, ask, listen; and leave nothing behind, however it ends."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORKER, *sys.path, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(msgspec.msgpack.encode(attempt))
            child.stdin.close()
            while True:
                size = int.from_bytes(await child.stdout.readexactly(4), "big")
                kind, *rest = msgspec.msgpack.decode(await child.stdout.readexactly(size))
                if kind == "end":
                    return msgspec.convert(rest[0], Performed | Raised)
                getattr(sink, kind)(*rest)
        except asyncio.IncompleteReadError:
            code = await child.wait()
            how = {"exit_code": code, "signal": None} if code >= 0 else {"exit_code": None, "signal": -code}
            raise StepCrashed(f"the command ended with {code}", **how, oom=False) from None
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            await asyncio.wait([asyncio.ensure_future(child.communicate())], timeout=2)  # gone, and its pipes closed

    async def close(self) -> None:
        """Nothing is kept between attempts."""
