"""``Secret``: a value that is never shown and never stored; it knows nothing of logs, keys or homes.

What is shown is masked in two ways: the object itself prints as ``***``, and ``masked`` takes the text of every secret
that is alive out of what is about to be written down (a log line, the text of an error).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Generic, NoReturn, TypeVar, cast
from weakref import WeakSet

T = TypeVar("T")

MASK: Final = "***"
SHORTEST: Final = 4
"""The text of a shorter secret is not looked for: it would be found in every other line."""


class Secret(Generic[T]):
    """A password, a token: given to steps like any value, and kept out of all that is written.

    * Its text is masked in ``repr``, ``str``, formats, in the lines that steps log, and in recorded errors.
    * In cache keys it counts by a hash with a key of the home's own, so another secret is another call, and nobody can
      find the secret by trying.
    * It is never stored: a step cannot return one (but with ``persist=False``), it cannot be pickled, and a run with a
      secret among the pipeline's arguments cannot be resumed by another process.
    * A worker of an isolated step gets it in the message that starts its attempt, not by its arguments or environment.

    Args:
        value: what is secret, a text most of the time.

    >>> token = Secret("s3cr3t-token")
    >>> token, f"Bearer {token}"
    (Secret('***'), 'Bearer ***')
    >>> token.value
    's3cr3t-token'
    """

    __slots__ = ("__weakref__", "_value")

    def __init__(self, value: T) -> None:
        self._value: T = cast("T", value.value) if isinstance(value, Secret) else value
        if isinstance(self._value, (str, bytes)) and len(self._value) >= SHORTEST:
            _alive.add(self)

    @property
    def value(self) -> T:
        """What is secret; whoever shows it, shows it."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({MASK!r})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __eq__(self, other: object) -> bool:
        return self._value == other._value if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __copy__(self) -> Secret[T]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret[T]:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is not pickled: pass it to steps as an argument, or read it where it is needed")


_alive: Final[WeakSet[Secret[Any]]] = WeakSet()


def masked(text: str) -> str:
    """A text without the texts of the secrets that are alive.

    >>> token = Secret("s3cr3t-token")
    >>> masked("GET /?token=s3cr3t-token")
    'GET /?token=***'
    """
    if not _alive:
        return text
    for found in sorted({_text_of(secret) for secret in list(_alive)}, key=len, reverse=True):
        if found in text:
            text = text.replace(found, MASK)
    return text


def masked_facts(facts: Any) -> Any:
    """The same for plain data: every text in it, keys among them."""
    if not _alive:
        return facts
    if isinstance(facts, str):
        return masked(facts)
    if isinstance(facts, Secret):
        return MASK
    if isinstance(facts, Mapping):
        return {masked_facts(key): masked_facts(value) for key, value in facts.items()}
    if isinstance(facts, (list, tuple)):
        return [masked_facts(item) for item in facts]
    return facts


def are_alive() -> bool:
    """Whether there is any secret that could be shown."""
    return bool(_alive)


def _text_of(secret: Secret[Any]) -> str:
    value = secret.value
    return value if isinstance(value, str) else bytes(value).decode("utf-8", "backslashreplace")
