"""Whether a worker has imported the code that the engine's process has: files may have been edited in between.

Asked once for each step that a worker imports. It costs a look at the times of the files; only if one of them is newer
than the engine's process are fingerprints taken and compared.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from treadle._runtime.code.identity import Identities
from treadle.errors import StepEdited

if TYPE_CHECKING:
    from treadle.contracts import Attempt

_known: set[str] = set()
"""Modules that are no code of the user's: they were there before any of it."""


def begin() -> None:
    """No code of the user's has been imported yet."""
    _known.update(sys.modules)


def check(attempt: Attempt, fn: Any, identities: Identities) -> None:
    """Refuse a step whose code here is not that of the engine's process.

    Args:
        attempt: which step, and what its code is there.
        fn: its function, as it was imported here.
        identities: takes fingerprints.

    Raises:
        StepEdited: it is not.
    """
    if not attempt.source:
        return
    files = _newer(attempt.loaded_at, [module for name, module in sys.modules.items() if name not in _known])
    if not files or identities.source_digest(fn) in (attempt.source, b""):
        return
    shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    raise StepEdited(
        f"step {attempt.step} was edited since the engine's process has imported it, or a module-level value of it was",
        why=f"a worker imports {shown} as it is now, and its outcome would be recorded under the code as it was",
        fix="restart the program; and give a step what changes as an argument, not by a module-level name",
        files=tuple(files),
    )


def _newer(loaded_at: float, modules: Iterable[Any]) -> list[str]:
    found: list[str] = []
    for module in modules:
        file = getattr(module, "__file__", None)
        try:
            if isinstance(file, str) and os.stat(file).st_mtime > loaded_at:
                found.append(file)
        except OSError:
            continue
    return sorted(found)
