"""The contract by which the core gets source text; it reads nothing itself."""

from __future__ import annotations

from types import FunctionType, ModuleType
from typing import Protocol

import msgspec


class ModuleText(msgspec.Struct, frozen=True):
    """The text of a module, and the package that its relative imports start from."""

    text: str
    package: str


class SourceReader(Protocol):
    """Reads source text, and knows what belongs to the user's project.

    Obligations: the text is that of the code *as loaded* (None rather than a newer file's); nothing is
    imported by asking; equal questions in one process are cheap.
    """

    def source(self, obj: FunctionType | type) -> str | None:
        """Text of the definition, indented or not (of a lambda the expression); None if not to be had."""
        ...

    def find_module(self, name: str) -> ModuleText | ModuleType | None:
        """Find a module by its full name without importing it.

        Its text, whether it is loaded or not; the module itself if it is loaded and its file has changed
        since; None if there is no such module.
        """
        ...

    def is_project(self, module_name: str) -> bool:
        """Whether the module is the user's: outside the standard library and site-packages."""
        ...
