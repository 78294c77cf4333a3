"""What a piece of source text means: normalised syntax trees and their digests.

Knows text and syntax trees, nothing of code objects, values or files. Comments, docstrings, positions,
annotations of functions and a function's own decorator lines make no difference here.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from treadle._core.parsing import parse

_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class Import(msgspec.Struct, frozen=True):
    """One import statement inside a function: ``from ..a import b, c`` is ``Import(2, "a", ("b", "c"))``."""

    level: int
    module: str
    names: tuple[str, ...]


def digest_function(source: str, name: str) -> tuple[str, frozenset[str]] | None:
    """Digest the definition of the function ``name``, and list every plain name written in it.

    Args:
        source: the text of the definition, indented or not; of a lambda, the expression.
        name: the function's own name, ``<lambda>`` for a lambda.

    Returns:
        None if the text is not such a definition.

    >>> one = digest_function("def f(x: int):\\n    'doc'\\n    return x + N", "f")
    >>> one == digest_function("def f(x):  # comment\\n    return x + N", "f")
    True
    """
    try:
        node = _parse_function(source, name)
        if node is None:
            return None
        _normalise(node)
        names = frozenset(item.id for item in ast.walk(node) if isinstance(item, ast.Name))
        return _digest_tree(node), names
    except (SyntaxError, ValueError, RecursionError):
        return None


def _parse_function(source: str, name: str) -> _Function | None:
    if name == "<lambda>":
        statement = parse(f"({source}\n)").body[0]
        return statement.value if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Lambda) else None
    found = _parse_definition(source)
    return found if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef) and found.name == name else None


def _parse_definition(source: str) -> ast.stmt | None:
    if source[:1] in " \t":
        # Not dedented: that would also change the text inside multi-line strings.
        block = parse("if 1:\n" + source).body[0]
        return block.body[0] if isinstance(block, ast.If) else None
    body = parse(source).body
    return body[0] if body else None


@functools.lru_cache(maxsize=512)
def digest_class_body(source: str) -> str | None:
    """Digest the statements of a class body that are neither methods nor inner classes nor a docstring.

    Annotations stay: in a class body they declare fields, which dataclasses and models act upon.

    >>> digest_class_body("class A:\\n    'doc'\\n    x: int = 3") == digest_class_body("class A:\\n    x: int=3")
    True
    """
    try:
        node = _parse_definition(source)
        if not isinstance(node, ast.ClassDef):
            return None
        _normalise(node)
        defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        kept = [item for item in node.body if not isinstance(item, defined)]
        return _digest_tree(ast.Module(body=kept, type_ignores=[]))
    except (SyntaxError, ValueError, RecursionError):
        return None


@functools.lru_cache(maxsize=64)
def digest_module(source: str) -> tuple[str, tuple[Import, ...]] | None:
    """Digest a whole module's text, and list every import in it."""
    try:
        tree = parse(source)
        imports = tuple(_imports(tree))
        _normalise(tree)
        return _digest_tree(tree), imports
    except (SyntaxError, ValueError, RecursionError):
        return None


def _imports(tree: ast.Module) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(0, alias.name, ())
        elif isinstance(node, ast.ImportFrom):
            yield Import(node.level, node.module or "", tuple(alias.name for alias in node.names))


def _normalise(root: ast.AST) -> None:
    """Strip in place all that does not change what the code does."""
    if isinstance(root, ast.FunctionDef | ast.AsyncFunctionDef):
        root.decorator_list = []
    for node in ast.walk(root):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
            setattr(node, "type_params", [])  # noqa: B010  # a field from Python 3.12 on
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.Constant):
            node.kind = None
        _normalise_blocks(node)


def _normalise_blocks(node: ast.AST) -> None:
    for field in ("body", "orelse", "finalbody"):
        block: Any = getattr(node, field, None)
        if type(block) is not list:
            continue
        statements: list[ast.stmt] = block
        if field == "body" and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            statements = _without_docstring(statements)
        if not isinstance(node, ast.ClassDef):
            statements = [kept for item in statements for kept in _without_annotation(item)]
        setattr(node, field, statements or ([ast.Pass()] if block else []))


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            return rest
        case _:
            return body


def _without_annotation(item: ast.stmt) -> list[ast.stmt]:
    if not isinstance(item, ast.AnnAssign):
        return [item]
    if item.value is None:
        return []
    return [ast.Assign(targets=[item.target], value=item.value, type_comment=None)]


def _digest_tree(node: ast.AST) -> str:
    text = ast.dump(node, annotate_fields=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def imported_modules(statements: Iterable[Import], package: str) -> Iterator[str]:
    """List the full names of all modules that import statements may load, parents included."""
    for statement in statements:
        base = statement.module
        if statement.level:
            parents = package.split(".")[: len(package.split(".")) - statement.level + 1]
            base = ".".join([*parents, base] if base else parents)
        words = base.split(".")
        yield from (".".join(words[: end + 1]) for end in range(len(words)))
        yield from (f"{base}.{name}" for name in statement.names if name != "*")
