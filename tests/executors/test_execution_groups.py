"""Large values between steps of a group stay in the worker's memory, and are what they would be from the store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grouped_steps as steps
import pytest

from treadle import Engine, RunResult, pipeline
from treadle.contracts import Payload
from treadle.errors import ArtifactDamaged
from treadle.storage import codecs
from treadle_adapters.process import ProcessExecutor

LIMIT_S = 60.0
KINDS = [
    "array", "array in another order", "part of an array", "array that is held", "bytes", "text", "tuple", "list",
    "dict",
]  # fmt: skip


def run(home: Path, flow: Any, **options: Any) -> RunResult[Any]:
    async def main() -> RunResult[Any]:
        executors = {"process": ProcessExecutor(workers=2, grace=0.5)}
        async with asyncio.timeout(LIMIT_S), Engine(home, executors=executors, **options) as engine:
            return await engine.run(flow)

    return asyncio.run(main())


def test_what_a_step_of_a_group_sees_is_what_any_other_sees(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> Any:
        found = []
        for kind in KINDS:
            made = steps.made.submit(kind)
            await steps.spoils_what_it_holds.with_options(after=[made])()
            within = [await steps.spoils(made), await steps.sees(made), (await steps.sees([made]))]
            outside = await steps.sees.with_options(execution_group="another")(made)
            inline = await steps.sees.with_options(runtime="inline", execution_group=None)(made)
            found.append((within[:2], [outside, inline]))
        return found

    for kind, (within, others) in zip(KINDS, run(tmp_path, flow).value, strict=True):
        assert within == others, kind
        assert within[0] == within[1], kind


@pytest.mark.parametrize("kind", ["array", "bytes", "text", "tuple", "list", "dict"])
def test_a_group_does_not_read_what_it_has(tmp_path: Path, kind: str) -> None:
    away: dict[Path, bytes] = {}

    @pipeline
    async def flow() -> Any:
        made = steps.made.submit(kind)
        before = await steps.sees(made)
        for path in (tmp_path / "blobs").glob("??/*"):
            away[path] = path.read_bytes()
            path.unlink()
        after = await steps.sees(made)
        outside = steps.sees.with_options(execution_group="another").submit(made)
        await asyncio.wait([outside])
        return before == after, type(outside.exception())

    result = run(tmp_path, flow)
    for path, data in away.items():
        path.write_bytes(data)
    assert away
    assert result.value == (True, ArtifactDamaged)


def test_several_outputs_stay_too_and_all_is_stored(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> Any:
        pair = steps.two_made.submit(40_000)
        seen = await steps.sees(pair.output("one")), await steps.sees(pair.output("two"))
        return seen, (await pair)[0].shape, [artifact.size for artifact in pair.artifacts.values()]

    seen, shape, sizes = run(tmp_path, flow).value
    assert (seen[0][1], seen[1][:2], shape) == ((40_000,), ("list", 40_000), (40_000,))
    assert sizes == [320_128, 40_003]


def test_what_is_kept_is_bounded_and_of_one_group_only() -> None:
    from treadle._runtime.isolation import kept

    values = kept.Kept()
    values.begin("run/one")
    payloads = []
    for number in range(kept.MOST_VALUES + 1):
        encoded = codecs.encode(bytes([number]) * 100_000)
        payload = Payload("bytes", encoded.digest, encoded.checksum, 100_000, None, "there")
        values.keep(encoded.data, payload, encoded.data, mutable=False)
        payloads.append(payload)
    assert [values.take(payload)[0] for payload in payloads] == [False] + [True] * kept.MOST_VALUES
    values.begin("run/one")
    assert not values.is_empty
    values.begin("")
    assert values.is_empty


def test_the_next_engine_finds_it_all_in_the_cache(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> Any:
        made = steps.made.with_options(cache=True).submit("array")
        return await steps.sees.with_options(cache=True)(made), await steps.sees(made)

    first, second = run(tmp_path, flow), run(tmp_path, flow)
    assert first.value == second.value
    assert [found.status for found in second.step_results.values()] == ["cached", "cached", "succeeded"]


def test_the_worker_of_a_group_is_left_to_it_while_there_is_another_one(tmp_path: Path) -> None:
    ungrouped = steps.worker_of.with_options(execution_group=None)

    @pipeline
    async def flow() -> Any:
        first = await steps.worker_of(0)
        others = [await ungrouped(number) for number in range(3)]
        return first, others, await steps.worker_of(4)

    first, others, last = run(tmp_path, flow).value
    assert first == last
    assert set(others).isdisjoint({first})
    assert len(set(others)) == 1


def test_the_worker_of_a_group_goes_to_others_where_there_is_no_room(tmp_path: Path) -> None:
    ungrouped = steps.worker_of.with_options(execution_group=None)

    @pipeline
    async def flow() -> Any:
        taken = {await steps.worker_of(0), await steps.worker_of.with_options(execution_group="another")(1)}
        return taken, await ungrouped(2)

    taken, other = run(tmp_path, flow).value
    assert len(taken) == 2
    assert other in taken
