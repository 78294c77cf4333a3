"""``to_mermaid()``, ``to_dot()`` and HTML: what flowed where, every text escaped."""

from __future__ import annotations

import re
import shutil
import subprocess
import warnings
from html.parser import HTMLParser
from typing import Any

import pydot
import pytest

from treadle import RunResult, pipeline, step

EVIL = 'evil"<script>alert(1)</script>\\n&amp; --> end'


@step(name=EVIL)
def evil(x: int) -> int:
    return x + 100


@step
def square(x: int) -> int:
    return x * x


@step(cache=False)
def bad(x: int) -> int:
    raise ValueError('<img src=x onerror="alert(1)">')


@step
def total(xs: list[int]) -> int:
    return sum(xs)


@step(name="end")
def last(x: int) -> int:
    return x


@pipeline(failure_mode="continue")
async def report() -> int:
    squares = square.map(range(1000))
    last.submit(bad.submit(5))
    number = await total(squares)
    return await evil(number)  # travels as a plain value


@pytest.fixture
def result(home: Any) -> RunResult[Any]:
    """A run with a map, a failure, a skip and a plain value."""
    found: RunResult[Any] = home.run(report)
    return found


def nodes(mermaid: str) -> dict[str, str]:
    """Name of each box by what is written in it."""
    return {text: name for name, text in re.findall(r'^    (n\d+)\["(.*)"\]:::\w+$', mermaid, re.MULTILINE)}


def test_mermaid_has_a_box_for_a_map_and_the_status_as_a_class(result: RunResult[Any]) -> None:
    text = result.to_mermaid()
    assert len(nodes(text)) == 5
    assert re.search(r'n\d+\["square\[1000\]"\]:::succeeded', text)
    assert re.search(r'n\d+\["bad<br/>failed<br/>ValueError#58; .*"\]:::failed', text)
    assert re.search(r'n\d+\["end<br/>skipped<br/>because bad failed"\]:::skipped', text)
    assert {line.split()[1] for line in text.splitlines() if "classDef" in line} == {"succeeded", "failed", "skipped"}


def test_mermaid_escapes_what_would_be_syntax_or_html(result: RunResult[Any]) -> None:
    text = result.to_mermaid()
    box = r'n\d+\["[^"<>&;]*(?:(?:#\d+;|<br/>)[^"<>&;]*)*"\]:::\w+'
    for line in text.splitlines()[1:]:
        assert re.fullmatch(rf"    ({box}|n\d+ (-->|-.->) n\d+|classDef \w+ [\w:#,]+)", line), line


def test_edges_are_drawn_and_inferred_ones_are_dashed(result: RunResult[Any]) -> None:
    text = result.to_mermaid()
    box = {re.split("[<#\\[]", label)[0]: name for label, name in nodes(text).items()}
    assert f"    {box['square']} --> {box['total']}" in text
    assert f"    {box['total']} -.-> {box['evil']}" in text
    assert f"    {box['bad']} --> {box['end']}" in text
    assert text.count("-->") + text.count("-.->") == 3
    assert f"    {box['total']} -> {box['evil']} [style=dashed]" in result.to_dot()


def test_dot_says_the_same_and_escapes_quotes_backslashes_and_entities(result: RunResult[Any]) -> None:
    text = result.to_dot()
    assert text.startswith('digraph "report" {')
    assert text.endswith("}")
    assert r'label="evil\"<script>alert(1)</script>\\n&amp;amp; --> end", class="succeeded"' in text
    assert 'label="square[1000]", class="succeeded"' in text
    assert 'class="failed"' in text


def test_another_program_reads_the_dot(result: RunResult[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what the reader itself is built on
        (graph,) = pydot.graph_from_dot_data(result.to_dot())
    assert (graph.get_type(), graph.get_name()) == ("digraph", '"report"')
    assert len([node for node in graph.get_nodes() if node.get_name() not in ("node", "edge", "graph")]) == 5
    assert len(graph.get_edges()) == 3
    if shutil.which("dot") is not None:
        _draw(result)


def _draw(result: RunResult[Any]) -> None:
    done = subprocess.run(["dot", "-Tplain"], input=result.to_dot(), capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    kinds = [line.split()[0] for line in done.stdout.splitlines()]
    assert (kinds.count("node"), kinds.count("edge")) == (5, 3)


def test_values_that_come_from_everywhere_make_no_edge(home: Any) -> None:
    @step(cache=False)
    async def does(x: int) -> None:
        return None

    @step(cache=False)
    async def takes(x: object) -> object:
        return x

    @pipeline
    async def p() -> None:
        await takes(await does(1))

    assert "->" not in home.run(p).to_mermaid()


TAGS = {"table", "caption", "thead", "tbody", "tr", "th", "td", "span", "details", "summary", "pre"}


class Page(HTMLParser):
    """What a browser would make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_holds_no_script_and_every_text_as_text(result: RunResult[Any]) -> None:
    call, artifact = result.step_results["bad"], result.artifacts[EVIL]
    for shown in (result, call, result.step_results[EVIL], artifact, artifact.lineage()):
        page = Page()
        page.feed(shown._repr_html_())
        assert page.open == []
        assert set(page.tags) <= TAGS
        assert page.attributes <= {"style", "colspan"}
        if shown is not call:
            assert "<script>alert(1)</script>" in page.text
        if shown is call or shown is result:
            assert '<img src=x onerror="alert(1)">' in page.text


def test_html_sets_no_colour_of_text_or_page_but_on_its_signs(result: RunResult[Any]) -> None:
    page = result._repr_html_() + result.step_results["bad"]._repr_html_()
    outside = re.sub(r'<span style="color:#\w+">&#9679;</span>', "", page)
    assert not re.search(r"color:\s*#|background:\s*#|color:\s*(white|black)", outside)


def test_reprs_are_short_and_tell_the_names(result: RunResult[Any]) -> None:
    assert repr(result) == f"<RunResult {result.run_id} of report failed>"
    assert len(repr(result.step_results)) < 1000
    assert "'square[0]': succeeded, " in repr(result.step_results)
    assert "..." in repr(result.outputs)
    assert repr(result.artifacts["total"]).startswith("<Artifact total v1 ")
    assert repr(result.step_results["total"].inputs["xs"]) == "<input xs from square>"


@pipeline
async def halves(x: int) -> int:
    return await square(x)


@pipeline
async def only_children() -> int:
    return await halves(1) + await halves(2)


def test_child_runs_are_boxes(home: Any) -> None:
    found = home.run(only_children)
    assert "halves #40;2 child runs#41;" in found.to_mermaid()
    assert "halves (2 child runs)" in found.to_dot()
    assert found.to_text() == "+ halves (2 child runs)"
