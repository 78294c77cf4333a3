"""Calls the function of a static pipeline with a recorder in the place of a run, and makes a program of what it did."""

from __future__ import annotations

import contextvars
import inspect
import itertools
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from treadle._core import parameters
from treadle._core.binding import Binder, find, hidden, snapshot
from treadle._core.naming import Names
from treadle._core.wiring import WARNINGS
from treadle._runtime.context import active_call, active_run
from treadle._runtime.maps.sources import Sources
from treadle._runtime.plan import hint
from treadle._runtime.static.placeholder import ItemPlaceholder, MapPlaceholder, Placeholder, where_called
from treadle._runtime.static.program import Node, Program, checked, simple_needs
from treadle.errors import EndlessPipeline, MapLengthError, OptionError, PlaceholderUsed, ValidationError, without_place

if TYPE_CHECKING:
    from treadle._runtime.engine import Engine
    from treadle._runtime.pipeline import PipelineFn
    from treadle._runtime.run import Run
    from treadle._runtime.step import Step

DEEPEST = 40
"""So many static pipelines may call each other with known arguments; beyond, Python's own limit is near."""

OWN_FRAMES = 4
"""So many frames at least lie between the recorder's note of a place and the user's code."""

LONGEST = 1_000_000
"""An iterator without a length is read to its end for a map, but not for ever."""


def compile_function(
    target: PipelineFn[..., Any], engine: Engine | None, context: Mapping[str, Any], args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Program:  # fmt: skip
    """The program of a static pipeline for these arguments.

    Raises:
        ValidationError: has all that is wrong with it.
        BaseException: whatever the function raises.
    """
    above: Any = active_run.get()
    path = (*above.path, target.name) if isinstance(above, Recorder) and not above.is_over else (target.name,)
    if len(path) > DEEPEST:
        raise _too_deep(path)
    recorder = Recorder(target.name, engine, context, path)
    value = recorder.record(target.fn, args, kwargs)
    program = checked(target.name, recorder.nodes, value, recorder.names, recorder.problems, engine)
    recorder.warn_of_unused()
    return program


def _too_deep(path: tuple[str, ...]) -> EndlessPipeline:
    circle = path[path.index(path[-1]) :] if path.count(path[-1]) > 1 else path
    second = circle.index(path[-1], 1) if path[-1] in circle[1:] else len(circle) - 1
    shown = " -> ".join(circle[: second + 1])
    problem = f"static pipelines call each other {len(path)} deep, and it does not end: {shown}"
    return EndlessPipeline(
        problem, where=where_called(), why="all of it is compiled before anything runs",
        fix="end the recursion by an argument that is known while compiling, or make the pipeline dynamic"
        " (no static=True)", problems=(problem,),
    )  # fmt: skip


class _OffLoop:
    """The engine of a recorder: never on the loop, so that steps hand their calls over as ``def`` pipelines do."""

    def is_on_loop(self) -> bool:
        """Never, so that a call is handed over and waited for, which here takes no time."""
        return False

    def on_loop(self, fn: Callable[..., Any], *args: Any) -> Any:
        """At once."""
        return fn(*args)

    def wait_for_call(self, run: Any, future: Placeholder) -> Placeholder:
        """There is nothing to wait for."""
        return future


class Recorder:
    """What ``current_run`` gives while a static pipeline is compiled: it notes calls, and performs none."""

    is_compiling, is_over, fills = True, False, True
    engine = _OffLoop()

    def __init__(self, name: str, engine: Engine | None, context: Mapping[str, Any], path: tuple[str, ...]) -> None:
        self._name, self._engine, self._context, self.path = name, engine, context, path
        self.nodes: list[Node] = []
        self.names = Names()
        self.problems: list[str] = []
        self.returned: list[Placeholder] = []
        self._places: dict[str, str] = {}

    def record(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function; gives what it returns, placeholders and all."""
        context = contextvars.copy_context()
        context.run(active_run.set, cast("Run", self))
        context.run(active_call.set, None)
        try:
            value = context.run(fn, *args, **kwargs)
        except PlaceholderUsed as error:
            error.problems = (*self.problems, *error.problems)
            raise
        except ValidationError:
            raise
        except Exception as error:
            error.add_note(f"raised by the function of static pipeline {self._name} while it was compiled")
            raise
        finally:
            self.is_over = True
        self._check_value(value, _where_defined(fn))
        return value

    def _check_value(self, value: Any, where: str) -> None:
        self.returned = list(find((value,), (Placeholder,)))
        self._check_own(self.returned, where)
        if not _is_open(value):
            self._check_hidden("the value of the pipeline", where, (value,))

    def raise_if_ending(self) -> None:
        """It does not end early."""

    def raise_if_left_behind(self) -> None:
        """Nobody is left behind."""

    # -- calls ----------------------------------------------------------------------------

    def fill(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Note arguments that do not fit, counting what the context will give; that comes when the run submits."""
        self._check_arguments("step", step.name, step.binder, args, kwargs)
        return kwargs

    def submit(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Placeholder:
        """Note a call."""
        return Placeholder(self._node(step, step.name, args, kwargs))

    def submit_map(
        self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], product: bool = False
    ) -> Placeholder:
        """Note a map."""
        self._check_arguments("step", step.name, step.binder, args, kwargs)
        args = tuple([self._listed(value) for value in args])
        kwargs = {name: self._listed(value) for name, value in kwargs.items()}
        length = None
        try:
            stand_ins = tuple(map(_stand_in, args)), {name: _stand_in(value) for name, value in kwargs.items()}
            length = Sources(cast("Run", self), *stand_ins, product=product).length
        except (OptionError, MapLengthError) as error:
            self.problems.append(f"step {step.name} ({where_called()}): {without_place(error)}")
        return MapPlaceholder(self._node(step, step.name, args, kwargs, "map", product, length))

    def child(self, target: PipelineFn[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Placeholder:
        """Note a child run; a static one whose arguments are known is compiled, to see whether it is sound."""
        is_sound = self._check_arguments("pipeline", target.name, target.binder, args, kwargs)
        if is_sound and target.is_static and next(find((args, kwargs), (Placeholder,)), None) is None:
            try:
                target.prepared(self._engine, {**self._context, **(target.options.context or {})}, args, kwargs)
            except EndlessPipeline:
                raise  # one is enough of them
            except ValidationError as error:
                self.problems += [f"pipeline {target.name}: {problem}" for problem in error.problems]
        return Placeholder(self._node(target, target.name, args, kwargs, "child"))

    def _node(
        self, step: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any],
        kind: Literal["call", "map", "child"] = "call", is_product: bool = False, length: int | None = None,
    ) -> Node:  # fmt: skip
        index, where = len(self.nodes), self._where()
        needs = simple_needs(self.nodes, args, kwargs)
        if needs is None:
            self._check_own(find((args, kwargs), (Placeholder,)), where)
            args, kwargs = snapshot((args, kwargs))
        own_name = self.names.take(name)
        node = Node(self._name, index, own_name, step, args, kwargs, where, kind, is_product, length, needs)
        if needs is None:
            self._check_hidden(f"an argument of {kind if kind == 'map' else 'step'} {own_name}", where, (args, kwargs))
        self.nodes.append(node)
        return node

    def _where(self) -> str:
        """Where the function is; a loop that makes many calls is one place."""
        where = where_called(OWN_FRAMES)
        return self._places.setdefault(where, where)

    # -- what can be wrong ----------------------------------------------------------------

    def _check_arguments(
        self, what: str, name: str, binder: Binder, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        if what == "step" and self._context:
            kwargs = parameters.filled(binder, self._context, args, kwargs)
        try:
            binder.check(args, kwargs)
        except TypeError as error:
            self.problems.append(f"{what} {name} ({where_called()}): {error}")
            return False
        return True

    def _check_hidden(self, what: str, where: str, values: Any) -> None:
        """Note placeholders in a dataclass or a named tuple, say: nobody would put the values in there."""
        for holder, placeholder in hidden(values, (Placeholder,), LONGEST):
            kind = type(holder).__qualname__
            place = "as a key of a dict" if type(holder) is dict else f"inside of a {kind}"
            self.problems.append(
                f"{what} ({where}) has {placeholder!r} {place}, which is handed on as it is; pass the"
                f" placeholder by itself or in a plain list, tuple, dict or set, and make the {kind} in a step"
            )

    def _check_own(self, placeholders: Iterable[Placeholder], where: str) -> None:
        nodes, count = self.nodes, len(self.nodes)
        for placeholder in placeholders:
            index = placeholder._node.index
            if index >= count or nodes[index] is not placeholder._node:
                raise ValidationError(
                    f"{placeholder!r} belongs to another pipeline, or to another compilation of this one",
                    where=where, fix="keep no placeholder outside of the function that made it",
                    problems=(f"{placeholder!r} belongs to another pipeline",),
                )  # fmt: skip

    def _listed(self, value: Any) -> Any:
        """The input of a map with a length, since the graph says how many calls there are."""
        if isinstance(value, AsyncIterable):
            raise PlaceholderUsed(
                "a map in a static pipeline goes over an async iterable, which only a run can read",
                where=where_called(), fix="make the pipeline dynamic, or read the items first",
                problems=("a map in a static pipeline goes over an async iterable",),
            )  # fmt: skip
        if not isinstance(value, Iterator):
            return value
        items = list(itertools.islice(value, LONGEST + 1))
        if len(items) > LONGEST:
            self.problems.append(f"a map goes over an iterator of more than {LONGEST:,} items ({where_called()})")
        return items

    def warn_of_unused(self) -> None:
        """Warn of a step whose value goes nowhere, where others' values go somewhere and it does return one."""
        returned: set[int] = {placeholder._node.index for placeholder in self.returned}
        used = returned.union(*(node.needs for node in self.nodes))
        unused: list[Node] = []
        for node in self.nodes:
            is_sink = not returned and bool(node.needs)
            if used and node.index not in used and not is_sink and not _returns_nothing(node):
                unused.append(node)
        for node in unused[:WARNINGS]:
            hint(f"pipeline {self._name}: nobody uses what {node.label} gives")
        if len(unused) > WARNINGS:
            hint(f"pipeline {self._name}: nobody uses what {len(unused) - WARNINGS} more steps give")


def _is_open(value: Any) -> bool:
    """Whether a value is a placeholder, or a list of nothing else, as most are: none can be hidden in there."""
    return _PLACEHOLDERS.issuperset(map(type, value) if type(value) in (list, tuple) else (type(value),))


_PLACEHOLDERS = frozenset({Placeholder, MapPlaceholder, ItemPlaceholder})


def _where_defined(fn: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(fn), "__code__", None)
    return where_called() if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def _returns_nothing(node: Node) -> bool:
    return node.step.binder.signature.return_annotation in (None, "None")


class _Later:
    """Stands in for a list that a step will give."""

    def __await__(self) -> Iterator[Any]:
        return iter(())


def _stand_in(value: Any) -> Any:
    if isinstance(value, MapPlaceholder):
        return range(value._node.length) if value._node.length is not None else _Later()
    if isinstance(value, Placeholder):
        return _Later()
    return value
