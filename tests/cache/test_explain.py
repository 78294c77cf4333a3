"""``step.explain_cache`` says what the cache would do and, on a miss, which part of the key has changed."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from treadle import CachePolicy, pipeline, step
from treadle._core import fingerprint

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
    assert found.reasons == ("version changed from '1' to '2'",)
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
    assert explained(home, f).reasons == (f"content of file {path} changed",)


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
    assert explained(home, make("rf")).reasons == ("closure variable kind changed",)


def policied(fn: Any, policy: Any, **options: Any) -> Any:
    return step(cache=policy, **options)(fn)


def record(home: Any, work: Any, *args: Any) -> None:
    @pipeline
    def p() -> Any:
        return work(*args)

    home.value(p)


def test_a_changed_policy_is_told_by_what_it_looks_at(home: Any, write: Any) -> None:
    fn = load(write).work.fn
    record(home, policied(fn, "code_hash"), 5)
    assert explained(home, policied(fn, "input_hash"), 5).reasons == (
        "what the cache looks at changed from code and inputs to inputs",
    )
    assert explained(home, policied(fn, CachePolicy(ignore="y")), 5).reasons == ("leaving out input y is new",)
    by_key = explained(home, policied(fn, CachePolicy(key=lambda inputs: str(inputs["x"]))), 5)
    assert "key function is new" in str(by_key)
    assert explained(home, policied(fn, "code_hash"), 5).hit


def test_a_key_function_that_gives_another_text_is_told(home: Any, write: Any) -> None:
    keyed = policied(load(write).work.fn, CachePolicy(key=lambda inputs: str(inputs["x"] % 2)))
    record(home, keyed, 5)
    assert explained(home, keyed, 7).hit
    assert explained(home, keyed, 6).reasons == ("its cache policy's key function gave another text",)


def test_other_outputs_and_defaults_are_told(home: Any, write: Any) -> None:
    record(home, load(write).work, 5)
    other = load(write, options="(outputs=('work',))").work
    assert explained(home, other, 5).hit
    text = SOURCE.format(factor=2, inner=3, options="").replace("y=1", "y=2")
    changed = explained(home, write(text).work, 5)
    assert "default y changed" in str(changed)
    assert "default y changed" in explained(home, write(text).work, 5, y=1).reasons


def test_several_changes_are_all_told(home: Any, write: Any) -> None:
    record(home, load(write, options="(version='1')").work, 5)
    found = explained(home, load(write, options="(version='2', cache='input_hash')").work, 6)
    assert set(found.reasons) == {
        "version changed from '1' to '2'",
        "what the cache looks at changed from code and inputs to inputs",
        "input x changed",
    }


def test_another_python_is_told(home: Any, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(write)
    home.value(module.p, 5)
    now = f"{sys.version_info.major}.{sys.version_info.minor}"
    monkeypatch.setattr(fingerprint, "sys", SimpleNamespace(version_info=SimpleNamespace(major=3, minor=99)))
    assert f"python changed from {now} to 3.99" in explained(home, load(write).work, 5).reasons


def test_an_outcome_that_was_recorded_without_the_cache_is_told(home: Any, write: Any) -> None:
    fn = load(write).work.fn
    record(home, policied(fn, False), 5)
    assert "cache=False" in str(explained(home, policied(fn, True), 5))


def test_what_keys_were_made_of_is_forgotten_with_the_last_entry(home: Any, write: Any) -> None:
    async def main() -> tuple[int, int]:
        async with home.engine() as engine:
            await engine.run(load(write).p, 5)
            before = len(engine.archive.manifests_from(b"plan:"))
            await engine.prune(keep_last=0)
            return before, len(engine.archive.manifests_from(b"plan:"))

    assert home.drive(main()) == (1, 0)


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


def test_what_an_engine_records_after_it_has_pruned_all_is_explained_too(home: Any, write: Any) -> None:
    module = load(write)
    other = module.work.with_options(version="2")

    async def main() -> list[tuple[str, ...]]:
        found: list[tuple[str, ...]] = []
        async with home.engine() as engine:
            for _ in range(2):
                await engine.run(module.p, 5)
                found.append(other.explain_cache(5).reasons)
                await engine.prune(keep_last=0)
        return found

    first, second = home.drive(main())
    assert first == second == ("version is new",)
