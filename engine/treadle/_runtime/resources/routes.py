"""Where outputs of certain types go: which route a value takes, and how it is stored on the way; knows no run's course.

Theory of operation
* A route belongs to a class and its subclasses; the nearest class in the value's method resolution order counts.
* The version of a routed output is reserved in a transaction of its own, since the place is named by it: one number
  for the output's name and for the name of the ``Model``, higher than any that either has. A number that is
  not used after all, because the commit failed, is a gap.
* A URL takes the bytes of what a ``Model`` or ``Dataset`` holds, by the codec of its own type, so that other programs
  can read them; name and facts of the wrapper stay in the log. If there is a file already, of another home perhaps, a
  higher version is taken.
* A route object gets the artifact when its bytes are stored, in the engine's own store, and before it is recorded.
"""

from __future__ import annotations

import contextvars
import inspect
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from treadle._core.binding import PLAIN
from treadle._runtime.calls import facts, inputs
from treadle._runtime.views.artifact import ROUTED, Artifact
from treadle.errors import OptionError
from treadle.kinds import Asset
from treadle.storage import codecs, places, routed
from treadle.storage.rows import ArtifactRow, Body
from treadle.storage.writer import Transaction

if TYPE_CHECKING:
    from treadle._runtime.calls.call import Call
    from treadle._runtime.engine import Engine

TRIES: Final = 100


class Target:
    """The route of one class: a place or an object with ``save``."""

    __slots__ = ("key", "place", "route", "url")

    def __init__(self, kind: type, given: Any) -> None:
        self.key = f"{kind.__module__}:{kind.__qualname__}"
        self.place: places.Place | None = None
        self.url, self.route = "", None
        if isinstance(given, (str, os.PathLike)):
            self.url = str(os.fspath(given))
            routed.local_folder(self.url)  # which refuses what is no URL
        elif callable(getattr(given, "save", None)) and not isinstance(given, type):
            self.route = given
        else:
            raise OptionError(
                f"the route of {kind.__qualname__} is {given!r}",
                fix="give a path, a URL, or an object with a method save(artifact, value)",
                option="routes",
            )


class Routes:
    """The routes of one engine.

    Args:
        given: class to URL or route object.

    Raises:
        OptionError: a key is no class, or a route is neither.
    """

    def __init__(self, given: Any) -> None:
        self._targets: dict[type, Target] = {}
        if not isinstance(given, Mapping):
            raise OptionError(
                f"routes={given!r} is not allowed", fix="give a dict as {Model: 's3://bucket/models'}", option="routes"
            )
        for kind, target in given.items():
            if not isinstance(kind, type) or kind is object or kind in PLAIN:
                raise OptionError(
                    f"routes has the key {kind!r}",
                    fix="give classes, as {Model: 's3://bucket/models'}",
                    option="routes",
                )
            self._targets[kind] = Target(kind, target)

    def open(self) -> dict[str, places.Place]:
        """Open the places; gives them by the names of their classes. Blocks.

        Raises:
            OptionError: the library of a URL is missing.
        """
        for target in self._targets.values():
            if target.url:
                target.place = routed.open_place(target.url)
        return {target.key: target.place for target in self._targets.values() if target.place is not None}

    def find(self, value: Any) -> Target | None:
        """The route that a value takes, if any."""
        if type(value) in PLAIN:
            return None
        return next((self._targets[kind] for kind in type(value).__mro__ if kind in self._targets), None)


async def keep(call: Call, output: str, value: Any, target: Target, seconds: float) -> ArtifactRow:
    """Store a routed output; its row has its version already.

    Raises:
        BaseException: what the place or the route object raises.
    """
    engine = call.run.engine
    if target.place is not None:
        return await _to_place(call, output, value, target, seconds)
    row = await inputs.keep(call, output, value, seconds)
    row.version = await _reserve(engine, output, row.alias, 0)
    await _save(call, target.route, Artifact(row, engine.vault), value)
    return row


async def _reserve(engine: Engine, output: str, alias: str, above: int) -> int:
    names = (output, alias) if alias else (output,)

    def reserve(transaction: Transaction) -> int:
        return transaction.writer.reserve_version(names, above)

    version: int = await engine.log.transact(reserve)
    return version


async def _to_place(call: Call, output: str, value: Any, target: Target, seconds: float) -> ArtifactRow:
    engine, place, alias = call.run.engine, target.place, inputs.alias_of(output, value)
    assert place is not None
    digest, encoded, known = await engine.io.run(_encode, engine, value)
    kind = type(value)
    row = ArtifactRow(
        output,
        Body(
            digest, encoded.checksum, len(encoded.data), encoded.codec, f"{kind.__module__}.{kind.__qualname__}",
            call.run.id, call.name, output, call.run.now(), seconds, step=call.plan.name, metadata=known,
            shape=call.shape,
        ),
        alias=alias,
    )  # fmt: skip
    above = 0
    for _ in range(TRIES):
        row.version = await _reserve(engine, output, alias, above)
        location = places.location_of(alias or output, row.version, encoded.codec)
        if await engine.io.run(place.put, location, bytes(encoded.data)):
            row.body.location = f"{ROUTED}{places.quoted(target.key)}/{location}"
            inputs.freeze(value)
            return row
        above = await engine.io.run(place.highest, places.quoted(alias or output))
    raise OSError(f"no version of {alias or output} is free at {target.url}")


def _encode(engine: Engine, value: Any) -> tuple[bytes, codecs.Encoded, bytes]:
    """The content digest of the whole, the bytes of what it holds, and the facts, with the wrapper if there is one."""
    known = facts.packed(value)
    if not isinstance(value, Asset):
        encoded = codecs.for_others(value, inputs.encode(engine, value))
        return encoded.digest, encoded, known
    digest = codecs.digest(value, code_digest=engine.identities.code_digest, allow_pickle=engine.vault.allow_pickle)
    inner = codecs.for_others(value.value, inputs.encode(engine, value.value))
    empty = object.__new__(type(value))
    empty.__dict__.update({**value.__dict__, "value": None})
    wrapper = inputs.encode(engine, empty)
    return digest, inner, facts.with_wrapper(known, wrapper.codec, bytes(wrapper.data))


async def _save(call: Call, route: Any, artifact: Artifact[Any], value: Any) -> None:
    """Call a route object's ``save`` where it belongs: on the loop, or on a worker thread."""
    if inspect.iscoroutinefunction(route.save):
        await route.save(artifact, value)
        return
    if call.run.debug:
        result = route.save(artifact, value)
    else:
        context = contextvars.copy_context()
        result = await call.run.engine.pool.run(context.run, route.save, artifact, value)
    if inspect.isawaitable(result):
        await result
