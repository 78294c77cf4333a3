"""Outputs of workers that are not trusted: what they say of them is nothing, their bytes are all.

Large bytes, text, arrays and data frames are stored as the worker has written them, under a content digest that is
derived here; all else is decoded as a stranger's, and encoded again.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from treadle._runtime.calls import facts, inputs, validation
from treadle.contracts import Output, Payload, Performed
from treadle.storage import codecs
from treadle.storage.fsspec_blobs import FsspecBlobs
from treadle.storage.local_blobs import LocalBlobs
from treadle.storage.rows import ArtifactRow, Body

if TYPE_CHECKING:
    from treadle._runtime.calls.call import Call


async def unopened(call: Call, store: LocalBlobs | FsspecBlobs, performed: Performed) -> list[codecs.Unopened | None]:
    """Of each output what it is, if it can be stored as it is; else ``None``.

    Raises:
        ArtifactDamaged: the bytes in the store are not those that the worker names.
        DecodeError: they are not of the codec that it names.
    """
    io = call.run.engine.io
    return [
        None if output.payload.data is not None else await io.run(_unopened, store, output.payload)
        for output in performed.outputs
    ]


def _unopened(store: LocalBlobs | FsspecBlobs, payload: Payload) -> codecs.Unopened | None:
    with closing(store.pieces(payload.location, payload.size, payload.checksum)) as pieces:
        return codecs.unopened(payload.codec, payload.size, payload.checksum, pieces)


async def rows(
    call: Call, known: list[codecs.Unopened | None], values: list[Any], performed: Performed
) -> list[ArtifactRow]:
    """The artifacts of a call of which some outputs stay unopened.

    Args:
        call: whose they are.
        known: as ``unopened`` gave it.
        values: of the others; a sample for each that stays unopened.
        performed: what the worker sent.

    Raises:
        StepTypeError: an output is not of the kind that the step promises.
        DecodeError: the worker names a container that there is not.
    """
    plan = call.plan
    if plan.promised is not None:
        validation.check_outputs(plan, values)
    # Not what the worker says: what its outputs would make here.
    call.shape = plan.split(plan.join(values, performed.shape, plan.output_names))[1]
    seconds = call.run.ticks() - call.started_clock
    found: list[ArtifactRow] = []
    for name, what, value, output in zip(plan.output_names, known, values, performed.outputs, strict=True):
        if what is None:
            found.append(await inputs.keep(call, name, value, seconds))
        else:
            found.append(ArtifactRow(name, _body(call, name, what, output, seconds)))
    return found


def _body(call: Call, name: str, what: codecs.Unopened, output: Output, seconds: float) -> Body:
    payload = output.payload
    return Body(
        what.digest, payload.checksum, payload.size, payload.codec, what.type_name,
        call.run.id, call.name, name, call.run.now(), seconds, location=payload.location,
        step=call.plan.name, metadata=facts.packed(what.sample), shape=call.shape,
    )  # fmt: skip
