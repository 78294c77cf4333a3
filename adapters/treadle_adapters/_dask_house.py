"""What runs in a dask worker: it performs attempts in processes of its own, for engines that are its tenants.

Knows dask's workers and ``process``; the engine's side is in ``_dask_link``, what is said between them in
``_dask_words``. The functions here are what dask calls by name; no code of users travels.

Theory of operation
* A task of dask's, ``hold``, is a place: it takes a thread's worth of a worker until the attempt has ended, and says to
  the engine that it is there. The attempt comes afterwards, from the engine to this one worker (``begin``): when dask
  moves the task of a worker that died, no body runs a second time without the engine's knowledge.
* The attempt runs in a process of a ``ProcessExecutor``: it can be ended, bounded and killed, and takes the dask worker
  with it in no case. Those processes end with the dask worker.
* That an engine wants its place no more, because it was cancelled or because the engine is gone, is seen in the state
  of the task, which dask releases. The last task of an engine on a worker stays in memory as long as the engine is
  there; when nothing of it is left, its processes are ended.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from distributed import WorkerPlugin, get_worker

from treadle.contracts import Attempt
from treadle.errors import TreadleError
from treadle.worker import store_of
from treadle_adapters import _dask_words as words
from treadle_adapters._dask_lease import Lease
from treadle_adapters.process import ProcessExecutor

NAME: Final = "treadle"
BEGUN, GONE, UNREACHABLE = "begun", "gone", "unreachable"
LINGER_S: Final = 1.0
"""How long the processes of an engine that has nothing here any more stay."""


# -- what dask calls ----------------------------------------------------------------------


async def hold(key: str, tenancy: bytes) -> None:
    """Keep a place on this worker until the attempt has ended, or until the engine does not want it any more."""
    worker = get_worker()
    house = await _house_of(worker)
    lease = house.let(key, words.unpack_tenancy.decode(tenancy))
    try:
        await lease.tenant.executor()  # before the time of the attempt counts
    except TreadleError:
        pass  # it is tried once more, for the attempt, and said then
    worker.log_event(lease.topic, words.here(key, worker.address, worker.state.nthreads))
    await lease.is_over.wait()


async def begin(key: str, order: bytes, blobs: Mapping[str, bytes] | None, dask_worker: Any) -> str:
    """Begin an attempt for which a place is held.

    Args:
        key: of the place.
        order: an ``Order``.
        blobs: large inputs by location, if this worker is known not to reach the engine's store.
        dask_worker: given by dask.
    """
    lease = _lease_of(dask_worker, key)
    if lease is None or lease.task is not None or lease.is_over.is_set():
        return GONE
    try:
        asked = words.unpack_order.decode(order)
        attempt = msgspec.msgpack.decode(asked.attempt, type=Attempt)
    except msgspec.MsgspecError as error:
        return f"{type(error).__name__}: {error}"  # dask would log the arguments, too, and those are nobody's business
    if blobs is None and not _is_there(attempt, asked.proof):
        return UNREACHABLE
    lease.begin(asked, attempt, blobs)
    return BEGUN


async def take(key: str, asked: list[tuple[str, int, bytes]], dask_worker: Any) -> list[bytes]:
    """The large outputs of an attempt whose worker does not reach the engine's store; its place is free afterwards."""
    lease = _lease_of(dask_worker, key)
    if lease is None:
        raise RuntimeError("the worker is being closed, and keeps nothing any more")
    try:
        store = store_of(lease.carried)
        return [await asyncio.to_thread(store.get, *each) for each in asked]
    finally:
        lease.finish()


async def leave(engine: str, dask_worker: Any) -> None:
    """An engine closes: end what it has here."""
    house: House | None = dask_worker.plugins.get(NAME)
    tenant = house.tenants.get(engine) if house is not None else None
    if tenant is not None:
        await tenant.close()


def _lease_of(worker: Any, key: str) -> Lease | None:
    house: House | None = worker.plugins.get(NAME)
    return house.leases.get(key) if house is not None else None


async def _house_of(worker: Any) -> House:
    house: House | None = worker.plugins.get(NAME)
    if house is None:
        house = House()
        await worker.plugin_add(plugin=house, name=NAME)
    return house


def _is_there(attempt: Attempt, proof: tuple[str, int] | None) -> bool:
    if "://" in attempt.store:
        return True
    if proof is None:
        return False
    try:
        return os.stat(os.path.join(attempt.store, proof[0])).st_size == proof[1]
    except OSError:
        return False


# -- who is here --------------------------------------------------------------------------


class House(WorkerPlugin):
    """All engines that have something on this dask worker."""

    def __init__(self) -> None:
        self.worker: Any = None
        self.leases: dict[str, Lease] = {}
        self.tenants: dict[str, Tenant] = {}
        self._endings: set[asyncio.Task[None]] = set()

    def setup(self, worker: Any) -> None:
        """Called by dask."""
        self.worker = worker

    async def teardown(self, worker: Any) -> None:
        """Called by dask, when the worker closes."""
        del worker
        for tenant in list(self.tenants.values()):
            await tenant.close()

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Called by dask, for each change of a task's state."""
        del start
        if finish == "memory":
            if (lease := self.leases.pop(key, None)) is not None:
                lease.tenant.present.add(key)
        elif finish in ("cancelled", "released", "forgotten"):
            if (lease := self.leases.get(key)) is not None:
                lease.leave()  # and it ends itself when nothing of it runs any more
            for tenant in self.tenants.values():
                if key in tenant.present:
                    tenant.present.discard(key)
                    tenant.see()

    def let(self, key: str, tenancy: words.Tenancy) -> Lease:
        """A place for one attempt."""
        tenant = self.tenants.get(tenancy.engine)
        if tenant is None:
            tenant = self.tenants[tenancy.engine] = Tenant(self, tenancy)
        lease = self.leases[key] = Lease(self, tenant, key)
        return lease

    def see_off(self, tenant: Tenant) -> None:
        """Close a tenant."""
        task = asyncio.get_running_loop().create_task(tenant.close())
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    def end(self, lease: Lease) -> None:
        """A place that was given up is free again."""
        if self.leases.get(lease.key) is lease:
            del self.leases[lease.key]
        lease.tenant.see()


class Tenant:
    """One engine on this dask worker, and its processes."""

    def __init__(self, house: House, tenancy: words.Tenancy) -> None:
        self.house, self.tenancy = house, tenancy
        self.present: set[str] = set()
        self._opening: asyncio.Task[ProcessExecutor] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def executor(self) -> ProcessExecutor:
        """Its processes, ready."""
        opening = self._opening
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            self._opening = asyncio.get_running_loop().create_task(self._open())
        assert self._opening is not None
        return await asyncio.shield(self._opening)

    async def _open(self) -> ProcessExecutor:
        executor = ProcessExecutor(
            workers=self.house.worker.state.nthreads, env=self.tenancy.env, grace=self.tenancy.grace_s
        )
        await executor.open()
        return executor

    def see(self) -> None:
        """If nothing of the engine is here any more, let it go after a while."""
        if self._timer is None and not self._is_wanted():
            self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._let_go)

    def _is_wanted(self) -> bool:
        return bool(self.present) or any(lease.tenant is self for lease in self.house.leases.values())

    def _let_go(self) -> None:
        self._timer = None
        if not self._is_wanted():
            self.house.see_off(self)

    async def close(self) -> None:
        """End everything."""
        if self.house.tenants.get(self.tenancy.engine) is self:
            del self.house.tenants[self.tenancy.engine]
        if self._timer is not None:
            self._timer.cancel()
        for lease in list(self.house.leases.values()):
            if lease.tenant is self:
                lease.leave()
        opening, self._opening = self._opening, None
        if opening is not None:
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                await opening.result().close()
