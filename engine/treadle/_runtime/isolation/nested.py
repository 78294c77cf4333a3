"""Arguments that hold large stored values in lists, tuples and dicts: what travels is the container, and their names.

The engine's process reads the bytes of such values once, piece by piece, because a container counts by its content; it
never has them as values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from treadle._core.binding import find, replace
from treadle._runtime.calls import inputs
from treadle._runtime.calls.call import Call, StepFuture
from treadle._runtime.isolation import distant
from treadle._runtime.maps.mapping import MapFuture
from treadle._runtime.maps.unmapped import Unmapped
from treadle.contracts import Part
from treadle.storage import codecs
from treadle.storage.fsspec_blobs import FsspecBlobs
from treadle.storage.local_blobs import LocalBlobs

if TYPE_CHECKING:
    from treadle._runtime.engine import Engine
    from treadle.storage.rows import ArtifactRow


class Held:
    """A large stored value in an argument."""

    __slots__ = ("row",)

    def __init__(self, row: ArtifactRow) -> None:
        self.row = row


def held(content: Any) -> Any:
    """An argument with its futures, maps and artifacts replaced: by their values if those are small or not stored."""
    return replace(content, inputs.Stand_ins, _held)


def _held(item: Any) -> Any:
    if isinstance(item, MapFuture):
        return [_of_child(child) for child in item._made()]
    if isinstance(item, Unmapped):
        return held(item.value)
    if isinstance(item, StepFuture):
        return _of_call(item._call, asyncio.Future.result(item), item._output)
    return Held(item._row) if _is_held(item._row) else item.read()


def _of_child(child: Call | StepFuture[Any]) -> Any:
    return _of_call(child, child.value, "") if isinstance(child, Call) else _held(child)


def _of_call(call: Call, value: Any, output: str) -> Any:
    rows, plan = call.rows, call.plan
    if rows is None or not any(map(_is_held, rows)):
        return distant.arrived(value)
    if output or len(rows) == 1:
        row = rows[plan.output_names.index(output) if output else 0]
        return Held(row) if _is_held(row) else distant.arrived(value)
    if type(value) is not distant.Unloaded:
        return value
    parts = [Held(row) if _is_held(row) else distant.arrived(value.part(index)) for index, row in enumerate(rows)]
    return plan.join(parts, call.shape, plan.output_names)


def _is_held(row: ArtifactRow) -> bool:
    return row.body.data is None and distant.is_in_store(row)


def holds_any(content: Any) -> bool:
    """Whether there is a large stored value in an argument, or what may be one."""
    for item in find((content,), inputs.Stand_ins):
        if isinstance(item, MapFuture):
            calls = [child if isinstance(child, Call) else child._call for child in item._made()]
        elif isinstance(item, StepFuture):
            calls = [item._call]
        elif isinstance(item, Unmapped):
            return holds_any(item.value)
        elif _is_held(item._row):
            return True
        else:
            continue
        if any(_is_held(row) for call in calls for row in call.rows or ()):
            return True
    return False


def skeleton(content: Any) -> tuple[Any, list[ArtifactRow]]:
    """The argument as it travels, with a ``Part`` in the place of each stored value, and those."""
    rows: list[ArtifactRow] = []

    def part(item: Held) -> Part:
        rows.append(item.row)
        return Part(len(rows) - 1)

    return replace(content, (Held,), part), rows


def digest(engine: Engine, content: Any) -> bytes | None:
    """The content digest of the whole argument; ``None`` if it takes the values to know it. Blocks."""
    return codecs.spliced_digest(
        content, Held, lambda item: _stored(engine, item.row),
        code_digest=engine.identities.code_digest, allow_pickle=engine.vault.allow_pickle,
    )  # fmt: skip


def _stored(engine: Engine, row: ArtifactRow) -> codecs.Stored:
    body = row.body
    return codecs.Stored(body.codec, body.digest, body.checksum, body.size, _pieces(engine, row))


def _pieces(engine: Engine, row: ArtifactRow) -> Callable[[], Generator[memoryview, None, None]]:
    def pieces() -> Generator[memoryview, None, None]:
        blobs, body = engine.vault.blobs, row.body
        if isinstance(blobs, (LocalBlobs, FsspecBlobs)) and distant.is_in_store(row):
            yield from blobs.pieces(body.location, body.size, body.checksum)
        else:
            yield memoryview(engine.vault.data(row))

    return pieces
