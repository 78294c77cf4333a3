"""What the log keeps of a run's beginning, so that another process can begin it again: its arguments and options."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from treadle import events as ev
from treadle._runtime.calls import inputs
from treadle._runtime.plan import hint, logger
from treadle.contracts import INLINE_BYTES
from treadle.errors import ArgumentNotStorable, ArtifactDamaged, DecodeError, EncodeError
from treadle.options import UNSET, FailureMode, PipelineOptions
from treadle.storage import codecs, failpoints
from treadle.storage.rows import ArtifactRow, Body, Part

if TYPE_CHECKING:
    from treadle._core.replay import RunRecord
    from treadle._runtime.engine import Engine
    from treadle._runtime.run import Run


class Stored(msgspec.Struct):
    """Arguments as the log keeps them: in the event, or beside it if they are large."""

    encoded: codecs.Encoded
    location: str = ""


def store(run: Run) -> Stored | None:
    """Encode the arguments, and store large ones; ``None`` if they cannot be kept."""
    try:
        encoded = inputs.encode(run.engine, arguments(run.args, run.kwargs, run.context))
    except EncodeError as error:
        if run.options.idempotency_key:
            raise ArgumentNotStorable(
                f"pipeline {run.name} has an idempotency key, and argument {_parameter(run, error)} cannot be stored",
                why=error.what.partition(" cannot be stored: ")[2] or error.what,
                fix="pass plain data (an address instead of a client), or leave the idempotency key away",
                parameter=_parameter(run, error),
            ) from error
        run.recoverable = False
        hint(f"runs of pipeline {run.name} cannot be resumed: argument {_parameter(run, error)} cannot be stored")
        return None
    if len(encoded.data) <= INLINE_BYTES:
        return Stored(encoded)
    return Stored(encoded, run.engine.vault.blobs.put(encoded.data, encoded.checksum))


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any], context: Mapping[str, Any]) -> list[Any]:
    """What is kept of the arguments of a run; the context is one of them, where there is one."""
    return [list(args), kwargs, {name: context[name] for name in sorted(context)}] if context else [list(args), kwargs]


def _parameter(run: Run, error: EncodeError) -> str:
    bound = run.target.binder.bind(run.args, run.kwargs)
    given: dict[str, Any] = (run.kwargs.get("inputs") or {}) if run.target.is_wired else bound
    for name, value in (*given.items(), *run.context.items()):
        try:
            inputs.encode(run.engine, value)
        except EncodeError:
            return name
    return getattr(error, "path", "")


def accept(run: Run, stored: Stored | None) -> None:
    engine = run.engine
    log = engine.log
    part = run.part()  # before the row, so that row and event are in one commit
    log.accept(
        [
            run.id,
            run.name,
            run.target.target,
            engine.id,
            run.parent.id if run.parent else "",
            run.recoverable,
            run.created_at,
        ]
    )
    run.append(accepted(run, stored, part))
    part.waiters.append(_Accepted(run))
    log.kick()
    logger.log(logging.INFO, "run %s of %s started", run.id, run.name)
    failpoints.hit("accepted")


def accepted(run: Run, stored: Stored | None, part: Part) -> ev.RunAccepted:
    """The event; large arguments go beside it, as an artifact."""
    data, codec = b"", ""
    if stored is not None:
        encoded = stored.encoded
        data, codec = bytes(encoded.data), encoded.codec
        if stored.location:
            body = Body(
                encoded.digest, encoded.checksum, len(data), codec, encoded.type_name, run.id, "", "", run.created_at,
                location=stored.location,
            )  # fmt: skip
            part.artifacts.append(ArtifactRow(f"arguments:{run.name}", body))
            data = b""
    return ev.RunAccepted(
        at=run.created_at, pipeline=run.name, parent=run.parent.id if run.parent else "", parent_call=run.parent_call,
        arguments=data, codec=codec, recoverable=run.recoverable, options=KeptOptions.of(run).packed(),
        wired=run.target.is_wired, given=run.artifacts_given,
    )  # fmt: skip


class KeptOptions(msgspec.Struct, omit_defaults=True):
    """What a resume has to know beside the arguments; ``script`` is the file of a pipeline in ``__main__``."""

    name: str | None = None
    failure_mode: FailureMode | None = None
    timeout: float | None = None
    max_concurrency: int | None = None
    tags: tuple[str, ...] = ()
    script: str = ""
    codec: str = ""
    defaults: bytes = b""

    @classmethod
    def of(cls, run: Run) -> KeptOptions:
        options = run.options
        codec, defaults = _encoded_defaults(run)
        return cls(
            name=options.name or None, failure_mode=options.failure_mode or None, timeout=options.timeout or None,
            max_concurrency=options.max_concurrency or None, tags=options.tags or (),
            script=script_of(run.target.target), codec=codec, defaults=defaults,
        )  # fmt: skip

    def packed(self) -> bytes:
        return b"" if self == KeptOptions() else msgspec.msgpack.encode(self)

    @classmethod
    def read(cls, packed: bytes) -> KeptOptions:
        return msgspec.msgpack.decode(packed, type=cls) if packed else cls()

    def over(self, options: PipelineOptions, engine: Engine) -> PipelineOptions:
        """These options laid over others."""
        given = {name: getattr(self, name) for name in ("name", "failure_mode", "timeout", "max_concurrency", "tags")}
        known: dict[str, Any] = {name: value for name, value in given.items() if value}
        if self.defaults:
            known |= decoded(engine, (self.codec, self.defaults))
        return options.over(PipelineOptions(**known))


def _encoded_defaults(run: Run) -> tuple[str, bytes]:
    """The defaults for the run's steps that the pipeline, or ``with_options``, gave."""
    options = {name: getattr(run.options, name) for name in ("cache", "retry")}
    given = {name: value for name, value in options.items() if value is not UNSET}
    if not given:
        return "", b""
    try:
        encoded = inputs.encode(run.engine, given)
    except EncodeError as error:
        hint(f"a resumed run of pipeline {run.name} has the cache and retry of its decorator: {error.what}")
        return "", b""
    return encoded.codec, bytes(encoded.data)


def script_of(target: str) -> str:
    """The file of a pipeline that a script defines; every script's module has the name ``__main__``."""
    if not target.startswith("__main__:"):
        return ""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return _real_path(file) if file else "interactive"


@functools.cache
def _real_path(file: str) -> str:
    """Asked once for a file: it takes a dozen system calls, and a step may change the folder."""
    return os.path.realpath(file)


class _Accepted:
    """Tells a run that its acceptance is in the log."""

    __slots__ = ("run",)

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_commit(self, error: BaseException | None, /) -> None:
        future = self.run.accepted
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


# -- back from the log --------------------------------------------------------------------


def stored_in(engine: Engine, record: RunRecord) -> tuple[str, bytes] | None:
    accepted = record.accepted
    if accepted is None or not accepted.codec:
        return None
    if accepted.arguments:
        return accepted.codec, accepted.arguments
    rows = engine.archive.named_in_run(f"arguments:{record.pipeline}", record.run_id)
    return (accepted.codec, engine.vault.data(rows[0])) if rows else None


def decoded(engine: Engine, stored: tuple[str, bytes]) -> Any:
    return codecs.decode(stored[0], stored[1], trusted=True, allow_pickle=engine.vault.allow_pickle)


def digest_in(engine: Engine, record: RunRecord) -> bytes:
    try:
        stored = stored_in(engine, record)
        return inputs.encode(engine, decoded(engine, stored)).digest if stored is not None else b""
    except (ArtifactDamaged, DecodeError, EncodeError):
        return b""
