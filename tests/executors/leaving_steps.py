"""Steps that leave their process otherwise than they have found it; imported by tests and by workers."""

from __future__ import annotations

import io
import logging
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from treadle import step

ADDED = "/added/by/importing"
sys.path.append(ADDED)  # as some modules do
os.environ["ADDED_BY_IMPORTING"] = "1"


def surroundings() -> dict[str, Any]:
    mask = os.umask(0o022)
    os.umask(mask)
    return {
        "process": os.getpid(),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "arguments": list(sys.argv),
        "mask": mask,
        "alarm": signal.getitimer(signal.ITIMER_REAL)[0],
        "handlers": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)],
        "streams": [type(stream).__name__ for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "closed": [sys.stdout.closed, sys.stderr.closed],
        "level": logging.getLogger().level,
        "disabled": logging.root.manager.disable,
        "handlers of the root logger": len(logging.getLogger().handlers),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "hour": time.localtime(0).tm_hour,
    }


@step(runtime="process", cache=False)
def sees_what_is_around() -> dict[str, Any]:
    print("it is heard")
    logging.getLogger("of.the.test").warning("it is logged")
    return surroundings()


@step(runtime="process", cache=False)
def says_where_it_is() -> int:
    print("here")
    return os.getpid()


@step(runtime="process", cache=False)
def leaves_all_of_it_changed(fails: bool) -> int:
    os.chdir(tempfile.gettempdir())
    os.environ["LEFT"] = "behind"
    os.environ["TZ"] = "Asia/Tokyo"
    os.environ.pop("PATH", None)
    time.tzset()
    sys.path.insert(0, "/left/behind")
    sys.argv = ["another", "program"]
    os.umask(0o077)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(9))
    signal.setitimer(signal.ITIMER_REAL, 600)
    logging.basicConfig(level=logging.DEBUG, force=True, stream=io.StringIO())
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.close(2)
    sys.stdout.close()
    sys.stderr = io.StringIO()
    if fails:
        raise ValueError("with all of it changed")
    return os.getpid()


@step(runtime="process", cache=False)
def goes_where_there_is_nothing(folder: str) -> int:
    Path(folder).mkdir()
    os.chdir(folder)
    Path(folder).rmdir()
    return os.getpid()


@step(runtime="process", cache=False)
def changes_for_ever() -> int:
    if os.getuid():
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
    else:
        os.setuid(65534)
    return os.getpid()


@step(runtime="process", cache=False)
def puts_nonsense_in_their_place() -> int:
    sys.stdout = sys.path = None  # type: ignore[assignment]
    del sys.stderr
    os.getcwd = os.umask = None  # type: ignore[assignment]
    return os.getpid()


@step(runtime="process", cache=False, timeout=1.0)
def is_asked_to_end(folder: str) -> None:
    try:
        time.sleep(600)
    finally:
        (Path(folder) / "asked").touch()
