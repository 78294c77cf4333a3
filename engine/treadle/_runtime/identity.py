"""Identities and fingerprints of the steps that one engine runs; made once and reused while the code stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from treadle._core.fingerprint import Fingerprint, StepIdentity, fingerprint, step_identity
from treadle._runtime.source import ModuleSource
from treadle.errors import EncodeError
from treadle.options import CachePolicy
from treadle.storage import codecs

if TYPE_CHECKING:
    from treadle._runtime.step import Step


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a step: its identity, its code, the digests of its defaults, and what cannot be hashed."""

    identity: bytes
    code: bytes
    defaults: dict[str, bytes]
    unhashable: tuple[str, ...]
    manifest: StepIdentity
    fingerprint: Fingerprint | None


class Identities:
    """Takes identities and fingerprints, for one engine."""

    def __init__(self) -> None:
        self._reader = ModuleSource()

    def of(self, step: Step[..., Any], outputs: tuple[str, ...], policy: CachePolicy | None) -> Known:
        """Identity and code of a step."""
        depends_on = policy.depends_on if policy is not None else ()
        manifest = step_identity(
            step.fn, name=step.name, outputs=outputs, digest_value=self.digest_value, reader=self._reader  # type: ignore[arg-type]  # checked at decoration
        )  # fmt: skip
        code = fingerprint(step.fn, self._reader, self.digest_value, depends_on)
        defaults = {name: self._default(value) for name, value in step.binder.defaults.items()}
        return Known(
            manifest.digest, code.digest if code is not None else b"", defaults, manifest.unhashable, manifest, code
        )

    def _default(self, value: Any) -> bytes:
        try:
            return self.digest_value(value)
        except EncodeError:
            return bytes(32)

    def digest_value(self, value: object) -> bytes:
        """The content digest of a value, functions and classes by fingerprint."""
        return codecs.digest(value, code_digest=self.code_digest)

    def code_digest(self, value: object) -> bytes:
        """The digest of a function or class: its fingerprint, or its name if it is not of this project."""
        found = fingerprint(value, self._reader, self._shallow)
        if found is not None:
            return found.digest
        name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
        return blake3(b"name:" + name.encode()).digest()

    def _shallow(self, value: object) -> bytes:
        return codecs.digest(value)


CodeDigest = Callable[[object], bytes]
