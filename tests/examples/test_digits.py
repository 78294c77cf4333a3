"""The demo does what it says: twice, and killed in between."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")


def demo(root: Path, environment: dict[str, str], tmp_path: Path, *arguments: str) -> str:
    """What it prints."""
    command = [sys.executable, str(root / "docs/examples/digits.py"), "--home", str(tmp_path / "home"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def table(text: str, number: int) -> dict[str, str]:
    """One of the printed tables of results: the status of each row."""
    begins = [match.start() for match in re.finditer(r"^digits \w+ in ", text, re.MULTILINE)]
    lines = text[begins[number] :].split("\n\n")[0].splitlines()[3:]
    ends = next(index for index, line in enumerate(lines) if " calls: " in line)
    return {line.split()[0]: line.split()[1] for line in lines[:ends]}


CALLS = {"load", "split", "train[3]", "evaluate[3]", "choose"}


@pytest.mark.slow
def test_the_second_run_of_the_demo_comes_from_the_cache_and_finds_the_same_model(
    root: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    text = demo(root, environment, tmp_path)
    assert table(text, 0) == dict.fromkeys(CALLS, "succeeded")
    assert table(text, 1) == dict.fromkeys(CALLS, "cached")
    saved = re.search(r"Time saved by the cache: ([\d.]+) s", text)
    assert saved is not None
    assert float(saved.group(1)) > 0
    assert text.count("<- best") == 1
    assert "read all 1,797 images the same." in text
    accuracies = [float(percent) for percent in re.findall(r"([\d.]+)%", text)]
    assert len(accuracies) == 3
    assert min(accuracies) > 90


@pytest.mark.slow
@pytest.mark.crash
def test_the_killed_demo_goes_on_where_its_log_ends(root: Path, environment: dict[str, str], tmp_path: Path) -> None:
    text = demo(root, environment, tmp_path, "--kill")
    assert "killed, exit code -9" in text
    assert table(text, 0) == dict.fromkeys(CALLS, "succeeded")
    counts = re.search(r"(\d+) outcomes were in its log and are reused, (\d+) calls were made", text)
    assert counts is not None
    reused, made = map(int, counts.groups())
    assert reused >= 3  # load, split and the model that it was killed after
    assert made >= 1
    assert reused + made == 9


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["process", "dask"])
def test_other_processes_and_clusters_train_the_same_models_and_share_the_cache(
    root: Path, environment: dict[str, str], tmp_path: Path, runtime: str
) -> None:
    text = demo(root, environment, tmp_path, "--runtime", runtime)
    assert table(text, 0) == dict.fromkeys(CALLS, "succeeded")
    assert table(text, 1) == dict.fromkeys(CALLS, "cached")
    assert "read all 1,797 images the same." in text
    inline = demo(root, environment, tmp_path, "--keep")
    assert table(inline, 0) == dict.fromkeys(CALLS, "cached")
    assert re.findall(r"([\d.]+)%", inline) == re.findall(r"([\d.]+)%", text)
