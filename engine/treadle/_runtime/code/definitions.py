"""Finds the text of a definition in one source file by comparing what it compiles to with what is loaded.

Knows one text and its syntax tree; reads no file. A definition that has moved within the text is still found;
one that has changed is not.
"""

from __future__ import annotations
import __future__

import ast
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType
from typing import Any

from treadle._core.code import bytecode_digest
from treadle._core.parsing import parse

_ANNOTATIONS = __future__.annotations.compiler_flag
_NO_BEGINNING = frozenset(["", *" \t\r\n\f#)]}"])
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda


class SourceFile:
    """The definitions in a file's text, or in one block of it, by qualified name, and what they compile to.

    Args:
        lines: the lines of the text, with their ends.
        filename: what the compiler is to call it.
        offset: how many lines of the file come before these.
        imported: names that the module imports, which decide how calls through them are compiled; None if ``lines`` is
            the whole file, which says so itself.

    Raises:
        SyntaxError, ValueError, RecursionError: the text cannot be parsed.
    """

    def __init__(self, lines: list[str], filename: str, offset: int = 0, imported: Sequence[str] | None = None) -> None:
        self.lines = lines
        self._filename = filename
        self._offset = offset
        self._definitions: dict[str, list[tuple[_Definition, ast.stmt]]] = {}
        self._compiled: dict[ast.stmt, dict[str, list[CodeType]]] = {}
        text = "".join(lines)
        # The empty lines number the rest as in the file; renumbering the tree took three times as long as parsing it.
        statements = parse("\n" * offset + text).body
        self._imports = _as_imports(_imported_by(statements) if imported is None else imported)
        children = ast.iter_child_nodes if "lambda" in text else _blocks
        for statement in statements:
            for name, node in _definitions(statement, children):
                self._definitions.setdefault(name, []).append((node, statement))

    def function(self, code: CodeType) -> str | None:
        """Text of the definition that compiles to ``code``, wherever in the file it stands now."""
        candidates = [
            (node, compiled)
            for node, statement in self._definitions.get(code.co_qualname, ())
            for compiled in self._codes(statement, code.co_flags & _ANNOTATIONS).get(code.co_qualname, ())
            if _belongs(node, compiled)
        ]
        for node, compiled in candidates:
            if compiled == code:
                return self._text(node)
        digest = bytecode_digest(code) if candidates else ""
        for node, compiled in candidates:
            if bytecode_digest(compiled) == digest:
                return self._text(node)
        return None

    def definition_of_class(self, cls: type) -> str | None:
        """Text of a class definition; of several of that name, the one that holds the methods."""
        nodes = [node for node, _ in self._definitions.get(cls.__qualname__, ()) if isinstance(node, ast.ClassDef)]
        methods = list(own_functions(cls))
        for node in nodes:
            if len(nodes) == 1 or (methods and all(_within(method.__code__, node) for method in methods)):
                verified = all(self.function(method.__code__) is not None for method in methods)
                return self._text(node) if verified else None
        return None

    def _codes(self, statement: ast.stmt, flags: int) -> dict[str, list[CodeType]]:
        found = self._compiled.get(statement)
        if found is None:
            found = dict[str, list[CodeType]]()
            for code in self._compile(statement, flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT):  # await: notebook cells
                found.setdefault(code.co_qualname, []).append(code)
            self._compiled[statement] = found
        return found

    def _compile(self, statement: ast.stmt, flags: int) -> Iterator[CodeType]:
        tree = ast.Module(body=[*self._imports, statement], type_ignores=[])
        try:
            return _nested(compile(tree, self._filename, "exec", flags, dont_inherit=True))
        except (SyntaxError, ValueError, RecursionError):
            return iter(())

    def _text(self, node: _Definition) -> str:
        end = (node.end_lineno or 0) - self._offset
        if not isinstance(node, ast.Lambda):
            return "".join(self.lines[_first_line(node) - 1 - self._offset : end])
        taken = [line.encode() for line in self.lines[node.lineno - 1 - self._offset : end]]
        # From the end: the two may be the same line.
        taken[-1] = taken[-1][: node.end_col_offset]
        taken[0] = taken[0][node.col_offset :]
        return b"".join(taken).decode()


def block_around(lines: list[str], line: int) -> tuple[int, int]:
    """Guess the top-level statement that holds a line, by the lines that begin at the margin.

    Parsing a file of 5,000 lines takes 200 ms; whoever asks compares the outcome with the loaded code anyway.

    Args:
        lines: the whole file.
        line: counted from one.

    Returns:
        The slice of ``lines``.
    """
    start = min(line, len(lines)) - 1
    while start > 0 and not _begins(lines[start]):
        start -= 1
    end = start
    while end < len(lines) and not lines[end].startswith(("def ", "class ", "async def ")) and lines[start][:1] == "@":
        end += 1
    end += 1
    while end < len(lines) and not _begins(lines[end]):
        end += 1
    return start, end


def _begins(line: str) -> bool:
    return line[:1] not in _NO_BEGINNING and not line.startswith(("else", "elif", "except", "finally"))


def imported_names(lines: list[str]) -> list[str]:
    """List what the imports at the margin of a file bind; those that stand in a block are left out.

    >>> imported_names(["import json, os.path\\n", "from math import (pi,\\n", "    tau as t)\\n", "x = 1\\n"])
    ['json', 'os', 'pi', 't']
    """
    text: list[str] = []
    is_open = False
    for line in lines:
        if is_open or line.startswith(("import ", "from ")):
            text.append(line)
            code = line.partition("#")[0].rstrip()
            is_open = code.endswith("\\") or ((is_open or "(" in code) and ")" not in code)
    try:
        return _imported_by(parse("".join(text)).body)
    except (SyntaxError, ValueError):  # a text inside of a string looked like an import
        return []


def _imported_by(statements: list[ast.stmt]) -> list[str]:
    """List the names that imports of the module's own scope bind."""
    names: dict[str, None] = {}
    todo: list[ast.AST] = [*reversed(statements)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0]: None for alias in node.names if alias.name != "*"}
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            todo += reversed([*_blocks(node)])
    return [*names]


def _as_imports(names: Sequence[str]) -> list[ast.stmt]:
    """Make a statement that imports names: Python compiles ``json.dumps(x)`` in another way if ``json`` is imported."""
    place: dict[str, Any] = {"lineno": 1, "col_offset": 0, "end_lineno": 1, "end_col_offset": 0}
    return [ast.Import(names=[ast.alias(name=name, **place) for name in names], **place)] if names else []


def _blocks(node: ast.AST) -> Iterator[ast.AST]:
    """Give the statements of a node's blocks, and no expressions, which are most of a tree."""
    for name in ("body", "handlers", "orelse", "finalbody", "cases"):
        yield from getattr(node, name, ())


def _definitions(
    statement: ast.stmt, children: Callable[[ast.AST], Iterator[ast.AST]]
) -> Iterator[tuple[str, _Definition]]:
    todo: list[tuple[ast.AST, str]] = [(statement, "")]
    while todo:
        node, prefix = todo.pop()
        inside, inner = prefix, set[int]()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            name = prefix + ("<lambda>" if isinstance(node, ast.Lambda) else node.name)
            yield name, node
            inside = f"{name}." if isinstance(node, ast.ClassDef) else f"{name}.<locals>."
            inner = {id(node.body)} if isinstance(node, ast.Lambda) else set(map(id, node.body))
        # Decorators, defaults and bases are evaluated outside of what they belong to.
        todo += [(child, inside if id(child) in inner else prefix) for child in children(node)]


def _belongs(node: _Definition, code: CodeType) -> bool:
    if not isinstance(node, ast.Lambda):
        return not isinstance(node, ast.ClassDef) and _first_line(node) == code.co_firstlineno
    positions = [
        (line, column)
        for line, _, column, _ in code.co_positions()
        if line is not None and column is not None and (line, column) != (code.co_firstlineno, 0)
    ]
    if not positions:
        return _returns_a_constant(node, code)
    start, end = (node.body.lineno, node.body.col_offset), (node.body.end_lineno or 0, node.body.end_col_offset or 0)
    return min(positions) == start and max(positions) <= end


def _returns_a_constant(node: ast.Lambda, code: CodeType) -> bool:
    # Python 3.12 notes no column for such a lambda; it needs nothing around it, so it can be compiled by itself.
    alone = next(_nested(compile(ast.Expression(node), "<lambda>", "eval", dont_inherit=True)))
    return alone.co_firstlineno == code.co_firstlineno and bytecode_digest(alone) == bytecode_digest(code)


def _first_line(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _within(code: CodeType, node: ast.ClassDef) -> bool:
    return node.lineno <= code.co_firstlineno <= (node.end_lineno or 0)


def _nested(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _nested(constant)


def own_functions(cls: type) -> Iterator[FunctionType]:
    """List the functions that the body of a class defines."""
    values: list[Any] = list(vars(cls).values())
    for value in values:
        inner = value.__func__ if type(value) in (staticmethod, classmethod) else value
        if isinstance(inner, FunctionType) and inner.__code__.co_qualname == f"{cls.__qualname__}.{inner.__name__}":
            yield inner
