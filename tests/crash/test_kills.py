"""A process is killed at a named point; whatever point it is, nothing that was committed is lost or done again."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = [pytest.mark.crash, pytest.mark.linux]


def _sibling(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


ledger, shapes = _sibling("ledger"), _sibling("crash_shapes")

SEEDS = 20
FEWER_SEEDS = 8
POINTS = {
    **dict.fromkeys(("accepted", "started", "performed", "encoding", "retrying"), SEEDS),
    **dict.fromkeys(("events-inserted", "before-commit", "after-commit", "resolved", "run-ending"), SEEDS),
    **dict.fromkeys(("closing", "blob-temp-written", "blob-synced", "blob-renamed"), FEWER_SEEDS),
}

Perform = Callable[..., dict[str, Any]]
Check = Callable[[Path], list[str]]


@pytest.fixture(scope="session")
def hits(perform: Perform, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """How often each shape comes to each point when nobody kills it."""
    found = {}
    for shape in shapes.SHAPES:
        answer = perform("run", tmp_path_factory.mktemp(shape) / "home", shape=shape, seed=1, count=True)
        assert answer.get("status") == "succeeded", answer
        found[shape] = answer["counts"]
    return found


class Trial:
    """One kill and one recovery."""

    def __init__(self, home: Path, shape: str, seed: int, perform: Perform, check: Check) -> None:
        self.home, self.shape, self.seed, self.perform, self.check = home, shape, seed, perform, check
        self.path = Path(f"{home}.ledger")

    def kill(self, failpoint: str, nth: int, **more: Any) -> bool:
        """Run until the failpoint kills; says whether it did."""
        answer = self.perform("run", self.home, shape=self.shape, seed=self.seed, failpoint=failpoint, nth=nth, **more)
        assert answer["killed"] or answer["exit"] == 0, answer
        return bool(answer["killed"])

    def recover(self, **more: Any) -> dict[str, Any]:
        """Recover in another process, and hold it to what the log and the ledger said before."""
        assert self.check(self.home) == []
        committed, begun = ledger.committed(self.home), ledger.read(self.path)
        if not more:
            told = ledger.acknowledged(self.path)
            assert told <= {line.label for line in begun if (line.run, line.call) in committed}, (
                "told before the log had it"
            )
        answer = self.perform("recover", self.home, **more)
        assert answer["exit"] == 0, answer
        assert self.check(self.home) == []
        assert "running" not in answer["before"], "a dead engine's run is still shown as running"
        assert {status for _, status in answer["after"]} <= {"succeeded"}
        for _, status, value in answer["recovered"]:
            assert (status, value) == ("succeeded", shapes.EXPECTED[self.shape](self.seed))
        self.compare(committed, begun, ledger.read(self.path))
        return answer

    def compare(self, committed: set[tuple[str, str]], begun: list[Any], after: list[Any]) -> None:
        """No committed outcome is performed again, and no body more than once too often."""
        names = {(line.run, line.call): line.label for line in begun}
        done = {(run, names[run, call]) for run, call in committed if (run, call) in names}
        again = ledger.executions(after[len(begun) :])
        assert not done & again.keys(), "performed again although its outcome was committed"
        for (run, label), count in ledger.executions(after).items():
            assert count <= shapes.ATTEMPTS.get(label, 1) + 1, f"{label} of {run} ran {count} times"


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_loses_nothing_that_was_committed(
    point: str, perform: Perform, hits: dict[str, dict[str, int]], tmp_path: Path, check_log: Check
) -> None:
    usable = [shape for shape in shapes.SHAPES if hits[shape].get(point)]
    assert usable, f"no shape comes to {point}"
    kills = recovered = 0
    for seed in range(POINTS[point]):
        chance = random.Random(f"{point}/{seed}")
        shape = usable[seed % len(usable)]
        trial = Trial(tmp_path / f"{seed}", shape, seed, perform, check_log)
        kills += trial.kill(point, chance.randint(1, hits[shape][point]))
        recovered += len(trial.recover()["recovered"])
    # How many commits a run takes depends on timing, so the last hit of a point may not come.
    assert kills >= 0.8 * POINTS[point], f"only {kills} processes were killed"
    if point not in ("accepted", "closing"):  # before the log has the run, and after its end
        assert recovered >= 0.3 * kills, "so few runs were recovered that this shows little"


@pytest.mark.parametrize("point", ["started", "after-commit", "before-commit", "resolved", "run-ending"])
def test_relaxed_a_kill_leaves_a_prefix(point: str, perform: Perform, tmp_path: Path, check_log: Check) -> None:
    kills = 0
    for seed in range(8):
        trial = Trial(tmp_path / f"{seed}", "long_chain", seed, perform, check_log)
        nth = 1 if point in ("run-ending", "before-commit", "after-commit") else 1 + seed * 5
        kills += trial.kill(point, nth, durability="relaxed")
        calls = {call for _, call in ledger.committed(trial.home)}
        names = ["add", *(f"add_{i}" for i in range(2, 41))]
        assert calls == set(names[: len(calls)]), "what is committed has a hole"
        trial.recover(durability="relaxed")
    assert kills >= 6


def test_a_recovery_may_be_killed_ten_times(perform: Perform, tmp_path: Path, check_log: Check) -> None:
    trial = Trial(tmp_path / "home", "long_chain", 5, perform, check_log)
    assert trial.kill("performed", 3)
    outcomes = []
    for _ in range(10):
        answer = perform("recover", trial.home, failpoint="performed", nth=3)
        assert answer["killed"], answer
        assert check_log(trial.home) == []
        outcomes.append(len(ledger.committed(trial.home)))
    assert outcomes == sorted(set(outcomes)), "a recovery lost what the one before had"
    answer = perform("recover", trial.home)
    assert [tuple(row) for row in answer["recovered"]] == [("long_chain", "succeeded", 45)]
    counts = ledger.executions(ledger.read(trial.path)).values()
    assert len(counts) == 40
    assert sum(counts) <= 40 + 11, "more than one extra execution per kill"


@pytest.mark.parametrize("point", ["resume-claimed", "before-commit", "after-commit", "started"])
def test_a_recovery_that_is_killed_at_its_start_is_taken_up_again(
    point: str, perform: Perform, tmp_path: Path, check_log: Check
) -> None:
    trial = Trial(tmp_path / "home", "chain", 5, perform, check_log)
    assert trial.kill("performed", 2)
    for _ in range(2):
        assert perform("recover", trial.home, failpoint=point, nth=1)["killed"]
        assert check_log(trial.home) == []
    answer = perform("recover", trial.home)
    assert [tuple(row) for row in answer["recovered"]] == [("chain", "succeeded", 9)], answer


def test_a_run_whose_step_kills_the_process_is_given_up(perform: Perform, tmp_path: Path, check_log: Check) -> None:
    home = tmp_path / "home"
    assert perform("run", home, shape="suicidal", seed=1)["killed"]
    for _ in range(3):
        assert perform("recover", home)["killed"]
    answer = perform("recover", home)
    assert answer["exit"] == 0, answer
    [(name, status, error)] = answer["recovered"]
    assert (name, status) == ("suicidal", "failed")
    assert "RunPoisoned" in error
    assert perform("recover", home)["recovered"] == []
    labels = [line.label for line in ledger.read(Path(f"{home}.ledger"))]
    assert labels == ["before", "die", "die", "die", "die"]
    assert check_log(home) == []
