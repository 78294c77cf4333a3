"""Identities and fingerprints of the steps that an engine runs; used again while the code stays as it is.

Knows what a walk over a step's code has found, and asks its witness before each run whether that still stands.
"""

from __future__ import annotations

import threading
from dataclasses import field
from typing import TYPE_CHECKING, Any

from treadle._core.fingerprint import Fingerprint, StepIdentity, Witness, code_digest, fingerprint, step_identity
from treadle._record import record
from treadle._runtime.code.source import ModuleSource
from treadle.errors import EncodeError
from treadle.options import CachePolicy
from treadle.storage import codecs

if TYPE_CHECKING:
    from treadle._runtime.step import Step

_MAX_KNOWN = 64
"""Of one step: copies with other names, outputs or ``depends_on`` count each for themselves."""


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


class Identities:
    """Takes identities and fingerprints, for one engine."""

    def __init__(self) -> None:
        self._reader = ModuleSource()
        self._under_way = threading.local()

    def of(self, step: Step[..., Any], outputs: tuple[str, ...], policy: CachePolicy | None) -> Known:
        """Identity and code of a step, as they are now."""
        depends_on = policy.depends_on if policy is not None else ()
        # On the step, so that it lives as long: what it closes over may be large.
        memory = step.base.known
        key = (step.name, outputs, tuple(map(id, depends_on)))
        known: Known | None = memory.get(key)
        if known is None or not known.witness.holds():
            if len(memory) >= _MAX_KNOWN:
                memory.clear()
            known = memory[key] = self._take(step, outputs, depends_on)
        return known

    def _take(self, step: Step[..., Any], outputs: tuple[str, ...], depends_on: tuple[Any, ...]) -> Known:
        witness = Witness()
        if depends_on:
            witness.container(depends_on)  # keeps them, so that no other object gets their ids
        fn: Any = step.fn
        manifest = step_identity(
            fn, name=step.name, outputs=outputs, digest_value=self.digest_value, reader=self._reader, witness=witness
        )
        code = fingerprint(fn, self._reader, self.digest_value, depends_on, witness)
        defaults = {name: self._default(value) for name, value in step.binder.defaults.items()}
        digest = code.digest if code is not None else b""
        return Known(manifest.digest, digest, defaults, manifest.unhashable, manifest, code, witness)

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

    def code_digest(self, value: object) -> bytes:
        """The digest of a function, class or step that is used as a value.

        Raises:
            EncodeError: it closes over something that has no digest.
        """
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
