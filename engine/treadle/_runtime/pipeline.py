"""The ``@pipeline`` decorator: a function whose step calls become tracked tasks of one run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Never, ParamSpec, Protocol, TypeVar, cast, overload

from treadle._core.binding import Binder
from treadle._runtime.context import active_call, active_engine, current_run
from treadle._runtime.step import Step, is_method
from treadle.checks import check_known
from treadle.errors import NoEventLoop, OptionError, PlaceholderUsed, RunInsideLoop
from treadle.options import UNSET, CachePolicy, FailureMode, PipelineOptions, Retry, Unset

if TYPE_CHECKING:
    from datetime import timedelta
    from typing import Self

    from treadle._core.graph import Graph
    from treadle._runtime.engine import Engine
    from treadle._runtime.handle import RunHandle
    from treadle._runtime.run import Run
    from treadle._runtime.static.program import Program
    from treadle._runtime.views.results import RunResult

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

OF_CALLS = ("idempotency_key", "engine", "debug")
"""Options that a call of a pipeline has, by ``with_options``, and a pipeline itself has not."""


class PipelineFn(Generic[P, R_co]):
    """A function as a pipeline.

    ``await p(x)`` runs it and gives its value, or raises its error; ``p.start(x)`` starts it and gives a handle;
    ``p.run(x)`` is the blocking form for scripts and gives a ``RunResult``. In the body of a step it is a plain
    function; in another pipeline it is a child run.

    Attributes:
        fn: the plain function.
        name: the pipeline's name.
        options: what was asked of it.
    """

    __treadle_callable__: ClassVar[bool] = True
    __treadle_code__: ClassVar[bool] = True
    is_wired: ClassVar[bool] = False

    def __init__(self, fn: Callable[..., Any], options: PipelineOptions) -> None:
        self.fn = fn
        self.options = options
        self.is_static = options.static is True
        self.program: Program | None = None
        self.name: str = options.name if isinstance(options.name, str) else fn.__name__
        self.is_async = inspect.iscoroutinefunction(fn)
        self.binder = Binder(fn)
        functools.update_wrapper(self, fn)

    @property
    def target(self) -> str:
        """Where another process finds it: ``module:qualified.name``."""
        return f"{self.fn.__module__}:{self.fn.__qualname__}"

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        run = current_run()
        if run is None and active_call.get() is not None:
            result: Coroutine[Any, Any, R_co] = self.fn(*args, **kwargs)
            return result
        if run is not None and run.is_compiling:
            return cast("Coroutine[Any, Any, R_co]", cast("Any", run).child(self, args, kwargs))
        self.binder.check(args, kwargs)
        if run is None or run.engine.is_on_loop():
            return self._attached(run, args, kwargs)
        value: Any = run.engine.block_on(self._attached(run, args, kwargs))
        return cast("Coroutine[Any, Any, R_co]", value)

    async def _attached(self, parent: Run | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R_co:
        return cast("R_co", await self._handle(parent, args, kwargs).attached())

    def start(self, /, *args: P.args, **kwargs: P.kwargs) -> RunHandle[R_co]:
        """Start a run and give its handle; the run goes on whoever stops awaiting it.

        In another pipeline it is a child run, and the other's end waits for it.

        Raises:
            NoEventLoop: no event loop is running here.
            TypeError: the arguments do not fit the function.
        """
        run = current_run()
        if run is not None and run.is_compiling:
            return cast("RunHandle[R_co]", cast("Any", run).child(self, args, kwargs))
        if run is not None and not run.engine.is_on_loop():
            return cast("RunHandle[R_co]", run.engine.on_loop(self._detached, run, args, kwargs))
        return self._detached(run, args, kwargs)

    def _detached(self, parent: Run | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RunHandle[Any]:
        self.binder.check(args, kwargs)
        _refuse_without_loop(self.name)
        handle = self._handle(parent, args, kwargs)
        handle.detach()
        return handle

    def _handle(self, parent: Run | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RunHandle[Any]:
        self.binder.check(args, kwargs)
        from treadle._runtime.handle import RunHandle  # the runtime is loaded by the first run

        return RunHandle(self, args, kwargs, parent)

    def run(self, /, *args: P.args, **kwargs: P.kwargs) -> RunResult[R_co]:
        """Run to the end and give the result; for scripts, it opens and closes a loop and an engine of its own.

        A failure is in the result, not raised (but for ``debug=True``).

        Raises:
            RunInsideLoop: an event loop is running here; ``await`` the pipeline instead.
            ValidationError: it is static, and not sound; nothing has run.
        """
        self.binder.check(args, kwargs)
        refuse_while_compiling(f"{self.name}.run()", f"call {self.name}(...) for a child run")
        import asyncio

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise RunInsideLoop(
                f"{self.name}.run() was called inside a running event loop, which it would block",
                fix=f"`await {self.name}(...)` for the value, or `await engine.run({self.name}, ...)` for a RunResult",
            )
        return asyncio.run(self._run(args, kwargs, is_script=True))

    async def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_script: bool = False) -> RunResult[R_co]:
        handle = self._handle(None, args, kwargs)
        if is_script:
            from treadle._runtime.views import progress

            with progress.shown(handle, debug=self.options.debug is True):
                result = await handle.attached_result()
        else:
            result = await handle.attached_result()
        if self.options.debug is True:
            result.raise_for_failure()
        return result

    def compile(self, /, *args: P.args, **kwargs: P.kwargs) -> Graph:
        """What a static pipeline is going to do with these arguments; nothing is performed, opened or written.

        Raises:
            ValidationError: it is not sound; ``problems`` has all that is wrong with it.
            OptionError: it is dynamic, so that only a run shows what it does.
        """
        if not self.is_static:
            raise OptionError(
                f"pipeline {self.name} is dynamic, so what it does is known only when it runs",
                fix="make it @pipeline(static=True) above a def, or look at the result's to_mermaid() after a run",
                option="static",
            )
        try:
            self.binder.check(args, kwargs)
        except TypeError as error:
            from treadle._runtime.static.program import invalid

            raise invalid(self.name, [str(error)]) from None
        engine = self.options.engine or active_engine.get()
        program = self.prepared(engine, self.options.context or {}, args, kwargs).program
        assert program is not None
        return program.graph

    def prepared(
        self, engine: Engine | None, context: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Self:
        """A copy of a static pipeline that knows what it does with these arguments, or itself if it knows already.

        Raises:
            ValidationError: it is not sound.
        """
        if self.program is not None:
            return self
        copy = self._with(self.options)
        copy.program = self._compiled(engine, context, args, kwargs)
        return copy

    def _compiled(
        self, engine: Engine | None, context: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Program:
        from treadle._runtime.static.compiling import compile_function  # few pipelines are static

        return compile_function(self, engine, context, args, kwargs)

    def _with(self, options: PipelineOptions) -> Self:
        copy = object.__new__(type(self))  # what the function is like is known
        copy.__dict__.update(self.__dict__)
        copy.options, copy.program = options, None
        copy.name = options.name if isinstance(options.name, str) else copy.fn.__name__
        return copy

    def with_options(
        self,
        *,
        name: str | None | Unset = UNSET,
        debug: bool | Unset = UNSET,
        failure_mode: FailureMode | Unset = UNSET,
        timeout: float | str | timedelta | None | Unset = UNSET,
        idempotency_key: str | None | Unset = UNSET,
        max_concurrency: int | None | Unset = UNSET,
        cache: str | bool | CachePolicy | Unset = UNSET,
        retry: int | Retry | Unset = UNSET,
        tags: Sequence[str] | Unset = UNSET,
        context: Mapping[str, Any] | Unset = UNSET,
        engine: Engine | None | Unset = UNSET,
        **unknown: Never,
    ) -> Self:
        """A changed copy.

        Args:
            name: of the pipeline.
            debug: run every step by itself, in this thread, with no timeout, retry or cache.
            failure_mode: ``"fail_fast"``, ``"stop"`` or ``"continue"``.
            timeout: seconds for the whole run.
            idempotency_key: runs of this pipeline with one key and one input are one run.
            max_concurrency: calls of the run that are performed at once.
            cache, retry: defaults for its steps.
            tags: recorded with the run.
            context: values that fill parameters of steps by name, laid over the pipeline's own.
            engine: the engine to run on.

        Raises:
            OptionError: a value is not allowed.
        """
        given = {key: value for key, value in locals().items() if key not in ("self", "__class__", "unknown")}
        what = f"{self.name}.with_options"
        check_known(unknown, [*given], what)
        changes = PipelineOptions.read(given, what)
        return self._with(self.options.over(changes))

    def __repr__(self) -> str:
        return f"<pipeline {self.name}>"


def _refuse_without_loop(name: str) -> None:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise NoEventLoop(
            f"{name}.start(...) was called where no event loop is running, and a run lives on one",
            fix=f"call it in an async function, or use {name}.run(...) in a script",
        ) from None


def refuse_while_compiling(what: str, fix: str) -> None:
    """In the function of a static pipeline nothing is performed."""
    run = current_run()
    if run is not None and run.is_compiling:
        raise PlaceholderUsed(
            f"{what} was called in the function of a static pipeline, which is only asked what it would do",
            fix=fix, problems=(f"{what} was called while a static pipeline was compiled",),
        )  # fmt: skip


class PipelineDecorator(Protocol):
    """What ``@pipeline(...)`` gives: the decorator."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> PipelineFn[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> PipelineFn[P, R]: ...


@overload
def pipeline(fn: Callable[P, Coroutine[Any, Any, R]], /) -> PipelineFn[P, R]: ...
@overload
def pipeline(fn: Callable[P, R], /) -> PipelineFn[P, R]: ...
@overload
def pipeline(
    *,
    name: str | None = ...,
    failure_mode: FailureMode = ...,
    timeout: float | str | timedelta | None = ...,
    max_concurrency: int | None = ...,
    cache: str | bool | CachePolicy = ...,
    retry: int | Retry = ...,
    tags: Sequence[str] = ...,
    static: bool = ...,
    context: Mapping[str, Any] = ...,
) -> PipelineDecorator: ...
def pipeline(fn: Any = None, /, **given: Any) -> Any:
    """Make a function a pipeline: what it calls of steps becomes one durable run.

    Args:
        fn: the function, ``async def`` (runs on the event loop) or ``def`` (runs in a thread of its own).
        name: the pipeline's name; the function's by default.
        failure_mode: what a failure does to the rest: ``"fail_fast"`` cancels it, ``"stop"`` lets running calls
            finish, ``"continue"`` lets everything finish that does not depend on it.
        timeout: seconds for the whole run.
        max_concurrency: calls that are performed at once.
        cache, retry: defaults for its steps.
        tags: recorded with each run.
        static: call the function once before anything runs, to learn which steps it calls; they are checked, and then
            run in parallel as their inputs come. Only for a ``def``, which then passes values on and cannot look at
            them.
        context: values that fill parameters of steps by name, where a call does not give them.

    Raises:
        OptionError: an option is unknown or not allowed, or ``fn`` is a method, a generator or no function.
    """
    if fn is not None:
        if given:
            raise OptionError(
                "@pipeline takes a function or options, not both", fix="write @pipeline(...) above the function"
            )
        return _make(fn, PipelineOptions())
    for name in OF_CALLS:
        if name in given:
            raise OptionError(
                f"@pipeline has no option {name!r}", fix=f"use pipeline.with_options({name}=...)", option=name
            )
    check_known(given, [name for name in PipelineOptions.__dataclass_fields__ if name not in OF_CALLS], "@pipeline")
    return functools.partial(_make, options=PipelineOptions.read(given))


def _make(fn: Any, options: PipelineOptions) -> PipelineFn[..., Any]:
    if isinstance(fn, Step):
        raise OptionError(
            f"{fn.name} is a step", fix="decorate the function with @step or with @pipeline, not with both"
        )
    if isinstance(fn, PipelineFn):
        raise OptionError(f"{fn.name} is a pipeline already", fix="use with_options(...) to change its options")
    yields = inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn)
    if yields or not inspect.isfunction(fn):
        kind = "a generator" if yields else "a class" if inspect.isclass(fn) else f"of type {type(fn).__name__}"
        raise OptionError(
            f"{getattr(fn, '__qualname__', repr(fn))} cannot be a pipeline", why=f"it is {kind}",
            fix="decorate a def or an async def that is no generator",
        )  # fmt: skip
    if is_method(fn):
        raise OptionError(
            f"{fn.__qualname__} is a method, and a pipeline is a function",
            fix="move it to module level, where another process finds it to resume its runs",
        )
    if options.static is True and inspect.iscoroutinefunction(fn):
        raise OptionError(
            f"{fn.__qualname__} is an async def, and a static pipeline is not awaited",
            fix="write it as a def that passes values from step to step; its steps may be async",
            option="static",
        )
    return PipelineFn(fn, options)
