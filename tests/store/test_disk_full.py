"""A full disk, a real one: the engine says so, claims nothing, and goes on by itself when there is space again."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from storekit import until

from treadle import Engine, pipeline, step
from treadle.errors import ArtifactStoreError, LogUnavailable, StoreUnwritable

Mount = Callable[[str], Path]


@step(cache=False)
async def note(x: int) -> bytes:
    return os.urandom(8000)


@pipeline(failure_mode="continue")
async def notes(n: int) -> int:
    return len(await note.map(range(n)))


@step(cache=False)
async def broken(gate: str) -> int:
    fill(Path(gate))
    raise ValueError("the step's own fault")


@pipeline
async def breaking(gate: str) -> int:
    return await broken(gate)


attempts: list[Path] = []


@step(retry=3, cache=False)
def large(place: str) -> bytes:
    """Leaves too little space for its own result, until the third attempt makes room."""
    attempts.append(Path(place))
    ballast = Path(place, "ballast")
    if len(attempts) < 3:
        ballast.write_bytes(bytes(1_500_000))
    else:
        ballast.unlink()
    return os.urandom(900_000)


@pipeline
async def largely(place: str) -> int:
    return len(await large(place))


def fill(disk: Path) -> None:
    """Use up what is left."""
    with open(disk / "ballast", "ab", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break


def test_a_full_disk_is_said_survived_and_left_behind(small_disk: Mount) -> None:
    disk = small_disk("6m")
    home = disk / "home"

    async def main() -> None:
        async with Engine(home) as engine:
            assert (await engine.run(notes, 3)).success
            (disk / "ballast").write_bytes(bytes(4_000_000))
            handle = await engine.start(notes, 5000)
            with pytest.raises(LogUnavailable, match=r"cannot be written.*full.*free disk space") as caught:
                await handle
            assert caught.value.__cause__ is not None
            # degraded: says so, and refuses at once
            health = engine.health()
            assert (health["status"], health["log"]) == ("degraded", "unavailable")
            assert any("cannot be written" in problem for problem in health["problems"])
            began = time.perf_counter()
            with pytest.raises(LogUnavailable):
                await engine.start(notes, 1)
            with pytest.raises(LogUnavailable):
                await notes(1)
            assert time.perf_counter() - began < 1.0
            # space returns: so does the engine, by itself
            (disk / "ballast").unlink()
            began = time.perf_counter()
            await until(lambda: engine.health()["status"] == "ok")
            assert time.perf_counter() - began < 4.0  # the probe comes every second
            assert (await engine.run(notes, 2)).value == 2
            # what was cut off is interrupted, and holds nothing that was not committed
            result = await engine.get_run(handle.id)
            assert result.status == "interrupted"
            acknowledged = {name for name, call in result.step_results.items() if call.status == "succeeded"}
            assert len(acknowledged) < 5000
        async with Engine(home) as engine:
            result = await engine.get_run(handle.id)
            assert result.status == "interrupted"
            after = {name for name, call in result.step_results.items() if call.status == "succeeded"}
            assert after == acknowledged

    asyncio.run(main())


@step(cache=False)
async def heavy(x: int) -> bytes:
    return os.urandom(30000)


seen: dict[int, str] = {}


@pipeline
async def watched(n: int) -> int:
    """Notes for each call whether its future said success."""
    futures = [heavy.submit(x) for x in range(n)]
    for x, future in enumerate(futures):
        try:
            await future
            seen[x] = future.name
        except LogUnavailable:
            pass
    return len(seen)


def test_no_future_says_success_that_the_log_does_not_hold(small_disk: Mount) -> None:
    """... and a run that was cut off goes on where its log ends, when it is resumed."""
    disk = small_disk("4m")
    home = disk / "home"

    async def main() -> None:
        seen.clear()
        async with Engine(home, max_concurrency=4) as engine:
            (disk / "ballast").write_bytes(bytes(3_000_000))
            handle = await engine.start(watched, 40)
            with pytest.raises(LogUnavailable):
                await handle
        assert 0 < len(seen) < 40
        (disk / "ballast").unlink()
        async with Engine(home) as engine:
            result = await engine.get_run(handle.id)
            assert result.status == "interrupted"
            for name in seen.values():
                call = result.step_results[name]
                assert call.status == "succeeded"
                assert len(call.outputs["heavy"]) == 30000

    asyncio.run(main())


def test_an_interrupted_run_can_be_resumed_when_there_is_space_again(small_disk: Mount) -> None:
    disk = small_disk("4m")

    async def main() -> None:
        seen.clear()
        async with Engine(disk / "home", max_concurrency=4) as engine:
            (disk / "ballast").write_bytes(bytes(3_000_000))
            handle = await engine.start(watched, 40)
            with pytest.raises(LogUnavailable):
                await handle
            held = len(seen)
            assert held < 40
            (disk / "ballast").unlink()
            await until(lambda: engine.health()["status"] == "ok")
            result = await engine.resume(handle.id)
            assert result.value == 40
            assert sum(call.reused for call in result.step_results.values()) >= held

    asyncio.run(main())


def test_the_steps_own_error_is_the_cause_of_the_logs(small_disk: Mount) -> None:
    disk = small_disk("2m")

    async def main() -> None:
        async with Engine(disk / "home") as engine:
            with pytest.raises(LogUnavailable) as caught:
                await breaking(str(disk))
            assert isinstance(caught.value.__cause__, ValueError)
            (disk / "ballast").unlink()
            await until(lambda: engine.health()["status"] == "ok")

    asyncio.run(main())


def test_closing_on_a_full_disk_does_not_hang_and_the_run_is_interrupted_later(small_disk: Mount) -> None:
    disk = small_disk("2m")

    async def main() -> None:
        began = asyncio.Event()
        async with Engine(disk / "home", close_timeout=0.1) as engine:

            @step(cache=False)
            async def wait() -> None:
                began.set()
                await asyncio.Event().wait()

            @pipeline
            async def waiting() -> None:
                await wait()

            handle = await engine.start(waiting)
            await began.wait()
            fill(disk)
            closing = time.perf_counter()
        assert time.perf_counter() - closing < 5.0
        (disk / "ballast").unlink()
        async with Engine(disk / "home") as engine:
            assert (await engine.get_run(handle.id)).status == "interrupted"

    asyncio.run(main())


@pytest.mark.damaged_home  # its artifacts are elsewhere, where the log checker does not look
def test_an_artifact_that_does_not_fit_fails_its_step_and_may_be_retried(small_disk: Mount, tmp_path: Path) -> None:
    disk = small_disk("2m")
    store = disk / "store"

    async def main() -> None:
        attempts.clear()
        async with Engine(tmp_path / "home", artifacts=store) as engine:
            assert await largely(str(disk)) == 900_000
            assert len(attempts) == 3
            events = [event async for event in engine.events()]
            failures = [event.failure.message for event in events if type(event).__name__ == "CallRetrying"]
            assert len(failures) == 2
            assert all("No space left" in message for message in failures)

    asyncio.run(main())
    assert os.listdir(store / "tmp") == []


def test_an_artifact_that_never_fits_is_an_error_of_the_store(small_disk: Mount, tmp_path: Path) -> None:
    disk = small_disk("1m")

    @step(cache=False)
    async def too_large() -> bytes:
        return os.urandom(2_000_000)

    @pipeline
    async def storing() -> int:
        return len(await too_large())

    @step(cache=False)
    async def small() -> int:
        return 1

    @pipeline
    async def returning() -> bytes:
        await small()
        return os.urandom(2_000_000)

    async def main() -> None:
        async with Engine(tmp_path / "home", artifacts=disk / "store") as engine:
            for target in (storing, returning):
                result = await engine.run(target)
                assert result.status == "failed"
                with pytest.raises(ArtifactStoreError, match=r"cannot write.*No space left.*free space"):
                    result.raise_for_failure()
                assert (await engine.get_run(result.run_id)).status == "failed"
            assert engine.health()["status"] == "ok"

    asyncio.run(main())
    assert os.listdir(disk / "store" / "tmp") == []


def test_a_home_on_a_full_disk_is_refused_with_the_right_advice(small_disk: Mount) -> None:
    disk = small_disk("1m")
    fill(disk)

    async def main() -> None:
        with pytest.raises(StoreUnwritable, match=r"No space left.*free disk space"):
            async with Engine(disk / "home"):
                pass
        assert os.listdir(disk) == ["ballast"]

    asyncio.run(main())
