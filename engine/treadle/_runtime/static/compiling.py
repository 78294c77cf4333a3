"""Calls the function of a static pipeline with a recorder in the place of a run, and makes a program of what it did."""

from __future__ import annotations

import contextvars
import inspect
import itertools
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from treadle._core import parameters
from treadle._core.binding import Binder, find, snapshot
from treadle._core.naming import Names
from treadle._runtime.context import active_call, active_run
from treadle._runtime.maps.sources import Sources
from treadle._runtime.plan import hint
from treadle._runtime.static.placeholder import MapPlaceholder, Placeholder, where_called
from treadle._runtime.static.program import Node, Program, checked
from treadle.errors import MapLengthError, OptionError, PlaceholderUsed, ValidationError

if TYPE_CHECKING:
    from treadle._runtime.engine import Engine
    from treadle._runtime.pipeline import PipelineFn
    from treadle._runtime.run import Run
    from treadle._runtime.step import Step

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
    recorder = Recorder(target.name, engine, context)
    value = recorder.record(target.fn, args, kwargs)
    program = checked(target.name, recorder.nodes, value, recorder.names, recorder.problems, engine)
    recorder.warn_of_unused(value)
    return program


class Recorder:
    """What ``current_run`` gives while a static pipeline is compiled: it notes calls, and performs none.

    It is its own engine, one that is never on the loop, so that steps hand their calls over as ``def`` pipelines do.
    """

    is_compiling, is_over, fills = True, False, True

    def __init__(self, name: str, engine: Engine | None, context: Mapping[str, Any]) -> None:
        self._name, self._engine, self._context = name, engine, context
        self.nodes: list[Node] = []
        self.names = Names()
        self.problems: list[str] = []

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
        where = _where_defined(fn)
        self._check_own((value,), where)
        self._check_hidden("the value of the pipeline", where, (value,))
        return value

    # -- as the engine of a run -----------------------------------------------------------

    @property
    def engine(self) -> Recorder:
        """Itself."""
        return self

    def is_on_loop(self) -> bool:
        """Never, so that a call is handed over and waited for, which here takes no time."""
        return False

    def on_loop(self, fn: Callable[..., Any], *args: Any) -> Any:
        """At once."""
        return fn(*args)

    def wait_for_call(self, run: Any, future: Placeholder) -> Placeholder:
        """There is nothing to wait for."""
        return future

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
            self.problems.append(f"step {step.name} ({where_called()}): {error}")
        return MapPlaceholder(self._node(step, step.name, args, kwargs, "map", product, length))

    def child(self, target: PipelineFn[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Placeholder:
        """Note a child run; a static one whose arguments are known is compiled, to see whether it is sound."""
        is_sound = self._check_arguments("pipeline", target.name, target.binder, args, kwargs)
        if is_sound and target.is_static and next(find((args, kwargs), (Placeholder,)), None) is None:
            try:
                target.prepared(self._engine, {**self._context, **(target.options.context or {})}, args, kwargs)
            except ValidationError as error:
                self.problems += [f"pipeline {target.name}: {problem}" for problem in error.problems]
        return Placeholder(self._node(target, target.name, args, kwargs, "child"))

    def _node(
        self, step: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any],
        kind: Literal["call", "map", "child"] = "call", is_product: bool = False, length: int | None = None,
    ) -> Node:  # fmt: skip
        index, where = len(self.nodes), where_called()
        self._check_own((args, kwargs), where)
        args, kwargs = snapshot((args, kwargs))
        node = Node(self._name, index, self.names.take(name), step, args, kwargs, where, kind, is_product, length)
        self._check_hidden(f"an argument of {kind if kind == 'map' else 'step'} {node.name}", where, (args, kwargs))
        self.nodes.append(node)
        return node

    # -- what can be wrong ----------------------------------------------------------------

    def _check_arguments(
        self, what: str, name: str, binder: Binder, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        try:
            binder.check(args, parameters.filled(binder, self._context, args, kwargs) if what == "step" else kwargs)
        except TypeError as error:
            self.problems.append(f"{what} {name} ({where_called()}): {error}")
            return False
        return True

    def _check_hidden(self, what: str, where: str, values: Any) -> None:
        """Note placeholders in a dataclass or a named tuple, say: nobody would put the values in there."""
        for holder in find(values, (object,)):
            parts = () if isinstance(holder, (Placeholder, type)) else _parts(holder)
            for placeholder in find(parts, (Placeholder,)):
                kind = type(holder).__qualname__
                self.problems.append(
                    f"{what} ({where}) has {placeholder!r} inside of a {kind}, which is handed on as it is; pass the"
                    f" placeholder by itself or in a plain list, tuple, dict or set, and make the {kind} in a step"
                )

    def _check_own(self, values: Any, where: str) -> None:
        for placeholder in find(values, (Placeholder,)):
            index = placeholder._node.index
            if index >= len(self.nodes) or self.nodes[index] is not placeholder._node:
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

    def warn_of_unused(self, value: Any) -> None:
        """Warn of a step whose value goes nowhere, where others' values go somewhere and it does return one."""
        returned: set[int] = {placeholder._node.index for placeholder in find((value,), (Placeholder,))}
        used = returned.union(*(node.needs for node in self.nodes))
        for node in self.nodes:
            is_sink = not returned and bool(node.needs)
            if used and node.index not in used and not is_sink and not _returns_nothing(node):
                hint(f"pipeline {self._name}: nobody uses what {node.label} gives")


def _where_defined(fn: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(fn), "__code__", None)
    return where_called() if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def _parts(holder: Any) -> Iterable[Any]:
    """What a container of a class of its own, or a dataclass, holds."""
    if isinstance(holder, dict):
        return list(holder.values())
    if isinstance(holder, (tuple, list, set, frozenset)):
        return list(cast("Iterable[Any]", holder))
    names = getattr(type(holder), "__dataclass_fields__", ())
    return [getattr(holder, name, None) for name in names]


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
