"""The engine's side of a dask cluster: one connection to a scheduler, and the errands that are somewhere behind it.

Knows dask's client; what is done over there is in ``_dask_house``, one errand in ``_dask_errand``.

Theory of operation
* A task of dask's (``hold``) asks for a place; the worker that has one says so, and gets the attempt from here,
  directly. So an attempt begins once, whatever dask does with the task of a worker that dies: a second worker that has
  a place, or word of a lost one, is the end of the errand.
* What workers say comes as events of a topic, in order; it has the client's own id as its name, because dask cleans up
  after that.
* The last task of each worker is kept until there is a newer one: as long as there is one, our processes stay there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from typing import Any, Final

import msgspec

from treadle.contracts import Attempt, Needs, Performed, Raised, Sink
from treadle.errors import ExecutorUnavailable, TreadleError, WorkerProtocolError
from treadle_adapters import _dask_blobs as blobs
from treadle_adapters import _dask_words as words
from treadle_adapters._dask_errand import GIVEN_UP, Errand, not_taken
from treadle_adapters._dask_resources import Resources
from treadle_adapters._peer import folder_here, import_path

LAST_S: Final = 3.0
"""Beyond the grace: how long the end of an attempt may take to be known here."""
ORDER_S: Final = 5.0
"""How long after a task of dask's has ended its outcome may come; they travel the same way, in order."""
PATIENCE_S: Final = 30.0
MOST_GROUPS: Final = 1000
NOTHING: Final = Needs()
CANCELLED: Final = ("cancelled", "lost")


class Link:
    """One connection to a scheduler.

    Args:
        client: dask's client, asynchronous and connected.
        env, grace_s: what processes of steps get, and how long they have to end.
        bridge: carry large values through dask, also where workers could reach the store.
    """

    def __init__(self, client: Any, env: tuple[str, ...], grace_s: float, *, bridge: bool) -> None:
        self._client, self._grace_s, self._bridge = client, grace_s, bridge
        self._sender = client.scheduler_comm
        self._tenancy = words.Tenancy(uuid.uuid4().hex, client.id, env, grace_s)
        self._errands: dict[str, Errand] = {}
        self._kept: dict[str, Any] = {}
        self._threads: dict[str, int] = {}  # of each worker that has had an attempt, and is there
        self._groups: dict[str, str] = {}
        self._far: set[tuple[str, str]] = set()
        self._resources, self._proofs = Resources(client), blobs.Proofs()
        client.subscribe_topic(client.id, self._heard)
        client.subscribe_topic("all", self._heard_of_the_cluster)

    @property
    def is_up(self) -> bool:
        """Whether the scheduler is there; not another one in its place, which dask connects to by itself and which has
        never heard of what was asked for here."""
        return self._client.status == "running" and self._client.scheduler_comm is self._sender

    async def close(self) -> None:
        """End what runs for this engine on the workers, and the connection."""
        from treadle_adapters._dask_house import leave

        client = self._client
        for errand in list(self._errands.values()):
            errand.fail(ExecutorUnavailable("the executor was closed"))
        try:
            if self.is_up:
                async with asyncio.timeout(self._grace_s + 2 * LAST_S):
                    if workers := list(self._threads):
                        await client.run(leave, self._tenancy.engine, workers=workers, on_error="ignore")
                for topic in (client.id, "all"):
                    client.unsubscribe_topic(topic)  # else the scheduler says goodbye to nobody, and logs that
        except (OSError, TimeoutError):
            pass  # what is left there ends by itself, when the connection does
        finally:
            self._kept.clear()
            senders = {self._sender, client.scheduler_comm} - {None}
            with contextlib.suppress(OSError, TimeoutError):
                await client.close(timeout=LAST_S)
            await _stop(senders)
            await self._proofs.remove()

    # -- an errand ------------------------------------------------------------------------

    async def send_out(self, attempt: Attempt, sink: Sink) -> Errand:
        """Ask for a place for an attempt.

        Raises:
            ResourcesExceeded: no worker has what the step asks for.
        """
        from treadle_adapters._dask_house import hold

        resources = await self._resources.of(attempt) if attempt.needs != NOTHING else None
        errand = Errand(f"{attempt.step}-{uuid.uuid4().hex}", attempt, sink)
        near = self._near(attempt.group) if attempt.group else None
        errand.place = self._client.submit(
            hold, errand.key, words.pack(self._tenancy), key=errand.key, pure=False, retries=0,
            resources=resources or None, workers=[near] if near else None, allow_other_workers=bool(near),
        )  # fmt: skip
        self._errands[errand.key] = errand
        errand.watch = asyncio.get_running_loop().create_task(self._watch(errand))
        return errand

    async def perform(self, errand: Errand) -> Performed | Raised:
        """Have the attempt performed where a place for it is found.

        Raises:
            StepCrashed: its worker is gone, or its process.
            ExecutorUnavailable: it could not be tried.
        """
        await self._arrival(errand)
        await self._begin(errand)
        ended = await asyncio.shield(errand.ended)  # a cancelled attempt is waited for, too
        if ended.failed is not None:
            raise errand.why_not(ended.failed)
        if ended.outcome is None:
            raise errand.lost(GIVEN_UP)
        if isinstance(ended.outcome, Performed):
            await self._fetch(errand, ended.outcome)
        return ended.outcome

    async def call_off(self, errand: Errand) -> None:
        """End an attempt; comes back when nothing of it runs any more, or when that cannot be known."""
        errand.is_called_off = True
        errand.place.release()
        if errand.is_begun and not errand.ended.done():
            await asyncio.wait([errand.ended], timeout=self._grace_s + LAST_S)

    def settle(self, errand: Errand) -> None:
        """An errand is over: its place is free, or kept as the last one on its worker."""
        del self._errands[errand.key]
        if errand.watch is not None:
            errand.watch.cancel()
        errand.lose("nobody waits for it")
        place, address, was_lost = errand.place, errand.address, errand.ended.exception() is not None
        is_there = address in self._threads and self.is_up  # it may be gone since it has performed the attempt
        if errand.is_begun and is_there and not (was_lost or errand.is_called_off or place.cancelled()):
            if errand.attempt.group:
                self._remember(errand.attempt.group, address)
            self._kept[address], place = place, self._kept.get(address)
        if place is not None:
            place.release()

    # -- a place --------------------------------------------------------------------------

    def _near(self, group: str) -> str | None:
        """The worker that had the last attempt of a group, if it has a place at once."""
        address = self._groups.get(group, "")
        busy = sum(errand.address == address for errand in self._errands.values())
        return address if address in self._kept and busy < self._threads[address] else None

    def _remember(self, group: str, address: str) -> None:
        self._groups.pop(group, None)
        self._groups[group] = address
        if len(self._groups) > MOST_GROUPS:
            del self._groups[next(iter(self._groups))]

    async def _arrival(self, errand: Errand) -> None:
        done, _ = await asyncio.wait([errand.arrived], timeout=PATIENCE_S)
        if not done:
            errand.sink.say("warning", f"no worker of the dask cluster had a place in {PATIENCE_S:g} s", "log")
        await asyncio.shield(errand.arrived)
        if not errand.ended.done():
            self._threads[errand.address] = errand.threads

    async def _watch(self, errand: Errand) -> None:
        """Notice what ends a task of dask's without a word of the worker."""
        error: BaseException | None = None
        try:
            error = await errand.place.exception()
        except asyncio.CancelledError:  # as dask says that the task was, too
            if errand.place.status not in CANCELLED:
                raise
        if errand.is_called_off:
            return  # its own doing; how it ended is said by its worker
        if errand.place.status in CANCELLED:
            errand.lose("the connection to the scheduler was lost")
        elif error is not None:
            errand.fail(not_taken(error))
        else:
            await asyncio.sleep(ORDER_S)
            errand.fail(WorkerProtocolError("a dask worker has ended an attempt without an outcome"))

    # -- what is said ---------------------------------------------------------------------

    def _heard(self, event: tuple[float, Any]) -> None:
        said = event[1]
        errand = self._errands.get(str(said.get("key"))) if isinstance(said, dict) else None
        if errand is not None:
            errand.hear(said)

    def _heard_of_the_cluster(self, event: tuple[float, Any]) -> None:
        said = event[1]
        action, address = (said.get("action"), str(said.get("worker"))) if isinstance(said, dict) else ("", "")
        if action in ("add-worker", "remove-worker"):
            self._resources.forget()
        if action != "remove-worker":
            return
        if (kept := self._kept.pop(address, None)) is not None:
            kept.release()  # else dask would have another worker do it again
        self._threads.pop(address, None)
        self._far = {far for far in self._far if far[0] != address}
        for errand in list(self._errands.values()):
            if errand.address == address:
                errand.lose("its process died, or it was closed")

    # -- what is asked --------------------------------------------------------------------

    async def _begin(self, errand: Errand) -> None:
        attempt = msgspec.structs.replace(errand.attempt, started_at=time.time())
        errand.begin()
        answer = await self._ask_to_begin(errand, attempt, is_far=self._is_far(errand))
        if answer == "unreachable":
            self._far.add((errand.address, attempt.store))
            answer = await self._ask_to_begin(errand, attempt, is_far=True)
        if answer != "begun" and not errand.ended.done():
            raise errand.lost(GIVEN_UP if answer == "gone" else answer)

    def _is_far(self, errand: Errand) -> bool:
        return self._bridge or (errand.address, errand.attempt.store) in self._far

    async def _ask_to_begin(self, errand: Errand, attempt: Attempt, *, is_far: bool) -> str:
        from treadle_adapters._dask_house import begin

        carried = await asyncio.to_thread(blobs.read, attempt) if is_far else None
        proof = None if is_far or "://" in attempt.store else await self._proofs.of(attempt)
        order = words.pack(words.Order(words.pack(attempt), _around(), proof))
        answer: str = await self._call(errand, begin, errand.key, order, carried)
        return answer

    async def _fetch(self, errand: Errand, outcome: Performed) -> None:
        """Put large outputs of a worker that does not reach the store into the store."""
        from treadle_adapters._dask_house import take

        large = [output.payload for output in outcome.outputs if output.payload.location]
        if not large or not self._is_far(errand):
            return
        asked = [(payload.location, payload.size, payload.checksum) for payload in large]
        for payload, data in zip(large, await self._call(errand, take, errand.key, asked), strict=True):
            await asyncio.to_thread(blobs.write, errand.attempt, payload, data)

    async def _call(self, errand: Errand, function: Any, *args: Any) -> Any:
        """Have a function called on the worker of an errand; word that the worker is lost may be there before."""
        calling = asyncio.ensure_future(self._client.run(function, *args, workers=[errand.address]))
        try:
            if not errand.ended.done():
                await asyncio.wait([calling, errand.ended], return_when=asyncio.FIRST_COMPLETED)
            if errand.ended.done():
                errand.ended.result()
            return (await calling)[errand.address]
        except TreadleError:
            raise
        except Exception as error:
            raise errand.lost(f"{type(error).__name__}: {error}") from error
        finally:
            calling.cancel()


async def _stop(senders: set[Any]) -> None:
    """End what sends to a scheduler; dask leaves it running if the other side was the first to hang up, and it does.

    Its timers would end with the loop then, and now and then one of their futures complains that nobody looked at it.
    """
    for sender in senders:
        sender.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_S):
                await sender.close()


def _around() -> words.Around:
    return words.Around(tuple(import_path()), folder_here(), logging.getLogger().level, words.installation())
