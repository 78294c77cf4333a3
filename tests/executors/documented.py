"""The executor that the documents show, for tests and for programs of tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "docs" / "examples"))

from command_executor import CommandExecutor  # it lies there

__all__ = ["CommandExecutor"]
