"""What one piece of code says: a digest of its meaning, the names it reads and the modules it imports.

Knows code objects; knows neither values nor files. The digest is taken from the normalised syntax tree, and
without source from the instructions and constants, line numbers left out. The names always come from the
instructions, because only the compiler knows for sure which of them are global.
"""

from __future__ import annotations

import dis
import hashlib
import weakref
from collections.abc import Iterator
from functools import partial
from types import CodeType
from typing import Any

import msgspec

from treadle._core.syntax import Import, digest_function

_ROOTS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_CELLS = {"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"}
_ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD"}
_SHAPE_FLAGS = 0x3EC  # *args, **kwargs, generator, coroutine: the rest says how it was compiled


class CodeInfo(msgspec.Struct, frozen=True):
    """The meaning of one code object: ``names`` are dotted paths such as ``("helpers", "scale")``."""

    kind: str
    digest: str
    names: tuple[tuple[str, ...], ...]
    imports: tuple[Import, ...]


_known: dict[int, tuple[weakref.ref[CodeType], str | None, CodeInfo]] = {}


def describe_code(code: CodeType, source: str | None) -> CodeInfo:
    """Describe a function's code; ``source`` is the text of its definition, indented or not.

    >>> text = "def double(x):\\n    return x * FACTOR"
    >>> compiled = compile(text, "example", "exec").co_consts[0]
    >>> describe_code(compiled, text).names
    (('FACTOR',),)
    """
    entry = _known.get(id(code))
    # By identity: equal code objects may come from different texts.
    if entry is not None and entry[0]() is code and entry[1] == source:
        return entry[2]
    info = _from_source(code, source) if source is not None else None
    if info is None:
        names, imports = _scan(code)
        info = CodeInfo("bytecode", bytecode_digest(code), names, imports)
    key = id(code)
    _known[key] = (weakref.ref(code, partial(_forget, _known, key)), source, info)
    return info


def _forget(known: dict[int, Any], key: int, gone: weakref.ref[CodeType]) -> None:
    """Called when a code object goes; at the end of the interpreter that is after the names of this module."""
    entry = known.get(key)
    if entry is not None and entry[0] is gone:
        del known[key]


def _from_source(code: CodeType, source: str) -> CodeInfo | None:
    described = digest_function(source, code.co_name)
    if described is None:
        return None
    digest, written = described
    names, imports = _scan(code)
    # A name that only the compiler knows belongs to an annotation or to an instrumented assert;
    # a double underscore may be a mangled one.
    kept = tuple(path for path in names if path[0] in written or "__" in path[0])
    return CodeInfo("code", digest, kept, imports)


def _scan(code: CodeType) -> tuple[tuple[tuple[str, ...], ...], tuple[Import, ...]]:
    names: dict[tuple[str, ...], None] = {}
    imports: dict[Import, None] = {}
    for inner in _nested(code):
        path: tuple[str, ...] = ()
        constants: list[object] = [0, None]
        for item in dis.get_instructions(inner):
            if item.opname in _ATTRIBUTES and path:
                path = (*path, item.argval)
                continue
            if path:
                names[path] = None
            if item.opname in _ROOTS or (item.opname in _CELLS and item.argval in code.co_freevars):
                path = (item.argval,)
                continue
            path = ()
            if item.opname == "IMPORT_NAME":
                imports[_import(constants[-2], item.argval, constants[-1])] = None
            elif item.opcode in dis.hasconst or item.opname == "LOAD_SMALL_INT":
                constants = [constants[-1], item.argval]
    return tuple(names), tuple(imports)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _import(level: object, module: str, names: Any) -> Import:
    return Import(level if isinstance(level, int) else 0, module, names or ())


def bytecode_digest(code: CodeType) -> str:
    """Digest what a code object does: instructions and constants, without lines, positions and docstrings.

    >>> one, two = (compile(text, "example", "eval") for text in ("1 + x", "\\n\\n1 + x"))
    >>> bytecode_digest(one) == bytecode_digest(two)
    True
    """
    shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _SHAPE_FLAGS)
    words = [repr(shape), repr(code.co_varnames), repr(code.co_freevars), repr(code.co_cellvars)]
    # By value, not by index: a docstring that comes or goes moves every other constant.
    for item in dis.get_instructions(code):
        if item.opcode in dis.hasconst:
            words.append(f"{item.opcode} {_constant(item.argval)}")
        elif item.opcode in dis.hasname:
            words.append(f"{item.opcode} {item.arg} {item.argval}")
        elif item.opname != "EXTENDED_ARG":
            words.append(f"{item.opcode} {item.arg}")
    words.append(code.co_exceptiontable.hex())
    return hashlib.sha256("\n".join(words).encode("utf-8", "surrogatepass")).hexdigest()


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return f"code {value.co_name} {bytecode_digest(value)}"
    kind = type(value).__name__
    if kind == "tuple":
        return f"tuple({', '.join(map(_constant, value))})"
    if kind == "frozenset":
        # Sorted: the order of a set depends on the hash seed.
        return f"frozenset({', '.join(sorted(map(_constant, value)))})"
    return f"{kind} {value!r}"
