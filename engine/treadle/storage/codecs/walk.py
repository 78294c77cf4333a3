"""How a value is walked into msgpack's native types, and back; which types there are, the sibling modules know.

Theory of operation
-------------------
msgpack keeps ``None``, ``bool``, 64-bit ``int``, ``float``, ``str``, ``bytes``, ``list`` and ``dict`` apart, and
nothing else: a tuple would come back as a list. So every other type is an *extension*: a tag, and bytes that hold
msgpack again.

* A *packer* turns a value of exactly one type into such an extension. Types are compared exactly, so a subclass is
  never flattened into its base.
* A *reader* turns the bytes of one tag back into a value.
* The first walk lets every ``int`` and ``str`` pass and leaves it to msgpack to refuse those it cannot hold; only then
  a second, *careful* walk looks at each of them. The common case pays nothing for the rare one.
* A *digest walk* differs in three places only: code counts by its fingerprint, foreign bytes (frames, registered
  codecs) by their content, and what has no envelope at all by its canonical pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

import msgspec
from msgspec.msgpack import Ext

to_bytes: Final = msgspec.msgpack.Encoder().encode

SCALARS: Final[frozenset[type]] = frozenset({type(None), bool, int, float, str, bytes})
CAREFUL_SCALARS: Final[frozenset[type]] = SCALARS - {int, str}

# Deeper values are pickled. An own limit, and well below the interpreter's: which codec a value gets must not depend on
# how deep the caller's stack happens to be.
MAX_DEPTH: Final = 100
# Shared parts are written out once per reference. From here on a value that is nearly all repetition is given up
# (50 nested ``x = [x, x]`` would be 2**50 lists).
MANY_VISITS: Final = 100_000
MAX_REPETITION: Final = 64

CodeDigest: TypeAlias = Callable[[object], bytes]


class NotFit(Exception):
    """The value has no faithful envelope; the next codec may have one."""


class Refused(NotFit):
    """The value has no faithful form in the envelope, and pickle would lose the same part of it."""


class Stop(NotFit):
    """The same, for the value as a whole: no part of it may be tried another way."""


class Walk:
    """One walk over one value: what to do with its parts, and what was seen of them.

    Args:
        find: gives the packer of a value whose type is not in ``PACKERS``; raises ``NotFit``.
        opaque: stands in, in a digest walk, for values without an envelope; None if they may not be pickled.
        code_digest: the fingerprint of a function or class, or None to count it by name.
        digesting: walk for the content digest instead of for the stored bytes.
        careful: look at every int and str, because msgpack refused one.
        reveals: the bytes are for a worker's eyes only, so secrets may be in them.
    """

    __slots__ = (
        "are_plain", "code_digest", "depth", "digesting", "exact", "find", "mutable", "opaque", "plain", "plans",
        "reveals", "seen", "visits",
    )  # fmt: skip

    def __init__(
        self,
        find: Callable[[Any, Walk], Packer],
        *,
        opaque: Packer | None = None,
        code_digest: CodeDigest | None = None,
        digesting: bool = False,
        careful: bool = False,
        reveals: bool = False,
    ) -> None:
        self.find = find
        self.reveals = reveals
        self.code_digest = code_digest
        self.digesting = digesting
        self.opaque = opaque
        self.plain = CAREFUL_SCALARS if careful else SCALARS
        self.are_plain = self.plain.issuperset
        self.depth = 0
        self.visits = 0
        self.seen: set[int] = set()
        self.plans: dict[type, Packer] = {}
        self.mutable = False
        """Some part can be changed in place."""
        self.exact = True
        """The stored bytes are also the canonical ones, so that one hash serves for both."""

    def tree(self, value: object) -> Any:
        """What stands for ``value`` in msgpack: itself, a native container, or an extension."""
        kind = type(value)
        if kind in self.plain:
            return value
        if self.digesting:
            return self._tree_or_opaque(value, kind)
        packer = PACKERS.get(kind) or self.plans.get(kind) or self.find(value, self)
        return packer(value, self)

    def _tree_or_opaque(self, value: object, kind: type) -> Any:
        depth = self.depth
        try:
            packer = PACKERS.get(kind) or self.plans.get(kind) or self.find(value, self)
            return packer(value, self)
        except Stop:
            raise
        except NotFit:
            if self.opaque is None:
                raise
            self.depth = depth
            return self.opaque(value, self)

    def trees(self, items: Any) -> Any:
        """The same for the items of a list or tuple, which is given back as it is if it holds only scalars."""
        if self.are_plain(map(type, items)):
            return items
        self.enter(items)
        plain, tree = self.plain, self.tree
        out = [item if type(item) in plain else tree(item) for item in items]
        self.depth -= 1
        return out

    def ext(self, tag: int, items: Any) -> Ext:
        """The extension that holds these items (a list or tuple)."""
        return Ext(tag, to_bytes(self.trees(items)))

    def enter(self, container: object) -> None:
        """Count one level down; raise ``Stop`` for a cycle, for too many levels, and for sharing run wild."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Stop(f"it is nested more than {MAX_DEPTH} levels deep, or contains itself")
        self.visits += 1
        if self.visits > MANY_VISITS and repeats(self.visits, container, self.seen):
            raise Stop("it holds the same objects over and over")


def repeats(visits: int, part: object, seen: set[int]) -> bool:
    """Whether nearly all parts have been visited before; asked for each one after the first ``MANY_VISITS``."""
    seen.add(id(part))
    return visits % MANY_VISITS == 0 and len(seen) * MAX_REPETITION < visits - MANY_VISITS


class Source:
    """Reads envelopes; ``trusted`` says whether names in them may import modules and stand for functions."""

    __slots__ = ("_read", "trusted")

    def __init__(self, *, trusted: bool) -> None:
        self.trusted = trusted
        self._read = msgspec.msgpack.Decoder(ext_hook=self._extension).decode

    def read(self, data: bytes | memoryview) -> Any:
        """The value of these bytes; raises whatever broken bytes lead to, the gate makes one error of it."""
        return self._read(data)

    def _extension(self, tag: int, data: memoryview) -> Any:
        return READERS[tag](data, self)


Packer: TypeAlias = Callable[[Any, Walk], Any]
Reader: TypeAlias = Callable[[memoryview, Source], Any]

PACKERS: Final[dict[type, Packer]] = {}
LAZY_PACKERS: Final[dict[str, Packer]] = {}
"""``module:qualname`` to packer, of types whose module is not imported for their sake."""
READERS: Final[dict[int, Reader]] = {}


def packs(*kinds: type | str) -> Callable[[Packer], Packer]:
    """Enter a packer for these exact types; a type of a module that should not be imported is given by name."""

    def enter(packer: Packer) -> Packer:
        for kind in kinds:
            if isinstance(kind, str):
                LAZY_PACKERS[kind] = packer
            else:
                PACKERS[kind] = packer
        return packer

    return enter


def reads(tag: int) -> Callable[[Reader], Reader]:
    """Enter the reader of a tag."""

    def enter(reader: Reader) -> Reader:
        READERS[tag] = reader
        return reader

    return enter


def pairs(items: Iterable[Any]) -> list[tuple[Any, Any]]:
    """``[k1, v1, k2, v2]`` as ``[(k1, v1), (k2, v2)]``."""
    walker = iter(items)
    return list(zip(walker, walker, strict=True))
