"""Results as users read them: lazy views of the log, with the live run's own errors and values where there are some."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec

from treadle._core.machine import CallStatus, RunStatus
from treadle._core.naming import base_of
from treadle._core.replay import CallRecord, RunRecord
from treadle._runtime import report
from treadle._runtime.archive import Archive
from treadle._runtime.artifact import Artifact
from treadle._runtime.failures import rebuild
from treadle._runtime.lineage import value_of
from treadle.errors import (
    EncodeError,
    RunCancelled,
    RunInterrupted,
    StepCancelled,
    TreadleError,
    UnobservedFailure,
    UpstreamFailed,
)
from treadle.events import Failure, Input

if TYPE_CHECKING:
    from treadle._runtime.run import Run

T_co = TypeVar("T_co", covariant=True)
V = TypeVar("V")


class Lazy(Mapping[str, V]):
    """A mapping whose values are made when they are asked for."""

    __slots__ = ("_make",)

    def __init__(self, make: dict[str, Callable[[], V]]) -> None:
        self._make = make

    def __getitem__(self, key: str) -> V:
        return self._make[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{key!r}: ...' for key in self._make)}}}"


class LinkedInput:
    """What a call received for one parameter: the content's digest, and where it came from.

    ``inferred`` says that the origin was found by content: the value was passed as a plain one.
    """

    __slots__ = ("digest", "inferred", "name", "producer")

    def __init__(self, given: Input, producer: str | None, *, inferred: bool) -> None:
        self.name = given.name
        self.digest = f"blake3:{given.digest.hex()}" if given.digest else ""
        self.producer = producer
        self.inferred = inferred

    def __repr__(self) -> str:
        origin = f" from {self.producer}" if self.producer else ""
        return f"<input {self.name}{origin}{' (inferred)' if self.inferred else ''}>"


class StepResult:
    """How one call ended: a view of the log.

    Attributes:
        name: the call's name; ``step`` the step's.
        status: pending, running, succeeded, cached, failed, skipped, cancelled or interrupted.
        attempts: how many attempts were made.
        duration_seconds: how long it took.
        started_at: wall-clock time, or ``None`` if it never started.
    """

    def __init__(self, call: CallRecord, result: RunResult[Any]) -> None:
        self._call, self._result = call, result
        self.name, self.step = call.name, call.step
        self.status: CallStatus = call.status
        self.attempts = call.attempts
        self.started_at = call.started_at
        self.skip_reason = call.skip_reason
        self.reused, self.fallback = call.reused, call.fallback
        self.duration_seconds = call.duration_s

    @property
    def success(self) -> bool:
        """Whether it succeeded, came from the cache, or was skipped by a condition."""
        return self.status in ("succeeded", "cached") or (self.skipped and self.skip_reason == "condition")

    @property
    def cached(self) -> bool:
        """Whether the cache had it."""
        return self.status == "cached"

    @property
    def skipped(self) -> bool:
        """Whether it was skipped; ``skip_reason`` says why."""
        return self.status == "skipped"

    @property
    def error(self) -> BaseException | None:
        """Its error: the original where the run happened in this process, else rebuilt from the log."""
        return self._result._error_of(self._call)

    @property
    def artifacts(self) -> dict[str, Artifact[Any]]:
        """Its stored outputs by output name."""
        rows = self._result._archive.artifacts(self._call.artifacts)
        return {row.name: Artifact(row, self._result._archive.vault) for row in rows}

    @property
    def outputs(self) -> Mapping[str, Any]:
        """Its values by output name, loaded when asked for."""
        return Lazy({name: artifact.read for name, artifact in self.artifacts.items()})

    @property
    def inputs(self) -> dict[str, LinkedInput]:
        """What it received, by parameter, and where that came from."""
        return {given.name: self._result._link(given, self._call) for given in self._call.inputs}

    def load_inputs(self) -> dict[str, Any]:
        """What the call received, by parameter, to look into a failure or to repeat it. Blocks.

        Outputs of other calls are loaded from their artifacts; plain values are kept of failed calls only, if small.

        Raises:
            TreadleError: an input was not kept.
        """
        archive = self._result._archive
        kept = msgspec.msgpack.decode(self._call.kept, type=list[tuple[str, str, bytes]]) if self._call.kept else []
        found = {name: archive.vault.decode(codec, data) for name, codec, data in kept}
        for given in self._call.inputs:
            if given.name not in found:
                found[given.name] = self._load_input(given)
        return {given.name: found[given.name] for given in self._call.inputs}

    def _load_input(self, given: Input) -> Any:
        try:
            return value_of(self._result._archive, self._result._record, given)
        except LookupError:
            raise TreadleError(
                f"input {given.name} of call {self.name} was not kept",
                why="plain values are kept of failed calls only, if they are small and can be stored",
                fix="pass it as the output of a step, or log it with current().log_metadata()",
            ) from None

    @property
    def resources_used(self) -> dict[str, float]:
        """``peak_rss_bytes`` and ``cpu_seconds`` of the attempt, where they were measured."""
        return {"peak_rss_bytes": self._call.peak_rss_bytes, "cpu_seconds": self._call.cpu_s}

    @property
    def metadata(self) -> dict[str, Any]:
        """What the step logged of itself with ``current().log_metadata``."""
        facts: dict[str, Any] = {}
        for body in self._call.metadata:
            facts.update(msgspec.msgpack.decode(body, type=dict[str, Any]))
        return facts

    def __repr__(self) -> str:
        return f"<StepResult {self.name} {self.status}>"


class RunResult(Generic[T_co]):
    """How a run ended: its value or its errors, and a result for every call.

    ``str(result)`` is a readable table. The mappings are read from the log when they are asked for.
    """

    def __init__(self, run_id: str, pipeline: str, archive: Archive, run: Run | None = None) -> None:
        self.run_id, self.pipeline = run_id, pipeline
        self._archive = archive
        self._cached: RunRecord | None = None
        self._is_observed = run is None
        self._value: Any = None
        self._has_value = False
        self._errors: list[BaseException] | None = None
        self._call_errors: dict[str, BaseException] = {}
        self._status: RunStatus | None = None
        if run is not None and run.is_over:
            self._take(run)

    def _take(self, run: Run) -> None:
        self._status = cast("RunStatus", run.status)
        self._errors = run.errors if run.status != "succeeded" else []
        self._has_value = run.status == "succeeded"
        self._value = run.value
        self._call_errors = run.call_errors

    def take_errors(self, errors: dict[str, BaseException]) -> None:
        """Have the calls' own errors, where they are at hand, instead of what the log keeps of them."""
        self._call_errors = errors

    # -- outcome --------------------------------------------------------------------------

    @property
    def status(self) -> RunStatus:
        """running, succeeded, failed, cancelled or interrupted."""
        self._is_observed = True
        return self._status or self._record.status

    @property
    def success(self) -> bool:
        """Whether the run succeeded."""
        return self.status == "succeeded"

    @property
    def value(self) -> T_co:
        """What the pipeline returned.

        Raises:
            BaseException: the run's error, if it did not succeed.
            EncodeError: it is read from the log, and could not be kept there.
        """
        self.raise_for_failure()
        if not self._has_value:
            rows = self._archive.artifacts((self._record.value,)) if self._record.value else []
            if not rows:
                raise EncodeError(
                    f"the value of run {self.run_id} of {self.pipeline} is not in the log",
                    why="it could not be encoded when the run ended, or it was pruned",
                    fix="return plain data from the pipeline, or read the outputs of its steps",
                    path="",
                )
            self._value = self._archive.vault.value(rows[0])
            self._has_value = True
        return cast("T_co", self._value)

    @property
    def error(self) -> BaseException | None:
        """What ended the run, or ``None``."""
        errors = self.errors
        return errors[0] if errors else None

    @property
    def errors(self) -> list[BaseException]:
        """All errors of the run; the one that ended it first."""
        self._is_observed = True
        if self._errors is None:
            self._errors = self._recorded_errors()
        return self._errors

    def raise_for_failure(self) -> None:
        """Raise the run's error, if it has one."""
        error = self.error
        if error is not None:
            raise error

    def _recorded_errors(self) -> list[BaseException]:
        record = self._record
        if record.status == "cancelled":
            return [RunCancelled(f"run {self.run_id} was cancelled", run_id=self.run_id)]
        if record.status == "interrupted":
            fix = "`await engine.resume(run_id)` takes it up where it stopped"
            return [RunInterrupted(f"run {self.run_id} was interrupted", fix=fix, run_id=self.run_id)]
        if record.failure is None:
            return []
        rest = [call.failure for call in record.calls.values() if call.status == "failed" and call.failure]
        same = next((f for f in rest if _is_same(f, record.failure)), None)
        return [rebuild(record.failure), *(rebuild(f) for f in rest if f is not same)]

    # -- calls ----------------------------------------------------------------------------

    @property
    def _record(self) -> RunRecord:
        """What the log says; read again while the run is not over."""
        if self._cached is None or self._cached.status == "running":
            self._cached = self._archive.record(self.run_id)
        return self._cached

    @property
    def step_results(self) -> Mapping[str, StepResult]:
        """A result for every call, by name, in the order of submission."""
        return {name: StepResult(call, self) for name, call in self._record.calls.items()}

    @property
    def outputs(self) -> Mapping[str, Any]:
        """Values by call name, a map as a list under its name; what failed or was skipped is absent."""
        singles: dict[str, Callable[[], Any]] = {}
        groups: dict[str, list[Callable[[], Any]]] = {}
        for call in self._record.calls.values():
            for name, read in self._readers(call):
                if call.name.endswith("]"):
                    base, _, output = name.partition("].")
                    key = f"{base_of(base + ']')}.{output}" if output else base_of(name)
                    groups.setdefault(key, []).append(read)
                else:
                    singles[name] = read
        for name, reads in groups.items():
            singles[name] = _all_of(reads)
        return Lazy(singles)

    def _readers(self, call: CallRecord) -> Iterator[tuple[str, Callable[[], Any]]]:
        if call.status not in ("succeeded", "cached"):
            return
        for index, number in enumerate(call.artifacts):
            several = len(call.artifacts) > 1
            name = f"{call.name}.{call.outputs[index]}" if several else call.name
            yield name, _reader(self._archive, number)

    @property
    def artifacts(self) -> Mapping[str, Artifact[Any]]:
        """Stored outputs by call name (``call.output`` where a step has several)."""
        found: dict[str, Callable[[], Artifact[Any]]] = {}
        for call in self._record.calls.values():
            if call.status in ("succeeded", "cached"):
                for index, number in enumerate(call.artifacts):
                    name = f"{call.name}.{call.outputs[index]}" if len(call.artifacts) > 1 else call.name
                    found[name] = _artifact(self._archive, number)
        return Lazy(found)

    @property
    def duration_seconds(self) -> float:
        """From acceptance to the end; while it runs, to the last fact in the log."""
        record = self._record
        return max(0.0, (record.ended_at or record.created_at) - record.created_at)

    @property
    def time_saved_seconds(self) -> float:
        """What the cache hits of this run took when they were performed."""
        return sum(call.saved_s for call in self._record.calls.values() if call.status == "cached")

    @property
    def recoverable(self) -> bool:
        """Whether another process can resume it: its arguments are in the log."""
        return self._record.recoverable

    @property
    def reused(self) -> int:
        """Outcomes that the last resume took over."""
        return self._record.reused

    @property
    def performed(self) -> int:
        """Attempts that the last resume (or the run, if there was none) made."""
        return self._record.performed

    @property
    def unclaimed(self) -> int:
        """Recorded outcomes that the last resume no longer asked for."""
        return self._record.unclaimed

    def _error_of(self, call: CallRecord) -> BaseException | None:
        known = self._call_errors.get(call.name)
        if known is not None:
            return known
        if call.status == "failed" and call.failure is not None:
            return rebuild(call.failure)
        if call.status == "skipped" and call.skip_reason == "upstream":
            return UpstreamFailed(
                f"call {call.name} was skipped because call {call.upstream} failed",
                call=call.name,
                upstream=call.upstream,
            )
        return StepCancelled(f"call {call.name} was cancelled") if call.status == "cancelled" else None

    def _link(self, given: Input, consumer: CallRecord) -> LinkedInput:
        if given.producer:
            return LinkedInput(given, given.producer, inferred=False)
        if given.artifact:
            rows = self._archive.artifacts((given.artifact,))
            return LinkedInput(given, rows[0].body.call if rows else None, inferred=False)
        for call in reversed(self._record.calls.values()):
            if (
                call.artifacts
                and given.digest
                and (call.ended_at or consumer.scheduled_at + 1) <= consumer.scheduled_at
            ):
                for row in self._archive.artifacts(call.artifacts):
                    if row.body.digest == given.digest:
                        return LinkedInput(given, call.name, inferred=True)
        return LinkedInput(given, None, inferred=False)

    # -- text -----------------------------------------------------------------------------

    def to_mermaid(self) -> str:
        """The calls and what flowed between them, as a Mermaid flowchart."""
        return report.mermaid(self._record)

    def to_text(self) -> str:
        """The same as plain text: every call below those that it took something from."""
        return report.graph(self._record)

    def __str__(self) -> str:
        self._is_observed = True
        return report.table(self._record, self.time_saved_seconds)

    def _repr_html_(self) -> str:
        self._is_observed = True
        return report.html(self._record, self.time_saved_seconds)

    def __repr__(self) -> str:
        return f"<RunResult {self.run_id} of {self.pipeline} {self._status or self._record.status}>"

    def __del__(self) -> None:
        if not getattr(self, "_is_observed", True) and self._status == "failed":
            warnings.warn(
                UnobservedFailure(
                    f"run {self.run_id} of {self.pipeline} failed ({self._errors[0]!r}) and nobody looked at its result"
                    if self._errors
                    else f"run {self.run_id} of {self.pipeline} failed and nobody looked at its result"
                ),
                stacklevel=2,
            )


def _is_same(one: Failure, other: Failure) -> bool:
    return (one.type_name, one.message) == (other.type_name, other.message)


def _reader(archive: Archive, number: int) -> Callable[[], Any]:
    return lambda: archive.vault.value(archive.artifacts((number,))[0])


def _artifact(archive: Archive, number: int) -> Callable[[], Artifact[Any]]:
    return lambda: Artifact(archive.artifacts((number,))[0], archive.vault)


def _all_of(reads: list[Callable[[], Any]]) -> Callable[[], list[Any]]:
    return lambda: [read() for read in reads]
