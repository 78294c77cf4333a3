"""The result of a run as users read it: a lazy view of the log, with errors and values of the live run if any."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec

from treadle._core.machine import RunStatus
from treadle._core.naming import base_of, in_families
from treadle._core.replay import CallRecord, RunRecord
from treadle._runtime.calls.failures import cancelled, interrupted, rebuild, upstream_failed
from treadle._runtime.views import drawing, folding, page, report
from treadle._runtime.views.archive import Archive
from treadle._runtime.views.artifact import Artifact
from treadle._runtime.views.lineage import Contents, sources_of
from treadle._runtime.views.mappings import Lazy
from treadle._runtime.views.shelf import Shelf, several_shown, values
from treadle._runtime.views.step_results import LinkedInput, StepResult, StepResults
from treadle._runtime.views.widths import printable
from treadle.errors import EncodeError, StepCancelled, UnobservedFailure
from treadle.events import Failure, Input

if TYPE_CHECKING:
    from treadle._runtime.run import Run

T_co = TypeVar("T_co", covariant=True)


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
            return [cancelled(self.run_id)]
        if record.status == "interrupted":
            return [interrupted(self.run_id)]
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
        return StepCancelled(f"call {call.name} was cancelled", where=None) if call.status == "cancelled" else None

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
