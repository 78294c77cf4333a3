"""What an engine that closes in the middle of a run says: one line, however many calls were under way."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from treadle import Engine, pipeline, step
from treadle.errors import RunInterrupted
from treadle.events import CallStarted


@step(cache=False)
async def forever(x: int) -> int:
    await asyncio.Event().wait()
    return x


@pipeline
async def many(count: int) -> list[int]:
    futures = list(forever.map(range(count)))
    return [await future for future in futures]


def test_interrupted_calls_of_a_map_do_not_complain_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> str:
        engine = Engine(tmp_path / "home", close_timeout=0)
        await engine.open()
        handle = await engine.start(many, 50)
        async for event in handle.events():
            if isinstance(event, CallStarted) and event.call == "forever[49]":
                break
        await engine.close(interrupt=True)
        with pytest.raises(RunInterrupted):
            await handle
        return handle.id

    gc.collect()  # complaints about what other tests of this process have left are not this one's
    caplog.clear()
    asyncio.run(main())
    gc.collect()
    assert [record.getMessage() for record in caplog.records if "never retrieved" in record.getMessage()] == []
    assert len([record for record in caplog.records if record.name == "treadle"]) <= 2
