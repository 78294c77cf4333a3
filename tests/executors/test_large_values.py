"""Large values between steps in processes: they pass by name, also in containers, and the engine's process has none."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_steps as steps
import numpy as np
import pytest

from treadle import Engine, RunResult, pipeline, step
from treadle._runtime.isolation.bridging import Bridge
from treadle.errors import ArtifactDamaged
from treadle.storage import codecs
from treadle_adapters.process import ProcessExecutor

LIMIT_S = 60.0
COUNT = int(os.environ.get("TREADLE_TEST_LARGE_MB", "256")) * 125_000
"""Elements of eight bytes."""


def run(home: Path, *flows: Any, **options: Any) -> list[RunResult[Any]]:
    async def main() -> list[RunResult[Any]]:
        executors = {"process": ProcessExecutor(workers=2, grace=0.5)}
        async with asyncio.timeout(LIMIT_S), Engine(home, executors=executors, **options) as engine:
            return [await engine.run(flow) for flow in flows]

    return asyncio.run(main())


def peak_rss_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def new_peak() -> int:
    """Let the peak of this process's memory begin anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_rss_bytes()


@step(cache=False)
def here(count: int) -> Any:
    return np.full(count, 3)


SHAPES: dict[str, Callable[[Any, Any], Any]] = {
    "a list": lambda one, two: [one, two],
    "a tuple": lambda one, two: (one, 1, two),
    "a dict": lambda one, two: {"a": one, ("b",): two},
    "one in another": lambda one, two: [{"a": [one, "x"]}, ((two,), [None])],
    "the same twice": lambda one, two: [one, one, {"k": two}],
}


@pytest.mark.parametrize("durability", ["strict", "memory"])
def test_a_container_of_large_values_arrives_as_it_would_inline(tmp_path: Path, durability: str) -> None:
    @pipeline
    async def flow() -> Any:
        array, rows = steps.ones.submit(20_000), steps.table.submit(30_000)
        found = []
        for shape in SHAPES.values():
            given = shape(array, rows)
            seen, inline = await steps.sees_of(given), await steps.sees_of.with_options(runtime="inline")(given)
            found.append((seen, inline, await steps.gives_back(given), shape(await array, await rows)))
        return found

    for seen, inline, back, whole in run(tmp_path, flow, durability=durability)[0].value:
        assert seen == inline
        assert "ndarray" in str(seen)
        assert codecs.digest(back) == codecs.digest(whole)


def test_futures_artifacts_values_and_literals_in_a_container_have_one_key(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> Any:
        arrays = steps.ones.map([20_000, 30_000])
        futures = list(arrays)
        await asyncio.gather(*futures)
        given: list[Any] = [
            arrays, futures, [future.artifact for future in futures], await arrays, [np.ones(20_000), np.ones(30_000)],
        ]  # fmt: skip
        return [await steps.reduced(values) for values in given]

    result = run(tmp_path, flow)[0]
    assert result.value == [50_000] * 5
    performed = [found.status for name, found in result.step_results.items() if name.startswith("reduced")]
    assert performed == ["succeeded", *["cached"] * 4]


def test_what_was_made_here_and_one_of_several_outputs_can_be_in_a_container(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> Any:
        pair = steps.pair.submit(20_000)
        inline, unstored = here.submit(20_000), here.with_options(persist=False).submit(20_000)
        given = [pair, pair.output("large"), pair.output("small"), inline, unstored, b"x" * 100_000]
        return await steps.sees_of(given), await steps.reduced([pair.output("large"), inline])

    seen, total = run(tmp_path, flow)[0].value
    array = ("ndarray", False, (20_000,))
    assert seen[:4] == [("int", array), array, "int", array]
    assert (seen[4][0], seen[5], total) == ("ndarray", "bytes", 200_000)


def test_lineage_names_the_calls_in_a_container(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> Any:
        return await steps.reduced([steps.ones.submit(20_000), steps.ones.submit(30_000)])

    result = run(tmp_path, flow)[0]
    assert result.step_results["reduced"].inputs["values"].producer == "ones,ones_2"


def test_a_part_that_was_damaged_is_not_decoded(tmp_path: Path) -> None:
    sound: dict[Path, bytes] = {}

    @pipeline
    async def flow() -> Any:
        future = steps.ones.submit(20_000)
        await steps.total(future)
        for path in (tmp_path / "blobs").glob("??/*"):
            sound[path] = path.read_bytes()
            path.write_bytes(sound[path][:-1] + b"\xff")
        return await steps.reduced([future])

    assert isinstance(run(tmp_path, flow)[0].error, ArtifactDamaged)
    for path, data in sound.items():
        path.write_bytes(data)


@pytest.mark.linux
def test_a_large_array_goes_from_step_to_step_and_its_bytes_never_come_here(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> Any:
        before = new_peak()
        array = steps.ones.submit(COUNT)
        total = await steps.total(array)
        together = await steps.reduced.with_options(cache=False)([array])
        return total, together, peak_rss_bytes() - before

    total, together, grown = run(tmp_path, flow)[0].value
    assert (total, together) == (COUNT, COUNT)
    assert grown < 32_000_000, f"{grown:,} bytes more than before, of an array of {COUNT * 8:,}"


# -- over a bridge ------------------------------------------------------------------------


def test_equal_values_that_are_made_at_the_same_time_all_arrive_in_memory() -> None:
    @pipeline
    async def flow() -> tuple[set[int], tuple[bytes, bytes], bytes]:
        sizes = {len(value) for value in await steps.zeros.map(range(60))}
        return sizes, await steps.zeros_twice(), await steps.gives_back(bytes(200_000))

    sizes, pair, back = run("memory://", flow)[0].value  # type: ignore[arg-type]
    assert sizes == {200_000}
    assert pair == (bytes(200_000), bytes(200_000))
    assert back == bytes(200_000)


def files(bridge: Bridge) -> list[str]:
    return sorted(path.name for path in bridge.blobs.folders[0].parent.rglob("*") if path.is_file())


def test_a_bridge_keeps_what_an_attempt_under_way_may_count_on() -> None:
    data = bytes(100_000)
    check = codecs.checksum(data)
    bridge = Bridge()
    try:
        first, second = bridge.begun(), bridge.begun()
        location = bridge.blobs.put(data, check)  # both do, and the second one writes nothing
        bridge.hold((location,))
        bridge.give_back((location,))
        bridge.ended(first)
        assert not bridge.blobs.exists(location, len(data))
        bridge.hold((location,))
        assert bridge.take(location, len(data), check) == data
        bridge.give_back((location,))
        bridge.ended(second)
        assert files(bridge) == []
    finally:
        bridge.remove()


def test_a_bridge_keeps_nothing_that_only_ended_attempts_have_made() -> None:
    bridge = Bridge()
    try:
        number = bridge.begun()
        for size in (100_000, 100_001):
            data = bytes(size)
            later = bridge.begun()
            location = bridge.blobs.put(data, codecs.checksum(data))
            bridge.hold((location, location))
            bridge.give_back((location, location))
            bridge.ended(number)
            number = later
        assert len(files(bridge)) == 1
        bridge.ended(number)
        assert files(bridge) == []
        bridge.hold(("ab/" + "0" * 62,))  # as a worker says that has put nothing there
        bridge.give_back(("ab/" + "0" * 62,))
        assert files(bridge) == []
    finally:
        bridge.remove()
