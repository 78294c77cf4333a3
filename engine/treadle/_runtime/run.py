"""One execution of a pipeline: its calls, its function, and how it ends.

The run decides nothing about a single call (``lifecycle`` does); it knows which ones are
under way, applies the failure mode, and writes the run's own facts.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from treadle import events as ev
from treadle._core import parameters
from treadle._core.admission import Limit
from treadle._core.naming import Names, base_of, child
from treadle._core.replay import Memory
from treadle._runtime import function, lifecycle
from treadle._runtime.calls import conclusion, stopping
from treadle._runtime.calls.call import Call, Ending, StepFuture
from treadle._runtime.calls.failures import interrupted
from treadle._runtime.calls.past import Past
from treadle._runtime.calls.recording import skip_behind
from treadle._runtime.calls.references import Reference, awaited_by, kept
from treadle._runtime.code import explain
from treadle._runtime.context import active_call, active_engine, active_run
from treadle._runtime.maps.mapping import MapFuture
from treadle._runtime.maps.sources import Sources
from treadle._runtime.maps.unmapped import Unmapped
from treadle._runtime.plan import Plan
from treadle._runtime.resources import capacity
from treadle._runtime.resources.capture import join_structlog
from treadle._runtime.views import queries
from treadle._runtime.views.artifact import Artifact
from treadle.errors import (
    LogUnavailable,
    RunFenced,
)
from treadle.options import UNSET, FailureMode, PipelineOptions, StepOptions
from treadle.storage.rows import ArtifactRow, Part

if TYPE_CHECKING:
    from treadle._runtime.engine import Engine
    from treadle._runtime.maps.feeder import Feeder
    from treadle._runtime.pipeline import PipelineFn
    from treadle._runtime.step import Step
    from treadle._runtime.views.step_results import StepResult


LOST_GRACE_S = 1.0


def context_for(parent: Run | None, options: PipelineOptions) -> dict[str, Any]:
    """What fills parameters in a run: the pipeline's context, over that of the run that it is a child of."""
    return {**(parent.context if parent is not None else {}), **(options.context or {})}


class Run:
    """A run that this engine owns."""

    is_compiling = False
    artifacts_given: tuple[int, ...] = ()
    context: Mapping[str, Any]

    def __init__(
        self, engine: Engine, run_id: str, target: PipelineFn[..., Any], options: PipelineOptions,
        args: tuple[Any, ...], kwargs: dict[str, Any], parent: Run | None = None, parent_call: str = "",
    ) -> None:  # fmt: skip
        self.engine, self.id, self.target, self.options = engine, run_id, target, options
        self.args, self.kwargs, self.parent, self.parent_call = args, kwargs, parent, parent_call
        self.loop = engine.loop
        self.name: str = target.name
        self.epoch = 1
        self.past = Past(engine, run_id)
        self.active: dict[Call, None] = {}
        self.feeders: dict[Feeder[Any], None] = {}
        self.children: dict[Run, None] = {}
        self.names = Names()
        self.memory: Memory | None = None
        self.failed: list[Call] = []
        self.skipped: list[Call] = []
        self.map_errors: list[BaseException] = []
        self.errors: list[BaseException] = []
        self.call_errors: dict[str, BaseException] = {}
        self.is_over = False
        self.lost: BaseException | None = None
        self.status = "running"
        self.error: BaseException | None = None
        self.value: Any = None
        self.value_row: ArtifactRow | None = None
        self.reused = self.performed = 0
        self.now, self.ticks = engine.clock.time, engine.clock.monotonic
        self.created_at, self.ended_at = self.now(), 0.0
        self.recoverable = True
        self.debug: bool = options.debug is True or (parent is not None and parent.debug)
        self.debug_lock: asyncio.Lock = parent.debug_lock if parent is not None else asyncio.Lock()
        self.failure_mode: FailureMode = options.failure_mode or "fail_fast"
        self.timeout_s: float | None = options.timeout or None
        self.ending: Ending | None = None
        self.attached = 0
        self.is_detached = False
        self.claimed_children: set[str] = set()
        self._renamed_maps: dict[str, str] = {}
        self.is_sealed = False
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.accepted: asyncio.Future[None] = self.loop.create_future()
        for future in (self.done, self.accepted):
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.task: asyncio.Task[None] | None = None
        self.failed_children: list[Run] = []
        self.was_observed = False
        self.submitted = 0
        self.failures_seen = 0
        self._publishing: deque[Call] = deque()
        self._has_begun = False
        self.thread_id = 0
        self._plans: dict[Step[..., Any], Plan] = {}
        self._step_defaults = engine.step_defaults
        if options.cache is not UNSET or options.retry is not UNSET:
            own = StepOptions(cache=options.cache, retry=options.retry)
            self._step_defaults = engine.step_defaults.over(own)
        self.clamped: frozenset[str] = frozenset()
        self.idle: asyncio.Future[None] | None = None
        self.use_context(context_for(parent, options))
        concurrency = options.max_concurrency or (1 if self.debug else None)
        self._limit = Limit(concurrency) if concurrency else None

    # -- submitting -----------------------------------------------------------------------

    def use_context(self, context: Mapping[str, Any]) -> None:
        """Fill parameters from these values."""
        self.context, self.fills = context, bool(context)
        self.given = _shared(context)

    def fill(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name, with what the context has for the others.

        Raises:
            TypeError: the arguments do not fit the function.
        """
        kwargs = parameters.filled(step.binder, self.given, args, kwargs)
        step.binder.check(args, kwargs)
        return kwargs

    def plan(self, step: Step[..., Any]) -> Plan:
        """What the step means in this run; decided at its first call."""
        step = step.planned
        plan = self._plans.get(step)
        if plan is None:
            plan = self._plans[step] = self._plan_of_others(step) or self._new_plan(step)
        return plan

    def _plan_of_others(self, step: Step[..., Any]) -> Plan | None:
        """What an earlier run of this engine has decided for the step, if this one would decide the same."""
        plan: Plan | None = step.plan if self._decides_as_others else None
        identities = self.engine.identities
        if plan is not None and plan.era is identities.era and plan.fn is step.fn and identities.stands(plan.known):
            return plan
        return None

    def _new_plan(self, step: Step[..., Any]) -> Plan:
        engine = self.engine
        options = self._step_defaults.over(step.options)
        plan = engine.placed(Plan(step, options, engine.identities), debug=self.debug)
        explain.keep_manifest(engine, plan)
        in_flight = engine.step_limit(step) if options.max_in_flight else None
        if plan.executor is not None:
            threads = plan.executor.limit
        else:
            threads = None if plan.is_async or self.debug else engine.thread_limit
        plan.in_flight = in_flight
        plan.limited((engine.limit, self._limit, in_flight, threads, *capacity.bounds(self, plan, options.rate)))
        if self._decides_as_others and plan.is_for_all_runs:
            step.plan = plan
        return plan

    @property
    def _decides_as_others(self) -> bool:
        """Whether nothing but the engine and the step decides what the step means here."""
        return self._step_defaults is self.engine.step_defaults and self._limit is None and not self.debug

    def submit(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepFuture[Any]:
        """Submit one call; on the loop only."""
        self.engine.check_usable()
        plan = self.plan(step)
        references = awaited_by(self, plan, args, kwargs, step.options.after)
        if references:
            args, kwargs = kept(args, kwargs)
        call = lifecycle.bind(self, plan, self.names.take(plan.name), None, args, kwargs)
        future = call.asked_future()
        call.context = contextvars.copy_context()
        if self.ending is not None:
            stopping.stop(call, self.ending)
        else:
            lifecycle.await_inputs(call, references)
        return future

    def submit_as(
        self, name: str, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
        references: Sequence[Reference] | None = None,
    ) -> StepFuture[Any]:  # fmt: skip
        """Submit a call of a static run, whose names are given before; one that comes too late has its end at once.

        Args:
            name, step, args, kwargs: of the call.
            references: the futures among its arguments, if they are known.
        """
        self.engine.check_usable()
        plan = self.plan(step)
        if self.fills:
            kwargs = parameters.filled(step.binder, self.given, args, kwargs)
        if references is None:
            references = awaited_by(self, plan, args, kwargs, step.options.after)
        call = lifecycle.bind(self, plan, name, None, args, kwargs)
        future = call.asked_future()
        call.context = contextvars.copy_context()
        lifecycle.await_inputs(call, references)
        if self.ending is not None:
            calls = [reference._call for reference in references if isinstance(reference, StepFuture)]
            stopping.stop_late(call, calls, self.ending)
        return future

    def skip_as(self, name: str, step: Step[..., Any], upstream: str, error: BaseException | None) -> StepFuture[Any]:
        """Have a result for a call of a static run that takes the value of a child run that did not succeed."""
        self.engine.check_usable()
        call = lifecycle.bind(self, self.plan(step), name, None, (), {})
        future = call.asked_future()
        if self.ending is not None and error is None:
            stopping.stop(call, self.ending)
        else:
            skip_behind(call, upstream, error)
        return future

    def submit_map(
        self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], product: bool = False, name: str = ""
    ) -> MapFuture[Any]:
        """Submit one call per item, or per combination of items; on the loop only."""
        self.engine.check_usable()
        if self.fills:
            filled = parameters.filled(step.binder, self.given, args, kwargs)
            kwargs = {n: v if n in kwargs or isinstance(v, Unmapped) else Unmapped(v) for n, v in filled.items()}
        sources = Sources(self, args, kwargs, product=product)
        return MapFuture(self, step, name or self.names.take(step.name), sources)

    def submit_child(
        self, group: Feeder[Any], index: int, args: tuple[Any, ...], kwargs: dict[str, Any] | None
    ) -> None:
        """Submit one call of a map."""
        references = awaited_by(self, group._plan, args, kwargs, group._step.options.after)
        if references:
            args, kwargs = kept(args, kwargs)
        call = lifecycle.bind(self, group._plan, child(group.name, index), index, args, kwargs)
        group._adopt(call)
        if self.ending is not None:
            stopping.stop(call, self.ending)
        else:
            lifecycle.await_inputs(call, references)

    # -- what calls report ----------------------------------------------------------------

    def append(self, event: ev.Event) -> Part:
        """Write a fact about this run; what comes after its end (a body that was left behind, say) is dropped."""
        if self.is_sealed:
            return Part(self.id, self.epoch)
        return self.engine.log.append(self.id, self.epoch, event)

    def part(self) -> Part:
        """The place in the coming commit for this run."""
        return self.engine.log.part(self.id, self.epoch)

    def add_artifacts(self, rows: Sequence[ArtifactRow], key: bytes) -> tuple[int, ...]:
        """Add a call's outputs to the coming commit, and its cache entry; gives their places in it."""
        if not rows:
            return ()
        part = self.part()
        first = len(part.artifacts)
        part.artifacts.extend(rows)
        if key:
            part.cache.append((key, first, len(rows)))
            self.engine.lookup.note(key)
        return (first,) if len(rows) == 1 else tuple(range(first, first + len(rows)))

    def committed(self, part: Part) -> asyncio.Future[None]:
        """A future of the commit of what was appended last."""
        committed = _Committed(self.loop)
        committed.future.add_done_callback(lambda done: done.cancelled() or done.exception())
        part.waiters.append(committed)
        self.engine.log.kick()
        return committed.future

    def publish(self, call: Call) -> None:
        """A call's outcome need not wait for its commit.

        One after another: what a failure skips is published here in its turn; a long chain would overflow the stack.
        """
        self._publishing.append(call)
        if len(self._publishing) > 1:
            return
        while self._publishing:
            try:
                lifecycle.publish(self._publishing[0], None)
            finally:
                self._publishing.popleft()

    resolve = staticmethod(lifecycle.resolve)

    def cancel_call(self, call: Call, ending: Ending, future: StepFuture[Any] | None = None) -> bool:
        """Cancel one call; one whose outcome is on its way to the log lets go of the future only."""
        if stopping.stop(call, ending):
            return True
        return future is not None and not future.done() and asyncio.Future.cancel(future, future._cancel_message)

    def call_ended(self, call: Call) -> None:
        """A call has its outcome and everybody knows."""
        self.active.pop(call, None)
        if call.group is not None:
            call.group._child_ended(call)
        call.let_go()
        if self.idle is not None:
            self._wake_if_idle()

    def map_call_failed(self, dependent: Call, failed: Call) -> None:
        """One call of a map that a call takes whole has failed: it is skipped now, however many are to come."""
        lifecycle.input_ended(dependent, failed)

    def map_ended(self, dependent: Call, group: Feeder[Any]) -> None:
        """A map that a call takes whole has ended, well or not; of its failures the call knows."""
        if group.missing is not None:
            lifecycle.input_missing(dependent, group.name, group.missing)
        elif not group.failures:
            lifecycle.input_came(dependent)

    def map_failed(self, group: Feeder[Any], error: BaseException) -> None:
        """The input of a map raised while it was read."""
        error.add_note(f"while the input of map {group.name} was read")
        self.map_errors.append(error)

    def map_handled(self, error: BaseException) -> None:
        """Somebody has retrieved what the input of a map raised."""
        self.map_errors = [known for known in self.map_errors if known is not error]

    def feeder_ended(self) -> None:
        """A map has made its last call."""
        self._wake_if_idle()

    def artifacts_of(self, call: Call) -> dict[str, Artifact[Any]]:
        """The stored outputs of an ended call."""
        return self.past.artifacts_of(call)

    # -- names in a resumed run -----------------------------------------------------------

    def rename_if_taken(self, call: Call) -> None:
        """A new call must not carry the name of a recorded one that is another call."""
        if self.memory is not None and call.name in self.memory.names:
            if call.index is None:
                call.name = self._fresh_name(call.plan.name)
                return
            group = base_of(call.name)
            if group not in self._renamed_maps:
                self._renamed_maps[group] = self._fresh_name(call.plan.name)
            call.name = child(self._renamed_maps[group], call.index)

    def name_of_map(self, name: str) -> str:
        """The name that the calls of a map have in the log."""
        return self._renamed_maps.get(name, name)

    def _fresh_name(self, base: str) -> str:
        assert self.memory is not None
        name = self.names.take(base)
        while name in self.memory.bases:
            name = self.names.take(base)
        return name

    # -- the function ---------------------------------------------------------------------

    def start(self) -> None:
        """Begin: the function runs in a task of its own."""
        join_structlog()
        context = contextvars.copy_context()
        context.run(active_run.set, self)
        context.run(active_call.set, None)
        context.run(active_engine.set, self.engine)
        self.engine.runs_here[self.id] = self
        if self.parent is not None:
            self.parent.children[self] = None
            if self.parent.ending is not None:
                self.stop(conclusion.for_a_child(self.parent.ending))
        self.task = self.loop.create_task(self._main(), context=context)
        self.task.add_done_callback(self._end_unbegun)

    def _end_unbegun(self, task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first step never makes it: the loop ends as the run begins."""
        if not self.is_over:
            self.ending, self.error, self.ended_at = "interrupt", interrupted(self.id), self.now()
            part = self.append(ev.RunInterrupted(at=self.ended_at, reason="the loop ended"))
            part.ended = ("interrupted", self.ended_at)
            self.engine.log.kick()
            self._over()

    async def _main(self) -> None:
        limit_s = None if self.debug else self.timeout_s
        timer = self.engine.clock.call_later(limit_s, self.stop, "run_timeout") if limit_s else None
        value, error, self._has_begun = None, None, True
        try:
            value = await function.perform(self)
        except BaseException as caught:
            error = caught
        try:
            value, error = await conclusion.end_calls(self, value, error)
            await conclusion.record(self, value, error)
        except BaseException as caught:
            self.value = None
            self.error = self.error or caught
            if isinstance(caught, (LogUnavailable, RunFenced)):
                self.lost = self.lost or caught
        finally:
            if timer is not None:
                timer.cancel()
            self._over()

    @property
    def failure_count(self) -> int:
        """How many failures have come up so far, handled or not."""
        return len(self.failed) + len(self.map_errors) + len(self.failed_children)

    def _wake_if_idle(self) -> None:
        idle = self.idle
        if idle is None or idle.done():
            return
        if not (self.active or self.feeders or self.children) or self.failure_count > self.failures_seen:
            idle.set_result(None)

    def unhandled(self) -> list[BaseException]:
        """Errors that nobody has retrieved, in the order of submission."""
        for call in self.skipped:
            if call.is_handled:
                call.observed()
                if self.map_errors and call.error is not None and call.error.__cause__ is not None:
                    self.map_handled(call.error.__cause__)
        failed = sorted((call for call in self.failed if not call.is_handled), key=lambda call: call.order)
        errors = [call.error for call in failed if call.error is not None]
        children = [run.error for run in self.failed_children if not run.was_observed and run.error is not None]
        return [*errors, *self.map_errors, *children]

    # -- ending ---------------------------------------------------------------------------

    def raise_if_ending(self) -> None:
        """A ``def`` pipeline learns from its next step call that it was told to stop."""
        if self.ending in ("caller", "interrupt", "run_timeout"):
            raise asyncio.CancelledError(f"run {self.id} is being stopped")

    def raise_if_left_behind(self) -> None:
        """The thread of a ``def`` pipeline that outlived its run gets the cancellation, too."""
        if self.thread_id == threading.get_ident():
            raise asyncio.CancelledError(f"run {self.id} was stopped")

    @property
    def is_ending_early(self) -> bool:
        """Whether the run is being cut off, so that it can be resumed: it was told so, or its loop is ending."""
        return self.ending == "interrupt" or (
            self.ending is None and self.task is not None and self.task.cancelling() > 0
        )

    def stop(self, ending: Ending) -> None:
        """End the run from outside: its function, its children and all its calls."""
        if self.is_over or self.ending not in (None, "failure"):
            return
        self.ending = ending
        for run in list(self.children):
            run.stop(conclusion.for_a_child(ending))
        if self.task is not None and self._has_begun:
            self.task.cancel()
        self.stop_calls(ending)

    def stop_calls(self, ending: Ending) -> None:
        """Cancel every call that has no outcome, and make no more."""
        if self.ending is None:
            self.ending = ending
        for feeder in list(self.feeders):
            feeder.halt()
        for call in list(self.active):
            stopping.stop(call, ending)

    def cut_off(self, error: BaseException) -> None:
        """The log has lost a fact of this run, so it can say nothing more of it: the run ends here, to be resumed.

        Who awaits a call gets the log's error first; a function that goes on all the same is stopped after a while.
        """
        if self.is_over or self.lost is not None:
            return
        self.lost = error
        self.stop_calls("failure")
        self.loop.call_later(LOST_GRACE_S, self.stop, "interrupt")

    def _over(self) -> None:
        self.is_over = True
        self.args, self.kwargs = (), {}  # a timer that a body has called off holds its context, and so this, for long
        if self.lost is not None:
            self.status, self.error = "interrupted", conclusion.lost_error(self.lost, self.error)
        if self.status == "running":
            self.status = "failed" if self.error is not None else "interrupted"
        conclusion.settle_errors(self)
        self.engine.pool.end_leases(self.id)
        self.engine.runs_here.pop(self.id, None)
        if self.parent is not None:
            self.parent.children.pop(self, None)
            if self.status == "failed":
                self.parent.failed_children.append(self)
            self.parent._wake_if_idle()
        if not self.done.done():
            self.done.set_result(None)

    def errors_of_calls(self) -> dict[str, BaseException]:
        """The errors themselves, by call name, of what has failed or was skipped so far."""
        return {call.name: call.error for call in (*self.failed, *self.skipped) if call.error is not None}

    # -- results --------------------------------------------------------------------------

    def artifact_of(self, call: Call, output: str | None) -> Artifact[Any]:
        """One stored output of an ended call."""
        return queries.artifact_of(call, output, self.engine.vault)

    async def results_of(self, names: Sequence[str]) -> list[StepResult]:
        """The results of ended calls, from the log."""
        return await queries.step_results(self.engine, self.id, names)

    def outcome(self) -> Any:
        """The value of the ended run, or its error raised."""
        self.was_observed = True
        if self.error is not None:
            raise self.error
        return self.value

    def __repr__(self) -> str:
        return f"<Run {self.id} of {self.name} {self.status}>"


class _Committed:
    """Turns the log's acknowledgement into a future."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[None] = loop.create_future()

    def on_commit(self, error: BaseException | None, /) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)


def _shared(context: Mapping[str, Any]) -> dict[str, Any]:
    if not context:
        return {}
    from treadle._runtime.static.performing import shared  # most runs have no context, and no static pipeline

    return shared(context)
