"""A compiled pipeline: what it will submit, in which order, and whether that can work.

Knows steps and placeholders; a run performs it (``performing``).
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from treadle._core.annotations import Annotations, Unknown, accepts, item_of, output_of, shown
from treadle._core.binding import PLAIN, find
from treadle._core.graph import Graph, circles, topological
from treadle._core.naming import Names
from treadle._core.wiring import circle_text
from treadle._runtime.isolation.executors import not_installed, trouble_of
from treadle._runtime.maps.unmapped import Unmapped
from treadle._runtime.static.placeholder import ItemPlaceholder, MapPlaceholder, Placeholder
from treadle.errors import TreadleError, ValidationError, without_place
from treadle.options import UNSET, StepOptions

if TYPE_CHECKING:
    from treadle._runtime.engine import Engine


class Node:
    """One call, one map or one child run of a compiled pipeline.

    ``step`` is a step, or the pipeline of a child run; ``length`` the number of a map's calls, if that is known.
    A call is ``is_plain`` if its arguments are plain values, and ``is_simple`` if they are such, values of other calls
    and values given by name, so that ``needs`` names all that it waits for.
    """

    __slots__ = (
        "after", "args", "index", "is_plain", "is_product", "is_simple", "kind", "kwargs", "length", "name", "needs",
        "outputs", "pipeline", "step", "where",
    )  # fmt: skip

    def __init__(
        self, pipeline: str, index: int, name: str, step: Any, args: tuple[Any, ...], kwargs: dict[str, Any],
        where: str, kind: Literal["call", "map", "child"] = "call", is_product: bool = False, length: int | None = None,
        needs: list[int] | None = None,
    ) -> None:  # fmt: skip
        self.pipeline, self.index, self.name, self.step = pipeline, index, name, step
        self.args, self.kwargs, self.where, self.kind = args, kwargs, where, kind
        self.is_product, self.length = is_product, length
        options: StepOptions | None = step.options if kind != "child" else None
        declared = UNSET if options is None else options.outputs
        self.outputs: tuple[str, ...] = (step.name,) if declared is UNSET else declared or (step.name,)
        self.after: Any = UNSET if options is None else options.after
        self.is_simple = needs is not None and kind == "call" and self.after is UNSET
        self.is_plain = self.is_simple and PLAIN.issuperset(map(type, args)) and not kwargs
        if needs is None:
            needs = _needs((args, kwargs, self.after))
        elif self.after is not UNSET:
            needs = list(dict.fromkeys((*needs, *_needs((self.after,)))))
        self.needs = needs

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{'pipeline' if self.kind == 'child' else 'step'} {self.name} ({self.where})"


def simple_needs(nodes: Sequence[Node], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int] | None:
    """The nodes that arguments come from, if these are plain values and whole values of ``nodes`` and nothing else."""
    needs: list[int] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        kind = type(value)
        if kind in PLAIN:
            continue
        if kind is not Placeholder or not 0 <= value._node.index < len(nodes):
            return None
        index = value._node.index
        if nodes[index] is not value._node or nodes[index].kind == "map":
            return None
        if index not in needs:
            needs.append(index)
    return needs


def _needs(values: Any) -> list[int]:
    found = find(values, (Placeholder, Unmapped))
    return list(dict.fromkeys(placeholder._node.index for placeholder in _inside(found)))


def _inside(found: Iterable[Any]) -> Iterable[Placeholder]:
    for item in found:
        if isinstance(item, Unmapped):
            yield from _inside(find((item.value,), (Placeholder, Unmapped)))
        else:
            yield item


class Program:
    """The nodes in the order in which they were added, and ``order``, in which they are submitted.

    ``value`` is what the run will give, with placeholders in it; ``names`` are those that are taken.
    """

    __slots__ = ("_graph", "name", "names", "nodes", "order", "value")

    def __init__(self, name: str, nodes: Sequence[Node], value: Any, names: Names, order: Sequence[int]) -> None:
        self.name, self.nodes, self.value, self.names, self.order = name, nodes, value, names, order
        self._graph: Graph | None = None

    @property
    def graph(self) -> Graph:
        """Its picture."""
        if self._graph is None:
            nodes = self.nodes
            edges = [(nodes[need].name, node.name) for node in nodes for need in node.needs]
            sizes = {node.name: "?" if node.length is None else node.length for node in nodes if node.kind == "map"}
            labels = {name: f"{name}[{size}]" for name, size in sizes.items()}
            self._graph = Graph(self.name, [nodes[index].name for index in self.order], edges, labels)
        return self._graph


def checked(
    name: str, nodes: Sequence[Node], value: Any, names: Names, problems: Sequence[str], engine: Engine | None
) -> Program:
    """The program of these nodes, if nothing is wrong with them.

    Args:
        name: the pipeline's.
        nodes: in the order in which they were added.
        value: what the run gives.
        names: those that the nodes have taken.
        problems: what has been found before.
        engine: where it is going to run, if that is known.

    Raises:
        ValidationError: has all problems.
    """
    needs = [node.needs for node in nodes]
    order = topological(needs)
    found = list(problems)
    if len(order) < len(nodes):
        found += [circle_text([nodes[index].name for index in circle]) for circle in circles(needs, order)]
    found += _wrong_types(nodes)
    found += _wrong_runtimes(nodes, engine)
    found += _impossible_resources(nodes, engine)
    if found:
        raise invalid(name, found)
    return Program(name, nodes, value, names, order)


def invalid(name: str, problems: Sequence[str]) -> ValidationError:
    """The error that lists what is wrong."""
    if len(problems) == 1:
        return ValidationError(f"pipeline {name} cannot run: {problems[0]}", where=None, problems=tuple(problems))
    listed = "".join(f"\n  {number}. {problem}" for number, problem in enumerate(problems, 1))
    return ValidationError(
        f"pipeline {name} cannot run, for {len(problems)} reasons:{listed}", where=None, problems=tuple(problems)
    )


# -- types --------------------------------------------------------------------------------


def _wrong_types(nodes: Sequence[Node]) -> list[str]:
    known: dict[int, Annotations] = {}
    problems: list[str] = []
    for node in nodes:
        if node.needs:
            problems += _wrong_types_of(node, known)
    return problems


def _wrong_types_of(node: Node, known: dict[int, Annotations]) -> Iterable[str]:
    for parameter, value in _arguments(node).items():
        whole = value.value if isinstance(value, Unmapped) else value
        if not isinstance(whole, Placeholder):
            continue
        given, wanted = _given(whole, known), _annotations(node.step, known).parameter(parameter)
        if node.kind == "map" and whole is value:
            given = item_of(given)
        if not accepts(wanted, given):
            yield (
                f"{node.label} takes {shown(wanted)} for parameter {parameter!r}, and {whole._node.label} gives"
                f" {shown(given)}"
            )


def _arguments(node: Node) -> Mapping[str, Any]:
    """By parameter; those that do not fit have been complained about."""
    return {**dict(zip(node.step.binder.positional, node.args, strict=False)), **node.kwargs}


def _given(placeholder: Placeholder, known: dict[int, Annotations]) -> Any:
    node = placeholder._node
    returned = _annotations(node.step, known).returned if hasattr(node.step, "fn") else Unknown
    if placeholder._output:
        returned = output_of(returned, node.outputs, node.outputs.index(placeholder._output))
    if isinstance(placeholder, MapPlaceholder) and not isinstance(placeholder, ItemPlaceholder):
        return types.GenericAlias(list, (returned,))
    return returned


def _annotations(step: Any, known: dict[int, Annotations]) -> Annotations:
    found = known.get(id(step.fn))
    if found is None:
        found = known[id(step.fn)] = Annotations(step.fn, step.binder.signature)
    return found


# -- where it runs ------------------------------------------------------------------------


def _wrong_runtimes(nodes: Sequence[Node], engine: Engine | None) -> Iterable[str]:
    for node in nodes:
        runtime = UNSET if node.kind == "child" else node.step.options.runtime
        if runtime is UNSET:
            continue
        name = node.step.name
        error: TreadleError | None
        if engine is not None:
            error = engine.executors.missing(name, runtime)
        else:  # a default engine, then
            error = not_installed(name, "process" if runtime == "isolated" else runtime)
        if error is None and runtime != "inline":
            error = trouble_of(name, node.step.fn)
        if error is not None:
            yield f"{node.label}: {without_place(error)}"


def _impossible_resources(nodes: Sequence[Node], engine: Engine | None) -> Iterable[str]:
    """More than the engine has, where it refuses that; which engine has to be known."""
    for node in nodes:
        asked = UNSET if node.kind == "child" else node.step.options.resources
        if asked is UNSET:
            continue  # as of most, and ``UNSET`` takes its time to say that it is false
        if asked and engine is not None and engine.executors.sets_aside(node.step.options.runtime or "inline"):
            continue
        error = engine.capacity.problem(node.step.name, asked) if engine is not None and asked else None
        if error is not None:
            yield f"{node.label}: {without_place(error)}"
