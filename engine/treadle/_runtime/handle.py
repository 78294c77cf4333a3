"""A started run as its caller holds it: awaited attached or detached, cancelled, followed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import signal
import threading
from collections.abc import AsyncIterator, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from treadle._runtime import launch
from treadle._runtime.context import active_call, current_run
from treadle._runtime.defaults import engine_here
from treadle._runtime.plan import logger
from treadle._runtime.run import context_for
from treadle.errors import AwaitCycle, ResultNotReady

if TYPE_CHECKING:
    from treadle._runtime.pipeline import PipelineFn
    from treadle._runtime.run import Run
    from treadle._runtime.views.results import RunResult
    from treadle.events import Event

R_co = TypeVar("R_co", covariant=True)

LAST_WORDS_S = 1.0
"""How long a cancelled awaiter waits for the run's own records before it passes the cancellation on."""


class RunHandle(Generic[R_co]):
    """A run that goes on whether or not somebody awaits it.

    ``await handle`` gives the value or raises the error; a cancelled await leaves the run going. ``await
    handle.accepted()`` returns when the run and its arguments are in the log.
    """

    def __init__(
        self, target: PipelineFn[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], parent: Run | None
    ) -> None:
        self.id = launch.new_run_id()
        self._loop, self._thread_id = asyncio.get_running_loop(), threading.get_ident()
        self._is_detached = False
        self._target = target
        engine = parent.engine if parent is not None else engine_here(target)
        if engine is not None:
            engine.check_usable(for_a_new_run=parent is None)
        if target.is_static and not launch.has_references(args, kwargs):
            # Before there is anything: no run, no home.
            target = self._target = target.prepared(engine, context_for(parent, target.options), args, kwargs)
        ready = None if engine is None or launch.is_deferred(target, parent, args, kwargs) else launch.begin(
            engine, target, args, kwargs, parent, self.id
        )  # fmt: skip
        self._run: Run | None = ready
        self._launching: asyncio.Task[launch.Launched] | None = None
        if ready is None:
            self._launching = self._loop.create_task(launch.launch(engine, target, args, kwargs, parent, self.id))
            self._launching.add_done_callback(self._launched)

    @classmethod
    def of(cls, run: Run) -> RunHandle[Any]:
        """A handle of a run that is under way."""
        handle: RunHandle[Any] = cls.__new__(cls)
        handle.id, handle._loop, handle._target = run.id, run.loop, run.target
        handle._thread_id = threading.get_ident()
        handle._run, handle._launching, handle._is_detached = run, None, True
        return handle

    def _launched(self, task: asyncio.Task[launch.Launched]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            # Whoever awaits the handle gets it, too; perhaps nobody does.
            logger.warning("run %s of %s did not begin: %r", self.id, self._target.name, error)
        else:
            self._run = task.result().run
            self.id = task.result().run_id
            if self._is_detached:
                self.detach()

    def detach(self) -> None:
        """Let the run go on when all who await it are cancelled."""
        self._is_detached = True
        if self._run is not None:
            self._run.is_detached = True

    async def _ready(self) -> launch.Launched:
        if self._run is not None:
            return launch.Launched(self._run.id, self._run, None)
        assert self._launching is not None
        return await asyncio.shield(self._launching)

    # -- waiting --------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, R_co]:
        return self._value().__await__()

    async def _value(self) -> R_co:
        launched = await self._ready()
        await self._finished(launched)
        if launched.run is not None:
            return cast("R_co", launched.run.outcome())
        result = await launched.result()
        return cast("R_co", result.value)

    async def wait(self) -> RunResult[R_co]:
        """Wait for the end and give the result; a failure is in it, not raised."""
        launched = await self._ready()
        await self._finished(launched)
        return await launched.result()

    def result(self, timeout: float | None = None) -> R_co:
        """As ``await``, for threads (``def`` pipelines, say), which it blocks.

        Raises:
            TimeoutError: the run took longer than ``timeout`` seconds.
            ResultNotReady: this is the event loop's thread, which it would block.
        """
        if threading.get_ident() == self._thread_id:
            raise ResultNotReady(
                f"run {self.id} may not have ended, and .result() never waits on the event loop",
                fix="`await` the handle instead; .result() waits in `def` pipelines and other threads",
            )
        try:
            return asyncio.run_coroutine_threadsafe(self._value(), self._loop).result(timeout)
        except concurrent.futures.CancelledError:
            raise asyncio.CancelledError from None
        except TimeoutError as error:
            if error.args or timeout is None or (self._run is not None and self._run.is_over):
                raise  # of the run
        raise TimeoutError(f"run {self.id} of {self._target.name} has not ended after {timeout} s")

    async def ended(self) -> launch.Launched:
        """Wait for the end, and take no notice of how it was."""
        launched = await self._ready()
        await self._finished(launched)
        return launched

    async def accepted(self) -> RunHandle[R_co]:
        """Wait until the run and its arguments are in the log.

        Raises:
            IdempotencyConflict: the key was used with other arguments.
            LogUnavailable: the log cannot be written.
        """
        launched = await self._ready()
        if launched.run is not None:
            await asyncio.shield(launched.run.accepted)
        return self

    async def _finished(self, launched: launch.Launched) -> None:
        await launched.elsewhere()
        run = launched.run
        if run is None:
            return
        call = active_call.get()
        inner = call.run if call is not None else current_run()
        while inner is not None:
            if inner is run:
                raise AwaitCycle(
                    f"run {run.id} awaits itself",
                    fix="return from the pipeline; who started it awaits the handle",
                    calls=(run.id,),
                )
            inner = inner.parent
        await asyncio.shield(run.done)

    async def attached(self) -> R_co:
        """As ``await``, but the run is cancelled with its last attached awaiter."""
        launched = await self._attach()
        if launched.run is not None:
            return cast("R_co", launched.run.outcome())
        return cast("R_co", (await launched.result()).value)

    async def attached_result(self) -> RunResult[R_co]:
        """As ``wait``, but the run is cancelled with its last attached awaiter."""
        return await (await self._attach()).result()

    async def _attach(self) -> launch.Launched:
        launched: launch.Launched | None = None
        try:
            launched = await self._ready()
            if launched.run is not None:
                launched.run.attached += 1
            await self._finished(launched)
        except asyncio.CancelledError:
            run = launched.run if launched is not None else self._run
            if run is None and self._launching is not None:
                self._launching.cancel()
            if run is not None and launched is not None:
                run.attached -= 1
                if run.attached <= 0 and not run.is_detached:
                    run.stop("interrupt" if _is_the_end(run) else "caller")
                    await asyncio.wait((run.done,), timeout=LAST_WORDS_S)
            raise
        if launched.run is not None:
            launched.run.attached -= 1
        return launched

    # -- the rest -------------------------------------------------------------------------

    async def cancel(self) -> None:
        """Cancel the run, and wait until that is in the log."""
        launched = await self._ready()
        if launched.run is not None:
            launched.run.stop("caller")
            await asyncio.shield(launched.run.done)
        elif launched.engine is not None:
            await launched.engine.cancel(launched.run_id)

    async def events(self) -> AsyncIterator[Event]:
        """The run's events as they are committed, from the first to the last."""
        launched = await self._ready()
        engine = launched.run.engine if launched.run is not None else launched.engine
        assert engine is not None
        async for event in engine.events(launched.run_id, follow=True):
            yield event

    @property
    def status(self) -> str:
        """Where the run is."""
        return self._run.status if self._run is not None else "running"

    def __repr__(self) -> str:
        return f"<RunHandle {self.id} of {self._target.name} {self.status}>"


def _is_the_end(run: Run) -> bool:
    """Whether a cancelled await means the end of the loop or Ctrl-C, and not a caller's decision."""
    task = run.task
    return (task is not None and task.cancelling() > 0 and run.ending is None) or is_ctrl_c()


def is_ctrl_c() -> bool:
    """Whether ``asyncio.run`` is turning a Ctrl-C into a cancellation; it keeps that in its signal handler."""
    try:
        handler = signal.getsignal(signal.SIGINT)
    except ValueError:
        return False
    if not isinstance(handler, functools.partial):
        return False
    runner = getattr(handler.func, "__self__", None)
    return isinstance(runner, asyncio.Runner) and getattr(runner, "_interrupt_count", 0) > 0
