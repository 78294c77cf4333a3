"""An executor of your own: one command per attempt. With another command it is `ssh host python`, `srun python`, ...

It passes the conformance suite (tests/executors/test_conformance.py). What makes it an executor are the two attributes
and the three coroutines of the class; what a worker does is in ``treadle.worker``. What it leaves out: time-outs and
cancellation kill at once, without a SIGTERM first; what a step starts in a session of its own is not found; nothing
bounds how much a step may print; and over `ssh` the environment and what remains there are the other machine's matter.
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
import logging, os, signal, sys, threading
sys.path[:] = sys.argv[1:]
import msgspec
from treadle.contracts import Attempt
from treadle.worker import Worker
asked, answers, nothing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"), os.open(os.devnull, os.O_RDWR)
attempt = msgspec.msgpack.decode(asked.read(int.from_bytes(asked.read(4), "big")), type=Attempt)
lock = threading.Lock()
class Sink(logging.Handler):
    def send(self, *message):
        body = msgspec.msgpack.encode(message)
        with lock:
            answers.write(len(body).to_bytes(4, "big") + body)
            answers.flush()
    def say(self, level, message, stream): self.send("say", level, message, stream)
    def note(self, facts): self.send("note", facts)
    def progress(self, done, total): self.send("progress", done, total)
    def emit(self, record): self.say(record.levelname.lower(), self.format(record), "log")
sink = Sink()
logging.getLogger().addHandler(sink)
def end_with_the_engine():  # nothing more is asked: what comes is the end of the line, when the engine is gone
    os.read(asked.fileno(), 1)
    os.killpg(0, signal.SIGKILL)
def pass_on(pipe, level, stream):
    for line in open(pipe, errors="replace"):
        sink.say(level, line.rstrip("\\n"), stream)
def capture(number, level, stream):  # the descriptor, and so also what C code prints, and programs that a step starts
    pipe, end = os.pipe()
    os.dup2(end, number)
    os.close(end)
    reads = threading.Thread(target=pass_on, args=(pipe, level, stream), daemon=True)
    reads.start()
    return reads
threading.Thread(target=end_with_the_engine, daemon=True).start()
os.dup2(nothing, 0)
streams = capture(1, "info", "stdout"), capture(2, "error", "stderr")
sys.stdout.reconfigure(line_buffering=True)
outcome = Worker().perform(attempt, sink)
for number, stream in (1, sys.stdout), (2, sys.stderr):
    stream.flush()
    os.dup2(nothing, number)
for reads in streams:
    reads.join(1)  # which takes longer only if a program that the step has started goes on
sink.send("end", outcome)
"""
PASSED_ON = ("PATH", "LANG", "TZ", "HOME", "TMPDIR")


class CommandExecutor:
    """Performs each attempt in a process that a command starts; on another machine, it may not be ``trusted``."""

    slots = 4

    def __init__(self, *, trusted: bool = True, env: tuple[str, ...] = ()) -> None:
        self.trusted, self._env = trusted, (*PASSED_ON, *env)

    async def open(self) -> None:
        """Nothing has to be there before."""

    async def perform(self, attempt: Attempt, sink: Sink) -> Performed | Raised:
        """Start, ask, listen; and leave nothing behind, however it ends."""
        environment = {name: text for name, text in os.environ.items() if name in self._env or name.startswith("LC_")}
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORKER, *sys.path, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            start_new_session=True, env=environment,
        )  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            asked = msgspec.msgpack.encode(attempt)
            child.stdin.write(len(asked).to_bytes(4, "big") + asked)  # and not closed: the worker's life hangs on it
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
