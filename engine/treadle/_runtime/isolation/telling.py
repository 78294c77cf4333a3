"""What a body has raised, as it travels to the engine; ``remote_errors`` makes an exception of it again.

Exceptions inside of others (members of a group, arguments, attributes, the cause) travel as parts: one flat list, in
which each refers to earlier ones only, so no circle can be told. All of it is bounded: how many parts there are, how
deep they lie, and how many bytes they take. What is beyond comes as its name and the beginning of its text.
"""

from __future__ import annotations

import os
import traceback
from typing import Any, Final

import msgspec

from treadle._core.binding import replace
from treadle._core.exceptions import fields_of
from treadle._runtime import PACKAGE
from treadle.contracts import MOST_DEEP, MOST_NOTES, MOST_PARTS, Part, Raised
from treadle.errors import RemoteError, TreadleError

TEXT_CHARS: Final = 64 * 1024
ARGUMENT_BYTES: Final = 64 * 1024
NAME_CHARS: Final = 1000
PART_CHARS: Final = 8 * 1024
PARTS_BYTES: Final = 4 * 1024 * 1024
MOST_WIDE: Final = 500
"""So many members of one group travel at the most; for the others stands an error that says how many there were."""
_BRIEF_CHARS: Final = 200
_ARGUMENTS: Final[Any] = vars(BaseException)["args"]  # whatever its class has put in the place of them
_CAUSE: Final[Any] = vars(BaseException)["__cause__"]
_WORKER: Final = f"{PACKAGE}worker.py"


def described(error: BaseException) -> Raised:
    """An exception as it travels; never raises, however odd the exception is."""
    telling = _Telling()
    try:
        whole = telling.told(error, 0, TEXT_CHARS)
    except BaseException:  # its own methods may raise anything, also what ends programs
        return Raised(_name(type(error)), "an exception of which nothing can be told")
    return msgspec.structs.replace(whole, parts=tuple(telling.parts))


class _Telling:
    """Tells one exception and those inside of it."""

    def __init__(self) -> None:
        self.parts: list[Raised] = []
        self._numbers: dict[int, int] = {}
        self._begun: set[int] = set()
        self._room = PARTS_BYTES

    def told(self, error: BaseException, depth: int, most_chars: int) -> Raised:
        """An exception; those inside of it become parts."""
        self._begun.add(id(error))
        arguments = self._packed(_arguments_of(error), depth)
        state = self._state(error, depth)
        cause: BaseException | None = _CAUSE.__get__(error)
        number = -1 if cause is None else self._part(cause, depth + 1).number
        self._begun.discard(id(error))
        return Raised(
            _name(type(error)), _text(error, most_chars), _traceback(error, most_chars), arguments, state,
            _notes_of(error, most_chars), cause=number,
        )  # fmt: skip

    def _part(self, error: BaseException, depth: int) -> Part:
        known = self._numbers.get(id(error))
        if known is not None:
            return Part(known)
        if len(self.parts) >= MOST_PARTS:
            return Part(MOST_PARTS - 1)
        is_told = depth < MOST_DEEP and self._room > 0 and id(error) not in self._begun
        part = self.told(error, depth, PART_CHARS) if is_told else _brief(error)
        if len(self.parts) >= MOST_PARTS - 1:  # those inside of it have taken the places
            self.parts[MOST_PARTS - 1 :] = [Raised("", "more exceptions, which were too many to be sent")]
            return Part(MOST_PARTS - 1)
        self._room -= len(part.message) + len(part.traceback) + len(part.arguments) + len(part.state)
        self._room -= sum(map(len, part.notes))
        self.parts.append(part)
        if is_told:
            self._numbers[id(error)] = len(self.parts) - 1
        return Part(len(self.parts) - 1)

    def _state(self, error: BaseException, depth: int) -> bytes:
        try:
            known = {name: value for name, value in vars(error).items() if name not in ("__notes__", "value")}
            known |= {field.__name__: field.__get__(error) for field in fields_of(error)}
        except Exception:
            return b""
        packed = self._packed(known, depth)
        if packed or not known:
            return packed
        return self._packed({name: value for name, value in known.items() if self._packed(value, depth)}, depth)

    def _packed(self, value: Any, depth: int) -> bytes:
        from treadle.storage import codecs

        try:
            plain = replace(value, (BaseException,), lambda inner: self._part(inner, depth + 1))
            data = codecs.encode(plain, allow_pickle=False).data
        except Exception:
            return b""
        return bytes(data) if len(data) <= ARGUMENT_BYTES else b""


def _arguments_of(error: BaseException) -> list[Any]:
    """What makes the exception again."""
    if not isinstance(error, BaseExceptionGroup) or type(error).__new__ != BaseExceptionGroup.__new__:
        return list(_ARGUMENTS.__get__(error))
    # Not its args: they may be what its own __init__ has passed on, or a list that was changed since.
    members: list[Any] = list(error.exceptions[:MOST_WIDE])
    if len(error.exceptions) > MOST_WIDE:
        left = len(error.exceptions) - MOST_WIDE
        members.append(RemoteError(f"{left:,} more exceptions of this group, which were not sent", type_name=""))
    return [error.message, members]


def _brief(error: BaseException) -> Raised:
    return Raised(_name(type(error)), _text(error, _BRIEF_CHARS))


def _name(kind: type) -> str:
    try:
        return _cut(f"{kind.__module__}:{kind.__qualname__}", NAME_CHARS)
    except Exception:
        return ":"


def _notes_of(error: BaseException, most_chars: int) -> tuple[str, ...]:
    try:
        notes = getattr(error, "__notes__", ())
        return tuple([_cut(str(note), most_chars) for note in notes[:MOST_NOTES]])
    except Exception:
        return ()  # they are no list, or one of them has no text


def _text(error: BaseException, most_chars: int) -> str:
    try:
        return _cut(error.what if isinstance(error, TreadleError) else str(error), most_chars)
    except BaseException:
        return f"<{_name(type(error)).rpartition(':')[2]} whose text cannot be had>"


def _traceback(error: BaseException, most_chars: int) -> str:
    try:
        place = error.__traceback__
        while place is not None and place.tb_next is not None and _is_ours(place.tb_frame.f_code.co_filename):
            place = place.tb_next
        lines = traceback.format_exception(type(error), error, place, limit=-30, chain=True)
        return _clean("".join(lines))[-most_chars:]
    except BaseException:
        return ""


def _is_ours(path: str) -> bool:
    return path == _WORKER or os.sep + "asyncio" + os.sep in path


def _cut(text: str, most_chars: int) -> str:
    return _clean(text[:most_chars])


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
