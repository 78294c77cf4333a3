"""A run as text: a table, a graph in Mermaid, a graph as plain text, a table in HTML. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from treadle._core.naming import base_of
from treadle._core.replay import CallRecord, RunRecord
from treadle._runtime.failures import described

HEAD = ("call", "status", "attempts", "seconds", "note")
MARKS = {"succeeded": "+", "cached": "=", "failed": "!", "skipped": "-", "cancelled": "x", "interrupted": "~"}


class Line:
    """One row of the table: a call, or all calls of a map."""

    __slots__ = ("attempts", "name", "note", "seconds", "status")

    def __init__(self, name: str, status: str, attempts: int, seconds: float, note: str) -> None:
        self.name, self.status, self.attempts, self.seconds, self.note = name, status, attempts, seconds, note

    def cells(self) -> tuple[str, ...]:
        """The texts of the row."""
        return self.name, self.status, str(self.attempts), _seconds(self.seconds), self.note


def lines(run: RunRecord) -> list[Line]:
    """The rows of a run; a map is folded into one."""
    groups: dict[str, list[CallRecord]] = {}
    for call in run.calls.values():
        groups.setdefault(base_of(call.name), []).append(call)
    groups = {name: groups[name] for name in _producers_first(_sources(run))}
    return [_single(calls[0]) if calls[0].name == name else _folded(name, calls) for name, calls in groups.items()]


def _single(call: CallRecord) -> Line:
    return Line(call.name, call.status, call.attempts, call.duration_s, _note(call))


def _folded(name: str, calls: list[CallRecord]) -> Line:
    counts: dict[str, int] = {}
    for call in calls:
        counts[call.status] = counts.get(call.status, 0) + 1
    status = calls[0].status if len(counts) == 1 else ", ".join(f"{count} {status}" for status, count in counts.items())
    note = next((_note(call) for call in calls if call.status == "failed"), "") or _shared_note(calls, counts)
    attempts = sum(call.attempts for call in calls)
    return Line(f"{name}[{len(calls)}]", status, attempts, sum(call.duration_s for call in calls), note)


def _shared_note(calls: list[CallRecord], counts: dict[str, int]) -> str:
    reused = sum(1 for call in calls if call.reused)
    if reused:
        return "reused" if reused == len(calls) else f"{reused} reused"
    if "cached" in counts:
        return f"saved {_seconds(sum(call.saved_s for call in calls if call.status == 'cached'))} s"
    return _note(calls[0]) if len(counts) == 1 else ""


def _note(call: CallRecord) -> str:
    if call.status == "failed" and call.failure is not None:
        return described(call.failure)
    if call.status == "skipped":
        return f"because {call.upstream} failed" if call.upstream else str(call.skip_reason)
    if call.reused:
        return "reused"
    return f"saved {_seconds(call.saved_s)} s" if call.status == "cached" else ""


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 10 else f"{seconds:.1f}"


def title(run: RunRecord, saved_s: float) -> str:
    """The line above the table."""
    took = max(0.0, (run.ended_at or run.created_at) - run.created_at)
    saved = f", saved {_seconds(saved_s)} s" if saved_s else ""
    return f"{run.pipeline} {run.status} in {_seconds(took)} s{saved} (run {run.run_id})"


def table(run: RunRecord, saved_s: float) -> str:
    """The run as a readable table."""
    rows = [HEAD, *(line.cells() for line in lines(run))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    text = [title(run, saved_s)]
    for index, row in enumerate(rows):
        cells = [
            cell.rjust(width) if column in (2, 3) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
        if index == 0:
            text.append("  ".join("-" * width for width in widths))
    if run.failure is not None:
        text.append(f"error: {described(run.failure)}")
    return "\n".join(text)


def html(run: RunRecord, saved_s: float) -> str:
    """The run as an HTML table, for notebooks; every text is escaped."""
    from html import escape  # a table of 2,000 names that few programs need

    head = "".join(f"<th>{cell}</th>" for cell in HEAD)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line.cells()) + "</tr>" for line in lines(run)
    )
    caption = escape(title(run, saved_s))
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


# -- graphs -------------------------------------------------------------------------------


def edges(run: RunRecord) -> list[tuple[str, str]]:
    """Producer and consumer pairs; maps are folded into one node."""
    found: dict[tuple[str, str], None] = {}
    for call in run.calls.values():
        for given in call.inputs:
            for producer in filter(None, given.producer.split(",")):
                found[_node(producer, run), base_of(call.name)] = None
    return list(found)


def _node(producer: str, run: RunRecord) -> str:
    """The call behind ``call`` or ``call.output``."""
    if producer in run.calls:
        return base_of(producer)
    call, dot, _ = producer.rpartition(".")
    return base_of(call) if dot and call in run.calls else producer


def mermaid(run: RunRecord) -> str:
    """The run as a Mermaid flowchart."""
    names = list(dict.fromkeys(base_of(name) for name in run.calls))
    number = {name: f"n{index}" for index, name in enumerate(names)}
    status = {base_of(call.name): call.status for call in run.calls.values()}
    text = ["flowchart TD"]
    text += [f'    {number[name]}["{_quoted(name)}"]:::{status[name]}' for name in names]
    text += [f"    {number[a]} --> {number[b]}" for a, b in edges(run) if a in number and b in number]
    return "\n".join(text)


def _quoted(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-. []" else f"#{ord(c)};" for c in name)


def graph(run: RunRecord) -> str:
    """The run as plain text: every call below those that it took something from."""
    return "\n".join(_drawn(run))


def _drawn(run: RunRecord) -> Iterator[str]:
    counts: dict[str, int] = {}
    status: dict[str, str] = {}
    for call in run.calls.values():
        name = base_of(call.name)
        counts[name] = counts.get(name, 0) + 1
        status[name] = call.status
    sources = _sources(run)
    level = _levels(sources)
    for name in sorted(counts, key=level.__getitem__):
        several = f"[{counts[name]}]" if counts[name] > 1 else ""
        origin = f"  <- {', '.join(sources[name])}" if sources[name] else ""
        yield f"{'    ' * level[name]}{MARKS.get(status[name], '?')} {name}{several}{origin}"


def _sources(run: RunRecord) -> dict[str, list[str]]:
    """The producers of each call, maps folded, in the order of the log."""
    found: dict[str, list[str]] = {base_of(name): [] for name in run.calls}
    for producer, consumer in edges(run):
        if producer in found and producer != consumer:
            found[consumer].append(producer)
    return found


def _producers_first(sources: dict[str, list[str]]) -> list[str]:
    """The order of the log, but producers come first: a map makes its calls little by little, after its consumers."""
    placed: dict[str, None] = {}
    for name in sources:
        todo = [name]
        while todo:
            before = [producer for producer in sources[todo[-1]] if producer not in placed and producer not in todo]
            if before:
                todo.append(before[0])
            else:
                placed[todo.pop()] = None
    return list(placed)


def _levels(sources: dict[str, list[str]]) -> dict[str, int]:
    """The length of the longest way to each call."""
    level: dict[str, int] = {}
    for name in _producers_first(sources):
        level[name] = max((level.get(producer, -1) + 1 for producer in sources[name]), default=0)
    return level
