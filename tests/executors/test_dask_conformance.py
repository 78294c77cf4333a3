"""A dask cluster passes what every executor has to pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import dask_cluster
import pytest

from treadle.contracts import Executor
from treadle.testing.conformance import ExecutorSuite
from treadle_adapters.dask import DaskExecutor


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with dask_cluster.cluster(1) as cluster:
        yield cluster.address


class TestOnDask(ExecutorSuite):
    runtime = "dask"

    @pytest.fixture(autouse=True)
    def there(self, address: str) -> None:
        self.address = address

    def executors(self) -> Mapping[str, Executor]:
        return {"dask": DaskExecutor(self.address, grace=0.5)}
