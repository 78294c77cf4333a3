"""From a run's events to what is known of it: the one fold behind results, resume and the cache of a run.

Pure: events in, records out. It does not read the log and does not load values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from treadle import events as ev
from treadle._core.machine import RUN_STATUS_OF, STATUS_OF, CallStatus, RunStatus
from treadle._core.naming import base_of, child

TAKEN: frozenset[str] = frozenset({"succeeded", "cached"})
"""Statuses of outcomes that a resume takes over; a skip by condition is one too."""


class CallRecord(msgspec.Struct):
    """What the log says of one call.

    ``tries`` counts the attempts that failed and used up a retry; ``ended_seq`` is the number of the event of its end.
    """

    name: str
    step: str
    status: CallStatus = "pending"
    identity: bytes = b""
    code: bytes = b""
    key: bytes = b""
    inputs: tuple[ev.Input, ...] = ()
    artifacts: tuple[int, ...] = ()
    outputs: tuple[str, ...] = ()
    attempts: int = 0
    scheduled_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    duration_s: float = 0.0
    saved_s: float = 0.0
    failure: ev.Failure | None = None
    skip_reason: str | None = None
    upstream: str = ""
    reused: bool = False
    fallback: bool = False
    peak_rss_bytes: int | None = None
    cpu_s: float | None = None
    metadata: list[bytes] = msgspec.field(default_factory=list)
    tags: tuple[str, ...] = ()
    kept: bytes = b""
    tries: int = 0
    ended_seq: int = 0

    @property
    def is_reusable(self) -> bool:
        """Whether a resume may take this outcome over."""
        return (self.status in TAKEN and bool(self.artifacts)) or (
            self.status == "skipped" and self.skip_reason == "condition" and bool(self.identity)
        )


class RunRecord(msgspec.Struct):
    """What the log says of one run."""

    run_id: str
    pipeline: str = ""
    status: RunStatus = "running"
    parent: str = ""
    parent_call: str = ""
    accepted: ev.RunAccepted | None = None
    failure: ev.Failure | None = None
    reason: str = ""
    value: int = 0
    created_at: float = 0.0
    ended_at: float | None = None
    recoverable: bool = True
    reused: int = 0
    performed: int = 0
    unclaimed: int = 0
    calls: dict[str, CallRecord] = msgspec.field(default_factory=dict)


def fold(events: Iterable[ev.Event], record: RunRecord | None = None) -> RunRecord:
    """Apply a run's events, in order, to its record.

    >>> run = fold([ev.CallScheduled(at=1.0, call="f", step="f"), ev.CallCancelled(at=2.0, call="f", step="f")])
    >>> run.calls["f"].status
    'cancelled'
    """
    run = record or RunRecord("")
    for event in events:
        if event.call:
            _apply_to_call(run, event)
        else:
            _apply_to_run(run, event)
    return run


def _apply_to_run(run: RunRecord, event: ev.Event) -> None:
    run.status = RUN_STATUS_OF.get(type(event), run.status)
    run.run_id = event.run_id or run.run_id
    match event:
        case ev.RunAccepted():
            run.pipeline, run.accepted, run.created_at = event.pipeline, event, event.at
            run.parent, run.parent_call, run.recoverable = event.parent, event.parent_call, event.recoverable
        case ev.RunResumed():
            run.ended_at = run.failure = None
            run.value = run.reused = run.performed = run.unclaimed = 0
            _cut_off(run)
            for call in run.calls.values():
                call.reused = False
        case ev.RunSucceeded():
            run.value = event.artifacts[0] if event.artifacts else 0
            run.reused, run.performed, run.unclaimed = event.reused, event.performed, event.unclaimed
        case ev.RunFailed():
            run.failure = event.failure
        case ev.CallsCancelled():
            for index in range(event.first, event.first + event.count):
                name = child(event.map, index)
                run.calls.setdefault(name, CallRecord(name, event.of, "cancelled", ended_at=event.at))
        case ev.RunCancelled() | ev.RunInterrupted():
            run.reason = event.reason
            _cut_off(run)
        case _:
            return
    if isinstance(event, ev.RunEnded):
        run.ended_at = event.at


def _cut_off(run: RunRecord) -> None:
    """The run stopped, or goes on after a stop: what was under way has no outcome."""
    for call in run.calls.values():
        if call.status in ("pending", "running"):
            call.status = "interrupted"


def _apply_to_call(run: RunRecord, event: ev.Event) -> None:
    call = run.calls.get(event.call)
    if call is None:
        call = run.calls[event.call] = CallRecord(event.call, event.step, scheduled_at=event.at)
    status = STATUS_OF.get(type(event))
    if status is not None:
        call.status = status
    if isinstance(event, ev.CallEnded):
        call.ended_at, call.ended_seq = event.at, event.seq
        call.tries = call.tries if isinstance(event, ev.CallInterrupted) else 0
        call.fallback = call.fallback and isinstance(event, ev.CallCompleted)
    match event:
        case ev.CallScheduled():
            call.reused, call.failure, call.ended_at, call.skip_reason = False, None, None, None
            call.peak_rss_bytes = call.cpu_s = None
        case ev.CallStarted():
            call.attempts, call.fallback = event.attempt, False
            call.started_at = call.started_at or event.at
            if event.identity or event.inputs:
                call.identity, call.code, call.key, call.inputs = event.identity, event.code, event.key, event.inputs
        case ev.CallCompleted():
            call.artifacts, call.outputs, call.duration_s = event.artifacts, event.outputs, event.duration_s
            call.peak_rss_bytes, call.cpu_s, call.failure = event.peak_rss_bytes, event.cpu_s, None
        case ev.CallCached():
            call.artifacts, call.outputs, call.saved_s = event.artifacts, event.outputs, event.saved_s
            call.identity, call.code, call.inputs = event.identity, event.code, event.inputs
        case ev.CallReused():
            call.reused = True
        case ev.CallFailed():
            call.failure, call.duration_s, call.kept = event.failure, event.duration_s, event.inputs
            call.peak_rss_bytes, call.cpu_s = event.peak_rss_bytes, event.cpu_s
        case ev.CallRetrying():
            call.failure = event.failure
            call.tries += 1
        case ev.CallSkipped():
            call.skip_reason, call.upstream = event.reason, event.upstream
            if event.identity:
                call.identity, call.code, call.inputs = event.identity, event.code, event.inputs
        case ev.CallFellBack():
            call.started_at = call.started_at or event.at
            call.identity, call.code, call.key, call.inputs = event.identity, event.code, event.key, event.inputs
            call.fallback = True
        case ev.MetadataLogged():
            if event.attempt:
                call.metadata.append(event.body)
            else:  # of the options; a resume says it again, and what the step said of itself stands
                call.metadata.insert(0, event.body)
                call.tags = event.tags
        case _:
            pass


class Memory:
    """What a resumed run has recorded, for taking over by content.

    Outcomes of one identity form a queue in commit order: the pipeline function may ask
    for them in any order and from any branch. A call that has no outcome to take goes on
    as the recorded call that it is, under that call's name: the oldest one of its identity without an outcome, or
    else the one of its name if that one never came so far as to have an identity.

    Args:
        record: the run's record before the resume.
        keep_stale: take outcomes whose code has changed, too (``recover``); ``resume`` performs such steps again.
    """

    def __init__(self, record: RunRecord, *, keep_stale: bool) -> None:
        self.keep_stale = keep_stale
        self._outcomes: dict[bytes, deque[CallRecord]] = {}
        self._open: dict[bytes, deque[CallRecord]] = {}
        self._nameless: dict[str, CallRecord] = {}
        self.names = frozenset(record.calls)
        self.bases = frozenset(map(base_of, record.calls))
        for call in sorted(record.calls.values(), key=lambda call: call.ended_seq if call.is_reusable else 0):
            if call.identity:
                queues = self._outcomes if call.is_reusable else self._open
                queues.setdefault(call.identity, deque()).append(call)
            else:
                self._nameless[call.name] = call

    def take(self, identity: bytes, code: bytes) -> CallRecord | None:
        """The next recorded outcome of this identity, if there is one that may be used; one of this code first."""
        queue = self._outcomes.get(identity) or deque()
        for call in queue:
            if call.code == code:
                return self._remove(identity, call)
        return self._remove(identity, queue[0]) if queue and self.keep_stale else None

    def _remove(self, identity: bytes, call: CallRecord) -> CallRecord:
        self._outcomes[identity].remove(call)
        return call

    def reopen(self, identity: bytes) -> CallRecord | None:
        """The recorded call of this identity that is performed again: one without an outcome, or of another code."""
        queue = self._open.get(identity) or (None if self.keep_stale else self._outcomes.get(identity))
        return queue.popleft() if queue else None

    def unstarted(self, name: str, step: str) -> CallRecord | None:
        """The recorded call of this name, if all that is known of it is its step."""
        call = self._nameless.get(name)
        return self._nameless.pop(name) if call is not None and call.step == step else None

    @property
    def unclaimed(self) -> int:
        """How many recorded outcomes nobody has asked for."""
        return sum(len(queue) for queue in self._outcomes.values())
