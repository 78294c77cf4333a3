"""What a step gives while a static pipeline is compiled: a name for a value that is not there yet.

It can be passed on to steps and returned. Everything that needs the value itself explains why that cannot be.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from treadle._runtime import PACKAGE
from treadle.errors import OptionError, PlaceholderUsed, users_place

if TYPE_CHECKING:
    from treadle._runtime.static.program import Node


def where_called(own: int = 1) -> str:
    """``file:line`` of the user's code that led here; ``own`` frames at least are none of the user's."""
    frame = sys._getframe(own)
    while (file := frame.f_code.co_filename).startswith(PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
    return users_place(frame) or f"{file}:{frame.f_lineno}"


class _AttributeOfPlaceholder(PlaceholderUsed, AttributeError):
    """So that ``hasattr`` and ``getattr(..., default)`` answer as they should."""


class Placeholder:
    """The value to come of one call of a static pipeline."""

    __slots__ = ("_node", "_output")

    def __init__(self, node: Node, output: str = "") -> None:
        self._node, self._output = node, output

    @property
    def name(self) -> str:
        """The call's name."""
        return self._node.name

    def output(self, name: str) -> Placeholder:
        """One of several outputs of the call.

        Raises:
            OptionError: the step has no output of that name.
        """
        outputs = self._node.outputs
        if name not in outputs:
            raise OptionError(
                f"{self._node.label} has no output {name!r}", fix=f"its outputs are {', '.join(outputs)}", option=name
            )
        return type(self)(self._node, name)

    def result(self, timeout: float | None = None) -> Placeholder:
        """Itself: while a pipeline is compiled there is nothing to wait for."""
        return self

    def __repr__(self) -> str:
        return f"<placeholder for {self._shown}>"

    @property
    def _shown(self) -> str:
        return f"{self._node.name}.{self._output}" if self._output else self._node.name

    def _refusal(self, what: str, fix: str = "", kind: type[PlaceholderUsed] = PlaceholderUsed) -> PlaceholderUsed:
        node = self._node
        problem = f"the pipeline {what} of {self._shown}, which is not known before it runs"
        error = kind(
            problem, where=where_called(),
            why=f"{node.pipeline} is static: its function is called once, before any step runs, to see what it does",
            fix=fix or "do this in a step, to which you pass the value; or make the pipeline dynamic (no static=True)",
        )  # fmt: skip
        error.problems = (str(error),)
        return error

    # -- what needs the value -------------------------------------------------------------

    def __bool__(self) -> bool:
        raise self._refusal(
            "branches on the value", "give the step @when(...); or make the pipeline dynamic (no static=True)"
        )

    def __iter__(self) -> Iterator[Any]:
        if len(self._node.outputs) > 1 and not self._output and self._node.kind == "call":
            return iter([type(self)(self._node, name) for name in self._node.outputs])
        raise self._refusal(
            "iterates over the value", "use step.map(value); or make the pipeline dynamic (no static=True)"
        )

    def __getitem__(self, key: object) -> Any:
        several = len(self._node.outputs) > 1 and not self._output
        if several and isinstance(key, int) and -len(self._node.outputs) <= key < len(self._node.outputs):
            return type(self)(self._node, self._node.outputs[key])
        if several and isinstance(key, str) and key in self._node.outputs:
            return type(self)(self._node, key)
        raise self._refusal(
            "indexes the value",
            "declare outputs=[...] at the step and use .output(name); or take the item in a step; or make the pipeline"
            " dynamic (no static=True)",
        )

    def __len__(self) -> int:
        raise self._refusal("asks for the length")

    def __contains__(self, item: object) -> bool:
        raise self._refusal("looks into the value")

    def __str__(self) -> str:
        raise self._refusal("makes text")

    def __format__(self, spec: str) -> str:
        raise self._refusal("makes text")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise self._refusal("calls the value")

    def __await__(self) -> NoReturn:
        raise self._refusal("awaits the value", "write the static pipeline as a def, and pass the value on as it is")

    def __getattr__(self, name: str) -> Any:
        if name[:1] == "_":  # what Python and its libraries ask of any object
            raise AttributeError(name)
        raise self._refusal(f"takes attribute {name!r}", kind=_AttributeOfPlaceholder)

    def __hash__(self) -> int:
        return id(self)

    def __reduce__(self) -> NoReturn:
        raise self._refusal("copies or stores the value")

    def __enter__(self) -> Any:
        raise self._refusal("enters the value")

    def __exit__(self, *args: object) -> None:
        raise self._refusal("enters the value")

    def __setitem__(self, key: object, value: object) -> None:
        raise self._refusal("changes the value")

    def __delitem__(self, key: object) -> None:
        raise self._refusal("changes the value")


def _operator(what: str) -> Callable[..., NoReturn]:
    def refuse(self: Placeholder, *_: object) -> NoReturn:
        raise self._refusal(what)

    return refuse


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Placeholder, f"__{_name}__", _operator("compares the value"))
_COUNTS = "add sub mul truediv floordiv mod divmod pow matmul and or xor lshift rshift"
for _name in [*_COUNTS.split(), *(f"r{name}" for name in _COUNTS.split()), "neg", "pos", "abs", "invert", "round"]:
    setattr(Placeholder, f"__{_name}__", _operator("counts with the value"))
for _name in ("int", "float", "complex", "index", "bytes"):
    setattr(Placeholder, f"__{_name}__", _operator("makes a number or bytes"))


class MapPlaceholder(Placeholder):
    """The values to come of one map; where its inputs are known, its items are placeholders."""

    __slots__ = ()

    def unpack(self) -> tuple[Any, ...]:
        """For a step with several outputs: one list per output, in the order of the inputs."""
        items = list(self)
        return tuple([item.output(name) for item in items] for name in self._node.outputs)

    def __bool__(self) -> bool:
        return self._length("branches on the number of items") > 0

    def __len__(self) -> int:
        return self._length("asks for the number of items")

    def __iter__(self) -> Iterator[Any]:
        return iter([ItemPlaceholder(self._node, index) for index in range(self._length("iterates over the items"))])

    def __getitem__(self, key: object) -> Any:
        length = self._length("indexes the items")
        if isinstance(key, slice):
            return [ItemPlaceholder(self._node, index) for index in range(*key.indices(length))]
        if not isinstance(key, int):
            raise TypeError(f"items of map {self.name} have numbers, not {key!r}")
        if not -length <= key < length:
            raise IndexError(f"map {self.name} has {length} calls, there is none at {key}")
        return ItemPlaceholder(self._node, key % length)

    def _length(self, what: str) -> int:
        if self._node.length is None:
            raise self._refusal(
                f"{what} of map", "pass the map on whole; or make the pipeline dynamic (no static=True)"
            )
        return self._node.length


class ItemPlaceholder(Placeholder):
    """The value to come of one call of a map."""

    __slots__ = ("_index",)

    def __init__(self, node: Node, index: int, output: str = "") -> None:
        super().__init__(node, output)
        self._index = index

    def output(self, name: str) -> Placeholder:
        """One of several outputs of the call."""
        super().output(name)
        return ItemPlaceholder(self._node, self._index, name)

    @property
    def _shown(self) -> str:
        name = f"{self._node.name}[{self._index}]"
        return f"{name}.{self._output}" if self._output else name
