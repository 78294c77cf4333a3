"""Results as users read them: lazy views of the log, with the live run's own errors and values where there are some."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec

from treadle._core.machine import CallStatus, RunStatus
from treadle._core.naming import base_of, in_families
from treadle._core.replay import CallRecord, RunRecord
from treadle._runtime.calls.failures import described, rebuild, upstream_failed
from treadle._runtime.views import drawing, folding, page, report
from treadle._runtime.views.archive import Archive
from treadle._runtime.views.artifact import Artifact
from treadle._runtime.views.lineage import Contents, sources_of, value_of
from treadle._runtime.views.shelf import Shelf, several_shown, values
from treadle._runtime.views.widths import left, printable, width
from treadle.errors import (
    CallNotFound,
    EncodeError,
    RunCancelled,
    RunInterrupted,
    StepCancelled,
    TreadleError,
    UnobservedFailure,
)
from treadle.events import Failure, Input

if TYPE_CHECKING:
    from treadle._runtime.run import Run

T_co = TypeVar("T_co", covariant=True)
V = TypeVar("V")

SHOWN = 20
"""So many names are listed in a repr or an error."""
MOST_COMPARED = 2000


class Lazy(Mapping[str, V]):
    """A mapping whose values are made when they are asked for; a name that it does not have is told the nearest one.

    What has a second name in ``other`` is found by that, too.
    """

    __slots__ = ("_make", "_other", "_owner", "_show", "_what")

    def __init__(
        self, make: dict[str, Callable[[], V]], what: str = "output", owner: str = "this result",
        show: Mapping[str, Callable[[], str]] | None = None, other: Mapping[str, Callable[[], V]] | None = None,
    ) -> None:  # fmt: skip
        self._make, self._what, self._owner, self._show, self._other = make, what, owner, show or {}, other or {}

    def __getitem__(self, key: str) -> V:
        make = self._make.get(key) or self._other.get(key)
        if make is None:
            raise _not_found(key, self._make, self._what, self._owner)
        return make()

    def __contains__(self, key: object) -> bool:
        return key in self._make or key in self._other  # Mapping's own would load the value

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)

    def __repr__(self) -> str:
        first = itertools.islice(self._make, SHOWN)
        shown = [f"{name!r}: {self._show[name]() if name in self._show else '...'}" for name in first]
        return f"{{{', '.join(shown)}{', ...' if len(self) > SHOWN else ''}}}"


class StepResults(Mapping[str, "StepResult"]):
    """The results of a run's calls by name, in the order of submission; each is made when it is asked for."""

    __slots__ = ("_calls", "_result")

    def __init__(self, calls: dict[str, CallRecord], result: RunResult[Any]) -> None:
        self._calls, self._result = calls, result

    def __getitem__(self, key: str) -> StepResult:
        call = self._calls.get(key)
        if call is None:
            raise _not_found(key, self._calls, "call", f"run {self._result.run_id}")
        return StepResult(call, self._result)

    def __contains__(self, key: object) -> bool:
        return key in self._calls

    def __iter__(self) -> Iterator[str]:
        return iter(self._calls)

    def __len__(self) -> int:
        return len(self._calls)

    def __repr__(self) -> str:
        shown = [f"{name!r}: {call.status}" for name, call in itertools.islice(self._calls.items(), SHOWN)]
        return f"{{{', '.join(shown)}{', ...' if len(self) > SHOWN else ''}}}"


def _not_found(key: object, known: Mapping[str, object], what: str, owner: str) -> CallNotFound:
    """Say what there is instead: the calls of a map, the outputs of a call, the nearest name, or what there is."""
    import difflib  # only a mistake pays for it

    names = dict.fromkeys(map(base_of, itertools.islice(known, MOST_COMPARED)))
    near = difflib.get_close_matches(base_of(str(key)), names, n=1)
    name = near[0] if near else ""
    parts = [one for one in known if isinstance(key, str) and one.startswith(f"{key}.")]
    members = [one for one in known if name and one.startswith(f"{name}[")]
    if parts:
        fix = f"{key} has several outputs: ask for {', '.join(map(repr, parts[:SHOWN]))}"
    elif members:
        fix = f"{name} is a map of {len(members)}: ask for {members[0]!r} to {members[-1]!r}"
    elif near:
        fix = f"did you mean {name!r}?"
    else:
        listed = ", ".join(itertools.islice(names, SHOWN)) + (", ..." if len(names) > SHOWN else "")
        fix = f"there is {listed}" if listed else f"there is no {what} at all"
    return CallNotFound(f"there is no {what} {key!r} in {owner}", fix=fix, name=key)


class LinkedInput:
    """What a call received for one parameter: the content's digest, and where it came from.

    Attributes:
        name: the parameter.
        digest: of the content, ``"blake3:<hex>"``; empty for what cannot be hashed.
        producer: the call that made it, or ``None`` for a plain value that no call of the run had made before.
        inferred: whether the producer was found by content: the value was passed as a plain one.
    """

    __slots__ = ("_find", "digest", "inferred", "name", "producer")

    def __init__(
        self, given: Input, producer: str | None, find: Callable[[], list[Artifact[Any]]], *, inferred: bool
    ) -> None:
        self.name, self._find = given.name, find
        self.digest = f"blake3:{given.digest.hex()}" if given.digest else ""
        self.producer = producer
        self.inferred = inferred

    @property
    def artifacts(self) -> list[Artifact[Any]]:
        """What it was made of: one artifact, one for each call of a map, or none for a plain value of no known origin.

        Of an origin that is inferred, the artifact of the same content.
        """
        return self._find()

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
        return Lazy({name: artifact.read for name, artifact in self.artifacts.items()}, owner=f"call {self.name}")

    @property
    def inputs(self) -> dict[str, LinkedInput]:
        """What it received, by parameter, and where that came from."""
        return {given.name: self._result._link(given, self._call) for given in self._call.inputs}

    def load_inputs(self) -> dict[str, Any]:
        """What the call received, by parameter, to look into a failure or to repeat it. Blocks.

        Outputs of other calls are loaded from their artifacts, also those that were awaited and passed on as values.
        Other plain values are kept of failed calls only, if small.

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
            # A plain value: an output of this run with that very content will do.
            for artifact in self._result._link(given, self._call).artifacts:
                if given.digest and artifact.digest == f"blake3:{given.digest.hex()}":
                    return artifact.read()
            raise TreadleError(
                f"input {given.name} of call {self.name} was not kept",
                why="plain values are kept of failed calls only, if they are small and can be stored",
                fix="pass it as the output of a step, or log it with current().log_metadata()",
            ) from None

    @property
    def resources_used(self) -> dict[str, float | None]:
        """``peak_rss_bytes`` and ``cpu_seconds`` of what was performed; ``None`` where they were not measured.

        CPU seconds are those of all attempts of a sync step; an async step shares its thread, and has none. The peak is
        that of the whole process during the attempts, of steps that name ``resources``. A call that the cache had, or
        that was never performed, has neither.
        """
        return {"peak_rss_bytes": self._call.peak_rss_bytes, "cpu_seconds": self._call.cpu_s}

    @property
    def tags(self) -> tuple[str, ...]:
        """The step's ``tags=``."""
        return self._call.tags

    @property
    def metadata(self) -> dict[str, Any]:
        """The step's ``metadata=``, and over it what it logged of itself with ``current().log_metadata``."""
        facts: dict[str, Any] = {}
        for body in self._call.metadata:
            facts.update(msgspec.msgpack.decode(body, type=dict[str, Any]))
        return facts

    def __repr__(self) -> str:
        return f"<StepResult {printable(self.name)} {self.status}>"

    def _facts(self) -> list[tuple[str, str]]:
        call = self._call
        facts = [("step", self.step)] if self.step != self.name else []
        if call.attempts:
            facts += [("attempts", str(call.attempts)), ("seconds", folding.seconds(call.duration_s))]
        told = described(call.failure) if call.status == "failed" and call.failure else folding.note(call)
        facts += [("error" if call.status == "failed" else "note", told)] if told else []
        facts += [(f"input {given.name}", _origin(given)) for given in self.inputs.values()]
        facts += [(f"output {name}", repr(artifact)) for name, artifact in self.artifacts.items()]
        return facts + [(f"metadata {name}", repr(value)) for name, value in self.metadata.items()]

    def __str__(self) -> str:
        facts = self._facts()
        columns = max((width(name) for name, _ in facts), default=0)
        lines = [f"  {left(printable(name), columns)}  {printable(text)}" for name, text in facts]
        return "\n".join([f"{printable(self.name)}: {self.status}", *lines])

    def _repr_html_(self) -> str:
        failure = self._call.failure if self.status == "failed" else None
        traceback = failure.traceback if failure is not None else ""
        return page.facts_page(f"{self.name}: {self.status}", self._facts(), traceback, self.status)


def _origin(given: LinkedInput) -> str:
    if given.producer is None:
        return "a plain value"
    return f"from {given.producer}{' (inferred from its content)' if given.inferred else ''}"


class RunResult(Generic[T_co]):
    """How a run ended: its value or its errors, and a result for every call.

    ``str(result)`` is a readable table. The mappings are read from the log when they are asked for.
    """

    def __init__(self, run_id: str, pipeline: str, archive: Archive, run: Run | None = None) -> None:
        self.run_id, self.pipeline = run_id, pipeline
        self._archive = archive
        self._cached: RunRecord | None = None
        self._is_observed = run is None
        self._wired: bool | None = run.target.is_wired if run is not None else None
        self._value: Any = None
        self._has_value = False
        self._errors: list[BaseException] | None = None
        self._call_errors: dict[str, BaseException] = {}
        self._status: RunStatus | None = None
        self._content: Contents | None = None
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
        if self._is_wired:
            return cast("T_co", dict(self.outputs))
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
            record = self._cached = self._archive.record(self.run_id)
            record.calls = {name: record.calls[name] for name in in_families(record.calls)}
        return self._cached

    @property
    def step_results(self) -> Mapping[str, StepResult]:
        """A result for every call, by name, in the order of submission."""
        return StepResults(self._record.calls, self)

    @property
    def outputs(self) -> Mapping[str, Any]:
        """Values by call name, a map as a list under its name; what failed or was skipped is absent.

        Of a ``Pipeline(...)``: values by the outputs' own names.
        """
        shown: dict[str, Callable[[], str]] = {}
        if self._is_wired:
            return Lazy(self._wired_readers(shown), show=shown)
        shelf = Shelf(self._archive)
        singles: dict[str, Callable[[], Any]] = {}
        groups: dict[str, list[int]] = {}
        for call in self._record.calls.values():
            for name, number in _stored(call):
                if call.name.endswith("]"):
                    base, _, output = name.partition("].")
                    key = f"{base_of(base + ']')}.{output}" if output else base_of(name)
                    if key not in groups:
                        groups[key] = []
                        singles[key] = values(self._archive, groups[key])  # in its place, and filled further
                        shown[key] = several_shown(self._archive, groups[key])
                    groups[key].append(number)
                else:
                    singles[name], shown[name] = shelf.value(number), shelf.shown(number)
        return Lazy(singles, owner=f"run {self.run_id}", show=shown)

    @property
    def _is_wired(self) -> bool:
        if self._wired is None:
            accepted = self._record.accepted
            self._wired = accepted is not None and accepted.wired
        return self._wired

    def _wired_readers(self, shown: dict[str, Callable[[], str]]) -> dict[str, Callable[[], Any]]:
        shelf = Shelf(self._archive)
        found: dict[str, Callable[[], Any]] = {}
        if self._has_value:  # what is not persisted is at hand only in the process that made it
            found.update({name: functools.partial(_itself, value) for name, value in self._value.items()})
        for call in self._record.calls.values():
            if call.status in ("succeeded", "cached"):
                names = call.outputs or (call.name,)
                pairs = list(zip(names, call.artifacts, strict=False))
                found.update({name: shelf.value(number) for name, number in pairs})
                shown.update({name: shelf.shown(number) for name, number in pairs})
        return found

    @property
    def artifacts(self) -> Mapping[str, Artifact[Any]]:
        """Stored outputs by call name (``call.output`` where a step has several).

        Of a ``Pipeline(...)``: by the outputs' own names, as in ``outputs``; by call name they are found as well.
        """
        shelf = Shelf(self._archive)
        found: dict[str, Callable[[], Artifact[Any]]] = {}
        by_output: dict[str, Callable[[], Artifact[Any]]] = {}
        for call in self._record.calls.values():
            stored = {name: shelf.artifact(number) for name, number in _stored(call)}
            found.update(stored)
            if self._is_wired:
                by_output.update(zip(call.outputs or (call.name,), stored.values(), strict=False))
        owner = f"run {self.run_id}"
        return Lazy(by_output, "artifact", owner, other=found) if self._is_wired else Lazy(found, "artifact", owner)

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
    def tags(self) -> tuple[str, ...]:
        """The pipeline's ``tags=``."""
        accepted = self._record.accepted
        options = accepted.options if accepted is not None else b""
        return msgspec.msgpack.decode(options, type=_Tagged).tags if options else ()

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
            root = self._record.calls.get(call.upstream)
            error = upstream_failed(call.name, call.upstream, root.status if root is not None else "failed")
            error.__cause__ = self._error_of(root) if root is not None else None
            return error
        return StepCancelled(f"call {call.name} was cancelled") if call.status == "cancelled" else None

    def _link(self, given: Input, consumer: CallRecord) -> LinkedInput:
        record, archive = self._record, self._archive
        producer: str | None = given.producer or None
        if given.artifact:
            rows = archive.artifacts((given.artifact,))
            producer = rows[0].body.call if rows else None
        inferred = None
        if not given.producer and not given.artifact and given.digest:
            inferred = self._contents.newest_call(given.digest, consumer.scheduled_at)

        def find() -> list[Artifact[Any]]:
            if inferred is None:
                numbers = sources_of(record, given)
            else:
                numbers = [self._contents.newest(given.digest, consumer.scheduled_at)]
            return [Artifact(row, archive.vault) for row in archive.artifacts(numbers)]

        return LinkedInput(given, inferred or producer, find, inferred=inferred is not None)

    @property
    def _contents(self) -> Contents:
        """The outputs of the run by content; taken again while it goes on."""
        record = self._record
        if self._content is None or record.status == "running":
            self._content = Contents(self._archive, record)
        return self._content

    def _inferred(self) -> Iterator[tuple[str, str]]:
        """Producer and consumer of values that travelled as plain ones, as after an ``await``."""
        plain = [
            (given.digest, call)
            for call in self._record.calls.values()
            for given in call.inputs
            if given.digest and not given.producer and not given.artifact
        ]
        contents = self._contents if plain else None
        for digest, call in plain:
            producer = contents.newest_call(digest, call.scheduled_at, telling=True) if contents is not None else None
            if producer is not None:
                yield producer, call.name

    # -- text -----------------------------------------------------------------------------

    def to_mermaid(self) -> str:
        """The calls and what flowed between them, as a Mermaid flowchart.

        A map is one box, and so are all child runs of a pipeline. A dashed arrow is inferred: its value travelled as a
        plain one, and was found by content.
        """
        folded = self._folded()
        return drawing.mermaid(drawing.nodes_of(folded), drawing.edges_of(folded))

    def to_dot(self) -> str:
        """The same for Graphviz: ``dot -Tsvg``."""
        folded = self._folded()
        return drawing.dot(self.pipeline, drawing.nodes_of(folded), drawing.edges_of(folded))

    def to_text(self) -> str:
        """The same as plain text: every call below those that it took something from."""
        return report.graph(self._folded())

    def _folded(self) -> folding.Folded:
        return folding.Folded(self._record, self._inferred(), self._archive.children(self.run_id))

    def __str__(self) -> str:
        self._is_observed = True
        return report.table(self._record, self.time_saved_seconds, self._archive.children(self.run_id))

    def _repr_html_(self) -> str:
        self._is_observed = True
        return page.run_page(self._record, self.time_saved_seconds, self._archive.children(self.run_id))

    def __repr__(self) -> str:
        return f"<RunResult {self.run_id} of {printable(self.pipeline)} {self._status or self._record.status}>"

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


class _Tagged(msgspec.Struct):
    """What is read here of the options that a run was accepted with."""

    tags: tuple[str, ...] = ()


def _is_same(one: Failure, other: Failure) -> bool:
    return (one.type_name, one.message) == (other.type_name, other.message)


def _itself(value: Any) -> Any:
    return value


def _stored(call: CallRecord) -> Iterator[tuple[str, int]]:
    """The stored outputs of a call, by the names that they have in the mappings of a result."""
    if call.status not in ("succeeded", "cached"):
        return
    for index, number in enumerate(call.artifacts):
        several = len(call.artifacts) > 1
        yield f"{call.name}.{call.outputs[index]}" if several else call.name, number
