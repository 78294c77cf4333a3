"""What makes the calls of a map, and knows which of them have ended and which results were taken.

A sized input makes its futures in slices, so that a map over 100,000 items does not stall the loop; whoever asks for
one gets it at once. An input without a size is read as its results are taken, never more than a window ahead:

* ``_open`` calls have not ended, ``_untaken`` ones have and nobody has taken them. Reading goes on while their sum is
  below the window, so one item at most has been read beyond it.
* ``async for`` takes a future when it gives it, another map when it reads it; both keep none of them, so what was
  given away (``_has_dropped``) cannot be awaited as a list afterwards.
* Awaiting the map, or passing it on whole, takes everything: the window is lifted, and all futures are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from treadle import events as ev
from treadle._core.admission import Limit
from treadle._core.machine import CallState
from treadle._core.naming import child
from treadle._runtime.calls.call import Call, StepFuture
from treadle._runtime.maps.sources import Arguments, Mapped, Sources
from treadle.errors import ResultNotReady

if TYPE_CHECKING:
    from treadle._runtime.run import Run
    from treadle._runtime.step import Step

T = TypeVar("T")

Child = Call | StepFuture[T]
"""What a map keeps of a call: the call alone until somebody asks for its future."""

WINDOW = 1000
SLICE = 32
NO_LIMIT = 1 << 62
PER_TURN = 512
"""Futures that are read, or let go, in one turn of the loop: 100,000 at once would stall it for 100 ms."""


class Feeder(Mapped, Generic[T]):
    """One map at work. What users hold of it is ``MapFuture``."""

    def __init__(self, run: Run, step: Step[..., Any], name: str, sources: Sources) -> None:
        self._run, self._step, self.name = run, step, name
        self._sources = sources
        self._over: list[Feeder[Any]] = (
            [] if sources.is_product else [source for source in sources.mapped if isinstance(source, Feeder)]
        )
        self._plan = run.plan(step)
        self._limits, self._window = _limits(self._plan, step.map_limit)
        self._context = contextvars.copy_context()
        self._children: dict[int, Child[T]] = {}
        self._loose: dict[int, Child[T]] = {}
        self._next = self._open = self._untaken = 0
        self._is_lazy = sources.length is None
        self._is_complete = self._is_streamed = self._is_draining = False
        self._is_passed_on = self._has_dropped = self._is_handled = self._was_cancelled = False
        self._finished: deque[Child[T]] = deque()
        self._wake, self._room = asyncio.Event(), asyncio.Event()
        self._dependents: list[Call] = []
        self._watchers: list[asyncio.Future[None]] = []
        self._failures: list[Call] = []
        self._first_failure: StepFuture[T] | None = None
        self._source_error: BaseException | None = None
        self._feeder = run.loop.create_task(self._make_all(), context=self._context.copy())
        self._feeder.add_done_callback(self._end_unbegun)
        run.feeders[self] = None
        if sources.length:
            with contextlib.suppress(Exception):  # the feeder comes upon it again, and answers it
                self._make_until(0)  # so that the log tells its place among the calls that are submitted after it

    @property
    def length(self) -> int | None:
        """How many calls it has, or ``None`` while that is not known.

        Over an input without a length it is known when the whole map was awaited, not when the input happens to end.
        """
        if self._sources.length is None and self._is_complete and not self._is_lazy and not self._has_dropped:
            return self._next
        return self._sources.length

    def done(self) -> bool:
        """Whether every call of the map has ended."""
        return self._is_complete and not self._open

    # -- making calls ---------------------------------------------------------------------

    async def _make_all(self) -> None:
        try:
            if self._sources.length is None:
                await self._pull()
            else:
                await self._make(self._sources.length)
        except asyncio.CancelledError:
            self._was_cancelled = True
        except BaseException as error:
            if isinstance(error, ResultNotReady) and self._has_cancelled_source():
                self._was_cancelled = True
            else:
                self._source_error = error
                self._run.map_failed(self, error)
        finally:
            self._complete()

    def _has_cancelled_source(self) -> bool:
        """Whether a map that it goes over was cancelled before it had made all its calls."""
        return any(
            isinstance(s, Feeder) and isinstance(s.missing, asyncio.CancelledError) for s in self._sources.mapped
        )

    def _is_beyond_cancelled(self, index: int) -> bool:
        """Whether a map that it goes over was cancelled before it had made its call at an index."""
        return any(index >= s._next and isinstance(s.missing, asyncio.CancelledError) for s in self._over)

    def _make_until(self, index: int) -> None:
        """Submit the calls up to an index now; only for inputs whose size is known."""
        while self._next <= index and not self._is_complete:
            if self._over and self._is_beyond_cancelled(self._next):
                self._was_cancelled = True
                self._complete()
                return
            self._submit(self._sources.at(self._next))
            if self._next == self._sources.length:
                self._complete()

    async def _make(self, length: int) -> None:
        while self._next < length and not self._is_complete:
            count = SLICE
            if self._is_streamed:
                await self._until_there_is_room()
                count = min(count, self._window - self._open - self._untaken)
            self._make_until(min(self._next + count, length) - 1)
            await asyncio.sleep(0)

    async def _pull(self) -> None:
        """Read an input without a size, as far as the window allows."""
        async with aclosing(self._sources.items()) as items:
            async for arguments in items:
                await self._until_there_is_room()
                self._submit(arguments)
                if self._next % SLICE == 0:
                    await asyncio.sleep(0)

    async def _until_there_is_room(self) -> None:
        while self._open + self._untaken >= self._window:
            self._room.clear()
            await self._room.wait()

    def _submit(self, arguments: Arguments) -> None:
        index = self._next
        self._next += 1
        self._open += 1
        try:
            self._run.submit_child(self, index, *arguments)
        except BaseException:
            self._next -= 1
            self._open -= 1
            raise
        if self._watchers:
            self._notify()

    def _adopt(self, call: Call) -> None:
        """Know a new call before anything can happen to it."""
        assert call.index is not None
        call.group, call.limits, call.context = self, self._limits, self._context
        self._children[call.index] = call

    def _complete(self) -> None:
        if self._is_complete:
            return
        self._is_complete = True
        self._run.feeders.pop(self, None)
        if self._was_cancelled:
            self._record_unmade()
        if self._was_cancelled or self._source_error is not None:
            for source in self._sources.mapped:
                if isinstance(source, Feeder):
                    source._reader_left()
        if not self._open:
            self._last_ended()
        self._run.feeder_ended()

    def _end_unbegun(self, _: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first step never makes it."""
        if not self._is_complete:
            self._was_cancelled = True
            self._complete()

    def _record_unmade(self) -> None:
        """Every call of a map that was submitted has a result, also the ones that a cancellation came before."""
        run, length = self._run, self._sources.length
        if length is None or self._next >= length or run.is_ending_early:
            return
        run.append(
            ev.CallsCancelled(
                at=run.now(), map=run.name_of_map(self.name), of=self._plan.name, first=self._next,
                count=length - self._next,
            )
        )  # fmt: skip

    def _cancelled_before(self, index: int) -> StepFuture[T]:
        """What stands for a call that the cancellation came before: the same as for one that was cancelled."""
        run = self._run
        name, error = child(run.name_of_map(self.name), index), asyncio.CancelledError(f"map {self.name} was cancelled")
        call = Call(cast("Run", run.past), self._plan, name, index, (), None)
        call.state, call.outcome, call.error = CallState.ENDED, "cancelled", error
        future: StepFuture[T] = self._plan.future_type(loop=run.loop)
        future._call, future._output = call, ""
        asyncio.Future.cancel(future, str(error))
        return future

    def halt(self) -> None:
        """Make no more calls."""
        self._feeder.cancel()

    # -- what ended -----------------------------------------------------------------------

    def _child_ended(self, call: Call) -> None:
        index = call.index
        assert index is not None
        self._open -= 1
        if call.outcome not in ("succeeded", "cached") and call.error is not None:
            self._failures.append(call)
            future = self._with_future(index, call)
            self._first_failure = self._first_failure or future
            if self._is_handled:
                call.observed()
            for dependent in self._dependents:
                self._run.map_call_failed(dependent, call)
            self._notify()
        elif call.rows is None:
            self._with_future(index, call)  # a value that was not stored may lead to anything, even to its call
        if self._loose.pop(index, None) is None:
            self._child_to_take(index)
        self._wake.set()
        self._room.set()
        if self._is_complete and not self._open:
            self._last_ended()

    def _child_to_take(self, index: int) -> None:
        if self._is_draining:
            self._drop(index)
        elif self._is_streamed:
            self._finished.append(self._drop(index))
            self._untaken += 1
        elif self._is_lazy:
            self._untaken += 1

    def _with_future(self, index: int, child: Child[T]) -> StepFuture[T]:
        """The future of a child, kept from now on in place of the call; on the loop only."""
        if not isinstance(child, Call):
            return child
        future = child.asked_future()
        for kept in (self._children, self._loose):
            if index in kept:
                kept[index] = future
        return future

    def _drop(self, index: int) -> Child[T]:
        self._has_dropped = True
        return self._children.pop(index)

    def _last_ended(self) -> None:
        self._notify()
        self._wake.set()
        dependents, self._dependents = self._dependents, []
        for dependent in dependents:
            self._run.map_ended(dependent, self)

    def _notify(self) -> None:
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)
        self._watchers.clear()

    async def _news(self) -> None:
        watcher: asyncio.Future[None] = self._run.loop.create_future()
        self._watchers.append(watcher)
        await watcher

    @property
    def has_given_away(self) -> bool:
        """Whether some of its futures were given away and are kept no more."""
        return self._has_dropped

    @property
    def run(self) -> Run:
        """The run that it belongs to."""
        return self._run

    @property
    def failures(self) -> list[Call]:
        """Calls that failed, were skipped because of a failure, or were cancelled; in the order in which they ended."""
        return self._failures

    @property
    def missing(self) -> BaseException | None:
        """Why there are fewer calls than items: the input raised while it was read, or the map was cancelled."""
        if self._source_error is None and self._was_cancelled:
            return asyncio.CancelledError(f"map {self.name} was cancelled")
        return self._source_error

    def __del__(self) -> None:
        children = getattr(self, "_children", None)
        if children and len(children) > PER_TURN and not self._run.loop.is_closed():
            self._run.engine.call_on_loop(_release, children, self._run.loop)

    # -- taking everything ----------------------------------------------------------------

    def keep_all(self) -> None:
        """Somebody takes everything: lift the window.

        Raises:
            ResultNotReady: something was given away already.
        """
        if self._has_dropped:
            raise self._given_away(min(set(range(self._next)) - self._children.keys(), default=0))
        self._is_lazy = False
        self._untaken = 0
        self._window = NO_LIMIT
        self._room.set()

    def _given_away(self, index: int) -> ResultNotReady:
        return ResultNotReady(
            f"call {child(self.name, index)} was given away by `async for` or to another map, which keep no futures",
            fix="use the map once; or index or await it first; or give it an input that has a length, such as a list",
            call=child(self.name, index),
        )

    def _handle(self) -> None:
        """Somebody looks at how its calls end."""
        self._is_handled = True
        for call in self._failures:
            call.observed()
        if self._source_error is not None:
            self._run.map_handled(self._source_error)

    async def _all_ended(self) -> None:
        while not self.done():
            await self._news()

    def feed(self, call: Call) -> None:
        """A call takes the whole list: it starts when every call of the map has ended."""
        if self.done() and not self._failures and self.missing is None:
            return
        call.pending += 1
        for failed in self._failures:
            self._run.map_call_failed(call, failed)
        if self.done():
            self._run.map_ended(call, self)
        else:
            self._dependents.append(call)

    # -- taking one after another ---------------------------------------------------------

    def reader_came(self) -> None:
        """Another map goes over this one: one such may have the futures for itself, for two of them all are kept.

        Raises:
            ResultNotReady: something was given away already.
        """
        if self._has_dropped or self._is_passed_on:
            self.keep_all()
        self._is_passed_on = True

    async def in_order(self) -> AsyncGenerator[StepFuture[T], None]:
        """Its futures in the order of its inputs, as they are made; reading one takes it."""
        for index in itertools.count():
            while index >= self._next:
                if self._is_complete:
                    if self.missing is not None:
                        self._handle()
                        raise self.missing
                    return
                if self._sources.length is not None:
                    self._make_until(index)
                else:
                    await self._news()
            known = self._children.get(index)
            if known is None:
                raise self._given_away(index)
            future = self._with_future(index, known)
            yield future
            if self._is_lazy:
                self._take(index, future)

    def _take(self, index: int, future: StepFuture[T]) -> None:
        if self._children.get(index) is None:
            return
        self._drop(index)
        if future.done():
            self._untaken -= 1
        else:
            self._loose[index] = future
        self._room.set()

    # -- when nobody is left --------------------------------------------------------------

    def _reader_left(self) -> None:
        """The map that went over this one stopped early, so nobody reads on."""
        if self._is_lazy and self._is_passed_on and not self.done():
            self._feeder.cancel()

    def abandon(self) -> None:
        """The pipeline function has returned, so nobody takes results any more.

        What was submitted is performed all the same, and an input that nobody began to take is read to its end. An
        ``async for`` that was left early has had enough.
        """
        if self._is_lazy and self._is_streamed:
            self._feeder.cancel()
        elif self._is_streamed or (self._is_lazy and not self._is_passed_on):
            self._is_draining = True
            self._untaken = 0
            for index in self._indexes_of_ended():
                self._drop(index)
        self._finished.clear()
        self._room.set()

    def _cancel(self) -> None:
        self._was_cancelled = self._was_cancelled or not self._is_complete
        self._feeder.cancel()
        for known in [*self._children.values(), *self._loose.values()]:
            if not has_ended(known):
                self._run.cancel_call(known if isinstance(known, Call) else known._call, "caller")
        if self._sources.length is not None:
            self._complete()  # now: who indexes it next would have the calls made all the same

    def _indexes_of_ended(self) -> list[int]:
        return [index for index, known in self._children.items() if has_ended(known)]


def has_ended(known: Child[Any]) -> bool:
    """Whether a child of a map has its outcome, and everybody may know."""
    return known.state is CallState.ENDED if isinstance(known, Call) else known.done()


def value_of(known: Child[T]) -> T:
    """The value of a child that has succeeded."""
    return known.value if isinstance(known, Call) else asyncio.Future.result(known)


def _release(children: dict[int, Child[Any]], loop: asyncio.AbstractEventLoop) -> None:
    """Let many futures go, a slice per turn."""
    for _ in range(min(PER_TURN, len(children))):
        children.popitem()
    if children:
        loop.call_soon(_release, children, loop)


def _limits(plan: Any, own: int | None) -> tuple[tuple[Limit, ...] | None, int]:
    """What the calls of a map are subject to beside their step's limits, and how far it reads ahead."""
    if own is not None:
        shared = tuple([limit for limit in plan.limits if limit is not plan.in_flight])
        return (*shared, Limit(own)), own
    return None, plan.in_flight.capacity if plan.in_flight is not None else WINDOW
