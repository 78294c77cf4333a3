"""What adapters fulfil: the protocols by which the engine reaches codecs, bytes, executors and the clock.

Their docstrings list obligations; the suites in ``treadle.testing`` hold every implementation to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Protocol, runtime_checkable

import msgspec

INLINE_BYTES = 64 * 1024
"""Up to this size a value lies in the log's database and rides in messages; above, it is a blob."""
MOST_NOTES = 32
MOST_PARTS = 1000
"""So many exceptions may lie inside of one that a worker sends: members of groups, arguments, causes."""
MOST_DEEP = 32
"""And so deep."""


@runtime_checkable
class Codec(Protocol):
    """How values of some type become bytes and back.

    Obligations: ``decode(encode(v))`` equals ``v`` with the same types at every depth; ``encode`` and ``decode`` may be
    called from several threads at once; ``name`` is stored beside the bytes and stays the same for ever.

    Three more attributes are looked up and may be left out:

    * ``digest(value) -> bytes``: a digest of the content. Without it the encoded bytes are hashed, so ``encode`` must
      then give equal bytes for equal values, in every process.
    * ``safe = True``: ``decode`` runs no code that the bytes choose; only then it is given untrusted bytes.
    * ``mutable = False``: its values cannot be changed in place.
    """

    @property
    def name(self) -> str:
        """The codec's name in the log, for example ``"onnx"``."""
        ...

    def accepts(self, value: object) -> bool:
        """Whether this codec is the one for the value; cheap, and it imports nothing."""
        ...

    def encode(self, value: Any) -> bytes:
        """The value as bytes."""
        ...

    def decode(self, data: bytes) -> object:
        """The value of bytes that ``encode`` has given."""
        ...


class ArtifactStore(Protocol):
    """Where large artifacts are kept. Every method blocks, may be called from any thread, and never hangs."""

    def put(self, data: bytes | memoryview, checksum: bytes) -> str:
        """Store bytes durably and atomically under their BLAKE3 digest; gives their location.

        Bytes that are there already are checked, not written again, and count as new for a collection.

        Raises:
            ArtifactStoreError: they could not be stored; nothing is left of the attempt.
        """
        ...

    def get(self, location: str, size: int, checksum: bytes) -> bytes:
        """Read bytes whose length and digest are right.

        Raises:
            ArtifactDamaged: they are missing, or are not those that were stored.
            ArtifactStoreError: the store could not be read; they may be sound.
        """
        ...

    def exists(self, location: str, size: int) -> bool:
        """Whether a blob of that size is there; its bytes are not read."""
        ...

    def delete(self, location: str, unless_used_since: float | None = None) -> bool:
        """Remove a blob; says whether there was one to remove.

        Args:
            location: as ``put`` or ``list`` gave it.
            unless_used_since: the time that ``list`` gave; the blob stays if a ``put`` has found it since then.
        """
        ...

    def list(self) -> Iterator[tuple[str, int, float]]:
        """Location, size in bytes and time of last use (seconds since 1970) of every blob."""
        ...


@runtime_checkable
class Route(Protocol):
    """Where the outputs of some type go besides the engine's own store: a model registry, say.

    ``Engine(routes={Model: route})`` has ``save`` called for every stored output that is a ``Model``, after its bytes
    are stored and before the outcome is recorded; what it raises fails the attempt.

    Obligations: ``save`` may be a ``def`` (it is called on a worker thread) or an ``async def`` (on the event loop);
    it may be called for several artifacts at once; after a crash, or when the attempt is repeated, it is called again
    for an equal value, under another version. An output that comes from the cache is not saved again.
    """

    def save(self, artifact: Any, value: Any) -> object:
        """Take an output.

        Args:
            artifact: its ``treadle.Artifact``: name, version, digest, size, metadata; ``read()`` works already.
            value: the value as the step returned it, a ``Model`` for example; not to be changed.
        """
        ...


class Timer(Protocol):
    """Something that will happen, and can be called off."""

    def cancel(self) -> None:
        """Call it off; a second time, or too late, this does nothing."""
        ...


class Clock(Protocol):
    """Where an engine's time and chance come from, so that a test can hold both still."""

    def time(self) -> float:
        """Wall-clock time, seconds since 1970; it may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds that only go forward; for durations."""
        ...

    def random(self) -> float:
        """An even random number in [0, 1)."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    def call_later(self, seconds: float, fn: Callable[..., object], *args: Any) -> Timer:
        """Have a function called on the engine's loop after some time."""
        ...


# -- executors: where isolated steps are performed --------------------------------------------


class Payload(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One value as bytes, as the engine stores it.

    ``data`` holds a small one; ``location`` names a large one in the store of the attempt. ``digest`` is of the
    content, ``checksum`` the BLAKE3 of the ``size`` stored bytes. A container of large values has those as ``parts``,
    and a ``Part`` in the place of each; its ``digest`` is that of the whole.
    """

    codec: str
    digest: bytes
    checksum: bytes
    size: int
    data: bytes | None = None
    location: str = ""
    parts: tuple[Payload, ...] = ()


class Part(msgspec.Struct, frozen=True):
    """Stands in a payload, or in what an exception is made of, for the part of that number."""

    number: int


class Needs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an attempt may use: cores, bytes of memory, GPUs; 0 where the step names nothing."""

    cpu: float = 0.0
    memory: int = 0
    gpu: int = 0
    gpu_type: str = ""


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    """One attempt of one call, as it travels to another process; no code does: the step is named, and imported there.

    Attributes:
        run_id, call, step, attempt: whose it is; ``attempt`` counts from 1.
        token: the call's idempotency token (``treadle.current().token``).
        module, qualname: the step's import path; ``module`` is ``"__main__"`` for a step of the program itself.
        main: the program, the path of its file (which may lie in a zip file) or ``"-m name"``; for ``__main__`` only,
            else ``""``.
        code: the fingerprint of the step's code; a worker that has imported other code is of no use.
        args, kwargs: the inputs. ``labels`` has the parameters of ``args``, then of ``kwargs``; ``linked`` those whose
            value came from another call.
        outputs: the declared names of outputs; ``()`` for one.
        store, store_tmp: the folder where large inputs lie and large outputs go, and where those are begun.
        started_at, timeout_s: seconds since 1970 at its start, and how long it may take.
        needs: its resources.
        group: the execution group, with the run's id before it; ``""`` for none.
        allow_pickle: whether values may be pickled.
        inbox: the folder where large inputs lie, if it is not ``store``; an executor sets it for its own workers.
        source, loaded_at: the fingerprint of the step's own code, and since when (seconds since 1970) an edited file
            may be another one than the engine has imported; a worker that imports such a file compares.
    """

    run_id: str
    call: str
    step: str
    attempt: int
    token: str
    module: str
    qualname: str
    main: str = ""
    code: bytes = b""
    args: tuple[Payload, ...] = ()
    kwargs: dict[str, Payload] = {}
    labels: tuple[str, ...] = ()
    linked: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    store: str = ""
    store_tmp: str = ""
    started_at: float = 0.0
    timeout_s: float | None = None
    needs: Needs = Needs()
    group: str = ""
    allow_pickle: bool = True
    inbox: str = ""
    source: bytes = b""
    loaded_at: float = 0.0

    def payloads(self) -> Iterator[Payload]:
        """All inputs, and the parts of those that have some: whatever a worker may have to read from the store."""
        for payload in (*self.args, *self.kwargs.values()):
            yield payload
            yield from payload.parts


class Output(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One output: its bytes, its type by name, what is known of it (msgpack), and a second name, if it has one."""

    payload: Payload
    type_name: str
    metadata: bytes = b""
    alias: str = ""


class Performed(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The body returned: one output per name, and in which shape they came (``""``, ``tuple``, ``list``, ``dict``)."""

    outputs: tuple[Output, ...]
    shape: str = ""
    peak_rss_bytes: int | None = None
    cpu_s: float | None = None


class Raised(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The body raised. ``type_name`` is ``module:Qualname``; ``arguments`` and ``state`` are in the default codec.

    Exceptions inside of it are ``parts``, each with a ``Part`` in its place; ``cause`` is the number of the one that
    it was raised from, or -1. A part refers to earlier parts only, and has none of its own.
    """

    type_name: str
    message: str
    traceback: str = ""
    arguments: bytes = b""
    state: bytes = b""
    notes: Annotated[tuple[str, ...], msgspec.Meta(max_length=MOST_NOTES)] = ()
    peak_rss_bytes: int | None = None
    cpu_s: float | None = None
    parts: Annotated[tuple[Raised, ...], msgspec.Meta(max_length=MOST_PARTS)] = ()
    cause: int = -1


class Sink(Protocol):
    """Takes what a step says while it runs. Call it on the engine's loop."""

    def say(self, level: str, message: str, stream: str) -> None:
        """A line of ``"stdout"``, ``"stderr"`` or ``"log"``; the level as ``logging`` names it, in lower case."""
        ...

    def note(self, facts: bytes) -> None:
        """What ``treadle.current().log_metadata`` was given, as a msgpack map."""
        ...

    def progress(self, done: float, total: float | None) -> None:
        """What ``treadle.current().progress`` was given."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Performs attempts somewhere else: in other processes, in containers, on a cluster.

    An executor starts and stops workers, bounds what they may use, and carries messages; what a worker does with an
    attempt is in ``treadle.worker``, the same everywhere. Everything else, from the cache over retries and timeouts to
    the log, is the engine's. All methods are called on the engine's loop.

    Obligations:

    * ``perform`` may be called for ``slots`` attempts at once (``None``: any number), and never for more.
    * When the task of ``perform`` is cancelled (a timeout, or a caller who gave up), the attempt is ended for good:
      nothing of it runs any more when ``perform`` raises the ``CancelledError``, or at the latest some seconds later.
    * A worker that dies is the error ``StepCrashed`` of the attempts on it, and of nothing else.
    * What the step says is given to the sink while it runs, all of it before ``perform`` returns.
    * ``close`` leaves nothing behind. If the engine's process dies, nothing is left 2 seconds later.

    ``trusted`` says whether outputs come from this machine's own processes of this user: only such pickles are decoded.

    Two more attributes are looked up and may be left out:

    * ``queues = True``: attempts may wait in the executor, which counts resources itself, elsewhere. It calls
      ``sink.begun()`` when one begins; a timeout counts from then.
    * ``opens_urls = True``: its workers open an artifact store by its URL (``Attempt.store``), so that large values do
      not come through the engine's machine.
    """

    @property
    def trusted(self) -> bool:
        """Whether its workers are trusted as the engine's own process is."""
        ...

    @property
    def slots(self) -> int | None:
        """How many attempts it performs at once."""
        ...

    async def open(self) -> None:
        """Get ready; called before the first attempt, and again after ``close``.

        Raises:
            ExecutorUnavailable: it cannot work here.
        """
        ...

    async def perform(self, attempt: Attempt, sink: Sink) -> Performed | Raised:
        """Perform one attempt.

        Raises:
            StepCrashed: its worker died.
            StepNotImportable: the worker does not find the step.
            ExecutorUnavailable: it could not be tried.
        """
        ...

    async def close(self) -> None:
        """End all workers and give everything back; attempts that are under way are lost."""
        ...
