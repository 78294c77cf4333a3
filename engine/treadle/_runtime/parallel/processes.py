"""The processes of ``parallel_map``: started anew, they import the function, and end with the call, however it ends.

The parent's half: what the child does is in ``worker``. Knows functions and items, no steps and no runs.

Theory of operation
* The calling thread does everything: it starts processes, sends an item to each that is idle, waits for all pipes at
  once, and looks between two waits whether its caller was told to stop.
* A process has one item at a time, so a send never waits for a process that waits for us.
* Whatever happens, the ``finally`` leaves no process alive; if this process dies, the children see that and end.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from multiprocessing import connection as connections
from typing import TYPE_CHECKING, Any

from treadle._runtime.parallel import worker
from treadle._runtime.parallel.crew import POLL_S, Stopped, name_of, note
from treadle.errors import EncodeError, OptionError, RemoteError, StepCrashed, StepNotImportable

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

PATIENCE_S = 2.0
"""How long a process may take to end by itself before it is killed."""


class _Worker:
    """One process, its pipe, and the item that it is at."""

    __slots__ = ("index", "item", "pipe", "process")

    def __init__(self, reference: worker.Reference) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=worker.serve, args=(theirs, reference), name="treadle-map", daemon=True
        )
        self.index, self.item = -1, None
        try:
            with _interrupts_held_back():
                self.process.start()
        except BaseException:
            self.pipe.close()
            raise
        finally:
            theirs.close()


class Crew:
    """The processes of one ``parallel_map``.

    Args:
        given: what the user passed, which messages and the look-up by name are about.
        fn: the plain function.
        size: how many processes.
        stopped: whether the caller was told to stop.
    """

    def __init__(self, given: Any, fn: Callable[..., Any], size: int, stopped: Stopped) -> None:
        if multiprocessing.current_process().daemon:
            raise OptionError(
                "parallel_map(backend='process') was called in a worker process of another one",
                fix="use backend='thread' inside",
                option="backend",
            )
        self._fn, self._size, self._stopped = fn, size, stopped
        self._reference = reference(given, fn)
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, _Worker] = {}
        self._results: list[Any] = []

    def perform(self, items: Iterable[Any]) -> list[Any]:
        """All results, or the first error."""
        grace_s = 0.0
        try:
            for item in items:
                while not self._idle and len(self._workers) >= self._size:
                    self._collect()
                self._hand_out(item)
            while self._busy:
                self._collect()
            grace_s = PATIENCE_S
            return self._results
        finally:
            self._end(grace_s)

    def _hand_out(self, item: Any) -> None:
        index = len(self._results)
        try:
            data = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise EncodeError(
                f"item {index} of parallel_map({name_of(self._fn)}, ...) cannot be sent to another process",
                why=str(error) or type(error).__name__,
                fix="use backend='thread', or pass plain data",
                path=f"items[{index}]",
                value=item,
            ) from error
        if not self._idle:
            self._workers.append(_Worker(self._reference))
            self._idle.append(self._workers[-1])
        at = self._idle.pop()
        at.index = index
        self._results.append(None)
        self._busy[at.pipe] = at
        with suppress(OSError):  # it has died: its pipe says so when it is asked for the result
            at.pipe.send_bytes(data)

    def _collect(self) -> None:
        """Wait for results; raise what has gone wrong."""
        while True:
            ready: list[Any] = connections.wait(list(self._busy), POLL_S)
            if self._stopped():
                raise asyncio.CancelledError("the step around parallel_map was told to stop")
            if ready:
                break
        for pipe in ready:
            at = self._busy[pipe]
            try:
                reply = worker.unpickled(pipe.recv_bytes())
            except (EOFError, ConnectionError):
                raise self._crashed(at) from None
            self._take(at, *reply)
            del self._busy[pipe]
            self._idle.append(at)

    def _take(self, at: _Worker, kind: str, data: Any, type_name: str = "", text: str = "") -> None:
        if kind == worker.RESULT:
            self._results[at.index] = worker.unpickled(data)
            return
        if kind == worker.NOT_FOUND:
            raise not_importable(self._fn, f"a new process cannot import it: {text}")
        if kind == worker.NOT_SENT:
            raise EncodeError(
                f"the result for item {at.index} of parallel_map({name_of(self._fn)}, ...) cannot be sent back",
                why=text,
                fix="use backend='thread', or return plain data",
                path=f"results[{at.index}]",
                value=None,
            )
        raise self._rebuilt(at, data, type_name, text)

    def _rebuilt(self, at: _Worker, data: bytes, type_name: str, text: str) -> BaseException:
        error: BaseException | None = None
        if data:
            with suppress(Exception):
                error = worker.unpickled(data)
        if not isinstance(error, BaseException):
            error = RemoteError(f"{type_name} in a worker process", why=text, type_name=type_name, traceback_text=text)
        note(error, self._fn, at.index)
        with suppress(Exception):
            error.add_note(f"the worker process says:\n{text}")
        return error

    def _crashed(self, at: _Worker) -> StepCrashed:
        at.process.join(PATIENCE_S)
        code = at.process.exitcode
        number = -code if code is not None and code < 0 else None
        how = f"by signal {number}" if number else f"with exit code {code}"
        return StepCrashed(
            f"a worker process of parallel_map({name_of(self._fn)}, ...) died {how} at item {at.index}",
            fix="if it says above that a process was started before its parent was ready, protect the main part of the"
            " script by `if __name__ == '__main__':`; else see what ended it (memory, a signal, os._exit)",
            exit_code=code if number is None else None,
            signal=number,
            oom=False,
        )

    def _end(self, grace_s: float) -> None:
        """Leave no process: idle ones end by themselves if there is time, the others are stopped."""
        for at in self._workers:
            if grace_s:
                with suppress(OSError):
                    at.pipe.send_bytes(b"")
            else:
                at.process.terminate()
        until = time.monotonic() + (grace_s or PATIENCE_S / 4)
        for at in self._workers:
            at.process.join(max(0.0, until - time.monotonic()))
            if at.process.is_alive():
                at.process.kill()
                at.process.join()
            at.pipe.close()
            at.process.close()


# -- the function, by name ----------------------------------------------------------------


def reference(given: Any, fn: Callable[..., Any]) -> worker.Reference:
    """How another process finds the function: by module and name, else by a pickle (a partial, a bound method).

    Raises:
        StepNotImportable: there is no such way.
    """
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if isinstance(module, str) and isinstance(qualname, str) and not hasattr(fn, "__self__"):
        return "", *_by_name(fn, module, qualname)
    try:
        data = pickle.dumps(given, pickle.HIGHEST_PROTOCOL)
        worker.unpickled(data)
    except Exception as error:
        raise not_importable(fn, f"it cannot be pickled: {error}") from error
    return data, "", ""


def _by_name(fn: Any, module: str, qualname: str) -> tuple[str, str]:
    if "<lambda>" in qualname or "<locals>" in qualname:
        kind = "a lambda" if "<lambda>" in qualname else "defined inside another function"
        raise not_importable(fn, f"it is {kind}, which has no name that another process could import")
    if module == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        raise not_importable(fn, "it was defined in an interactive session, which another process cannot import")
    found = worker.look_up(module, qualname)
    if found is not fn and getattr(found, "fn", None) is not fn:
        raise not_importable(fn, f"{module}.{qualname} is something else there")
    return module, qualname


def not_importable(fn: Any, why: str) -> StepNotImportable:
    """The error for a function that processes cannot have."""
    return StepNotImportable(
        f"parallel_map(backend='process') cannot use {name_of(fn)}",
        why=why,
        fix="define the function at the top level of a module, or use backend='thread'",
    )


@contextmanager
def _interrupts_held_back() -> Generator[None, None, None]:
    """A child inherits the mask, so that Ctrl-C cannot meet it before it has decided to leave that to its parent."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


__all__ = ["Crew", "not_importable", "reference"]
