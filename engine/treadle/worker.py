"""What a worker of any executor does with an attempt: import the step, decode, call, encode, describe what it raised.

It is the same in a subprocess, a container and a cluster, and knows nothing of how it got there: whoever runs it
receives attempts, hands them to ``Worker.perform`` on the main thread, and carries the answers back. It imports what
it needs when it needs it, so that a worker that waits is small.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from treadle._runtime.context import active_call
from treadle._runtime.context import is_importing as is_importing  # adapters ask it, too
from treadle._runtime.current import Current, _number
from treadle._runtime.isolation.telling import described as described  # and this
from treadle.contracts import INLINE_BYTES, Attempt, Output, Part, Payload, Performed, Raised
from treadle.errors import StepNotImportable, TreadleError

if TYPE_CHECKING:
    from treadle._core.expected import Expected, Wanted
    from treadle._runtime.calls.call import Call
    from treadle._runtime.code.identity import Identities
    from treadle._runtime.isolation.around import Around
    from treadle._runtime.isolation.kept import Kept
    from treadle._runtime.plan import Plan
    from treadle.contracts import ArtifactStore, Sink
    from treadle.storage.codecs import Encoded

MOST_STORES = 16
MOST_INLINE_BYTES = 4 * 1024 * 1024
"""Of all outputs of one call together; what is more goes into the store, however small."""


def preload() -> None:
    """Import what performing an attempt needs, for a process that is going to be forked."""
    import asyncio
    import contextvars
    import inspect
    import logging
    import runpy

    from treadle import storage
    from treadle._core import expected, outputs
    from treadle._runtime.calls import facts, validation
    from treadle._runtime.code import agreement
    from treadle._runtime.isolation import around
    from treadle._runtime.resources import usage
    from treadle.storage import codecs, local_blobs, views

    del around, asyncio, contextvars, inspect, logging, runpy, storage
    del expected, outputs, facts, usage, validation, codecs, local_blobs, views
    agreement.begin()


def store_of(attempt: Attempt) -> ArtifactStore:
    """The store that an attempt names, for a worker, or for an executor that has to carry bytes between machines.

    Raises:
        OptionError: the library for a store of that kind is missing.
        ArtifactStoreError: a folder cannot be made.
    """
    if "://" in attempt.store:
        from treadle.storage.fsspec_blobs import FsspecBlobs

        return FsspecBlobs(attempt.store)
    from treadle.storage.local_blobs import LocalBlobs

    return LocalBlobs(Path(attempt.store), Path(attempt.store_tmp) if attempt.store_tmp else None)


def adopt(attempt: Attempt, payload: Payload, outbox: Path) -> bool:
    """Copy a file that a worker has written elsewhere into the store of its attempt, for executors that need to.

    Args:
        attempt: as the engine gave it; its store is a folder.
        payload: what the worker says of the file.
        outbox: the folder that the payload's location is in; who writes there need not be trusted, and may still write.

    Returns:
        Whether it is a file there with the size and checksum that the payload names; nothing is stored otherwise.

    Raises:
        ArtifactStoreError: the store cannot be written.
    """
    from treadle.errors import ArtifactDamaged
    from treadle.storage.local_blobs import LocalBlobs

    store = store_of(attempt)
    assert isinstance(store, LocalBlobs)
    try:
        return store.take(outbox, payload.location, payload.size, payload.checksum) == payload.location
    except ArtifactDamaged:
        return False


class Target:
    """A step as a worker knows it; it quacks like the engine's plan where annotations are checked."""

    def __init__(self, name: str, fn: Callable[..., Any], outputs: tuple[str, ...]) -> None:
        import inspect

        from treadle._core.expected import expected_of

        self.name, self.fn, self.outputs = name, fn, outputs
        self.output_names = outputs or (name,)
        self.is_async = inspect.iscoroutinefunction(fn)
        self.expected: Expected | None = expected_of(fn)
        self.promised: dict[str, Wanted] | None = None
        if self.expected is not None:
            self.promised = self.expected.promised(self.output_names)


class Worker:
    """Performs attempts, one after another; remembers imported steps and open stores.

    Args:
        is_alone: nothing else is done in this process, and ``perform`` is called on its main thread. Then what a body
            changes of its folder, environment, import path, streams, signals and the like is put back after it.
    """

    def __init__(self, *, is_alone: bool = False) -> None:
        self._targets: dict[tuple[str, str, str, tuple[str, ...]], Target] = {}
        self._stores: dict[str, ArtifactStore] = {}
        self._main = ""
        self._room = MOST_INLINE_BYTES
        self._kept: Kept | None = None
        self._around: Around | None = None
        if is_alone:
            from treadle._runtime.isolation.around import Around

            self._around = Around()

    @property
    def keeps_any(self) -> bool:
        """Whether it has values in memory for the next step of an execution group."""
        return self._kept is not None and not self._kept.is_empty

    @property
    def is_spent(self) -> bool:
        """Whether a body has changed what cannot be put back, so that no other should run here."""
        return self._around is not None and self._around.is_spent

    def forget(self) -> None:
        """Keep none of them: nobody has come."""
        if self._kept is not None:
            self._kept.forget()

    def perform(self, attempt: Attempt, sink: Sink) -> Performed | Raised:
        """Perform one attempt; never raises, but for a ``BaseException`` that is meant for this process.

        Args:
            attempt: what to perform.
            sink: takes what the step says, from any thread.
        """
        from treadle._runtime.resources.usage import Measured

        with Measured(attempt.needs.memory) as used:
            try:
                outputs, shape = self._perform(attempt, sink)
            except BaseException as error:
                raised = described(error)
                used.stop()
                return msgspec.structs.replace(raised, peak_rss_bytes=used.peak_rss_bytes, cpu_s=used.cpu_s)
        return Performed(outputs, shape, used.peak_rss_bytes, used.cpu_s)

    def _perform(self, attempt: Attempt, sink: Sink) -> tuple[tuple[Output, ...], str]:
        target = self._target(attempt)
        if attempt.group or self._kept is not None:
            self._begin_group(attempt.group)
        args = [self._decoded(attempt, payload) for payload in attempt.args]
        kwargs = {name: self._decoded(attempt, payload) for name, payload in attempt.kwargs.items()}
        _check_inputs(target, attempt, [*args, *kwargs.values()])
        if self._around is None:
            return self._outputs(target, attempt, sink, args, kwargs)
        with self._around.put_back():
            return self._outputs(target, attempt, sink, args, kwargs)

    def _outputs(
        self, target: Target, attempt: Attempt, sink: Sink, args: list[Any], kwargs: dict[str, Any]
    ) -> tuple[tuple[Output, ...], str]:
        from treadle._core.outputs import split

        value = _call(target, attempt, sink, args, kwargs)
        args.clear()
        kwargs.clear()
        values, shape = split(target.name, target.outputs, value)
        _check_outputs(target, values)
        del value
        self._room = MOST_INLINE_BYTES
        values.reverse()  # each is taken out, so that who looks sees whether the body has kept it
        return tuple([self._encoded(attempt, name, values.pop()) for name in target.output_names]), shape

    def _begin_group(self, group: str) -> None:
        if self._kept is None:
            from treadle._runtime.isolation.kept import Kept

            self._kept = Kept()
        self._kept.begin(group)

    # -- the step -------------------------------------------------------------------------

    def _target(self, attempt: Attempt) -> Target:
        key = (attempt.module, attempt.qualname, attempt.step, attempt.outputs)
        found = self._targets.get(key)
        if found is None:
            from treadle._runtime.code import agreement

            found = Target(attempt.step, self._function(attempt), attempt.outputs)
            agreement.check(attempt, found.fn, _known_code())
            self._targets[key] = found
        return found

    def _function(self, attempt: Attempt) -> Callable[..., Any]:
        where = f"{attempt.module}:{attempt.qualname}"
        begun = is_importing.set(True)
        try:
            if attempt.module == "__main__":
                self._import_main(attempt.main)
            module = importlib.import_module(attempt.module)
        except Exception as error:
            raise _not_imported(attempt.module, where, error) from error
        except SystemExit as error:
            raise _not_found(where, f"importing it raised SystemExit({error.code!r})", _MEND) from error
        finally:
            is_importing.reset(begun)
        found: Any = module
        for part in attempt.qualname.split("."):
            found = getattr(found, part, None)
        if getattr(type(found), "__treadle_callable__", False):
            found = found.fn
        if not callable(found):
            raise _not_found(
                where, f"the module has no {attempt.qualname} when a worker imports it",
                "define it at the top level of the module, wherever that is imported",
            )  # fmt: skip
        return cast("Callable[..., Any]", found)

    def _import_main(self, main: str) -> None:
        """Run the program once more as a module that is not the main one, and let it be found as ``__main__``."""
        if self._main == main:
            return
        module = types.ModuleType("__treadle_main__")
        sys.modules["__treadle_main__"] = module
        if main.startswith("-m "):
            import runpy

            found = runpy.run_module(main[3:], run_name="__treadle_main__", alter_sys=False)
            module.__dict__.update(found)
            found["__name__"] = "__main__"  # these are the globals of its functions
        else:
            module.__file__ = main
            sys.path[:0] = [folder] if (folder := str(Path(main).parent)) not in sys.path else []
            if Path(folder).is_file():
                import zipimport

                module.__loader__ = loader = zipimport.zipimporter(folder)  # tracebacks read the source through it
                code = loader.get_code("__main__")
            else:
                code = compile(Path(main).read_bytes(), main, "exec", dont_inherit=True)
            exec(code, module.__dict__)
        _rename(module.__dict__, set())
        module.__name__ = "__main__"
        sys.modules["__main__"] = module
        self._main = main

    # -- values ---------------------------------------------------------------------------

    def _inbox(self, attempt: Attempt) -> ArtifactStore:
        if not attempt.inbox:
            return self._store(attempt)
        return self._store(msgspec.structs.replace(attempt, store=attempt.inbox, store_tmp=""))

    def _store(self, attempt: Attempt) -> ArtifactStore:
        store = self._stores.get(attempt.store)
        if store is None:
            if len(self._stores) >= MOST_STORES:
                self._stores.clear()
            store = self._stores[attempt.store] = store_of(attempt)
        return store

    def _decoded(self, attempt: Attempt, payload: Payload) -> Any:
        if not payload.parts:
            return self._read(attempt, payload)
        from treadle._core.binding import replace

        return replace(
            self._read(attempt, payload), (Part,), lambda part: self._read(attempt, payload.parts[part.number])
        )

    def _read(self, attempt: Attempt, payload: Payload) -> Any:
        from treadle.storage import views

        if payload.data is None:
            if self._kept is not None:
                is_here, value = self._kept.take(payload)
                if is_here:
                    return value
            return views.load(self._inbox(attempt), payload, allow_pickle=attempt.allow_pickle)
        from treadle.storage import codecs

        return codecs.decode(payload.codec, payload.data, trusted=True, allow_pickle=attempt.allow_pickle)

    def _encoded(self, attempt: Attempt, name: str, value: Any) -> Output:
        from treadle._runtime.calls import facts
        from treadle.kinds import Asset
        from treadle.storage import codecs

        array = codecs.in_pieces(value)
        if array is not None:
            encoded, pieces = array
            payload = self._stored(attempt, encoded, pieces)
            del pieces, array
        else:
            encoded = codecs.encode(value, code_digest=_code_digest, allow_pickle=attempt.allow_pickle)
            payload = self._stored(attempt, encoded, (encoded.data,))
        if self._kept is not None:
            self._kept.keep(value, payload, encoded.data or None, mutable=encoded.mutable)
        alias = value.name if isinstance(value, Asset) and value.name not in (None, name) else ""
        return Output(payload, encoded.type_name, facts.packed(value), alias or "")

    def _stored(self, attempt: Attempt, encoded: Encoded, pieces: Sequence[bytes | memoryview]) -> Payload:
        from treadle.storage.local_blobs import LocalBlobs

        size = sum(map(len, pieces))
        if size <= min(INLINE_BYTES, self._room):
            self._room -= size
            data = bytes(encoded.data)
            return Payload(encoded.codec, encoded.digest, encoded.checksum, size, data)
        store = self._store(attempt)
        if isinstance(store, LocalBlobs):
            location = store.put_pieces(pieces, size, encoded.checksum)
        else:
            location = store.put(b"".join(pieces), encoded.checksum)
        return Payload(encoded.codec, encoded.digest, encoded.checksum, size, None, location)


# -- the call -----------------------------------------------------------------------------


class RemoteCurrent(Current):
    """The call whose body is running in a worker; it stands for the call itself where only its being there counts."""

    __slots__ = ("_attempt", "_sink", "run")
    ending = state = None

    def __init__(self, attempt: Attempt, sink: Sink) -> None:
        self._attempt, self._sink = attempt, sink
        self.run = types.SimpleNamespace(debug=False, is_over=True)

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self._attempt.run_id

    @property
    def call(self) -> str:
        """The call's name."""
        return self._attempt.call

    @property
    def attempt(self) -> int:
        """Number of this attempt, from 1."""
        return self._attempt.attempt

    @property
    def deadline(self) -> float | None:
        """When this attempt times out: seconds since the epoch, or ``None``."""
        timeout = self._attempt.timeout_s
        return None if timeout is None else self._attempt.started_at + timeout

    @property
    def token(self) -> str:
        """The idempotency token of the call."""
        return self._attempt.token

    def log_metadata(self, **facts: Any) -> None:
        """Attach facts (plain data) to this call."""
        self._sink.note(self._packed(facts))

    def progress(self, done: float, total: float | None = None) -> None:
        """Say how far the step is."""
        self._sink.progress(_number("done", done), None if total is None else _number("total", total))


def _call(target: Target, attempt: Attempt, sink: Sink, args: list[Any], kwargs: dict[str, Any]) -> Any:
    import contextvars

    def body() -> Any:
        active_call.set(cast("Call", RemoteCurrent(attempt, sink)))
        if not target.is_async:
            return target.fn(*args, **kwargs)
        import asyncio

        return asyncio.run(target.fn(*args, **kwargs))

    return contextvars.copy_context().run(body)


def _check_inputs(target: Target, attempt: Attempt, values: list[Any]) -> None:
    if target.expected is None:
        return
    from treadle._runtime.calls import validation

    for label, value in zip(attempt.labels, values, strict=True):
        validation.check_input(cast("Plan", target), label, value, is_linked=label in attempt.linked)


def _check_outputs(target: Target, values: list[Any]) -> None:
    if target.promised is None:
        return
    from treadle._runtime.calls import validation

    validation.check_outputs(cast("Plan", target), values)


def _code_digest(value: object) -> bytes:
    """The fingerprint of a function or class that is used as a value; most steps return none."""
    return _known_code().code_digest(value)


def _known_code() -> Identities:
    global _identities
    if _identities is None:
        from treadle._runtime.code.identity import Identities

        _identities = Identities()
    return _identities


_identities: Identities | None = None


# -- finding steps ------------------------------------------------------------------------


_MEND = "see that the module can be imported by another process; put what is not for it below `if __name__ == ...`"


def _not_imported(module: str, where: str, error: Exception) -> StepNotImportable:
    why, fix = f"importing it raised {type(error).__name__}: {error}", _MEND
    if isinstance(error, TreadleError):
        why = f"importing it raised {type(error).__name__}: {error.what}"
        why += f", because {error.why}" if error.why else ""
        fix = error.fix or fix
    elif isinstance(error, ModuleNotFoundError) and error.name:
        if f"{module}.".startswith(f"{error.name}."):
            why = f"there is no module {error.name!r} on the import path of the worker"
            fix = (
                "install it where the worker runs, or have its folder on the import path (sys.path) of the engine's"
                " process; a module without a file, as one that a program has made, is found by no other process"
            )
        else:
            fix = f"install {error.name} where the worker runs"
    return _not_found(where, why, fix)


def _not_found(where: str, why: str, fix: str) -> StepNotImportable:
    return StepNotImportable(f"a worker cannot find the step {where}", why=why, fix=fix)


def _rename(names: dict[str, Any], seen: set[int]) -> None:
    """Classes and functions of the program say that they belong to ``__main__``, as they do in the engine's process."""
    for value in list(names.values()):
        if getattr(value, "__module__", None) != "__treadle_main__" or id(value) in seen:
            continue
        seen.add(id(value))
        try:
            value.__module__ = "__main__"
        except (AttributeError, TypeError):
            continue
        if isinstance(value, type):
            _rename(dict(vars(value)), seen)
