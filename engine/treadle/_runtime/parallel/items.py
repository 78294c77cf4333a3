"""``parallel_map``: one function over many items, on threads here, in processes elsewhere (``processes``).

Knows functions and items, and of runs only whether the caller was told to stop; nothing here is recorded. The threads
are its own, so a step may use it, also nested, without taking a thread that a step waits for.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import queue
import threading
from collections.abc import Callable, Iterable
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from treadle._runtime.context import active_call, active_run
from treadle._runtime.parallel.crew import POLL_S, Stopped, name_of, note, plain, watch
from treadle.checks import check_whole
from treadle.errors import OptionError, RunInsideLoop

if TYPE_CHECKING:
    from treadle._runtime.step import SyncStep

A = TypeVar("A")
R = TypeVar("R")

Backend = Literal["thread", "process"]


@overload
def parallel_map(
    f: SyncStep[..., R], items: Iterable[Any], num_workers: int = 4, backend: Backend = "thread"
) -> list[R]: ...
@overload
def parallel_map(
    f: Callable[[A], R], items: Iterable[A], num_workers: int = 4, backend: Backend = "thread"
) -> list[R]: ...
def parallel_map(f: Any, items: Iterable[Any], num_workers: int = 4, backend: Backend = "thread") -> list[Any]:
    """Call a function for every item, several at once, and give the results in the order of the items.

    It blocks, so it belongs into sync steps, ``def`` pipelines and scripts; on the event loop there is ``amap``. Items
    are read as they are needed, at most ``num_workers`` ahead. Nothing of it is recorded: to have each item tracked,
    cached and retried, map a step over the items instead.

    The first error that is raised ends it: items that were not begun are dropped, threads finish the item that they
    are at (a thread cannot be stopped), processes are killed, and the error is raised. So it goes when the step around
    it is cancelled or times out. In a debugged run the items are performed one after the other, right here.

    Args:
        f: the function; a step stands for its plain function. On threads it sees the caller's context variables.
            For processes it has to be importable: a function at the top level of a module, or something that pickles.
        items: any iterable.
        num_workers: how many threads or processes.
        backend: ``"thread"``, or ``"process"`` for work that holds the interpreter lock. Processes are started anew
            and import the function, so a script has to protect its main part by ``if __name__ == "__main__":``.

    Raises:
        OptionError: an option is not allowed, or ``f`` is an async function.
        StepNotImportable: another process could not find the function.
        EncodeError: an item or a result cannot be sent to or from another process.
        StepCrashed: a worker process died.
        RunInsideLoop: it was called on the event loop of a run, which it would block.
        BaseException: the first error that the function, or reading the items, has raised.

    >>> parallel_map(str.upper, ["a", "b", "c"], num_workers=2)
    ['A', 'B', 'C']
    """
    check_whole(num_workers, 1, "num_workers")
    if backend not in ("thread", "process"):
        raise OptionError(f"backend={backend!r} is not allowed", fix="give 'thread' or 'process'", option="backend")
    fn = plain(f)
    if inspect.iscoroutinefunction(fn):
        raise _not_sync(fn)
    _refuse_to_block_a_run(fn)
    if _is_debugged():
        return [_call(fn, item) for item in items]
    if backend == "process":
        from treadle._runtime.parallel import processes  # most programs never need multiprocessing

        return processes.Crew(f, fn, num_workers, watch()).perform(items)
    return _Crew(fn, num_workers, watch()).perform(items)


def _is_debugged() -> bool:
    call, run = active_call.get(), active_run.get()
    return bool(getattr(call.run if call is not None else run, "debug", False))


def _refuse_to_block_a_run(fn: Any) -> None:
    call, run = active_call.get(), active_run.get()
    around = call.run if call is not None else run
    if around is None or around.is_over or not around.engine.is_on_loop():
        return
    if call is None or call.plan.is_async:
        raise RunInsideLoop(
            f"parallel_map({name_of(fn)}, ...) was called on the event loop of a run, which it would block",
            fix="use `await amap(...)` with an async function, or call parallel_map in a `def` step",
        )


def _call(fn: Callable[..., Any], item: Any) -> Any:
    result = fn(item)
    if type(result) is CoroutineType:
        result.close()
        raise _not_sync(fn)
    return result


def _not_sync(fn: Any) -> OptionError:
    return OptionError(f"parallel_map got {name_of(fn)}, which is async", fix="use `await amap(f, items)`", option="f")


class _Crew:
    """Threads of one ``parallel_map``.

    The calling thread reads the items and hands them out, a second one for each thread that is at work, so that no
    thread waits for the next. Everything that changes does so under one lock.
    """

    def __init__(self, fn: Callable[..., Any], size: int, stopped: Stopped) -> None:
        self._fn, self._size, self._stopped = fn, size, stopped
        self._jobs: queue.SimpleQueue[tuple[int, Any, contextvars.Context] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._results: list[Any] = []
        self._failures: list[BaseException] = []
        self._open = self._threads = 0
        self._is_off = False

    def perform(self, items: Iterable[Any]) -> list[Any]:
        """All results, or the first error."""
        try:
            try:
                for item in items:
                    self._wait_until_below(2 * self._size)
                    self._hand_out(item)
                self._wait_until_below(1)
            except BaseException as error:
                self._is_off = True
                if isinstance(error, Exception) or error in self._failures:  # and no Ctrl-C, and nobody told us to stop
                    self._wait_until_below(1, failing=True)
                raise
            return self._results
        finally:
            self._is_off = True
            for _ in range(self._threads):
                self._jobs.put(None)
            self._failures = []  # they lead to frames, which lead here

    def _hand_out(self, item: Any) -> None:
        with self._changed:
            index = len(self._results)
            self._results.append(None)
            self._open += 1
            is_short = self._threads < min(self._size, self._open)
            self._threads += is_short
        if is_short:
            threading.Thread(target=self._work, name=f"treadle-map-{self._threads}", daemon=True).start()
        self._jobs.put((index, item, contextvars.copy_context()))

    def _wait_until_below(self, count: int, *, failing: bool = False) -> None:
        """Wait until fewer than ``count`` items are under way; raise what has gone wrong by then."""
        with self._changed:
            while self._open >= count and (failing or not self._failures):
                self._changed.wait(POLL_S)
                if self._stopped():
                    raise asyncio.CancelledError("the step around parallel_map was told to stop")
        if self._failures and not failing:
            raise self._failures[0]

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            index, item, context = job
            result, error = None, None
            if not (self._is_off or self._failures):
                try:
                    result = context.run(_call, self._fn, item)
                except BaseException as caught:
                    error = caught
            with self._changed:
                self._open -= 1
                self._results[index] = result
                if error is not None:
                    note(error, self._fn, index)
                    self._failures.append(error)
                self._changed.notify()
            del job, item, context, result, error  # an idle thread keeps nothing alive
