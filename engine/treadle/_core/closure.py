"""The transitive closure of a function: everything of the project that it names, as labelled parts.

Knows functions, classes, modules and values that are in memory; reads source only through a `SourceReader`.

How it works: `refer` turns any object into one line of text that says what it is ("function helpers.scale",
"value #3f9a...", "module numpy") and puts the project's functions and classes into a queue. `drain` empties the
queue: it adds the code of each as a part, looks up the names it reads, and refers to what they are bound to
now. The parts are a sorted set, so the order of the walk has no influence, and cycles end at what is known.
"""

from __future__ import annotations

import builtins
import functools
from collections import deque
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, GenericAlias, MethodType, ModuleType, UnionType
from typing import Any, cast, get_args, get_origin

from treadle._core.code import CodeInfo, describe_code
from treadle._core.holding import (
    cells,
    class_attributes,
    code_within,
    function_name,
    is_step,
    labelled_state,
    module_name,
    short_digest,
    type_name,
    wrapped_by,
)
from treadle._core.plain import is_container, members, plain_types
from treadle._core.reading import ModuleText, SourceReader
from treadle._core.syntax import Import, digest_class_body, digest_module, imported_modules
from treadle._core.witness import Witness, held_code

_MODULE_ATTRIBUTES = frozenset(ModuleType("").__dict__) | {"__file__", "__path__", "__cached__", "__builtins__"}
_MAX_MEMBERS = 10_000


class Closure:
    """Collects the parts of one fingerprint; used once, by one thread.

    Args:
        reader: where source text comes from.
        digest_value: digest of a plain value; any `Exception` means that it has none.
        home: a top-level package that belongs to the project wherever it is installed: the step's own.
        witness: takes down what is read.

    Attributes:
        parts: what was found, as (label, text).
        strict: while set, an object is counted by its content or in ``unhashable``, never by its type alone.
        has_code: whether any code was read at all.
    """

    def __init__(
        self,
        reader: SourceReader,
        digest_value: Callable[[object], bytes],
        home: str = "",
        witness: Witness | None = None,
    ) -> None:
        self.reader = reader
        self.witness = witness or Witness()
        self.digest_value = digest_value
        self.home = home
        self.parts: set[tuple[str, str]] = set()
        self.strict = False
        self.unhashable = 0
        self.has_code = False
        self._lines: dict[int, tuple[object, str]] = {}  # holds the object too: its id stays its own
        self._queue: deque[FunctionType | type | ModuleType] = deque()
        self._modules: set[str] = set()

    # --- one object, one line of text -------------------------------------------------------------------

    def refer(self, value: object) -> str:
        """Say in one line what ``value`` is, and queue the project's code that it stands for."""
        known = self._lines.get(id(value))
        if known is not None:
            return known[1]
        self._lines[id(value)] = (value, f"recursive {type_name(type(value))}")
        try:
            text = self._describe(value)
        except RecursionError:
            self.unhashable += self.strict
            self.witness.is_complete = False
            text = f"instance of {type_name(type(value))}"
        self._lines[id(value)] = (value, text)
        return text

    def is_project(self, name: str) -> bool:
        """Whether a module's code counts, not only its name."""
        return name.partition(".")[0] == self.home or self.reader.is_project(name)

    def _describe(self, value: Any) -> str:
        kind = cast("type[object]", type(value))  # not isinstance: a proxy lies about its class, or fails
        if issubclass(kind, FunctionType):
            return self._function(value)
        if issubclass(kind, type):
            return self._class(value)
        if issubclass(kind, ModuleType):
            return f"module {value.__name__}"
        if is_step(value):
            self.witness.step(value)
            return f"step {self.refer(value.fn)}"
        if issubclass(kind, functools.partial):
            return self._group("partial", [value.func, value.args, value.keywords])
        if kind in (staticmethod, classmethod):
            return self._group(kind.__name__, [value.__func__])
        if kind is MethodType:
            return self._group("method", [value.__func__, value.__self__])
        if kind is BuiltinFunctionType:
            return self._builtin(value)
        if kind is property:
            return self._group("property", [value.fget, value.fset, value.fdel])
        return self._value(value)

    def _function(self, fn: FunctionType) -> str:
        name = function_name(fn)
        if not self.is_project(module_name(fn)):
            self.witness.foreign_function(fn)
            return self._group(f"function {name}", code_within(fn))
        info = self.describe(fn)
        self._queue.append(fn)
        state = [info.digest]
        for label, item in (*labelled_state(fn), *((f"wrapped by {name}", item) for item in wrapped_by(fn))):
            line = self.refer(item)
            self.parts.add((label, line))
            state.append(line)
        return f"function {name} {short_digest(state)}"

    def _class(self, cls: type) -> str:
        if self.is_project(str(cls.__module__)):
            self._queue.append(cls)
        return f"class {type_name(cls)}"

    def _builtin(self, value: BuiltinFunctionType) -> str:
        owner = value.__self__
        if owner is None or isinstance(owner, ModuleType):
            return f"function {value.__module__}.{value.__qualname__}"
        return self._group(f"method {value.__qualname__}", [owner])

    def _value(self, value: object) -> str:
        carriers = plain_types(value)
        if carriers is not None:
            for carrier in carriers:
                self.refer(carrier)
            return self._digest(value)
        if is_container(value):
            return self._container(value)
        if type(value).__module__ == "typing" or type(value) in (GenericAlias, UnionType):
            return self._type_form(value)
        if not self.strict:
            return self._instance(value)
        self.refer(type(value))
        return self._digest(value)

    def _digest(self, value: object) -> str:
        try:
            digest = self.digest_value(value)
            self.witness.content(value, self.digest_value, digest)
            return f"value #{digest.hex()}"
        except Exception:
            self.unhashable += self.strict
            # What has no digest stays without one, as far as its step is concerned; a global may get one.
            self.witness.is_complete &= self.strict
            return f"instance of {type_name(type(value))}"

    def _type_form(self, value: object) -> str:
        named = getattr(value, "__name__", "")
        return self._group(f"type {type_name(type(value))} {named}", [get_origin(value), *get_args(value)])

    def _container(self, value: object) -> str:
        items = members(value)
        self.witness.container(value)
        if len(items) > _MAX_MEMBERS and not self.strict:
            return f"instance of {type_name(type(value))}"
        lines = [self.refer(item) for item in items]
        if type(value) in (set, frozenset):
            lines.sort()
        return f"{type(value).__name__} {len(lines)} {short_digest(lines)}"

    def _instance(self, value: object) -> str:
        kind = type(value)
        self.refer(kind)
        self.witness.instance(value)
        return self._group(f"instance of {type_name(kind)}", held_code(value))

    def _group(self, what: str, items: list[Any]) -> str:
        lines = [self.refer(item) for item in items]
        return f"{what} {short_digest(lines)}" if lines else what

    def seed(self, fn: FunctionType) -> None:
        """Take ``fn`` as known, for the parts that lead back to it."""
        self._lines[id(fn)] = (fn, "itself")

    # --- the code behind the queue ----------------------------------------------------------------------

    def describe(self, fn: FunctionType) -> CodeInfo:
        """Read the code of ``fn`` and add it as a part."""
        info = describe_code(fn.__code__, self.reader.source(fn))
        self.witness.function(fn)
        self.parts.add((f"{info.kind} of {function_name(fn)}", f"#{info.digest}"))
        self.has_code = True
        return info

    def drain(self) -> None:
        """Follow the names of everything that is queued until nothing is new."""
        while self._queue:
            item = self._queue.popleft()
            if isinstance(item, FunctionType):
                self.follow(item)
            elif isinstance(item, ModuleType):
                self._module_members(item)
            else:
                self._class_members(item)

    def follow(self, fn: FunctionType) -> None:
        """Refer to everything that the code of ``fn`` names."""
        info = self.describe(fn)
        own_cells = cells(fn)
        for path in info.names:
            if path[0] in own_cells:
                self._path(own_cells[path[0]], path[1:])
                continue
            self.witness.name(fn.__globals__, path[0])
            if path[0] in fn.__globals__:
                if path[0] not in _MODULE_ATTRIBUTES:
                    self._bind(f"{module_name(fn)}.{path[0]}", fn.__globals__[path[0]], path[1:])
            elif path[0] not in vars(builtins):
                self.parts.add((f"global {module_name(fn)}.{path[0]}", "undefined"))
        for item in info.imports:
            self._import(item, fn.__globals__.get("__package__") or "")

    def _bind(self, name: str, value: object, rest: tuple[str, ...]) -> None:
        self.parts.add((f"global {name}", self.refer(value)))
        self._path(value, rest)

    def _path(self, value: Any, rest: tuple[str, ...]) -> None:
        """Go on from a module to the attribute of it that the code reads."""
        if not rest or rest[0] in _MODULE_ATTRIBUTES or not issubclass(type(value), ModuleType):
            return
        if not self.is_project(value.__name__):
            return
        name = f"{value.__name__}.{rest[0]}"
        namespace: dict[str, object] = vars(value)
        self.witness.name(namespace, rest[0])
        if rest[0] in namespace:
            self._bind(name, namespace[rest[0]], rest[1:])
        else:
            self.parts.add((f"global {name}", "undefined"))

    def _class_members(self, cls: type) -> None:
        name = type_name(cls)
        self.witness.cls(cls)
        bases = [self.refer(base) for base in (*cls.__bases__, type(cls)) if base not in (object, type)]
        self.parts.add((f"bases of {name}", ", ".join(bases)))
        source = self.reader.source(cls)
        body = digest_class_body(source) if source is not None else None
        if body is not None:
            self.parts.add((f"body of {name}", f"#{body}"))
        for attribute, value in class_attributes(cls):
            self.parts.add((f"attribute {name}.{attribute}", self.refer(value)))

    # --- modules as a whole -----------------------------------------------------------------------------

    def whole_module(self, module: ModuleType) -> None:
        """Count a module with all that it defines."""
        if self.is_project(module.__name__):
            self._queue.append(module)
        else:
            self.witness.name(vars(module), "__version__")
            self.parts.add((f"module {module.__name__}", str(vars(module).get("__version__", ""))))

    def _module_members(self, module: ModuleType) -> None:
        self.witness.module(module)
        for name, value in list(vars(module).items()):
            if not (name.startswith("__") and name.endswith("__")):
                self.parts.add((f"global {module.__name__}.{name}", self.refer(value)))

    def _import(self, statement: Import, package: str) -> None:
        """Count the module of an import inside a function by its text, whether it is loaded yet or not.

        Going by what is loaded would give the first and the second run of one process different keys.
        """
        pending = list(imported_modules([statement], package))
        while pending:
            name = pending.pop()
            if name in self._modules or not self.is_project(name.partition(".")[0]):
                continue
            self._modules.add(name)
            self.witness.is_complete = False  # files are read, and may change or come to be
            found = self.reader.find_module(name)
            if isinstance(found, ModuleType):
                self.whole_module(found)
            elif found is not None and self.is_project(name):
                pending += self._module_text(name, found)

    def _module_text(self, name: str, found: ModuleText) -> Iterator[str]:
        described = digest_module(found.text)
        if described is None:
            return iter(())
        self.parts.add((f"module {name}", f"#{described[0]}"))
        return imported_modules(described[1], found.package)
