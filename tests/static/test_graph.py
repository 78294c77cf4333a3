"""The graph of a compiled pipeline, and its pictures."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from treadle import Pipeline, pipeline, step
from treadle._core.graph import Graph, circles, topological


@step(outputs=["data"])
def load() -> int:
    return 1


@step(inputs=["data"])
def clean(data: int) -> int:
    return data


@step
def join(data: int, clean: int) -> int:
    return data + clean


@step
def gather(numbers: list[int]) -> int:
    return sum(numbers)


def test_order_and_edges_are_lists_of_call_names() -> None:
    graph = Pipeline("etl").add_steps(join, clean, load).compile()
    assert graph.order == ["load", "clean", "join"]
    assert graph.edges == [("load", "clean"), ("load", "join"), ("clean", "join")]
    assert len(graph) == 3


def test_a_graph_tells_what_it_is() -> None:
    graph = Pipeline("etl").add_steps(join, clean, load).compile()
    assert repr(graph) == "<Graph etl: load, clean, join; 3 edges>"
    assert str(graph) == "load\nclean  <- load\njoin  <- load, clean"
    assert repr(Pipeline("p").compile()) == "<Graph p: ; 0 edges>"
    assert "and 12 more" in repr(Graph("big", [f"s{n}" for n in range(20)], []))


def test_mermaid_and_dot_draw_all_calls_and_edges() -> None:
    graph = Pipeline("etl").add_steps(clean, load).compile()
    assert graph.to_mermaid() == 'flowchart TD\n    n0["load"]\n    n1["clean"]\n    n0 --> n1'
    assert graph.to_dot() == 'digraph "etl" {\n    "load";\n    "clean";\n    "load" -> "clean";\n}'


def test_names_with_signs_of_the_languages_are_escaped() -> None:
    @step(name='say "hi"\\ <b>\n', outputs=["a"])
    def odd() -> int:
        return 1

    @step(name="end", inputs=["a"])
    def end(a: int) -> int:
        return a

    graph = Pipeline('p"; x').add_steps(odd, end).compile()
    mermaid, dot = graph.to_mermaid(), graph.to_dot()
    assert len(mermaid.splitlines()) == 4
    assert '"say #34;hi#34;#92; #60;b#62;#10;"' in mermaid
    assert 'digraph "p\\"; x" {' in dot
    assert '"say \\"hi\\"\\\\ <b>\\n" -> "end";' in dot
    assert len(dot.splitlines()) == 5


def test_a_map_is_one_node_that_says_how_many_calls_it_has() -> None:
    @pipeline(static=True)
    def fan(numbers: list[int]) -> Any:
        return gather(clean.map(numbers))  # type: ignore[arg-type]

    graph = fan.compile([1, 2, 3])
    assert graph.order == ["clean", "gather"]
    assert 'n0["clean[3]"]' in graph.to_mermaid()
    assert '"clean" [label="clean[3]"];' in graph.to_dot()


numbers = st.integers(0, 12)
needs_of_dags = st.integers(1, 12).flatmap(
    lambda size: st.tuples(
        st.permutations(range(size)),
        st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), max_size=30),
    )
)


@given(needs_of_dags)
def test_every_graph_without_circles_is_ordered_and_nothing_that_is_ready_waits_for_a_later_one(drawn: Any) -> None:
    ranks, pairs = drawn
    needs: list[list[int]] = [[] for _ in ranks]
    for one, other in pairs:
        if ranks[one] < ranks[other]:
            needs[other].append(one)
    order = topological(needs)
    place = {number: index for index, number in enumerate(order)}
    assert sorted(order) == list(range(len(ranks)))
    assert all(place[need] < place[number] for number in order for need in needs[number])
    for index, number in enumerate(order):
        ready = [n for n in order[index:] if all(place[need] < index for need in needs[n])]
        assert number == min(ready)
    assert list(circles(needs, order)) == []


@given(st.lists(st.lists(numbers, max_size=3), min_size=13, max_size=13))
def test_what_cannot_be_ordered_has_a_circle_and_each_circle_is_one(needs: list[list[int]]) -> None:
    order = topological(needs)
    found = list(circles(needs, order))
    assert bool(found) == (len(order) < len(needs))
    for circle in found:
        assert len(set(circle)) == len(circle)
        assert all(a in needs[b] for a, b in zip(circle, [*circle[1:], circle[0]], strict=True))
    assert len({number for circle in found for number in circle}) == sum(map(len, found))


def test_names_in_a_long_chain_are_ordered_without_recursion() -> None:
    size = 50_000
    assert topological([[n + 1] if n + 1 < size else [] for n in range(size)]) == list(reversed(range(size)))
    (circle,) = circles([[(n + 1) % size] for n in range(size)], [])
    assert len(circle) == size


def test_ids_of_the_mermaid_nodes_are_plain() -> None:
    graph = Pipeline("etl").add_steps(join, clean, load).compile()
    assert set(re.findall(r"^\s+(\w+)\[", graph.to_mermaid(), re.MULTILINE)) == {"n0", "n1", "n2"}
