"""The first process of a container: it starts the worker, says how it ended, and ends with the engine.

Knows nothing of Docker. The container begins with ``BOOT``, which any Python can run: it connects to the engine, says
which Python this is, whether what a worker needs can be imported, and which folders of the project's code, its
arguments, it may not read; everything else is the nursery's.

Being process 1 it cannot be killed from inside, adopts and reaps what is left behind, and takes all of that with it
when it ends: when its socket closes, because the engine has closed it or has died. There is one worker at a time, so
when it has ended everything else here is what it has left, and is killed.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import Final, NoReturn

from treadle_adapters._nursery import Nursery, kill
from treadle_adapters._wire import HEAD

ROOT: Final = "/treadle"
LINE: Final = f"{ROOT}/line"
SOCKET: Final = f"{LINE}/s"
INBOX: Final = f"{LINE}/in"
OUTBOX: Final = f"{ROOT}/out"
LIBRARY: Final = f"{ROOT}/lib"
SPARE: Final = f"{ROOT}/spare"
"""Libraries that a worker needs, for images that do not have them."""

BOOT: Final = f"""
import json, os, socket, struct, sys
def is_closed(path):
    try:
        return not os.listdir(path)
    except NotADirectoryError:
        return not os.access(path, os.R_OK)
    except OSError:
        return True
line = socket.socket(socket.AF_UNIX)
line.connect("{SOCKET}")
sys.path[:] = ["{LIBRARY}"] + [entry for entry in sys.path if entry] + ["{SPARE}"]
def hello(failed):
    closed = [path for path in sys.argv[1:] if is_closed(path)]
    facts = {{"python": list(sys.version_info[:3]), "path": sys.path, "failed": failed, "closed": closed}}
    body = json.dumps(facts).encode()
    line.sendall(struct.pack({HEAD.format!r}, len(body)) + body)
try:
    from treadle_adapters import _contained
    from treadle_adapters import _worker
    from treadle import worker
    worker.preload()
except BaseException as error:
    hello("%s: %s" % (type(error).__name__, error))
    sys.exit(1)
hello("")
_contained.main(line)
"""

_COUNTERS: Final = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
_OOM_SCORE: Final = "500"
_ALL_OTHERS: Final = -1
"""All that process 1 may signal, which is all of its container, but for itself."""


class ContainedNursery(Nursery):
    """A nursery that is process 1 of a container."""

    workers_adopt = False  # nobody would wait there for what has ended, and it would count as a process for good

    def __init__(self, control: socket.socket) -> None:
        super().__init__(control, 0, None)  # 0 is the parent of process 1
        self._known = _oom_kills()

    def _kill_adopted(self) -> None:
        """Kill what a worker has left behind; while there is one, what its steps have left is only reaped."""
        if not self._workers and os.getpid() == 1:
            kill(_ALL_OTHERS, signal.SIGKILL)

    def _end_group(self, number: int) -> int:
        """How many processes the kernel has killed since the last worker ended, for want of memory of the container."""
        before, self._known = self._known, _oom_kills()
        return self._known - before

    def _become_worker(self, number: int, connection: int, out: int, err: int) -> NoReturn:
        try:
            # Of all processes here the kernel is to take the step's, so that somebody is left to tell of it.
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write(_OOM_SCORE)
        except OSError:
            pass
        super()._become_worker(number, connection, out, err)


def main(control: socket.socket) -> None:
    """Start workers until the engine is gone."""
    import gc
    import sys

    sys.argv = [""]
    os.chdir("/")
    gc.collect()
    gc.freeze()
    ContainedNursery(control).run()


def _oom_kills() -> int:
    for path in _COUNTERS:
        try:
            with open(path) as file:
                for line in file:
                    name, _, count = line.partition(" ")
                    if name == "oom_kill":
                        return int(count)
        except (OSError, ValueError):
            continue
    return 0
