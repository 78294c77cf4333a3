"""What a map goes over: which arguments are items of what, how many there are, and how they are read.

Knows arguments; does not know what becomes of them (``mapping``).
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Iterable
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any

from treadle._runtime.calls.call import StepFuture
from treadle._runtime.maps.unmapped import Unmapped
from treadle.errors import ForeignFuture, MapLengthError, OptionError

if TYPE_CHECKING:
    from treadle._runtime.run import Run

Arguments = tuple[tuple[Any, ...], dict[str, Any] | None]
"""What one call of a map gets, by position and by name."""


class Mapped(ABC):
    """What a map needs of another map that it goes over."""

    _run: Run

    @property
    @abstractmethod
    def length(self) -> int | None:
        """How many items it has, if that is known."""

    @abstractmethod
    def __getitem__(self, index: Any) -> Any: ...

    @abstractmethod
    def reader_came(self) -> None:
        """Another map is going to go over it."""

    @abstractmethod
    def in_order(self) -> AsyncGenerator[Any, None]:
        """Its futures in the order of its inputs, as they are made; reading one takes it."""


class Sources:
    """The inputs of a map.

    Args:
        run: the map's run.
        args: its arguments by position.
        kwargs: its arguments by name.
        product: one call for every combination of items (the last input changes fastest), not for every position.

    Raises:
        MapLengthError: sized inputs have different lengths.
        OptionError: an argument has no items, or none has.
        ForeignFuture: an input belongs to another run.
    """

    def __init__(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any], *, product: bool = False) -> None:
        self._args: list[Any] = [_source(run, f"argument {i + 1}", value) for i, value in enumerate(args)]
        self._kwargs = {name: _source(run, f"argument {name}", value) for name, value in kwargs.items()}
        self.is_product = product
        self.mapped = [source for source in self._every() if not isinstance(source, Unmapped)]
        if not self.mapped:
            raise OptionError(
                "a map needs an input to go over", fix="give an iterable as the first argument", option="map"
            )
        self._has_fixed_names = all(isinstance(source, Unmapped) for source in self._kwargs.values())
        self.length = self._length()
        for source in self.mapped:
            if isinstance(source, Mapped):
                source.reader_came()

    def _every(self) -> list[Any]:
        return [*self._args, *self._kwargs.values()]

    def _length(self) -> int | None:
        names = [*(f"argument {i + 1}" for i in range(len(self._args))), *self._kwargs]
        lengths = {
            name: _length_of(source)
            for name, source in zip(names, self._every(), strict=True)
            if not isinstance(source, Unmapped)
        }
        known = [length for length in lengths.values() if length is not None]
        if len(known) < len(lengths):
            return None
        if self.is_product:
            return math.prod(known)
        if len(set(known)) > 1:
            listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise MapLengthError(f"the inputs of the map have different lengths: {listed}", fix=_EQUAL, lengths=lengths)
        return known[0]

    def at(self, index: int) -> Arguments:
        """The arguments of one call; only if the length is known."""
        if self.is_product:
            return self._combination(index)
        args = tuple([source if isinstance(source, Unmapped) else source[index] for source in self._args])
        if not self._kwargs:
            return args, None
        if self._has_fixed_names:
            return args, self._kwargs
        return args, {n: s if isinstance(s, Unmapped) else s[index] for n, s in self._kwargs.items()}

    def _combination(self, index: int) -> Arguments:
        values: list[Any] = []
        for source in reversed(self._every()):
            if isinstance(source, Unmapped):
                values.append(source)
            else:
                index, position = divmod(index, _length_of(source) or 1)
                values.append(source[position])
        values.reverse()
        count = len(self._args)
        return tuple(values[:count]), dict(zip(self._kwargs, values[count:], strict=True)) or None

    async def items(self) -> AsyncGenerator[Arguments, None]:
        """The arguments of each call, read as they are asked for."""
        if self.is_product:
            await self._collect()
            for index in range(self._length() or 0):
                yield self.at(index)
            return
        async with AsyncExitStack() as stack:
            readers = [await stack.enter_async_context(aclosing(_lazily(source))) for source in self._every()]
            ends = object()
            while True:
                values = [await anext(reader, ends) for reader in readers]
                ended = [v is ends for s, v in zip(self._every(), values, strict=True) if not isinstance(s, Unmapped)]
                if all(ended):
                    return
                if any(ended):
                    raise MapLengthError(
                        "the inputs of the map have different lengths: one ended before the others",
                        fix=_EQUAL,
                        lengths={},
                    )
                count = len(self._args)
                yield tuple(values[:count]), dict(zip(self._kwargs, values[count:], strict=True)) or None

    async def _collect(self) -> None:
        """A product goes over each input many times, so all of them are read first."""
        self._args = [await _listed(source) for source in self._args]
        self._kwargs = {name: await _listed(source) for name, source in self._kwargs.items()}


_EQUAL = "give inputs of one length, or mark what is the same for all calls with unmapped(...)"


def _length_of(source: Any) -> int | None:
    if isinstance(source, Mapped):
        return source.length
    return len(source) if isinstance(source, (list, range)) else None


def _source(run: Run, label: str, value: Any) -> Any:
    if isinstance(value, (Mapped, StepFuture)):
        if (value._run if isinstance(value, Mapped) else value._call.run).id != run.id:
            raise ForeignFuture(f"{label} of the map belongs to another run", fix="await it there and pass its values")
        return value
    if isinstance(value, (Unmapped, range)):
        return value
    if isinstance(value, (str, bytes, bytearray)):
        raise OptionError(
            f"{label} of the map is of type {type(value).__name__}, and a map goes over items",
            fix="use unmapped(...) to give it whole to each call, or list(...) to go over its parts",
            option="map",
        )
    if isinstance(value, (AsyncIterable, Awaitable)):
        return value
    if hasattr(value, "__len__") and (isinstance(value, Iterable) or hasattr(value, "__getitem__")):
        return list(value)
    if isinstance(value, Iterable):
        return value
    raise OptionError(
        f"{label} of the map is of type {type(value).__name__}, which has no items",
        fix="use unmapped(...) to give it whole to each call",
        option="map",
    )


async def _lazily(source: Any) -> AsyncGenerator[Any, None]:
    """One kind of input after another as an asynchronous iterator."""
    if isinstance(source, Unmapped):
        for _ in itertools.count():
            yield source
    items = source
    if isinstance(source, Awaitable) and not isinstance(source, (Mapped, AsyncIterable)):
        items = await source
        if items is None and isinstance(source, StepFuture) and source.status == "skipped":
            return  # a condition left the list out, so there is nothing to go over
    if isinstance(items, Mapped):
        async with aclosing(items.in_order()) as futures:
            async for item in futures:
                yield item
    elif isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in _iterable(items):
            yield item


def _iterable(items: Any) -> Iterable[Any]:
    """What was awaited has to have items, too."""
    if isinstance(items, (str, bytes, bytearray)) or not (isinstance(items, Iterable) or hasattr(items, "__getitem__")):
        raise OptionError(
            f"a map was given a future whose value is of type {type(items).__name__}, which is no list of items",
            fix="use unmapped(...) to give it whole to each call",
            option="map",
        )
    iterable: Iterable[Any] = items
    return iterable


async def _listed(source: Any) -> Any:
    if isinstance(source, (Unmapped, list, range)) or _length_of(source) is not None:
        return source
    async with aclosing(_lazily(source)) as items:
        return [item async for item in items]
