"""What a step's options say of its calls, for the log: tags and metadata. Nothing of what the calls say themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from treadle import events as ev
from treadle.secret import masked_facts

if TYPE_CHECKING:
    from treadle._runtime.calls.call import Call


class Notes:
    """Tags and metadata as they are recorded with each call of a step."""

    __slots__ = ("_body", "_tags")

    def __init__(self, tags: Sequence[str], metadata: Mapping[str, Any]) -> None:
        self._tags: tuple[str, ...] = tuple(masked_facts(list(tags)))
        self._body = msgspec.msgpack.encode(masked_facts(metadata))

    def of(self, call: Call) -> ev.MetadataLogged:
        """The fact for one call."""
        at = call.run.now()
        return ev.MetadataLogged(at=at, call=call.name, step=call.plan.name, body=self._body, tags=self._tags)


def notes_of(tags: Sequence[str], metadata: Mapping[str, Any]) -> Notes | None:
    """The notes of a step; of most steps there are none."""
    return Notes(tags, metadata) if tags or metadata else None
