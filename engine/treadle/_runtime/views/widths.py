"""How wide a text is on a terminal, and how it is made to fit; it knows nothing of what is printed."""

from __future__ import annotations

import unicodedata

DOTS = "..."
"""Not the sign of one column: a terminal that is told to be ASCII would raise while it is printed."""
_NO_WIDTH = frozenset({"Mn", "Me", "Cf"})


def printable(text: str) -> str:
    r"""The text on one line, with control characters spelled out: names and messages must not steer a terminal.

    >>> printable("a\nb\x1b[31m")
    'a\\nb\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(map(_spelled, text))


def _spelled(char: str) -> str:
    if char.isprintable() or unicodedata.category(char) == "Zs" or char == "\u200d":
        return char
    return char.encode("unicode_escape").decode("ascii")


def width(text: str) -> int:
    """Columns that a text takes: wide characters two, combining ones none.

    >>> width("abc"), width("日本"), width("e\u0301")
    (3, 4, 1)
    """
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(char: str) -> int:
    if unicodedata.east_asian_width(char) in "WF":
        return 2
    return 0 if unicodedata.category(char) in _NO_WIDTH else 1


def cut_end(text: str, columns: int) -> str:
    """As much of the beginning as fits.

    >>> cut_end("a long sentence", 9)
    'a long...'
    """
    if width(text) <= columns:
        return text
    return _first(text, columns - len(DOTS)) + DOTS


def cut_middle(text: str, columns: int) -> str:
    """Beginning and end of a text that does not fit, for names: their ends tell them apart.

    >>> cut_middle("a_very_long_name[1000]", 15)
    'a_very...[1000]'
    """
    if width(text) <= columns:
        return text
    end = (columns - len(DOTS)) // 2
    tail = _first(text[::-1], end)[::-1]
    return _first(text, columns - len(DOTS) - width(tail)) + DOTS + tail


def _first(text: str, columns: int) -> str:
    taken = 0
    for index, char in enumerate(text):
        taken += _width(char)
        if taken > columns:
            return text[:index]
    return text


def left(text: str, columns: int) -> str:
    """Filled up with blanks on the right."""
    return text + " " * (columns - width(text))


def right(text: str, columns: int) -> str:
    """Filled up with blanks on the left."""
    return " " * (columns - width(text)) + text
