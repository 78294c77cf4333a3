"""What users may ask of a step, a pipeline and an engine: frozen values, checked at birth.

Knows types and ranges; does not know what the options lead to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from treadle._record import record
from treadle.checks import (
    Duration,
    check,
    check_known,
    check_whole,
    is_exception_class,
    is_factor,
    is_flag,
    is_int,
    seconds,
    size_bytes,
)
from treadle.errors import OptionError
from treadle.limits import Rate, Resources

if TYPE_CHECKING:
    from pathlib import PurePath


class Unset(Enum):
    """The type of ``UNSET``, which is distinct from every value a user can give."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"

    def __bool__(self) -> Literal[False]:
        return False


UNSET: Final = Unset.UNSET

FailureMode = Literal["fail_fast", "stop", "continue"]
Durability = Literal["strict", "relaxed", "memory"]
FAILURE_MODES: Final = ("fail_fast", "stop", "continue")
DURABILITIES: Final = ("strict", "relaxed", "memory")


def _paths(value: Any) -> tuple[str, ...]:
    return tuple(str(path) for path in ([value] if isinstance(value, str) or hasattr(value, "__fspath__") else value))


def _several(value: Any) -> tuple[Any, ...]:
    """Read one value or a list of them."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


@record
class Retry:
    """How often and how patiently a failed attempt is tried again.

    Args:
        max_attempts: attempts in all, the first one included.
        delay: wait before the second attempt (a duration).
        backoff: factor by which the wait grows from attempt to attempt.
        max_delay: upper limit of one wait (a duration).
        jitter: draw each wait evenly from 0 to its computed length ("full jitter",
            M. Brooker, "Exponential Backoff And Jitter", 2015).
        on: the exception types that are retried; step timeouts always are.
        max_time: no new attempt starts later than this after the first one (a duration).

    Raises:
        OptionError: if a value is out of range.

    >>> Retry(max_attempts=3, delay="200ms").delay
    0.2
    """

    max_attempts: int = 3
    delay: float = 0.1
    backoff: float = 2.0
    max_delay: float = 60.0
    jitter: bool = True
    on: tuple[type[Exception], ...] = (Exception,)
    max_time: float | None = None

    if TYPE_CHECKING:  # what may be given is more than what is kept

        def __init__(
            self,
            max_attempts: int = ...,
            delay: Duration = ...,
            backoff: float = ...,
            max_delay: Duration = ...,
            jitter: bool = ...,
            on: type[Exception] | Sequence[type[Exception]] = ...,
            max_time: Duration | None = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        check(is_int(self.max_attempts, 1), "max_attempts", self.max_attempts, "a whole number from 1")
        check(is_factor(self.backoff), "backoff", self.backoff, "a number from 1")
        check(is_flag(self.jitter), "jitter", self.jitter, "True or False")
        on = _several(self.on)
        check(bool(on) and all(map(is_exception_class, on)), "on", self.on, "classes derived from Exception")
        object.__setattr__(self, "on", on)
        object.__setattr__(self, "delay", seconds(self.delay, "delay"))
        object.__setattr__(self, "max_delay", seconds(self.max_delay, "max_delay"))
        if self.max_time is not None:
            object.__setattr__(self, "max_time", seconds(self.max_time, "max_time"))

    @classmethod
    def of(cls, value: object) -> Retry:
        """Read the ``retry`` option: ``n`` extra attempts, or a ``Retry``."""
        if isinstance(value, Retry):
            return value
        check(is_int(value, 0), "retry", value, "a whole number of extra attempts, or Retry(...)")
        assert isinstance(value, int)
        return cls(max_attempts=value + 1)


@record
class CachePolicy:
    """What a step's cache key is made of, and how long an entry lives.

    Args:
        code: the fingerprint of the step's code is part of the key.
        inputs: the digests of the inputs are part of the key.
        ignore: parameters that are left out of the key.
        files: paths of files whose content is part of the key.
        depends_on: functions, classes, modules or plain values that are part of the key although the step does not
            name them (what it reaches through a registry, say).
        key: called with the inputs by parameter name; its text replaces the input digests.
        expires_after: age (a duration) from which an entry is no longer used.

    >>> CachePolicy(expires_after="12h").expires_after
    43200.0
    """

    code: bool = True
    inputs: bool = True
    ignore: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    depends_on: tuple[Any, ...] = ()
    key: Callable[[dict[str, Any]], str] | None = None
    expires_after: float | None = None

    if TYPE_CHECKING:  # what may be given is more than what is kept

        def __init__(
            self,
            code: bool = ...,
            inputs: bool = ...,
            ignore: str | Iterable[str] = ...,
            files: str | PurePath | Iterable[str | PurePath] = ...,
            depends_on: Any = ...,
            key: Callable[[dict[str, Any]], str] | None = ...,
            expires_after: Duration | None = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        for name in ("code", "inputs"):
            check(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        check(self.key is None or callable(self.key), "key", self.key, "a function of the inputs, dict to str")
        object.__setattr__(self, "ignore", _names(self.ignore, "ignore"))
        object.__setattr__(self, "files", _paths(self.files))
        object.__setattr__(self, "depends_on", _several(self.depends_on))
        if self.expires_after is not None:
            object.__setattr__(self, "expires_after", seconds(self.expires_after, "expires_after"))

    @classmethod
    def of(cls, value: object) -> CachePolicy | None:
        """Read the ``cache`` option; ``None`` means that the step is not cached."""
        if value is False:
            return None
        if value is True or value == "code_hash":
            return _CODE_HASH
        if value == "input_hash":
            return _INPUT_HASH
        check(
            isinstance(value, CachePolicy), "cache", value, "'code_hash', 'input_hash', True, False or CachePolicy(...)"
        )
        assert isinstance(value, CachePolicy)
        return value


@record
class Keep:
    """How much history a home keeps: runs younger than ``runs_for``, artifacts up to ``bytes``.

    >>> Keep(runs_for="30d", bytes="10GB")
    Keep(runs_for=2592000.0, bytes=10000000000)
    """

    runs_for: float | None = None
    bytes: int | None = None

    if TYPE_CHECKING:  # what may be given is more than what is kept

        def __init__(self, runs_for: Duration | None = ..., bytes: int | str | None = ...) -> None: ...

    def __post_init__(self) -> None:
        if self.runs_for is not None:
            object.__setattr__(self, "runs_for", seconds(self.runs_for, "runs_for"))
        if self.bytes is not None:
            object.__setattr__(self, "bytes", size_bytes(self.bytes, "bytes"))

    @staticmethod
    def check(value: object) -> None:
        """Refuse what is neither a ``Keep`` nor ``None``."""
        check(value is None or isinstance(value, Keep), "keep", value, "Keep(runs_for='30d', bytes='10GB') or None")


def _names(value: object, option: str) -> tuple[str, ...]:
    """Read one or several names; a lone string counts as one name."""
    given: Any = (value,) if isinstance(value, str) else value
    check(isinstance(given, (list, tuple, set, frozenset)), option, value, "a name or a list of names")
    names: tuple[Any, ...] = tuple(given)
    check(all(isinstance(name, str) and name for name in names), option, value, "names that are not empty")
    check(len(set(names)) == len(names), option, value, "names that differ")
    return names


def _ordered(value: object, option: str) -> tuple[str, ...]:
    """Names that belong to positions; a set has another order in every process."""
    check(not isinstance(value, (set, frozenset)), option, value, "a list of names: their order counts")
    return _names(value, option)


_CODE_HASH = CachePolicy()
_INPUT_HASH = CachePolicy(code=False)


def _timeout(value: object) -> float | None:
    if value is None:
        return None
    timeout = seconds(value, "timeout")
    check(timeout > 0, "timeout", value, "a duration above 0")
    return timeout


def _name(value: object) -> Any:
    check(value is None or (isinstance(value, str) and bool(value.strip())), "name", value, "a text that is not empty")
    return value


def _limit(option: str) -> Callable[[object], Any]:
    def read(value: object) -> Any:
        if value is not None:
            check_whole(value, 1, option)
        return value

    return read


def _flag(option: str) -> Callable[[object], bool]:
    def read(value: object) -> bool:
        check(isinstance(value, bool), option, value, "True or False")
        return value is True

    return read


def _runtime(value: object) -> str:
    check(isinstance(value, str) and bool(value), "runtime", value, "'inline', 'process' or the name of an executor")
    return str(value)


def _execution_group(value: object) -> Any:
    check(value is None or (isinstance(value, str) and bool(value.strip())), "execution_group", value, "a name")
    return value


def _version(value: object) -> str | None:
    check(value is None or isinstance(value, (str, int)), "version", value, "a text or a number")
    return None if value is None else str(value)


def _metadata(value: object) -> Mapping[str, Any]:
    check(isinstance(value, Mapping), "metadata", value, "a dict with text keys")
    copy: dict[str, Any] = _plain(value, "metadata", ())
    return copy


def _plain(value: Any, path: str, inside: tuple[int, ...]) -> Any:
    """Copy what JSON can say; name the place of what it cannot."""
    if value is None or isinstance(value, (bool, str, float)) or (isinstance(value, int) and -(2**63) <= value < 2**64):
        return value
    why = f"it is of type {type(value).__name__}"
    if isinstance(value, (Mapping, list, tuple)):
        if id(value) not in inside:
            below = (*inside, id(value))
            if not isinstance(value, Mapping):
                return [_plain(item, f"{path}[{place}]", below) for place, item in enumerate(value)]
            wrong = next((key for key in value if not isinstance(key, str)), None)
            if wrong is None:
                return {key: _plain(item, f"{path}[{key!r}]", below) for key, item in value.items()}
            path, why = f"{path}[{wrong!r}]", f"a key is of type {type(wrong).__name__}"
        else:
            why = "it contains itself"
    elif isinstance(value, int):
        why = "it has more than 64 bits"
    raise OptionError(
        f"{path} is not plain data",
        why=why,
        fix="give numbers, texts, True, False, None, and lists and dicts (with text keys) of such",
        option="metadata",
    )


def _step_name(value: object) -> str | None:
    name: str | None = _name(value)
    wanted = "a text without brackets, which number the calls of a map"
    check(name is None or not (set("[]") & set(name)), "name", value, wanted)
    return name


def _failure_mode(value: object) -> Any:
    check(value in FAILURE_MODES, "failure_mode", value, "one of 'fail_fast', 'stop', 'continue'")
    return value


def _idempotency_key(value: object) -> Any:
    check(value is None or (isinstance(value, str) and bool(value)), "idempotency_key", value, "a text")
    return value


def _context(value: Any) -> Mapping[str, Any]:
    names = isinstance(value, Mapping) and all(isinstance(name, str) and name.isidentifier() for name in value)
    check(names, "context", value, "context(name=value), or a dict whose keys are names of parameters")
    return dict(value)


def _kept(value: object) -> Any:
    return value


def _engine(value: object) -> Any:
    check(value is None or hasattr(value, "check_usable"), "engine", value, "an Engine, or None for the current one")
    return value


_STEP_READERS: dict[str, Callable[[object], Any]] = {
    "name": _step_name,
    "inputs": lambda value: _ordered(value, "inputs"),
    "outputs": lambda value: _ordered(value, "outputs"),
    "cache": CachePolicy.of,
    "retry": Retry.of,
    "timeout": _timeout,
    "resources": Resources.of,
    "execution_group": _execution_group,
    "runtime": _runtime,
    "max_in_flight": _limit("max_in_flight"),
    "rate": Rate.of,
    "persist": _flag("persist"),
    "version": _version,
    "tags": lambda value: _names(value, "tags"),
    "metadata": _metadata,
    "after": _kept,
}

_PIPELINE_READERS: dict[str, Callable[[object], Any]] = {
    "name": _name,
    "failure_mode": _failure_mode,
    "timeout": _timeout,
    "max_concurrency": _limit("max_concurrency"),
    "cache": CachePolicy.of,
    "retry": Retry.of,
    "tags": lambda value: _names(value, "tags"),
    "static": _flag("static"),
    "context": _context,
    "debug": _flag("debug"),
    "idempotency_key": _idempotency_key,
    "engine": _engine,
}

_Options = TypeVar("_Options", "StepOptions", "PipelineOptions")


def _read(
    cls: type[_Options], given: Mapping[str, Any], readers: Mapping[str, Callable[[object], Any]], what: str
) -> _Options:
    check_known(given, tuple(readers), what)
    return cls(**{name: readers[name](value) for name, value in given.items() if value is not UNSET})


def _over(base: _Options, top: _Options) -> _Options:
    changed = {name: value for name, value in vars(top).items() if value is not UNSET}
    if not changed:
        return base
    made = object.__new__(type(base))  # both have been checked
    made.__dict__.update(base.__dict__, **changed)
    return made


@record(kw_only=True)
class StepOptions:
    """The options of one step or call; each may be unset, so that another level can decide."""

    name: str | None | Unset = UNSET
    inputs: tuple[str, ...] | Unset = UNSET
    outputs: tuple[str, ...] | Unset = UNSET
    cache: CachePolicy | None | Unset = UNSET
    retry: Retry | Unset = UNSET
    timeout: float | None | Unset = UNSET
    resources: Resources | None | Unset = UNSET
    execution_group: str | None | Unset = UNSET
    runtime: str | Unset = UNSET
    max_in_flight: int | None | Unset = UNSET
    rate: Rate | None | Unset = UNSET
    persist: bool | Unset = UNSET
    version: str | None | Unset = UNSET
    tags: tuple[str, ...] | Unset = UNSET
    metadata: Mapping[str, Any] | Unset = UNSET
    after: Any = field(default=UNSET, compare=False)

    @classmethod
    def read(cls, given: Mapping[str, Any], what: str = "@step") -> StepOptions:
        """Check options given by name.

        Raises:
            OptionError: names the option, what was given, and what is allowed.
        """
        return _read(cls, given, _STEP_READERS, what)

    def over(self, top: StepOptions) -> StepOptions:
        """These options, with those that ``top`` sets laid over them."""
        return _over(self, top)


@record(kw_only=True)
class PipelineOptions:
    """The options of one pipeline or of one call of it; each may be unset."""

    name: str | None | Unset = UNSET
    failure_mode: FailureMode | Unset = UNSET
    timeout: float | None | Unset = UNSET
    max_concurrency: int | None | Unset = UNSET
    cache: CachePolicy | None | Unset = UNSET
    retry: Retry | Unset = UNSET
    tags: tuple[str, ...] | Unset = UNSET
    static: bool | Unset = UNSET
    context: Mapping[str, Any] | Unset = UNSET
    debug: bool | Unset = UNSET
    idempotency_key: str | None | Unset = UNSET
    engine: Any = field(default=UNSET, compare=False)

    @classmethod
    def read(cls, given: Mapping[str, Any], what: str = "@pipeline") -> PipelineOptions:
        """Check options given by name (see ``StepOptions.read``)."""
        return _read(cls, given, _PIPELINE_READERS, what)

    def over(self, top: PipelineOptions) -> PipelineOptions:
        """These options, with those that ``top`` sets laid over them; of two contexts, value by value."""
        both = _over(self, top)
        if self.context is UNSET or top.context is UNSET:
            return both
        return replace(both, context={**self.context, **top.context})
