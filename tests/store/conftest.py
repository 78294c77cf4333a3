"""A stage for the log: homes on small disks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that is not there yet."""
    return tmp_path / "home"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs of a size; a machine that cannot is no machine to test this on, so that fails."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        place = tmp_path / "disk"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"a tmpfs cannot be mounted here: {done.stderr}"
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        copy = tmp_path / "kept"
        if (place / "home").is_dir():
            shutil.copytree(place / "home", copy)  # for the log checker, which looks when the disk is gone
        subprocess.run(["umount", str(place)], check=True)
