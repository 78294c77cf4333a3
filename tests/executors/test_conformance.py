"""Every executor of this package passes the same tests, those inline included."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import pytest

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
        path = Path(__file__).parents[2] / "docs" / "examples" / "command_executor.py"
        spec = importlib.util.spec_from_file_location("command_executor", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made: Executor = module.CommandExecutor(trusted=self.trusted)
        return {"command": made}


@pytest.mark.slow
class TestOfTheDocuments(OfTheDocuments):
    pass


@pytest.mark.slow
class TestOfTheDocumentsUntrusted(OfTheDocuments):
    trusted = False
