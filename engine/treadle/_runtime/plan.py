"""What a step means in a run: its options decided, its identity and code taken; asked for once per step and run.

Most steps mean the same in all runs of an engine: their plan is kept, and used again while their code stays the same.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from treadle._core.admission import Claim, Limit, Limits
from treadle._core.binding import Binder
from treadle._core.expected import expected_of
from treadle._core.outputs import split
from treadle._core.rate import Pace
from treadle._runtime.calls.call import StepFuture
from treadle._runtime.calls.notes import notes_of
from treadle._runtime.guards import breakers
from treadle._runtime.views import shapes
from treadle.contracts import Needs
from treadle.errors import OptionError
from treadle.limits import Resources
from treadle.options import UNSET, CachePolicy, Retry, StepOptions, Unset
from treadle.storage.absent import TAG_BYTES

if TYPE_CHECKING:
    from treadle._runtime.calls.call import Call
    from treadle._runtime.calls.inputs import Values
    from treadle._runtime.code.identity import Identities
    from treadle._runtime.isolation.executors import Placed
    from treadle._runtime.step import Step

logger = logging.getLogger("treadle")


class Plan:
    """One step in one run, or in all of them.

    ``identity`` names the step without its code, ``code`` is the code's fingerprint;
    ``policy`` is ``None`` if nothing of it is cached.
    """

    __slots__ = (
        "attempt",
        "binder",
        "code",
        "conditions",
        "default_digests",
        "era",
        "execution_group",
        "executor",
        "expected",
        "fallback",
        "files",
        "fn",
        "future_type",
        "guard",
        "has_own_key",
        "identity",
        "in_flight",
        "is_async",
        "keeps_simply",
        "known",
        "limits",
        "name",
        "needs",
        "needs_key",
        "notes",
        "output_names",
        "outputs",
        "pace",
        "persist",
        "policy",
        "promised",
        "resources",
        "retry",
        "runtime",
        "salt",
        "source",
        "step",
        "tag",
        "target",
        "timeout",
        "version",
        "wants_kind",
        "worker_group",
    )  # fmt: skip

    def __init__(self, step: Step[..., Any], options: StepOptions, identities: Identities) -> None:
        self.step, self.era = step, identities.era
        self.fn: Callable[..., Any] = step.fn
        self.binder: Binder = step.binder
        self.is_async = step.is_async
        self.name: str = step.name
        self.outputs: tuple[str, ...] = _or(options.outputs, ())
        self.output_names = self.outputs or (self.name,)
        self.retry: Retry = _or(options.retry, _ONCE)
        self.timeout: float | None = _or(options.timeout, None)
        self.runtime: str = _or(options.runtime, "inline")
        self.attempt: Callable[[Call, Values], Awaitable[Any]]
        self.future_type: type[StepFuture[Any]] = StepFuture
        self.executor: Placed | None = None
        self.target, self.needs, self.worker_group, self.source = ("", "", ""), Needs(), "", b""
        self.persist: bool = _or(options.persist, True)
        self.policy: CachePolicy | None = _or(options.cache, _DEFAULT_CACHE) if self.persist else None
        self.limits: Limits = ()
        self.in_flight: Limit | None = None
        self.pace: Pace | None = None
        self.resources: Resources | None = _or(options.resources, None)
        self.execution_group: str | None = _or(options.execution_group, None)
        known = identities.of(step, self.output_names, self.policy)
        self.known, self.identity, self.code = known, known.identity, known.code
        self.default_digests = known.defaults
        self.conditions, self.fallback = step.policies.conditions, step.policies.fallback
        breaker = step.policies.breaker
        self.guard = breakers.guard_of(step, known, breaker) if breaker is not None else None
        self.expected = expected_of(step.fn)
        self.wants_kind = self.expected is not None and self.expected.wants_kind
        self.promised = None if self.expected is None else self.expected.promised(self.output_names)
        self.keeps_simply = self.persist and self.promised is None and len(self.outputs) < 2
        if known.unhashable and self.policy is not None:
            hint(f"step {self.name} is not cached: {', '.join(known.unhashable)} of it cannot be hashed")
            self.policy = None
        self.notes = notes_of(_or(options.tags, ()), _or(options.metadata, {}))
        self.version: str | None = _or(options.version, None)
        self.files: list[tuple[str, bytes]] = []
        self.salt = self._salt(self.version)
        self.tag = blake3(b"tag:" + self.identity + self.salt).digest()[:TAG_BYTES]
        policy = self.policy
        self.has_own_key = policy is not None and bool(policy.key is not None or policy.ignore or not policy.inputs)

    def _salt(self, version: str | None) -> bytes:
        """What the cache key has beside the identity: code or version, files, and other dependencies."""
        policy = self.policy
        if policy is None:
            return b""
        if not self.code and policy.code and version is None:
            hint(f"step {self.name} is not cached: neither source nor bytecode of it can be had")
            self.policy = None
            return b""
        salt = blake3(b"code:" if policy.code else b"input:")
        if version is not None:
            salt.update(b"version:" + blake3(version.encode()).digest())
        elif policy.code or not self.binder.names:
            salt.update(self.code)  # without any inputs ``input_hash`` would be one key for ever
        self.files = [(path, _file_digest(path)) for path in policy.files]
        for _, digest in self.files:
            salt.update(digest)
        return salt.digest()

    @property
    def is_for_all_runs(self) -> bool:
        """Whether another run of the same engine would decide the same, as long as the step's code stays as it is."""
        is_bare = self.executor is None and self.guard is None and self.pace is None
        return is_bare and self.resources is None and not self.files

    @property
    def is_on_loop(self) -> bool:
        """Whether its body runs on the event loop of this process."""
        return self.is_async and self.executor is None

    def check_output(self, name: str) -> None:
        """Refuse the name of an output that the step does not have."""
        if name not in self.output_names:
            raise OptionError(
                f"step {self.name} has no output {name!r}",
                fix=f"its outputs are {', '.join(self.output_names)}",
                option=name,
            )

    def cache_key(self, identity: bytes, values: Values) -> bytes:
        """The cache key of a call: 32 bytes that begin with the step's tag, or none if an argument cannot be hashed."""
        policy = self.policy
        assert policy is not None
        if values.unhashable and any(map(self.counts, values.unhashable)):
            return b""
        if self.has_own_key:
            return self.tag + self._own_digest(policy, values)[: 32 - TAG_BYTES]
        return self.tag + blake3(identity + self.salt).digest()[: 32 - TAG_BYTES]

    def _own_digest(self, policy: CachePolicy, values: Values) -> bytes:
        """What stands for the identity where the policy asks for other than all inputs."""
        if policy.key is not None:
            return blake3(self.identity + self.salt + b"key " + self._own_key(policy.key, values)).digest()
        if not policy.inputs:
            return blake3(self.identity + self.salt + b"no inputs").digest()
        kept = [name.encode() + b"=" + digest for name, digest in values.digests.items() if name not in policy.ignore]
        return blake3(self.identity + self.salt + b"|".join(kept)).digest()

    def counts(self, parameter: str) -> bool:
        """Whether the content of this parameter is part of the cache key."""
        policy = self.policy
        return policy is not None and policy.inputs and policy.key is None and parameter not in policy.ignore

    def _own_key(self, key: Callable[[dict[str, Any]], object], values: Values) -> bytes:
        text = key({**self.binder.defaults, **values.bound})
        if not isinstance(text, str):
            raise OptionError(
                f"CachePolicy(key=) of step {self.name} gave {type(text).__name__}",
                fix="let it return a text",
                option="key",
            )
        return text.encode("utf-8", "surrogatepass")

    def split(self, value: Any) -> tuple[list[Any], str]:
        """What a body returned as one value per output, and in which shape it came.

        Raises:
            OptionError: the number or the names do not match the declared outputs.
        """
        return split(self.name, self.outputs, value)

    @staticmethod
    def join(values: list[Any], shape: str, names: tuple[str, ...], *, trusted: bool = False) -> Any:
        """The reverse of ``split``; see ``shapes.join``."""
        return shapes.join(values, shape, names, trusted=trusted)

    def limited(self, limits: Sequence[Limit | Claim | None]) -> Limits:
        """Take the limits that all calls of this step in this run are subject to."""
        self.limits = tuple(limit for limit in limits if limit is not None)
        return self.limits


_ONCE = Retry(max_attempts=1)
_DEFAULT_CACHE = CachePolicy()


def _or(value: Any, default: Any) -> Any:
    return default if value is UNSET or isinstance(value, Unset) else value


def _file_digest(path: str) -> bytes:
    digest = blake3(b"file:" + path.encode())
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise OptionError(
            f"CachePolicy(files=) names {path!r}, which cannot be read", why=str(error), option="files"
        ) from error
    return digest.digest()


_hinted: set[str] = set()


def hint(text: str) -> None:
    """Say something useful once per process, as a warning record of the ``treadle`` logger."""
    if text not in _hinted:
        if len(_hinted) > 1000:
            _hinted.clear()
        _hinted.add(text)
        logger.warning(text)
