"""What steps exchange that is more than a value: ``Model``, ``Dataset``, ``Metrics``; knows not where they are kept.

They are ordinary values with a name and facts of their own. An engine stores them like any other, or sends them to a
place of their own (``Engine(routes={Model: ...})``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from treadle.errors import OptionError

T = TypeVar("T")

_SHOWN = 60


@dataclass(init=False, eq=False, repr=False)
class Asset(Generic[T]):
    """Base of ``Model`` and ``Dataset``: an object, a name, and facts about it.

    Args:
        value: the object itself, anything that can be stored.
        name: under which ``engine.artifact(name)`` and routes find it; without one, the output's name counts.
        **metadata: facts about it, part of its content; plain data shows in ``Artifact.metadata``.

    Raises:
        OptionError: the name is not a text, or empty.
    """

    value: T
    name: str | None
    metadata: dict[str, Any]

    def __init__(self, value: T, /, name: str | None = None, **metadata: Any) -> None:
        check_name(type(self), name)
        self.value, self.name, self.metadata = value, name, metadata

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        one, two = self.__dict__, other.__dict__
        return one.keys() == two.keys() and all(_is_same(part, two[name]) for name, part in one.items())

    __hash__ = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]  # as of all that can be changed

    def __repr__(self) -> str:
        text = repr(self.value) if type(self.value).__module__ == "builtins" else f"<{type(self.value).__name__}>"
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        name = "" if self.name is None else f", name={self.name!r}"
        facts = "".join(f", {key}={fact!r}" for key, fact in self.metadata.items())
        return f"{type(self).__name__}({shown}{name}{facts})"


@dataclass(init=False, eq=False, repr=False)
class Model(Asset[T]):
    """A trained model: the object, a name, and facts about it.

    >>> model = Model({"weights": [0.1, 0.2]}, name="demo", accuracy=0.9)
    >>> model.value["weights"], model.name, model.metadata
    ([0.1, 0.2], 'demo', {'accuracy': 0.9})
    """


@dataclass(init=False, eq=False, repr=False)
class Dataset(Asset[T]):
    """Data to work on: the frame, array or list, a name, and facts about it.

    >>> Dataset([1, 2, 3], name="numbers").value
    [1, 2, 3]
    """


@dataclass(init=False, eq=False, repr=False)
class Metrics(Mapping[str, Any]):
    """Numbers about something, by name; a mapping that does not change.

    >>> metrics = Metrics(acc=0.9, loss=0.2)
    >>> metrics["acc"], dict(metrics)
    (0.9, {'acc': 0.9, 'loss': 0.2})
    """

    _values: dict[str, Any]

    def __init__(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        given = {**(values or {}), **named}
        for name in given:
            if not isinstance(cast("object", name), str):
                raise OptionError(
                    f"Metrics has a name that is no text: {name!r}", fix="write Metrics(acc=0.9)", option="metrics"
                )
        self._values = given

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.items())})"


def check_name(kind: type, name: object) -> None:
    """Refuse a name that is no text, or one that no log could keep.

    Raises:
        OptionError: says what is wrong with it.
    """
    if name is None:
        return
    try:
        is_good = isinstance(name, str) and bool(name.encode()) and "\0" not in name
    except UnicodeEncodeError:
        is_good = False
    if not is_good:
        raise OptionError(
            f"{kind.__name__}(..., name={name!r}) is not allowed",
            fix=f"the object comes first, its name is a text: {kind.__name__}(obj, name='...')",
            option="name",
        )


def _is_same(one: Any, two: Any) -> bool:
    """Equality of any two objects, also of arrays and frames, whose ``==`` is one answer per element."""
    if one is two:
        return True
    if type(one) is not type(two) or getattr(one, "shape", None) != getattr(two, "shape", None):
        return False
    equals = getattr(one, "equals", None)
    if callable(equals):
        return bool(equals(two))
    answer = one == two
    every = getattr(answer, "all", None)
    return bool(every()) if callable(every) else bool(answer)
