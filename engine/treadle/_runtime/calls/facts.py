"""What is known of a value beside its content: shape, columns, size, class; read off, never computed at length.

It asks only libraries that the value has brought in itself, and what a library answers to is not its concern: whatever
goes wrong, a fact is missing and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from treadle._core.binding import CONTAINERS, PLAIN
from treadle.kinds import Asset, Metrics

_pack: Final = msgspec.msgpack.Encoder().encode

COLUMNS: Final = 1000
"""So many columns are named at the most."""
TEXT: Final = 500
WRAPPER: Final = ""
"""Under this key, which is no fact's name, lies what makes a routed value a ``Model`` again."""


def packed(value: Any) -> bytes:
    """The facts as msgpack; nothing for plain values."""
    kind = type(value)
    if kind in PLAIN:
        return b""
    if kind in CONTAINERS:  # what nearly every other call returns
        return _pack({"class": kind.__name__, "length": len(value)})
    found = facts(value)
    return _encode(found) if found else b""


def with_wrapper(packed_facts: bytes, codec: str, data: bytes) -> bytes:
    """The facts of a routed value, and what makes it whole again: the wrapper without the value, encoded."""
    known = msgspec.msgpack.decode(packed_facts, type=dict[str, Any]) if packed_facts else {}
    return _pack({**known, WRAPPER: (codec, data)})


def wrapper_in(packed_facts: bytes) -> tuple[str, bytes] | None:
    """What ``with_wrapper`` has added: codec and bytes."""
    found = msgspec.msgpack.decode(packed_facts, type=dict[str, Any]).get(WRAPPER) if packed_facts else None
    return None if found is None else (found[0], found[1])


def shown(packed_facts: bytes) -> dict[str, Any]:
    """The facts as users read them."""
    known = msgspec.msgpack.decode(packed_facts, type=dict[str, Any]) if packed_facts else {}
    known.pop(WRAPPER, None)
    return known


def facts(value: Any) -> dict[str, Any]:
    """What is known of a value; of a ``Model`` or ``Dataset`` also its name and the facts that it carries.

    >>> facts([1, 2, 3])
    {'class': 'list', 'length': 3}
    """
    if isinstance(value, Asset):
        named = {} if value.name is None else {"name": value.name}
        return {**facts(value.value), **named, **_plain(value.metadata)}
    if isinstance(value, Metrics):
        return {"class": _class(value), **_plain(dict(value))}
    found: dict[str, Any] = {"class": _class(value)}
    for describe in (_sized, _array, _frame, _estimator):
        try:
            found.update(describe(value))
        except Exception:
            continue
    return found


def _class(value: Any) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def _sized(value: Any) -> dict[str, Any]:
    if isinstance(value, (list, tuple, dict, set, frozenset, str, bytes)):
        return {"length": len(value)}
    return {}


def _array(value: Any) -> dict[str, Any]:
    """What has a shape and one element type: arrays, tensors, series."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        return {}
    size = getattr(value, "nbytes", None)
    sized = {"size_bytes": int(size)} if isinstance(size, int) else {}
    return {"shape": [int(number) for number in shape], "dtype": str(dtype), **sized}


def _frame(value: Any) -> dict[str, Any]:
    """Data frames and tables: pandas, polars, Arrow."""
    shape, names = getattr(value, "shape", None), _columns(value)
    if names is None or shape is None or len(shape) != 2:
        return {}
    dtypes = [str(dtype) for dtype in _dtypes(value)][:COLUMNS]
    size = _frame_bytes(value)
    return {
        "rows": int(shape[0]), "shape": [int(number) for number in shape], "columns": names[:COLUMNS],
        "dtypes": dict(zip(names, dtypes, strict=False)), **({} if size is None else {"size_bytes": size}),
    }  # fmt: skip


def _columns(value: Any) -> list[str] | None:
    names: Any = getattr(value, "column_names", None)  # an Arrow table, whose ``columns`` are the data
    if names is None:
        names = getattr(value, "columns", None)
    return None if names is None or callable(names) else [str(name) for name in names]


def _dtypes(value: Any) -> list[Any]:
    schema = getattr(value, "schema", None)
    types: Any = getattr(schema, "types", None)
    return list(value.dtypes if types is None or callable(types) else types)


def _frame_bytes(value: Any) -> int | None:
    nbytes: Any = getattr(value, "nbytes", None)
    if isinstance(nbytes, int):
        return nbytes
    estimate: Callable[[], int] | None = getattr(value, "estimated_size", None)
    if estimate is not None:
        return int(estimate())
    usage: Any = getattr(value, "memory_usage", None)
    return None if usage is None else int(usage(deep=False).sum())


def _estimator(value: Any) -> dict[str, Any]:
    """What has parameters as scikit-learn's estimators do."""
    if isinstance(value, type) or not callable(getattr(value, "get_params", None)):
        return {}
    params: dict[str, Any] = value.get_params(deep=False)
    return {"params": _plain(params)}


def _plain(given: dict[str, Any]) -> dict[str, Any]:
    """As plain data; numbers of numpy as numbers, and what is none of it as text."""
    return {str(name): _plain_value(value) for name, value in given.items()}


def _plain_value(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value if type(value) is not int or -(2**63) <= value < 2**64 else str(value)
    if type(value) in (list, tuple) and len(value) <= COLUMNS:
        return [_plain_value(item) for item in value]
    if type(value) is dict and len(value) <= COLUMNS:
        return _plain(value)
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == ():
        return _plain_value(item())
    return repr(value)[:TEXT]


def _encode(found: dict[str, Any]) -> bytes:
    try:
        return _pack(found)
    except Exception:  # a text with lone surrogates, a value nested without end
        return b""
