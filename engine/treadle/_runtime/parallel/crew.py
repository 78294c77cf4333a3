"""What threads and processes of ``parallel_map`` have in common: who called it, and how its errors are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treadle._runtime.context import active_call, active_run
from treadle.errors import OptionError

Stopped = Callable[[], bool]

POLL_S = 0.05
"""How often a waiting ``parallel_map`` looks whether its caller was told to stop; nothing wakes it for that."""


def plain(f: Any) -> Callable[..., Any]:
    """The function itself, which a step stands for."""
    fn = f.fn if getattr(type(f), "__treadle_callable__", False) else f
    if not callable(fn):
        raise OptionError(f"{f!r} is not a function", fix="give the function first, then the items", option="f")
    return fn  # type: ignore[no-any-return]


def watch() -> Stopped:
    """Something that tells whether the step or pipeline around us, if there is one, was told to stop meanwhile."""
    call, run = active_call.get(), active_run.get()
    if call is not None:
        attempt, state = call.attempt, call.state
        return lambda: call.ending is not None or call.attempt != attempt or call.state is not state
    if run is not None and not run.is_over:
        return lambda: run.is_over or run.ending in ("caller", "interrupt", "run_timeout")
    return lambda: False


def name_of(fn: Any) -> str:
    """How messages call a function."""
    return str(getattr(fn, "__qualname__", None) or repr(fn))


def note(error: BaseException, fn: Any, index: int) -> None:
    """Say in a traceback which item it was."""
    try:
        error.add_note(f"in parallel_map({name_of(fn)}, ...), item {index}")
    except Exception:
        return  # a frozen dataclass, for example, allows none
