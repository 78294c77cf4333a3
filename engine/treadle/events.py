"""What is written to the log: facts in the past tense, frozen.

Knows the shape of each fact; does not know who writes, keeps or reads it. In the log
an event is a msgpack array that begins with its ``tag``; fields are only ever added
at the end of a class and with a default, so that old logs stay readable.
"""

from __future__ import annotations

import msgspec


class Input(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a call received for one parameter.

    ``digest`` is the content digest (``b""`` if the value cannot be hashed). A future of the same run
    is named by ``producer``, its call (and ``.output`` if it has several); an artifact from elsewhere by
    ``artifact``, its number; a plain value by neither.
    """

    name: str
    digest: bytes = b""
    producer: str = ""
    artifact: int = 0


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An exception as the log keeps it: type, text, traceback, and what it takes to rebuild it.

    ``pickled`` are its arguments and ``state`` its attributes, both as tagged msgpack; what is no data is left out.
    """

    type_name: str
    message: str
    traceback: str = ""
    pickled: bytes = b""
    state: bytes = b""


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False, kw_only=True):
    """Base of all events.

    Attributes:
        at: wall-clock time, seconds since the epoch.
        seq: the event's number in this home, gapless from 1; given at commit, 0 before.
        run_id: the run that it belongs to; filled in when it is read.
        call: name of the call, unique in its run; "" for facts about the run.
        step: name of the step.
        attempt: number of the attempt from 1; 0 where there was none.
    """

    at: float
    call: str = ""
    step: str = ""
    attempt: int = 0
    seq: int = 0
    run_id: str = ""

    @property
    def kind(self) -> str:
        """The event's name, e.g. ``"CallCompleted"``."""
        return type(self).__name__


# -- runs ---------------------------------------------------------------------------------


class RunAccepted(Event, frozen=True, array_like=True, gc=False, tag=1, kw_only=True):
    """A run and its arguments are in the log; ``given`` are the artifacts among them, which arrive as values."""

    pipeline: str
    parent: str = ""
    parent_call: str = ""
    arguments: bytes = b""
    codec: str = ""
    recoverable: bool = True
    options: bytes = b""
    wired: bool = False
    given: tuple[int, ...] = ()


class RunResumed(Event, frozen=True, array_like=True, gc=False, tag=2, kw_only=True):
    """An engine took the run over and performs it again; ``epoch`` counts these."""

    epoch: int
    engine: str = ""
    changed: str = "rerun"


class RunSucceeded(Event, frozen=True, array_like=True, gc=False, tag=3, kw_only=True):
    """The pipeline function returned and every call of the run has ended."""

    artifacts: tuple[int, ...] = ()
    reused: int = 0
    performed: int = 0
    unclaimed: int = 0


class RunFailed(Event, frozen=True, array_like=True, gc=False, tag=4, kw_only=True):
    """The run ended with an error."""

    failure: Failure


class RunCancelled(Event, frozen=True, array_like=True, gc=False, tag=5, kw_only=True):
    """A caller decided to end the run."""

    reason: str = ""


class RunInterrupted(Event, frozen=True, array_like=True, gc=False, tag=6, kw_only=True):
    """The run was cut off by the end of its engine, loop or process; it can be resumed."""

    reason: str = ""


# -- calls --------------------------------------------------------------------------------


class CallScheduled(Event, frozen=True, array_like=True, gc=False, tag=20, kw_only=True):
    """A call was submitted."""


class CallStarted(Event, frozen=True, array_like=True, gc=False, tag=21, kw_only=True):
    """An attempt began.

    The first one of a call says what the call is: ``identity`` names step and inputs without the code,
    ``code`` is the code's fingerprint, ``key`` the cache key (``b""`` if it is not cached).
    """

    identity: bytes = b""
    code: bytes = b""
    inputs: tuple[Input, ...] = ()
    key: bytes = b""


class CallCompleted(Event, frozen=True, array_like=True, gc=False, tag=22, kw_only=True):
    """The body returned and its outputs are stored; ``artifacts`` are their numbers.

    ``peak_rss_bytes`` and ``cpu_s`` are what its attempts used, ``None`` where it was not measured.
    """

    artifacts: tuple[int, ...] = ()
    duration_s: float = 0.0
    outputs: tuple[str, ...] = ()
    peak_rss_bytes: int | None = None
    cpu_s: float | None = None


class CallCached(Event, frozen=True, array_like=True, gc=False, tag=23, kw_only=True):
    """The cache had the outputs; nothing was performed. ``saved_s`` is what the original took."""

    identity: bytes = b""
    code: bytes = b""
    artifacts: tuple[int, ...] = ()
    saved_s: float = 0.0
    inputs: tuple[Input, ...] = ()
    outputs: tuple[str, ...] = ()


class CallReused(Event, frozen=True, array_like=True, gc=False, tag=24, kw_only=True):
    """A resumed run took over an outcome that it had recorded before; ``stale`` if the code has changed since."""

    stale: bool = False


class CallRetrying(Event, frozen=True, array_like=True, gc=False, tag=25, kw_only=True):
    """An attempt failed and another one follows after ``delay_s``."""

    failure: Failure
    delay_s: float = 0.0


class CallFailed(Event, frozen=True, array_like=True, gc=False, tag=26, kw_only=True):
    """The last attempt failed; ``inputs`` keeps its small plain arguments: (parameter, codec, bytes) in msgpack.

    ``peak_rss_bytes`` and ``cpu_s`` are as in ``CallCompleted``.
    """

    failure: Failure
    duration_s: float = 0.0
    inputs: bytes = b""
    peak_rss_bytes: int | None = None
    cpu_s: float | None = None


class CallSkipped(Event, frozen=True, array_like=True, gc=False, tag=27, kw_only=True):
    """The call was not performed, because of ``reason``: ``"upstream"`` or ``"condition"``.

    ``upstream`` is the call whose failure or condition it was, if not its own. A skip by its own condition says what
    the call is (see ``CallStarted``), so that a resume can take it over.
    """

    reason: str
    upstream: str = ""
    identity: bytes = b""
    code: bytes = b""
    inputs: tuple[Input, ...] = ()


class CallCancelled(Event, frozen=True, array_like=True, gc=False, tag=28, kw_only=True):
    """The call was cancelled before it had an outcome."""

    reason: str = ""


class CallInterrupted(Event, frozen=True, array_like=True, gc=False, tag=29, kw_only=True):
    """The call was cut off by the end of its engine."""


class CallFellBack(Event, frozen=True, array_like=True, gc=False, tag=30, kw_only=True):
    """The last attempt failed, or the breaker let none through, and the step's fallback takes over.

    The other fields are those of ``CallStarted``: perhaps no attempt began.
    """

    failure: Failure
    identity: bytes = b""
    code: bytes = b""
    inputs: tuple[Input, ...] = ()
    key: bytes = b""


class CallsCancelled(Event, frozen=True, array_like=True, gc=False, tag=31, kw_only=True):
    """A map was cancelled before its last ``count`` calls, from number ``first`` on, were made; one fact for all."""

    map: str
    of: str
    first: int
    count: int


# -- remarks ------------------------------------------------------------------------------


class Logged(Event, frozen=True, array_like=True, gc=False, tag=40, kw_only=True):
    """A step said something: a logging record or a line of a stream."""

    level: str
    message: str
    stream: str = "log"


class MetadataLogged(Event, frozen=True, array_like=True, gc=False, tag=41, kw_only=True):
    """A step attached facts to itself with ``current().log_metadata``; ``body`` is msgpack.

    With ``attempt=0``: what its options say of it, ``metadata`` as the body and ``tags``.
    """

    body: bytes
    tags: tuple[str, ...] = ()


class Progressed(Event, frozen=True, array_like=True, gc=False, tag=42, kw_only=True):
    """A step reported how far it is."""

    done: float
    total: float | None = None


class ThreadAbandoned(Event, frozen=True, array_like=True, gc=False, tag=43, kw_only=True):
    """A body did not stop when it had to; it is left behind and its late result will be dropped."""


class DamageFound(Event, frozen=True, array_like=True, gc=False, tag=44, kw_only=True):
    """An artifact's bytes were not those stored; its entry was dropped."""

    artifact: int
    reason: str = ""


class BreakerOpened(Event, frozen=True, array_like=True, gc=False, tag=45, kw_only=True):
    """A step's circuit breaker opened: ``failures`` attempts in a row have failed, or the probe has (then it is 1)."""

    failures: int
    recovery_s: float = 0.0


class BreakerHalfOpened(Event, frozen=True, array_like=True, gc=False, tag=46, kw_only=True):
    """A step's circuit breaker lets this call's attempt through, to see whether things are well again."""


class BreakerClosed(Event, frozen=True, array_like=True, gc=False, tag=47, kw_only=True):
    """The probe of a step's circuit breaker succeeded: all attempts are let through again."""


class ResourcesClamped(Event, frozen=True, array_like=True, gc=False, tag=50, kw_only=True):
    """A step asks for more than the engine has, so each of its calls takes all there is; told once per step and run.

    ``clamped`` has, for each resource, its name, what was asked for and what there is: cores, bytes, GPUs.
    """

    clamped: tuple[tuple[str, float, float], ...] = ()


AnyEvent = (
    RunAccepted | RunResumed | RunSucceeded | RunFailed | RunCancelled | RunInterrupted
    | CallScheduled | CallStarted | CallCompleted | CallCached | CallReused | CallRetrying | CallFailed
    | CallSkipped | CallCancelled | CallInterrupted | CallFellBack | CallsCancelled
    | Logged | MetadataLogged | Progressed | ThreadAbandoned | DamageFound
    | BreakerOpened | BreakerHalfOpened | BreakerClosed | ResourcesClamped
)  # fmt: skip

RunEnded = RunSucceeded | RunFailed | RunCancelled | RunInterrupted
CallEnded = CallCompleted | CallCached | CallFailed | CallSkipped | CallCancelled | CallInterrupted
