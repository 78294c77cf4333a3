"""What the tests of static pipelines share: a home of their own, and its absence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import treadle._runtime.plan as plan


@pytest.fixture
def home(tmp_path: Path) -> str:
    """A folder for an engine."""
    return str(tmp_path / "home")


@pytest.fixture
def default_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a default engine would put its home; nothing is there yet."""
    place = tmp_path / "default"
    monkeypatch.setenv("TREADLE_HOME", str(place))
    return place


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The warnings of the ``treadle`` logger so far; each text is said once per process, so that is forgotten first."""
    monkeypatch.setattr(plan, "_hinted", set())

    def texts() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    return texts
