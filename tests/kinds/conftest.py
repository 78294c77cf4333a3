"""What the tests of typed outputs share: a home, and a hint of what an engine needs."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path) -> str:
    """A folder for an engine."""
    return str(tmp_path / "home")
