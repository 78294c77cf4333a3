"""Consecutive calls of one execution group on one worker thread; steps on the event loop share that anyway.

A group says where calls run, never whether or in which order: calls of a group that could run at once do, on a thread
each. What follows what on a thread:

* A call takes the thread on which its group ran last in this run, if nobody else has needed that thread meanwhile.
* A call that has only waited for another one of its group gets that one's thread and place: from the end of the one to
  the start of the other, over the commit between them, nothing else goes in between, unless it lacks something that the
  thread cannot give (a rate, resources); then it stands in line like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from treadle._core.machine import CallState

if TYPE_CHECKING:
    from treadle._runtime.calls.call import Call
    from treadle._runtime.resources.threads import Lease


def lease(call: Call) -> Lease | None:
    """The thread on which a call is to run; ``None`` if any will do."""
    group = call.plan.execution_group
    return None if group is None else call.run.engine.pool.lease((call.run.id, group), call.name)


def walked(call: Call) -> None:
    """A call of a group has an outcome, or will never have one: give its slots back, but for a thread that goes on."""
    engine = call.run.engine
    heir = _heir(call) if call.state is CallState.STORING and call.outcome == "succeeded" else None
    goes_on = heir is not None and _keep(call, heir)
    engine.scheduler.release(call, engine.thread_limit if goes_on else None)


def ended(call: Call) -> Call | None:
    """Everybody may know the outcome of a call of a group; gives the one that is to follow in its place, if any."""
    heir = _heir(call) if call.outcome == "succeeded" else None
    if _keep(call, heir) and heir is not None:
        return heir
    call.run.engine.scheduler.release(call)
    return None


def _keep(call: Call, heir: Call | None) -> bool:
    owner = (call.run.id, call.plan.execution_group)
    return call.run.engine.pool.keep(owner, call.name, "" if heir is None else heir.name)


def _heir(call: Call) -> Call | None:
    """The first of those that wait for nothing but this call, and belong to its group."""
    group = call.plan.execution_group
    for other in call.dependents or ():
        plan = other.plan
        is_ours = plan.execution_group == group and plan.runtime == call.plan.runtime and not plan.is_async
        if is_ours and other.state is CallState.WAITING and other.pending == 1 and not other.lacks:
            return other
    return None
