"""One call per item, as users hold it: the future of a map. What makes its calls is its ``feeder``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from treadle._core.machine import CallStatus
from treadle._core.naming import child
from treadle._runtime.calls.call import Call, StepFuture
from treadle._runtime.isolation.distant import Unloaded, arrived
from treadle._runtime.maps.feeder import PER_TURN, SLICE, Feeder, value_of
from treadle.errors import ResultNotReady, without_place

if TYPE_CHECKING:
    from treadle._runtime.views.step_results import StepResult

T = TypeVar("T")


class MapFuture(Feeder[T], Iterable[StepFuture[T]], Generic[T]):
    """The futures of one ``step.map``: await it for the list of values, in the order of the inputs.

    Iterate or index it for single futures; ``async for`` gives futures as they finish and keeps none of them, so that
    a map over a million items runs in bounded memory. Passing it to a step passes the list.
    """

    def __await__(self) -> Generator[Any, None, list[T]]:
        return self._gather().__await__()

    def __len__(self) -> int:
        length = self.length
        if length is None:
            raise TypeError(
                f"map {self.name} over an input without a length has none before it was awaited: `await` it for the"
                " list of values (in a `def` pipeline call .result()), or give it a list"
            )
        return length

    def __bool__(self) -> bool:
        return self.length != 0

    @overload
    def __getitem__(self, index: int) -> StepFuture[T]: ...
    @overload
    def __getitem__(self, index: slice) -> list[StepFuture[T]]: ...
    def __getitem__(self, index: int | slice) -> StepFuture[T] | list[StepFuture[T]]:
        length = len(self)
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(length))]
        at = index + length if index < 0 else index
        if not 0 <= at < length:
            raise IndexError(f"map {self.name} has {length} calls, there is none at {index}")
        if at >= self._next:
            self._run.engine.on_loop(self._make_until, min(at | (SLICE - 1), length - 1))
        known = self._children.get(at)
        if isinstance(known, Call):
            self._run.engine.on_loop(self._ask, at, min((at | (SLICE - 1)) + 1, length))
            known = self._children.get(at)
        if known is not None:
            return cast("StepFuture[T]", known)
        if at < self._next:
            raise self._given_away(at)
        if isinstance(self.missing, asyncio.CancelledError):
            return self._run.engine.on_loop(self._cancelled_before, at)
        why = "" if self.missing is None else without_place(self.missing)
        raise ResultNotReady(f"call {child(self.name, at)} was never made", why=why, fix="look at .status first")

    def _ask(self, start: int, stop: int) -> None:
        """Have the futures of these calls: from a thread, each look would be a round trip to the loop."""
        for index in range(start, stop):
            known = self._children.get(index)
            if isinstance(known, Call):
                self._with_future(index, known)

    def __iter__(self) -> Iterator[StepFuture[T]]:
        return (self[index] for index in range(len(self)))

    def __aiter__(self) -> AsyncIterator[StepFuture[T]]:
        return self._stream()

    @property
    def status(self) -> CallStatus:
        """``succeeded`` when all calls did, else the first failure's status, ``running`` or ``pending``."""
        if self._failures:
            return self._failures[0].status
        if self._source_error is not None:
            return "failed"
        if self.done():
            return "cancelled" if self._was_cancelled else "succeeded"
        return "running" if self._next else "pending"

    def cancel(self) -> bool:
        """Cancel the calls that have not ended, and make no more; from any thread. False if all have ended."""
        if self.done():
            return False
        self._run.engine.on_loop(self._cancel)
        return True

    async def settled(self) -> list[StepResult]:
        """Wait for every call and give one result per item, in order; failures count as handled.

        Raises:
            ResultNotReady: results were given away by ``async for`` or to another map.
        """
        self.keep_all()
        self._handle()
        await self._all_ended()
        if self._source_error is not None:
            raise self._source_error
        calls = [known if isinstance(known, Call) else known._call for _, known in sorted(self._children.items())]
        names = [call.name for call in calls]
        if self._next < (self.length or 0):  # it was cancelled before all were made, which one fact in the log says
            names += [child(self._run.name_of_map(self.name), index) for index in range(self._next, self.length or 0)]
            await self._run.engine.log.flush()
        return await self._run.results_of(names)

    def unpack(self) -> tuple[list[StepFuture[Any]], ...]:
        """For a step with several outputs: one list of futures per output, in the order of the inputs."""
        futures = list(self)
        return tuple([future.output(name) for future in futures] for name in self._plan.output_names)

    def result(self, timeout: float | None = None) -> list[T]:
        """The list of values, or the first error; from a thread (a ``def`` pipeline) it waits.

        Raises:
            ResultNotReady: on the loop, while calls are pending.
            TimeoutError: the wait took longer than ``timeout`` seconds.
        """
        if not self._run.engine.is_on_loop():
            try:
                return cast("list[T]", self._run.engine.block_on(self._gather(), timeout))
            except TimeoutError as error:
                if error.args or timeout is None or self._failures or self.done():
                    raise  # of a step
            raise TimeoutError(f"map {self.name} has not ended after {timeout} s")
        if not self.done():
            raise ResultNotReady(
                f"map {self.name} has not ended, and .result() never waits on the event loop",
                fix="`await` the map instead",
            )
        self.keep_all()
        return self._outcome()

    def __repr__(self) -> str:
        length = "?" if self.length is None else self.length
        return f"<MapFuture {self.name} {self._next - self._open} of {length} ended>"

    # -- waiting ---------------------------------------------------------------------------

    async def _gather(self) -> list[T]:
        self.keep_all()
        try:
            while not self.done() and not self._failures:
                await self._news()
        except asyncio.CancelledError:
            self._cancel()
            await self._all_ended()
            raise
        if self._first_failure is not None or self.missing is not None:
            return self._outcome()
        values: list[T] = []
        for index in sorted(self._children):
            value: Any = value_of(self._children[index])
            values.append(await value.load() if type(value) is Unloaded else value)
            if index % PER_TURN == PER_TURN - 1:
                await asyncio.sleep(0)
        return values

    def _outcome(self) -> list[T]:
        """The values, or the error that came first."""
        if self._first_failure is not None:
            self._handle()
            return [asyncio.Future.result(self._first_failure)]
        if self.missing is not None:
            self._handle()
            raise self.missing
        return self._values()

    def _values(self) -> list[T]:
        return [arrived(value_of(self._children[index])) for index in sorted(self._children)]

    def _made(self) -> list[Call | StepFuture[T]]:
        """What stands for each call, in the order of the items."""
        return [self._children[index] for index in sorted(self._children)]

    async def _stream(self) -> AsyncGenerator[StepFuture[T], None]:
        if not self._is_streamed:
            self._is_streamed = True
            for index in self._indexes_of_ended():
                self._finished.append(self._drop(index))
            self._untaken = len(self._finished)
        while True:
            while self._finished:
                self._untaken -= 1
                self._room.set()
                ended = self._finished.popleft()
                yield ended if isinstance(ended, StepFuture) else ended.asked_future()
            if self.done():
                break
            self._wake.clear()
            await self._wake.wait()
        missing = self.missing
        if missing is not None:  # items without a call: who counts on all of them must not take these for the whole
            self._handle()
            raise missing
