"""Puts outputs together again in the container that they came in; how it was taken apart, ``_core.outputs`` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treadle._core.outputs import CONTAINERS, fits
from treadle.errors import DecodeError
from treadle.storage.codecs import names as codec_names


def join(values: Sequence[Any], shape: str, names: Sequence[str], *, trusted: bool = False) -> Any:
    """The reverse of ``split``.

    Args:
        values: one per output.
        shape: as ``split`` gave it.
        names: of the outputs.
        trusted: whether this home's own processes wrote it; else a class counts only if it is loaded.

    Raises:
        DecodeError: the shape is none, or its class is not there any more.
    """
    if not shape and len(values) == 1:
        return values[0]
    base, _, rest = shape.partition(":")
    module, _, more = rest.partition(":")
    qualname, _, order = more.partition(":")
    places = order.split(",") if order else [*map(str, range(len(values)))]
    if base not in CONTAINERS or sorted(places) != sorted(map(str, range(len(values)))):
        raise DecodeError(f"stored outputs have the unknown shape {shape!r}", fix="run the step again")
    kind: Any = _class_of(f"{module}:{qualname}", CONTAINERS[base], trusted) if rest else CONTAINERS[base]
    if base == "tuple":
        return tuple.__new__(kind, values)
    made = kind.__new__(kind)
    if base == "list":
        made.extend(values)
    else:
        made.update({names[place]: values[place] for place in map(int, places)})
    return made


def _class_of(name: str, base: type, trusted: bool) -> Any:
    found = codec_names.resolve(name, trusted=trusted)
    if not (isinstance(found, type) and issubclass(found, base) and fits(found, None)):
        raise codec_names.changed(name)
    return found
