"""What became of one call, as users read it: a lazy view of its record, of what it took and of what it gave."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from treadle._core.machine import CallStatus
from treadle._core.replay import CallRecord
from treadle._runtime.calls.failures import described
from treadle._runtime.views import folding, page
from treadle._runtime.views.artifact import Artifact
from treadle._runtime.views.lineage import value_of
from treadle._runtime.views.mappings import SHOWN, Lazy, not_found
from treadle._runtime.views.widths import left, printable, width
from treadle.errors import TreadleError
from treadle.events import Input

if TYPE_CHECKING:
    from treadle._runtime.views.results import RunResult


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


class StepResults(Mapping[str, "StepResult"]):
    """The results of a run's calls by name, in the order of submission; each is made when it is asked for."""

    __slots__ = ("_calls", "_result")

    def __init__(self, calls: dict[str, CallRecord], result: RunResult[Any]) -> None:
        self._calls, self._result = calls, result

    def __getitem__(self, key: str) -> StepResult:
        call = self._calls.get(key)
        if call is None:
            raise not_found(key, self._calls, "call", f"run {self._result.run_id}")
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
