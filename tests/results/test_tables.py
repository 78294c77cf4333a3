"""``str(result)``: a table that fits a terminal, whatever names and errors there are."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

from treadle import current, pipeline, step
from treadle._runtime.views.widths import cut_end, cut_middle, width

LONG = "a_step_with_a_name_that_is_longer_than_any_terminal_is_wide_although_nobody_would_call_a_step_that"


@step(name=LONG)
def long(x: int) -> int:
    return x


@step(name="データを読む")
def wide(x: int) -> int:
    return x


@step
def square(x: int) -> int:
    if x == 7:
        raise ValueError(f"seven is <bad> & \x1b[31mred\nsecond line {'far ' * 100}")
    return x * x


@step(cache=False)
def total(xs: list[int]) -> int:
    return sum(xs)


@pipeline
async def inner(x: int) -> int:
    return await total([x])


@pipeline(failure_mode="continue")
async def report(n: int) -> int:
    await square.map(range(n)).settled()
    total.submit(square.submit(7))
    await inner(n)
    return await long(await wide(n))


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_no_line_is_wider_than_the_terminal(home: Any, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = str(home.run(report, 1000)).splitlines()
    assert max(map(width, lines)) <= columns
    assert len(lines) == 11  # title, head, rule, square, square_2, total, two names, the child, sums, the error


def test_columns_are_aligned_also_below_wide_characters(home: Any) -> None:
    lines = str(home.run(report, 3)).splitlines()
    places = set()
    for line in lines[3:-2]:
        place = next(match.start() for match in re.finditer(r"(?<=  )(succeeded|failed|skipped|\d+ )", line))
        places.add(width(line[:place]))
    assert len(places) == 1


def test_a_map_is_one_line_with_counts_and_its_first_error(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (line,) = [line for line in str(home.run(report, 1000)).splitlines() if line.startswith("square[1000]")]
    assert "1 failed, 999 succeeded" in line
    assert "[7]: ValueError: seven is <bad> &" in line


def test_an_error_shows_its_type_and_first_line_and_cannot_steer_the_terminal(
    home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = str(home.run(report, 8))
    assert "\x1b" not in text
    assert "second line" not in text
    assert "error: ValueError: seven is <bad> & \\x1b[31mred" in text
    assert "because square_2 failed" in text


def test_a_name_cannot_steer_the_terminal_where_a_result_is_shown_in_a_list(home: Any) -> None:
    @step(name="one\x1b7\u202e")
    def one() -> int:
        return 1

    @pipeline(name="two\x1bc")
    async def two() -> int:
        return await one()

    result = home.run(two)
    shown = repr([result, *result.step_results.values()])
    assert shown.isprintable()
    assert "<StepResult one\\x1b7\\u202e succeeded>" in shown


def test_a_long_name_keeps_its_beginning_and_its_end(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (line,) = [line for line in str(home.run(report, 1)).splitlines() if line.startswith("a_step_")]
    assert re.match(r"a_step\w*\.\.\.\w*that ", line)


def test_child_runs_have_a_line(home: Any) -> None:
    assert re.search(r"^inner \(child run\) +succeeded +- +-$", str(home.run(report, 1)), re.MULTILINE)


def test_what_was_not_performed_has_no_times(home: Any) -> None:
    @pipeline
    async def p() -> int:
        return await long(3)

    home.run(p)
    lines = str(home.run(p)).splitlines()
    assert re.search(r" cached +- +-", lines[3])
    assert lines[-1] == "1 call: cached; 0 attempts, 0.000 s of work"


def test_the_time_that_the_cache_saved_is_told(home: Any) -> None:
    @step
    def slow(x: int) -> int:
        done = pause()
        return x + done

    @pipeline
    async def p() -> list[int]:
        return await slow.map(range(3))

    first = home.run(p)
    again = home.run(p)
    took = sum(call.duration_seconds for call in first.step_results.values())
    assert again.time_saved_seconds == pytest.approx(took, abs=0.05)
    assert re.search(r"^p succeeded in [\d.]+ s, saved 0\.\d+ s \(run \w+\)$", str(again), re.MULTILINE)
    assert re.search(r"slow\[3\] +cached +- +- +saved 0\.\d+ s", str(again))
    assert first.time_saved_seconds == 0


def pause() -> int:
    threading.Event().wait(0.03)  # the time itself is the subject
    return 0


def test_a_loop_of_many_calls_is_folded_by_step(home: Any) -> None:
    @step(cache=False)
    async def tick(x: int) -> int:
        return x + 1

    @pipeline
    async def loop() -> int:
        x = 0
        for _ in range(150):
            x = await tick(x)
        return await total([x])

    result = home.run(loop)
    lines = str(result).splitlines()
    assert len(lines) == 6
    assert lines[3].startswith("tick (150 calls)  succeeded       150")
    assert len([line for line in result.to_mermaid().splitlines() if '["' in line]) == 2
    assert result.to_text().splitlines()[0] == "+ tick (150 calls)"


def test_more_lines_than_anybody_reads_are_cut_and_failures_stay(home: Any) -> None:
    def one(index: int) -> Any:
        @step(name=f"s{index}", cache=False)
        async def work() -> int:
            if index == 149:
                raise ValueError("last")
            return index

        return work

    @pipeline(failure_mode="continue")
    async def many() -> None:
        for index in range(150):
            one(index).submit()

    text = str(home.run(many))
    assert len(text.splitlines()) == 106
    assert "... and 50 more" in text
    assert re.search(r"^s149 +failed", text, re.MULTILINE)
    assert "150 calls: 1 failed, 149 succeeded" in text


def test_a_step_result_tells_what_it_knows(home: Any) -> None:
    @step(cache=False)
    async def notes(xs: list[int], factor: int) -> int:
        current().log_metadata(rows=3)
        return sum(xs) * factor

    @pipeline
    async def p() -> int:
        return await notes(square.map(range(3)), 5)

    text = str(home.run(p).step_results["notes"])
    assert text.startswith("notes: succeeded\n")
    for line in ("attempts", "from square", "a plain value", "<Artifact notes v1", "metadata rows"):
        assert line in text


@pytest.mark.parametrize(
    ("text", "columns", "at_end", "in_middle"),
    [
        ("short", 9, "short", "short"),
        ("a long sentence", 9, "a long...", "a l...nce"),
        ("日本語の長い名前です", 9, "日本語...", "日...す"),
        ("e\u0301" * 9, 8, "e\u0301" * 5 + "...", "e\u0301" * 3 + "..." + "\u0301e\u0301e\u0301"),
    ],
)
def test_texts_are_cut_by_columns(text: str, columns: int, at_end: str, in_middle: str) -> None:
    assert cut_end(text, columns) == at_end
    assert width(cut_end(text, columns)) <= columns
    assert width(cut_middle(text, columns)) <= columns
    if text.isascii():
        assert cut_middle(text, columns) == in_middle
