"""A dask cluster whose workers read and write large values in an object store, and an engine that does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask_cluster
import pytest

HERE = Path(__file__).parent
KEYS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}
PROGRAM = """
import asyncio, json, sys
from pathlib import Path
import dask_steps as steps
from treadle import Engine, pipeline
from treadle_adapters.dask import DaskExecutor

def most_bytes():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

@pipeline
async def flow(count):
    last = steps.doubled.submit(steps.doubled.submit(steps.ones.submit(count)))
    return await steps.totals([last]), last.artifact.size

async def main(address, home, names, trust):
    executor = DaskExecutor(address, env=names.split())
    engine = Engine(home, artifacts="s3://shop/values", executors={"dask": executor}, trust_workers=trust == "trust")
    async with engine:
        first = await engine.run(flow, 20_000)
        before = most_bytes()
        second = await engine.run(flow, 6_500_000)
        grown = most_bytes() - before
        third = await engine.run(flow, 6_500_000)
        statuses = [found.status for found in third.step_results.values()]
        print(json.dumps([first.value, second.value, grown, statuses]))

if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def object_store() -> Iterator[str]:
    command = [sys.executable, str(HERE / "s3_host.py")]
    with subprocess.Popen(
        command, env={**os.environ, **KEYS}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as host:
        assert host.stdout is not None
        yield host.stdout.readline().strip()
        assert host.stdin is not None
        host.stdin.close()


@pytest.fixture(scope="module")
def surroundings() -> Iterator[tuple[str, dict[str, str]]]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with object_store() as url:
        environment = {**KEYS, "AWS_ENDPOINT_URL": url}
        with dask_cluster.cluster(2, **environment) as cluster:
            yield cluster.address, environment


@pytest.mark.linux
@pytest.mark.parametrize("trust", ["", "trust"])
def test_a_large_array_goes_from_worker_to_worker_through_the_object_store_and_not_through_the_engine(
    tmp_path: Path, surroundings: tuple[str, dict[str, str]], trust: str
) -> None:
    address, environment = surroundings
    path = os.pathsep.join([str(HERE), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, address, str(tmp_path / "home"), " ".join(environment), trust],
        env={**os.environ, **environment, "PYTHONPATH": path}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second, grown, statuses = json.loads(done.stdout)
    assert first == [80_000.0, 160_128]
    assert second == [26_000_000.0, 52_000_128]
    assert grown < 40_000_000
    assert statuses == ["cached"] * 4
    (tmp_path / "home" / "blobs").rmdir()  # nothing large was kept here
