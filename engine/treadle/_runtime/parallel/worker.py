"""What a process of ``parallel_map`` does: import the function, perform items, and end with its parent."""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import sys
import threading
import traceback
from multiprocessing import connection as connections
from multiprocessing import parent_process
from typing import TYPE_CHECKING, Any

from treadle.storage import codecs

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Reference = tuple[bytes | str, str, str]
"""A pickle, or nothing and the module and name of a function."""

RESULT, ERROR, NOT_FOUND, NOT_SENT = "result", "error", "not found", "not sent"


def serve(pipe: Connection, reference: Reference) -> None:
    """Perform what comes, until an empty message or the end of the pipe."""
    _leave_interrupts_to_the_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    fn, missing = None, ""
    try:
        fn = resolve(reference)
    except BaseException as error:
        missing = f"{type(error).__name__}: {error}"
    while True:
        try:
            data = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        if not data:
            return
        reply = _perform(fn, data) if fn is not None else (NOT_FOUND, b"", "", missing)
        pipe.send_bytes(pickle.dumps(reply))


def unpickled(data: bytes) -> Any:
    """What the other process has pickled; both are this program."""
    return codecs.decode("pickle", data)


def resolve(reference: Reference) -> Any:
    """The function that a reference means; of a step, its plain function."""
    data, module, qualname = reference
    if isinstance(data, bytes):
        return unpickled(data)
    importlib.import_module(module)
    found = look_up(module, qualname)
    if getattr(type(found), "__treadle_callable__", False):
        found = found.fn
    if not callable(found):
        raise LookupError(f"module {module} has no {qualname}")
    return found


def look_up(module: str, qualname: str) -> Any:
    """What an imported module has under that name, or ``None``."""
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _perform(fn: Any, data: bytes) -> tuple[Any, ...]:
    try:
        result = fn(unpickled(data))
    except BaseException as error:
        return ERROR, _pickled(error), type(error).__qualname__, traceback.format_exc()
    try:
        return RESULT, pickle.dumps(result, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return NOT_SENT, b"", "", f"{type(error).__name__}: {error}"


def _pickled(error: BaseException) -> bytes:
    """The error, if it comes back from its pickle as what it is."""
    try:
        data = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
        return data if type(unpickled(data)) is type(error) else b""
    except Exception:
        return b""


def _leave_interrupts_to_the_parent() -> None:
    """Ctrl-C reaches every process of the terminal; the parent gets it too, and ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connections.wait([parent.sentinel])
        os._exit(1)
