"""``step.explain_cache`` says what the cache would do and, on a miss, which part of the key has changed."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from treadle import CachePolicy, pipeline, step

SOURCE = """
    from treadle import CachePolicy, pipeline, step

    FACTOR = {factor}

    def helper(x):
        return x * {inner}

    @step{options}
    def work(x, y=1):
        return helper(x) * FACTOR + y

    @pipeline
    def p(*args):
        return work(*args)
"""


def load(write: Any, factor: int = 2, inner: int = 3, options: str = "") -> Any:
    return write(SOURCE.format(factor=factor, inner=inner, options=options))


def explained(home: Any, step: Any, *args: Any, **kwargs: Any) -> Any:
    async def main() -> Any:
        async with home.engine():
            return step.explain_cache(*args, **kwargs)

    return home.drive(main())


def test_before_anything_is_recorded_it_says_so(home: Any, write: Any) -> None:
    found = explained(home, load(write).work, 1)
    assert not found.hit
    assert "no outcome of step work is recorded" in str(found)


def test_a_hit_names_where_the_outcome_comes_from(home: Any, write: Any) -> None:
    module = load(write)
    result = home.result(module.p, 5)
    for args, kwargs in [((5,), {}), ((), {"x": 5}), ((5, 1), {}), ((5,), {"y": 1})]:
        found = explained(home, module.work, *args, **kwargs)
        assert found.hit
        assert result.run_id in str(found)
        assert "version 1 of work" in str(found)
    assert home.statuses(module.p, 5) == {"work": "cached"}


def test_a_changed_input_is_named(home: Any, write: Any) -> None:
    module = load(write)
    home.value(module.p, 5)
    assert explained(home, module.work, 6).reasons == ("input x changed",)
    assert explained(home, module.work, 6, y=2).reasons == ("input x changed", "input y changed")
    assert explained(home, module.work, 5, y=2).reasons == ("input y changed",)


def test_changed_code_is_named_function_by_function(home: Any, write: Any) -> None:
    home.value(load(write).p, 5)
    assert explained(home, load(write, inner=4).work, 5).reasons == ("code of cached_steps.helper changed",)
    assert explained(home, load(write, factor=7).work, 5).reasons == ("global cached_steps.FACTOR changed",)
    both = explained(home, load(write, inner=4).work, 6).reasons
    assert both == ("code of cached_steps.helper changed", "input x changed")


def test_a_change_in_this_process_is_seen(home: Any, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(write)
    home.value(module.p, 5)
    assert explained(home, module.work, 5).hit
    monkeypatch.setattr(module, "FACTOR", 9)
    assert explained(home, module.work, 5).reasons == ("global cached_steps.FACTOR changed",)


def test_a_changed_version_is_told_from_changed_code(home: Any, write: Any) -> None:
    home.value(load(write, options="(version='1')").p, 5)
    found = explained(home, load(write, inner=9, options="(version='2')").work, 5)
    assert not found.hit
    assert "version=" in str(found)
    assert explained(home, load(write, inner=9, options="(version='1')").work, 5).hit


def test_changed_files_are_told(home: Any, tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_text("a")

    @step(cache=CachePolicy(files=str(path)))
    async def f() -> int:
        return 1

    @pipeline
    async def p() -> int:
        return await f()

    home.value(p)
    assert explained(home, f).hit
    path.write_text("b")
    assert "files=" in str(explained(home, f))


def test_other_closure_values_are_told(home: Any) -> None:
    def make(kind: str) -> Any:
        @step
        async def train() -> str:
            return kind

        return train

    @pipeline
    async def p() -> str:
        return await make("xgb")()

    home.value(p)
    assert explained(home, make("xgb")).hit
    assert "closes over" in str(explained(home, make("rf")))


def test_reasons_for_never_being_cached(home: Any, write: Any) -> None:
    lock = threading.Lock()

    def closing(x: int) -> Any:
        return lock

    assert "cache=False" in str(explained(home, step(cache=False)(load(write).work.fn), 1))
    assert "persist=False" in str(explained(home, step(persist=False)(load(write).work.fn), 1))
    assert "argument x cannot be hashed" in str(explained(home, load(write).work, threading.Lock()))
    assert "lock of the step cannot be hashed" in str(explained(home, step(closing), 1))


@pytest.mark.damaged_home
def test_an_expired_entry_and_a_lost_file_are_told(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @step(cache=CachePolicy(expires_after=60))
    async def f(x: int) -> bytes:
        return b"x" * 100_000

    @pipeline
    async def p() -> int:
        return len(await f(1))

    home.value(p)
    assert explained(home, f, 1).hit
    with monkeypatch.context() as patch:
        now = time.time()
        patch.setattr(time, "time", lambda: now + 61)
        assert "expires_after=60" in str(explained(home, f, 1))
    for path in (Path(home.path) / "blobs").rglob("*"):
        if path.is_file() and path.stat().st_size == 100_000:
            path.unlink()
    assert "missing or damaged" in str(explained(home, f, 1))


def test_futures_and_artifacts_may_be_among_the_arguments(home: Any, write: Any) -> None:
    module = load(write)

    @step
    async def five() -> int:
        return 5

    @pipeline
    async def p() -> list[bool]:
        future = five.submit()
        await module.work(future)
        found = [future, future.artifact, await future, 6]
        return [module.work.explain_cache(value).hit for value in found]

    assert home.value(p) == [True, True, True, False]


def test_without_an_engine_it_asks_the_default_home(
    home: Any, write: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = load(write)
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "nowhere"))
    assert str(module.work.explain_cache(5)) == "work: miss: nothing is recorded yet"
    assert not (tmp_path / "nowhere").exists()
    home.value(module.p, 5)
    monkeypatch.setenv("TREADLE_HOME", home.path)
    assert module.work.explain_cache(5).hit
    assert not module.work.explain_cache(6).hit


def test_wrong_arguments_are_a_type_error(home: Any, write: Any) -> None:
    with pytest.raises(TypeError, match="x"):
        load(write).work.explain_cache()


def test_it_performs_nothing_and_records_nothing(home: Any, write: Any) -> None:
    module = load(write)
    home.value(module.p, 5)
    entered: list[int] = []
    module.helper = lambda x: entered.append(x)

    async def main() -> int:
        async with home.engine() as engine:
            module.work.explain_cache(77)
            return len(await engine.runs())

    assert home.drive(main()) == 1
    assert entered == []
