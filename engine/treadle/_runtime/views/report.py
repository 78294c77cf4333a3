"""A run as a table of text, for terminals and logs; what its lines say is in ``folding``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from treadle._core.replay import RunRecord
from treadle._runtime.calls.failures import described
from treadle._runtime.views.folding import MOST_LINES, Child, Folded, Line, child_lines, levels, seconds
from treadle._runtime.views.widths import cut_end, cut_middle, left, printable, right, width

HEAD = ("call", "status", "attempts", "seconds", "note")
GAP = 2
WIDTH = 120
"""Columns of a table that is not printed on a terminal."""
LEAST_WIDTH = 60
STATUS_WIDTH = 44
PIPELINE_WIDTH = 60
MARKS = {"succeeded": "+", "cached": "=", "failed": "!", "skipped": "-", "cancelled": "x", "interrupted": "~"}


def lines_of(run: RunRecord, children: Sequence[Child] = ()) -> tuple[list[Line], int]:
    """The lines of a run's table, and how many are left out: if there are too many, the last that went well."""
    found = list(Folded(run).lines.values())
    well = [line for line in found if line.worst in ("succeeded", "cached")]
    spare = set(map(id, well[max(0, MOST_LINES - (len(found) - len(well))) :])) if len(found) > MOST_LINES else set()
    return [*(line for line in found if id(line) not in spare), *child_lines(children)], len(spare)


def cells(line: Line) -> tuple[str, ...]:
    """The texts of one line; what was not performed has no times."""
    performed = line.attempts > 0
    return (
        printable(line.label), line.status, str(line.attempts) if performed else "-",
        seconds(line.seconds) if performed else "-", printable(line.note),
    )  # fmt: skip


def title(run: RunRecord, saved_s: float) -> str:
    """The line above the table."""
    took = max(0.0, (run.ended_at or run.created_at) - run.created_at)
    saved = f", saved {seconds(saved_s)} s" if saved_s else ""
    name = cut_middle(printable(run.pipeline), PIPELINE_WIDTH)
    return f"{name} {run.status} in {seconds(took)} s{saved} (run {run.run_id})"


def total(run: RunRecord) -> list[str]:
    """What stands below the table: how many calls there were, and what they took."""
    counts: dict[str, int] = {}
    for call in run.calls.values():
        counts[call.status] = counts.get(call.status, 0) + 1
    every = Line("", counts, 0, 0.0, "")
    attempts = sum(call.attempts for call in run.calls.values())
    worked = sum(call.duration_s for call in run.calls.values())
    status = f"all {every.status}" if len(counts) == 1 and every.count > 1 else every.status
    words = [f"{every.count} call{'s' if every.count != 1 else ''}: {status}"]
    words.append(f"{attempts} attempt{'s' if attempts != 1 else ''}, {seconds(worked)} s of work")
    for word, count in (("reused", run.reused), ("no longer asked for", run.unclaimed)):
        words += [f"{count} {word}"] if count else []
    return words


def table(run: RunRecord, saved_s: float, children: Sequence[Child] = (), columns: int | None = None) -> str:
    """The run as a readable table, ``columns`` wide at the most; by default as wide as the terminal."""
    columns = columns or terminal_width()
    lines, hidden = lines_of(run, children)
    text = [title(run, saved_s)]
    if lines:
        rows = _fitted([HEAD, *map(cells, lines)], columns)
        widths = [max(width(row[column]) for row in rows) for column in range(len(HEAD))]
        rows.insert(1, tuple("-" * one for one in widths))
        text += [_joined(row, widths) for row in rows]
        text += [f"... and {hidden} more"] if hidden else []
    if run.calls:
        words = "; ".join(total(run))
        text.append(words if len(words) <= max(columns, LEAST_WIDTH) else ";\n  ".join(total(run)))
    if run.failure is not None:
        text.append(cut_end(f"error: {printable(described(run.failure))}", max(columns, WIDTH)))
    return "\n".join(text)


def _joined(row: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [
        right(cell, one) if column in (2, 3) else left(cell, one)
        for column, (cell, one) in enumerate(zip(row, widths, strict=True))
    ]
    return (" " * GAP).join(aligned).rstrip()


def _fitted(rows: Sequence[tuple[str, ...]], columns: int) -> list[tuple[str, ...]]:
    """Names cut in their middle and notes at their end, so that a line fits; numbers and statuses stay."""
    natural = [max(width(row[column]) for row in rows) for column in range(len(HEAD))]
    natural[1] = min(natural[1], STATUS_WIDTH)
    room = max(columns, LEAST_WIDTH) - sum(natural[1:4]) - GAP * (len(HEAD) - 1)
    name = min(natural[0], max(room - natural[4], room // 2, 12))
    note = max(room - name, 12)
    return [(cut_middle(a, name), cut_end(b, natural[1]), c, d, cut_end(e, note)) for a, b, c, d, e in rows]


def terminal_width() -> int:
    """How wide a table may be: as the terminal, or as ``COLUMNS`` says, or 120 columns where neither is."""
    if not os.environ.get("COLUMNS", "").isdecimal() and not _is_terminal():
        return WIDTH
    import shutil  # it brings five compression libraries

    return shutil.get_terminal_size((WIDTH, 24)).columns


def _is_terminal() -> bool:
    try:
        return sys.__stdout__ is not None and sys.__stdout__.isatty()
    except ValueError:  # it was closed
        return False


def graph(folded: Folded) -> str:
    """The run as plain text: every call below those that it took something from."""
    level = levels(folded.sources)
    text: list[str] = []
    for name in sorted(folded.lines, key=level.__getitem__):
        line = folded.lines[name]
        origin = f"  <- {', '.join(map(printable, folded.sources[name]))}" if folded.sources[name] else ""
        text.append(f"{'    ' * min(level[name], 20)}{MARKS.get(line.worst, '?')} {printable(line.label)}{origin}")
    return "\n".join(text)
