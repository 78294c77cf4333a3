"""What a body has raised in a worker, as an exception here; ``telling`` has told it there."""

from __future__ import annotations

import builtins
import sys
from typing import Any, Final

from treadle._core.binding import replace
from treadle._core.exceptions import fields_of, made
from treadle.contracts import MOST_DEEP, MOST_PARTS, Part, Raised
from treadle.errors import RemoteError
from treadle.storage import codecs

KINDS: Final = (Exception, BaseExceptionGroup, SystemExit, KeyboardInterrupt)


def rebuilt(raised: Raised) -> BaseException:
    """What the body raised, as its own type if that is imported here already, else as ``RemoteError``.

    Nothing is imported by name, and only classes derived from ``Exception`` are made, and groups; ``SystemExit`` and
    ``KeyboardInterrupt`` stay what they are, and end the step only. The same holds for each exception inside of it.
    """
    rebuilding = _Rebuilding()
    for part in raised.parts[:MOST_PARTS]:
        rebuilding.add(part)
    return rebuilding.error(raised)


class _Rebuilding:
    """Makes exceptions one after another; each may hold those that were made before it."""

    def __init__(self) -> None:
        self._parts: list[BaseException] = []
        self._depths: list[int] = []
        self._deepest = 0

    def add(self, raised: Raised) -> None:
        """Make one that others may hold."""
        error = self.error(raised)
        self._parts.append(error)
        self._depths.append(self._deepest + 1)

    def error(self, raised: Raised) -> BaseException:
        """The exception, or what stands for it."""
        self._deepest = 0
        kind, error, cause = _kind(raised.type_name), None, None
        try:
            if kind is not None:
                error = self._instance(kind, raised)
            if error is not None and raised.cause >= 0:
                cause = self._part(Part(raised.cause))
        except Exception:
            error = None
        if error is None:
            self._deepest = 0
            error = _remote(raised)
        return _dressed(error, cause, raised)

    def _instance(self, kind: type[BaseException], raised: Raised) -> BaseException | None:
        if not raised.arguments:
            return None
        arguments = self._decoded(raised.arguments)
        state = self._decoded(raised.state) if raised.state else {}
        error = made(kind, arguments)
        if type(error) is not kind and not (kind is BaseExceptionGroup and type(error) is ExceptionGroup):
            return None
        for field in fields_of(error):
            if (found := state.pop(field.__name__, None)) is not None:  # setting None would change an OSError's text
                field.__set__(error, found)
        error.__dict__.update(state)
        return error

    def _decoded(self, data: bytes) -> Any:
        return replace(codecs.decode("msgpack", data, trusted=False), (Part,), self._part)

    def _part(self, part: Part) -> BaseException:
        number = part.number
        self._deepest = max(self._deepest, self._depths[number])
        if self._deepest > MOST_DEEP:  # who handles it may well walk through it by recursion
            raise ValueError("exceptions lie too deep inside of each other")
        return self._parts[number]


def _kind(type_name: str) -> type[BaseException] | None:
    module, _, name = type_name.partition(":")
    kind: object = sys.modules.get(module, builtins if module == "builtins" else None)
    for part in name.split("."):
        kind = getattr(kind, part, None)
    return kind if isinstance(kind, type) and issubclass(kind, KINDS) else None


def _remote(raised: Raised) -> RemoteError:
    name = raised.type_name.partition(":")[2]
    text = f"{name}: {raised.message}" if raised.message and name else raised.message or name
    return RemoteError(text, where=None, type_name=raised.type_name, traceback_text=raised.traceback)


def _dressed(error: BaseException, cause: BaseException | None, raised: Raised) -> BaseException:
    try:
        if cause is not None:
            error.__cause__ = cause
        for note in raised.notes:
            error.add_note(note)
        if raised.traceback:
            error.add_note(f"traceback in the worker:\n{raised.traceback}")
    except Exception:
        return error  # a frozen dataclass, for example, allows none
    return error
