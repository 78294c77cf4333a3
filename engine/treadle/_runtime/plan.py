"""What a step means in one run: its options decided, its identity and code taken; made once per step and run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from treadle._core.admission import Limit, Limits
from treadle._core.binding import Binder
from treadle.errors import DecodeError, ExecutorNotFound, OptionError
from treadle.options import UNSET, CachePolicy, Retry, StepOptions, Unset
from treadle.storage.absent import TAG_BYTES

if TYPE_CHECKING:
    from treadle._runtime.identity import Identities
    from treadle._runtime.inputs import Values
    from treadle._runtime.step import Step

logger = logging.getLogger("treadle")


class Plan:
    """One step in one run.

    ``identity`` names the step without its code, ``code`` is the code's fingerprint;
    ``policy`` is ``None`` if nothing of it is cached.
    """

    __slots__ = (
        "binder",
        "code",
        "default_digests",
        "fn",
        "has_version",
        "identity",
        "in_flight",
        "is_async",
        "known",
        "limits",
        "name",
        "needs_key",
        "output_names",
        "outputs",
        "persist",
        "policy",
        "retry",
        "runtime",
        "salt",
        "step",
        "tag",
        "timeout",
    )  # fmt: skip

    def __init__(self, step: Step[..., Any], options: StepOptions, identities: Identities) -> None:
        self.step = step
        self.fn: Callable[..., Any] = step.fn
        self.binder: Binder = step.binder
        self.is_async = step.is_async
        self.name: str = step.name
        self.outputs: tuple[str, ...] = _or(options.outputs, ())
        self.output_names = self.outputs or (self.name,)
        self.retry: Retry = _or(options.retry, _ONCE)
        self.timeout: float | None = _or(options.timeout, None)
        self.runtime: str = _or(options.runtime, "inline")
        if self.runtime != "inline":
            raise _no_executor(self.name, self.runtime)
        self.persist: bool = _or(options.persist, True)
        self.policy: CachePolicy | None = _or(options.cache, _DEFAULT_CACHE) if self.persist else None
        self.limits: Limits = ()
        self.in_flight: Limit | None = None
        known = identities.of(step, self.output_names, self.policy)
        self.known, self.identity, self.code = known, known.identity, known.code
        self.default_digests = known.defaults
        if known.unhashable and self.policy is not None:
            hint(f"step {self.name} is not cached: {', '.join(known.unhashable)} of it cannot be hashed")
            self.policy = None
        version: str | None = _or(options.version, None)
        self.has_version = version is not None
        self.salt = self._salt(version)
        self.tag = blake3(b"tag:" + self.identity + self.salt).digest()[:TAG_BYTES]

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
        for path in policy.files:
            salt.update(_file_digest(path))
        return salt.digest()

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
        if any(map(self.counts, values.unhashable)):
            return b""
        return self.tag + self._key_digest(policy, identity, values)[: 32 - TAG_BYTES]

    def _key_digest(self, policy: CachePolicy, identity: bytes, values: Values) -> bytes:
        if policy.key is not None:
            return blake3(self.identity + self.salt + b"key " + self._own_key(policy.key, values)).digest()
        if not policy.inputs:
            return blake3(self.identity + self.salt + b"no inputs").digest()
        if policy.ignore:
            kept = [
                name.encode() + b"=" + digest for name, digest in values.digests.items() if name not in policy.ignore
            ]
            return blake3(self.identity + self.salt + b"|".join(kept)).digest()
        return blake3(identity + self.salt).digest()

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
        if len(self.outputs) < 2:
            return [value], ""
        if isinstance(value, dict):
            given: Sequence[Any] = list(value)
            if set(given) == set(self.outputs):
                return [value[name] for name in self.outputs], "dict"
        elif isinstance(value, (tuple, list)):
            given = value
            if len(given) == len(self.outputs):
                return list(given), "list" if isinstance(value, list) else "tuple"
        else:
            given = [value]
        raise OptionError(
            f"step {self.name} declares {len(self.outputs)} outputs ({', '.join(self.outputs)}) and returned"
            f" {type(value).__name__} of {len(given)}",
            fix="return a tuple or list with one value per output, or a dict with the outputs' names",
            option="outputs",
        )

    @staticmethod
    def join(values: list[Any], shape: str, names: tuple[str, ...]) -> Any:
        """The reverse of ``split``."""
        if shape == "dict":
            return dict(zip(names, values, strict=True))
        if shape == "list":
            return values
        if shape == "tuple":
            return tuple(values)
        if shape or len(values) != 1:
            raise DecodeError(f"stored outputs have the unknown shape {shape!r}", fix="run the step again")
        return values[0]

    def limited(self, limits: Sequence[Limit | None]) -> Limits:
        """Take the limits that all calls of this step in this run are subject to."""
        self.limits = tuple(limit for limit in limits if limit is not None)
        return self.limits


def _no_executor(step: str, runtime: str) -> ExecutorNotFound:
    """Never run a step elsewhere than where it was told to."""
    return ExecutorNotFound(
        f"step {step} asks for runtime={runtime!r}, and there is no executor of that name",
        why="this release performs steps in this process only",
        fix="leave runtime away, or give 'inline'",
        runtime=runtime,
    )


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
