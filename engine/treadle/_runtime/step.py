"""The ``@step`` decorator and what it makes: a plain function outside of runs, a tracked call inside of one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Generic,
    Never,
    NoReturn,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    overload,
)

from treadle._core.binding import Binder
from treadle._runtime.context import active_call, active_run, current_run
from treadle._runtime.guards.policies import MARKS, NONE, Mark, Policies, lay, without_parentheses
from treadle._runtime.static.placeholder import Placeholder
from treadle.checks import nearest
from treadle.errors import NotInRun, OptionError
from treadle.limits import Resources
from treadle.options import UNSET, CachePolicy, Retry, StepOptions, Unset

if TYPE_CHECKING:
    from datetime import timedelta

    from treadle._runtime.calls.call import StepFuture
    from treadle._runtime.code.explain import CacheExplanation
    from treadle._runtime.maps.mapping import MapFuture
    from treadle._runtime.maps.unmapped import Unmapped
    from treadle._runtime.run import Run
    from treadle._runtime.views.artifact import Artifact

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
A = TypeVar("A")


if TYPE_CHECKING:

    class StepCall(Coroutine[Any, Any, R_co], Any):  # type: ignore[misc]  # the Any base lets sync pipelines use the value
        """What a call of a ``def`` step is to a type checker: awaitable in async pipelines, the value elsewhere."""

        def __getattr__(self, name: str, /) -> Any: ...
        def __getitem__(self, key: Any, /) -> Any: ...
        def __iter__(self) -> Any: ...
        def __aiter__(self) -> Any: ...
        def __len__(self) -> int: ...
        def __contains__(self, item: Any, /) -> bool: ...
        def __call__(self, /, *args: Any, **kwargs: Any) -> Any: ...
        def __enter__(self) -> Any: ...
        def __exit__(self, *args: Any) -> Any: ...
        def __add__(self, other: Any, /) -> Any: ...
        def __radd__(self, other: Any, /) -> Any: ...
        def __sub__(self, other: Any, /) -> Any: ...
        def __rsub__(self, other: Any, /) -> Any: ...
        def __mul__(self, other: Any, /) -> Any: ...
        def __rmul__(self, other: Any, /) -> Any: ...
        def __truediv__(self, other: Any, /) -> Any: ...
        def __floordiv__(self, other: Any, /) -> Any: ...
        def __mod__(self, other: Any, /) -> Any: ...
        def __pow__(self, other: Any, /) -> Any: ...
        def __matmul__(self, other: Any, /) -> Any: ...
        def __and__(self, other: Any, /) -> Any: ...
        def __or__(self, other: Any, /) -> Any: ...
        def __lt__(self, other: Any, /) -> Any: ...
        def __le__(self, other: Any, /) -> Any: ...
        def __gt__(self, other: Any, /) -> Any: ...
        def __ge__(self, other: Any, /) -> Any: ...

else:
    StepCall = Coroutine


class Step(Generic[P, R_co]):
    """A function as a step.

    Outside of a run, and in the body of another step, calling it calls the function. In a pipeline ``await s(x)``
    runs it as a tracked call and gives the value (in a ``def`` pipeline, ``s(x)`` does), ``s.submit(x)`` starts it
    and gives a ``StepFuture`` at once, ``s.map(xs)`` makes one call per item.

    Attributes:
        fn: the plain function, always.
        name: the step's name.
        options: what was asked of it.
    """

    __treadle_callable__: ClassVar[bool] = True
    __treadle_code__: ClassVar[bool] = True

    def __init__(self, fn: Callable[..., Any], options: StepOptions, policies: Policies = NONE) -> None:
        _refuse_what_is_no_step(fn)
        self.fn = fn
        self.options = options
        self.policies = policies
        self.name: str
        self.is_async = inspect.iscoroutinefunction(fn)
        self.binder = Binder(fn)
        self.base: Step[..., Any] = self
        self._name_as(options)
        self.map_limit: int | None = None
        functools.update_wrapper(self, fn)
        self.__dict__.pop(MARKS, None)  # they are in the policies by now

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        run = current_run()
        if run is None:
            result: Coroutine[Any, Any, R_co] = self.fn(*args, **kwargs)
            return result
        if run.fills:
            kwargs = cast("Any", run.fill(self, args, kwargs))
        else:
            self.binder.check(args, kwargs)
        if run.engine.is_on_loop():
            coroutine: Any = _submitted(run, self, args, kwargs)
            coroutine.__name__ = coroutine.__qualname__ = self.name  # what the warning of an un-awaited call says
            call: Coroutine[Any, Any, R_co] = coroutine
            return call
        future = run.engine.on_loop(self._submit, run, args, kwargs)
        value: Any = run.engine.wait_for_call(run, future)
        return cast("Coroutine[Any, Any, R_co]", value)

    @overload
    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> StepFuture[R_co]: ...
    @overload
    def submit(self, /, *args: Any, **kwargs: Any) -> StepFuture[R_co]: ...
    def submit(self, /, *args: Any, **kwargs: Any) -> StepFuture[R_co]:
        """Start a call and give its future at once.

        Futures (and lists, tuples, dicts and sets holding some) among the arguments make edges: the call starts when
        their values are there.

        Raises:
            NotInRun: no run is active here.
            TypeError: the arguments do not fit the function.
            ForeignFuture: an argument is a future of another run.
        """
        run = current_run() or _no_run(f"{self.name}.submit(...)")
        if run.fills:
            kwargs = run.fill(self, args, kwargs)
        else:
            self.binder.check(args, kwargs)
        if run.engine.is_on_loop():
            return run.submit(self, args, kwargs)
        return cast("StepFuture[R_co]", run.engine.on_loop(self._submit, run, args, kwargs))

    def _submit(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepFuture[Any]:
        run.raise_if_ending()
        return run.submit(self, args, kwargs)

    @overload
    def map(
        self: Callable[Concatenate[A, ...], Any],
        xs: Iterable[A | Awaitable[A] | Artifact[A]]
        | Awaitable[Iterable[A]]
        | Artifact[Iterable[A]]
        | AsyncIterableOf[A]
        | Unmapped[A],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> MapFuture[R_co]: ...
    @overload
    def map(self, /, **kwargs: Any) -> MapFuture[R_co]: ...
    def map(self, /, *args: Any, **kwargs: Any) -> MapFuture[Any]:
        """One call per item of the inputs, which may be any iterables, async iterables, maps or futures of lists.

        What is the same for all calls is marked with ``unmapped(value)``.

        Raises:
            NotInRun: no run is active here.
            MapLengthError: sized inputs have different lengths.
            OptionError: an argument has no items and is not marked ``unmapped``.
        """
        run = current_run() or _no_run(f"{self.name}.map(...)")
        if run.engine.is_on_loop():
            return run.submit_map(self, args, kwargs)
        return run.engine.on_loop(run.submit_map, self, args, kwargs)

    def product(self, /, *args: Any, **kwargs: Any) -> MapFuture[R_co]:
        """One call per combination of the inputs' items: ``s.product([1, 2], "ab")`` makes four calls.

        The last input changes fastest, as in nested loops and in ``itertools.product``. All inputs are read before the
        first call is made. What is the same for all calls is marked with ``unmapped(value)``.

        Raises:
            NotInRun: no run is active here.
            OptionError: an argument has no items and is not marked ``unmapped``.
        """
        run = current_run() or _no_run(f"{self.name}.product(...)")
        if run.engine.is_on_loop():
            return run.submit_map(self, args, kwargs, True)
        return cast("MapFuture[R_co]", run.engine.on_loop(run.submit_map, self, args, kwargs, True))

    def explain_cache(self, /, *args: P.args, **kwargs: P.kwargs) -> CacheExplanation:
        """Say whether a call with these arguments would be served by the cache and, if not, what has changed.

        It asks the home of the current engine (without one, the default home), and performs nothing. What changed is
        told against the newest recorded outcome of the step: which functions, globals and inputs. Futures that are
        done and artifacts may be among the arguments.

        Raises:
            TypeError: the arguments do not fit the function.
        """
        from treadle._runtime.code.explain import explain_cache  # it reads code and a home, which a call may never do

        return explain_cache(self, args, kwargs)

    def with_options(
        self,
        *,
        name: str | None | Unset = UNSET,
        inputs: Sequence[str] | Unset = UNSET,
        outputs: Sequence[str] | Unset = UNSET,
        cache: str | bool | CachePolicy | Unset = UNSET,
        retry: int | Retry | Unset = UNSET,
        timeout: float | str | timedelta | None | Unset = UNSET,
        resources: Mapping[str, float | str | None] | Resources | None | Unset = UNSET,
        execution_group: str | None | Unset = UNSET,
        runtime: str | Unset = UNSET,
        max_in_flight: int | None | Unset = UNSET,
        rate: str | None | Unset = UNSET,
        persist: bool | Unset = UNSET,
        version: str | int | None | Unset = UNSET,
        tags: Sequence[str] | Unset = UNSET,
        metadata: Mapping[str, Any] | Unset = UNSET,
        after: Any = UNSET,
        **unknown: Never,
    ) -> SelfStep:
        """A changed copy: the same options as ``@step``, and ``after=`` (futures that have to end first).

        Raises:
            OptionError: a value is not allowed.
        """
        given = {key: value for key, value in locals().items() if key not in ("self", "__class__", "unknown")}
        changes = StepOptions.read({**given, **unknown}, f"{self.name}.with_options")
        _check_after(changes.after)
        copy = self._copy(self.options.over(changes), self.policies)
        if changes == StepOptions():  # nothing but ``after``, which is no part of the comparison
            copy.planned = self.planned
        if changes.max_in_flight is None or isinstance(changes.max_in_flight, int):
            copy.map_limit = changes.max_in_flight
        return copy

    def _marked(self, mark: Mark) -> SelfStep:
        """A copy on which ``@retry``, ``@on_failure``, ``@CircuitBreaker``, ``@when`` or ``@unless`` was laid."""
        return self._copy(*lay([mark], self.name, self.options, self.policies, self.binder))

    def _copy(self, options: StepOptions, policies: Policies) -> SelfStep:
        copy = object.__new__(type(self))  # what the function is like is known
        copy.__dict__.update(self.__dict__)
        copy.options, copy.policies = options, policies
        copy._name_as(options)
        return copy

    def _name_as(self, options: StepOptions) -> None:
        """Take the name that the options ask for; nothing is known of a step of this name yet."""
        self.name = options.name if isinstance(options.name, str) else getattr(self.fn, "__name__", "step")
        self.planned: Step[..., Any] = self
        self.known: dict[Any, Any] = {}
        self.named: Any = None
        self.plan: Any = None
        _check_ignored(self.name, options.cache, self.binder)

    def __repr__(self) -> str:
        return f"<step {self.name}>"


if TYPE_CHECKING:
    from collections.abc import AsyncIterable as AsyncIterableOf
    from typing import Self as SelfStep


class AsyncStep(Step[P, R_co]):
    """A step made of an ``async def``; its body runs on the event loop."""

    fn: Callable[P, Coroutine[Any, Any, R_co]]


class SyncStep(Step[P, R_co]):
    """A step made of a ``def``; its body runs in a worker thread."""

    fn: Callable[P, R_co]

    if TYPE_CHECKING:

        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> StepCall[R_co] | Any: ...


async def _submitted(run: Run, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return await run.submit(step, args, kwargs)


class _OnlyAny:
    """Returned by nothing; catches functions annotated ``-> Any`` in the first overload."""


class StepDecorator(Protocol):
    """What ``@step(...)`` gives: the decorator."""

    @overload
    def __call__(self, fn: Callable[P, _OnlyAny], /) -> SyncStep[P, Any]: ...
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncStep[P, R]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]  # async first
    @overload
    def __call__(self, fn: Callable[P, R], /) -> SyncStep[P, R]: ...


@overload
def step(fn: Callable[P, _OnlyAny], /) -> SyncStep[P, Any]: ...
@overload
def step(fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncStep[P, R]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]  # async first
@overload
def step(fn: Callable[P, R], /) -> SyncStep[P, R]: ...
@overload
def step(
    *,
    name: str | None = ...,
    inputs: Sequence[str] = ...,
    outputs: Sequence[str] = ...,
    cache: str | bool | CachePolicy = ...,
    retry: int | Retry = ...,
    timeout: float | str | timedelta | None = ...,
    resources: Mapping[str, float | str | None] | Resources | None = ...,
    execution_group: str | None = ...,
    runtime: str = ...,
    max_in_flight: int | None = ...,
    rate: str | None = ...,
    persist: bool = ...,
    version: str | int | None = ...,
    tags: Sequence[str] = ...,
    metadata: Mapping[str, Any] = ...,
) -> StepDecorator: ...
def step(fn: Any = None, /, **given: Any) -> Any:
    """Make a function a step: tracked, cached, retried and durable when it is called in a pipeline.

    Args:
        fn: the function, ``async def`` (runs on the event loop) or ``def`` (runs in a worker thread).
        name: the step's name; the function's by default.
        inputs: names of assets that it takes.
        outputs: names of what it returns; several for a tuple, list or dict of that many.
        cache: ``"code_hash"`` (code and inputs, the default), ``"input_hash"`` (inputs only), ``True``, ``False`` or
            a ``CachePolicy``.
        retry: extra attempts, or a ``Retry``.
        timeout: seconds per attempt.
        resources: what a call needs while it is performed: ``{"cpu": "4", "memory": "16Gi", "gpu": 1}``,
            ``{"gpu": "nvidia-tesla-v100", "gpu_count": 2}`` or ``Resources(...)``. Calls wait until that is free; more
            than the engine has is clamped (see ``Engine(overcommit=)``).
        execution_group: a name; consecutive calls of steps with the same one share a worker (a worker thread).
        runtime: where it runs.
        max_in_flight: calls of it that run at once in one engine.
        rate: starts per time in one engine, ``"100/s"``, ``"5000/min"`` or ``"10/h"``, evenly spaced; after a pause up
            to one second's worth at once. Each attempt is a start, a cache hit is none.
        persist: store the output as an artifact.
        version: replaces the code's fingerprint in cache keys.
        tags, metadata: recorded with it.

    Raises:
        OptionError: an option is unknown or not allowed, or ``fn`` is a method, a generator or not a function.

    >>> @step
    ... def double(x: int) -> int:
    ...     return 2 * x
    >>> double(21)
    42
    """
    if fn is not None:
        if given:
            raise OptionError("@step takes a function or options, not both", fix="write @step(...) above the function")
        return _make(fn, StepOptions())
    options = StepOptions.read(given, "@step")
    if options.after is not UNSET:
        raise OptionError(
            "@step has no option 'after'", fix="use step.with_options(after=[...]) for a call", option="after"
        )
    return functools.partial(_make, options=options)


def _make(fn: Any, options: StepOptions) -> Step[..., Any]:
    if isinstance(fn, Step):
        raise OptionError(f"{fn.name} is a step already", fix="use with_options(...) to change its options")
    if isinstance(fn, Mark):
        raise without_parentheses(fn)
    kind = AsyncStep if inspect.iscoroutinefunction(fn) else SyncStep
    plain: Step[..., Any] = kind(fn, options)
    marks: Sequence[Mark] = getattr(fn, MARKS, ())
    return kind(fn, *lay(marks, plain.name, options, NONE, plain.binder)) if marks else plain


def _check_ignored(name: str, policy: object, binder: Binder) -> None:
    """What a step's own cache policy leaves out of the key has to be a parameter of it."""
    for parameter in policy.ignore if isinstance(policy, CachePolicy) else ():
        if parameter not in binder.names:
            raise OptionError(
                f"CachePolicy(ignore=...) names {parameter!r}, and {name} has no such parameter",
                fix=nearest(parameter, binder.names) or f"its parameters are: {', '.join(binder.names) or 'none'}",
                option="ignore",
            )


def _refuse_what_is_no_step(fn: Any) -> None:
    name = getattr(fn, "__qualname__", repr(fn))
    if hasattr(fn, "target") and hasattr(fn, "fn"):
        raise OptionError(
            f"{fn.name} is a pipeline", fix="decorate the function with @step or with @pipeline, not both"
        )
    if isinstance(fn, (staticmethod, classmethod)) or inspect.ismethod(fn) or is_method(fn):
        raise OptionError(
            f"{name} is a method, and a step is a function",
            fix="move it to module level, or wrap the bound method in a def",
        )
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        kind = "an async generator" if inspect.isasyncgenfunction(fn) else "a generator"
        raise OptionError(
            f"{name} is {kind}, and a step returns one value", fix="return a list, or map a step over the items"
        )
    if inspect.isclass(fn) or not callable(fn):
        kind = "a class" if inspect.isclass(fn) else f"of type {type(fn).__name__}"
        raise OptionError(
            f"@step got {name}, which is not a function but {kind}",
            fix="decorate a def or an async def" + (" that makes an instance" if inspect.isclass(fn) else ""),
        )
    _refuse_without_code(fn, name)


def _refuse_without_code(fn: Any, name: str) -> None:
    if hasattr(fn, "__code__"):
        return
    if hasattr(fn, "__wrapped__"):  # lru_cache: steps have a cache of their own
        what = f"@step got {name} in a wrapper of type {type(fn).__name__}, whose code is not known"
    elif isinstance(fn, functools.partial):
        what = f"@step got {fn!r}, which has no name and no code of its own"
    elif inspect.isroutine(fn):
        what = f"{name} is not written in Python, so its signature and its code are not known"
    else:
        what = f"@step got {name}, which is not a function but an object that can be called"
    raise OptionError(what, fix="call it in a def, and decorate a def or an async def")


def is_method(fn: Any) -> bool:
    """A function in a class body: its qualified name ends in ``Class.name`` outside of any function."""
    qualified: str = getattr(fn, "__qualname__", "")
    owner = qualified.rpartition(".")[0]
    if not owner or owner.endswith("<locals>"):
        return False
    return next(iter(inspect.signature(fn).parameters), "") in ("self", "cls") if callable(fn) else False


def _check_after(after: Any) -> None:
    if after is UNSET:
        return
    from treadle._runtime.calls.call import StepFuture
    from treadle._runtime.maps.mapping import MapFuture

    waited = after if isinstance(after, (list, tuple, set, frozenset)) else (after,)
    if not all(isinstance(future, (StepFuture, MapFuture, Placeholder)) for future in waited):
        raise OptionError(
            f"after={after!r} is not allowed",
            fix="give futures: after=step.submit(...), or a list of such",
            option="after",
        )


def _no_run(what: str) -> NoReturn:
    over = active_run.get()
    if active_call.get() is not None:
        why = "this is the body of a step, in which steps and pipelines are plain functions"
    else:
        why = f"run {over.id} has ended" if over is not None else "no pipeline is running here"
    raise NotInRun(
        f"{what} was called outside of a run",
        why=why,
        fix="call it in a function decorated with @pipeline (and not in a step's body); outside, call the step itself",
    )
