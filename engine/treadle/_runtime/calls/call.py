"""A call and its future: what a submitted step is while it is under way.

Knows who waits for whom. What happens to a call, and in which order, is told in
``lifecycle``; which state may follow which, in ``_core.machine``.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

import msgspec

from treadle._core.binding import find
from treadle._core.machine import CALLS, SETTLED, CallState, CallStatus, Trigger, illegal
from treadle._runtime.context import active_call
from treadle.errors import AwaitCycle, ResultNotReady
from treadle.events import Input
from treadle.storage.rows import ArtifactRow

if TYPE_CHECKING:
    from treadle._core.admission import Limits
    from treadle._runtime.maps.feeder import Feeder
    from treadle._runtime.plan import Plan
    from treadle._runtime.resources.usage import Meter
    from treadle._runtime.run import Run
    from treadle._runtime.views.artifact import Artifact
    from treadle.contracts import Timer

T = TypeVar("T")

Ending = Literal["caller", "failure", "interrupt", "timeout", "run_timeout"]
"""Why a call was told to stop."""


class StepFuture(asyncio.Future[T], Generic[T]):
    """The result to come of one call of a step.

    Await it for the value; give it (or a list, tuple, dict or set with such futures in it)
    to another step, and that step starts when the value is there. It works with
    ``asyncio.gather``, ``wait``, ``wait_for``, ``as_completed`` and ``shield``.
    """

    __slots__ = ("_call", "_output", "_raised")
    _call: Call
    _output: str

    @property
    def name(self) -> str:
        """The call's name, unique in its run: ``train``, ``train_2``, ``train[0]``."""
        return self._call.name

    @property
    def index(self) -> int | None:
        """The position in its map, or ``None`` for a call of its own."""
        return self._call.index

    @property
    def status(self) -> CallStatus:
        """Where the call is: pending, running, succeeded, cached, failed, skipped, cancelled or interrupted."""
        return self._call.status

    @property
    def artifact(self) -> Artifact[T]:
        """The stored output of the finished call.

        Raises:
            ResultNotReady: the call has not ended.
            TreadleError: it has no output, or several (see ``artifacts``).
        """
        return cast("Artifact[T]", self._call.artifact(self._output or None))

    @property
    def artifacts(self) -> dict[str, Artifact[Any]]:
        """The stored outputs of the finished call, by output name."""
        return self._call.artifacts()

    def output(self, name: str) -> StepFuture[Any]:
        """A future of one of several outputs.

        Raises:
            OptionError: the step has no output of that name.
        """
        return self._call.output_future(name, self)

    def result(self, timeout: float | None = None) -> T:
        """The value of the finished call, or its error.

        From a thread (a ``def`` pipeline) it waits, ``timeout`` seconds at the most. On the event loop it never
        waits.

        Raises:
            ResultNotReady: on the loop, while the call is pending.
            TimeoutError: the wait took longer than ``timeout``.
        """
        if not self.done():
            self._call.wait_in_thread(self, timeout)
        self._call.observed()
        return super().result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error of the finished call, or ``None``; it waits as ``result`` does."""
        if not self.done():
            self._call.wait_in_thread(self, timeout)
        self._call.observed()
        return super().exception()

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the call for all who await it; from any thread. False if it has ended already."""
        if self.done():
            return False
        self._cancel_message = msg  # by which anyio's scopes know that a cancellation is theirs
        return self._call.cancel_from_anywhere(self)

    def __await__(self) -> Generator[Any, None, T]:
        waiting = active_call.get()
        if waiting is not None and not self.done():
            self._call.check_cycle(waiting)  # here and not below: what a callback raises does not reach who awaits
        return super().__await__()

    def add_done_callback(self, fn: Callable[[Any], object], /, *, context: contextvars.Context | None = None) -> None:
        """See ``asyncio.Future.add_done_callback``; it also notices steps that await each other in a circle."""
        waiting = active_call.get()
        if waiting is not None and not self.done():
            self._call.check_cycle(waiting)
        super().add_done_callback(fn, context=context)

    def __repr__(self) -> str:
        output = f".{self._output}" if self._output else ""
        return f"<StepFuture {self._call.name}{output} {self._call.status}>"


class Call(msgspec.Struct, gc=False, eq=False):
    """One submission of a step in a run.

    ``pending`` counts the inputs that are not there yet; ``dependents`` are the calls
    that wait for this one; ``lacks`` names an input that a condition left out and that
    has no default. What only a running call needs is created when it runs.

    The garbage collector does not look into calls (``gc=False``): 50,000 of them made one
    full collection stall the loop for 300 ms. So a call may not stay in a circle of
    references: it lets go of everything when it has ended (``let_go``).

    A call of a map has a ``future`` only when somebody asks for it: 100,000 futures are
    100,000 objects that the collector does look into, and most maps are awaited whole.
    Until then the value of the ended call stays in the call.
    """

    run: Run
    plan: Plan
    name: str
    index: int | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any] | None
    future: StepFuture[Any] | None = None
    state: CallState = CallState.WAITING
    outcome: CallStatus = "pending"
    pending: int = 0
    order: int = 0
    attempt: int = 0
    budget: int = 0
    dependents: list[Call] | None = None
    derived: dict[str, StepFuture[Any]] | None = None
    group: Feeder[Any] | None = None
    limits: Limits | None = None
    slots: Limits | None = None
    roots: list[Call] | None = None
    context: contextvars.Context | None = None
    task: asyncio.Task[None] | None = None
    ending: Ending | None = None
    error: BaseException | None = None
    value: Any = None
    rows: tuple[ArtifactRow, ...] | None = None
    inputs: tuple[Input, ...] = ()
    identity: bytes = b""
    key: bytes = b""
    shape: str = ""
    saved_s: float = 0.0
    started_clock: float = 0.0
    attempt_at: float = 0.0
    awaited: set[Call] | None = None
    timer: Timer | None = None
    reused: bool = False
    was_observed: bool = False
    is_introduced: bool = False
    is_taking: bool = False
    lacks: str = ""
    meter: Meter | None = None

    def asked_future(self) -> StepFuture[Any]:
        """Its future, made when it is first asked for, done if the call has ended; on the loop only.

        Who asks keeps it: an ended call forgets its future, but for a failed one.
        """
        future = self.future
        if future is None:
            future = self.plan.future_type(loop=self.run.loop)
            future._call, future._output = self, ""
            if self.state is CallState.ENDED:
                self.run.past.fill(self, future)
                self.value = None
            if self.state is not CallState.ENDED or self.outcome in ("failed", "skipped"):
                self.future = future  # of a failure the run has to know whether somebody looked at it
        return future

    # -- state ----------------------------------------------------------------------------

    def move(self, trigger: Trigger) -> None:
        """Enter the state that follows; the table decides."""
        try:
            self.state = CALLS[self.state, trigger]
        except KeyError:
            raise illegal(self.state, trigger) from None

    @property
    def is_settled(self) -> bool:
        """Whether it has an outcome."""
        return self.state in SETTLED

    @property
    def status(self) -> CallStatus:
        """Its status as users see it."""
        if self.state is CallState.PERFORMING:
            return "running"
        return self.outcome if self.state is CallState.ENDED else "pending"

    def settle(self, status: CallStatus) -> None:
        """Take an outcome; it becomes visible when it is committed."""
        self.outcome = status
        self.move(Trigger.OUTCOME)

    def put_down(self) -> None:
        """Drop what only its walk needs; the commit may be a while in coming."""
        self.args, self.kwargs = (), None
        self.context = self.task = self.meter = None

    def let_go(self) -> None:
        """Drop what only a call under way needs, and every reference that could close a circle.

        A value that nobody has a future for stays, if it was stored: what can be stored leads to no call.
        """
        self.args, self.kwargs = (), None
        self.context = self.task = self.meter = self.group = self.dependents = self.awaited = None
        if self.future is not None:
            self.value = None
        self.run = cast("Run", self.run.past)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.error is None or self.outcome not in ("failed", "skipped"):
            self.future = self.derived = self.error = None

    def forget(self) -> None:
        """Drop future and error, too; a failed call keeps them until its run is over."""
        self.future = self.derived = self.error = None

    def on_commit(self, error: BaseException | None, /) -> None:
        """The log has its outcome, or could not take it."""
        self.run.resolve(self, error)

    @property
    def is_handled(self) -> bool:
        """Whether somebody has retrieved its error; awaiting a future that is done leaves its trace only in asyncio."""
        if self.state is not CallState.ENDED:
            return self.was_observed
        return self.was_observed or not all(future._log_traceback for future in self.futures())

    def observed(self) -> None:
        """Somebody has looked at how it ended: its failure, and those it comes from, are handled."""
        self.was_observed = True
        for root in self.roots or ():
            root.was_observed = True

    # -- outputs --------------------------------------------------------------------------

    def artifact(self, output: str | None) -> Artifact[Any]:
        """The artifact of its only output, or of the one named."""
        return self.run.artifact_of(self, output)

    def artifacts(self) -> dict[str, Artifact[Any]]:
        """All artifacts by output name."""
        return self.run.artifacts_of(self)

    def output_future(self, name: str, source: StepFuture[Any]) -> StepFuture[Any]:
        """A future of one output, resolved together with the call's own (``source``)."""
        self.plan.check_output(name)
        known = self.derived.get(name) if self.derived else None
        if known is not None:
            return known
        future: StepFuture[Any] = self.plan.future_type(loop=self.run.loop)
        future._call, future._output = self, name
        if self.state is CallState.ENDED:
            self.run.past.resolve_output(self, name, source, future)
        else:
            self.derived = {**(self.derived or {}), name: future}
        return future

    def futures(self) -> list[StepFuture[Any]]:
        """Its future and those of single outputs that somebody asked for."""
        known = [self.future] if self.future is not None else []
        return [*known, *self.derived.values()] if self.derived else known

    # -- waiting and cancelling -----------------------------------------------------------

    def wait_in_thread(self, future: StepFuture[Any], timeout: float | None) -> None:
        """Block a thread until the future is done; refuse to block the loop."""
        if self.run.engine.is_on_loop():
            raise ResultNotReady(
                f"call {self.name} has not ended, and .result() never waits on the event loop",
                fix="`await` the future instead; .result() waits in `def` pipelines and other threads",
                call=self.name,
            )
        waiting = active_call.get()
        if waiting is not None:
            self.check_cycle(waiting)
        done = threading.Event()
        self.run.engine.call_on_loop(asyncio.Future.add_done_callback, future, lambda _: done.set())
        if not done.wait(timeout):
            raise TimeoutError(f"call {self.name} has not ended after {timeout} s")

    def cancel_from_anywhere(self, future: StepFuture[Any]) -> bool:
        """Cancel from the loop or from another thread."""
        if not self.run.engine.is_on_loop():
            self.run.engine.call_on_loop(self.run.cancel_call, self, "caller", future)
            return True
        return self.run.cancel_call(self, "caller", future)

    def check_cycle(self, waiting: Call) -> None:
        """Note that a step's body waits for this call, and refuse if this call waits for that step."""
        path = _path(self, waiting)
        if path is not None:
            names = (waiting.name, *(call.name for call in path))
            raise AwaitCycle(
                f"calls wait for each other in a circle: {' -> '.join(names)}",
                fix="pass values between steps as arguments, and await calls in the pipeline, not in steps",
                calls=names,
            )
        if waiting.awaited is None:
            waiting.awaited = set()
        waiting.awaited.add(self)

    def __repr__(self) -> str:
        return f"<Call {self.name} {self.state.name}>"


def _path(start: Call, goal: Call) -> list[Call] | None:
    """The chain from one call to another that it waits for, if there is one."""
    todo: list[list[Call]] = [[start]]
    seen: set[int] = set()
    while todo:
        path = todo.pop()
        if path[-1] is goal:
            return path
        if id(path[-1]) not in seen:
            seen.add(id(path[-1]))
            todo.extend([*path, call] for call in _waits_for(path[-1]))
    return None


def _waits_for(call: Call) -> list[Call]:
    """Those whose end a call needs: what its body awaits, and the inputs that are not there yet."""
    awaited = list(call.awaited or ())
    if call.state is CallState.WAITING:
        awaited += [future._call for future in find((call.args, call.kwargs or {}), (StepFuture,))]
    return [other for other in awaited if not other.is_settled]
