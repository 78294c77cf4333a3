"""Tells the user's project from everything installed, and finds modules without importing them.

Knows import paths and where packages are installed; knows nothing of code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import ModuleType

_OWN_PACKAGES = frozenset({"treadle", "treadle_adapters"})


class Project:
    """Answers whether a module belongs to the user's project; may be shared by threads.

    >>> project = Project()
    >>> project.owns("json"), project.owns("__main__")
    (False, True)
    """

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}
        self._standard = os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "")
        self._roots: tuple[str, ...] | None = None

    def owns(self, module_name: str) -> bool:
        """Whether a module lies outside the standard library and site-packages, or comes from no file at all.

        Args:
            module_name: the full name; the module need not be loaded.
        """
        known = self._known.get(module_name)
        if known is None:
            places = _places(module_name)
            known = self._owns(module_name, places)
            if places or module_name in sys.modules:
                self._known[module_name] = known
        return known

    def _owns(self, name: str, places: list[str]) -> bool:
        if name in ("__main__", "__mp_main__"):
            return True
        root = name.partition(".")[0]
        if root in _OWN_PACKAGES or name in sys.builtin_module_names:
            return False
        if not places:
            return root not in sys.stdlib_module_names
        return not any(self._is_installed(place) for place in places)

    def _is_installed(self, path: str) -> bool:
        absolute = os.path.abspath(path)
        if absolute.startswith(self._standard) or {"site-packages", "dist-packages"} & set(absolute.split(os.sep)):
            return True
        if self._roots is None:
            self._roots = tuple(_installed_roots())
        return absolute.startswith(self._roots) or os.path.realpath(path).startswith(self._roots)


def _installed_roots() -> Iterator[str]:
    import sysconfig  # it reads how Python was built, and few paths are so unlike that they need it

    for name in ("stdlib", "platstdlib", "purelib", "platlib"):
        path = sysconfig.get_path(name)
        if path:
            yield os.path.join(os.path.abspath(path), "")
            yield os.path.join(os.path.realpath(path), "")


def _find_spec_places(name: str) -> tuple[str | None, list[str]]:
    """Find a module's file and, of a package, its folders, without importing anything."""
    path: list[str] | None = None
    origin: str | None = None
    words = name.split(".")
    for end in range(1, len(words) + 1):
        part = ".".join(words[:end])
        spec = next((found for finder in sys.meta_path if (found := finder.find_spec(part, path)) is not None), None)
        if spec is None:
            return None, []
        origin = spec.origin if spec.has_location else None
        path = list(spec.submodule_search_locations or ())
    return origin, path or []


def _places(name: str) -> list[str]:
    module = sys.modules.get(name)
    if module is None:
        return [place for place in _places_unloaded(name) if place]
    return [place for place in (getattr(module, "__file__", None), *map(str, getattr(module, "__path__", ()))) if place]


def _places_unloaded(name: str) -> list[str]:
    try:
        origin, folders = _find_spec_places(name)
    except Exception:  # a finder may raise anything; such a module cannot be imported either
        return []
    return [origin or "", *folders]


def locate_module(name: str, loaded: ModuleType | None) -> tuple[str | None, str]:
    """Find the source file of a module, and the package that its relative imports start from.

    Args:
        name: the full name.
        loaded: the module, if it is loaded.

    Returns:
        The path, None if there is no Python source; and the package's name.
    """
    if loaded is not None:
        place = getattr(loaded, "__file__", None)
        is_package = hasattr(loaded, "__path__")
    else:
        places = _places_unloaded(name)
        place, is_package = (places[0], len(places) > 1) if places else (None, False)
    package = name if is_package else name.rpartition(".")[0]
    return (place if place and place.endswith((".py", ".pyw")) else None), package
