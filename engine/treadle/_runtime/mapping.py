"""One call per item: maps over sized, lazy and asynchronous inputs, and the futures they give.

A sized input makes its futures on demand, in slices, so that a map over 100,000 items does
not stall the loop; whoever asks for one gets it at once. An input without a size is
read as its results are taken, never more than a window ahead.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from treadle._core.admission import Limit
from treadle._core.machine import CallStatus
from treadle._core.naming import child
from treadle._runtime.call import Call, StepFuture
from treadle.errors import ForeignFuture, MapLengthError, OptionError, ResultNotReady

if TYPE_CHECKING:
    from treadle._runtime.results import StepResult
    from treadle._runtime.run import Run
    from treadle._runtime.step import Step

T = TypeVar("T")

WINDOW = 1000
SLICE = 64


class Unmapped(Generic[T]):
    """An argument that every call of a map gets whole."""

    __slots__ = ("taken", "value")

    def __init__(self, value: T) -> None:
        self.value = value
        self.taken: Any = None

    def __repr__(self) -> str:
        return f"unmapped({self.value!r})"


def unmapped(value: T) -> Unmapped[T]:
    """Mark an argument of ``step.map`` that is not one item per call but the same for all.

    >>> unmapped([1, 2])
    unmapped([1, 2])
    """
    return Unmapped(value)


class MapFuture(Iterable[StepFuture[T]], Generic[T]):
    """The futures of one ``step.map``: await it for the list of values, in the order of the inputs.

    Iterate or index it for single futures; ``async for`` gives futures as they finish and keeps none of them, so that
    a map over a million items runs in bounded memory. Passing it to a step passes the list.
    """

    def __init__(self, run: Run, step: Step[..., Any], name: str, sources: Sources) -> None:
        self._run, self._step, self.name = run, step, name
        self._sources = sources
        self._plan = run.plan(step)
        limit = step.map_limit
        self._window = limit or WINDOW
        self._limits = (*self._plan.limits, Limit(limit)) if limit else None
        self._context = contextvars.copy_context()
        self._children: dict[int, StepFuture[T]] = {}
        self._next = self._open = 0
        self._is_complete = False
        self._is_lazy = sources.length is None
        self._is_streamed = self._was_cancelled = False
        self._finished: deque[StepFuture[T]] = deque()
        self._untaken = 0
        self._wake: asyncio.Event | None = None
        self._room = asyncio.Event()
        self._dependents: list[Call] = []
        self._watchers: list[asyncio.Future[None]] = []
        self._failed: Call | None = None
        self._source_error: BaseException | None = None
        self._feeder = run.loop.create_task(self._pull() if self._is_lazy else self._make(), context=self._context.copy())
        run.feeders[self] = None

    # -- what users do --------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, list[T]]:
        return self._gather().__await__()

    def __len__(self) -> int:
        length = self._sources.length
        if length is None:
            raise TypeError(f"map {self.name} over an input without a length has none; await it for the list of values")
        return length

    def __getitem__(self, index: int) -> StepFuture[T]:
        length = len(self)
        at = index + length if index < 0 else index
        if not 0 <= at < length:
            raise IndexError(f"map {self.name} has {length} calls, there is none at {index}")
        self._run.engine.on_loop(self._make_until, at)
        try:
            return self._children[at]
        except KeyError:
            raise ResultNotReady(
                f"call {child(self.name, at)} was given away by `async for`, which keeps no futures", fix="index before iterating"
            ) from None

    def __iter__(self) -> Iterator[StepFuture[T]]:
        return (self[index] for index in range(len(self)))

    def __aiter__(self) -> AsyncIterator[StepFuture[T]]:
        return self._stream()

    def done(self) -> bool:
        """Whether every call of the map has ended."""
        return self._is_complete and not self._open

    @property
    def status(self) -> CallStatus:
        """``succeeded`` when all calls did, else the first failure's status, ``running`` or ``pending``."""
        if self._failed is not None:
            return self._failed.status
        if self.done():
            return "cancelled" if self._was_cancelled else "succeeded"
        return "running" if self._next else "pending"

    def cancel(self) -> bool:
        """Cancel the calls that have not ended, and make no more; False if all have ended."""
        if self.done():
            return False
        self._run.engine.on_loop(self._cancel)
        return True

    async def settled(self) -> list[StepResult]:
        """Wait for every call and give one result per item, in order; failures count as handled."""
        self._keep_all()
        await self._all_ended()
        children = [self._children[index] for index in sorted(self._children)]
        for future in children:
            future._call.observed()
        return await self._run.results_of([future._call.name for future in children])

    def unpack(self) -> tuple[list[StepFuture[Any]], ...]:
        """For a step with several outputs: one list of futures per output."""
        futures = list(self)
        return tuple([future.output(name) for future in futures] for name in self._plan.output_names)

    def result(self, timeout: float | None = None) -> list[T]:
        """The list of values; for ``def`` pipelines, whose thread it blocks."""
        return cast("list[T]", self._run.engine.block_on(self._gather(), timeout))

    def __repr__(self) -> str:
        length = "?" if self._sources.length is None else self._sources.length
        return f"<MapFuture {self.name} {self._next - self._open} of {length} ended>"

    # -- making calls ---------------------------------------------------------------------

    def _make_until(self, index: int) -> None:
        """Submit the calls up to an index now; only for inputs whose size is known."""
        while self._next <= index and not self._is_complete:
            self._submit(self._next, self._sources.at(self._next))
            if self._next == self._sources.length:
                self._complete()

    async def _make(self) -> None:
        length = len(self)
        try:
            while self._next < length and not self._is_complete:
                while self._is_streamed and self._open + self._untaken >= self._window:
                    self._room.clear()
                    await self._room.wait()
                self._make_until(min(self._next + SLICE, length) - 1)
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._was_cancelled = True
        finally:
            self._complete()

    async def _pull(self) -> None:
        """Read an input without a size, as far as the window allows."""
        try:
            async for arguments in self._sources.items():
                while self._open + self._untaken >= self._window:
                    self._room.clear()
                    await self._room.wait()
                self._submit(self._next, arguments)
                if self._next % SLICE == 0:
                    await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._was_cancelled = True
        except BaseException as error:
            self._source_error = error
            self._run.map_failed(self, error)
        finally:
            self._complete()

    def _submit(self, index: int, arguments: tuple[tuple[Any, ...], dict[str, Any] | None]) -> None:
        self._next = index + 1
        self._open += 1
        self._run.submit_child(self, index, *arguments)
        if self._watchers:
            self._notify()

    def _adopt(self, call: Call) -> None:
        """Know a new call before anything can happen to it."""
        assert call.index is not None
        call.group, call.limits, call.context = self, self._limits, self._context.copy()
        self._children[call.index] = call.future

    def _complete(self) -> None:
        if not self._is_complete:
            self._is_complete = True
            self._run.feeders.pop(self, None)
            if not self._open:
                self._last_ended()
            self._run.feeder_ended()

    # -- taking results -------------------------------------------------------------------

    def _child_ended(self, call: Call) -> None:
        self._open -= 1
        if call.outcome not in ("succeeded", "cached") and self._failed is None and call.error is not None:
            self._failed = call
            self._notify()
        if self._is_streamed:
            assert call.index is not None
            self._finished.append(self._children.pop(call.index))
            self._untaken += 1
        elif self._is_lazy and call.index in self._children:
            self._untaken += 1
        if self._wake is not None:
            self._wake.set()
        self._room.set()
        if self._is_complete and not self._open:
            self._last_ended()

    def _last_ended(self) -> None:
        self._notify()
        if self._wake is not None:
            self._wake.set()
        dependents, self._dependents = self._dependents, []
        for dependent in dependents:
            self._run.map_ended(dependent, self._failed)

    def _notify(self) -> None:
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)
        self._watchers.clear()

    def _keep_all(self) -> None:
        """Somebody takes everything: lift the window."""
        self._is_lazy = False
        self._untaken = 0
        self._window = 1 << 62
        self._room.set()

    async def _gather(self) -> list[T]:
        self._keep_all()
        try:
            await self._all_ended(stop_at_failure=True)
        except asyncio.CancelledError:
            self._cancel()
            raise
        if self._source_error is not None:
            raise self._source_error
        if self._failed is not None:
            for future in self._children.values():
                future._call.observed()
            self._run.handled_maps.append(self)
            return [asyncio.Future.result(self._failed.future)]
        return self._values()

    async def _all_ended(self, *, stop_at_failure: bool = False) -> None:
        while not self.done() and not (stop_at_failure and self._failed is not None):
            watcher: asyncio.Future[None] = self._run.loop.create_future()
            self._watchers.append(watcher)
            await watcher

    async def _stream(self) -> AsyncIterator[StepFuture[T]]:
        self._is_streamed = True
        self._wake = asyncio.Event()
        for index in [index for index, future in self._children.items() if future.done()]:
            self._finished.append(self._children.pop(index))
        self._untaken = len(self._finished)
        while True:
            while self._finished:
                self._untaken -= 1
                self._room.set()
                yield self._finished.popleft()
            if self.done() and not self._finished:
                break
            self._wake.clear()
            await self._wake.wait()
        if self._source_error is not None:
            raise self._source_error

    def _values(self) -> list[T]:
        return [asyncio.Future.result(self._children[index]) for index in sorted(self._children)]

    def _feed(self, call: Call) -> None:
        """A call takes the whole list: it starts when every call of the map has ended."""
        self._keep_all()
        if self.done():
            if self._failed is not None:
                self._run.map_ended(call, self._failed)
            return
        call.pending += 1
        self._dependents.append(call)

    def _cancel(self) -> None:
        self._was_cancelled = True
        self._feeder.cancel()
        for future in list(self._children.values()):
            if not future.done():
                self._run.cancel_call(future._call, "caller")

    def _run_of(self) -> Run:
        return self._run


class Sources:
    """The inputs of a map: which arguments are items of what, and how many there are."""

    def __init__(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._run = run
        self._args = [_source(run, f"argument {i + 1}", value) for i, value in enumerate(args)]
        self._kwargs = {name: _source(run, f"argument {name}", value) for name, value in kwargs.items()}
        mapped = [source for source in (*self._args, *self._kwargs.values()) if not isinstance(source, Unmapped)]
        if not mapped:
            raise OptionError("a map needs an input to go over", fix="give an iterable as the first argument", option="map")
        self._fixed = {name: source for name, source in self._kwargs.items() if isinstance(source, Unmapped)}
        self.length = self._common_length(mapped)

    def _common_length(self, mapped: list[Any]) -> int | None:
        if any(not isinstance(source, (Sequence, MapFuture)) for source in mapped):
            return None
        if any(isinstance(source, MapFuture) and source._sources.length is None for source in mapped):
            return None
        names = [*(f"argument {i + 1}" for i in range(len(self._args))), *self._kwargs]
        every = [*self._args, *self._kwargs.values()]
        lengths = {name: len(source) for name, source in zip(names, every, strict=True) if not isinstance(source, Unmapped)}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise MapLengthError(
                f"the inputs of the map have different lengths: {listed}",
                fix="give inputs of one length, or mark what is the same for all calls with unmapped(...)",
                lengths=lengths,
            )
        return next(iter(lengths.values()))

    def at(self, index: int) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
        """The arguments of one call; only if the length is known."""
        args = tuple([source if isinstance(source, Unmapped) else source[index] for source in self._args])
        if not self._kwargs:
            return args, None
        if len(self._fixed) == len(self._kwargs):
            return args, self._fixed
        return args, {n: s if isinstance(s, Unmapped) else s[index] for n, s in self._kwargs.items()}

    async def items(self) -> AsyncIterator[tuple[tuple[Any, ...], dict[str, Any] | None]]:
        """The arguments of each call, read as they are asked for."""
        args = [_lazily(source) for source in self._args]
        kwargs = {name: _lazily(source) for name, source in self._kwargs.items()}
        ends = object()
        while True:
            values = [await anext(source, ends) for source in args]
            named = {name: await anext(source, ends) for name, source in kwargs.items()}
            every = [*zip(self._args, values, strict=True), *((self._kwargs[name], value) for name, value in named.items())]
            ended = [value is ends for source, value in every if not isinstance(source, Unmapped)]
            if all(ended):
                return
            if any(ended):
                raise MapLengthError(
                    "the inputs of the map have different lengths: one ended before the others",
                    fix="give inputs of one length, or mark what is the same for all calls with unmapped(...)",
                    lengths={},
                )
            yield tuple(values), named or None


def _source(run: Run, label: str, value: Any) -> Any:
    if isinstance(value, (Unmapped, MapFuture)):
        if isinstance(value, MapFuture) and value._run is not run:
            raise ForeignFuture(f"{label} of the map belongs to another run", fix="await it there and pass its values")
        return value
    if isinstance(value, (str, bytes, bytearray)):
        raise OptionError(
            f"{label} of the map is a {type(value).__name__}, and a map goes over items",
            fix="use unmapped(...) to give it whole to each call, or list(...) to go over its parts",
            option="map",
        )
    if isinstance(value, (list, tuple, range)):
        return value if isinstance(value, range) else list(value)
    if isinstance(value, (set, frozenset, dict)):
        return list(value)
    if isinstance(value, (AsyncIterable, StepFuture, Awaitable)):
        return value
    if isinstance(value, Iterable):
        is_sized = hasattr(value, "__len__") and hasattr(value, "__getitem__")
        return list(value) if is_sized else value
    raise OptionError(
        f"{label} of the map is a {type(value).__name__}, which has no items",
        fix="use unmapped(...) to give it whole to each call",
        option="map",
    )


async def _lazily(source: Any) -> AsyncIterator[Any]:
    """One kind of input after another as an asynchronous iterator."""
    if isinstance(source, Unmapped):
        for _ in itertools.count():
            yield source
    elif isinstance(source, MapFuture):
        async for item in _in_order(source):
            yield item
    elif isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        items = await source if isinstance(source, Awaitable) else source
        if isinstance(items, AsyncIterable):
            async for item in items:
                yield item
        else:
            for item in items:
                yield item


async def _in_order(source: MapFuture[Any]) -> AsyncIterator[StepFuture[Any]]:
    """The futures of a map in the order of its inputs, as they are made; taking one makes room for another."""
    for index in itertools.count():
        while index not in source._children:
            if source._is_complete and index >= source._next:
                return
            watcher: asyncio.Future[None] = source._run.loop.create_future()
            source._watchers.append(watcher)
            if source._sources.length is not None:
                source._make_until(index)
                source._notify()
            await watcher
        future = source._children[index]
        yield future
        if source._is_lazy:
            del source._children[index]
            source._untaken -= future.done()
            source._room.set()
