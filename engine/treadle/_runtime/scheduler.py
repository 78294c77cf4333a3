"""Starts calls when their limits have room, a few per loop turn, so that the host's handlers come first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from treadle._core.admission import Lanes, Limit, Limits
from treadle._core.machine import CallState, Trigger
from treadle._core.rate import Pace
from treadle._runtime.calls.call import Call
from treadle.limits import Rate

if TYPE_CHECKING:
    from treadle._runtime.step import Step
    from treadle.contracts import Clock, Timer

STARTS_PER_TURN = 32


class Scheduler:
    """The line of ready calls of one engine.

    Args:
        loop: the engine's loop.
        start: called with the calls that may start.
        clock: tells the time, for steps with a rate.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, start: Callable[[list[Call]], None], clock: Clock) -> None:
        self._loop, self._start, self._clock = loop, start, clock
        self._lanes: Lanes[Call] = Lanes()
        self._waiting: dict[Call, tuple[asyncio.Future[None], Limits]] = {}
        self._alarm: Timer | None = None
        self._alarm_at = 0.0
        self._paces: WeakKeyDictionary[Step[..., Any], dict[Rate, Pace]] = WeakKeyDictionary()
        self._pumping = False
        self._is_new_turn = True
        self.running = 0

    def push(self, call: Call) -> None:
        """Queue a call whose inputs are there; the first one of a loop turn starts at once, if it may."""
        self._push(call, call.limits if call.limits is not None else call.plan.limits)

    def _push(self, call: Call, limits: Limits) -> None:
        self._lanes.push(call, limits, call.run.id)
        if self._pumping:
            return
        if self._is_new_turn:
            self._is_new_turn = False
            self._loop.call_soon(self._new_turn)
            self._pump()
        else:
            self._pump_soon()

    def _new_turn(self) -> None:
        self._is_new_turn = True

    async def admit(self, call: Call, limits: Limits | None = None) -> None:
        """Wait in line for a slot, within the call's own task; ``limits`` if it is not subject to its usual ones."""
        future: asyncio.Future[None] = self._loop.create_future()
        limits = self.limits_of(call) if limits is None else limits
        self._waiting[call] = future, limits
        self._push(call, limits)
        try:
            await future
        except asyncio.CancelledError:
            if call.slots is None and call in self._waiting:
                self._lanes.remove(call)
                self._pump_soon()  # an alarm that only this one needed is called off
            raise
        finally:
            self._waiting.pop(call, None)

    def pace_of(self, step: Step[..., Any], rate: Rate) -> Pace:
        """The pace of a step in this engine; a rate of its own that a copy of the step has counts for itself."""
        paces = self._paces.setdefault(step, {})
        return paces.setdefault(rate, Pace(rate))

    async def pace(self, call: Call) -> None:
        """Wait until the step's rate lets an attempt begin, without a slot; a call that may begin at once keeps it."""
        pace = call.plan.pace
        if pace is None:
            return
        now = self._clock.monotonic()
        if not pace.waiting and pace.is_open(now):
            pace.take(now)
            return
        call.move(Trigger.PACE)
        self.release(call)
        await self.admit_attempt(call)
        call.move(Trigger.ADMITTED)

    async def admit_attempt(self, call: Call) -> None:
        """Wait in line for a slot in which an attempt begins: for the step's rate, too."""
        pace = call.plan.pace
        if pace is None:
            await self.admit(call)
            return
        pace.waiting += 1
        pace.room.used += 1
        try:
            await self.admit(call, (*[limit for limit in self.limits_of(call) if limit is not pace.room], pace))
        except asyncio.CancelledError:
            self._give_back_start(call)
            raise
        finally:
            pace.waiting -= 1
            pace.room.used -= 1
            self._pump_soon()

    @staticmethod
    def _give_back_start(call: Call) -> None:
        """A call was admitted at its pace and cancelled before its attempt began."""
        pace = call.plan.pace
        if pace is not None and pace in (call.slots or ()):
            pace.give_back()

    def release(self, call: Call, keep: Limit | None = None) -> None:
        """Give a call's slot back (but for one limit to keep); a second time does nothing."""
        limits: Limits | None = call.slots
        if limits is None:
            return
        if keep is not None and keep in limits:
            call.slots = (keep,)
            self._lanes.release(tuple([limit for limit in limits if limit is not keep]))
            self._pump_soon()
            return
        call.slots = None
        self.running -= 1
        if limits:
            self._lanes.release(limits)
            self._pump_soon()

    def hand_over(self, giver: Call, taker: Call) -> None:
        """Start a call in the slot of one that has ended, before all others, if its other limits have room for it."""
        self.release(giver)
        limits = self.limits_of(taker)
        if self._lanes.take(limits, self._clock.monotonic()):
            taker.slots = limits
            self.running += 1
            self._start([taker])
        else:
            self._push(taker, limits)

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
        now = self._clock.monotonic() if self._lanes.is_paced else 0.0
        starting: list[Call] = []
        for _ in range(STARTS_PER_TURN):
            call = self._lanes.pop(now)
            if call is None:
                break
            self.running += 1
            waiting = self._waiting.get(call) if self._waiting else None
            if waiting is None:
                call.slots = call.limits if call.limits is not None else call.plan.limits
                starting.append(call)
                continue
            admitted, call.slots = waiting
            if not admitted.done():
                admitted.set_result(None)
            else:
                del self._waiting[call]  # it was cancelled while it stood in line
                self._give_back_start(call)
                self.release(call)
        else:
            self._pump_soon()
        if self._alarm is not None or self._lanes.is_paced:
            self._set_alarm()
        if starting:
            self._start(starting)

    def _set_alarm(self) -> None:
        """Look again when the next rate lets somebody start."""
        at = self._lanes.opens_at
        now = self._clock.monotonic()
        if self._alarm is not None:
            if at is not None and at == self._alarm_at and at > now:
                return
            self._alarm.cancel()
            self._alarm = None
        if at is not None and at > now:
            self._alarm, self._alarm_at = self._clock.call_later(at - now, self._ring), at

    def _ring(self) -> None:
        self._alarm = None
        if not self._pumping:
            self._pump()

    def __len__(self) -> int:
        return len(self._lanes)
