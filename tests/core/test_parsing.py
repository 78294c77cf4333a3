"""Text is parsed although another thread is parsing, on interpreters that count the depth of all trees together."""

from __future__ import annotations

import ast
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from treadle._core import parsing

TEXT = "def f(x):\n    return " + "(" * 40 + "x" + " + 1)" * 40 + "\n"


def test_many_threads_parse_at_once() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            trees = list(threads.map(lambda _: ast.dump(parsing.parse(TEXT)), range(200)))
    finally:
        sys.setswitchinterval(before)
    assert len(set(trees)) == 1


def test_a_false_alarm_of_the_interpreter_is_not_the_texts_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    alarms = iter([SystemError("AST constructor recursion depth mismatch")] * (parsing.TRIES - 1))
    real = ast.parse

    def parse(text: str) -> ast.Module:
        if (alarm := next(alarms, None)) is not None:
            raise alarm
        return real(text)

    monkeypatch.setattr(ast, "parse", parse)
    assert ast.dump(parsing.parse("x")) == ast.dump(real("x"))


def test_text_that_is_wrong_is_said_to_be_wrong() -> None:
    with pytest.raises(SyntaxError):
        parsing.parse("def f(:")
