"""What the tests of the examples share: where things are, and the environment of a child."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """For children: both source roots, a home of the test's own, and every warning is an error."""
    roots = [str(ROOT / "engine"), str(ROOT / "adapters"), str(ROOT)]
    paths = os.pathsep.join([*roots, *filter(None, [os.environ.get("PYTHONPATH")])])
    home = str(tmp_path / "home")
    return {**os.environ, "PYTHONPATH": paths, "TREADLE_HOME": home, "PYTHONWARNINGS": "default"}
