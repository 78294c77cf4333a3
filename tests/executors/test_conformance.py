"""Every executor of this package passes the same tests, those inline included."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from documented import CommandExecutor

from treadle.contracts import Executor
from treadle.testing.conformance import ExecutorSuite
from treadle_adapters.process import ProcessExecutor


class TestOnTheLoop(ExecutorSuite):
    is_async = True
    is_isolated = False


class TestOnThreads(ExecutorSuite):
    is_isolated = False


class TestInProcesses(ExecutorSuite):
    runtime = "process"

    def executors(self) -> Mapping[str, Executor]:
        return {"process": ProcessExecutor(workers=2, grace=0.5)}


class TestInFreshProcesses(ExecutorSuite):
    runtime = "fresh"
    is_async = True

    def executors(self) -> Mapping[str, Executor]:
        return {"fresh": ProcessExecutor(workers=2, fresh=True, grace=0.5)}


class OfTheDocuments(ExecutorSuite):
    runtime = "command"
    trusted = True

    def executors(self) -> Mapping[str, Executor]:
        return {"command": CommandExecutor(trusted=self.trusted)}


@pytest.mark.slow
class TestOfTheDocuments(OfTheDocuments):
    pass


@pytest.mark.slow
class TestOfTheDocumentsUntrusted(OfTheDocuments):
    trusted = False
