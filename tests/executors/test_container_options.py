"""What is said to containers before there is any, and what is refused: no container engine is needed here."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import hostile_steps as steps
import pytest

from treadle import Engine, pipeline
from treadle.contracts import Attempt, Needs, Raised
from treadle.errors import ExecutorUnavailable, OptionError
from treadle.worker import is_importing
from treadle_adapters import _box, _exchange, _mounts, _owners
from treadle_adapters._confinement import Confinement
from treadle_adapters._exchange import PREFIX, Exchange
from treadle_adapters.container import ContainerExecutor, _with_hint

pytestmark = pytest.mark.linux


@pytest.mark.parametrize(
    "options",
    [
        {"image": ""}, {"image": 3}, {"docker_host": "/run/docker.sock"}, {"docker_host": "unix://"},
        {"docker_host": "unix://run/docker.sock"}, {"docker_host": "tcp://"}, {"docker_host": "ssh://elsewhere"},
        {"docker_host": 3}, {"workers": 0}, {"workers": True},
        {"fresh": 1}, {"env": "HOME"}, {"env": ("A=B",)}, {"grace": -1}, {"grace": float("inf")},
        {"calls_per_worker": 0},
        {"user": "root"}, {"user": "1:2:3"}, {"user": "4294967295"}, {"network": ""}, {"mounts": ("relative",)},
        {"mounts": ("/a:/b:/c:rw",)}, {"mounts": "/a"}, {"code": "src"}, {"code": ("",)}, {"site": "yes"},
        {"memory": "much"}, {"memory": 0}, {"memory": "0Mi"}, {"memory": ""}, {"cpus": -1}, {"cpus": 0},
        {"cpus": False}, {"pids": 0}, {"tmp": "x"}, {"tmp": 0}, {"tmp": None}, {"python": ""},
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TREADLE_CONTAINER_IMAGE", raising=False)
    given: dict[str, Any] = {"image": "python", **options}
    with pytest.raises(OptionError) as caught:
        ContainerExecutor(**given)
    assert caught.value.fix
    assert next(iter(options)) in caught.value.what


def test_without_an_image_the_step_is_refused_at_submit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TREADLE_CONTAINER_IMAGE", raising=False)

    @pipeline
    async def flow() -> None:
        steps.fine.with_options(runtime="container").submit(1)

    async def main() -> Any:
        async with Engine("memory://") as engine:
            return (await engine.run(flow)).error

    assert "TREADLE_CONTAINER_IMAGE" in asyncio.run(main()).fix


def test_the_environment_may_name_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_CONTAINER_IMAGE", "mine:1")
    assert "mine:1" in repr(ContainerExecutor())


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiodocker", None)
    with pytest.raises(ExecutorUnavailable) as caught:
        ContainerExecutor("python")
    assert "treadle[container]" in caught.value.fix


def test_a_worker_that_imports_a_program_with_an_executor_at_its_top_needs_no_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "aiodocker", None)
    monkeypatch.delenv("TREADLE_CONTAINER_IMAGE", raising=False)
    begun = is_importing.set(True)
    try:
        ContainerExecutor("python")
        ContainerExecutor()  # what named its image stayed outside
    finally:
        is_importing.reset(begun)


def test_a_program_with_executors_is_imported_where_the_engines_libraries_are_not() -> None:
    program = """
import sys
for name in ("aiodocker", "aiohttp", "aiosqlite", "anyio", "distributed", "fsspec", "structlog"):
    sys.modules[name] = None  # an image has msgspec and blake3 of us, and nothing else
import treadle.testing
from treadle import *
from treadle_adapters.container import ContainerExecutor
from treadle_adapters.dask import DaskExecutor
from treadle_adapters.process import ProcessExecutor
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_executor_belongs_to_one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        executor: Any = ContainerExecutor("python", docker_host="unix:///nowhere.sock")
        executor._daemon = object()  # as if it was open
        with pytest.raises(ExecutorUnavailable, match="two engines"):
            await executor.open()

    asyncio.run(main())


# -- what is mounted ------------------------------------------------------------------------


def test_code_is_mounted_where_it_is_and_libraries_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    library = next(path for path in sys.path if path.endswith("site-packages"))
    monkeypatch.setattr(
        sys, "path", [str(inner), str(tmp_path), str(tmp_path / "missing"), "/", "/tmp", library, os.__file__]
    )
    code = _mounts.code_of(None, with_site=False)
    assert code.path[:2] == (str(inner), str(tmp_path))
    assert str(tmp_path) in code.folders
    assert str(inner) not in code.folders
    assert code.refused == ("/", "/tmp")
    assert code.site == ()
    with_site = _mounts.code_of(None, with_site=True)
    assert library in with_site.site
    assert library in with_site.folders
    assert _mounts.code_of(("/srv/code",), with_site=False).folders == ("/srv/code",)


def test_a_step_that_is_not_found_is_told_what_was_not_mounted() -> None:
    code = _mounts.Code((), (), (), ("/",))
    raised = Raised("treadle.errors:StepNotImportable", "no")
    outcome = _with_hint(raised, code, ("/srv/code",))
    assert isinstance(outcome, Raised)
    assert "code=" in outcome.notes[0]
    assert "/srv/code" in outcome.notes[1]
    assert "user=" in outcome.notes[1]
    assert _with_hint(raised, _mounts.Code((), (), (), ()), ()) == raised


def test_a_home_is_hidden_wherever_it_is_seen(tmp_path: Path) -> None:
    home = tmp_path / "project" / ".treadle"
    for name in ("blobs", "tmp", "owners"):
        (home / name).mkdir(parents=True)
    private = _mounts.private_folders(str(home / "blobs"), str(home / "tmp"))
    mounts = [
        _mounts.Mount(str(tmp_path), "/seen"),
        _mounts.Mount(str(tmp_path / "project"), str(tmp_path / "project")),
    ]
    found = _mounts.hidden(private, mounts)
    assert {"/seen/project/.treadle/blobs", f"{home}/blobs", f"{home}/owners"} <= set(found)
    (home / ".gitignore").write_text("*\n")
    private = _mounts.private_folders(str(home / "blobs"), str(home / "tmp"))
    assert _mounts.hidden(private, mounts) == ("/seen/project/.treadle", str(home))


# -- what is asked for --------------------------------------------------------------------------


def request(folder: Path, needs: Needs | None = None, **options: Any) -> dict[str, Any]:
    """The request for a container."""
    given: dict[str, Any] = {
        "image": "python", "python": "python3", "network": "none", "user": None, "env": (), "mounts": (), "memory": 0,
        "cpus": 0.0, "pids": 512, "tmp": 1024, **options,
    }  # fmt: skip
    attempt = Attempt(
        "run", "call", "step", 1, "token", "module", "name", needs=needs or Needs(), store=str(folder / "blobs")
    )
    exchange = Exchange(folder / "exchange", 0)
    code = _mounts.Code((), (), (), ())
    return Confinement(**given).request(attempt, code, exchange, folder / "exchanges", is_rootless=False)


def test_every_container_is_confined(tmp_path: Path) -> None:
    asked = request(tmp_path)
    host = asked["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["PidsLimit"] == 512
    assert host["AutoRemove"] is True
    assert {limit["Name"] for limit in host["Ulimits"]} == {"core", "nofile", "nproc"}
    assert asked["User"].split(":")[0] != "0"
    assert [mount["Target"] for mount in host["Mounts"] if not mount["ReadOnly"]] == ["/treadle/out"]
    assert asked["Labels"]["treadle.owner"] == _owners.me()
    assert asked["Labels"]["treadle.step"] == "step"
    assert "Memory" not in host


def test_limits_are_those_of_the_step_or_else_of_the_executor(tmp_path: Path) -> None:
    own = request(tmp_path, Needs(cpu=0.5, memory=2**30, gpu=1), memory=2**20, cpus=1.0)["HostConfig"]
    assert (own["Memory"], own["MemorySwap"], own["NanoCpus"]) == (2**30, 2**30, 500_000_000)
    assert own["DeviceRequests"][0]["Count"] == 1


def test_the_defaults_of_an_executor_hold_for_steps_that_name_nothing(tmp_path: Path) -> None:
    host = request(tmp_path, memory=2**30, cpus=10_000.0)["HostConfig"]
    assert host["Memory"] == 2**30
    assert host["NanoCpus"] == (os.cpu_count() or 1) * 10**9


def test_less_than_a_container_engine_can_give_is_the_least_that_it_can(tmp_path: Path) -> None:
    host = request(tmp_path, Needs(cpu=0.001, memory=1))["HostConfig"]
    assert (host["Memory"], host["NanoCpus"]) == (6 * 2**20, 10_000_000)


def test_root_of_a_rootless_engine_is_this_user() -> None:
    rules = Confinement("python", "python3", "none", None, (), (), 0, 0.0, 512, 1024)
    assert rules.ids(is_rootless=True) == (0, 0)
    assert rules.owner(is_rootless=True) == os.geteuid()
    assert rules.owner(is_rootless=False) == rules.ids(is_rootless=False)[0] != 0


# -- what does not fit ----------------------------------------------------------------------


def test_another_python_in_the_image_is_named() -> None:
    with pytest.raises(ExecutorUnavailable) as caught:
        _box._check(_box.Hello((3, 8, 1), (), "SyntaxError: whatever"), "old:1")
    assert "Python 3.8.1" in caught.value.what
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in caught.value.fix


def test_a_missing_library_in_the_image_is_named() -> None:
    here = sys.version_info[:3]
    with pytest.raises(ExecutorUnavailable) as caught:
        _box._check(_box.Hello(here, (), "ImportError: no msgspec"), "bare:1")
    assert "no msgspec" in caught.value.what


def test_owners_tell_the_dead_from_the_living() -> None:
    here, pid, begun = _owners.me().split(".")
    assert not _owners.is_dead(_owners.me())
    assert _owners.is_dead(f"{here}.{pid}.1")
    assert not _owners.is_dead(f"elsewhere.{pid}.{begun}")
    assert not _owners.is_dead("nonsense")


def test_folders_of_dead_processes_are_removed_and_others_are_not() -> None:
    here, pid, _ = _owners.me().split(".")
    dead, alive = (Path(tempfile.mkdtemp(prefix=f"{PREFIX}{owner}-")) for owner in (f"{here}.{pid}.1", _owners.me()))
    (dead / "deep" / "er").mkdir(parents=True)
    _exchange.sweep()
    assert not dead.exists()
    assert alive.exists()
    alive.rmdir()
