"""Which calls of a run share a line, and what that line says; it knows no format. Pure.

A map is one line however many calls it has. If a run has more lines than anybody reads, as when a loop awaits
one call after the other, all calls of a step share one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from treadle._core.naming import base_of
from treadle._core.replay import CallRecord, RunRecord
from treadle._runtime.calls.failures import described

MOST_LINES = 100
"""From so many lines on, all calls of a step share one."""

_WORST_FIRST = ("failed", "interrupted", "cancelled", "running", "pending", "skipped", "succeeded", "cached")


Child = tuple[str, str]
"""Pipeline and status of a child run."""


class Line:
    """One call, all calls of a map or of a step, or all child runs of one pipeline."""

    __slots__ = ("attempts", "count", "counts", "is_loop", "is_map", "name", "note", "seconds")

    def __init__(self, name: str, counts: dict[str, int], attempts: int, seconds: float, note: str) -> None:
        self.name, self.counts, self.attempts, self.seconds, self.note = name, counts, attempts, seconds, note
        self.count = sum(counts.values())
        self.is_map = self.is_loop = False

    @property
    def label(self) -> str:
        """Its name with the number of calls: ``square[1000]`` for a map, ``square (1000 calls)`` for a loop."""
        if self.is_map:
            return f"{self.name}[{self.count}]"
        return f"{self.name} ({self.count} calls)" if self.is_loop else self.name

    @property
    def status(self) -> str:
        """The status of all, or how many have which."""
        if len(self.counts) == 1:
            return next(iter(self.counts))
        return ", ".join(f"{self.counts[status]} {status}" for status in _WORST_FIRST if status in self.counts)

    @property
    def worst(self) -> str:
        """The status that calls for attention most."""
        return next((status for status in _WORST_FIRST if status in self.counts), "pending")


class Folded:
    """The lines of a run, producers first, and which line each call is on."""

    def __init__(
        self, run: RunRecord, inferred: Iterable[tuple[str, str]] = (), children: Iterable[Child] = ()
    ) -> None:
        self._run = run
        self._by_step = len({base_of(name) for name in run.calls}) > MOST_LINES
        groups: dict[str, list[CallRecord]] = {}
        for call in run.calls.values():
            groups.setdefault(self.line_of(call), []).append(call)
        self.edges = self._explicit()
        sure = set(self.edges)
        self.guessed = list(dict.fromkeys(pair for pair in self._lines_of(inferred) if pair not in sure))
        self.sources: dict[str, list[str]] = {name: [] for name in groups}
        for producer, consumer in (*self.edges, *self.guessed):
            if producer in groups and consumer in groups and producer != consumer:
                self.sources[consumer].append(producer)
        self.lines = {name: self._line(name, groups[name]) for name in producers_first(self.sources)}
        for line in child_lines(children):  # no call has such a name
            self.lines[line.name], self.sources[line.name] = line, []

    def line_of(self, call: CallRecord) -> str:
        """The key of the line that a call is on."""
        return call.step if self._by_step else base_of(call.name)

    def _line(self, name: str, calls: list[CallRecord]) -> Line:
        if len(calls) == 1 and calls[0].name == name:
            call = calls[0]
            return Line(name, {call.status: 1}, call.attempts, call.duration_s, note(call))
        counts: dict[str, int] = {}
        for call in calls:
            counts[call.status] = counts.get(call.status, 0) + 1
        line = Line(name, counts, sum(c.attempts for c in calls), sum(c.duration_s for c in calls), _shared(calls))
        line.is_loop = self._by_step
        line.is_map = not self._by_step
        return line

    def _explicit(self) -> list[tuple[str, str]]:
        found: dict[tuple[str, str], None] = {}
        for call in self._run.calls.values():
            for given in call.inputs:
                for producer in filter(None, given.producer.split(",")):
                    found[self._key_of(producer), self.line_of(call)] = None
            if call.upstream:
                found[self._key_of(call.upstream), self.line_of(call)] = None
        return list(found)

    def _lines_of(self, pairs: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
        return ((self._key_of(producer), self._key_of(consumer)) for producer, consumer in pairs)

    def _key_of(self, producer: str) -> str:
        """The line of ``call``, ``call.output`` or a map."""
        calls = self._run.calls
        call = calls.get(producer) or calls.get(f"{producer}[0]") or calls.get(producer.rpartition(".")[0])
        return self.line_of(call) if call is not None else producer


def child_lines(children: Iterable[Child]) -> list[Line]:
    """One line for all child runs of a pipeline."""
    by_pipeline: dict[str, dict[str, int]] = {}
    for pipeline, status in children:
        counts = by_pipeline.setdefault(pipeline, {})
        counts[status] = counts.get(status, 0) + 1
    return [_child_runs(*item) for item in by_pipeline.items()]


def _child_runs(pipeline: str, counts: dict[str, int]) -> Line:
    count = sum(counts.values())
    return Line(f"{pipeline} (child run)" if count == 1 else f"{pipeline} ({count} child runs)", counts, 0, 0.0, "")


def note(call: CallRecord) -> str:
    """What is to be said of one call beside its status."""
    if call.status == "failed" and call.failure is not None:
        return described(call.failure)
    if call.status == "skipped":
        if call.skip_reason == "upstream":
            return f"because {call.upstream} failed" if call.upstream else "because an input failed"
        return f"because {call.upstream} was skipped" if call.upstream else "condition not met"
    words = ["fallback"] if call.fallback else []
    words += ["reused"] if call.reused else []
    if call.status == "cached" and not call.reused:
        words += _saved(call.saved_s)
    return ", ".join(words)


def _shared(calls: Sequence[CallRecord]) -> str:
    """What is to be said of many calls: the first failure, and how many were taken over."""
    failed = [call for call in calls if call.status == "failed"]
    words = [f"{calls_name(failed[0])}: {note(failed[0])}"] if failed else []
    for word, count in (
        ("fallback", sum(call.fallback for call in calls)),
        ("reused", sum(call.reused for call in calls)),
    ):
        if count:
            words.append(word if count == len(calls) else f"{count} {word}")
    words += _saved(sum(call.saved_s for call in calls if call.status == "cached" and not call.reused))
    if not words and all(call.status == "skipped" for call in calls):
        words.append(note(calls[0]))
    return ", ".join(words)


def _saved(saved_s: float) -> list[str]:
    return [f"saved {seconds(saved_s)} s"] if saved_s >= 0.0005 else []


def calls_name(call: CallRecord) -> str:
    """How a call is named within its line: ``[7]`` in a map, else by its whole name."""
    return call.name[len(base_of(call.name)) :] or call.name


def seconds(value: float) -> str:
    """Seconds for readers."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def producers_first(sources: dict[str, list[str]]) -> list[str]:
    """The order of the log, but producers come first: a map makes its calls little by little, after its consumers."""
    placed: dict[str, None] = {}
    under_way: set[str] = set()
    for name in sources:
        todo = [name]
        while todo:
            under_way.add(todo[-1])
            before = next((one for one in sources[todo[-1]] if one not in placed and one not in under_way), None)
            if before is not None:
                todo.append(before)
            else:
                placed[todo.pop()] = None
    return list(placed)


def levels(sources: dict[str, list[str]]) -> dict[str, int]:
    """The length of the longest way to each line."""
    level: dict[str, int] = {}
    for name in producers_first(sources):
        level[name] = max((level.get(producer, -1) + 1 for producer in sources[name]), default=0)
    return level
