"""A compiled pipeline as a graph: its calls, the edges between them, their order, and pictures of them; pure.

Knows names and pairs of them; does not know steps, values or what a run makes of it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence

SHOWN = 8
"""So many names are in a graph's ``repr``."""


class Graph:
    """What a static pipeline is going to do: which calls, in which order, and what flows between them.

    Attributes:
        name: the pipeline's name.
        order: call names, producers before consumers, else in the order in which they were added. A map has one name.
        edges: (producer, consumer) pairs of call names, each once, in the order of their consumers.

    >>> graph = Graph("etl", ["load", "clean"], [("load", "clean")])
    >>> graph
    <Graph etl: load, clean; 1 edge>
    >>> print(graph)
    load
    clean  <- load
    """

    __slots__ = ("_labels", "edges", "name", "order")

    def __init__(
        self,
        name: str,
        order: Sequence[str],
        edges: Iterable[tuple[str, str]],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.order = list(order)
        place = {call: index for index, call in enumerate(self.order)}
        self.edges = sorted(dict.fromkeys(edges), key=lambda edge: (place[edge[1]], place[edge[0]]))
        self._labels = dict(labels or {})

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart.

        >>> print(Graph("etl", ["load", "clean"], [("load", "clean")]).to_mermaid())
        flowchart TD
            n0["load"]
            n1["clean"]
            n0 --> n1
        """
        number = {call: f"n{index}" for index, call in enumerate(self.order)}
        lines = ["flowchart TD"]
        lines += [f'    {number[call]}["{_for_mermaid(self._label(call))}"]' for call in self.order]
        lines += [f"    {number[a]} --> {number[b]}" for a, b in self.edges]
        return "\n".join(lines)

    def to_dot(self) -> str:
        """The graph in the language of Graphviz.

        >>> print(Graph("etl", ["load", "clean"], [("load", "clean")]).to_dot())
        digraph "etl" {
            "load";
            "clean";
            "load" -> "clean";
        }
        """
        lines = [f"digraph {_for_dot(self.name)} {{"]
        for call in self.order:
            label = f" [label={_for_dot(self._labels[call])}]" if call in self._labels else ""
            lines.append(f"    {_for_dot(call)}{label};")
        lines += [f"    {_for_dot(a)} -> {_for_dot(b)};" for a, b in self.edges]
        return "\n".join([*lines, "}"])

    def _label(self, call: str) -> str:
        return self._labels.get(call, call)

    def __len__(self) -> int:
        return len(self.order)

    def __str__(self) -> str:
        sources: dict[str, list[str]] = {call: [] for call in self.order}
        for producer, consumer in self.edges:
            sources[consumer].append(producer)
        return "\n".join(
            f"{self._label(call)}  <- {', '.join(sources[call])}" if sources[call] else self._label(call)
            for call in self.order
        )

    def __repr__(self) -> str:
        names = ", ".join(self.order[:SHOWN]) + (f" and {len(self) - SHOWN} more" if len(self) > SHOWN else "")
        return f"<Graph {self.name}: {names}; {len(self.edges)} edge{'' if len(self.edges) == 1 else 's'}>"


def _for_mermaid(text: str) -> str:
    return "".join(c if c.isalnum() or c in "_-. []" else f"#{ord(c)};" for c in text)


def _for_dot(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


# -- order --------------------------------------------------------------------------------


def topological(needs: Sequence[Iterable[int]]) -> list[int]:
    """The numbers from 0 in an order in which each comes after those it needs; of several ready ones the least first.

    What lies on a circle, or behind one, is left out.

    Args:
        needs: for each number, those that come before it.

    >>> topological([[2], [], []]), topological([[1], [0], []])
    ([1, 2, 0], [2])
    """
    if all(producer < consumer for consumer, producers in enumerate(needs) for producer in producers):
        return list(range(len(needs)))
    waiting = [0] * len(needs)
    last = [-1] * len(needs)  # for each producer its last edge, and for each edge the one before: lists of numbers,
    before: list[int] = []  # since the garbage collector would look at 10,000 lists of consumers again and again
    consumers: list[int] = []
    for consumer, producers in enumerate(needs):
        for producer in set(producers):
            waiting[consumer] += 1
            before.append(last[producer])
            last[producer] = len(consumers)
            consumers.append(consumer)
    ready = [number for number, count in enumerate(waiting) if not count]
    order: list[int] = []
    while ready:
        number = heapq.heappop(ready)
        order.append(number)
        edge = last[number]
        while edge >= 0:
            consumer = consumers[edge]
            waiting[consumer] -= 1
            if not waiting[consumer]:
                heapq.heappush(ready, consumer)
            edge = before[edge]
    return order


def circles(needs: Sequence[Iterable[int]], order: Sequence[int]) -> Iterator[list[int]]:
    """Circles among the numbers that ``order`` could not place; at least one, and no number in two of them.

    Args:
        needs: for each number, those that come before it.
        order: what ``topological`` gave.

    Yields:
        Numbers along a circle, from producer to consumer, beginning with the least.

    >>> list(circles([[1], [0], [0]], []))
    [[0, 1]]
    """
    placed = set(order)
    seen: set[int] = set()
    for start in range(len(needs)):
        path: list[int] = []
        place: dict[int, int] = {}
        number = start
        while number not in placed and number not in seen:
            seen.add(number)
            place[number] = len(path)
            path.append(number)
            # What could not be placed needs another one that could not.
            number = next(producer for producer in needs[number] if producer not in placed)
        if number in place:
            circle = path[place[number] :][::-1]
            least = circle.index(min(circle))
            yield circle[least:] + circle[:least]
