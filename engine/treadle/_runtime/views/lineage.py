"""Where an artifact comes from: its producer, what that took, and so on back; read from the log, never written.

What a call received as a future or an artifact is on record. A plain value, as an ``await`` gives it, is found again
by its content: the newest output of the run that was there before, the value of a child run, or what the parent run had
when it started this one. Such an origin is *inferred*, and said to be.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from treadle._core.naming import base_of
from treadle._core.replay import CallRecord, RunRecord
from treadle._runtime.views import drawing, page, shapes
from treadle._runtime.views.widths import printable
from treadle.events import Input
from treadle.storage import codecs

if TYPE_CHECKING:
    from treadle._runtime.views.archive import Archive
    from treadle.storage.rows import ArtifactRow

SHOWN = 8
"""So many sources of one parameter are drawn; a number stands for the others."""
_COMMA = ", "
_Drawn: TypeAlias = "tuple[str, Lineage | None, Lineage | None, int]"
"""Label, artifact, its consumer, depth."""

MOST_LINES = 200
MOST_INDENTS = 20


class Lineage:
    """An artifact and what it was made of; ``str`` draws it as a tree, ``to_mermaid()`` as a graph.

    In the tree ``=`` is on record and ``~`` is inferred; *plain* parameters are those of no known origin.

    Attributes:
        name, version, digest: of the artifact.
        run_id, call, step: its producer; ``call`` is empty if it is the value of a run.
        inputs: what the producer took, by parameter: a ``Lineage`` for each artifact, none for plain values.
        inferred: the parameters whose origin was found by content, since they were passed as plain values.
        is_pruned: its run is no longer in the log, so nothing more is known.
    """

    __slots__ = ("call", "digest", "inferred", "inputs", "is_pruned", "name", "run_id", "step", "version")

    def __init__(self, row: ArtifactRow) -> None:
        body = row.body
        self.name, self.version, self.digest = row.name, row.version, f"blake3:{body.digest.hex()}"
        self.run_id, self.call, self.step = body.run, body.call, body.step
        self.inputs: dict[str, list[Lineage]] = {}
        self.inferred: set[str] = set()
        self.is_pruned = False

    def walk(self) -> Iterator[Lineage]:
        """This artifact and all that it was made of, the nearest first, each once."""
        seen = {id(self)}
        todo: list[Lineage] = [self]
        for node in todo:  # grows while it is walked
            yield node
            for source in (one for sources in node.inputs.values() for one in sources):
                if id(source) not in seen:
                    seen.add(id(source))
                    todo.append(source)

    def producers(self) -> list[str]:
        """The calls that have a part in it, the nearest first, each once."""
        return list(dict.fromkeys(node.call for node in self.walk() if node.call))

    def runs(self) -> list[str]:
        """The ids of the runs that have a part in it, the nearest first."""
        return list(dict.fromkeys(node.run_id for node in self.walk()))

    def to_mermaid(self) -> str:
        """What flowed where, as a Mermaid flowchart; the calls of a map are one box, inferred edges are dashed."""
        return drawing.mermaid(*self._graph())

    def to_dot(self) -> str:
        """The same for Graphviz."""
        return drawing.dot(self.name, *self._graph())

    def _graph(self) -> tuple[list[drawing.Node], list[drawing.Edge]]:
        members: dict[str, list[Lineage]] = {}
        edges: dict[drawing.Edge, None] = {}
        for node in self.walk():
            members.setdefault(node._box, []).append(node)
            for parameter, sources in node.inputs.items():
                for source in sources:
                    edges[drawing.Edge(source._box, node._box, parameter in node.inferred)] = None
        return [_box(key, nodes) for key, nodes in members.items()], list(edges)

    @property
    def _box(self) -> str:
        return f"{self.run_id}/{base_of(self.call)}/{self.name}"

    def _told(self, consumer: Lineage | None) -> str:
        """The artifact and its producer; the run only if it is another one than that of the line above."""
        if self.call:
            made = f"by {self.call}"
            made += f" of run {self.run_id}" if consumer is None or consumer.run_id != self.run_id else ""
        else:
            made = f"the value of run {self.run_id}"
        plain = ", ".join(parameter for parameter, sources in self.inputs.items() if not sources)
        remarks = [f"plain: {plain}"] if plain else []
        remarks += ["its run was pruned"] if self.is_pruned else []
        return printable(f"{self.name} v{self.version} {made}{f' ({_COMMA.join(remarks)})' if remarks else ''}")

    def _drawn(self) -> Iterator[str]:
        seen: set[int] = set()
        todo: list[_Drawn] = [("", self, None, 0)]
        while todo:
            label, node, consumer, depth = todo.pop()
            indent = "  " * min(depth, MOST_INDENTS)
            if node is None:
                yield f"{indent}{label}"
                continue
            again = id(node) in seen and any(node.inputs.values())
            yield f"{indent}{label}{node._told(consumer)}{' (see above)' if again else ''}"
            if not again:
                seen.add(id(node))
                todo += reversed(list(node._children(depth + 1)))

    def _children(self, depth: int) -> Iterator[_Drawn]:
        for parameter, sources in self.inputs.items():
            sign = "~" if parameter in self.inferred else "="
            for source in sources[:SHOWN]:
                yield f"{parameter} {sign} ", source, self, depth
            if len(sources) > SHOWN:
                yield f"{parameter} {sign} ... and {len(sources) - SHOWN} more", None, self, depth

    def __str__(self) -> str:
        lines: list[str] = []
        for line in self._drawn():
            if len(lines) == MOST_LINES:
                lines.append(f"... of {len(self.producers())} producers in {len(self.runs())} runs")
                break
            lines.append(line)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return page.text_page(str(self))

    def __repr__(self) -> str:
        return f"<Lineage of {self.name} v{self.version}, {len(self.producers())} producers in {len(self.runs())} runs>"


def _box(key: str, nodes: Sequence[Lineage]) -> drawing.Node:
    first = nodes[0]
    name = f"{first.name} v{first.version}" if len(nodes) == 1 else f"{first.name} ({len(nodes)} artifacts)"
    call = first.call if len(nodes) == 1 else f"{base_of(first.call)}[{len(nodes)}]"
    made = f"by {call}" if first.call else "value of the run"
    return drawing.Node(key, (name, f"{made}, run ...{first.run_id[-6:]}"))


# -- following ----------------------------------------------------------------------------


class Past:
    """The recorded runs that a walk comes through, each read once."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self._records: dict[str, RunRecord] = {}
        self._contents: dict[str, Contents] = {}

    def record(self, run_id: str) -> RunRecord:
        """What the log says of a run."""
        if run_id not in self._records:
            self._records[run_id] = self.archive.record(run_id)
        return self._records[run_id]

    def contents(self, run_id: str) -> Contents:
        """What was stored in a run, by content."""
        if run_id not in self._contents:
            self._contents[run_id] = Contents(self.archive, self.record(run_id))
        return self._contents[run_id]

    def sources(self, run: RunRecord, call: CallRecord, given: Input) -> tuple[list[ArtifactRow], bool]:
        """The artifacts that an input was made of, and whether they were found by content."""
        if given.producer or given.artifact:
            return self.archive.artifacts(sources_of(run, given)), False
        found = self.inferred(run, given.digest, call.scheduled_at)
        return ([found], True) if found is not None else ([], False)

    def inferred(self, run: RunRecord, digest: bytes, before: float) -> ArtifactRow | None:
        """The newest artifact of this content that was there by then: in the run, or in those above it."""
        seen: set[str] = set()
        while digest and digest not in commonplace() and run.run_id not in seen:
            seen.add(run.run_id)
            number = self.contents(run.run_id).newest(digest, before)
            rows = self.archive.artifacts((number,)) if number else []
            if rows or not run.parent:
                return rows[0] if rows else None
            run, before = self.record(run.parent), run.created_at
        return None


@functools.cache
def commonplace() -> frozenset[bytes]:
    """Digests of values that come from everywhere: equal content says nothing of their origin."""
    values: list[object] = [None, True, False, 0, 1, "", (), [], {}]
    return frozenset(map(codecs.digest, values))


class Contents:
    """The outputs of a run, and the values of its child runs, by their content."""

    def __init__(self, archive: Archive, run: RunRecord) -> None:
        self._found: dict[bytes, list[tuple[float, int, str]]] = {}
        ended = {
            number: (call.ended_at if call.ended_at is not None else time.time(), call.name)
            for call in run.calls.values()
            for number in call.artifacts
        }
        for number, digest in archive.digests(ended):
            self._found.setdefault(digest, []).append((ended[number][0], number, ended[number][1]))
        if run.accepted is not None:
            for number, digest in archive.digests(run.accepted.given):
                self._found.setdefault(digest, []).append((run.created_at, number, ""))
        for child in archive.values_of_children(run.run_id):
            self._found.setdefault(child.body.digest, []).append((child.body.at, child.id, ""))
        for known in self._found.values():
            known.sort()

    def newest(self, digest: bytes, before: float) -> int:
        """The number of the newest artifact of this content that was there by then; 0 if there is none."""
        return next((number for _, number, _ in reversed(self._fitting(digest, before))), 0)

    def newest_call(self, digest: bytes, before: float, *, telling: bool = False) -> str | None:
        """The newest call that made this content by then; if ``telling``, only of a value that not everybody has."""
        if telling and digest in commonplace():
            return None
        return next((name for _, _, name in reversed(self._fitting(digest, before)) if name), None)

    def _fitting(self, digest: bytes, before: float) -> list[tuple[float, int, str]]:
        return [one for one in self._found.get(digest, ()) if one[0] <= before]


def trace(archive: Archive, row: ArtifactRow) -> Lineage:
    """Follow an artifact back as far as the log goes."""
    past = Past(archive)
    root = Lineage(row)
    known: dict[int, Lineage] = {row.id: root}
    todo = [(root, row)]

    def node_of(source: ArtifactRow) -> Lineage:
        if source.id not in known:
            known[source.id] = Lineage(source)
            todo.append((known[source.id], source))
        return known[source.id]

    while todo:
        node, row = todo.pop()
        run = past.record(node.run_id)
        node.is_pruned = run.accepted is None
        call = run.calls.get(node.call)
        if call is None and not node.call:
            _follow_value(past, node, row, run, node_of)
        for given in call.inputs if call is not None else ():
            rows, is_inferred = past.sources(run, call, given) if call is not None else ([], False)
            node.inputs[given.name] = [node_of(source) for source in rows if source.id != row.id]
            if is_inferred:
                node.inferred.add(given.name)
    return root


def _follow_value(past: Past, node: Lineage, row: ArtifactRow, run: RunRecord, node_of: Any) -> None:
    """The value of a run is what one of its calls gave, if the contents are equal."""
    source = past.inferred(run, row.body.digest, run.ended_at or row.body.at)
    if source is not None and source.id != row.id:
        node.inputs["value"] = [node_of(source)]
        node.inferred.add("value")


def sources_of(run: RunRecord, given: Input) -> list[int]:
    """The numbers of the artifacts that an input was made of."""
    numbers = [given.artifact] if given.artifact else []
    for producer in filter(None, given.producer.split(",")):
        numbers += _outputs(run, producer)
    return numbers


def _outputs(run: RunRecord, producer: str) -> list[int]:
    """The outputs of a call, of ``call.output``, or of all calls of a map."""
    call = run.calls.get(producer)
    if call is not None:
        return list(call.artifacts)
    name, _, output = producer.rpartition(".")
    call = run.calls.get(name)
    if call is not None and output in call.outputs:
        return [call.artifacts[call.outputs.index(output)]]
    return [number for call in children(run, producer) for number in call.artifacts]


def children(run: RunRecord, group: str) -> list[CallRecord]:
    """The calls of a map, by index."""
    found = [call for name, call in run.calls.items() if base_of(name) == group and name != group]
    return sorted(found, key=lambda call: int(call.name[len(group) + 1 : -1]))


def value_of(archive: Archive, run: RunRecord, given: Input) -> Any:
    """What a call received for a parameter, loaded from what the input refers to.

    Raises:
        LookupError: it was a plain value, or the artifact is gone.
    """
    if not given.artifact and "," not in given.producer:
        call = run.calls.get(given.producer)
        if call is None and (calls := children(run, given.producer)):
            return [_joined(archive, call) for call in calls]
        if call is not None and len(call.artifacts) > 1:
            return _joined(archive, call)
    rows = archive.artifacts(sources_of(run, given))
    if len(rows) != 1:
        raise LookupError(given.name)
    return archive.vault.value(rows[0])


def _joined(archive: Archive, call: CallRecord) -> Any:
    if call.status == "skipped" and call.skip_reason == "condition":
        return None
    rows = archive.artifacts(call.artifacts)
    if not rows or len(rows) != len(call.artifacts):
        raise LookupError(call.name)
    values = [archive.vault.value(row) for row in rows]
    return shapes.join(values, rows[0].body.shape, call.outputs, trusted=True)
