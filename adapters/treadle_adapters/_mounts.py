"""What of this machine a container sees: the project's code, treadle itself, what the user names, and never the home.

Knows paths; asks no container engine. Everything has the same path on both sides, so that import paths, tracebacks and
the folder of the program mean the same there, and is read-only unless the user says otherwise.
"""

from __future__ import annotations

import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from treadle.errors import OptionError
from treadle_adapters._contained import LIBRARY, SPARE

PACKAGES: Final = ("treadle", "treadle_adapters")
SPARES: Final = ("msgspec", "blake3")
# Folders that hold much more than code; a path below them is fine, they themselves are not.
TOO_MUCH: Final = frozenset(
    f"/{name}" for name in (
        "", "bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "media", "mnt", "opt", "proc", "root", "run",
        "sbin", "srv", "sys", "tmp", "usr", "usr/bin", "usr/local", "var", "var/lib", "var/run", "var/tmp",
    )
)  # fmt: skip


class Mount(NamedTuple):
    """A file or folder of this machine and where the container has it."""

    source: str
    target: str
    is_writable: bool = False


class Code(NamedTuple):
    """The import path as a container gets it."""

    folders: tuple[str, ...]
    """To be mounted; none lies in another."""
    path: tuple[str, ...]
    """What comes before the image's own path."""
    site: tuple[str, ...]
    """What comes after it."""
    refused: tuple[str, ...]
    """Entries that hold too much to be shown to strangers."""


def parse(mounts: Iterable[str | os.PathLike[str]]) -> tuple[Mount, ...]:
    """Read ``SOURCE[:TARGET][:ro|rw]``.

    Raises:
        OptionError: it is not written so, or the path is not absolute.

    >>> parse(["/data", "/out:rw", "/models:/m:ro"])[2]
    Mount(source='/models', target='/m', is_writable=False)
    """
    return tuple([_parsed(mount) for mount in mounts])


def _parsed(mount: str | os.PathLike[str]) -> Mount:
    text = os.fspath(mount)
    parts = text.split(":")
    mode = parts.pop() if parts[-1] in ("ro", "rw") else "ro"
    if len(parts) not in (1, 2) or not all(os.path.isabs(part) for part in parts):
        raise OptionError(
            f"mounts= has {text!r}", fix="write 'SOURCE[:TARGET][:ro|rw]' with absolute paths", option="mounts"
        )
    return Mount(os.path.normpath(parts[0]), os.path.normpath(parts[-1]), mode == "rw")


def code_of(given: Sequence[str] | None, with_site: bool) -> Code:
    """What is to be mounted of an import path: of this process's, or of the folders that the user has named.

    Libraries that are installed are not: the image has its own, or ``with_site`` shows these.
    """
    installed = _installed()
    entries = [os.path.abspath(entry) for entry in (sys.path if given is None else given)]
    path: list[str] = []
    libraries: list[str] = []
    refused: list[str] = []
    for entry in dict.fromkeys(entries):
        if given is None and not os.path.exists(entry):
            continue
        if entry in installed or os.path.basename(entry) in ("site-packages", "dist-packages"):
            if entry not in _standard() and with_site:
                libraries.append(entry)
        elif given is None and (entry in TOO_MUCH or entry == os.path.expanduser("~")):
            refused.append(entry)
        else:
            path.append(entry)
    if given is not None and with_site:
        libraries = [entry for entry in code_of(None, True).site if entry not in path]
    return Code(tuple(_outermost([*path, *libraries])), tuple(path), tuple(libraries), tuple(refused))


def of_treadle() -> tuple[Mount, ...]:
    """treadle as this process has it, so that both sides are of one release; and the two libraries that it needs."""
    found = [Mount(_folder_of(name), f"{LIBRARY}/{name}") for name in PACKAGES]
    return tuple(found + [Mount(_folder_of(name), f"{SPARE}/{name}") for name in SPARES])


def hidden(private: Iterable[Path], mounts: Iterable[Mount]) -> tuple[str, ...]:
    """Where private folders of the engine would be seen through mounts of what they lie in."""
    found: list[str] = []
    shown = list(mounts)
    for folder in private:
        for mount in shown:
            if folder.is_relative_to(mount.source) and folder.is_dir():
                place = os.path.join(mount.target, folder.relative_to(mount.source))
                found.append(os.path.normpath(place))
    return tuple(_outermost(found))


def private_folders(store: str, tmp: str) -> tuple[Path, ...]:
    """What no step in a container is to see of a home: all of it, or what is treadle's in a folder of the user's."""
    home = Path(tmp).parent
    try:
        is_own = (home / ".gitignore").read_text() == "*\n"
    except OSError:
        is_own = False
    if is_own:
        return (home, Path(store))
    return (Path(store), Path(tmp), home / "owners")


def _folder_of(package: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return os.path.abspath(next(iter(spec.submodule_search_locations)))


def _standard() -> set[str]:
    names = ("stdlib", "platstdlib")
    found = {os.path.abspath(sysconfig.get_path(name)) for name in names}
    return found | {f"{folder}/lib-dynload" for folder in found}


def _installed() -> set[str]:
    """Folders of the import path that are not the project's."""
    names = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    found = {os.path.abspath(sysconfig.get_path(name)) for name in names} | _standard()
    found.update(os.path.abspath(folder) for folder in [*site.getsitepackages(), site.getusersitepackages()])
    return found


def _outermost(paths: Iterable[str]) -> list[str]:
    """Those that do not lie in another one."""
    found: list[str] = []
    for path in sorted(set(paths), key=lambda path: (path.count("/"), path)):
        if not any(path == other or path.startswith(f"{other}/") for other in found):
            found.append(path)
    return found
