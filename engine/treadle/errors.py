"""Every error treadle raises, on one page; nothing here knows how they come about.

Each error says what happened, where, why, and how to mend it, and carries the
parts as attributes. A user's own exceptions are never wrapped: they are raised
as themselves, with a note that names the run, the step and the attempt.
"""

from __future__ import annotations

import sys
import typing
from types import FrameType
from typing import Any, Final

_PACKAGE: Final = __file__.rpartition("errors.")[0]
_SEP: Final = _PACKAGE[-1:]
_ADAPTERS: Final = f"{_SEP}treadle_adapters{_SEP}"
_LIBRARY: Final = typing.__file__.rpartition("typing.")[0]
_SITE: Final = (f"{_LIBRARY}site-packages{_SEP}", f"{_LIBRARY}dist-packages{_SEP}")
_TYPED: Final = ("<stdin>", "<console>", "<input>", "<python-input-", "<ipython-input-", "<doctest ")
_LOOPS: Final = tuple(
    f"{_LIBRARY}{name}"
    for name in ("asyncio", "concurrent", "multiprocessing", "threading.py", "socketserver.py", "weakref.py")
)
_SERVERS: Final = frozenset(
    {"_pytest", "aiohttp", "anyio", "asgiref", "distributed", "fastapi", "granian", "hypercorn", "ipykernel", "pluggy"}
    | {"pytest_asyncio", "sanic", "starlette", "tornado", "trio", "uvicorn", "uvloop"}
)
"""Packages that call what they were given, each time from the same line of their own."""


class TreadleError(Exception):
    """Base of every error of this package.

    Args:
        what: what happened, one sentence.
        where: the place in the user's code, ``file:line``: by default the call that led here, with ``None`` none.
        why: the reason, if it is not plain from ``what``.
        fix: what to do about it.
        **details: typed attributes of the error, set on the instance.

    >>> error = TreadleError("the log is full", where="app.py:12", fix="free some space", path="/data")
    >>> print(error)
    the log is full. Fix: free some space. Where: app.py:12
    >>> error.path
    '/data'
    """

    what: str
    where: str
    why: str
    fix: str

    def __init__(self, what: str = "", *, where: str | None = "", why: str = "", fix: str = "", **details: Any) -> None:
        place = "" if where is None else where or users_place(sys._getframe(1))
        self.what, self.where, self.why, self.fix = what, place, why, fix
        super().__init__(_sentence(what, place, why, fix))
        # Afterwards, because OSError's own __init__ clears errno, filename and the like.
        for name, value in details.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def users_place(frame: FrameType | None) -> str:
    """``file:line`` of the user's code among these frames; empty where a loop, a thread or a server comes before it.

    A function of the standard library that has the user's line call treadle (as ``random.choice`` of a placeholder
    does) is passed over, and so is code that was generated.
    """
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_PACKAGE):
            pass  # as most of them
        elif file.startswith("<"):
            if file.startswith(_TYPED):
                return f"{file}:{frame.f_lineno}"
        elif file.startswith(_LIBRARY) and not file.startswith(_SITE):
            if file.startswith(_LOOPS):
                return ""
        elif _ADAPTERS not in file:
            package = file.rpartition(f"-packages{_SEP}")[2].partition(_SEP)[0]
            return "" if package in _SERVERS else f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def without_place(error: BaseException) -> str:
    """The text of an error as part of another one, which names the place itself.

    >>> without_place(TreadleError("the log is full", where="app.py:12", fix="free some space"))
    'the log is full. Fix: free some space'
    """
    return _sentence(error.what, "", error.why, error.fix) if isinstance(error, TreadleError) else str(error)


def move(error: TreadleError, where: str) -> None:
    """Give an error another place, in its text, too."""
    error.where = where
    error.args = (_sentence(error.what, where, error.why, error.fix), *error.args[1:])


def _sentence(what: str, where: str, why: str, fix: str) -> str:
    parts = [what] if what else []
    if why:
        parts.append(f"Why: {why}")
    if fix:
        parts.append(f"Fix: {fix}")
    if where:
        parts.append(f"Where: {where}")
    if not parts:
        return ""
    *first, last = (part.rstrip(".") for part in parts)
    return " ".join([*(part if part.endswith(("?", "!")) else f"{part}." for part in first), last])


def _rebuild(cls: type[TreadleError], args: tuple[Any, ...], state: dict[str, Any]) -> TreadleError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


# -- misuse: the caller's code must change ------------------------------------------------


class OptionError(TreadleError, ValueError):
    """An option is unknown, of the wrong type or out of range; or the decorated thing cannot be a step."""


class ValidationError(TreadleError):
    """A static pipeline is not sound; ``problems`` lists all that is wrong with it."""

    problems: tuple[str, ...]


class EndlessPipeline(ValidationError, RecursionError):
    """Static pipelines call each other without end, so that compiling them would not end either."""


class PlaceholderUsed(ValidationError, TypeError):
    """The function of a static pipeline needs a value that is known only when the pipeline runs."""


class NotInRun(TreadleError, RuntimeError):
    """``submit``, ``map`` or ``current()`` was used where no run (or no step) is active."""


class ForeignFuture(TreadleError, ValueError):
    """A future of one run was passed to a call of another."""


class HiddenFuture(TreadleError, TypeError):
    """A future is inside of an argument where nobody looks for it: in an object's field, or the key of a dict."""


class AwaitCycle(TreadleError, RuntimeError):
    """Calls wait for each other in a circle, so none can start; ``calls`` names them."""

    calls: tuple[str, ...]


class MapLengthError(TreadleError, ValueError):
    """The inputs of a map have different lengths; ``lengths`` has them by parameter."""

    lengths: dict[str, int]


class ResultNotReady(TreadleError, RuntimeError):
    """``.result()`` or ``.exception()`` was asked on the event loop while the call is pending."""


class RunInsideLoop(TreadleError, RuntimeError):
    """``pipeline.run()`` was called where an event loop is running; it would block that loop."""


class NoEventLoop(TreadleError, RuntimeError):
    """``pipeline.start()`` was called where no event loop is running."""


class EngineClosed(TreadleError, RuntimeError):
    """The engine is closed (or was never opened)."""


class EngineForked(TreadleError, RuntimeError):
    """The engine was opened in another process, and this one was forked from it."""


class EngineElsewhere(TreadleError, RuntimeError):
    """The engine was opened on another event loop, in another thread perhaps; it works on that one only."""


class ArgumentNotStorable(TreadleError, TypeError):
    """A run with an idempotency key has an argument that cannot be stored; ``parameter`` names it."""

    parameter: str


class EncodeError(TreadleError, TypeError):
    """A value cannot be stored; ``path`` is the place inside it, ``value`` still holds the object."""

    path: str
    value: Any


class DecodeError(TreadleError, ValueError):
    """Stored bytes cannot be turned back into a value: unknown codec, missing class, or pickle not allowed."""


class RunNotFound(TreadleError, LookupError):
    """No run of that id is in this home."""


class ArtifactNotFound(TreadleError, LookupError):
    """No artifact of that name (or version) is in this home."""


class CallNotFound(TreadleError, KeyError):
    """A result has no call, output or artifact of this name."""

    __str__ = Exception.__str__  # KeyError shows its text as code


class StepTypeError(TreadleError, TypeError):
    """A step was given, or has returned, a value of another type than its annotation says; the step was not performed.

    ``step`` names it, ``parameter`` the parameter (``"return"`` for what it returned), ``expected`` is the annotation,
    ``got`` the class of the value.
    """

    step: str
    parameter: str
    expected: str
    got: str


class RouteNotFound(TreadleError, LookupError):
    """An artifact lies at the route of a type that this engine has no route for; ``type_name`` is the type."""

    type_name: str


class MutatedInput(TreadleError, RuntimeError):
    """A step changed an input that it shares with others (raised by the test kit)."""


# -- how calls and runs end ---------------------------------------------------------------


class StepTimeout(TreadleError, TimeoutError):
    """An attempt took longer than the step's ``timeout``; ``timeout_s`` is that limit."""

    timeout_s: float


class RunTimeout(TreadleError, TimeoutError):
    """A run took longer than the pipeline's ``timeout``."""

    timeout_s: float


class StepCancelled(TreadleError):
    """A recorded call was cancelled."""


class RunCancelled(TreadleError):
    """The awaited run was cancelled by a caller."""

    run_id: str


class RunInterrupted(TreadleError):
    """The awaited run was cut off (engine closed, loop ended, process died) and can be resumed."""

    run_id: str


class RunPoisoned(TreadleError):
    """The run was recovered several times without a new outcome, so it is not tried again."""

    run_id: str


class UpstreamFailed(TreadleError):
    """A call was skipped because an input failed; ``__cause__`` is that first error."""

    call: str
    upstream: str


class IdempotencyConflict(TreadleError):
    """The same idempotency key was used with other arguments; ``run_id`` is the run that has it."""

    run_id: str


class RunFenced(TreadleError):
    """Another engine has taken the run over; this one may not write to it any more."""

    run_id: str


class RunElsewhere(TreadleError):
    """Another engine of this home performs the run, so it cannot be cancelled from here; ``owner`` is its id."""

    run_id: str
    owner: str


class ThreadsExhausted(TreadleError):
    """Too many worker threads are stuck in steps that timed out or were cancelled."""


class RemoteError(TreadleError):
    """A step's exception that cannot be rebuilt here; ``type_name`` and ``traceback_text`` describe it."""

    type_name: str
    traceback_text: str


class StepCrashed(TreadleError):
    """The process of an isolated step ended without an answer."""

    exit_code: int | None
    signal: int | None
    oom: bool


class WorkerProtocolError(StepCrashed):
    """A worker sent what is no message of the protocol, or too large a one; it was killed."""

    exit_code: int | None = None
    signal: int | None = None
    oom: bool = False


class StepNotImportable(TreadleError):
    """An isolated step cannot be found by import path in another process."""


class StepEdited(StepNotImportable):
    """A worker has imported other code than the engine's process, since a file was edited in between; nothing was run.

    ``files`` names those that are newer than the engine's process.
    """

    files: tuple[str, ...] = ()


class ExecutorUnavailable(TreadleError, RuntimeError):
    """An executor cannot work here: its workers cannot be started, or speak another version of the protocol."""


class ImageNotFound(ExecutorUnavailable):
    """The container engine does not have the image that steps are to run in; ``image`` is its name."""

    image: str


class ExecutorNotFound(TreadleError, LookupError):
    """No executor of that name is configured or installed."""


class ResourcesExceeded(TreadleError, ValueError):
    """A step asks for more than the engine has, and ``overcommit="error"`` refuses that.

    ``step`` names it; ``asked`` and ``available`` have cores, bytes and GPUs by resource, of what is exceeded.
    """

    step: str
    asked: dict[str, float]
    available: dict[str, float]


class CircuitOpen(TreadleError):
    """A step's circuit breaker is open, so the attempt was not made.

    ``retry_after_s`` is the time in seconds until it lets a probe through (0.0 while one is under way), ``step`` the
    step, ``failures`` how many attempts in a row had failed.
    """

    retry_after_s: float = 0.0
    step: str = ""
    failures: int = 0


# -- the log, the home and the artifacts --------------------------------------------------


class LogUnavailable(TreadleError, OSError):
    """The log cannot be written just now; ``__cause__`` is the step's own error, if it had one."""


class StoreError(TreadleError):
    """Base of what can be wrong with a home; the files are never touched."""

    path: str


class StoreUnwritable(StoreError, PermissionError):
    """The home cannot be created or written by this user, or belongs to somebody else."""


class StoreForeign(StoreError):
    """The file at the place of the log is not a treadle log."""


class StoreVersion(StoreError):
    """The log was written in a format this release does not know."""


class StoreDamaged(StoreError):
    """The log's database is damaged."""


class StoreOnNetwork(StoreError):
    """The home is on a network file system, where locks and the log cannot be trusted."""


class ArtifactDamaged(TreadleError):
    """An artifact's bytes are missing or are not those that were stored; they were not decoded."""

    path: str


class ArtifactStoreError(TreadleError, OSError):
    """The artifact store could not be read or written."""


class UnobservedFailure(UserWarning):
    """A failed run's result was dropped before anybody looked at its outcome."""
