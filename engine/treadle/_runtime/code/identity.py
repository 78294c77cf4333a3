"""Identities and fingerprints of the steps that an engine runs; used again while the code stays as it is.

Knows what a walk over a step's code has found, and asks its witness before each run whether that still stands.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod

from blake3 import blake3

from treadle._core.fingerprint import (
    Fingerprint,
    StepIdentity,
    Witness,
    code_digest,
    fingerprint,
    renamed,
    step_identity,
)
from treadle._record import record
from treadle._runtime.code.source import ModuleSource
from treadle.errors import EncodeError
from treadle.options import CachePolicy
from treadle.secret import Secret
from treadle.storage import codecs

if TYPE_CHECKING:
    from treadle._runtime.step import Step

_MAX_KNOWN = 64
"""Of one function: each ``depends_on`` counts for itself."""


@record
class Known:
    """What is known of a step: its identity, its code, the digests of its defaults, and what cannot be hashed."""

    identity: bytes
    code: bytes
    defaults: dict[str, bytes]
    unhashable: tuple[str, ...]
    manifest: StepIdentity
    fingerprint: Fingerprint | None
    witness: Witness = field(repr=False)
    keyed_by: bytes = field(default=b"", repr=False)
    """The key that secrets in it were hashed with, if there are any: with another key it is another identity."""


class Identities:
    """Takes identities and fingerprints, for one engine.

    Args:
        key: a method that gives the 32 bytes that secrets are hashed with, when there is one to be hashed. Its object
            is not kept alive: what is known of a step outlives the engine that found it out.
    """

    def __init__(self, key: Callable[[], bytes] | None = None) -> None:
        self._method: WeakMethod[Callable[[], bytes]] | None = None if key is None else WeakMethod(key)
        self._reader = ModuleSource()
        self._under_way = threading.local()
        self.era = object()
        """Plans that were made in another one serve no further run; a prune begins one."""

    def _key(self) -> bytes:
        ask = None if self._method is None else self._method()
        return b"" if ask is None else ask()

    def of(self, step: Step[..., Any], outputs: tuple[str, ...], policy: CachePolicy | None) -> Known:
        """Identity and code of a step, as they are now.

        Copies of a step (``with_options``) have one function, which is walked once for all of them: each adds what
        it calls itself and its outputs.
        """
        found = self._of_function(step, policy.depends_on if policy is not None else ())
        named: tuple[Known, tuple[str, ...], Known] | None = step.named
        if named is None or named[0] is not found or named[1] != outputs:
            manifest = renamed(found.manifest, name=step.name, outputs=outputs)
            named = (found, outputs, replace(found, identity=manifest.digest, manifest=manifest))
            step.named = named
        return named[2]

    def _of_function(self, step: Step[..., Any], depends_on: tuple[Any, ...]) -> Known:
        # On the step, so that it lives as long: what it closes over may be large.
        memory = step.base.known
        key = tuple(map(id, (step.fn, *depends_on)))
        known: Known | None = memory.get(key)
        if known is None or not self.stands(known):
            if len(memory) >= _MAX_KNOWN:
                memory.clear()
            known = memory[key] = self._take(step, depends_on)
        return known

    def stands(self, known: Known) -> bool:
        """Whether what is known of a step is still so."""
        return known.witness.holds() and (not known.keyed_by or known.keyed_by == self._key())

    def _take(self, step: Step[..., Any], depends_on: tuple[Any, ...]) -> Known:
        witness = Witness()
        self._under_way.keyed_by = b""
        if depends_on:
            witness.container(depends_on)  # keeps them, so that no other object gets their ids
        fn: Any = step.fn
        manifest = step_identity(
            fn, name="", outputs=(), digest_value=self.digest_value, reader=self._reader, witness=witness
        )
        code = fingerprint(fn, self._reader, self.digest_value, depends_on, witness)
        defaults = {name: self._default(value) for name, value in step.binder.defaults.items()}
        digest = code.digest if code is not None else b""
        keyed_by: bytes = self._under_way.keyed_by
        return Known(manifest.digest, digest, defaults, manifest.unhashable, manifest, code, witness, keyed_by)

    def _default(self, value: Any) -> bytes:
        try:
            return self.digest_value(value)
        except EncodeError:
            return bytes(32)

    def digest_value(self, value: object) -> bytes:
        """The content digest of a value, functions and classes by their code and what they close over.

        Raises:
            EncodeError: it has none.
        """
        return codecs.digest(value, code_digest=self.code_digest)

    def source_digest(self, fn: object) -> bytes:
        """The fingerprint of a function's code as it is loaded here; empty if there is no code to be read."""
        code = fingerprint(fn, self._reader, self.digest_value)
        return code.digest if code is not None else b""

    def code_digest(self, value: object) -> bytes:
        """The digest of a function, class or step that is used as a value; of a secret, the keyed hash.

        Raises:
            EncodeError: it closes over something that has no digest.
        """
        if isinstance(value, Secret):
            return self._keyed(value)
        under_way: set[int] = self._under_way.__dict__.setdefault("ids", set())
        digest = None
        if id(value) not in under_way:  # else it holds an object that holds it
            under_way.add(id(value))
            try:
                digest = code_digest(value, self._reader, self.digest_value)
            finally:
                under_way.discard(id(value))
        if digest is None:
            name = getattr(value, "__qualname__", type(value).__qualname__)
            raise EncodeError(
                f"{name} cannot be hashed",
                why="it closes over, or has as a default, something that has no digest",
                fix="pass that as an argument, or name the parameter in CachePolicy(ignore=...)",
                path="value",
                value=value,
            )
        return digest

    def _keyed(self, secret: Secret[Any]) -> bytes:
        key = self._key()
        if not key:
            raise EncodeError(
                "a Secret cannot be hashed here", why="it counts by a key of the home, and there is none", path="value"
            )
        self._under_way.keyed_by = key
        return blake3(codecs.digest(secret.value, code_digest=self.code_digest), key=key).digest()
