"""``Pipeline``: steps that are wired by the names of what they take and give, in whatever order they were added."""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Never

from treadle._core import wiring
from treadle._core.naming import Names
from treadle._core.wiring import Constant, Member, Produced
from treadle._runtime.pipeline import PipelineFn
from treadle._runtime.plan import hint
from treadle._runtime.static.placeholder import Placeholder, where_called
from treadle._runtime.static.program import Node, Program, checked
from treadle._runtime.step import Step
from treadle.errors import OptionError
from treadle.options import UNSET, CachePolicy, FailureMode, PipelineOptions, Retry, Unset

if TYPE_CHECKING:
    from datetime import timedelta
    from typing import Self

    from treadle._core.graph import Graph
    from treadle._runtime.engine import Engine
    from treadle._runtime.handle import RunHandle
    from treadle._runtime.run import Run
    from treadle._runtime.views.results import RunResult

Inputs = Mapping[str, Any]

PROGRAMS = 16
"""So many programs of one pipeline are kept; each is for other names in ``inputs`` and context."""


class Pipeline(PipelineFn[..., dict[str, Any]]):
    """Steps that are connected by names: what one declares as an output, others take as an input.

    Steps may be added in any order. A parameter takes, in this order: the output of its name, what ``run(inputs=)``
    gives, what the context has, its default. All is checked before anything runs; then steps run in parallel as their
    inputs come. One pipeline may run many times at once.

    Args:
        name: the pipeline's name.
        context: values that fill parameters by name; see ``treadle.context``.
        failure_mode, timeout, max_concurrency, cache, retry, tags: as of ``@pipeline``.

    Raises:
        OptionError: an option is unknown or not allowed.

    >>> from treadle import Pipeline, step
    >>> @step(outputs=["data"])
    ... def load() -> list[int]:
    ...     return [1, 2, 3]
    >>> @step(inputs=["data"], outputs=["total"])
    ... def add(data: list[int]) -> int:
    ...     return sum(data)
    >>> Pipeline("sums").add_steps(add, load).compile()
    <Graph sums: load, add; 1 edge>
    """

    is_wired: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        *,
        context: Mapping[str, Any] | Unset = UNSET,
        failure_mode: FailureMode | Unset = UNSET,
        timeout: float | str | timedelta | None | Unset = UNSET,
        max_concurrency: int | None | Unset = UNSET,
        cache: str | bool | CachePolicy | Unset = UNSET,
        retry: int | Retry | Unset = UNSET,
        tags: Sequence[str] | Unset = UNSET,
        **unknown: Never,
    ) -> None:
        if not _is_text(name):
            raise OptionError(f"Pipeline({name!r}) has no name", fix="give it one: Pipeline('etl')", option="name")
        given = {key: value for key, value in locals().items() if key not in ("self", "unknown", "__class__")}
        for option in ("static", "debug", "idempotency_key", "engine"):
            if option in unknown:
                fix = "a Pipeline always is" if option == "static" else f"use pipeline.with_options({option}=...)"
                raise OptionError(f"Pipeline(...) has no option {option!r}", fix=fix, option=option)
        super().__init__(_plain_form, PipelineOptions.read({**given, **unknown}, "Pipeline"))
        self.name = name
        self.is_static = True
        self.__name__ = self.__qualname__ = name
        self.__doc__ = type(self).__doc__
        self._wiring = _Wiring()
        self._modules = _modules_around()
        self._changed_from: tuple[Pipeline, ...] = ()
        self._target = ""

    # -- adding ---------------------------------------------------------------------------

    def add_step(self, step: Step[..., Any], /) -> Self:
        """Add a step; the pipeline itself is returned, so that calls can be chained.

        A step may be added several times: its calls are ``train``, ``train_2``, ... in the order of adding.

        Raises:
            OptionError: it is no step.
        """
        _check_step(step)
        if self._wiring.is_shared:
            self._wiring = self._wiring.copy()
        self._wiring.add(step, where_called())
        return self

    def add_steps(self, *steps: Step[..., Any] | Iterable[Step[..., Any]]) -> Self:
        """Add several steps, one by one or as lists; the pipeline itself is returned."""
        for step in steps:
            several: Any = step
            for each in several if isinstance(several, (list, tuple, Iterator, Generator)) else [several]:
                self.add_step(each)
        return self

    @property
    def steps(self) -> tuple[Step[..., Any], ...]:
        """The steps, in the order in which they were added."""
        return tuple([step for step, _ in self._wiring.steps])

    # -- running --------------------------------------------------------------------------

    def __call__(
        self, inputs: Inputs | None = None, *, context: Inputs | None = None, debug: bool | None = None
    ) -> Coroutine[Any, Any, dict[str, Any]]:
        """Run it: ``await pipe(inputs={...})`` gives the outputs by name, or raises the error.

        Raises:
            ValidationError: it is not sound; nothing has run.
        """
        return super().__call__(inputs, context=context, debug=debug)

    def run(
        self, inputs: Inputs | None = None, *, context: Inputs | None = None, debug: bool | None = None
    ) -> RunResult[dict[str, Any]]:
        """Run to the end and give the result; for scripts, it opens and closes a loop and an engine of its own.

        A failure of a step is in the result, not raised (but for ``debug=True``).

        Args:
            inputs: values by the names of inputs that no step produces; the mapping is not changed.
            context: laid over the pipeline's own context, for this run only.
            debug: run every step by itself, in this thread, with no timeout, retry or cache.

        Raises:
            ValidationError: it is not sound; nothing has run and nothing was written.
            RunInsideLoop: an event loop is running here; use ``await pipe.run_async(...)``.
        """
        _checked_inputs(self.name, inputs)  # here, where the user's line is not far
        return PipelineFn.run(self._asked(context, debug), inputs)

    async def run_async(
        self, inputs: Inputs | None = None, *, context: Inputs | None = None, debug: bool | None = None
    ) -> RunResult[dict[str, Any]]:
        """As ``run``, in an async program; the run is cancelled when this await is."""
        return await self._asked(context, debug)._run((inputs,), {})

    def start(
        self, inputs: Inputs | None = None, *, context: Inputs | None = None, debug: bool | None = None
    ) -> RunHandle[dict[str, Any]]:
        """Start a run and give its handle; the run goes on whoever stops awaiting it."""
        return super().start(inputs, context=context, debug=debug)

    def compile(self, inputs: Inputs | Iterable[str] | None = None, *, context: Inputs | None = None) -> Graph:
        """Check the pipeline as ``run`` does, and give its graph; nothing is performed, opened or written.

        Args:
            inputs: what ``run`` is going to get; the names are enough.
            context: laid over the pipeline's own.

        Raises:
            ValidationError: it is not sound; ``problems`` has all that is wrong with it.
        """
        given: Any = inputs
        if given is None or isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
            names = _checked_inputs(self.name, given)
        else:
            names = dict.fromkeys(given)
        return PipelineFn.compile(self._asked(context, None), names)

    def _asked(self, context: Inputs | None, debug: bool | None) -> Self:
        if context is None and debug is None:
            return self
        return self.with_options(context=UNSET if context is None else context, debug=UNSET if debug is None else debug)

    def _handle(self, parent: Run | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RunHandle[Any]:
        asked = {"inputs": None, "context": None, "debug": None, **self.binder.bind(args, kwargs)}
        target = self._asked(asked["context"], asked["debug"])
        return super(Pipeline, target)._handle(parent, (), {"inputs": _checked_inputs(self.name, asked["inputs"])})

    # -- compiling ------------------------------------------------------------------------

    def _compiled(
        self, engine: Engine | None, context: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Program:
        inputs = _checked_inputs(self.name, self.binder.bind(args, kwargs).get("inputs"))
        return self._wiring.program(self.name, frozenset(inputs), frozenset(context), engine)

    def _with(self, options: PipelineOptions) -> Self:
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.options, copy.program = options, None
        copy.name = options.name if isinstance(options.name, str) else self.name
        self._wiring.is_shared = True
        copy._changed_from, copy._target = (self, *self._changed_from), ""
        return copy

    # -- being found again ----------------------------------------------------------------

    @property
    def target(self) -> str:
        """Where another process finds it: the module, and the name that it has there."""
        self._target = self._target or self._found_as() or f"{self._modules[0]}:<{self.name}>"
        return self._target

    def _found_as(self) -> str:
        for pipeline in (self, *self._changed_from):
            for module in self._modules:
                for name, value in list(vars(sys.modules.get(module, object)).items()):
                    if value is pipeline and name.isidentifier():
                        return f"{module}:{name}"
        return ""

    def __repr__(self) -> str:
        count = len(self._wiring.steps)
        return f"<Pipeline {self.name} of {count} step{'' if count == 1 else 's'}>"


def _plain_form(
    inputs: Inputs | None = None, *, context: Inputs | None = None, debug: bool | None = None
) -> dict[str, Any]:
    """The signature of a run; there is no function."""
    raise OptionError(
        "a Pipeline was called in the body of a step, where pipelines are plain functions, and it has none",
        fix="call it in a function decorated with @pipeline, or call the steps one after another",
        option="pipeline",
    )


def _is_text(name: object) -> bool:
    return isinstance(name, str)


def _check_step(step: object) -> None:
    if isinstance(step, Step):
        return
    fix = "decorate the function with @step, and add that"
    if isinstance(step, PipelineFn):
        fix = "add its steps one by one, or call it in a function decorated with @pipeline"
    raise OptionError(f"{step!r:.200} is not a step", where=where_called(), fix=fix, option="step")


def _checked_inputs(pipeline: str, inputs: Any) -> dict[str, Any]:
    if inputs is None:
        return {}
    if not isinstance(inputs, Mapping) or not all(isinstance(name, str) for name in inputs):
        raise OptionError(
            f"inputs={inputs!r:.200} of pipeline {pipeline} is not allowed",
            fix="give a dict of values by name, as {'rows': [1, 2]}",
            option="inputs",
        )
    return {name: inputs[name] for name in sorted(inputs)}  # the order of writing is no part of what was given


def _modules_around() -> tuple[str, ...]:
    """The modules whose code is running: in one of them the new pipeline will have a name."""
    frame = sys._getframe(2)
    found: dict[str, None] = {}
    while frame is not None:
        found[frame.f_globals.get("__name__", "")] = None
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(name for name in found if name and not name.startswith("importlib"))


class _Wiring:
    """The steps of a pipeline and of its changed copies, until one of them gets another step."""

    def __init__(self) -> None:
        self.steps: list[tuple[Step[..., Any], str]] = []
        self.is_shared = False
        self._programs: dict[Any, Program] = {}

    def copy(self) -> _Wiring:
        """The same steps, for itself."""
        copy = _Wiring()
        copy.steps = list(self.steps)
        return copy

    def add(self, step: Step[..., Any], where: str) -> None:
        """One more; what was compiled is outdated."""
        self.steps.append((step, where))
        self._programs.clear()

    def program(self, name: str, given: frozenset[str], context: frozenset[str], engine: Engine | None) -> Program:
        """What will be submitted, for these names of inputs and context."""
        key = (name, given, context, engine.id if engine is not None else "")
        known = self._programs.get(key)
        if known is None:
            if len(self._programs) >= PROGRAMS:
                self._programs.clear()
            known = self._programs[key] = _program(name, self.steps, given, context, engine)
        return known


def _program(
    pipeline: str, steps: Sequence[tuple[Step[..., Any], str]], given: frozenset[str], context: frozenset[str],
    engine: Engine | None,
) -> Program:  # fmt: skip
    names = Names()
    members = [_member(step, names.take(step.name), where) for step, where in steps]
    wired = wiring.wire(members, sorted(given), context)
    nodes = [
        Node(pipeline, index, member.call, step, (), _NO_ARGUMENTS, member.where, needs=wired.needs[index])
        for index, (member, (step, _)) in enumerate(zip(members, steps, strict=True))
    ]
    value: dict[str, Placeholder] = {}
    for node, member in zip(nodes, members, strict=True):
        has_one = len(node.outputs) == 1  # which is the whole value
        for output in member.outputs:
            value[output] = Placeholder(node, "" if has_one else output)
    for node, args, kwargs in zip(nodes, wired.args, wired.kwargs, strict=True):
        node.args = tuple([_argument(source, value) for source in args])
        if kwargs:
            node.kwargs = {name: _argument(source, value) for name, source in kwargs.items()}
        node.is_simple = node.is_simple and not any(type(source) is Constant for source in args)
        node.is_plain = node.is_simple and not (args or kwargs)
    program = checked(pipeline, nodes, value, names, wired.problems, engine)
    for warning in wired.warnings:
        hint(f"pipeline {pipeline}: {warning}")
    return program


def _member(step: Step[..., Any], call: str, where: str) -> Member:
    inputs, outputs, binder = step.options.inputs, step.options.outputs, step.binder
    parameters = binder.signature.parameters
    return Member(call, parameters, binder.positional, inputs or (), outputs or (call,), where, binder.is_plain)


def _argument(source: wiring.Source, produced: Mapping[str, Placeholder]) -> Any:
    if type(source) is Produced:
        return produced[source.output]
    return source.value if isinstance(source, Constant) else source


_NO_ARGUMENTS: dict[str, Any] = {}
