"""Results, artifacts and lineage as HTML for notebooks: every text is escaped, and nothing of it is a script.

Colours are set on signs and borders only and text keeps the page's own colour, so that it reads on light and on dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from treadle._core.replay import RunRecord
from treadle._runtime.calls.failures import described
from treadle._runtime.views.drawing import COLOURS
from treadle._runtime.views.folding import Child, Line
from treadle._runtime.views.report import HEAD, cells, lines_of, title, total
from treadle._runtime.views.widths import printable

_CELL = "text-align:left;padding:2px 12px 2px 0;vertical-align:top"
_NUMBER = "text-align:right;padding:2px 12px 2px 0;vertical-align:top;font-variant-numeric:tabular-nums"
_NAME = f"{_CELL};font-family:monospace;overflow-wrap:anywhere"
_CAPTION = "caption-side:top;text-align:left;font-weight:bold;padding-bottom:4px;color:inherit"
_STYLES = (_NAME, _CELL, _NUMBER, _NUMBER, f"{_CELL};overflow-wrap:anywhere")
_TABLE = "border-collapse:collapse;background:transparent;color:inherit"


def run_page(run: RunRecord, saved_s: float, children: Sequence[Child] = ()) -> str:
    """A run as a table."""
    lines, hidden = lines_of(run, children)
    head = "".join(f'<th style="{style}">{cell}</th>' for cell, style in zip(HEAD, _STYLES, strict=True))
    rest = [f"... and {hidden} more"] if hidden else []
    rest += ["; ".join(total(run))] if run.calls else []
    rest += [f"error: {described(run.failure)}"] if run.failure is not None else []
    foot = "".join(f'<tr><td colspan="5" style="{_CELL};opacity:0.8">{_safe(line)}</td></tr>' for line in rest)
    body = "".join(map(_row, lines))
    return (
        f'<table style="{_TABLE}"><caption style="{_CAPTION}">{_safe(title(run, saved_s))}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}{foot}</tbody></table>"
    )


def _row(line: Line) -> str:
    texts = [_safe(cell) for cell in cells(line)]
    texts[1] = f"{sign(line.worst)}{texts[1]}"
    columns = (f'<td style="{style}">{text}</td>' for text, style in zip(texts, _STYLES, strict=True))
    return f"<tr>{''.join(columns)}</tr>"


def sign(status: str) -> str:
    """A dot in the colour of a status; the word beside it says the same to who sees no colours."""
    colour = COLOURS[status][1]
    # A mid tone of its own: the border colours are made for white boxes and are too dark for a dark page.
    return f'<span style="color:{_SIGNS.get(status, colour)}">&#9679;</span> '


_SIGNS = {
    "succeeded": "#2da44e", "cached": "#388bfd", "failed": "#f0525b", "skipped": "#8b949e", "cancelled": "#d18616",
    "interrupted": "#d18616", "running": "#c9a227", "pending": "#8b949e",
}  # fmt: skip


def facts_page(caption: str, facts: Iterable[tuple[str, str]], details: str = "", status: str = "") -> str:
    """One thing as a table of what is known of it; ``details`` is folded away below."""
    named = f"{_CELL};font-weight:normal;opacity:0.75"
    rows = "".join(
        f'<tr><th style="{named}">{_safe(name)}</th><td style="{_NAME}">{_safe(text)}</td></tr>' for name, text in facts
    )
    more = f"<details><summary>traceback</summary>{text_page(details)}</details>" if details else ""
    mark = sign(status) if status else ""
    return (
        f'<table style="{_TABLE}"><caption style="{_CAPTION}">{mark}{_safe(caption)}</caption>'
        f"<tbody>{rows}</tbody></table>{more}"
    )


def text_page(text: str) -> str:
    """A text as it is, blanks and line ends kept."""
    lines = "\n".join(map(printable, text.split("\n")))
    return f'<pre style="background:transparent;color:inherit;white-space:pre">{_escape(lines)}</pre>'


def _safe(text: str) -> str:
    return _escape(printable(text))


def _escape(text: str) -> str:
    from html import escape  # a table of 2,000 names that few programs need

    return escape(text)
