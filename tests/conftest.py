"""What every test relies on: reproducible examples, and a look at every log that a test leaves behind."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

# No deadline: machines are shared and noisy. Under CI the examples are the same each time, so that a red build can be
# repeated; elsewhere each run looks at new ones.
settings.register_profile("treadle", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("treadle")

# Programs and parts that tests use. Collecting doctests would import them, and the typing file has misuse on purpose.
collect_ignore = [
    "checker.py", "loops.py", "typing", "crash/crash_shapes.py", "crash/ledger.py", "crash/peer.py", "crash/zygote.py",
    "store/storekit.py", "executors/hostile_steps.py", "executors/container_host.py", "executors/container_suite.py",
    "executors/dask_host.py", "executors/dask_steps.py", "executors/s3_host.py",
    "steps_page/starter.py", "steps_page/snippets",
]  # fmt: skip


def _load_checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("treadle_log_checker", Path(__file__).with_name("checker.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


_checker = _load_checker()


def pytest_configure(config: pytest.Config) -> None:
    """Register what belongs to the log checker."""
    config.addinivalue_line("markers", "damaged_home: leaves a log behind that is not sound, on purpose")


SKIPPED_IN_CI = ("the longest test of this file runs once", "only root can")
"""The reasons that hold in CI, too; every other one means that CI lacks something, and that nobody would notice."""


def _refuse_skip(report: Any, path: Path) -> None:
    """In CI what is skipped has failed, but in ``executors``, whose machines may have no containers."""
    if not report.skipped or hasattr(report, "wasxfail") or not os.environ.get("CI") or "executors" in path.parts:
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if not any(known in reason for known in SKIPPED_IN_CI):
        report.outcome, report.longrepr = "failed", f"skipped in CI, where nothing may be missing: {reason}"


FIRST, LATE = "test_containers_podman.py", "test_containers_docker.py"
"""The files that start a container engine each; side by side they would have two cores for a dozen containers."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with one container engine, and have the other one when that is long over."""
    first = [item for item in items if item.path.name == FIRST]
    late = [item for item in items if item.path.name == LATE]
    others = [item for item in items if item.path.name not in (FIRST, LATE)]
    place = next((at for at, item in enumerate(others) if item.path.parent.name == "results"), len(others))
    items[:] = [*first, *others[:place], *late, *others[place:]]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Look at how a test ended."""
    report = yield
    _refuse_skip(report, item.path)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Look at how the collecting of a file ended."""
    report = yield
    _refuse_skip(report, collector.path)
    return report


@pytest.fixture
def check_log() -> Callable[[str | os.PathLike[str]], list[str]]:
    """The independent log checker: what is wrong with a home."""
    check: Callable[[str | os.PathLike[str]], list[str]] = _checker.check
    return check


@pytest.fixture(autouse=True)
def every_log_is_sound(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test, check each log below its ``tmp_path``; it is torn down last, when its engines are closed."""
    if "tmp_path" not in request.fixturenames or request.node.get_closest_marker("damaged_home"):
        yield
        return
    folder: Path = request.getfixturevalue("tmp_path")
    yield
    homes = [path.parent for path in folder.rglob(_checker.DATABASE) if path.is_file() and path.stat().st_size]
    problems = [f"{home}: {line}" for home in homes if _checker.is_log(home) for line in _checker.check(home)]
    if problems:
        pytest.fail("the test left a log that is not sound:\n" + "\n".join(problems[:30]), pytrace=False)
