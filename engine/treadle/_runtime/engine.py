"""The engine: what one process owns of one home, from opening to close. Everything else is told elsewhere."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextvars import Context, Token
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Never, ParamSpec, TypeVar, cast, overload
from weakref import WeakKeyDictionary

from treadle._core.admission import Limit
from treadle._runtime import defaults
from treadle._runtime.bridge import LivesOnLoop
from treadle._runtime.context import active_engine, is_importing
from treadle.checks import Duration, check_choice, check_flag, check_known, check_place, check_whole, seconds
from treadle.errors import EngineClosed, EngineElsewhere, EngineForked, StepNotImportable
from treadle.limits import OVERCOMMITS, Overcommit, Resources
from treadle.options import DURABILITIES, UNSET, CachePolicy, Durability, Keep, PipelineOptions, Retry, StepOptions

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

    from treadle._runtime.calls.call import Call
    from treadle._runtime.handle import RunHandle
    from treadle._runtime.home.holdings import Holdings
    from treadle._runtime.home.resuming import Changed
    from treadle._runtime.isolation.bridging import Bridge
    from treadle._runtime.isolation.executors import Executors
    from treadle._runtime.pipeline import PipelineFn
    from treadle._runtime.plan import Plan
    from treadle._runtime.resources.capacity import Capacity
    from treadle._runtime.resources.routes import Routes
    from treadle._runtime.run import Run
    from treadle._runtime.step import Step
    from treadle._runtime.views.artifact import Artifact
    from treadle._runtime.views.results import RunResult
    from treadle.contracts import Clock, Executor
    from treadle.events import Event, Logged

P = ParamSpec("P")
R = TypeVar("R")


class Engine(LivesOnLoop):
    """An embedded engine on one home; use it with ``async with``.

    Args:
        home: a folder, ``"memory://"``, or ``None`` for ``TREADLE_HOME`` or ``.treadle`` beside the project's files.
        artifacts: where large artifacts go: ``None`` for the home, else a folder or an fsspec URL.
        durability: ``"strict"`` (a future resolves after its outcome is on the disk), ``"relaxed"`` (written
            behind, a crash leaves a prefix), ``"memory"`` (nothing kept).
        cache: the default for steps that name none.
        retry: the default for steps that name none.
        threads: worker threads for sync steps.
        max_concurrency: calls that are performed at once, over all runs.
        resources: what there is for steps that name resources; what it leaves out is the machine's (the cores and the
            memory that this process may use), and no GPU.
        overcommit: what becomes of a step that asks for more than there is: ``"clamp"`` (its calls take all there is,
            and an event says so) or ``"error"`` (``ResourcesExceeded`` when it is called).
        routes: where outputs of some types go: class to path or URL (the place of their bytes, as
            ``<url>/<name>/<version>...``), or to an object with ``save(artifact, value)`` (see ``contracts.Route``).
        executors: where steps are performed that ask for it with ``runtime="name"``: instances by name, beside those
            that are installed (``"process"`` is).
        isolated: the executor that ``runtime="isolated"`` means.
        allow_pickle: whether pickled values may be written and read.
        trust_workers: whether pickles from workers outside of this machine and user (containers, clusters) are read.
        capture_print: whether ``print`` in steps goes to their logs, too.
        keep: how much history is kept.
        close_timeout: seconds that closing waits for runs before it interrupts them.

    Raises:
        OptionError: an option is not allowed.
    """

    def __init__(
        self,
        home: str | os.PathLike[str] | None = None,
        *,
        artifacts: str | os.PathLike[str] | None = None,
        durability: Durability = "strict",
        cache: str | bool | CachePolicy | None = None,
        retry: int | Retry | None = None,
        threads: int | None = None,
        max_concurrency: int | None = None,
        resources: Mapping[str, float | str | None] | Resources | None = None,
        overcommit: Overcommit = "clamp",
        routes: Mapping[Any, Any] | None = None,
        executors: Mapping[str, Executor] | None = None,
        isolated: str = "process",
        allow_pickle: bool = True,
        trust_workers: bool = False,
        capture_print: bool = False,
        keep: Keep | None = None,
        close_timeout: Duration = 10,
        **unknown: Never,
    ) -> None:
        check_known(unknown, list(Engine.__init__.__kwdefaults__ or ()), "Engine")
        check_choice(durability, DURABILITIES, "durability")
        check_choice(overcommit, OVERCOMMITS, "overcommit")
        for name, number in (("threads", threads), ("max_concurrency", max_concurrency)):
            if number is not None:
                check_whole(number, 1, name)
        for name, flag in (
            ("allow_pickle", allow_pickle), ("capture_print", capture_print), ("trust_workers", trust_workers),
        ):  # fmt: skip
            check_flag(flag, name)
        check_place(home, "home", "a folder, 'memory://' or None")
        check_place(artifacts, "artifacts", "a folder, a URL or None")
        Keep.check(keep)
        super().__init__()
        self.id = os.urandom(8).hex()
        self._home_option, self._artifacts = home, artifacts
        self.durability: Durability = durability
        self.is_strict = self.durability == "strict"
        self.step_defaults = StepOptions(
            cache=UNSET if cache is None else CachePolicy.of(cache), retry=UNSET if retry is None else Retry.of(retry)
        )
        self.pipeline_defaults = PipelineOptions()
        self._threads = threads or min(32, (os.cpu_count() or 1) + 4)
        self.limit = Limit(max_concurrency) if max_concurrency else None
        self.thread_limit = Limit(self._threads)
        self._resources = Resources.of(resources)
        self._overcommit: Overcommit = overcommit
        self.routes = _routes(routes)
        self._executors, self._isolated, self.trust_workers = executors, isolated, trust_workers
        if executors is not None or isolated != "process":
            _ = self.executors  # which checks them
        self.described: set[bytes] = set()
        self.runs_here: dict[str, Run] = {}
        self.flights: dict[bytes, Call] = {}
        self.followers: dict[bytes, list[asyncio.Future[bool]]] = {}
        self._step_limits: WeakKeyDictionary[Step[..., Any], dict[int, Limit]] = WeakKeyDictionary()
        self._allow_pickle, self.keep = allow_pickle, keep
        self._capture_print = capture_print
        self._close_timeout_s = seconds(close_timeout, "close_timeout")
        self._clock: Clock | None = None
        self._state = "new"
        self._pid = os.getpid()
        self._token: Token[Engine | None] | None = None
        self._ended: list[asyncio.Future[None]] = []
        self._upkeep: asyncio.Task[None] | None = None

    # -- opening and closing --------------------------------------------------------------

    async def __aenter__(self) -> Engine:
        await self.open()
        self._token = active_engine.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            try:
                active_engine.reset(self._token)
            except ValueError:
                self._token = None  # entered in another context: an ASGI lifespan, say
        await self.close(interrupt=error is not None)

    async def open(self) -> None:
        """Open the home: its folder, its lock, its log; and mark what dead engines left running as interrupted.

        Raises:
            StoreError: the home cannot be used; its files are untouched.
            EngineClosed: the engine was open before.
        """
        if self._state != "new":
            raise EngineClosed(f"this engine was {self._state} before", fix="make a new Engine for each `async with`")
        if is_importing.get():
            raise StepNotImportable(
                "an engine was opened while a worker imported the program of a step",
                why="a worker imports the program that defines the step, and this one starts a run when it is imported",
                fix="put what the program does below `if __name__ == '__main__':`",
            )
        # The runtime is loaded here and in the methods below, so that importing treadle stays light.
        import asyncio

        from treadle._runtime.code.identity import Identities
        from treadle._runtime.home.holdings import Holdings
        from treadle._runtime.resources.capture import Capture
        from treadle._runtime.resources.clock import SystemClock
        from treadle._runtime.resources.threads import ThreadPool
        from treadle.storage import home

        self.settle_here()
        self._pid = os.getpid()
        self.identities = Identities(self._secret_key)
        self.capture = Capture(self, prints=self._capture_print)
        self.clock: Clock = self._clock or SystemClock(self.loop)
        self.pool = ThreadPool(self._threads, self.loop, "treadle-step")
        self.io = ThreadPool(2, self.loop, "treadle-io")
        self._state = "opening"
        in_memory = self.durability == "memory" or home.is_in_memory(self._home_option)
        if in_memory:
            self.durability, self.is_strict = "memory", False
        self._holdings = Holdings(
            self.id, self._home_option, self._artifacts,
            in_memory=in_memory, strict=self.is_strict, allow_pickle=self._allow_pickle,
        )  # fmt: skip
        try:
            # Loading the runtime takes as long as the disk does, and a thread keeps the host's loop free meanwhile.
            held, _ = await asyncio.gather(self.io.run(self._holdings.open, self.loop), self.io.run(_load))
            await self._open(held)
        except BaseException:
            self._state = "closed"
            self._holdings.give_back()
            self.io.close()
            raise
        self._state = "open"
        defaults.entered(self)
        self.capture.install()
        from treadle._runtime.home import upkeep

        self._upkeep = self.loop.create_task(upkeep.watch(self), context=Context())

    async def _open(self, held: Holdings) -> None:
        from treadle._runtime import lifecycle
        from treadle._runtime.home import upkeep
        from treadle._runtime.scheduler import Scheduler

        self.home, self._lock, self.vault = held.home, held.lock, held.vault
        self.log, self.lookup, self.reader, self.archive = held.log, held.lookup, held.reader, held.archive
        if self.routes is not None:
            self.vault.places = await self.io.run(self.routes.open)
        self.log.on_lost = self._log_lost
        self.scheduler = Scheduler(self.loop, lifecycle.start, self.clock)
        try:
            if held.has_running:
                await upkeep.sweep(self)
        except BaseException:
            await self.reader.close()
            raise

    def _log_lost(self, run_id: str, error: BaseException) -> None:
        run = self.runs_here.get(run_id)
        if run is not None:
            run.cut_off(error)

    def use_clock(self, clock: Clock | None) -> None:
        """Take time and chance from somewhere else; before opening, for tests."""
        self._clock = clock

    async def close(self, *, interrupt: bool = False) -> None:
        """Wait for runs up to ``close_timeout``, interrupt the rest, and give everything back.

        Args:
            interrupt: do not wait for runs.
        """
        if self._state == "closing":
            self._ended.append(self.loop.create_future())
            await self._ended[-1]
        if self._state != "open":
            return
        self._state = "closing"
        if self._upkeep is not None:
            self._upkeep.cancel()
        try:
            if not interrupt:
                await self._drain(self._close_timeout_s)
        finally:
            await self._interrupt_and_close()

    async def _interrupt_and_close(self) -> None:
        from treadle.storage import failpoints

        try:
            for run in list(self.runs_here.values()):
                run.stop("interrupt")
            await self._drain(10.0)
            failpoints.hit("closing")
        finally:
            defaults.left(self)
            self.capture.remove()
            self.pool.close()
            try:
                try:
                    await self._close_executors()
                finally:
                    try:
                        await self.reader.close()
                    finally:
                        await self.log.close()
            finally:
                # Also when the closing is cancelled: nothing may stay open.
                self._state = "closed"
                self._holdings.give_back()
                self.io.close()
                for wake in self._ended:
                    if not wake.done():
                        wake.set_result(None)

    async def _close_executors(self) -> None:
        executors = self.__dict__.get("executors")
        if executors is None or not executors.are_used:
            return
        try:
            await executors.close()
            if self._lock is not None:
                from treadle.storage import home

                await self.io.run(home.sweep_tmp, self.home, 0)  # of workers that were killed while they wrote
        finally:
            bridge = self.__dict__.get("bridge")
            if bridge is not None:
                await self.io.run(bridge.remove)

    async def _drain(self, timeout_s: float) -> None:
        import asyncio

        runs = [run.done for run in self.runs_here.values()]
        if runs:
            await asyncio.wait(runs, timeout=timeout_s)

    @property
    def is_open(self) -> bool:
        """Whether runs can be started on it."""
        return self._state == "open" and self._pid == os.getpid()

    @property
    def is_new(self) -> bool:
        """Whether it was never opened."""
        return self._state in ("new", "opening")

    @property
    def is_closed(self) -> bool:
        """Whether it was open and is so no more; while it is closing, runs still end on it."""
        return self._state == "closed"

    def check_usable(self, *, for_a_new_run: bool = False) -> None:
        """Refuse work on an engine that is closed, forked, or cannot write its log.

        Raises:
            EngineClosed, EngineElsewhere, EngineForked, LogUnavailable: as their names say.
        """
        self.check_readable()
        if for_a_new_run:
            if self._state == "closing":
                raise EngineClosed(
                    "the engine is closing and begins no new run", fix="start runs before `async with` is left"
                )
            self._check_loop()
        if self.log.unavailable is not None:
            from treadle.storage.log import again

            raise again(self.log.unavailable)

    def _check_loop(self) -> None:
        import asyncio

        if asyncio.get_running_loop() is not self.loop:
            raise EngineElsewhere(
                "the engine was opened on another event loop, and works on that one only",
                fix="open an engine here, or hand the coroutine to its loop with asyncio.run_coroutine_threadsafe(...)",
            )

    def check_readable(self) -> None:
        """Refuse questions to an engine that is closed or forked.

        Raises:
            EngineClosed, EngineForked: as their names say.
        """
        if self._pid != os.getpid():
            raise EngineForked(
                "this engine was opened in another process, from which this one was forked",
                fix="open an engine in each process, after the fork",
            )
        if self._state not in ("open", "closing"):
            state = "not open yet" if self._state == "new" else self._state
            raise EngineClosed(f"the engine is {state}", fix="use it inside `async with Engine(...) as engine:`")

    # -- runs -----------------------------------------------------------------------------

    async def run(self, target: PipelineFn[P, R], /, *args: P.args, **kwargs: P.kwargs) -> RunResult[R]:
        """Run a pipeline to its end and give the result; a failure is in it, not raised.

        The run is cancelled when the await is.
        """
        self.check_usable()
        from treadle._runtime.views import queries

        queries.check_pipeline(target)
        handle = target.with_options(engine=self)._handle(None, args, kwargs)
        return cast("RunResult[R]", await handle.attached_result())

    async def start(self, target: PipelineFn[P, R], /, *args: P.args, **kwargs: P.kwargs) -> RunHandle[R]:
        """Start a pipeline and return when the run and its arguments are in the log.

        Raises:
            IdempotencyConflict: its key was used with other arguments.
        """
        self.check_usable()
        from treadle._runtime.views import queries

        queries.check_pipeline(target)
        handle = target.with_options(engine=self).start(*args, **kwargs)
        return await handle.accepted()

    async def resume(self, run_id: str, changed: Changed = "rerun") -> RunResult[Any]:
        """Take up an interrupted, failed or cancelled run and bring it to its end.

        Recorded outcomes are taken over; what failed, was cancelled or never ended is performed. Steps whose code has
        changed are performed again (``changed="rerun"``) or taken over (``"keep"``).

        Raises:
            RunNotFound: there is no such run, or its pipeline or arguments are not to be had.
        """
        self.check_usable()
        self._check_loop()
        from treadle._runtime.home import upkeep

        return await upkeep.resume(self, run_id, changed)

    @overload
    async def recover(self, wait: Literal[True] = True) -> list[RunResult[Any]]: ...
    @overload
    async def recover(self, wait: Literal[False]) -> list[RunHandle[Any]]: ...
    async def recover(self, wait: bool = True) -> list[Any]:
        """Take up every interrupted run of this home whose pipeline can be imported.

        Args:
            wait: give the results when the runs have ended; else their handles, at once.
        """
        self.check_usable()
        self._check_loop()
        from treadle._runtime.home import upkeep

        return await upkeep.recover(self, wait=wait)

    async def cancel(self, run_id: str) -> None:
        """Cancel a run of this engine, or an interrupted one; waits until that is in the log.

        Raises:
            RunNotFound: there is no such run.
            RunElsewhere: another engine performs it.
        """
        from treadle._runtime.home import upkeep

        await upkeep.cancel(self, run_id)

    # -- looking --------------------------------------------------------------------------

    async def get_run(self, run_id: str) -> RunResult[Any]:
        """The result of a run, over or not.

        Raises:
            RunNotFound: there is no such run.
        """
        from treadle._runtime.views.results import RunResult

        row = await self.run_row(run_id)
        return RunResult(run_id, row["pipeline"], self.archive, self.runs_here.get(run_id))

    async def runs(
        self, pipeline: str | None = None, status: str | None = None, limit: int = 100, children: bool = False
    ) -> list[RunResult[Any]]:
        """The runs of this home, newest first.

        Args:
            pipeline: only of the pipeline of this name.
            status: only with this status.
            limit: at most so many.
            children: child runs, too.
        """
        from treadle._runtime.views import queries

        return await queries.runs(self, pipeline, status, limit, children)

    def events(self, run_id: str | None = None, after: int = 0, follow: bool = False) -> AsyncIterator[Event]:
        """The events of a run, or of all runs, in the order of their numbers.

        Args:
            run_id: of which run.
            after: only those with a higher number.
            follow: go on with new ones until the run ends (or the engine, if no run is named).
        """
        from treadle._runtime.views import queries

        return queries.events(self, run_id, after, follow)

    async def logs(self, run_id: str, step: str | None = None) -> list[Logged]:
        """What the steps of a run said: records with ``at call step attempt level message stream``.

        Args:
            run_id: of which run.
            step: only of this step or call.
        """
        from treadle._runtime.views import queries

        return await queries.logs(self, run_id, step)

    async def artifact(self, name: str, version: int | None = None) -> Artifact[Any]:
        """The newest artifact of a name, or the one of that version.

        Raises:
            ArtifactNotFound: there is none.
        """
        from treadle._runtime.views import queries

        return await queries.artifact(self, name, version)

    async def prune(
        self, *, older_than: Duration | None = None, keep_last: int | None = None, dry_run: bool = False
    ) -> dict[str, int]:
        """Forget old runs that are over, and artifacts that nothing names any more.

        Args:
            older_than: only runs that ended longer ago.
            keep_last: keep so many of the newest runs of each pipeline.
            dry_run: say what would go, and leave it.

        Returns:
            Numbers of ``runs``, ``artifacts`` and ``bytes``.
        """
        self.check_usable()
        from treadle._runtime.home import pruning

        return await pruning.prune(self, older_than, keep_last, dry_run)

    def metrics(self) -> dict[str, float]:
        """Counters and gauges: ``log_flushes``, ``log_events``, ``calls_running`` and others.

        Raises:
            EngineClosed: it was never opened.
        """
        from treadle._runtime.views import queries

        return queries.metrics(self)

    def health(self) -> dict[str, Any]:
        """Whether the engine can work, and what is wrong if not."""
        from treadle._runtime.views import queries

        return queries.health(self)

    # -- for the runtime ------------------------------------------------------------------

    async def run_row(self, run_id: str) -> dict[str, Any]:
        """The row of a run in the table of runs."""
        from treadle._runtime.views import queries

        return await queries.run_row(self, run_id)

    def step_limit(self, step: Step[..., Any]) -> Limit:
        """The limit of calls of one step in this engine."""
        capacity = step.options.max_in_flight
        assert isinstance(capacity, int)
        limits = self._step_limits.setdefault(step.base, {})
        return limits.setdefault(capacity, Limit(capacity))

    @cached_property
    def capacity(self) -> Capacity:
        """What there is for steps that name resources."""
        from treadle._runtime.resources.capacity import Capacity

        return Capacity(self._resources, self._overcommit)

    @cached_property
    def executors(self) -> Executors:
        """Where steps are performed that are not inline."""
        from treadle._runtime.isolation.executors import Executors

        return Executors(self._executors, self._isolated)

    @cached_property
    def bridge(self) -> Bridge | None:
        """What stands between workers and a store that they cannot reach."""
        from treadle._runtime.isolation.bridging import bridge_for

        return bridge_for(self.vault.blobs)

    @cached_property
    def shared_folders(self) -> tuple[Path, Path]:
        """The folders where workers find large values, and where they begin to write them."""
        store: Any = self.bridge.blobs if self.bridge is not None else self.vault.blobs
        folders: tuple[Path, Path] = store.folders
        return folders

    def placed(self, plan: Plan, *, debug: bool) -> Plan:
        """Say who performs the calls of a plan.

        Raises:
            ExecutorNotFound: nobody of the name that the step asks for.
            StepNotImportable: another process could not find the step.
        """
        from treadle._runtime.calls import inline

        plan.attempt = inline.attempt
        if plan.runtime != "inline":
            from treadle._runtime.isolation import executors, isolated

            placed = self.executors.of(plan.name, plan.runtime)
            if not debug:
                isolated.place(placed, plan, executors.target_of(plan.name, plan.fn), self.identities)
        return plan

    @property
    def is_shared(self) -> bool:
        """Whether other processes can open its home, too."""
        return self._lock is not None

    def is_alive(self, owner: str) -> bool:
        """Whether the engine of this id lives, here or in another process."""
        from treadle.storage import owners

        return owner == self.id or (self._lock is not None and owners.is_alive(self.home, owner))

    @cached_property
    def _key(self) -> bytes:
        from treadle.storage import home

        return home.secret_key(self.home) if self.is_shared else os.urandom(home.KEY_BYTES)

    def _secret_key(self) -> bytes:
        """What secrets are hashed with: a key of the home, or in memory one of this engine."""
        return self._key

    def renew(self) -> None:
        """Make sure of the lock that says that this engine lives."""
        if self._lock is not None:
            self._lock.renew()

    @property
    def abandoned(self) -> int:
        """Bodies that were left behind and have not ended."""
        return len(self._left_behind) + self.pool.abandoned

    def __repr__(self) -> str:
        return f"<Engine {self._state} on {self._place}, {len(self.runs_here)} runs>"

    @property
    def _place(self) -> str:
        """Its home as a reader should see it."""
        return "memory://" if self.durability == "memory" else str(getattr(self, "home", self._home_option))


def _load() -> None:
    """Load what the first run needs."""
    from treadle._runtime import lifecycle, scheduler
    from treadle._runtime.home import upkeep
    from treadle._runtime.views import queries

    del lifecycle, queries, scheduler, upkeep


def _routes(given: Mapping[Any, Any] | None) -> Routes | None:
    if given is None:
        return None
    from treadle._runtime.resources.routes import Routes

    return Routes(given)


defaults.factory = Engine
