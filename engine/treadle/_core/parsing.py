"""Parses source text; knows how to live with a fault of older interpreters, and nothing of what the text means."""

from __future__ import annotations

import ast

TRIES = 8


def parse(text: str) -> ast.Module:
    """The tree of a module's text.

    Before 3.11.8 and 3.12.1 the interpreter counts the depth of all trees that are being built in one place, so that
    a second thread, or a collection in the middle, makes it raise ``SystemError`` for text that is sound
    (python/cpython#106905). The next try has the interpreter for itself again.

    Raises:
        SyntaxError, ValueError, RecursionError: the text cannot be parsed.

    >>> ast.dump(parse("x").body[0])
    "Expr(value=Name(id='x', ctx=Load()))"
    """
    for _ in range(TRIES - 1):
        try:
            return ast.parse(text)
        except SystemError:
            continue
    return ast.parse(text)
