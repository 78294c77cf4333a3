"""The pipeline function of a static run: it submits what was compiled, and returns futures of what was asked for.

Knows a program; all else, from the cache to the failure mode, is the run's, as in a dynamic pipeline. Calls are
submitted at once and wait for each other as futures do. Only what takes the value of a child run is submitted later,
when that run has ended: a call can wait for calls, and not for runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from treadle._core.binding import PLAIN, find, replace
from treadle._core.wiring import FromContext, Given
from treadle._runtime.calls import conclusion
from treadle._runtime.calls.call import StepFuture
from treadle._runtime.maps.mapping import MapFuture
from treadle._runtime.maps.unmapped import Unmapped
from treadle._runtime.static.placeholder import ItemPlaceholder, Placeholder
from treadle._runtime.static.program import Node, Program
from treadle.errors import UpstreamFailed
from treadle.options import UNSET

if TYPE_CHECKING:
    from treadle._runtime.handle import RunHandle
    from treadle._runtime.run import Run

PER_TURN = 64
_StandIns = (Placeholder, Given, FromContext, Unmapped)


class Lost:
    """Stands for a value that does not come, since a child run or what it takes has failed."""

    __slots__ = ("error", "name")

    def __init__(self, name: str, error: BaseException | None) -> None:
        self.name, self.error = name, error


async def perform(run: Run) -> Any:
    """Submit everything, and give what the run's value is made of: futures, and values of child runs.

    Raises:
        ValidationError: the run was taken up again, and its pipeline is not sound any more.
        asyncio.CancelledError: the run was told to stop; every call has its result nevertheless.
    """
    target = run.target.prepared(run.engine, run.context, run.args, run.kwargs)
    assert target.program is not None
    work = _Performance(run, target.program)
    try:
        if run.ending is not None:
            raise asyncio.CancelledError
        await work.submit_all()
    except asyncio.CancelledError:
        if run.ending is None:
            run.stop("interrupt")  # nobody told this run to stop, so its loop is ending
        await work.submit_rest()
        raise
    return work.value()


class _Performance:
    """One run of a program; ``_made`` has what became of a node: a future, a map, a child run's value, or ``Lost``.

    Of most nodes it is known what they wait for (``Node.is_simple``), so that their arguments are not searched again.
    """

    def __init__(self, run: Run, program: Program) -> None:
        self._run, self._program = run, program
        self._made: dict[int, Any] = {}
        self._can_lose = any(node.kind == "child" for node in program.nodes)
        self._is_open = not PLAIN.issuperset(map(type, run.given.values()))
        self._children: set[asyncio.Task[None]] = set()
        self._handles: dict[int, RunHandle[Any]] = {}
        self._inputs = shared(run.kwargs.get("inputs") or {}) if run.target.is_wired else {}
        run.names = program.names.copy()

    async def submit_all(self) -> None:
        """Submit all nodes, those behind a child run after its end; answer failures meanwhile."""
        left: list[int] = list(self._program.order)
        try:
            while left:
                left = await self._submit_ready(left)
                if self._children:
                    await self._news()
            while self._children:
                await self._news()
        finally:
            for task in self._children:
                task.cancel()

    async def _submit_ready(self, indices: list[int]) -> list[int]:
        """Submit those that wait for no child run; gives the others."""
        left: list[int] = []
        count = 0
        for index in indices:
            node = self._program.nodes[index]
            if self._can_lose and any(need not in self._made for need in node.needs):
                left.append(index)
            elif node.kind == "child":
                self._start_child(node)
            else:
                self._submit(node)
                count += 1
                if count % PER_TURN == 0:
                    await asyncio.sleep(0)
                    conclusion.answer_failures(self._run)
        return left

    async def submit_rest(self) -> None:
        """The run is being stopped: submit what is left, which ends at once, so that every step has its result."""
        count = 0
        for index in self._program.order:
            node = self._program.nodes[index]
            if index in self._made:
                continue
            if node.kind == "child":
                self._made[index] = self._lost_child(node)
                continue
            self._submit(node)
            count += 1
            if count % PER_TURN == 0:
                await asyncio.sleep(0)

    def _lost_child(self, node: Node) -> Lost:
        """A child run that was cut off, or the one whose failure ends this run."""
        handle = self._handles.get(node.index)
        run = handle._run if handle is not None else None
        if run is not None and run.status == "failed":
            return Lost(node.name, run.error)
        made = (self._made.get(need) for need in node.needs)
        return next((Lost(node.name, lost.error) for lost in made if isinstance(lost, Lost)), Lost(node.name, None))

    def value(self) -> Any:
        """What the run gives."""
        value = self._program.value
        if self._run.target.is_wired:
            return conclusion.Outputs({name: self._resolved(output) for name, output in value.items()})
        return self._resolved(value)

    # -- calls and maps -------------------------------------------------------------------

    def _submit(self, node: Node) -> None:
        if self._can_lose:
            lost = next((lost for need in node.needs if (lost := _lost(self._made[need])) is not None), None)
            if lost is not None:
                self._skip(node, lost)
                return
        if node.is_plain:
            args, kwargs = node.args, node.kwargs
        else:
            args = tuple([self._resolved(value) for value in node.args])
            kwargs = {name: self._resolved(value) for name, value in node.kwargs.items()} if node.kwargs else {}
        if node.is_simple and not self._can_lose and not self._is_open:
            references = [self._made[need] for need in node.needs]
            self._made[node.index] = self._run.submit_as(node.name, node.step, args, kwargs, references)
        else:
            self._submit_slowly(node, args, kwargs)

    def _skip(self, node: Node, lost: Lost) -> None:
        is_call = node.kind == "call"
        self._made[node.index] = self._run.skip_as(node.name, node.step, lost.name, lost.error) if is_call else lost

    def _submit_slowly(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        run, step = self._run, node.step
        if node.after is not UNSET and next(find((node.after,), (Placeholder,)), None) is not None:
            step = step.with_options(after=self._resolved(node.after))
        if node.kind == "map":
            self._made[node.index] = run.submit_map(step, args, kwargs, node.is_product, node.name)
        else:
            self._made[node.index] = run.submit_as(node.name, step, args, kwargs)

    def _resolved(self, value: Any) -> Any:
        kind = type(value)
        if kind in PLAIN:
            return value
        if kind is Placeholder and not value._output:
            return self._made[value._node.index]
        return self._inputs[value.name] if kind is Given else replace(value, _StandIns, self._meant)

    def _meant(self, item: Any) -> Any:
        if type(item) is Placeholder and not item._output:
            return self._made[item._node.index]
        if isinstance(item, Given):
            return self._inputs[item.name]
        if isinstance(item, FromContext):
            return self._run.given[item.name]
        if isinstance(item, Unmapped):
            has_more = next(find((item.value,), _StandIns), None) is not None
            return Unmapped(self._resolved(item.value)) if has_more else item
        made = self._made[item._node.index]
        if isinstance(item, ItemPlaceholder) and isinstance(made, MapFuture):
            made = made[item._index]
        if not item._output:
            return made
        if isinstance(made, MapFuture):
            return [future.output(item._output) for future in made]
        return made.output(item._output) if isinstance(made, StepFuture) else made

    # -- child runs -----------------------------------------------------------------------

    def _start_child(self, node: Node) -> None:
        self._children.add(self._run.loop.create_task(self._live_child(node)))

    async def _live_child(self, node: Node) -> None:
        """Wait for what a child run takes, perform it, and note its value."""
        lost = await self._first_lost(node)
        self._made[node.index] = lost if lost is not None else await self._child_value(node)

    async def _first_lost(self, node: Node) -> Lost | None:
        """Wait for inputs without taking notice of their errors, which are the run's."""
        for need in node.needs:
            made = self._made[need]
            if isinstance(made, Lost):
                return made
            if isinstance(made, MapFuture):
                await made._all_ended()
                if made.failures or made.missing is not None:
                    return Lost(made.name, made.failures[0].error if made.failures else made.missing)
            elif isinstance(made, StepFuture):
                if not made.done():
                    await asyncio.wait([made])
                call = made._call
                if call.outcome not in ("succeeded", "cached", "skipped") or call.error is not None:
                    return Lost(call.name, call.error)
        return None

    async def _child_value(self, node: Node) -> Any:
        run = self._run
        if run.ending is not None:
            return Lost(node.name, None)
        try:
            args = tuple([self._resolved(value) for value in node.args])
            handle = node.step._handle(run, args, {name: self._resolved(v) for name, v in node.kwargs.items()})
            self._handles[node.index] = handle
            launched = await handle.ended()
            if launched.run is None:
                return (await launched.result()).value
            if launched.run.error is None:
                return launched.run.value
            error: BaseException = launched.run.error
            if launched.run.status == "failed":
                return Lost(node.name, error)  # the parent knows of failed children
        except Exception as caught:
            error = caught
        if run.ending is not None:
            return Lost(node.name, None)  # cut off with this run
        run.map_errors.append(error)
        return Lost(node.name, error)

    async def _news(self) -> None:
        """Wait until a child run has ended or something has failed, and answer that."""
        run = self._run
        conclusion.answer_failures(run)
        run.failures_seen = run.failure_count
        run.idle = run.loop.create_future()
        await asyncio.wait([run.idle, *self._children], return_when=asyncio.FIRST_COMPLETED)
        for task in [task for task in self._children if task.done()]:
            self._children.discard(task)
            task.result()
        conclusion.answer_failures(run)


def _lost(made: Any) -> Lost | None:
    """What a node has lost, also behind calls that have lost theirs."""
    if isinstance(made, StepFuture) and isinstance(made._call.error, UpstreamFailed):
        return Lost(made.name, made._call.error.__cause__)
    return made if isinstance(made, Lost) else None


def shared(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that several calls may take: digested once, and copied for each call if they are small and mutable."""
    return {name: value if type(value) in PLAIN else Unmapped(value) for name, value in values.items()}
