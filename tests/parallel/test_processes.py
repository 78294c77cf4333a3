"""``parallel_map`` in processes: what reaches them, what comes back, and that none is left."""

from __future__ import annotations

import asyncio
import functools
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from treadle import EncodeError, Engine, parallel_map, pipeline, step
from treadle.errors import OptionError, RemoteError, StepCrashed, StepNotImportable

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are found by their ids in /proc or by kill")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids_in(folder: Path) -> list[int]:
    return [int(path.name.partition("-")[2]) for path in folder.glob("pid-*[0-9]")]


def wait_for(condition: Any, seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def top_level_but_not_importable(x: int) -> int:
    return x


def test_results_come_in_order_from_other_processes(work: ModuleType) -> None:
    assert parallel_map(work.square, range(20), num_workers=1, backend="process") == [x * x for x in range(20)]
    pids = set(parallel_map(work.pid, range(6), num_workers=2, backend="process"))
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2
    assert not any(map(is_alive, pids))


def test_steps_partials_and_generators_are_welcome(work: ModuleType) -> None:
    def items() -> Iterator[int]:
        yield from (1, 4, 9)

    assert parallel_map(work.stepped, items(), num_workers=1, backend="process") == [2, 5, 10]
    assert parallel_map(functools.partial(math.pow, 2), [3], num_workers=1, backend="process") == [8]


def test_no_items_start_no_process(work: ModuleType) -> None:
    assert parallel_map(work.dies, [], backend="process") == []


def test_functions_that_no_other_process_could_find_are_refused_before_anything_starts() -> None:
    number = 3

    def closure(x: int) -> int:
        return x + number

    for f, why in ((lambda x: x, "lambda"), (closure, "another function"), (functools.partial(closure), "pickle")):
        with pytest.raises(StepNotImportable, match=why) as caught:
            parallel_map(f, [1], backend="process")
        assert "top level" in caught.value.fix


def test_a_module_that_cannot_be_imported_elsewhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("only_in_this_process")
    exec("def f(x):\n    return x", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_in_this_process", module)
    with pytest.raises(StepNotImportable, match="only_in_this_process"):
        parallel_map(module.f, [1], num_workers=1, backend="process")


def test_an_item_that_cannot_be_sent_is_named(work: ModuleType) -> None:
    with pytest.raises(EncodeError) as caught:
        parallel_map(work.square, [1, threading.Lock()], num_workers=1, backend="process")
    assert caught.value.path == "items[1]"


def test_a_result_that_cannot_come_back_is_named(work: ModuleType) -> None:
    with pytest.raises(EncodeError, match="item 0") as caught:
        parallel_map(work.gives_a_lambda, [1], num_workers=1, backend="process")
    assert caught.value.path == "results[0]"


def test_the_first_error_comes_back_as_itself_with_its_traceback(work: ModuleType) -> None:
    with pytest.raises(work.OwnError) as caught:
        parallel_map(work.fails_at_three, range(10), num_workers=2, backend="process")
    assert caught.value.item == 3
    notes = "\n".join(caught.value.__notes__)
    assert "item 3" in notes
    assert "fails_at_three" in notes


def test_an_error_that_does_not_pickle_comes_back_as_a_remote_one(work: ModuleType) -> None:
    with pytest.raises(RemoteError) as caught:
        parallel_map(work.raises_what_does_not_pickle, [1], num_workers=1, backend="process")
    assert caught.value.type_name == "Unpicklable"
    assert "raises_what_does_not_pickle" in caught.value.traceback_text


def test_system_exit_in_a_process_is_an_error_of_its_item(work: ModuleType) -> None:
    with pytest.raises(SystemExit, match="enough"):
        parallel_map(work.exits, [1], num_workers=1, backend="process")


def test_a_process_that_dies_is_an_error_that_says_how(work: ModuleType) -> None:
    with pytest.raises(StepCrashed, match="exit code 7") as caught:
        parallel_map(work.dies, [1], num_workers=1, backend="process")
    assert caught.value.exit_code == 7


def test_no_process_is_left_after_an_error(work: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(work.OwnError):
        parallel_map(work.fails_when_another_hangs, [str(tmp_path)] * 2, num_workers=2, backend="process")
    (pid,) = pids_in(tmp_path)
    assert not is_alive(pid)


def test_no_process_is_left_after_an_error_of_the_iterable(work: ModuleType, tmp_path: Path) -> None:
    def items() -> Iterator[str]:
        yield str(tmp_path)
        wait_for(lambda: pids_in(tmp_path))
        raise LookupError

    with pytest.raises(LookupError):
        parallel_map(work.hangs, items(), num_workers=2, backend="process")
    assert not any(map(is_alive, pids_in(tmp_path)))


@pytest.mark.asyncio
async def test_no_process_is_left_after_a_cancelled_step(work: ModuleType, tmp_path: Path, home: str) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()

    @step
    def long(folder: str) -> None:
        try:
            parallel_map(work.hangs, [folder, folder], num_workers=2, backend="process")
        finally:
            loop.call_soon_threadsafe(over.set)

    @pipeline
    async def run(folder: str) -> None:
        await long(folder)

    async with Engine(home):
        task = asyncio.create_task(run(str(tmp_path)))
        while len(pids_in(tmp_path)) < 2 and not task.done():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(over.wait(), 10)
    assert not any(map(is_alive, pids_in(tmp_path)))


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import treadle_test_work
from treadle import parallel_map

if __name__ == "__main__":
    parallel_map(treadle_test_work.hangs, [{folder!r}] * 2, num_workers=2, backend="process")
"""


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill"])
def test_no_process_is_left_when_its_parent_ends(work: ModuleType, tmp_path: Path, sign: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(tmp_path)))
    with subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, start_new_session=True) as parent:
        wait_for(lambda: len(pids_in(tmp_path)) == 2)
        if sign == signal.SIGINT:
            os.killpg(parent.pid, sign)  # as a terminal does: every process of the group gets it
        else:
            parent.kill()
        assert parent.stderr is not None
        said = parent.stderr.read().decode()
        parent.wait(10)
    wait_for(lambda: not any(map(is_alive, pids_in(tmp_path))))
    assert said.count("KeyboardInterrupt") == (sign == signal.SIGINT)  # the parent's own, and none of the children


MAIN = """
from treadle import parallel_map, step

@step
def doubled(x):
    return 2 * x

{guard}print(parallel_map(doubled, [1, 2, 3], num_workers=2, backend="process"))
"""


def test_functions_of_a_script_are_found_in_its_file(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(MAIN.format(guard='if __name__ == "__main__":\n    '))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "[2, 4, 6]\n", done.stderr


def test_a_script_without_a_protected_main_part_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(MAIN.format(guard=""))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert "__name__ == '__main__'" in done.stderr


def test_an_interactive_session_is_told_to_use_a_module() -> None:
    code = "def f(x): return x\nfrom treadle import parallel_map\nparallel_map(f, [1], backend='process')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert "StepNotImportable" in done.stderr
    assert "interactive" in done.stderr


def test_threads_nest_in_processes_and_processes_do_not(work: ModuleType) -> None:
    assert parallel_map(work.nested_threads, [2], num_workers=1, backend="process") == [[4, 9]]
    with pytest.raises(OptionError, match="backend='thread'"):
        parallel_map(work.nested, [2], num_workers=1, backend="process")


def test_large_items_and_results_go_through(work: ModuleType) -> None:
    (result,) = parallel_map(bytes, [bytes(5_000_000)], num_workers=1, backend="process")
    assert len(result) == 5_000_000
