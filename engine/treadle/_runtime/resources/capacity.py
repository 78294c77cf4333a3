"""What an engine has to give to its calls: cores, memory and GPUs; and what each step takes of that.

Counts only: a step that names four cores waits until four are free, and nothing keeps it from using more.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from treadle import events as ev
from treadle._core.admission import Claim, Limit
from treadle._runtime.plan import hint
from treadle._runtime.resources import hardware
from treadle.errors import ResourcesExceeded
from treadle.limits import Overcommit, Rate, Resources, show
from treadle.options import Unset

if TYPE_CHECKING:
    from treadle._runtime.plan import Plan
    from treadle._runtime.run import Run

Clamped = tuple[tuple[str, float, float], ...]


class Capacity:
    """The resources of one engine; asked of the machine when the first step names some.

    Args:
        given: what the user says there is; what that leaves out is the machine's, and no GPU.
        overcommit: what becomes of a step that asks for more than there is: it is clamped, or refused.
    """

    def __init__(self, given: Resources | None, overcommit: Overcommit) -> None:
        self._given = given or Resources()
        self.overcommit: Overcommit = overcommit

    @cached_property
    def limits(self) -> dict[str, Limit]:
        """What there is, in thousandths of a core, bytes and GPUs; what nobody knows is not bounded."""
        amounts = self._given.amounts
        amounts["cpu"] = amounts["cpu"] or round(hardware.cores() * 1000)
        memory = amounts["memory"] or hardware.memory_bytes()
        limits = {"cpu": Limit(amounts["cpu"]), "gpu": Limit(amounts["gpu"])}
        return limits if memory is None else {**limits, "memory": Limit(memory)}

    def claim(self, step: str, asked: Resources) -> tuple[Claim | None, Clamped]:
        """What a call of a step takes while it is performed, and what could not be had.

        Raises:
            ResourcesExceeded: it asks for more than there is, and ``overcommit="error"``.
        """
        problem = self.problem(step, asked)
        if problem is not None:
            raise problem
        amounts: list[tuple[Limit, int]] = []
        for name, amount in asked.amounts.items():
            limit = self.limits.get(name)
            if limit is not None and (taken := min(amount, self._capacity(name, asked, limit))):
                amounts.append((limit, taken))
        return Claim(amounts) if amounts else None, self._exceeded(asked)

    def problem(self, step: str, asked: Resources) -> ResourcesExceeded | None:
        """The error of a step that cannot have what it asks for; ``None`` if it can, or would be clamped."""
        if self.overcommit != "error" or not (exceeded := self._exceeded(asked)):
            return None
        kind = f" of type {asked.gpu_type}" if asked.gpu_type and any(part[0] == "gpu" for part in exceeded) else ""
        return ResourcesExceeded(
            f"step {step} {_told(exceeded)}{kind}",
            fix="ask for less, say what there is with Engine(resources=...), or allow it with overcommit='clamp'",
            step=step,
            asked={name: amount for name, amount, _ in exceeded},
            available={name: there for name, _, there in exceeded},
        )

    def _exceeded(self, asked: Resources) -> Clamped:
        """Resource, amount asked for, and amount there is, of what is too much."""
        found: list[tuple[str, float, float]] = []
        for name, amount in asked.amounts.items():
            limit = self.limits.get(name)
            if limit is not None and amount > (there := self._capacity(name, asked, limit)):
                found.append((name, _shown(name, amount), _shown(name, there)))
        return tuple(found)

    def _capacity(self, name: str, asked: Resources, limit: Limit) -> int:
        """How much of a resource there is for this step: none of a GPU of another type."""
        types = {asked.gpu_type, self._given.gpu_type} - {""}
        return 0 if name == "gpu" and len(types) > 1 else limit.capacity


def bounds(run: Run, plan: Plan, rate: Rate | Unset | None) -> list[Limit | Claim]:
    """What the calls of a step are subject to because of its resources and its rate; said if they were clamped.

    Raises:
        ResourcesExceeded: the step asks for more than there is, and ``overcommit="error"``.
    """
    found: list[Limit | Claim] = []
    # What is elsewhere is not this machine's to count.
    if plan.resources is not None and not (plan.executor is not None and plan.executor.queues):
        claim, clamped = run.engine.capacity.claim(plan.name, plan.resources)
        if claim is not None:
            found.append(claim)
        if clamped and plan.name not in run.clamped:
            run.clamped |= {plan.name}
            run.append(ev.ResourcesClamped(at=run.now(), step=plan.name, clamped=clamped))
            hint(f"step {plan.name} {_told(clamped)}; each of its calls takes all there is")
    if isinstance(rate, Rate):
        plan.pace = run.engine.scheduler.pace_of(plan.step.base, rate)
        found.append(plan.pace.room)
    return found


def _told(exceeded: Clamped) -> str:
    asked = ", ".join(show(name, amount) for name, amount, _ in exceeded)
    return f"asks for {asked}, and the engine has {', '.join(show(name, there) for name, _, there in exceeded)}"


def _shown(name: str, amount: int) -> float:
    return amount / 1000 if name == "cpu" else amount
