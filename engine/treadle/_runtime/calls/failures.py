"""Exceptions into the log and back: what is kept of an error, and how it is raised again later."""

from __future__ import annotations

import builtins
import sys
import traceback
from types import TracebackType
from typing import TYPE_CHECKING

from treadle import events as ev
from treadle._runtime import SHELL
from treadle.errors import EncodeError, RemoteError, TreadleError, UpstreamFailed
from treadle.secret import are_alive, masked
from treadle.storage import codecs

if TYPE_CHECKING:
    from treadle._runtime.calls.call import Call

MESSAGE_CHARS = 8 * 1024
TRACEBACK_CHARS = 64 * 1024


def failure_of(error: BaseException) -> ev.Failure:
    """What the log keeps of an exception; never raises, however odd the exception is."""
    kind = type(error)
    try:
        arguments = codecs.encode(list(error.args), allow_pickle=False).data
    except Exception:
        arguments = b""
    if len(arguments) > MESSAGE_CHARS or (are_alive() and masked(text := str(error.args)) != text):
        arguments = b""
    return ev.Failure(f"{kind.__module__}:{kind.__qualname__}", _text(error), _traceback(error), bytes(arguments))


def _text(error: BaseException) -> str:
    try:
        return masked(_clean(str(error)))[:MESSAGE_CHARS]
    except Exception:
        return f"<{type(error).__name__} whose text cannot be had>"


def _traceback(error: BaseException) -> str:
    try:
        lines = traceback.format_exception(type(error), error, error.__traceback__, limit=-30, chain=True)
        return masked(_clean("".join(lines)))[-TRACEBACK_CHARS:]
    except Exception:
        return ""


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def rebuild(failure: ev.Failure) -> BaseException:
    """A recorded exception as its own type if that is already imported here, else as ``RemoteError``.

    Nothing is imported by name, and only classes derived from ``Exception`` are called.
    """
    module, _, name = failure.type_name.partition(":")
    kind: object = sys.modules.get(module, builtins if module == "builtins" else None)
    for part in name.split("."):
        kind = getattr(kind, part, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            error = _instance(kind, failure)
        except Exception:
            error = None
        if error is not None:
            error.add_note("recorded traceback:\n" + failure.traceback)
            return error
    return RemoteError(f"{name}: {failure.message}", type_name=failure.type_name, traceback_text=failure.traceback)


def _instance(kind: type[Exception], failure: ev.Failure) -> Exception | None:
    if not failure.pickled:
        return None
    arguments = codecs.decode("msgpack", failure.pickled, trusted=False)
    if not isinstance(arguments, list):
        return None
    if issubclass(kind, TreadleError):
        error: Exception = kind.__new__(kind)
        error.args = tuple(arguments)
        error.__dict__.update(what=failure.message, where="", why="", fix="")
        return error
    return kind(*arguments)


def skipped_because(call: Call, root: Call) -> UpstreamFailed:
    """The error of a call that was not performed since an input failed."""
    error = UpstreamFailed(
        f"call {call.name} was skipped because call {root.name} {root.outcome}",
        fix=f"mend {root.name}; its error is the cause of this one",
        call=call.name,
        upstream=root.name,
    )
    error.__cause__ = root.error
    return error


def hide_engine(error: BaseException) -> None:
    """Leave the user's frames in a traceback, and ours out.

    They are noise to who reads it; and they hold the call, which the garbage collector does not see, in a circle.
    """
    frames: list[TracebackType] = []
    traceback_ = error.__traceback__
    while traceback_ is not None:
        if not traceback_.tb_frame.f_code.co_filename.startswith(SHELL):
            frames.append(traceback_)
        traceback_ = traceback_.tb_next
    kept: TracebackType | None = None
    for frame in reversed(frames):
        kept = TracebackType(kept, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    error.with_traceback(kept)  # not by assignment, which a frozen exception refuses


def described(failure: ev.Failure) -> str:
    """One line for tables."""
    name = failure.type_name.rpartition(":")[2].rpartition(".")[2]
    first = failure.message.splitlines()[0] if failure.message else ""
    return f"{name}: {first}" if first else name


_ = EncodeError
