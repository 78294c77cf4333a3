"""Where an artifact comes from: its producer, what that took, and so on back; read from the log, never written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from treadle._core.naming import base_of
from treadle._core.replay import CallRecord, RunRecord
from treadle.events import Input

if TYPE_CHECKING:
    from treadle._runtime.archive import Archive
    from treadle.storage.rows import ArtifactRow

SHOWN = 8
"""So many sources of one parameter are drawn; a number stands for the others."""


class Lineage:
    """An artifact and what it was made of; ``str`` draws it as a tree.

    Attributes:
        name, version, digest: of the artifact.
        run_id, call, step: its producer.
        inputs: what the producer took, by parameter: a ``Lineage`` for each artifact, none for plain values.
    """

    __slots__ = ("call", "digest", "inputs", "name", "run_id", "step", "version")

    def __init__(self, row: ArtifactRow) -> None:
        body = row.body
        self.name, self.version, self.digest = row.name, row.version, f"blake3:{body.digest.hex()}"
        self.run_id, self.call, self.step = body.run, body.call, body.step
        self.inputs: dict[str, list[Lineage]] = {}

    def producers(self) -> list[str]:
        """The calls that have a part in it, the nearest first, each once."""
        found: dict[str, None] = {}
        todo = [self]
        for node in todo:
            if node.call not in found:
                found[node.call] = None
                todo += [source for sources in node.inputs.values() for source in sources]
        return list(found)

    def _drawn(self, label: str, depth: int, seen: set[int]) -> Iterator[str]:
        made = f"by {self.call} of run {self.run_id}" if self.call else f"the value of run {self.run_id}"
        again = id(self) in seen and bool(self.inputs)
        yield f"{'  ' * depth}{label}{self.name} v{self.version} {made}{' (see above)' if again else ''}"
        if again:
            return
        seen.add(id(self))
        for parameter, sources in self.inputs.items():
            for source in sources[:SHOWN]:
                yield from source._drawn(f"{parameter} = ", depth + 1, seen)
            if len(sources) > SHOWN:
                yield f"{'  ' * (depth + 1)}{parameter} = ... and {len(sources) - SHOWN} more"

    def __str__(self) -> str:
        return "\n".join(self._drawn("", 0, set()))

    def __repr__(self) -> str:
        return f"<Lineage of {self.name} v{self.version}, {len(self.producers())} producers>"


def trace(archive: Archive, row: ArtifactRow) -> Lineage:
    """Follow an artifact back as far as the log goes."""
    root = Lineage(row)
    known: dict[int, Lineage] = {row.id: root}
    runs: dict[str, RunRecord] = {}
    todo = [root]
    while todo:
        node = todo.pop()
        if node.run_id not in runs:
            runs[node.run_id] = archive.record(node.run_id)
        call = runs[node.run_id].calls.get(node.call)
        for given in call.inputs if call is not None else ():
            sources: list[Lineage] = []
            for source in archive.artifacts(sources_of(runs[node.run_id], given)):
                if source.id not in known:
                    known[source.id] = Lineage(source)
                    todo.append(known[source.id])
                sources.append(known[source.id])
            node.inputs[given.name] = sources
    return root


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
    rows = archive.artifacts(call.artifacts)
    if not rows or len(rows) != len(call.artifacts):
        raise LookupError(call.name)
    values = [archive.vault.value(row) for row in rows]
    shape = rows[0].body.shape
    if shape == "dict":
        return dict(zip(call.outputs, values, strict=True))
    if shape == "list":
        return values
    return tuple(values) if shape == "tuple" else values[0]
