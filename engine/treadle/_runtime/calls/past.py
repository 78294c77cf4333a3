"""What stands for a run behind calls that have ended: enough for their futures, and no way back to the run.

Calls are outside the garbage collector's sight, so an ended call that somebody still
holds must not lead to its run: the run's errors lead to frames, and those to futures.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from treadle import events as ev
from treadle._core.machine import CallState
from treadle._runtime import lifecycle
from treadle._runtime.calls.call import Call, StepFuture
from treadle._runtime.isolation.distant import part_of
from treadle._runtime.views import queries
from treadle._runtime.views.artifact import Artifact
from treadle.errors import ResultNotReady

if TYPE_CHECKING:
    from treadle._runtime.engine import Engine


class Past:
    """The part of ``Run`` that ended calls need."""

    __slots__ = ("engine", "id", "loop")

    is_over = True

    def __init__(self, engine: Engine, run_id: str) -> None:
        self.engine, self.id, self.loop = engine, run_id, engine.loop

    def append(self, event: ev.Event) -> None:
        """A body that was left behind has something to say; nobody listens."""

    resolve = staticmethod(lifecycle.resolve)

    def artifact_of(self, call: Call, output: str | None) -> Artifact[Any]:
        """One stored output."""
        return queries.artifact_of(call, output, self.engine.vault)

    def artifacts_of(self, call: Call) -> dict[str, Artifact[Any]]:
        """The stored outputs."""
        if call.state is not CallState.ENDED:
            raise ResultNotReady(f"call {call.name} has not ended, so it has no artifacts yet", fix="await it first")
        return {row.name: Artifact(row, self.engine.vault) for row in call.rows or ()}

    @property
    def past(self) -> Past:
        """Itself: the past of a past."""
        return self

    @staticmethod
    def fill(call: Call, future: StepFuture[Any]) -> None:
        """Give the outcome of an ended call to a future that was asked for later."""
        lifecycle.fill(call, future)

    @staticmethod
    def resolve_output(call: Call, name: str, source: StepFuture[Any], future: StepFuture[Any]) -> None:
        """Fill the future of one output."""
        if source.cancelled():
            asyncio.Future.cancel(future, future._cancel_message or source._cancel_message)
        elif (error := asyncio.Future.exception(source)) is not None:
            asyncio.Future.set_exception(future, error)
        elif call.outcome == "skipped":
            asyncio.Future.set_result(future, None)
        else:
            asyncio.Future.set_result(future, part_of(call.plan, asyncio.Future.result(source), name))
