"""Reads the source text of the code that is loaded.

Knows files and modules; knows nothing of digests. Text is handed out only if it compiles to
exactly what is loaded: a file that was edited after its import, or code that was rewritten at import, has no
source here, and the caller falls back to the bytecode.
"""

from __future__ import annotations

import linecache
import os
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType

from treadle._core.reading import ModuleText
from treadle._runtime import LOADED_AT
from treadle._runtime.code.definitions import SourceFile, block_around, imported_names, own_functions
from treadle._runtime.code.project import Project, locate_module

_MAX_FILES = 64


class ModuleSource:
    """The `SourceReader` of this process; may be shared by threads.

    >>> reader = ModuleSource()
    >>> reader.is_project("json"), reader.is_project("__main__")
    (False, True)
    """

    def __init__(self) -> None:
        self._texts: dict[int, tuple[weakref.ref[CodeType | type], str | None]] = {}
        self._files: OrderedDict[tuple[str, int], SourceFile] = OrderedDict()
        self._project = Project()
        self._modules: dict[str, tuple[float, ModuleText]] = {}
        self._lock = threading.Lock()

    # --- functions and classes --------------------------------------------------------------------------

    def source(self, obj: FunctionType | type) -> str | None:
        """Text of the definition of a function or class as it is loaded; None if there is none to be trusted.

        Args:
            obj: the function or the class itself; decorators are not unwrapped.
        """
        # Once is enough: code that is loaded never changes.
        subject = obj if isinstance(obj, type) else obj.__code__
        key = id(subject)
        known = self._texts.get(key)
        if known is not None and known[0]() is subject:
            return known[1]
        text = self._class_text(obj) if isinstance(obj, type) else self._function_text(obj.__code__, obj.__globals__)
        self._texts[key] = (weakref.ref(subject, lambda gone: self._forget(key, gone)), text)
        return text

    def _forget(self, key: int, gone: weakref.ref[CodeType | type]) -> None:
        known = self._texts.get(key)
        if known is not None and known[0] is gone:
            del self._texts[key]

    def _function_text(self, code: CodeType, namespace: dict[str, object]) -> str | None:
        for file in self._files_around(code.co_filename, namespace, code.co_firstlineno):
            text = file.function(code)
            if text is not None:
                return text
        return None

    def _class_text(self, cls: type) -> str | None:
        """A class body leaves no code object behind, so its file must be older than this process' engine."""
        module = sys.modules.get(cls.__module__)
        namespace = vars(module) if module is not None else {}
        filename = _file_of_class(cls) or namespace.get("__file__")
        if not isinstance(filename, str):
            return None
        if not _is_older(filename):
            return None
        line = next((method.__code__.co_firstlineno for method in own_functions(cls)), 0)
        for file in self._files_around(filename, namespace, line):
            text = file.definition_of_class(cls)
            if text is not None:
                return text
        return None

    def _files_around(self, filename: str, namespace: dict[str, object], line: int) -> Iterator[SourceFile]:
        """Give the block of the file that should hold the line, then the whole file."""
        linecache.checkcache(filename)
        lines = linecache.getlines(filename, namespace)
        if not lines:
            return
        for start, end in [block_around(lines, line)] * bool(line) + [(0, len(lines))]:
            whole = start == 0 and end == len(lines)
            file = self._parsed(filename, lines[start:end], start, None if whole else lines)
            if file is not None:
                yield file

    def _parsed(self, filename: str, lines: list[str], start: int, around: list[str] | None) -> SourceFile | None:
        with self._lock:
            file = self._files.get((filename, start))
            if file is None or file.lines != lines:
                try:
                    file = SourceFile(lines, filename, start, None if around is None else imported_names(around))
                except (SyntaxError, ValueError, RecursionError):
                    return None
                self._files[filename, start] = file
            self._files.move_to_end((filename, start))
            while len(self._files) > _MAX_FILES:
                self._files.popitem(last=False)
            return file

    # --- modules ----------------------------------------------------------------------------------------

    def is_project(self, module_name: str) -> bool:
        """Whether a module is the user's: outside the standard library and site-packages, or from no file.

        Args:
            module_name: the full name; the module need not be loaded.
        """
        return self._project.owns(module_name)

    def find_module(self, name: str) -> ModuleText | ModuleType | None:
        """Text of a module by its full name, found without importing it.

        Args:
            name: the full name, ``package.module``.

        Returns:
            The loaded module itself if its file is newer than what was loaded; None if there is no such module.
        """
        loaded = sys.modules.get(name)
        place, package = locate_module(name, loaded)
        if place is None:
            return loaded
        changed = _changed_at(place)
        known = self._modules.get(name)
        if known is not None and known[0] == changed:
            return known[1]
        if loaded is not None and not (known is None and _is_older(place)):
            return loaded
        linecache.checkcache(place)
        text = ModuleText("".join(linecache.getlines(place)), package)
        self._modules[name] = (changed, text)
        return text


def _file_of_class(cls: type) -> str | None:
    return next((method.__code__.co_filename for method in own_functions(cls)), None)


def _changed_at(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _is_older(path: str) -> bool:
    """Whether a file was last written before treadle was loaded; a notebook's cell has no file and never changes."""
    return _changed_at(path) < LOADED_AT
