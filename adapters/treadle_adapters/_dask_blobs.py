"""Large values of attempts, as far as the engine's side has to do with them: whether workers reach them, and carrying.

Knows the store that an attempt names, through ``treadle.worker``, and nothing of connections.
"""

from __future__ import annotations

import asyncio
import uuid

import msgspec
from blake3 import blake3

from treadle.contracts import Attempt, Payload
from treadle.errors import WorkerProtocolError
from treadle.worker import store_of

Proof = tuple[str, int]


class Proofs:
    """A blob in each store, by which a worker that finds it knows that it is in the same folder."""

    def __init__(self) -> None:
        self._put: dict[str, asyncio.Task[Proof]] = {}
        self._owners: dict[str, Attempt] = {}

    async def of(self, attempt: Attempt) -> Proof:
        """Where it lies, and its size."""
        found = self._put.get(attempt.store)
        if found is None or (found.done() and (found.cancelled() or found.exception() is not None)):
            self._owners[attempt.store] = owner = msgspec.structs.replace(attempt, args=(), kwargs={})
            found = asyncio.get_running_loop().create_task(asyncio.to_thread(_put_proof, owner))
            self._put[attempt.store] = found
        return await asyncio.shield(found)

    async def remove(self) -> None:
        """Remove them."""
        put, self._put = self._put, {}
        for store, task in put.items():
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is None:
                await asyncio.to_thread(store_of(self._owners[store]).delete, task.result()[0])


def _put_proof(attempt: Attempt) -> Proof:
    data = b"this folder is shared " + uuid.uuid4().hex.encode()
    return store_of(attempt).put(data, blake3(data).digest()), len(data)


def read(attempt: Attempt) -> dict[str, bytes]:
    """The large inputs of an attempt, by location."""
    large = {payload.location: payload for payload in attempt.payloads() if payload.location}
    if not large:
        return {}
    store = store_of(attempt)
    return {location: store.get(location, item.size, item.checksum) for location, item in large.items()}


def write(attempt: Attempt, payload: Payload, data: object) -> None:
    """Put an output that a worker sent into the store.

    Raises:
        WorkerProtocolError: it is not what the worker said.
    """
    if not isinstance(data, bytes) or len(data) != payload.size or blake3(data).digest() != payload.checksum:
        raise WorkerProtocolError("a dask worker gave an output that is not what it says")
    store_of(attempt).put(data, payload.checksum)
