"""The inputs of a call: what its arguments stand for, their content digests, and the copies that a body gets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3

from treadle._core.binding import CONTAINERS, PLAIN, Binder, find, replace
from treadle._runtime.calls import facts, validation
from treadle._runtime.calls.call import Call, StepFuture
from treadle._runtime.isolation.distant import DistantFuture, Unloaded, arrived
from treadle._runtime.maps.mapping import MapFuture
from treadle._runtime.maps.unmapped import Unmapped
from treadle._runtime.plan import Plan, hint
from treadle._runtime.views.artifact import Artifact
from treadle.contracts import INLINE_BYTES
from treadle.errors import EncodeError
from treadle.events import Input
from treadle.kinds import Asset, check_name
from treadle.storage import codecs
from treadle.storage.rows import ArtifactRow, Body

if TYPE_CHECKING:
    from treadle._runtime.engine import Engine

COPIED_BYTES = 64 * 1024
HEAVY_BYTES = 1 << 20
HEAVY_ITEMS = 10_000
LEFT_OUT = bytes(32)
"""Stands in an identity for an argument that has no digest."""

Stand_ins = (StepFuture, MapFuture, Artifact, Unmapped)
_NO_NAMES: dict[str, Any] = {}
_QUICK_MODULES = frozenset(
    {"builtins", "datetime", "decimal", "uuid", "pathlib", "fractions", "collections", "zoneinfo"}
)


class Values(msgspec.Struct, gc=False):
    """The arguments of a call as its body gets them, and what is known of them."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    bound: dict[str, Any] = {}
    digests: dict[str, bytes] = {}
    inputs: tuple[Input, ...] = ()
    unhashable: tuple[str, ...] = ()


class _Taken:
    """One argument: its value for the body, its digest and where it came from."""

    __slots__ = ("artifact", "digest", "producer", "value")

    def __init__(self, value: Any, digest: bytes, producer: str = "", artifact: int = 0) -> None:
        self.value, self.digest, self.producer, self.artifact = value, digest, producer, artifact


def plain(call: Call) -> Values | None:
    """The inputs, if they can be had at once; ``None`` if something has to be loaded or is large."""
    names = call.plan.binder.names
    if (
        len(call.args) == 1
        and not call.kwargs
        and len(names) == 1
        and call.plan.binder.positional
        and type(call.args[0]) in PLAIN
    ):
        return _single(call, names[0], call.args[0])
    taken: dict[str, _Taken] = {}
    for label, value in labelled(call.plan.binder, call.args, call.kwargs):
        if _is_heavy(value) if type(value) in PLAIN else not is_quick_argument(call, value):
            return None
        taken[label] = _take(call, label, value)
    return _collect(call, taken)


def _single(call: Call, name: str, value: Any) -> Values | None:
    """The most frequent case, one plain argument, without the detours of the general one."""
    if _is_heavy(value):
        return None
    if call.plan.wants_kind:
        validation.check_input(call.plan, name, value, is_linked=False)
    digest = codecs.plain_digest(value)
    bound = {name: value} if call.plan.has_own_key else _NO_NAMES
    return Values(call.args, _NO_NAMES, bound, {name: digest}, (Input(name, digest),))


async def load(call: Call) -> Values:
    """The inputs, with artifacts loaded and large values digested on threads."""
    engine = call.run.engine
    taken: dict[str, _Taken] = {}
    for label, value in labelled(call.plan.binder, call.args, call.kwargs):
        loaded = {id(artifact): await artifact.load() for artifact in find((value,), (Artifact,))}
        if not _is_heavy(value) if type(value) in PLAIN else is_quick_argument(call, value):
            taken[label] = _take(call, label, value, loaded)
        else:
            taken[label] = await engine.io.run(_take, call, label, value, loaded)
    return _collect(call, taken)


def labelled(binder: Binder, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> list[tuple[str, Any]]:
    """The arguments of a call, each with a label of its own: the parameter's name, where there is one."""
    names = binder.positional
    known = len(names)
    found = [(names[i] if i < known else f"*{i}", value) for i, value in enumerate(args)]
    if kwargs:
        given = names[: len(args)]  # positional-only, if a keyword has such a name too
        found += [(f"**{name}" if name in given or name[:1] == "*" else name, value) for name, value in kwargs.items()]
    return found


def is_quick_argument(call: Call, value: Any) -> bool:
    if isinstance(value, StepFuture):
        return not value.done() or type(asyncio.Future.result(value)) is not Unloaded
    if isinstance(value, Unmapped):
        return value.taken is not None or is_quick_argument(call, value.value)
    if isinstance(value, (MapFuture, Artifact)):
        return isinstance(value, MapFuture) and len(value) < HEAVY_ITEMS
    return is_quick(value) and not next(find((value,), (Artifact, DistantFuture)), None)


def _take(call: Call, label: str, value: Any, loaded: dict[int, Any] | None = None) -> _Taken:
    kind = type(value)
    if kind in PLAIN:
        return _Taken(value, codecs.plain_digest(value))
    if kind is StepFuture or kind is DistantFuture:
        return _take_future(call, label, value)
    if isinstance(value, Unmapped):
        return _shared(call, label, value, loaded)
    if isinstance(value, Artifact):
        content = loaded[id(value)] if loaded else value.read()
        if value.size > COPIED_BYTES:
            freeze(content)
        return _Taken(content, value._row.body.digest, artifact=value.id)
    if isinstance(value, MapFuture):
        content, producer = value._values(), value.name
    elif next(find((value,), Stand_ins), None) is not None:
        content = replace(value, Stand_ins, lambda item: content_of(item, loaded))
        producer = ",".join(map(origin, find((value,), (StepFuture, MapFuture))))
    else:
        content, producer = value, ""
    return _digested(call, label, content, producer)


def origin(item: Any) -> str:
    """How an input names its producer: the call, ``call.output``, or the map."""
    output = getattr(item, "_output", "")
    return f"{item.name}.{output}" if output else str(item.name)


def content_of(item: Any, loaded: dict[int, Any] | None) -> Any:
    """What an argument, or a part of it, stands for."""
    if isinstance(item, StepFuture):
        return arrived(asyncio.Future.result(item))
    if isinstance(item, MapFuture):
        return item._values()
    if isinstance(item, Unmapped):
        return item.value
    return loaded[id(item)] if loaded else item.read()


def _take_future(call: Call, label: str, future: StepFuture[Any]) -> _Taken:
    """A producer's output: its digest is known, and a small mutable value is decoded afresh."""
    value = arrived(asyncio.Future.result(future))
    producer = future._call
    name = f"{producer.name}.{future._output}" if future._output else producer.name
    rows = producer.rows
    if rows is None or (len(rows) > 1 and not future._output):
        return _digested(call, label, value, name)
    body = rows[producer.plan.output_names.index(future._output) if future._output else 0].body
    if type(value) not in PLAIN:
        if body.data is not None:
            value = codecs.decode(body.codec, body.data, trusted=True)
        elif body.size <= COPIED_BYTES:
            return _digested(call, label, value, name)  # its bytes lie at a route's place, so the copy is made here
    return _Taken(value, body.digest, name)


def _digested(call: Call, label: str, value: Any, producer: str = "") -> _Taken:
    try:
        encoded = encode(call.run.engine, value)
    except EncodeError as error:
        return _Taken(value, _digest_alone(call, label, value, error), producer)
    if len(encoded.data) > COPIED_BYTES:
        value = _read_only(value)
    elif encoded.mutable:
        value = codecs.decode(encoded.codec, encoded.data, trusted=True)
    return _Taken(value, encoded.digest, producer)


def _digest_alone(call: Call, label: str, value: Any, error: EncodeError) -> bytes:
    """The digest of what cannot be stored, a lambda for example; empty if it has none."""
    engine = call.run.engine
    try:
        return codecs.digest(value, code_digest=engine.identities.code_digest, allow_pickle=engine.vault.allow_pickle)
    except EncodeError:
        if call.plan.counts(label):
            hint(f"step {call.plan.name} is not cached: argument {label} cannot be hashed ({error.what})")
        return b""


def _shared(call: Call, label: str, whole: Unmapped[Any], loaded: dict[int, Any] | None) -> _Taken:
    """An argument that all calls of a map share: digested once, copied for each if it is small and mutable."""
    if whole.taken is None:
        first = _take(call, label, whole.value, loaded)
        whole.taken = (first, _template(call, first))
    taken: _Taken
    template: codecs.Encoded | None
    taken, template = whole.taken
    if template is None:
        return taken
    copy = codecs.decode(template.codec, template.data, trusted=True)
    return _Taken(copy, taken.digest, taken.producer, taken.artifact)


def _template(call: Call, taken: _Taken) -> codecs.Encoded | None:
    """What copies are made from; ``None`` if the value itself can be shared."""
    if type(taken.value) in PLAIN or not taken.digest:
        return None
    encoded = encode(call.run.engine, taken.value)
    return encoded if encoded.mutable and len(encoded.data) <= COPIED_BYTES else None


def _collect(call: Call, taken: dict[str, _Taken]) -> Values:
    plan = call.plan
    values = Values()
    count = len(call.args)
    items = list(taken.items())
    if plan.expected is not None:
        for label, item in items:
            validation.check_input(plan, label, item.value, is_linked=bool(item.producer or item.artifact))
    values.args = tuple([item.value for _, item in items[:count]])
    values.kwargs = {name: item.value for name, (_, item) in zip(call.kwargs or (), items[count:], strict=True)}
    values.bound = {label: item.value for label, item in items}
    values.unhashable = tuple([label for label, item in items if not item.digest])
    values.inputs = tuple(Input(label, item.digest, item.producer, item.artifact) for label, item in items)
    values.digests = in_order(plan, {label: item.digest for label, item in items})
    return values


def in_order(plan: Plan, given: dict[str, bytes]) -> dict[str, bytes]:
    """The digests of all parameters in the signature's order, defaults filled in, then of what only has a label."""
    digests: dict[str, bytes] = {}
    for name in plan.binder.named:
        digest = given.get(name)
        if digest is not None:
            digests[name] = digest or LEFT_OUT
        elif name in plan.default_digests:
            digests[name] = plan.default_digests[name]
    for label in sorted(given.keys() - digests.keys()):
        digests[label] = blake3(label.encode() + b"=" + (given[label] or LEFT_OUT)).digest()
    return digests


# -- encoding -----------------------------------------------------------------------------


def keep_plain(call: Call) -> bytes:
    """The small arguments of a failed call that no artifact holds, so that it can be looked into later."""
    kept: list[tuple[str, str, bytes]] = []
    for label, value in labelled(call.plan.binder, call.args, call.kwargs):
        whole = value.value if isinstance(value, Unmapped) else value
        if isinstance(whole, StepFuture) and whole._call.rows is None:
            whole = content_of(whole, None)  # its step keeps nothing, so there is no artifact to load it from
        if isinstance(whole, (StepFuture, MapFuture, Artifact)) or not is_quick(whole):
            continue
        if next(find((whole,), (Artifact,)), None) is not None:
            continue
        try:
            encoded = encode(call.run.engine, replace(whole, Stand_ins, lambda item: content_of(item, None)))
        except Exception:
            continue  # it is about a failure already
        if len(encoded.data) <= COPIED_BYTES:
            kept.append((label, encoded.codec, bytes(encoded.data)))
    return msgspec.msgpack.encode(kept) if kept else b""


def is_quick(value: Any) -> bool:
    """Whether encoding the value on the loop cannot take long, judged by type and size alone."""
    kind = type(value)
    if kind in PLAIN:
        return not _is_heavy(value)
    if kind in CONTAINERS:
        return _has_few_parts(value)
    if isinstance(value, Asset):
        return is_quick(value.value)
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size < HEAVY_BYTES
    return (
        kind.__module__ in _QUICK_MODULES or hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__struct_fields__")
    )


def _is_heavy(value: Any) -> bool:
    """Whether plain data is a text, or bytes, of a size that takes a while."""
    kind = type(value)
    return (kind is str or kind is bytes) and len(value) >= HEAVY_BYTES


def _has_few_parts(value: Any) -> bool:
    """Whether nested containers have few parts in all; one that is shared counts as often as it occurs."""
    left, todo = HEAVY_ITEMS, [value]
    while todo:
        container = todo.pop()
        left -= len(container) or 1
        if left <= 0:
            return False
        inner = container.values() if type(container) is dict else container
        if not PLAIN.issuperset(map(type, inner)):
            todo += [part for part in inner if type(part) in CONTAINERS]
    return True


def encode(engine: Engine, value: Any) -> codecs.Encoded:
    """Encode with this engine's rules."""
    return codecs.encode(value, code_digest=engine.identities.code_digest, allow_pickle=engine.vault.allow_pickle)


def described(engine: Engine, value: Any) -> tuple[codecs.Encoded, bytes]:
    """A value encoded, and what is known of it."""
    return encode(engine, value), facts.packed(value)


def keep_plain_output(call: Call, output: str, value: Any, seconds: float) -> ArtifactRow | None:
    """What ``keep`` makes of the most frequent outputs, plain data, without its detours; ``None`` for all others."""
    kind = type(value)
    if kind not in PLAIN or ((kind is str or kind is bytes) and len(value) >= COPIED_BYTES // 4):
        return None
    encoded, run = codecs.encode(value), call.run
    body = Body(
        encoded.digest, encoded.checksum, len(encoded.data), encoded.codec, encoded.type_name,
        run.id, call.name, output, run.now(), seconds, encoded.data, step=call.plan.name, shape=call.shape,
    )  # fmt: skip
    return ArtifactRow(output, body)


async def keep(call: Call, output: str, value: Any, seconds: float) -> ArtifactRow:
    """Store one output: in the commit that records it if it is small, else as a blob, durably, before that."""
    engine = call.run.engine
    if is_quick(value):
        encoded, known = encode(engine, value), facts.packed(value)
    else:
        encoded, known = await engine.io.run(described, engine, value)
    body = Body(
        encoded.digest, encoded.checksum, len(encoded.data), encoded.codec, encoded.type_name,
        call.run.id, call.name, output, call.run.now(), seconds, step=call.plan.name, metadata=known, shape=call.shape,
    )  # fmt: skip
    if body.size <= INLINE_BYTES:
        body.data = bytes(encoded.data)
    else:
        body.location = await engine.io.run(engine.vault.blobs.put, encoded.data, encoded.checksum)
        freeze(value)
    return ArtifactRow(output, body, alias=alias_of(output, value))


def alias_of(output: str, value: Any) -> str:
    """The name under which an output is found beside its own: that of the ``Model``, if it has another one."""
    if not isinstance(value, Asset) or value.name is None or value.name == output:
        return ""
    check_name(type(value), value.name)  # it may have been changed since
    return value.name


def encode_quickly(engine: Engine, value: Any) -> codecs.Encoded | None:
    """Encode at once what is small; ``None`` for what belongs on a thread."""
    return encode(engine, value) if is_quick(value) else None


def _read_only(value: Any) -> Any:
    """A large array as a body gets it that is not a step's output: the caller may still write to its own."""
    if type(value).__module__ != "numpy" or not hasattr(value, "setflags"):
        return value
    view = value.view()
    view.setflags(write=False)
    return view


def freeze(value: Any) -> None:
    """Make a large array read-only, since consumers share it; also one in a ``Model`` or ``Dataset``."""
    if isinstance(value, Asset):
        value = value.value
    flags: Callable[..., None] | None = getattr(value, "setflags", None)
    if flags is not None and type(value).__module__ == "numpy":
        flags(write=False)
