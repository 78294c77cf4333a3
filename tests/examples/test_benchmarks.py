"""The benchmarks work; what they measure is no test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_a_benchmark_prints_its_rows_and_leaves_no_home_behind(root: Path, environment: dict[str, str]) -> None:
    before = set((root / ".treadle").glob("bench-*"))
    command = [sys.executable, "-m", "benchmarks", "S2", "S3", "--rounds", "1", "--scale", "0.01", "--json"]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {"python", "sqlite", "cores", "seed"} <= set(answer["environment"])
    assert {row["bench"] for row in answer["rows"]} == {"S2", "S3"}
    assert all(row["median"] > 0 and len(row["samples"]) == 1 for row in answer["rows"])
    assert set((root / ".treadle").glob("bench-*")) <= before
