"""What a step asks for, in the words of a dask cluster, whose workers declare what they like, or nothing.

Knows names and amounts; a resource that no worker declares bounds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from treadle.contracts import Attempt, Needs
from treadle.errors import ResourcesExceeded

Declared = list[dict[str, float]]


class Resources:
    """The resources that the workers of a cluster declare (``dask worker --resources "GPU=2 MEMORY=64e9"``).

    Args:
        client: dask's client.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._declared: Declared | None = None

    def forget(self) -> None:
        """Workers came or went."""
        self._declared = None

    async def of(self, attempt: Attempt) -> dict[str, float]:
        """What dask is to set aside for an attempt.

        Raises:
            ResourcesExceeded: some workers declare what it asks for, and none has enough.
        """
        if self._declared is None:
            told = await self._client.scheduler.identity()
            self._declared = [dict(worker.get("resources") or {}) for worker in told["workers"].values()]
        return asked_of(attempt.step, attempt.needs, self._declared)


def asked_of(step: str, needs: Needs, declared: Declared) -> dict[str, float]:
    """What a step asks for, by the names under which workers declare it.

    Raises:
        ResourcesExceeded: some workers declare what it asks for, and none has enough.

    >>> asked_of("train", Needs(cpu=2.0, gpu=1), [{"GPU": 2}, {}])
    {'GPU': 1.0}
    """
    amounts = {"cpu": needs.cpu, "memory": float(needs.memory), "gpu": float(needs.gpu)}
    known = {name.lower(): name for worker in declared for name in worker}
    asked: dict[str, float] = {}
    own: dict[str, str] = {}
    for kind, amount in amounts.items():
        names = (needs.gpu_type.lower(), kind) if kind == "gpu" and needs.gpu_type else (kind,)
        name = _first(names, known)
        if amount and name:
            asked[name], own[name] = amount, kind
    if asked and not any(all(worker.get(name, 0) >= amount for name, amount in asked.items()) for worker in declared):
        most = {name: max(worker.get(name, 0) for worker in declared) for name in asked}
        raise ResourcesExceeded(
            f"step {step} asks for {_shown(asked)}, and no worker of the cluster has that",
            why=f"the most that one declares is {_shown(most)}",
            fix="ask for less, or add a worker that has it",
            step=step,
            asked={own[name]: amount for name, amount in asked.items()},
            available={own[name]: float(amount) for name, amount in most.items()},
        )
    return asked


def _first(names: Iterable[str], known: Mapping[str, str]) -> str:
    return next((known[name] for name in names if name in known), "")


def _shown(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in amounts.items())
