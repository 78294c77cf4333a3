"""Steps on a dask cluster: who is connected, what is lost and what is not, and that nothing stays."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask_cluster
import dask_steps as steps
import hostile_steps
import pytest
from dask_cluster import Cluster

from treadle import Engine, RunResult, pipeline
from treadle.contracts import Attempt
from treadle.errors import (
    DecodeError,
    ExecutorUnavailable,
    OptionError,
    ResourcesExceeded,
    StepCrashed,
    StepTimeout,
    WorkerProtocolError,
)
from treadle_adapters import _dask_blobs, _dask_link
from treadle_adapters import _dask_words as words
from treadle_adapters._dask_house import House
from treadle_adapters.dask import DaskExecutor

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with dask_cluster.cluster(2, "GPU=1", SEEN="yes", HIDDEN="yes") as made:
        yield made


def run(home: Path | str, executor: DaskExecutor, *flows: Any, **options: Any) -> list[RunResult[Any]]:
    """Run pipelines one after another on one engine."""

    async def main() -> list[RunResult[Any]]:
        async with asyncio.timeout(LIMIT_S), Engine(home, executors={"dask": executor}, **options) as engine:
            return [await engine.run(flow) for flow in flows]

    return asyncio.run(main())


async def until(there: Callable[[], Any]) -> Any:
    """Wait for what another process brings about."""
    while not (found := there()):
        await asyncio.sleep(0.01)
    return found


def pids_in(folder: Path) -> set[int]:
    return {int(path.name.partition("-")[2]) for path in folder.glob("*-*")}


# -- connecting ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"cluster": 3}, {"cluster": ""}, {"cluster": object()}, {"security": 3}, {"security": {"tls_ca_file": "ca.pem"}},
     {"env": "PATH"}, {"env": ("A=B",)}, {"grace": -1}, {"slots": 0}, {"slots": True}, {"bridge": 1},
     {"connect_timeout": 0}],
)  # fmt: skip
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    given: dict[str, Any] = {"cluster": "tcp://127.0.0.1:1", **options}
    with pytest.raises(OptionError) as caught:
        DaskExecutor(**given)
    assert caught.value.option == next(iter(options))


def test_a_security_of_dasks_will_do() -> None:
    from distributed import Security

    DaskExecutor("tls://127.0.0.1:1", security=Security(require_encryption=True))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "distributed" else found(name))
    with pytest.raises(ExecutorUnavailable, match=r"pip install 'treadle\[dask\]'"):
        DaskExecutor("tcp://127.0.0.1:1")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("tcp://127.0.0.1:1", "cannot be reached"),
        ("nonsense://x", "cannot be reached"),
        (None, "does not know which cluster"),
    ],
)
def test_a_scheduler_that_cannot_be_reached_is_an_error_and_the_engine_goes_on(
    tmp_path: Path, address: str | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)

    @pipeline
    async def flow() -> int:
        return await steps.pid()

    @pipeline
    async def after() -> int:
        return await steps.pid.with_options(runtime="inline")()

    executor = DaskExecutor(address, connect_timeout=0.5)
    failed, again, done = run(tmp_path / "home", executor, flow, flow, after)
    for result in (failed, again):
        assert type(result.error) is ExecutorUnavailable
        assert why in str(result.error)
    assert done.value == os.getpid()


def test_a_cluster_object_will_do(tmp_path: Path, cluster: Cluster) -> None:
    class Given:
        scheduler_address = cluster.address
        security = None

    @pipeline
    async def flow() -> int:
        return await steps.place()

    assert run(tmp_path / "home", DaskExecutor(Given()), flow)[0].value in cluster.pids()


def test_the_address_that_dask_is_configured_with_will_do(tmp_path: Path, cluster: Cluster) -> None:
    import dask

    @pipeline
    async def flow() -> int:
        return await steps.place()

    with dask.config.set({"scheduler-address": cluster.address}):
        assert run(tmp_path / "home", DaskExecutor(), flow)[0].value in cluster.pids()


def test_engines_share_a_cluster_but_not_an_executor(tmp_path: Path, cluster: Cluster) -> None:
    @pipeline
    async def flow() -> int:
        return await steps.pid()

    async def main() -> None:
        shared, other = DaskExecutor(cluster.address), DaskExecutor(cluster.address)
        async with Engine(tmp_path / "one", executors={"dask": shared}) as one:
            first = (await one.run(flow)).value
            async with Engine(tmp_path / "two", executors={"dask": shared}) as two:
                assert isinstance((await two.run(flow)).error, ExecutorUnavailable)
            async with Engine(tmp_path / "three", executors={"dask": other}) as three:
                assert (await three.run(flow)).value != first

    asyncio.run(main())


def test_a_worker_with_another_release_is_told_apart(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "versions", lambda: {"protocol": 1, "treadle": "9.9", "python": "3.99"})

    @pipeline
    async def flow() -> int:
        return await steps.pid()

    error = run(tmp_path / "home", DaskExecutor(cluster.address), flow)[0].error
    assert type(error) is ExecutorUnavailable
    assert "treadle 9.9 (protocol 1) on Python 3.99" in str(error)


# -- what is lost and what is not ---------------------------------------------------------


@pytest.mark.crash
@pytest.mark.linux
def test_a_step_of_a_worker_that_was_killed_is_performed_elsewhere_if_it_may_be(
    tmp_path: Path, gone: Callable[[set[int]], set[int]]
) -> None:
    def killing(retry: int, folder: Path) -> Any:
        folder.mkdir()
        grouped = {"execution_group": "one"}

        @pipeline(name=f"flow_{retry}")
        async def flow() -> int:
            doomed = await steps.place.with_options(**grouped)()
            waiting = steps.waits.with_options(retry=retry, **grouped).submit(str(folder))
            await until(lambda: list(folder.iterdir()))
            os.kill(doomed, signal.SIGKILL)
            await waiting
            return doomed

        return flow

    folders = [tmp_path / "never", tmp_path / "once"]
    with dask_cluster.cluster(2) as own:
        before = own.pids()
        flows = [killing(retry, folder) for retry, folder in enumerate(folders)]
        failed, done = run(tmp_path / "home", DaskExecutor(own.address), *flows)
        assert gone(pids_in(folders[0]) | pids_in(folders[1])) == set()
        assert before != own.pids()
    assert type(failed.error) is StepCrashed
    assert (failed.step_results["waits"].attempts, len(pids_in(folders[0]))) == (1, 1)
    assert done.success
    assert (done.step_results["waits"].attempts, len(pids_in(folders[1]))) == (2, 2)


@pytest.mark.crash
def test_a_scheduler_that_ends_in_the_middle_fails_the_calls_and_does_not_hold_them(tmp_path: Path) -> None:
    folder = tmp_path / "seen"
    folder.mkdir()

    async def main() -> None:
        with dask_cluster.cluster(1) as own:
            executor = DaskExecutor(own.address, connect_timeout=1, grace=0.2)
            async with asyncio.timeout(LIMIT_S), Engine(tmp_path / "home", executors={"dask": executor}) as engine:
                handle = await engine.start(steps.waiting, str(folder))
                await until(lambda: list(folder.iterdir()))
                own.stop()
                with pytest.raises(StepCrashed):
                    await handle
                with pytest.raises(ExecutorUnavailable):
                    await (await engine.start(steps.waiting, str(folder)))

    asyncio.run(main())


@pytest.mark.crash
@pytest.mark.linux
@pytest.mark.parametrize("waits", [True, False], ids=["after-dask", "before-dask"])
def test_a_scheduler_that_was_killed_is_used_again_when_there_is_another_one(tmp_path: Path, waits: bool) -> None:
    @pipeline
    async def flow() -> float:
        return await steps.sleeps.with_options(retry=1)(0.0)

    async def main() -> None:
        with dask_cluster.cluster(1) as first:
            port = int(first.address.rpartition(":")[2])
            executor = DaskExecutor(first.address)
            async with asyncio.timeout(LIMIT_S), Engine(tmp_path / "home", executors={"dask": executor}) as engine:
                assert (await engine.run(flow)).value == 0.0
                client = executor._linking.result()._client  # type: ignore[union-attr]
                sender = client.scheduler_comm
                await asyncio.to_thread(first.kill)
                with dask_cluster.cluster(1, port=port) as second:
                    assert second.address == first.address
                    if waits:  # it connects by itself, to one that has never heard of what was asked for
                        await until(lambda: client.status == "running" and client.scheduler_comm is not sender)
                    assert (await engine.run(flow)).value == 0.0
                    assert (await engine.run(flow)).value == 0.0

    asyncio.run(main())


def test_an_attempt_that_has_timed_out_has_ended_before_the_next_one_begins(tmp_path: Path, cluster: Cluster) -> None:
    @pipeline
    async def flow() -> tuple[int, bool]:
        return await steps.takes_leave(str(tmp_path))

    async def main() -> None:
        executors = {"dask": DaskExecutor(cluster.address, grace=20.0)}
        async with asyncio.timeout(LIMIT_S), Engine(tmp_path / "home", executors=executors) as engine:
            result = await engine.run(flow)
            assert result.value == (2, True)
            assert "the last word" in [line.message for line in await engine.logs(result.run_id)]

    asyncio.run(main())


@pytest.mark.linux
def test_a_worker_that_goes_while_its_output_is_fetched_holds_no_place_on_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @pipeline(failure_mode="continue")
    async def flow() -> Any:
        large = steps.ones.submit(100_000)
        await asyncio.wait([large])
        return await steps.sleeps(0.0), large.exception()  # it may have been fetched in time, or not

    async def main() -> None:
        with dask_cluster.cluster(2) as own:
            executor = DaskExecutor(own.address, bridge=True)
            fetch = _dask_link.Link._fetch

            async def fetch_late(link: _dask_link.Link, errand: Any, outcome: Any) -> None:
                if errand.attempt.qualname == "ones":
                    await link._client.retire_workers([errand.address])
                    await until(lambda: errand.address not in link._threads)
                await fetch(link, errand, outcome)

            monkeypatch.setattr(_dask_link.Link, "_fetch", fetch_late)
            async with asyncio.timeout(LIMIT_S), Engine(tmp_path / "home", executors={"dask": executor}) as engine:
                slept, error = (await engine.run(flow)).value
                assert slept == 0.0
                assert error is None or type(error) is StepCrashed
                assert "KeyError" not in str(error)

    asyncio.run(main())


def test_a_cancelled_step_frees_its_worker_at_once(tmp_path: Path, gone: Callable[[set[int]], set[int]]) -> None:
    folder = tmp_path / "seen"
    folder.mkdir()

    @pipeline
    async def after() -> float:
        return await steps.sleeps(0.0)

    async def main() -> None:
        with dask_cluster.cluster(1) as own:
            executor = DaskExecutor(own.address, grace=0.3)
            async with asyncio.timeout(LIMIT_S), Engine(tmp_path / "home", executors={"dask": executor}) as engine:
                handle = await engine.start(steps.waiting, str(folder))
                await until(lambda: list(folder.iterdir()))
                queued = await engine.start(steps.waiting, str(folder))
                await handle.cancel()
                await queued.cancel()
                assert (await engine.run(after)).value == 0.0
                assert gone(pids_in(folder)) == set()
                assert len(pids_in(folder)) == 1

    asyncio.run(main())


def test_a_place_that_is_left_when_its_attempt_has_just_been_ordered_is_free_again() -> None:
    class DaskWorker:
        """As much of one as a place needs that never comes to perform anything."""

        def __init__(self) -> None:
            self.events: list[tuple[str, Any]] = []

        def log_event(self, topic: str, message: Any) -> None:
            self.events.append((topic, message))

    async def main() -> None:
        house, worker = House(), DaskWorker()
        house.setup(worker)
        lease = house.let("key", words.Tenancy("engine", "topic"))
        attempt = Attempt("run", "call", "step", 1, "token", "module", "name")
        order = words.Order(words.pack(attempt), words.Around((), "/", 30, words.installation()), None)
        lease.begin(order, attempt, None)
        lease.leave()  # in the same turn of the loop: the attempt has not taken its first step
        async with asyncio.timeout(LIMIT_S):
            await lease.is_over.wait()
        assert house.leases == {}
        assert len(worker.events) == 1
        await lease.tenant.close()

    asyncio.run(main())


def test_the_time_of_a_step_counts_from_when_it_begins(tmp_path: Path, cluster: Cluster) -> None:
    timed = steps.sleeps.with_options(timeout=2)
    folders = [tmp_path / "one", tmp_path / "two"]

    @pipeline
    async def flow() -> float:
        holding = [steps.waits.submit(str(folder)) for folder in folders]
        await until(lambda: all(any(folder.iterdir()) for folder in folders))
        queued = timed.submit(0.0)
        await asyncio.sleep(2.2)  # longer than it may take
        for folder in folders:
            (folder / "enough").touch()
        await asyncio.gather(*holding)
        return await queued

    @pipeline
    async def late() -> float:
        return await steps.sleeps.with_options(timeout=0.3)(steps.FOREVER_S)

    for folder in folders:
        folder.mkdir()
    done, ended = run(tmp_path / "home", DaskExecutor(cluster.address, grace=0.2), flow, late)
    assert done.value == 0.0
    assert type(ended.error) is StepTimeout


def test_nothing_of_dask_goes_on_in_the_loop_of_an_engine_that_has_closed(tmp_path: Path, cluster: Cluster) -> None:
    from distributed.batched import BatchedSend

    @pipeline
    async def flow() -> Any:
        return await hostile_steps.fine.with_options(runtime="dask")(1)

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        async with Engine(tmp_path / "home", executors={"dask": DaskExecutor(cluster.address)}) as engine:
            assert (await engine.run(flow)).value == 2
        senders = [found for found in gc.get_objects() if isinstance(found, BatchedSend)]
        return [found for found in senders if found.loop.asyncio_loop is loop and not found.stopped.is_set()]

    assert asyncio.run(main()) == []


@pytest.mark.linux
def test_nothing_of_an_engine_stays_on_the_workers_when_it_closes(
    tmp_path: Path, cluster: Cluster, gone: Callable[[set[int]], set[int]]
) -> None:
    @pipeline
    async def flow() -> list[int]:
        return await steps.pid.map(range(6))

    assert gone(set(run(tmp_path / "home", DaskExecutor(cluster.address), flow)[0].value)) == set()


def test_nonsense_from_a_worker_is_an_error_of_its_attempt(tmp_path: Path, cluster: Cluster) -> None:
    folder = tmp_path / "seen"
    folder.mkdir()

    async def main() -> None:
        from distributed import Client

        executors = {"dask": DaskExecutor(cluster.address, grace=0.2)}
        async with (
            asyncio.timeout(LIMIT_S),
            Client(cluster.address, asynchronous=True, set_as_default=False) as other,
            Engine(tmp_path / "home", executors=executors) as engine,
        ):
            handle = await engine.start(steps.waiting, str(folder))
            await until(lambda: list(folder.iterdir()))
            clients = [event[1].get("client", "") for event in await other.get_events("all")]
            topic = [client for client in clients if client.startswith("Client-treadle-")][-1]
            key = next(key for keys in (await other.processing()).values() for key in keys)
            await other.log_event(topic, "nonsense")
            await other.log_event(topic, {"key": "of nobody", "body": b""})
            await other.log_event(topic, {"key": key, "body": b"\xc1"})
            with pytest.raises(WorkerProtocolError):
                await handle

    asyncio.run(main())


PROGRAM = """
import asyncio, sys
import dask_steps as steps
from treadle import Engine, pipeline
from treadle_adapters.dask import DaskExecutor

@pipeline
async def flow(folder):
    await asyncio.gather(steps.waits.submit(folder, "one"), steps.waits.submit(folder, "two"))

async def main(address, folder):
    async with Engine("memory://", executors={"dask": DaskExecutor(address)}) as engine:
        await engine.run(flow, folder)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.crash
@pytest.mark.linux
def test_nothing_of_an_engine_that_was_killed_stays_on_the_workers(
    tmp_path: Path, cluster: Cluster, gone: Callable[[set[int]], set[int]]
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", PROGRAM, cluster.address, str(tmp_path / "seen")]
    (tmp_path / "seen").mkdir()
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as engine:
        until = time.monotonic() + 30
        while len(pids_in(tmp_path / "seen")) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        pids = pids_in(tmp_path / "seen")
        engine.send_signal(signal.SIGKILL)
    assert len(pids) == 2
    nurseries = {parent for pid in pids if (parent := parent_of(pid))}
    until = time.monotonic() + 15  # the cluster's bound: the scheduler has to notice first
    while gone(pids | nurseries) and time.monotonic() < until:
        pass
    assert gone(pids | nurseries) == set()


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


# -- what steps see -----------------------------------------------------------------------


def test_what_a_step_says_arrives_while_it_runs(tmp_path: Path, cluster: Cluster) -> None:
    folder = tmp_path / "seen"
    folder.mkdir()

    async def main() -> None:
        executors = {"dask": DaskExecutor(cluster.address)}
        async with asyncio.timeout(LIMIT_S), Engine(tmp_path / "home", executors=executors) as engine:
            handle = await engine.start(steps.waiting, str(folder))
            async for event in handle.events():
                if type(event).__name__ == "Progressed":
                    (folder / "enough").touch()
            assert (await handle.wait()).success

    asyncio.run(main())


def test_steps_get_little_of_the_environment_of_the_workers(tmp_path: Path, cluster: Cluster) -> None:
    @pipeline
    async def flow() -> list[str | None]:
        return await steps.sees("SEEN", "HIDDEN")

    assert run(tmp_path / "home", DaskExecutor(cluster.address, env=("SEEN",)), flow)[0].value == ["yes", None]


def test_calls_of_a_group_share_a_worker(tmp_path: Path, cluster: Cluster) -> None:
    grouped = steps.pid.with_options(execution_group="training")

    @pipeline
    async def flow() -> bool:
        first = await grouped(1)
        await steps.pid.map(range(4))
        return first == await grouped(2) == await grouped(3)

    assert run(tmp_path / "home", DaskExecutor(cluster.address), flow)[0].value


def test_resources_that_workers_declare_are_set_aside_and_others_bound_nothing(
    tmp_path: Path, cluster: Cluster
) -> None:
    @pipeline
    async def flow() -> int:
        return await steps.pid.with_options(resources={"gpu": 1, "cpu": 64, "memory": "1Ti"})()

    @pipeline(static=True)
    def static() -> Any:
        return steps.pid.with_options(resources={"gpu": 1, "memory": "1Ti"})()

    @pipeline
    async def too_much() -> int:
        return await steps.pid.with_options(resources={"gpu": 2})()

    executor = DaskExecutor(cluster.address)
    done, also_done, refused = run(tmp_path / "home", executor, flow, static, too_much, overcommit="error")
    assert done.success
    assert also_done.success
    assert type(refused.error) is ResourcesExceeded
    assert (refused.error.asked, refused.error.available) == ({"gpu": 2.0}, {"gpu": 1.0})


@pytest.mark.parametrize("trust", [False, True])
def test_a_pickle_from_a_worker_is_loaded_only_if_workers_are_trusted(
    tmp_path: Path, cluster: Cluster, trust: bool
) -> None:
    @pipeline
    async def flow() -> Any:
        return await hostile_steps.gives_what_only_pickles.with_options(runtime="dask")()

    result = run(tmp_path / "home", DaskExecutor(cluster.address), flow, trust_workers=trust)[0]
    if trust:
        assert result.value == {"slots": hostile_steps.Slotted(3)}
    else:
        assert isinstance(result.error, DecodeError)


@pytest.mark.parametrize("way", ["reached", "not reached", "bridged"])
@pytest.mark.parametrize("home", ["home", "memory://"])
def test_large_values_pass_whether_workers_reach_the_store_or_not(
    tmp_path: Path, cluster: Cluster, way: str, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def elsewhere(*_: object) -> tuple[str, int]:
        return "00/of another folder", 1

    if way == "not reached":
        monkeypatch.setattr(_dask_blobs.Proofs, "of", elsewhere)

    @pipeline
    async def flow() -> Any:
        array = await steps.doubled(steps.doubled.submit(steps.ones.submit(100_000)))
        both = await steps.totals([array, steps.ones.submit(50_000)])
        return array.size, float(array[-1]), both

    executor = DaskExecutor(cluster.address, bridge=way == "bridged")
    where = home if "://" in home else tmp_path / home
    result = run(where, executor, flow)[0]
    assert result.value == (100_000, 4.0, 450_000.0)


def test_a_step_that_finds_no_place_says_so_in_its_log(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dask_link, "PATIENCE_S", 0.05)

    @pipeline
    async def flow() -> list[float]:
        return await steps.sleeps.map([0.2, 0.21, 0.22, 0.23])

    async def main() -> list[str]:
        executors = {"dask": DaskExecutor(cluster.address)}
        async with asyncio.timeout(LIMIT_S), Engine(tmp_path / "home", executors=executors) as engine:
            result = await engine.run(flow)
            return [line.message for line in await engine.logs(result.run_id)]

    assert "no worker of the dask cluster had a place in 0.05 s" in asyncio.run(main())


def test_an_asynchronous_cluster_of_the_same_loop_will_do_once_it_has_started(tmp_path: Path) -> None:
    program = """
import asyncio, sys
import dask_steps as steps
from distributed import LocalCluster
from treadle import Engine, pipeline
from treadle.errors import OptionError
from treadle_adapters.dask import DaskExecutor

@pipeline
async def flow():
    return await steps.sleeps(0.0)

async def main():
    cluster = LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, asynchronous=True, dashboard_address="127.0.0.1:0",
        silence_logs=50,
    )
    try:
        DaskExecutor(cluster)
    except OptionError as error:
        print(error.option)
    async with cluster, Engine(sys.argv[1], executors={"dask": DaskExecutor(cluster)}) as engine:
        print((await engine.run(flow)).value)

if __name__ == "__main__":
    asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", program, str(tmp_path / "home")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.stdout, done.stderr) == ("cluster\n0.0\n", "")


def test_steps_of_a_script_are_found_in_it(tmp_path: Path, cluster: Cluster) -> None:
    (tmp_path / "program.py").write_text(
        """
import asyncio, dataclasses, sys
from treadle import Engine, pipeline, step
from treadle_adapters.dask import DaskExecutor

@dataclasses.dataclass
class Point:
    x: int

@step(runtime="dask")
def moved(point):
    return Point(point.x + 1)

@pipeline
async def flow():
    return await moved(Point(1))

async def main():
    async with Engine(sys.argv[1], executors={"dask": DaskExecutor(sys.argv[2])}) as engine:
        print((await engine.run(flow)).value)

if __name__ == "__main__":
    asyncio.run(main())
"""
    )
    command = [sys.executable, "-W", "error", str(tmp_path / "program.py"), str(tmp_path / "home"), cluster.address]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.stdout, done.stderr) == ("Point(x=2)\n", "")


def test_dask_works_on_uvloop(tmp_path: Path, cluster: Cluster) -> None:
    uvloop = pytest.importorskip("uvloop")

    @pipeline
    async def flow() -> list[float]:
        return await steps.sleeps.map([0.0, 0.01])

    async def main() -> Any:
        async with Engine(tmp_path / "home", executors={"dask": DaskExecutor(cluster.address)}) as engine:
            return (await engine.run(flow)).value

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == [0.0, 0.01]
