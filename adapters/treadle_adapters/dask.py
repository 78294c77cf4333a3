"""Performs attempts on a dask cluster: on its workers, each attempt in a process of its own there.

Knows options and when there is a connection; the connection is in ``_dask_link``, what runs on dask's workers in
``_dask_house``.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Sequence
from contextvars import Context
from typing import Any

from treadle.contracts import Attempt, Performed, Raised, Sink
from treadle.errors import ExecutorUnavailable
from treadle_adapters._checks import are_names, checks, is_count, is_flag, is_time
from treadle_adapters._dask_link import Link


class DaskExecutor:
    """Performs steps on a dask cluster.

    Args:
        cluster: the scheduler's address, as ``"tcp://10.0.0.5:8786"``, or a cluster object of dask, as
            ``LocalCluster()``. By default the address that dask is configured with (``DASK_SCHEDULER_ADDRESS``).
        security: a ``distributed.Security``, for a cluster that speaks TLS; that of the cluster object by default.
        env: names of environment variables of the dask workers that steps get, beside those that they always get.
        grace: seconds between the request to end (SIGTERM) and the end (SIGKILL).
        slots: how many attempts are given to the cluster at once; beyond what it has room for, they wait there.
        bridge: carry large values through dask even where the workers could reach the artifact store.
        connect_timeout: seconds until a scheduler that does not answer is an error.

    Raises:
        OptionError: an option is not allowed.
        ExecutorUnavailable: dask is not installed.

    >>> DaskExecutor("tcp://10.0.0.5:8786", env=("AWS_PROFILE",))
    <DaskExecutor of tcp://10.0.0.5:8786>
    """

    trusted = False
    queues = True
    """Attempts may wait in the cluster, which counts resources itself; their time counts from when they begin."""

    def __init__(
        self,
        cluster: Any = None,
        *,
        security: Any = None,
        env: Sequence[str] = (),
        grace: float = 2.0,
        slots: int = 1000,
        bridge: bool = False,
        connect_timeout: float = 10.0,
    ) -> None:
        if importlib.util.find_spec("distributed") is None:
            raise ExecutorUnavailable(
                "DaskExecutor needs a library that is missing: distributed", fix="pip install 'treadle[dask]'"
            )
        check, is_known = checks("DaskExecutor"), cluster is None or bool(_address_of(cluster))
        check(is_known, "cluster", cluster, "an address, as 'tcp://host:8786', or a dask cluster that has started")
        check(security is None or _is_security(security), "security", security, "a distributed.Security")
        check(are_names(env), "env", env, "a tuple of names; values come from the environment")
        check(is_time(grace), "grace", grace, "seconds from 0")
        check(is_count(slots), "slots", slots, "a whole number from 1")
        check(is_flag(bridge), "bridge", bridge, "True or False")
        check(is_time(connect_timeout) and connect_timeout > 0, "connect_timeout", connect_timeout, "seconds above 0")
        self._cluster, self._security = cluster, security
        self._env, self._grace_s = tuple(env), float(grace)
        self._slots, self._bridge, self._connect_s = slots, bridge, float(connect_timeout)
        self.opens_urls = not bridge
        """Workers open artifact stores by their URLs."""
        self._linking: asyncio.Task[Link] | None = None
        self._is_open = False

    @property
    def slots(self) -> int:
        """How many attempts it takes at once."""
        return self._slots

    def __repr__(self) -> str:
        return f"<DaskExecutor of {_address_of(self._cluster) or 'the configured cluster'}>"

    async def open(self) -> None:
        """Connect to the scheduler.

        Raises:
            ExecutorUnavailable: it does not answer in time, or the executor is open in another engine.
        """
        if self._is_open:
            raise ExecutorUnavailable(
                "a DaskExecutor is used by two engines at once", fix="give each engine one of its own"
            )
        self._is_open = True
        try:
            await self._linked()
        except BaseException:
            self._is_open = False
            raise

    async def perform(self, attempt: Attempt, sink: Sink) -> Performed | Raised:
        """See ``treadle.contracts.Executor``."""
        link = await self._linked()
        errand = await link.send_out(attempt, sink)
        try:
            return await link.perform(errand)
        except asyncio.CancelledError:
            await link.call_off(errand)
            raise
        finally:
            link.settle(errand)

    async def close(self) -> None:
        """End what runs on the workers for this engine, and disconnect; the cluster is left as it is."""
        self._is_open = False
        linking, self._linking = self._linking, None
        if linking is not None:
            if not linking.done():
                linking.cancel()
            await asyncio.wait([linking])
            if not linking.cancelled() and linking.exception() is None:
                await linking.result().close()

    async def _linked(self) -> Link:
        """The connection; a new one if that was lost."""
        linking = self._linking
        if linking is not None and linking.done():
            failed = linking.cancelled() or linking.exception() is not None
            if failed or not linking.result().is_up:
                self._linking = None
                if not failed:
                    await linking.result().close()
        if self._linking is None:
            self._linking = asyncio.get_running_loop().create_task(self._connect(), context=Context())
        return await asyncio.shield(self._linking)

    async def _connect(self) -> Link:
        # In a thread: it takes 400 ms. Not all of it is typed.
        dask: Any = await asyncio.to_thread(importlib.import_module, "distributed")
        address = _address_of(self._cluster) or _configured_address()
        security = self._security or getattr(self._cluster, "security", None)
        client: Any = None
        try:
            client = dask.Client(
                address, asynchronous=True, set_as_default=False, timeout=self._connect_s, name="treadle",
                **({"security": security} if security is not None else {}),
            )  # fmt: skip
            await client
        except BaseException as error:
            if client is not None:
                await client.close(timeout=1)
            if not isinstance(error, Exception):
                raise
            raise ExecutorUnavailable(
                f"the dask scheduler at {address} cannot be reached",
                why=f"{error}",
                fix="see that it runs, and that its address is right",
            ) from error
        return Link(client, self._env, self._grace_s, bridge=self._bridge)


def _address_of(cluster: Any) -> str:
    """The address of a scheduler, of a cluster, or of a client's scheduler."""
    if isinstance(cluster, str):
        return cluster
    address = getattr(cluster, "scheduler_address", None) or getattr(
        getattr(cluster, "scheduler", None), "address", None
    )
    return address if isinstance(address, str) and not address.startswith("<") else ""  # "<Not Connected>"


def _configured_address() -> str:
    from dask import config

    settings: Any = config  # of which not all is typed
    address = settings.get("scheduler-address", None)
    if not isinstance(address, str) or not address:
        raise ExecutorUnavailable(
            "runtime='dask' does not know which cluster is meant",
            fix="give Engine(executors={'dask': DaskExecutor('tcp://host:8786')}), or set DASK_SCHEDULER_ADDRESS",
        )
    return address


def _is_security(value: object) -> bool:
    """Whether it is dask's; the library itself takes a third of a second to load, and whoever has one has loaded it."""
    module = sys.modules.get("distributed.security")
    return module is not None and isinstance(value, module.Security)
