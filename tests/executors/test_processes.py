"""Steps in processes of this machine: the pool, what workers see, what is refused, and how large values travel."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hostile_steps as steps
import numpy as np
import pytest

from treadle import CachePolicy, Engine, RunResult, on_failure, pipeline, step, when
from treadle.contracts import Attempt, Performed, Raised, Sink
from treadle.errors import (
    DecodeError,
    ExecutorNotFound,
    ExecutorUnavailable,
    OptionError,
    StepCrashed,
    StepNotImportable,
    StepTypeError,
    ValidationError,
)
from treadle.worker import Worker
from treadle_adapters.process import ProcessExecutor

LIMIT_S = 40.0
SOURCE = """
from treadle import step

@step(runtime="process", cache=False)
def answer():
    return {answer}
"""


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Callable[[int], ModuleType]]:
    """Writes a module with one step, and imports it anew."""
    folder = tmp_path / "code"
    folder.mkdir()
    sys.path.insert(0, str(folder))

    def write(answer: int) -> ModuleType:
        (folder / "edited_steps.py").write_text(SOURCE.format(answer=answer) + "\n" * answer)
        sys.modules.pop("edited_steps", None)
        importlib.invalidate_caches()
        return importlib.import_module("edited_steps")

    yield write
    sys.path.remove(str(folder))
    sys.modules.pop("edited_steps", None)


def run(home: Path | str, *flows: Any, **options: Any) -> list[RunResult[Any]]:
    """Run pipelines one after another on one engine."""

    async def main() -> list[RunResult[Any]]:
        options.setdefault("executors", {"process": ProcessExecutor(workers=2, grace=0.5)})
        async with asyncio.timeout(LIMIT_S), Engine(home, **options) as engine:
            return [await engine.run(flow) for flow in flows]

    return asyncio.run(main())


# -- which executor -----------------------------------------------------------------------


def test_processes_and_isolated_need_no_configuration(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> list[int]:
        return [await steps.pid(1), await steps.pid.with_options(runtime="isolated")(2)]

    result = run(tmp_path, flow, executors=None)[0]
    assert os.getpid() not in result.value
    assert len(set(result.value)) == 1


def test_an_unknown_executor_is_named_with_what_was_meant(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> None:
        await steps.pid.with_options(runtime="proces")()

    error = run(tmp_path, flow)[0].error
    assert isinstance(error, ExecutorNotFound)
    assert "did you mean 'process'?" in error.fix


@pytest.mark.parametrize(
    "options",
    [{"executors": {"inline": ProcessExecutor()}}, {"executors": {"x": ProcessExecutor}}, {"executors": {"x": 3}},
     {"isolated": "inline"}, {"isolated": ""}, {"trust_workers": 1}],
)  # fmt: skip
def test_what_is_no_executor_is_refused_by_the_engine(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Engine("memory://", **options)


@pytest.mark.parametrize(
    "options",
    [{"workers": 0}, {"workers": 1.5}, {"fresh": 1}, {"env": "PATH"}, {"env": (1,)}, {"env": ("A=B",)}, {"env": ("",)},
     {"grace": -1}, {"grace": "2"}, {"calls_per_worker": 0}],
)  # fmt: skip
def test_wrong_options_of_the_executor_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        ProcessExecutor(**options)


def test_one_executor_serves_one_engine_at_a_time(tmp_path: Path) -> None:
    shared = ProcessExecutor(workers=1)

    @pipeline
    async def flow() -> int:
        return await steps.fine(1)

    async def main() -> None:
        async with Engine(tmp_path / "one", executors={"process": shared}) as one:
            assert (await one.run(flow)).value == 2
            async with Engine(tmp_path / "two", executors={"process": shared}) as two:
                assert isinstance((await two.run(flow)).error, ExecutorUnavailable)
            assert (await one.run(flow)).value == 2
        async with Engine(tmp_path / "two", executors={"process": shared}) as two:
            assert (await two.run(flow)).value == 2

    asyncio.run(main())


# -- the pool -----------------------------------------------------------------------------


def test_a_warm_worker_is_used_again_and_a_fresh_one_is_not(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> list[int]:
        return [await steps.pid(number) for number in range(3)]

    for fresh, count in ((False, 1), (True, 3)):
        executors = {"process": ProcessExecutor(workers=1, fresh=fresh)}
        assert len(set(run(tmp_path / str(fresh), flow, executors=executors)[0].value)) == count


def test_a_worker_is_replaced_after_so_many_calls(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> list[int]:
        return [await steps.pid(number) for number in range(4)]

    pids = run(tmp_path, flow, executors={"process": ProcessExecutor(workers=1, calls_per_worker=2)})[0].value
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_no_more_attempts_run_at_once_than_there_are_workers(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> list[int]:
        return await steps.pid.map(range(20))

    assert len(set(run(tmp_path, flow)[0].value)) <= 2


def test_a_worker_that_has_imported_other_code_is_not_used(tmp_path: Path, module: Callable[[int], ModuleType]) -> None:
    async def main() -> list[int]:
        found: list[int] = []
        async with Engine(tmp_path / "home", executors={"process": ProcessExecutor(workers=1)}) as engine:
            for number in (41, 42):
                edited = module(number)

                @pipeline
                async def flow(answer: Any = edited.answer) -> int:
                    value: int = await answer()
                    return value

                found.append((await engine.run(flow)).value)
        return found

    assert asyncio.run(main()) == [41, 42]


# -- what workers see ---------------------------------------------------------------------


def test_workers_get_little_of_the_environment_and_all_of_the_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    monkeypatch.setenv("ALLOWED", "seen")
    monkeypatch.chdir(tmp_path)

    @pipeline
    async def flow() -> dict[str, Any]:
        return await steps.sees()

    executors = {"process": ProcessExecutor(workers=1, env=("ALLOWED",))}
    seen = run(tmp_path / "home", flow, executors=executors)[0].value
    assert seen["env"]["ALLOWED"] == "seen"
    assert "SECRET_TOKEN" not in seen["env"]
    assert set(seen["env"]) <= {"PATH", "LANG", "TZ", "HOME", "TMPDIR", "ALLOWED", "LC_ALL", "LC_CTYPE"}
    assert seen["folder"] == str(tmp_path)
    assert seen["path"] == [os.path.abspath(entry) for entry in sys.path]


# -- what is refused ----------------------------------------------------------------------


@step(runtime="process")
def shadowed() -> int:
    return 1


def shadowed_by() -> int:
    return 2


def test_closures_lambdas_and_shadowed_names_are_refused_when_they_are_called(tmp_path: Path) -> None:
    secret = 3

    @step(runtime="process")
    def closure() -> int:
        return secret

    unnamed: Any = step(name="unnamed", runtime="process")(lambda: 1)
    hidden = shadowed.with_options()
    hidden.fn.__qualname__ = "shadowed_by"
    for target, why in ((closure, "inside another function"), (unnamed, "lambda"), (hidden, "something else")):

        @pipeline
        async def flow(target: Any = target) -> None:
            target.submit()

        result = run(tmp_path, flow)[0]
        assert isinstance(result.error, StepNotImportable)
        assert why in result.error.why
        assert not result.step_results
    hidden.fn.__qualname__ = "shadowed"


def test_a_static_pipeline_says_before_it_runs_what_cannot_be_imported(tmp_path: Path) -> None:
    @step(runtime="process")
    def nested() -> int:
        return 1

    @pipeline(static=True)
    def flow() -> Any:
        return nested(), steps.fine.with_options(runtime="proces")(1)

    async def main() -> None:
        async with Engine(tmp_path) as engine:
            with pytest.raises(ValidationError) as caught:
                await engine.run(flow)
            assert len(caught.value.problems) == 2

    asyncio.run(main())


def test_a_module_that_cannot_be_imported_there_is_an_error_that_says_so(
    tmp_path: Path, module: Callable[[int], ModuleType]
) -> None:
    edited = module(1)
    (tmp_path / "code" / "edited_steps.py").write_text("import a_module_that_is_not_there\n")

    @pipeline
    async def flow() -> None:
        await edited.answer.with_options(retry=3)()

    result = run(tmp_path / "home", flow)[0]
    assert isinstance(result.error, StepNotImportable)
    assert "a_module_that_is_not_there" in str(result.error)
    assert result.step_results["answer"].attempts == 1


def test_an_argument_that_cannot_be_sent_is_named(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> None:
        await steps.fine(lambda: 1)  # type: ignore[arg-type]

    error = run(tmp_path, flow)[0].error
    assert "argument number of step fine cannot be sent" in str(error)


# -- programs -----------------------------------------------------------------------------

PROGRAM = """
import dataclasses
import sys
from treadle import pipeline, step

@dataclasses.dataclass
class Point:
    x: int

@step(runtime="process")
def moved(point):
    print("in the worker", __name__)
    return Point(point.x + 1)

@pipeline
async def flow():
    return await moved(Point(1))

if __name__ == "__main__":
    result = flow.run()
    assert type(result.value) is Point, result
    print(result.value)
    print(result.step_results["moved"].status)
"""


@pytest.mark.parametrize("as_module", [False, True])
def test_the_steps_of_a_script_are_found_in_it(tmp_path: Path, as_module: bool) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, *(("-m", "program") if as_module else (str(tmp_path / "program.py"),))]
    environment = {**os.environ, "TREADLE_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["Point(x=2)", "succeeded"]


def test_a_script_that_runs_when_it_is_imported_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.replace('__name__ == "__main__"', "True"))
    command = [sys.executable, str(tmp_path / "program.py")]
    environment = {**os.environ, "TREADLE_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
    assert "StepNotImportable" in done.stderr
    assert "if __name__ == '__main__':" in done.stderr


def test_a_notebook_cell_is_told_what_to_do(tmp_path: Path) -> None:
    code = PROGRAM.replace('__name__ == "__main__"', "True")
    command = [sys.executable, "-"]
    environment = {**os.environ, "TREADLE_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, input=code, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert "StepNotImportable" in done.stderr
    assert "%%writefile" in done.stderr


# -- large values -------------------------------------------------------------------------


@step(runtime="process")
def ones(count: int) -> Any:
    return np.ones(count)


@step(runtime="process")
def doubled(array: Any) -> Any:
    assert not array.flags.writeable
    return array * 2


@step(runtime="process", outputs=("small", "large"))
def both(count: int) -> Any:
    return count, np.full(count, 7)


@step(cache=False)
def summed(array: Any) -> float:
    return float(array.sum())


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of this file by a name that workers can import."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    this = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "test_processes", this)
    for target in (ones, doubled, both):
        monkeypatch.setattr(target.fn, "__module__", "test_processes")


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.linux
@pytest.mark.usefixtures("here")
def test_a_large_array_goes_from_step_to_step_without_coming_here(tmp_path: Path) -> None:
    grown: list[int] = []

    @pipeline
    async def flow() -> Any:
        before = rss_bytes()
        last = doubled.submit(doubled.submit(ones.submit(10_000_000)))
        await asyncio.wait([steps.fine.submit(0)])
        while not last.done():
            await asyncio.sleep(0.01)
        grown.append(rss_bytes() - before)
        total = await summed(last)
        return total, float((await last)[-1]), last.result().shape, last.artifact.size

    async def main() -> RunResult[Any]:
        async with Engine(tmp_path / "home", executors={"process": ProcessExecutor(workers=2)}) as engine:
            return await engine.run(flow)

    assert asyncio.run(main()).value == (40_000_000.0, 4.0, (10_000_000,), 80_000_128)
    assert grown[0] < 40_000_000
    again = run(tmp_path / "home", flow)[0]
    assert again.value[0] == 40_000_000.0
    assert again.step_results["doubled"].status == "cached"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("durability", ["strict", "memory"])
def test_futures_of_large_values_work_as_futures_do(tmp_path: Path, durability: str) -> None:
    @pipeline
    async def flow() -> Any:
        arrays = ones.map([100_000, 200_000])
        first = ones.submit(300_000)
        sizes = [array.size for array in await asyncio.gather(first, doubled.submit(first))]
        waited = await asyncio.wait_for(doubled.submit(first), 30)
        pair = both.submit(50_000)
        small, large = await pair.output("small"), await pair.output("large")
        whole = await pair
        mapped = await doubled.map(arrays)
        return sizes, waited.size, small, large.sum(), whole[1][0], [array[0] for array in mapped], await first

    result = run(tmp_path, flow, durability=durability)[0]
    *found, first = result.value
    assert found == [[300_000, 300_000], 300_000, 50_000, 350_000, 7, [2.0, 2.0]]
    assert first.size == 300_000
    assert result.outputs["both.large"].size == 50_000


@pytest.mark.usefixtures("here")
def test_a_def_pipeline_gets_large_values_too(tmp_path: Path) -> None:
    @pipeline
    def flow() -> Any:
        future = ones.submit(100_000)
        return future.result().size, doubled(future).sum()

    assert run(tmp_path, flow)[0].value == (100_000, 200_000.0)


# -- what is kept and what is not ---------------------------------------------------------


def test_a_worker_that_is_killed_while_it_writes_leaves_no_file(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> None:
        await steps.dies_while_it_writes()

    result = run(tmp_path / "home", flow)[0]
    assert result.status == "failed"
    assert result.step_results["dies_while_it_writes"].status == "failed"
    assert list((tmp_path / "home" / "tmp").iterdir()) == []


class Elsewhere:
    """An executor whose workers are not trusted: it performs in this process, by the same worker code."""

    trusted = False
    slots = None

    async def open(self) -> None:
        self.worker = Worker()

    async def perform(self, attempt: Attempt, sink: Sink) -> Performed | Raised:
        return await asyncio.to_thread(self.worker.perform, attempt, sink)

    async def close(self) -> None:
        del self.worker


@pytest.mark.parametrize("trust", [False, True])
def test_a_pickle_from_an_untrusted_worker_is_not_loaded(tmp_path: Path, trust: bool) -> None:
    @pipeline
    async def flow() -> Any:
        elsewhere = steps.fine.with_options(runtime="elsewhere")
        return await elsewhere(1), await steps.gives_what_only_pickles.with_options(runtime="elsewhere")()

    result = run(tmp_path / "home", flow, executors={"elsewhere": Elsewhere()}, trust_workers=trust)[0]
    if trust:
        assert result.value == (2, {"slots": steps.Slotted(3)})
    else:
        assert isinstance(result.error, DecodeError)
        assert "trust_workers" in result.error.fix
        assert result.step_results["fine"].status == "succeeded"


def test_processes_work_on_uvloop(tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    @pipeline
    async def flow() -> list[int]:
        return await steps.fine.map(range(4))

    async def main() -> Any:
        async with Engine(tmp_path / "home", executors={"process": ProcessExecutor(workers=2)}) as engine:
            dead = pipeline(steps_that_die)
            assert isinstance((await engine.run(dead)).error, StepCrashed)
            return (await engine.run(flow)).value

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == [1, 2, 3, 4]


async def steps_that_die() -> None:
    await steps.exits(1)


def test_debugging_runs_isolated_steps_here(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> int:
        return await steps.pid()

    assert run(tmp_path, flow.with_options(debug=True))[0].value == os.getpid()


@pytest.mark.parametrize("fresh", [False, True])
def test_calls_of_a_group_share_a_worker(tmp_path: Path, fresh: bool) -> None:
    @pipeline
    async def flow() -> bool:
        grouped = steps.pid.with_options(execution_group="training")
        first = await grouped(1)
        others = [await steps.pid(number) for number in range(3)]
        return first == await grouped(2) and not (fresh and first in others)

    executors = {"process": ProcessExecutor(workers=2, fresh=fresh)}
    assert run(tmp_path, flow, executors=executors)[0].value


def test_an_engine_that_is_left_by_an_error_ends_its_steps_and_their_run_can_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()

    ids: list[str] = []

    async def left_by_an_error() -> None:
        async with Engine(tmp_path / "home", executors={"process": ProcessExecutor(workers=1)}) as engine:
            ids.append((await engine.start(steps.started_and_waiting, str(tmp_path / "0"))).id)
            while len(list((tmp_path / "0").glob("pid-*"))) < 2:  # another process makes them
                await asyncio.sleep(0.01)
            raise ZeroDivisionError

    async def again(run_id: str) -> RunResult[Any]:
        async with Engine(tmp_path / "home", executors={"process": ProcessExecutor(workers=1)}) as engine:
            assert (await engine.get_run(run_id)).status == "interrupted"
            (tmp_path / "0" / "enough").touch()
            return await engine.resume(run_id)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(left_by_an_error())
    assert asyncio.run(again(ids[0])).value == 2


def test_one_executor_that_cannot_be_closed_does_not_keep_the_log_open(tmp_path: Path) -> None:
    class Stuck(Elsewhere):
        async def close(self) -> None:
            raise OSError("stuck")

    @pipeline
    async def flow() -> int:
        return await steps.fine.with_options(runtime="stuck")(1)

    with pytest.raises(OSError, match="stuck"):
        run(tmp_path / "home", flow, executors={"stuck": Stuck()})
    assert run(tmp_path / "home", flow, executors={"stuck": Elsewhere()})[0].value == 2


# -- beside the step ----------------------------------------------------------------------


def test_conditions_fallbacks_and_own_keys_see_the_inputs_here(tmp_path: Path) -> None:
    here: list[Any] = []

    def wanted(number: int) -> bool:
        here.append(number)
        return number != 2

    def instead(error: Exception) -> str:
        return f"instead of {error}"

    conditioned = when(wanted)(steps.fine)
    replaced = on_failure(instead)(steps.raises_stateful)
    keyed = steps.fine.with_options(cache=CachePolicy(key=lambda inputs: str(inputs["number"] % 2)))

    @pipeline
    async def flow() -> Any:
        source = steps.fine.submit(1)
        left_out, done = conditioned.submit(source), await conditioned(3)
        return await left_out, done, await replaced(), await keyed(1), await keyed(3)

    result = run(tmp_path / "home", flow)[0]
    assert result.value == (None, 4, "instead of 1", 2, 2)
    assert sorted(here) == [2, 3]


def test_annotations_are_held_to_in_the_worker(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> Any:
        return await steps.fine(steps.says.submit("three"))  # type: ignore[arg-type]

    error = run(tmp_path / "home", flow)[0].error
    assert isinstance(error, StepTypeError)
    assert (error.step, error.parameter) == ("fine", "number")
