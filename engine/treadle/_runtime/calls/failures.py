"""Exceptions into the log and back: what is kept of an error, and how it is raised again later."""

from __future__ import annotations

import builtins
import sys
import traceback
from types import TracebackType
from typing import TYPE_CHECKING, Any

from treadle import events as ev
from treadle._core.exceptions import made
from treadle._runtime import SHELL
from treadle.errors import RemoteError, RunCancelled, RunInterrupted, TreadleError, UpstreamFailed
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
        arguments, state = _packed(_arguments_of(error)), _state_of(error)
        return ev.Failure(f"{kind.__module__}:{kind.__qualname__}", _text(error), _traceback(error), arguments, state)
    except BaseException:  # its own methods may raise anything, also what ends programs
        return ev.Failure("builtins:Exception", f"<{kind!r} of which nothing can be told>", "", b"", b"")


def _arguments_of(error: BaseException) -> list[Any]:
    """What makes the exception again."""
    if not isinstance(error, OSError) or isinstance(error, TreadleError) or None in (error.errno, error.filename):
        return list(error.args)
    more = [] if error.filename2 is None else [None, error.filename2]
    return [error.errno, error.strerror, error.filename, *more]  # its args are the first two of them


def _state_of(error: BaseException) -> bytes:
    """Its attributes, without those that are no data."""
    try:
        known = {name: value for name, value in vars(error).items() if name not in ("__notes__", "value")}
    except Exception:
        return b""
    if not known:
        return b""
    return _packed(known) or _packed({name: value for name, value in known.items() if _packed(value)})


def _packed(value: Any) -> bytes:
    try:
        data = codecs.encode(value, allow_pickle=False).data
        if len(data) > MESSAGE_CHARS or (are_alive() and masked(text := str(value)) != text):
            return b""
    except Exception:
        return b""
    return bytes(data)


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
    return RemoteError(
        f"{name}: {failure.message}", where=None, type_name=failure.type_name, traceback_text=failure.traceback
    )


def _instance(kind: type[Exception], failure: ev.Failure) -> Exception | None:
    if not failure.pickled:
        return None
    arguments = codecs.decode("msgpack", failure.pickled, trusted=False)
    if not isinstance(arguments, list):
        return None
    state = codecs.decode("msgpack", failure.state, trusted=False) if failure.state else {}
    error = made(kind, arguments)
    if issubclass(kind, TreadleError):
        error.__dict__.update(what=failure.message, where="", why="", fix="")
    error.__dict__.update(state)
    return error


def skipped_because(call: Call, root: Call) -> UpstreamFailed:
    """The error of a call that was not performed since an input failed."""
    error = upstream_failed(call.name, root.name, root.outcome)
    error.__cause__ = root.error
    return error


def upstream_failed(call: str, root: str, outcome: str) -> UpstreamFailed:
    """The same, by names, and without its cause."""
    ended = outcome if outcome == "failed" else f"was {outcome}"
    return UpstreamFailed(
        f"call {call} was skipped because call {root} {ended}",
        where=None,
        fix=f"mend {root}; its error is the cause of this one",
        call=call,
        upstream=root,
    )


def cancelled(run_id: str) -> RunCancelled:
    """The error of a cancelled run."""
    fix = "start it again, or resume it by its id"
    return RunCancelled(f"run {run_id} was cancelled", where=None, fix=fix, run_id=run_id)


def interrupted(run_id: str) -> RunInterrupted:
    """The error of an interrupted run."""
    return RunInterrupted(
        f"run {run_id} was interrupted", where=None, why="its engine, loop or process ended before it did",
        fix="`await engine.recover()` or `await engine.resume(run_id)` takes it up where it stopped", run_id=run_id,
    )  # fmt: skip


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
