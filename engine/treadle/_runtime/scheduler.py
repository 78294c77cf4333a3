"""Starts calls when their limits have room, a few per loop turn, so that the host's handlers come first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from treadle._core.admission import Lanes, Limits
from treadle._core.machine import CallState
from treadle._runtime.call import Call

STARTS_PER_TURN = 64


class Scheduler:
    """The line of ready calls of one engine.

    Args:
        loop: the engine's loop.
        start: called with the calls that may start.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, start: Callable[[list[Call]], None]) -> None:
        self._loop, self._start = loop, start
        self._lanes: Lanes[Call] = Lanes()
        self._waiting: dict[Call, asyncio.Future[None]] = {}
        self._pumping = False
        self._is_new_turn = True
        self.running = 0

    def push(self, call: Call) -> None:
        """Queue a call whose inputs are there; the first one of a loop turn starts at once, if it may."""
        self._lanes.push(call, self.limits_of(call), call.run.id)
        if self._is_new_turn and not self._pumping:
            self._is_new_turn = False
            self._loop.call_soon(self._new_turn)
            self._pump()
        else:
            self._pump_soon()

    def _new_turn(self) -> None:
        self._is_new_turn = True

    async def admit(self, call: Call) -> None:
        """Wait in line for a slot, within the call's own task."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting[call] = future
        self.push(call)
        try:
            await future
        except asyncio.CancelledError:
            if call.slots is None and call in self._waiting:
                self._lanes.remove(call)
            raise
        finally:
            self._waiting.pop(call, None)

    def release(self, call: Call) -> None:
        """Give a call's slot back; a second time does nothing."""
        limits: Limits | None = call.slots
        if limits is None:
            return
        call.slots = None
        self.running -= 1
        if limits:
            self._lanes.release(limits)
            self._pump_soon()

    def remove(self, call: Call) -> None:
        """Take a call that has no task out of the line, if it stands there."""
        if call.state is CallState.READY and call.task is None:
            self._lanes.remove(call)

    @staticmethod
    def limits_of(call: Call) -> Limits:
        """What a call is subject to."""
        return call.limits if call.limits is not None else call.plan.limits

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Start what may start, at most ``STARTS_PER_TURN`` calls in this turn of the loop."""
        self._pumping = False
        starting: list[Call] = []
        for _ in range(STARTS_PER_TURN):
            call = self._lanes.pop()
            if call is None:
                break
            call.slots = self.limits_of(call)
            self.running += 1
            waiting = self._waiting.get(call)
            if waiting is None:
                starting.append(call)
            elif not waiting.done():
                waiting.set_result(None)
            else:
                del self._waiting[call]  # it was cancelled while it stood in line
                self.release(call)
        else:
            self._pump_soon()
        if starting:
            self._start(starting)

    def __len__(self) -> int:
        return len(self._lanes)
