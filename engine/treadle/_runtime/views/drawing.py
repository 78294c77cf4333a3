"""Graphs as Mermaid and as Graphviz DOT; it knows nodes, edges and statuses, and not where they come from. Pure.

Every text is escaped: a step may have any name, and an error message may hold anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from treadle._runtime.views.folding import Folded
from treadle._runtime.views.widths import cut_end, cut_middle, printable

LABEL_COLUMNS = 60

COLOURS: Mapping[str, tuple[str, str]] = {
    "succeeded": ("#d4efdc", "#1a7f37"), "cached": ("#d7e9fb", "#0969da"), "failed": ("#fbdcdc", "#cf222e"),
    "skipped": ("#ececf0", "#6e7781"), "cancelled": ("#f3e3cf", "#9a5b00"), "interrupted": ("#f3e3cf", "#9a5b00"),
    "running": ("#fdf3c4", "#8a6d00"), "pending": ("#ffffff", "#6e7781"), "plain": ("#f3f4f6", "#57606a"),
}  # fmt: skip
"""Fill and border of each status; the text on them is always dark, so they read on a light and on a dark page."""
TEXT = "#1f2328"


class Node(msgspec.Struct, frozen=True):
    """A box: its lines of text, and its status or ``"plain"``."""

    key: str
    lines: tuple[str, ...]
    status: str = "plain"


class Edge(msgspec.Struct, frozen=True):
    """An arrow; a guessed one is dashed."""

    producer: str
    consumer: str
    is_guess: bool = False


def nodes_of(folded: Folded) -> list[Node]:
    """The boxes of a run: one for a call or for a whole map, with what is remarkable about it."""
    return [
        Node(key, (line.label, *_remarks(line.status, line.note)), line.worst) for key, line in folded.lines.items()
    ]


def edges_of(folded: Folded) -> list[Edge]:
    """The arrows of a run."""
    return [
        *(Edge(producer, consumer) for producer, consumer in folded.edges),
        *(Edge(producer, consumer, is_guess=True) for producer, consumer in folded.guessed),
    ]


def _remarks(status: str, note: str) -> list[str]:
    return [*([] if status == "succeeded" else [status]), *([note] if note else [])]


def _numbered(nodes: Sequence[Node]) -> dict[str, str]:
    # Never the names themselves: "end" and "graph" are words of both languages.
    return {node.key: f"n{index}" for index, node in enumerate(nodes)}


def _drawable(edges: Iterable[Edge], number: Mapping[str, str]) -> list[Edge]:
    known = (edge for edge in edges if edge.producer in number and edge.consumer in number)
    return [edge for edge in known if edge.producer != edge.consumer]


def _short(node: Node) -> list[str]:
    name, *rest = map(printable, node.lines)
    return [cut_middle(name, LABEL_COLUMNS), *(cut_end(line, LABEL_COLUMNS) for line in rest)]


# -- Mermaid ------------------------------------------------------------------------------


def mermaid(nodes: Sequence[Node], edges: Iterable[Edge]) -> str:
    """A Mermaid flowchart, as GitHub, GitLab and notebooks draw it; statuses are classes."""
    number = _numbered(nodes)
    text = ["flowchart TD"]
    for node in nodes:
        label = "<br/>".join(map(_entities, _short(node)))
        text.append(f'    {number[node.key]}["{label}"]:::{node.status}')
    for edge in _drawable(edges, number):
        arrow = "-.->" if edge.is_guess else "-->"
        text.append(f"    {number[edge.producer]} {arrow} {number[edge.consumer]}")
    for status in dict.fromkeys(node.status for node in nodes):
        fill, line = COLOURS[status]
        text.append(f"    classDef {status} fill:{fill},stroke:{line},color:{TEXT}")
    return "\n".join(text)


def _entities(text: str) -> str:
    return "".join(char if char.isalnum() or char in "_-. []" else f"#{ord(char)};" for char in text)


# -- Graphviz -----------------------------------------------------------------------------


def dot(name: str, nodes: Sequence[Node], edges: Iterable[Edge]) -> str:
    """A Graphviz digraph, for ``dot -Tsvg``; statuses are colours, and classes in an SVG."""
    number = _numbered(nodes)
    text = [f"digraph {_quoted(printable(name))} {{", "    bgcolor=transparent"]
    text.append(f'    node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=11, fontcolor="{TEXT}"]')
    text.append('    edge [color="#6e7781"]')
    for node in nodes:
        fill, line = COLOURS[node.status]
        label = "\\n".join(map(_escaped, _short(node)))
        attributes = f'label="{label}", class="{node.status}", fillcolor="{fill}", color="{line}"'
        text.append(f"    {number[node.key]} [{attributes}]")
    for edge in _drawable(edges, number):
        style = " [style=dashed]" if edge.is_guess else ""
        text.append(f"    {number[edge.producer]} -> {number[edge.consumer]}{style}")
    return "\n".join([*text, "}"])


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    # Backslashes begin escapes in labels, and "&...;" are entities there even between quotes.
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
