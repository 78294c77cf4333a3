"""Large outputs that stay in a worker's memory for the next steps of their execution group, beside being stored.

What a step gets from here is what a decode of the stored bytes would give: the value itself if nobody can change it, or
if it is an array that nobody else holds, which is made read-only; and else a new copy, decoded from the bytes.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any, Final

from treadle.contracts import Payload
from treadle.storage import codecs
from treadle.storage.codecs import arrays

MOST_VALUES: Final = 8
MOST_BYTES: Final = 1 << 30
"""So much is kept at the most, the newest; an array counts once, whoever has it."""
_NO_OTHERS: Final = 3
"""References to an output that only its worker holds: the caller's name, the parameter here, and the count itself."""


class Kept:
    """The newest large outputs of one group."""

    def __init__(self) -> None:
        self._group = ""
        self._values: OrderedDict[bytes, tuple[int, bool, Any]] = OrderedDict()

    def begin(self, group: str) -> None:
        """An attempt of this group begins; what is kept for another one is of no use."""
        if group != self._group:
            self.forget()
            self._group = group

    def forget(self) -> None:
        """Keep nothing."""
        self._values.clear()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept."""
        return not self._values

    def take(self, payload: Payload) -> tuple[bool, Any]:
        """The value of a payload, if it is here; first, whether it is."""
        known = self._values.get(payload.checksum)
        if known is None:
            return False, None
        _, is_value, content = known
        return True, content if is_value else codecs.decode(payload.codec, content)

    def keep(self, value: Any, payload: Payload, data: bytes | None, *, mutable: bool) -> None:
        """Keep an output that was stored.

        Args:
            value: it; the caller has it under one name.
            payload: where it is.
            data: its bytes, where they are one object.
            mutable: whether it, or a part of it, can be changed in place.
        """
        if not self._group or payload.data is not None or payload.size > MOST_BYTES:
            return
        if payload.codec == "numpy":
            if not arrays.is_plain(value) or sys.getrefcount(value) > _NO_OTHERS:
                return
            value.setflags(write=False)
            self._add(payload, is_value=True, content=value)
        elif not mutable:
            self._add(payload, is_value=True, content=value)
        elif data is not None:
            self._add(payload, is_value=False, content=data)

    def _add(self, payload: Payload, *, is_value: bool, content: Any) -> None:
        self._values[payload.checksum] = (payload.size, is_value, content)
        self._values.move_to_end(payload.checksum)
        while len(self._values) > MOST_VALUES or sum(size for size, _, _ in self._values.values()) > MOST_BYTES:
            self._values.popitem(last=False)
