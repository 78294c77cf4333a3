"""What is tested of containers on every engine; ``test_containers_<engine>`` makes these classes its own with ``of``.

A container takes a second to start, so what can be is performed in one run, and looked at by all tests of a class.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import container_host
import container_steps as steps
import hostile_steps as hostile
import leftover_steps as leftovers
import pytest
from container_host import processes_about

from treadle import Engine, RunResult, pipeline
from treadle.contracts import Attempt, Executor
from treadle.errors import (
    DecodeError,
    EncodeError,
    ExecutorUnavailable,
    ImageNotFound,
    RemoteError,
    StepCrashed,
    StepNotImportable,
    WorkerProtocolError,
)
from treadle.testing.conformance import ExecutorSuite
from treadle_adapters._exchange import Exchange
from treadle_adapters.container import LABEL, ContainerExecutor

LIMIT_S = 90.0
HERE = Path(__file__).parent

fine = hostile.fine.with_options(runtime="container")


class OnEngine:
    """Tests that need a container engine, and whose steps may write to the folder of the test."""

    kind = ""
    address = ""
    folder = Path()

    @pytest.fixture(autouse=True)
    def _set_up(self, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        self.address, self.folder = request.getfixturevalue(self.kind), tmp_path
        tmp_path.chmod(0o777)  # steps are nobody

    def executor(self, **options: Any) -> ContainerExecutor:
        """An executor on the engine of the test."""
        given = {"workers": 2, "grace": 0.3, "mounts": (f"{self.folder}:rw",), "docker_host": self.address, **options}
        return ContainerExecutor(given.pop("image", container_host.IMAGE), **given)

    def play(self, scene: Callable[[Engine], Awaitable[Any]], **options: Any) -> Any:
        """Play a scene on an engine with an executor of its own."""
        executors = options.pop("executors", None) or {"container": self.executor()}

        async def main() -> Any:
            async with (
                asyncio.timeout(LIMIT_S),
                Engine(self.folder / "home", executors=executors, **options) as engine,
            ):
                return await scene(engine)

        return asyncio.run(main())


def containers(address: str) -> list[dict[str, Any]]:
    """The containers of treadle on an engine, those that have ended too."""
    filters = quote(json.dumps({"label": [LABEL]}))
    status, answer = container_host.request(address, "GET", f"/v1.40/containers/json?all=1&filters={filters}")
    assert status == 200, answer
    found: list[dict[str, Any]] = json.loads(answer)
    return found


def existing(address: str) -> list[dict[str, Any]]:
    """Those of them that are there.

    Docker 20.10, killed and started again, removes what was running in two ways at once; if the one has removed a
    container before the other looks at it, it goes on listing as "dead", until its next start, what it does not know
    (404) and has nothing of on its disk. One can see that with its own commands: ``docker run --rm`` and a kill.
    """
    return [
        found
        for found in containers(address)
        if container_host.request(address, "GET", f"/v1.40/containers/{found['Id']}/json")[0] != 404
    ]


def processes_in(container: str) -> set[str]:
    """Processes in a container, whatever its engine says of it."""
    found: set[str] = set()
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            if container in path.read_text():
                found.add(path.parent.name)
        except OSError:
            continue
    return found


def wait_for(is_so: Callable[[], Any], seconds: float = 30.0) -> bool:
    """Wait until something is so; False if it does not come about."""
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


# -- what every executor does ---------------------------------------------------------------


class Conformance(OnEngine, ExecutorSuite):
    """The suite of every executor; ``play`` is the suite's, not the one above."""

    runtime = "container"
    play = ExecutorSuite.play  # type: ignore[assignment]

    def executors(self) -> Mapping[str, Executor]:
        return {"container": self.executor()}


EDITED = """
import socket
from treadle import step

@step(runtime="container", cache=False)
def answer():
    return {number}, socket.gethostname()
"""


# -- hostile steps ------------------------------------------------------------------------------

FOLDER: Any = object()
"""Stands for a folder of the step's own, where it says that it has begun; it is cancelled then."""
HOSTILE: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "exits": (hostile.exits, (7,)),
    "exits well": (hostile.exits, (0,)),
    "segfaults": (hostile.segfaults, ()),
    "kills itself": (hostile.kills_itself, (signal.SIGKILL,)),
    "kills the first": (steps.kills_the_first, ()),
    "stops itself": (steps.stops_itself, (FOLDER,)),
    "swallows everything": (steps.swallows_everything, (FOLDER,)),
    "cleans up": (steps.cleans_up, (FOLDER,)),
    "raises SystemExit": (hostile.raises_system_exit, ()),
    "raises KeyboardInterrupt": (hostile.raises_keyboard_interrupt, ()),
    "raises something odd": (hostile.raises_odd, ()),
    "raises something with attributes": (hostile.raises_stateful, ()),
    "raises something local": (hostile.raises_local, ()),
    "recurses": (hostile.recurses, ()),
    "gives a lambda": (hostile.gives_a_lambda, ()),
    "closes all": (hostile.closes_all, ()),
    "talks nonsense": (hostile.talks_nonsense, (b"\xff" * 64,)),
    "prints much": (hostile.prints, (300_000, 100)),
    "prints from everywhere": (hostile.prints_from_everywhere, ()),
    "leaves a thread": (hostile.leaves_a_thread, ()),
    "eats too much": (steps.eats, (300 * 2**20,)),
    "eats little": (steps.eats, (2**20,)),
    "gives what only pickles": (steps.gives_what_only_pickles, ()),
}


@pipeline(failure_mode="continue")
async def one_after_another(folder: str) -> int:
    futures: dict[str, Any] = {}
    for name, (step, args) in HOSTILE.items():
        place = Path(folder, name)
        place.mkdir()
        place.chmod(0o777)
        known = [str(place) if item is FOLDER else item for item in args]
        futures[name] = step.with_options(runtime="container", name=name).submit(*known)
    waiting = {name for name, (_, args) in HOSTILE.items() if FOLDER in args}
    while waiting:
        for name in [name for name in waiting if Path(folder, name, "started").exists()]:
            futures[name].cancel()
            waiting.discard(name)
        await asyncio.sleep(0.02)
    await asyncio.wait(futures.values())
    return await fine(1)


class Hostile:
    """Steps that do what no step should do; all of them in one run."""

    kind = ""

    @pytest.fixture(scope="class")
    @classmethod
    def played(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        address, folder = request.getfixturevalue(cls.kind), tmp_path_factory.mktemp("hostile")
        folder.chmod(0o777)
        executor = ContainerExecutor(
            container_host.IMAGE, docker_host=address, workers=6, grace=4, mounts=(f"{folder}:rw",)
        )

        async def main() -> Any:
            async with asyncio.timeout(LIMIT_S), Engine(folder / "home", executors={"container": executor}) as engine:
                result = await engine.run(one_after_another, str(folder))
                said = {name: await engine.logs(result.run_id, name) for name in HOSTILE}
                assert result.status == "failed"
                return result, said, folder

        yield asyncio.run(main())
        assert not containers(address)

    def error(self, played: Any, name: str) -> Any:
        """What a step has failed with."""
        result: RunResult[Any] = played[0]
        return result.step_results[name].error

    def test_the_engine_goes_on(self, played: Any) -> None:
        assert played[0].step_results["fine"].status == "succeeded"

    @pytest.mark.parametrize(
        ("name", "exit_code", "number"),
        [
            ("exits", 7, None),
            ("exits well", 0, None),
            ("segfaults", None, signal.SIGSEGV),
            ("kills itself", None, signal.SIGKILL),
        ],
    )
    def test_a_worker_that_dies_is_an_error_that_says_how(
        self, played: Any, name: str, exit_code: int | None, number: int | None
    ) -> None:
        error = self.error(played, name)
        assert type(error) is StepCrashed
        assert (error.exit_code, error.signal, error.oom) == (exit_code, number, False)

    def test_memory_beyond_the_limit_is_told_from_other_kills(self, played: Any) -> None:
        error = self.error(played, "eats too much")
        assert type(error) is StepCrashed
        assert (error.exit_code, error.signal, error.oom) == (None, signal.SIGKILL, True)
        assert "more memory" in error.why
        assert played[0].step_results["eats little"].status == "succeeded"

    @pytest.mark.parametrize("name", ["stops itself", "swallows everything"])
    def test_a_step_that_does_not_want_to_end_is_ended(self, played: Any, name: str) -> None:
        assert played[0].step_results[name].status == "cancelled"
        assert not processes_about(str(played[2]))

    def test_a_step_that_is_ended_may_clean_up(self, played: Any) -> None:
        assert played[0].step_results["cleans up"].status == "cancelled"
        assert (played[2] / "cleans up" / "cleaned").exists()

    def test_nobody_inside_can_end_the_container(self, played: Any) -> None:
        assert played[0].step_results["kills the first"].status == "succeeded"

    @pytest.mark.parametrize("name", ["raises SystemExit", "raises KeyboardInterrupt"])
    def test_exits_and_interrupts_fail_the_step_and_nothing_else(self, played: Any, name: str) -> None:
        assert "ends nothing else" in str(self.error(played, name))

    def test_exceptions_come_back_as_themselves(self, played: Any) -> None:
        assert type(self.error(played, "raises something odd")) is hostile.OddError
        assert type(self.error(played, "recurses")) is RecursionError
        error = self.error(played, "raises something with attributes")
        assert (type(error), error.args, error.two) == (hostile.Stateful, (1,), {"two": (2,)})
        assert type(self.error(played, "raises something local")) is RemoteError

    def test_an_output_that_cannot_be_stored_is_named(self, played: Any) -> None:
        error = self.error(played, "gives a lambda")
        assert (type(error), error.path) == (EncodeError, "value")

    def test_a_pickle_from_a_container_is_not_decoded(self, played: Any) -> None:
        error = self.error(played, "gives what only pickles")
        assert type(error) is DecodeError
        assert "trust" in str(error)

    def test_a_worker_that_breaks_the_protocol_is_killed(self, played: Any) -> None:
        assert type(self.error(played, "talks nonsense")) is WorkerProtocolError
        assert isinstance(self.error(played, "closes all"), StepCrashed)

    def test_a_flood_of_output_is_drained_and_bounded(self, played: Any) -> None:
        said = played[1]["prints much"]
        assert len(said) <= 10_001
        assert "more bytes of stdout were not recorded" in said[-1].message

    def test_all_that_is_printed_is_in_the_log(self, played: Any) -> None:
        assert {(line.stream, line.message) for line in played[1]["prints from everywhere"]} == {
            ("stdout", "from python"), ("stderr", "to stderr"), ("stdout", "from the descriptor"),
            ("stdout", "from a program"), ("stdout", "without an end"),
        }  # fmt: skip


# -- what a container may and sees ----------------------------------------------------------


class Confinement(OnEngine):
    """What steps in containers cannot do."""

    def test_a_step_has_no_rights_and_sees_no_more_than_it_should(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET_OF_THE_HOST", "1")
        monkeypatch.setenv("ALLOWED", "2")
        places = ["/x", "/etc/x", f"{HERE}/x", "/treadle/line/x", "/treadle/lib/treadle/x", "/proc/sys/kernel/hostname"]
        home, allowed = self.folder / "home", str(self.folder / "allowed")

        @pipeline
        async def flow() -> Any:
            private = [str(home), str(Path(tempfile.gettempdir())), "/treadle/line/in", "/root"]
            return (
                await steps.looks_around(private),
                await steps.writes([*places, allowed, "/tmp/x"]),
                await steps.environment(),
                await steps.forks(200),
            )

        async def scene(engine: Engine) -> Any:
            return (await engine.run(flow)).value

        executor = self.executor(env=("ALLOWED",), pids=64)
        around, written, environment, forked = self.play(scene, executors={"container": executor})
        assert around["ids"] == (65534, 65534)
        assert around["capabilities"] == 0
        assert around["no_new_privileges"] == "1"
        assert around["interfaces"] == ["lo"]
        assert around["private"][str(home)] == []
        assert written == [allowed, "/tmp/x"]
        assert environment["ALLOWED"] == "2"
        assert "SECRET_OF_THE_HOST" not in environment
        assert 0 < forked < 64

    def test_outputs_that_are_not_in_the_outbox_are_refused(self) -> None:
        # All of it is this side's doing, but for what an engine makes of links: the second one need not see it all.
        lies = tuple(steps.LIES) if self.kind == "docker" else ("above it", "as a link", "with other bytes")

        @pipeline(failure_mode="continue")
        async def flow() -> Any:
            futures = [steps.deceives.submit(how) for how in lies]
            await asyncio.wait(futures)
            return [future.exception() for future in futures]

        async def scene(engine: Engine) -> Any:
            return (await engine.run(flow)).value

        errors = self.play(scene, executors={"container": self.executor(workers=3)})
        found = {how: type(error) for how, error in zip(lies, errors, strict=True)}
        assert found == dict.fromkeys(lies, WorkerProtocolError), errors
        assert all("outbox" in str(error) or "checksum" in str(error) for error in errors)
        blobs = [path for path in (self.folder / "home" / "blobs").rglob("*") if path.is_file()]
        assert blobs == []

    def test_a_littered_outbox_is_removed(self) -> None:
        @pipeline
        async def flow() -> int:
            return await steps.total(await steps.litters())

        async def scene(engine: Engine) -> Any:
            return (await engine.run(flow)).value

        assert self.play(scene) == steps.LARGE

    def test_a_step_gets_the_cores_that_it_names(self) -> None:
        @pipeline
        async def flow() -> float:
            return await steps.burns(0.6)

        async def scene(engine: Engine) -> Any:
            return (await engine.run(flow)).value

        assert self.play(scene) < 0.5


class Reuse(OnEngine):
    """When a container is used again."""

    def test_containers_are_used_again_for_the_same_limits(self) -> None:
        @pipeline
        async def flow() -> Any:
            first = await steps.where(1)
            return first, await steps.where(2), await steps.where.with_options(resources={"memory": "1Gi"})(3)

        async def scene(engine: Engine) -> Any:
            return (await engine.run(flow)).value

        one, two, three = self.play(scene)
        assert one == two != three

    def test_edited_code_gets_a_new_process_in_the_same_container(self, monkeypatch: pytest.MonkeyPatch) -> None:
        code = self.folder / "code"
        code.mkdir()
        monkeypatch.syspath_prepend(str(code))

        async def scene(engine: Engine) -> Any:
            found: list[Any] = []
            for number in (1, 2):
                (code / "edited_steps.py").write_text(EDITED.format(number=number) + "\n" * number)
                sys.modules.pop("edited_steps", None)
                importlib.invalidate_caches()
                step = importlib.import_module("edited_steps").answer

                @pipeline
                async def flow(step: Any = step) -> Any:
                    return await step()

                found.append((await engine.run(flow)).value)
            return found

        try:
            (one, first), (two, second) = self.play(scene)
        finally:
            sys.modules.pop("edited_steps", None)
        assert (one, two) == (1, 2)
        assert first == second

    def test_code_that_the_step_may_not_read_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        closed = self.folder / "closed"
        closed.mkdir(0o700)
        (closed / "closed_steps.py").write_text(EDITED.format(number=1))
        monkeypatch.syspath_prepend(str(closed))
        step = importlib.import_module("closed_steps").answer

        @pipeline
        async def flow() -> Any:
            return await step()

        async def scene(engine: Engine) -> Any:
            return (await engine.run(flow)).error

        try:
            error = self.play(scene)
        finally:
            sys.modules.pop("closed_steps", None)
        assert type(error) is StepNotImportable
        (note,) = [note for note in error.__notes__ if "not to be read" in note]
        assert str(closed) in note
        assert str(HERE) not in note

    def test_a_container_that_somebody_kills_is_replaced(self) -> None:
        @pipeline
        async def flow() -> Any:
            first = await steps.where(1)
            (found,) = containers(self.address)
            path = f"/v1.40/containers/{found['Id']}/kill"
            assert (await asyncio.to_thread(container_host.request, self.address, "POST", path))[0] == 204
            return first, await steps.where.with_options(retry=1)(2)

        async def scene(engine: Engine) -> Any:
            return (await engine.run(flow)).value

        first, second = self.play(scene)
        assert first != second

    def test_calls_of_a_group_share_a_container_of_their_own(self) -> None:
        @pipeline
        async def flow() -> Any:
            first = await steps.where_of_group()
            second = await steps.where_of_group(first)
            return first, second, await steps.where(1), await steps.where(2)

        async def scene(engine: Engine) -> Any:
            return (await engine.run(flow)).value

        executor = self.executor(fresh=True)
        first, second, alone, other = self.play(scene, executors={"container": executor})
        assert first == second
        assert len({first, alone, other}) == 3

    def test_other_calls_leave_the_container_of_a_group_alone_if_they_can(self) -> None:
        @pipeline
        async def flow() -> Any:
            await steps.where_of_group()
            _, first = await asyncio.gather(steps.where_of_group(), steps.where(1))
            return first, await steps.where(2)

        async def scene(engine: Engine) -> Any:
            return (await engine.run(flow)).value

        first, second = self.play(scene)
        assert first == second

    def test_nothing_of_a_cancelled_call_is_written_when_the_next_has_its_container(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = Lending(monkeypatch)
        late = threading.Event()  # what the second one has begun is over when all others are
        holds = {
            "stopped": lambda exchange: wait_for(lambda: getattr(exchange, "is_stopped", False), 5.0),
            "stuck": lambda _: late.wait(LIMIT_S),
        }

        @pipeline(failure_mode="continue")
        async def flow() -> Any:
            found: list[Any] = []
            for hold in holds.values():
                watch.hold(hold)
                first = steps.both.submit(b"a" * steps.LARGE, b"b" * steps.LARGE)
                assert await asyncio.to_thread(watch.is_held.wait, LIMIT_S)
                first.cancel()
                await asyncio.wait([first])
                found.append((first.cancelled(), await steps.both(b"\1" * steps.LARGE, b"\2" * steps.LARGE)))
            late.set()
            return found

        async def scene(engine: Engine) -> Any:
            return (await engine.run(flow)).value

        try:
            found = self.play(scene, executors={"container": self.executor(workers=1)})
        finally:
            late.set()
        assert found == [(True, (steps.LARGE, 2 * steps.LARGE))] * 2
        assert not watch.overlaps
        assert [len(placed) for placed in watch.placed] == [1, 2, 1, 2]

    def test_what_steps_leave_behind_is_waited_for_and_ends_with_their_worker(self) -> None:
        found: list[Any] = []

        @pipeline(failure_mode="continue")
        async def flow() -> None:
            daemon, _ = await leftovers.leaves_in_its_container(0, True)
            found.extend([await leftovers.leaves_in_its_container(20, False) for _ in range(4)])
            found.append(await leftovers.is_there(daemon))
            crashed = leftovers.crashes.submit()
            await asyncio.wait([crashed])
            found.append(await leftovers.is_gone(daemon))

        async def scene(engine: Engine) -> Any:
            return (await engine.run(flow)).error

        error = self.play(scene, executors={"container": self.executor(workers=1, pids=64)})
        assert type(error) is StepCrashed
        assert found == [(0, 0)] * 4 + [True, True]

    @pytest.mark.parametrize("is_zip", [False, True])
    def test_the_steps_of_a_program_that_is_a_folder_or_a_zip_file_are_found_in_it(self, is_zip: bool) -> None:
        app = self.folder / "app"
        app.mkdir()
        (app / "__main__.py").write_text(APP)
        (app / "beside.py").write_text("def told(number): return number + 1\n")
        app.chmod(0o755)
        if is_zip:
            app = Path(shutil.make_archive(str(app), "zip", app))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, str(app), self.address, container_host.IMAGE, str(self.folder / "home")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, cwd="/")
        assert done.returncode == 0, done.stderr
        assert done.stdout == "42\n"

    def test_a_pickle_is_decoded_if_workers_are_trusted(self) -> None:
        @pipeline
        async def flow() -> Any:
            return await steps.gives_what_only_pickles()

        async def scene(engine: Engine) -> Any:
            return (await engine.run(flow)).value

        (value,) = self.play(scene, trust_workers=True)
        assert type(value) is steps.Unknown


APP = """
import asyncio, sys
from beside import told
from treadle import Engine, pipeline, step
from treadle_adapters.container import ContainerExecutor

@step(runtime="container", cache=False)
def answer(number):
    return told(number)

@pipeline
async def flow():
    return await answer(41)

async def main(address, image, home):
    executor = ContainerExecutor(image, docker_host=address, workers=1, code=(sys.path[0],))
    async with Engine(home, executors={"container": executor}) as engine:
        print((await engine.run(flow)).value)

if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
"""


class Lending:
    """Looks at how files come into containers, and holds it up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_held = threading.Event()
        self.overlaps: list[Exchange] = []
        """Where two threads were at the files of one container."""
        self.placed: list[list[str]] = []
        """What each call of ``lend`` has placed."""
        self._hold: Callable[[Exchange], object] | None = None
        self._busy: Counter[Exchange] = Counter()
        self._here = threading.local()
        monkeypatch.setattr(Exchange, "lend", self._watched(Exchange.lend))
        monkeypatch.setattr(Exchange, "_place", self._held(Exchange._place))

    def hold(self, hold: Callable[[Exchange], object]) -> None:
        """Have the next file wait."""
        self.is_held.clear()
        self._hold = hold

    def _watched(self, lend: Callable[..., None]) -> Callable[..., None]:
        def watched(exchange: Exchange, attempt: Attempt) -> None:
            self._busy[exchange] += 1
            if self._busy[exchange] > 1:
                self.overlaps.append(exchange)
            self._here.placed = []
            self.placed.append(self._here.placed)
            try:
                lend(exchange, attempt)
            finally:
                self._busy[exchange] -= 1

        return watched

    def _held(self, place: Callable[..., None]) -> Callable[..., None]:
        def held(exchange: Exchange, source: Path, target: Path) -> None:
            hold, self._hold = self._hold, None
            if hold is not None:
                self.is_held.set()
                hold(exchange)
            self._here.placed.append(target.name)
            place(exchange, source, target)

        return held


# -- what can be wrong ----------------------------------------------------------------------


class Troubles(OnEngine):
    """Bad input, and engines that are not there: each is an error of its step, and the others go on."""

    def test_whatever_is_wrong_is_an_error_of_its_step_that_says_so(self) -> None:
        silent = socket.socket(socket.AF_UNIX)
        place = tempfile.mkdtemp(dir="/tmp")
        silent.bind(f"{place}/s")
        made: dict[str, dict[str, Any]] = {
            "no image": {"image": "treadle-no-such-image"},
            "no socket": {"docker_host": f"unix://{place}/nowhere"},
            "no listener": {"docker_host": f"unix://{place}/s"},
            "no python": {"python": "python-that-is-not-there"},
            "no network": {"network": "no-such-network"},
            "no folder": {"mounts": (f"{place}/no-such-folder",)},
            "no memory": {"memory": "8Mi"},
            "no process": {"pids": 1},
        }
        executors = {name: self.executor(**{"mounts": (), **options}) for name, options in made.items()}

        @pipeline(failure_mode="continue")
        async def flow() -> Any:
            futures = [fine.with_options(runtime=name, name=name).submit(1) for name in made]
            await asyncio.wait(futures)
            return [future.exception() for future in futures], await fine(2)

        async def scene(engine: Engine) -> Any:
            return (await engine.run(flow)).value

        try:
            errors, value = self.play(scene, executors={**executors, "container": self.executor()})
        finally:
            silent.close()
            os.unlink(f"{place}/s")
            os.rmdir(place)
        assert value == 3
        error = dict(zip(made, errors, strict=True))
        assert type(error["no image"]) is ImageNotFound
        assert error["no image"].image == "treadle-no-such-image"
        assert "its socket is not there" in error["no socket"].why
        assert type(error["no process"]) is StepCrashed
        assert not error["no process"].oom
        assert "no process could be started" in str(error["no process"])
        for name in set(made) - {"no image", "no process"}:
            assert type(error[name]) is ExecutorUnavailable, name
            assert error[name].fix, name
        assert "no-such-folder" in str(error["no folder"])
        assert "python-that-is-not-there" in str(error["no python"])
        assert "python=" in error["no python"].fix

    def test_a_user_who_may_not_is_told_so(self) -> None:
        executor = self.executor(mounts=())

        async def main() -> Any:
            os.seteuid(65534)
            try:
                await executor.open()
            except ExecutorUnavailable as error:
                return error
            finally:
                os.seteuid(0)

        assert "may not talk to it" in asyncio.run(main()).why

    def test_containers_of_dead_processes_are_removed_at_the_next_open(self) -> None:
        names = {"dead": _owner_of_nobody(), "alive": _owner_of_this()}
        for name, owner in names.items():
            body = {
                "Image": container_host.IMAGE, "Cmd": ["python3", "-c", "import time; time.sleep(600)"],
                "Labels": {LABEL: owner}, "HostConfig": {"NetworkMode": "none", "Ulimits": [
                    {"Name": "nofile", "Soft": 1024, "Hard": 1024}, {"Name": "nproc", "Soft": 1024, "Hard": 1024}]},
            }  # fmt: skip
            path = f"/v1.40/containers/create?name=left-{name}"
            status, answer = container_host.request(self.address, "POST", path, json.dumps(body).encode())
            assert status == 201, answer
            status, answer = container_host.request(self.address, "POST", f"/v1.40/containers/left-{name}/start")
            assert status == 204, answer

        async def main() -> None:
            executor = self.executor()
            await executor.open()
            await executor.close()

        asyncio.run(main())
        left = [found["Names"][0].lstrip("/") for found in containers(self.address)]
        container_host.request(self.address, "DELETE", "/v1.40/containers/left-alive?force=1")
        assert left == ["left-alive"]


def _owner_of_this() -> str:
    from treadle_adapters import _owners

    return _owners.me()


def _owner_of_nobody() -> str:
    """As a process that has just ended would have called itself."""
    program = "from treadle_adapters import _owners; print(_owners.me())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


# -- engines that die -----------------------------------------------------------------------

COUNTS = {"docker": 10, "podman": 4}
"""Steps that run when the engine is killed, each with a program of its own: twenty children, as with processes."""

PROGRAM = """
import asyncio, sys, tempfile
from treadle import Engine
from treadle_adapters.container import ContainerExecutor
import container_host, container_steps as steps

tempfile.gettempdir()  # Python tries the folder once, with a file of its own that a kill in that moment would leave

async def main(address, folder, count):
    executor = ContainerExecutor(
        container_host.IMAGE, docker_host=address, workers=count, mounts=(f"{folder}/shared:rw",))
    async with Engine(f"{folder}/home", executors={"container": executor}) as engine:
        print("open", flush=True)
        await engine.run(steps.many_that_wait, f"{folder}/shared", count)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


class Orphans(OnEngine):
    """The process of the engine is killed: nothing of it is left two seconds later."""

    def process(self, count: int) -> subprocess.Popen[str]:
        """An engine with steps that wait for ever in containers, each with a daemon of its own."""
        shared = self.folder / "shared"
        shared.mkdir()
        shared.chmod(0o777)
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "TMPDIR": tempfile.gettempdir(),
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, self.address, str(self.folder), str(count)],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def nothing_is_left(self, seconds: float) -> None:
        """Processes are gone in time; what its container engine does of its own accord may take longer."""
        wait_for(lambda: not processes_about(str(self.folder)), seconds)
        assert not processes_about(str(self.folder))
        wait_for(lambda: not containers(self.address), 10.0)
        assert not containers(self.address)
        wait_for(lambda: not list(Path(tempfile.gettempdir()).iterdir()), 5.0)
        assert not list(Path(tempfile.gettempdir()).iterdir())

    def test_nothing_survives_an_engine_that_was_killed(self) -> None:
        count = COUNTS[self.kind]
        with self.process(count) as process:
            assert wait_for(lambda: len(list((self.folder / "shared").glob("parent-*"))) == count)
            assert len(processes_about(str(self.folder))) > count
            process.send_signal(signal.SIGKILL)
        self.nothing_is_left(2.0)

    @pytest.mark.parametrize("seed", range(2))
    def test_nothing_survives_an_engine_that_was_killed_at_any_moment(self, seed: int) -> None:
        with self.process(3) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            time.sleep(random.Random(seed).uniform(0.1, 1.5))
            process.send_signal(signal.SIGKILL)
        # What its container engine was just asked to do for it is done first, and ends for want of anybody to talk to.
        wait_for(lambda: not containers(self.address), 10.0)
        wait_for(lambda: not processes_about(str(self.folder)), 2.0)
        assert not processes_about(str(self.folder))
        # One that was made and never started has nothing in it that could end: the next open removes it.
        assert "running" not in {found["State"] for found in containers(self.address)}

        async def open_again() -> None:
            executor = self.executor()
            await executor.open()
            await executor.close()

        asyncio.run(open_again())
        self.nothing_is_left(2.0)


FORKING = """
import asyncio, multiprocessing, sys, tempfile, time
from treadle import Engine
from treadle_adapters.container import ContainerExecutor
import container_host, container_steps as steps

tempfile.gettempdir()

async def main(address, folder):
    executor = ContainerExecutor(container_host.IMAGE, docker_host=address, workers=1, mounts=(f"{folder}:rw",))
    async with Engine(f"{folder}/home", executors={"container": executor}) as engine:
        running = asyncio.create_task(engine.run(steps.many_that_wait, folder, 1))
        forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        while not executor._boxes:
            await asyncio.sleep(0)
        if sys.argv[3] == "warm":
            while not any(box.is_alive for box in executor._boxes):
                await asyncio.sleep(0.01)
        forked.start()
        print(forked.pid, flush=True)
        await running

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


class Forks(OnEngine):
    """The process of the engine is killed, and has a child by fork, which lives: it keeps nothing else alive."""

    @pytest.mark.parametrize("when", ["starting", "warm"])
    def test_no_container_outlives_its_engine_for_a_child_that_was_forked(self, when: str) -> None:
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "TMPDIR": tempfile.gettempdir(),
        }  # fmt: skip
        command = [sys.executable, "-W", "ignore", "-c", FORKING, self.address, str(self.folder), when]
        child = 0
        try:
            with subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                child = int(process.stdout.readline())
                assert wait_for(lambda: list(self.folder.glob("parent-*")))
                process.send_signal(signal.SIGKILL)
                process.wait()
                assert wait_for(lambda: not containers(self.address))
                assert wait_for(lambda: not list(Path(tempfile.gettempdir()).iterdir()))
                assert Path(f"/proc/{child}").exists()
                os.kill(child, signal.SIGKILL)
                child = 0
        finally:
            if child:
                os.kill(child, signal.SIGKILL)


class Restarts(OnEngine):
    """The container engine itself dies, and comes back."""

    def test_a_container_engine_that_dies_takes_no_step_with_it_and_is_used_again_when_it_is_back(self) -> None:
        limited = fine.with_options(resources={"memory": "512Mi"})
        ids: list[str] = []
        with container_host.running(self.kind) as private:

            @pipeline(failure_mode="continue")
            async def flow() -> Any:
                early = [fine.submit(number) for number in range(3)]
                await asyncio.wait(early)
                await asyncio.to_thread(private.start)
                running = steps.waits_for_leave.submit(str(self.folder))
                while not (self.folder / "started").exists() and not running.done():
                    await asyncio.sleep(0.01)
                ids.extend(found["Id"] for found in containers(private.address))
                await asyncio.to_thread(private.kill)
                refused = [*early, limited.submit(1)]
                await asyncio.wait(refused)
                (self.folder / "leave").touch()
                done = await running
                await asyncio.to_thread(private.start)
                # The next one, and one for which there is a warm container, if the daemon has not killed that.
                assert (await limited(2), await fine(3)) == (3, 4)
                return [future.exception() for future in refused], done

            async def scene(engine: Engine) -> Any:
                return (await engine.run(flow)).value

            private.kill()
            executor = self.executor(docker_host=private.address)
            errors, done = self.play(scene, executors={"container": executor})
            assert [type(error) for error in errors] == [ExecutorUnavailable] * 4
            assert all("does not answer" in str(error) for error in errors)
            assert done == "done"
            assert len(ids) == 1
            assert wait_for(lambda: not processes_in(ids[0]), 2.0)
            wait_for(lambda: not existing(private.address), 10.0)
            assert existing(private.address) == []  # what is left is shown, with its state


class BadLine:
    """A way to a container engine that breaks in the middle of some requests, as when the engine dies in that moment.

    Args:
        address: the engine's URL.
        place: a socket to be reached at.
    """

    def __init__(self, address: str, place: Path) -> None:
        self._engine, self._place = address.removeprefix("unix://"), place
        self.address = f"unix://{place}"
        self.breaks: re.Pattern[bytes] | None = None
        """At which requests."""
        self.is_late = False
        """Whether it breaks when the engine has done what it was asked for, and was about to say so."""
        self.broken = 0

    async def __aenter__(self) -> BadLine:
        self._server = await asyncio.start_unix_server(self._serve, str(self._place))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, asked: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        answered, asks = await asyncio.open_unix_connection(self._engine)
        is_lost = False

        async def back() -> None:
            while (data := await answered.read(65536)) and not is_lost:
                answers.write(data)
            answers.close()

        task = asyncio.create_task(back())
        while data := await asked.read(65536):
            if self.breaks is not None and self.breaks.match(data):
                self.broken, is_lost = self.broken + 1, True
                if not self.is_late:
                    break
            asks.write(data)
        asks.close()
        answers.close()
        await task


class BadLines(OnEngine):
    """What a container engine did not answer to is made up for when it does again."""

    @pytest.mark.parametrize("goes_on", [True, False])
    @pytest.mark.parametrize(
        ("breaks", "is_late"), [(rb"POST \S+/create", True), (rb"POST \S+/start|DELETE ", False)], ids=["made", "kept"]
    )
    def test_no_container_is_left_whose_making_or_removal_was_not_answered(
        self, breaks: bytes, is_late: bool, goes_on: bool
    ) -> None:
        place = Path(tempfile.mkdtemp(dir="/tmp"))  # short: paths of sockets end at 107 bytes

        @pipeline(failure_mode="continue")
        async def flow() -> Any:
            return await fine(1)

        async def main() -> None:
            async with BadLine(self.address, place / "s") as line:
                executor = self.executor(docker_host=line.address)
                async with Engine(self.folder / "home", executors={"container": executor}) as engine:
                    line.breaks, line.is_late = re.compile(breaks), is_late
                    result = await engine.run(flow)
                    assert type(result.error) is ExecutorUnavailable
                    assert "does not answer" in str(result.error)
                    assert line.broken
                    line.breaks = None
                    (left,) = existing(self.address)
                    assert left["State"] == "created"
                    if goes_on:
                        assert (await engine.run(flow)).value == 2
                        gone = lambda: left["Id"] not in {found["Id"] for found in existing(self.address)}  # noqa: E731
                        assert await asyncio.to_thread(wait_for, gone, 10.0)

        try:
            asyncio.run(main())
        finally:
            shutil.rmtree(place)
        assert existing(self.address) == []


# -- the example ----------------------------------------------------------------------------


class Examples(OnEngine):
    """The demo of this package, with the libraries that are installed here."""

    def test_containers_train_the_same_models_and_share_the_cache(self) -> None:
        pytest.importorskip("sklearn")
        text = self.digits("--runtime", "container")
        assert "9 calls: all succeeded" in text, text
        assert "9 calls: all cached" in text, text
        assert "read all 1,797 images the same." in text
        inline = self.digits("--keep")
        assert inline.count("9 calls: all cached") == 2, inline
        assert re.findall(r"([\d.]+)%", inline) == re.findall(r"([\d.]+)%", text)

    def digits(self, *arguments: str) -> str:
        """What it prints."""
        root = HERE.parents[1]
        environment = {
            **os.environ, "DOCKER_HOST": self.address, "TREADLE_CONTAINER_IMAGE": container_host.IMAGE,
            "PYTHONPATH": os.pathsep.join([str(root / "engine"), str(root / "adapters")]),
        }  # fmt: skip
        command = [
            sys.executable,
            str(root / "docs/examples/digits.py"),
            "--home",
            str(self.folder / "home"),
            *arguments,
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stderr
        return done.stdout


# -- all of it ------------------------------------------------------------------------------

CLASSES: tuple[type[Any], ...] = (
    Conformance, Hostile, Confinement, Reuse, Troubles, Orphans, Forks, Examples, Restarts, BadLines,
)  # fmt: skip


def of(kind: str) -> dict[str, Any]:
    """What makes a file of tests: these classes on one container engine, and the marks of all of them.

    Files are what the suite is ordered by, and what keeps two container engines from running side by side.
    """
    made: dict[str, Any] = {}
    for tests in CLASSES:
        # The one is about libraries and the cache, and takes long; the other about this side only.
        if tests not in (Examples, Forks) or kind == "docker":
            made[f"Test{tests.__name__}"] = type(f"Test{tests.__name__}", (tests,), {"kind": kind})
    mark = pytest.mark
    return {**made, "pytestmark": [mark.slow, mark.container, mark.linux, mark.usefixtures(kind)]}
