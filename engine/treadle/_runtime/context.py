"""Which engine, run and call the current code belongs to; context variables and nothing else."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle._runtime.calls.call import Call
    from treadle._runtime.engine import Engine
    from treadle._runtime.run import Run

active_engine: ContextVar[Engine | None] = ContextVar("treadle_engine", default=None)
"""The engine entered with ``async with`` in this context."""

active_run: ContextVar[Run | None] = ContextVar("treadle_run", default=None)
"""The run whose pipeline function is executing here; ``None`` outside and inside of steps."""

active_call: ContextVar[Call | None] = ContextVar("treadle_call", default=None)
"""The call whose body is executing here."""


is_importing: ContextVar[bool] = ContextVar("treadle_importing", default=False)
"""Whether this process imports a step in order to perform it for another one; no engine may be opened meanwhile."""


def current_run() -> Run | None:
    """The run in whose pipeline function we are; none in a step's body, and a run that has ended counts as none."""
    run = active_run.get()
    if active_call.get() is not None:
        return None
    if run is None or not run.is_over:
        return run
    run.raise_if_left_behind()
    return None
