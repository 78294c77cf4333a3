"""Why a call would, or would not, be served by the cache: its key against the newest outcome that is recorded.

Knows keys and what they are made of; decides nothing, and performs nothing.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3

from treadle._core.binding import find, replace
from treadle._core.fingerprint import Fingerprint
from treadle._core.fingerprint import explain as differences
from treadle._core.replay import CallRecord
from treadle._record import record
from treadle._runtime import defaults
from treadle._runtime.calls.call import StepFuture
from treadle._runtime.calls.inputs import Values, in_order, labelled
from treadle._runtime.code.identity import Identities
from treadle._runtime.context import active_engine
from treadle._runtime.maps.unmapped import Unmapped
from treadle._runtime.plan import Plan
from treadle._runtime.views.archive import Archive
from treadle._runtime.views.artifact import Artifact, Vault
from treadle.errors import EncodeError
from treadle.options import CachePolicy, StepOptions
from treadle.storage import blobs, home
from treadle.storage.rows import ArtifactRow
from treadle.storage.schema import DATABASE

if TYPE_CHECKING:
    from treadle._runtime.engine import Engine
    from treadle._runtime.step import Step

_LOOKED_AT = 20


@record
class CacheExplanation:
    """What the cache would say to a call.

    Attributes:
        step: the step's name.
        hit: whether it would be served by the cache.
        reasons: on a hit where the outcome comes from; else what is different from the newest recorded outcome.
    """

    step: str
    hit: bool
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.step}: {'hit' if self.hit else 'miss'}: {'; '.join(self.reasons)}"


def keep_manifest(engine: Engine, plan: Plan) -> None:
    """Have it recorded what keys are made of: the code's fingerprint, and the rest once per step and policy."""
    code, policy = plan.known.fingerprint, plan.policy
    if policy is None:
        return
    if len(engine.described) > _MOST_DESCRIBED:
        engine.described.clear()
    if code is not None and code.digest not in engine.described:
        engine.described.add(code.digest)
        engine.log.describe(code.digest, _packed(code.parts))
    place = _PLANS + plan.tag + blake3(repr(_policy_parts(policy)).encode()).digest()[:8]
    if place not in engine.described:
        engine.described.add(place)
        engine.log.describe(place, _packed(_parts_of(plan, policy)))


def describe_anew(engine: Engine) -> None:
    """Descriptions may have been removed: have them recorded again by the next run that needs them."""
    engine.described.clear()
    engine.identities.era = object()


_PLANS = b"plan:"
_MOST_DESCRIBED = 10_000
_Parts = tuple[tuple[str, str], ...]


def _packed(parts: _Parts) -> bytes:
    return zlib.compress(msgspec.msgpack.encode(parts), 1)


def _unpacked(packed: bytes) -> _Parts:
    return msgspec.msgpack.decode(zlib.decompress(packed), type=_Parts)


def _parts_of(plan: Plan, policy: CachePolicy) -> _Parts:
    """What a key is made of beside code and inputs, as sorted (label, text)."""
    parts = [*plan.known.manifest.parts, *_policy_parts(policy)]
    if plan.version is not None:
        parts.append(("version", repr(plan.version)))
    parts += [(f"content of file {path}", f"#{digest.hex()}") for path, digest in plan.files]
    return tuple(sorted(parts))


def _policy_parts(policy: CachePolicy) -> list[tuple[str, str]]:
    looks_at = [word for word, counts in (("code", policy.code), ("inputs", policy.inputs)) if counts]
    parts = [("what the cache looks at", " and ".join(looks_at) or "nothing but the step")]
    if policy.key is not None:
        name = getattr(policy.key, "__qualname__", type(policy.key).__name__)
        parts.append(("the cache policy's key function", name))
    parts += [(f"leaving out input {name}", "ignored") for name in policy.ignore]
    return parts


def explain_cache(step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> CacheExplanation:
    """See ``Step.explain_cache``."""
    step.binder.check(args, kwargs)
    engine = _engine_here()
    identities = engine.identities if engine is not None else Identities()
    base = engine.step_defaults if engine is not None else StepOptions()
    plan = Plan(step, base.over(step.options), identities)
    if plan.policy is None:
        return CacheExplanation(step.name, False, (_why_not_cached(plan),))
    values = _values(plan, identities, args, kwargs)
    identity = blake3(plan.identity + b"".join(values.digests.values())).digest()
    key = plan.cache_key(identity, values)
    if not key:
        named = ", ".join(filter(plan.counts, values.unhashable))
        return CacheExplanation(step.name, False, (f"argument {named} cannot be hashed, so the call is not cached",))
    archive = engine.archive if engine is not None else _archive_of_home()
    if archive is None:
        return CacheExplanation(step.name, False, ("nothing is recorded yet",))
    rows = archive.cached(key)
    trouble = _trouble(plan, archive.vault, rows) if rows else ""
    if rows and not trouble:
        body = rows[0].body
        source = f"version {rows[0].version} of {rows[0].name}, made by call {body.call} of run {body.run}"
        return CacheExplanation(step.name, True, (source,))
    return CacheExplanation(step.name, False, (trouble,) if trouble else _changes(plan, archive, values, identity, key))


def _engine_here() -> Engine | None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        engine = active_engine.get()
        return engine if engine is not None and engine.is_open else None
    return defaults.engine_here()


def _archive_of_home() -> Archive | None:
    place = home.locate_home(None)
    database = place / DATABASE
    if not database.exists():
        return None
    return Archive(str(database), Vault(str(place), blobs.open_blobs(None, place), allow_pickle=False))


def _why_not_cached(plan: Plan) -> str:
    if not plan.persist:
        return "the step has persist=False, so nothing is stored"
    if plan.known.unhashable:
        return f"{', '.join(plan.known.unhashable)} of the step cannot be hashed, so it is not cached"
    return "the step is not cached: cache=False" if plan.code else "the step's code cannot be read, so it is not cached"


def _values(plan: Plan, identities: Identities, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Values:
    pairs = labelled(plan.binder, args, kwargs)
    given: dict[str, bytes] = {}
    for label, value in pairs:
        try:
            given[label] = _digest(identities, value)
        except EncodeError:
            given[label] = b""
    return Values(
        bound=dict(pairs), digests=in_order(plan, given), unhashable=tuple(label for label in given if not given[label])
    )


def _digest(identities: Identities, value: Any) -> bytes:
    whole = value.value if isinstance(value, Unmapped) else value
    if isinstance(whole, StepFuture):
        whole = whole.artifact if whole.artifacts else whole.result()
    if isinstance(whole, Artifact):
        return whole._row.body.digest
    kinds = (StepFuture, Artifact)
    if next(find((whole,), kinds), None) is not None:
        whole = replace(whole, kinds, lambda item: item.read() if isinstance(item, Artifact) else item.result())
    return identities.digest_value(whole)


def _trouble(plan: Plan, vault: Vault, rows: list[ArtifactRow]) -> str:
    policy = plan.policy
    if (
        policy is not None
        and policy.expires_after is not None
        and time.time() - rows[0].body.at >= policy.expires_after
    ):
        return f"the entry is older than expires_after={policy.expires_after:g} s"
    return "" if all(map(vault.is_there, rows)) else "the stored output is missing or damaged"


def _changes(plan: Plan, archive: Archive, values: Values, identity: bytes, key: bytes) -> tuple[str, ...]:
    """What is different from the newest outcome of this step."""
    old = _newest_call(plan, archive)
    if old is None:
        return (f"no outcome of step {plan.name} is recorded",)
    if not old.key:
        return ("the newest outcome was recorded with cache=False, or with an input that cannot be hashed",)
    found = [
        *_plan_changes(plan, archive, old),
        *_code_changes(plan, archive, old),
        *_input_changes(plan, old, values),
    ]
    if found:
        return tuple(found)
    if old.key == key and old.fallback:
        return ("its newest outcome came from its fallback, and what a fallback gives is never cached",)
    if old.key == key:
        return ("its stored output was pruned, or replaced by a damaged one",)
    if plan.policy is not None and plan.policy.key is not None:
        return ("its cache policy's key function gave another text",)
    if old.identity != identity:
        return ("the step itself changed: its module, name, outputs, defaults or what it closes over",)
    return ("its version=, its cache policy or the content of its files= changed",)


def _plan_changes(plan: Plan, archive: Archive, old: CallRecord) -> tuple[str, ...]:
    """What is different beside code and inputs: identity, version, policy, files."""
    tag = old.key[: len(plan.tag)]
    known = [_unpacked(packed) for packed in archive.manifests_from(_PLANS + tag)]
    new = _parts_of(plan, plan.policy) if plan.policy is not None else ()
    if not known or new in known:
        return ()
    return differences(Fingerprint(tag, known[-1]), Fingerprint(plan.tag, new))


def _newest_call(plan: Plan, archive: Archive) -> CallRecord | None:
    for row in archive.newest(plan.output_names[0], _LOOKED_AT):
        if row.body.step == plan.name:
            record = archive.record(row.body.run).calls.get(row.body.call)
            if record is not None:
                return record
    return None


def _code_changes(plan: Plan, archive: Archive, old: CallRecord) -> tuple[str, ...]:
    new = plan.known.fingerprint
    policy = plan.policy
    if new is None or old.code == new.digest or policy is None or not policy.code or plan.version is not None:
        return ()
    packed = archive.manifest(old.code)
    if packed is None:
        return ("its code changed",)
    return differences(Fingerprint(old.code, _unpacked(packed)), new)


def _input_changes(plan: Plan, old: CallRecord, values: Values) -> list[str]:
    before = in_order(plan, {given.name: given.digest for given in old.inputs})
    found: list[str] = []
    for label in (*values.digests, *(before.keys() - values.digests.keys())):
        if plan.counts(label) and before.get(label) != values.digests.get(label):
            word = "is new" if label not in before else "changed" if label in values.digests else "is gone"
            found.append(f"input {label} {word}")
    return found
