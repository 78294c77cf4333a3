"""The identity of a step and the fingerprint of its code: one manifest is hashed, and explained.

Knows what counts and under which label; how code is read and followed is in `closure`.

What a fingerprint does not see: calls through ``self.``, through strings and registries, modules by way of a
local alias, non-Python code. Globals count by the value that they have when the fingerprint is taken, also
those that the step itself changes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType, ModuleType
from typing import Any

import msgspec

from treadle._core.closure import Closure
from treadle._core.holding import cells, defaults, function_name, is_step, labelled_state, module_name, wrapped_by
from treadle._core.plain import plain_types
from treadle._core.reading import ModuleText, SourceReader
from treadle._core.witness import Witness

__all__ = [
    "Fingerprint",
    "ModuleText",
    "SourceReader",
    "StepIdentity",
    "Witness",
    "code_digest",
    "explain",
    "fingerprint",
    "renamed",
    "step_identity",
]

_MAIN = ("__main__", "__mp_main__")
_Digest = Callable[[object], bytes]


class Fingerprint(msgspec.Struct, frozen=True):
    """The identity of a piece of code.

    Attributes:
        digest: 32 bytes; equal for equal code, also in another process.
        parts: what it was made of, as sorted (label, text), for instance ``("code of app.clean", "#9f3c...")``.
    """

    digest: bytes
    parts: tuple[tuple[str, str], ...]


class StepIdentity(msgspec.Struct, frozen=True):
    """What tells one step from another, code aside.

    Attributes:
        digest: 32 bytes over all that can be hashed.
        unhashable: names of the closure variables and defaults that cannot; the step is not to be cached.
        parts: what it was made of, as sorted (label, text).
    """

    digest: bytes
    unhashable: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]


def fingerprint(
    fn: object,
    reader: SourceReader,
    digest_value: _Digest,
    depends_on: Sequence[object] = (),
    witness: Witness | None = None,
) -> Fingerprint | None:
    """Take the fingerprint of a function and of all project code that it names, transitively.

    Closure variables and defaults of ``fn`` itself are not in it (they are in its identity), but the functions
    and classes that they hold are.

    Args:
        fn: the function; a step or pipeline counts by its function.
        reader: where source text comes from.
        digest_value: digest of a plain value, for the globals that the code names.
        depends_on: more functions, classes, modules or values that count.
        witness: takes down what is read, so that the fingerprint can be used again while that stays as it is.

    Returns:
        None if there is no code to read at all, as for a function written in C.
    """
    root = _plain_function(fn)
    closure = Closure(reader, digest_value, _home(root), witness)
    if isinstance(root, FunctionType) and closure.is_project(module_name(root)):
        _root(closure, root)
    else:
        closure.parts.add(("subject", closure.refer(root)))
    closure.drain()
    if not closure.has_code:
        return None
    for index, item in enumerate(depends_on):
        _depend(closure, index, item)
    closure.drain()
    closure.parts.add(("python", f"{sys.version_info.major}.{sys.version_info.minor}"))
    parts = tuple(sorted(closure.parts))
    return Fingerprint(_digest_parts("treadle code 1", parts), parts)


def _root(closure: Closure, fn: FunctionType) -> None:
    closure.follow(fn)
    for label, value in labelled_state(fn):
        if value is not fn and plain_types(value) is None:
            closure.parts.add((label, closure.refer(value)))
    for inner in wrapped_by(fn):
        closure.refer(inner)


def _depend(closure: Closure, index: int, item: object) -> None:
    inner = _plain_function(item)
    if isinstance(inner, ModuleType):
        closure.whole_module(inner)
    elif isinstance(inner, FunctionType) and not closure.is_project(module_name(inner)):
        closure.describe(inner)
    else:
        closure.parts.add((f"depends_on[{index}]", closure.refer(inner)))


def step_identity(
    fn: FunctionType,
    *,
    name: str,
    outputs: Sequence[str],
    digest_value: _Digest,
    reader: SourceReader,
    witness: Witness | None = None,
) -> StepIdentity:
    """Take the identity of a step: where it is written, what it is called, and what it closes over.

    Args:
        fn: the step's plain function.
        name: the step's name.
        outputs: the names of its outputs, in order.
        digest_value: digest of any value; an `Exception` means that it has none.
        reader: where source text comes from, for functions in closure variables and defaults.
        witness: takes down what is read, so that the identity can be used again while that stays as it is.
    """
    witness = witness or Witness()
    witness.function(fn)
    parts = {("module", _module_identity(fn)), ("qualified name", fn.__qualname__), *_named(name, outputs)}
    unhashable: list[str] = []
    strict = reader.is_project(module_name(fn))  # a library's wrapper may hold locks and clients of its own
    for kind, state in (("closure variable", cells(fn)), ("default", defaults(fn))):
        for variable, value in state.items():
            text: str | None = "itself"
            if any(value is inner for inner in wrapped_by(fn)) and isinstance(value, FunctionType):
                # Not by its code: this is the step's own function below a decorator.
                inner = step_identity(
                    value, name="", outputs=(), digest_value=digest_value, reader=reader, witness=witness
                )
                text = f"function {function_name(value)} #{inner.digest.hex()}"
                unhashable += inner.unhashable
            elif _plain_function(value) is not fn:
                text = _state(value, Closure(reader, digest_value, _home(fn), witness), fn, strict)
            if text is None:
                unhashable.append(variable)
            else:
                parts.add((f"{kind} {variable}", text))
    return _identity_of(parts, tuple(unhashable))


def renamed(identity: StepIdentity, *, name: str, outputs: Sequence[str]) -> StepIdentity:
    """The identity of another step of the same function, under a name and outputs of its own."""
    kept = [part for part in identity.parts if part[0] not in ("name", "outputs")]
    return _identity_of([*kept, *_named(name, outputs)], identity.unhashable)


def _named(name: str, outputs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return ("name", name), ("outputs", repr(tuple(outputs)))


def _identity_of(parts: Iterable[tuple[str, str]], unhashable: tuple[str, ...]) -> StepIdentity:
    ordered = tuple(sorted(parts))
    return StepIdentity(_digest_parts("treadle step 1", ordered), unhashable, ordered)


def _state(value: object, closure: Closure, fn: FunctionType, strict: bool) -> str | None:
    """Say what a closure variable or default holds; None if it cannot be said."""
    closure.seed(fn)
    closure.strict = strict
    line = closure.refer(value)
    closure.strict = False
    if closure.unhashable:
        return None
    if plain_types(value) is not None:
        return line
    closure.drain()
    parts = tuple(sorted(closure.parts))
    return f"{line} #{_digest_parts('treadle state 1', parts).hex()}" if parts else line


def code_digest(value: object, reader: SourceReader, digest_value: _Digest) -> bytes | None:
    """Digest a function, class or step that is used as a value: its code, and all that it closes over.

    Two functions that one factory made have one fingerprint, but are different arguments.

    Args:
        value: the function, class, step, partial or bound method; what is written in C counts by its name.
        reader: where source text comes from.
        digest_value: digest of any value; an `Exception` means that it has none.

    Returns:
        None if it holds something that cannot be hashed.
    """
    # By name if it is a library's: a pandas Series holds functions of pandas, and to walk through those takes minutes.
    home = _home(_plain_function(value))
    closure = Closure(reader, digest_value, home=home if reader.is_project(home) else "")
    closure.strict = True
    line = closure.refer(value)
    closure.strict = False
    closure.drain()
    if closure.unhashable:
        return None
    return _digest_parts("treadle value 1", [("value", line), *sorted(closure.parts)])


def _plain_function(value: Any) -> object:
    return value.fn if is_step(value) else value


def _home(root: object) -> str:
    # A wrapper made by a library's decorator carries the name of the module of the function that it wraps.
    return str(getattr(root, "__module__", None) or "").partition(".")[0]


def _module_identity(fn: FunctionType) -> str:
    module: Any = fn.__module__
    if module not in _MAIN:
        return module if isinstance(module, str) else "?"  # made by ``exec`` in a namespace that has no ``__name__``
    namespace = fn.__globals__
    return str(namespace.get("__file__") or namespace.get("__vsc_ipynb_file__") or "__main__")


def _digest_parts(kind: str, parts: Iterable[tuple[str, str]]) -> bytes:
    digest = hashlib.sha256(kind.encode())
    for pair in parts:
        for word in pair:
            encoded = word.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "big"))
            digest.update(encoded)
    return digest.digest()


def explain(old: Fingerprint | StepIdentity, new: Fingerprint | StepIdentity) -> tuple[str, ...]:
    """Say in words how two fingerprints, or two identities, differ.

    >>> old = Fingerprint(b"1", (("code of app.clean", "#aa"), ("python", "3.11")))
    >>> new = Fingerprint(b"2", (("code of app.clean", "#bb"), ("python", "3.12")))
    >>> explain(old, new)
    ('code of app.clean changed', 'python changed from 3.11 to 3.12')
    """
    before, after = _by_label(old.parts), _by_label(new.parts)
    sentences: list[str] = []
    consequences: list[str] = []
    for label in sorted({*before, *after}):
        was, now = before.get(label), after.get(label)
        if was == now:
            continue
        if was is None or now is None:
            sentences.append(f"{label} is {'new' if was is None else 'gone'}")
        elif _readable(was) == _readable(now):
            # The name still means the same function or class, and that one's own part says what changed.
            consequence = now.startswith(("function ", "step function ", "method ", "partial ", "property "))
            (consequences if consequence else sentences).append(f"{label} changed")
        else:
            sentences.append(f"{label} changed from {_readable(was)} to {_readable(now)}")
    return tuple(sentences or consequences)


def _by_label(parts: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for label, text in parts:
        found[label] = f"{found[label]}, {text}" if label in found else text
    return found


def _readable(text: str) -> str:
    """Leave out the digests, which say nothing to a reader."""
    return " ".join(word for word in text.split(" ") if not word.startswith("#"))
