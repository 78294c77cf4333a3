"""A home is found where the user means it, is private, and is refused where it could not be trusted."""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from treadle.errors import OptionError, StoreOnNetwork, StoreUnwritable
from treadle.storage import schema
from treadle.storage.home import locate_home, prepare_home, sweep_tmp
from treadle.storage.mounts import network_filesystem
from treadle.storage.owners import CommitLock, OwnerLock

STRANGER = 12345
ROOT_ONLY = pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can change an owner")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users can reach, as pytest's own cannot be."""
    folder = Path(tempfile.mkdtemp(prefix="treadle-test-"))
    folder.chmod(0o755)
    yield folder.resolve()
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def as_stranger(function: Callable[[], object]) -> BaseException | None:
    """Run a function as a user without privileges, in a forked child; gives the error that it raised."""
    if os.geteuid() != 0:
        return _error_of(function)
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(STRANGER)
        os.setuid(STRANGER)
        os.write(send, pickle.dumps(_error_of(function)))
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(answer)


def _error_of(function: Callable[[], object]) -> BaseException | None:
    try:
        function()
    except BaseException as error:
        return error
    return None


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# -- where it is --------------------------------------------------------------------------


def test_a_path_is_taken_as_given_and_made_absolute(tmp_path: Path) -> None:
    assert locate_home("data", cwd=tmp_path, env={}) == tmp_path / "data"
    assert locate_home(Path("/srv/data"), cwd=tmp_path, env={}) == Path("/srv/data")
    assert locate_home("~/x", cwd=tmp_path, env={}) == tmp_path / "~" / "x"
    assert locate_home("data", cwd=tmp_path, env={"TREADLE_HOME": "/other"}) == tmp_path / "data"


def test_the_environment_names_the_home_if_nothing_else_does(tmp_path: Path) -> None:
    assert locate_home(None, cwd=tmp_path, env={"TREADLE_HOME": "/srv/data"}) == Path("/srv/data")
    assert locate_home(None, cwd=tmp_path, env={"TREADLE_HOME": "data"}) == tmp_path / "data"
    assert locate_home(None, cwd=tmp_path, env={"TREADLE_HOME": ""}).name == ".treadle"


@pytest.mark.parametrize("mark", ["pyproject.toml", ".git"])
def test_the_nearest_project_has_the_home(tmp_path: Path, mark: str) -> None:
    inner = tmp_path / "project" / "src" / "package"
    inner.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "project" / mark).touch()
    assert locate_home(None, cwd=inner, env={}) == tmp_path / "project" / ".treadle"
    assert locate_home(None, cwd=tmp_path / "project", env={}) == tmp_path / "project" / ".treadle"


def test_without_a_project_the_current_folder_has_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate_home(None, env={}) == tmp_path / ".treadle"


@pytest.mark.parametrize("home", ["", "memory://", "s3://bucket/x", "a\0b", 7])
def test_what_is_no_path_is_refused(home: str) -> None:
    with pytest.raises(OptionError):
        locate_home(home, env={})


def test_a_current_folder_that_was_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(StoreUnwritable, match="current folder"):
        locate_home(None, env={})


# -- how it is made -----------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_a_home_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    os.umask(umask)
    home = prepare_home(tmp_path / "home")
    os.umask(0o022)
    assert home == tmp_path / "home"
    assert tree(home) == [".gitignore", "blobs", "owners", "tmp", "treadle.db"]
    assert {mode(path) for path in (home, home / "blobs", home / "owners", home / "tmp")} == {0o700}
    assert {mode(path) for path in (home / ".gitignore", home / "treadle.db")} == {0o600}
    assert (home / ".gitignore").read_text() == "*\n"


def test_every_file_of_an_open_home_is_private(tmp_path: Path) -> None:
    os.umask(0)
    home = prepare_home(tmp_path / "home")
    database = schema.connect(str(home / schema.DATABASE))
    database.execute("SELECT count(*) FROM log")
    commit, owner = CommitLock(home), OwnerLock.acquire(home, "mine")
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert {mode(path) for path in files} == {0o600}
    owner.release()
    commit.close()
    database.close()


def test_folders_above_the_home_are_ordinary(tmp_path: Path) -> None:
    home = prepare_home(tmp_path / "a" / "b" / "home")
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o755
    assert mode(home) == 0o700


def test_preparing_again_changes_nothing(tmp_path: Path) -> None:
    home = prepare_home(tmp_path / "home")
    (home / ".gitignore").write_text("# mine\n")
    (home / "treadle.db").write_bytes(b"something else")
    (home / "blobs" / "kept").touch()
    home.chmod(0o750)
    prepare_home(home)
    assert (home / ".gitignore").read_text() == "# mine\n"
    assert (home / "treadle.db").read_bytes() == b"something else"
    assert (home / "blobs" / "kept").exists()
    assert mode(home) == 0o750


def test_an_empty_folder_becomes_a_private_home(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(0o755)
    prepare_home(tmp_path / "home")
    assert mode(tmp_path / "home") == 0o700
    assert (tmp_path / "home" / ".gitignore").exists()


def test_a_projects_own_folder_is_not_hidden_from_git(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir(0o755)
    (project / "main.py").touch()
    prepare_home(project)
    assert not (project / ".gitignore").exists()
    assert mode(project) == 0o755
    assert mode(project / "blobs") == 0o700


def test_a_link_to_a_home_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "home")
    assert prepare_home(tmp_path / "link") == tmp_path / "disk" / "home"
    assert (tmp_path / "disk" / "home" / "tmp").is_dir()


# -- what is refused ----------------------------------------------------------------------


def test_a_file_in_the_way_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("precious")
    with pytest.raises(StoreUnwritable, match="in the way") as caught:
        prepare_home(tmp_path / "home")
    assert caught.value.path == str(tmp_path / "home")
    assert (tmp_path / "home").read_text() == "precious"
    with pytest.raises(StoreUnwritable):
        prepare_home(tmp_path / "home" / "below")


@pytest.mark.parametrize("name", ["owners", "blobs", "tmp"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_folder_of_the_home_that_is_none_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    home = tmp_path / "home"
    home.mkdir(0o700)
    if kind == "file":
        (home / name).touch()
    else:
        (tmp_path / "elsewhere").mkdir()
        (home / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreUnwritable, match="in the way"):
        prepare_home(home)
    assert os.listdir(home) == [name]


@pytest.mark.parametrize("bits", [0o720, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, bits: int) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(bits)
    with pytest.raises(StoreUnwritable, match="chmod go-w"):
        prepare_home(tmp_path / "home")
    assert mode(tmp_path / "home") == bits
    assert tree(tmp_path) == ["home"]


def test_an_inner_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    home = prepare_home(tmp_path / "home")
    (home / "blobs").chmod(0o777)
    with pytest.raises(StoreUnwritable, match="blobs"):
        prepare_home(home)


@ROOT_ONLY
@pytest.mark.parametrize("name", [".", "owners", "treadle.db", "commit.lock"])
def test_what_belongs_to_another_user_is_refused_with_both_names(tmp_path: Path, name: str) -> None:
    home = prepare_home(tmp_path / "home")
    (home / "commit.lock").touch()
    os.chown(home / name, STRANGER, STRANGER)
    with pytest.raises(StoreUnwritable, match=rf"belongs to uid {STRANGER}, and this process runs as root \(uid 0\)"):
        prepare_home(home)


def test_the_home_of_root_is_refused_to_others(place: Path) -> None:
    theirs = prepare_home(place / "home") if os.geteuid() == 0 else Path("/usr")
    error = as_stranger(lambda: prepare_home(theirs))
    assert isinstance(error, StoreUnwritable)
    assert "belongs to root (uid 0)" in str(error)
    assert "chown" in error.fix


def test_a_place_where_nothing_can_be_created_is_refused_and_nothing_is_left(place: Path) -> None:
    if os.geteuid() != 0:
        place.chmod(0o555)
    error = as_stranger(lambda: prepare_home(place / "a" / "home"))
    place.chmod(0o755)
    assert isinstance(error, StoreUnwritable)
    assert "TREADLE_HOME" in error.fix
    assert tree(place) == []


def test_a_home_that_became_read_only_is_refused(place: Path) -> None:
    home = prepare_home(place / "home")
    if os.geteuid() == 0:
        for path in (home, *home.iterdir()):
            os.chown(path, STRANGER, STRANGER)
    home.chmod(0o500)
    error = as_stranger(lambda: prepare_home(home))
    home.chmod(0o700)
    assert isinstance(error, StoreUnwritable)
    assert as_stranger(lambda: prepare_home(home)) is None


@pytest.mark.linux
@pytest.mark.parametrize("path", ["/proc/treadle", "/proc/self/fd/treadle", "/sys/treadle"])
def test_a_file_system_that_takes_no_files_is_refused(path: str) -> None:
    with pytest.raises(StoreUnwritable, match="Fix: "):
        prepare_home(Path(path))


def test_a_refusal_half_way_leaves_nothing_of_what_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("treadle.storage.home._probe", full)
    with pytest.raises(StoreUnwritable, match="No space left"):
        prepare_home(tmp_path / "a" / "home")
    assert tree(tmp_path) == []


def test_an_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(_error_of(lambda: prepare_home(Path("/proc/treadle")))))
    assert isinstance(error, StoreUnwritable)
    assert error.path == "/proc/treadle"


# -- the file system ----------------------------------------------------------------------

MOUNTS = r"""21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 21 0:30 / /data rw shared:1 master:2 - nfs4 server:/export rw
31 30 0:31 / /data/local rw - xfs /dev/vdb rw
32 21 0:32 / /with\040space rw - cifs //server/share rw
33 21 0:33 / /tmp rw - tmpfs tmpfs rw
34 21 0:34 / /layers rw - overlay overlay rw
35 21 0:35 / /s3 rw - fuse.s3fs s3fs rw
36 21 0:36 / /rootless rw - fuse.fuse-overlayfs fuse-overlayfs rw
37 21 0:37 / /twice rw - nfs server:/a rw
38 37 0:38 / /twice rw - ext4 /dev/vdc rw
39 21 0:39 / /vm rw - 9p hostshare rw
40 21 0:40 / /auto rw - autofs systemd-1 rw
41 40 0:41 / /auto rw - nfs server:/b rw
this line is no mount
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/.treadle", None),
        ("/data", "nfs4"),
        ("/data/x/y", "nfs4"),
        ("/database", None),
        ("/data/local/x", None),
        ("/data/locally", "nfs4"),
        ("/with space/x", "cifs"),
        ("/tmp/x", None),
        ("/layers/x", None),
        ("/s3/x", "fuse.s3fs"),
        ("/rootless/x", None),
        ("/twice/x", None),
        ("/vm/x", "9p"),
        ("/auto/x", "nfs"),
    ],
)
def test_the_longest_and_latest_mount_decides(path: str, kind: str | None) -> None:
    assert network_filesystem(path, MOUNTS) == kind


def test_an_unknown_table_of_mounts_allows_every_place() -> None:
    assert network_filesystem("/data", "") is None


def test_a_home_on_the_network_is_refused_and_not_created(tmp_path: Path) -> None:
    mounts = f"1 0 0:1 / / rw - ext4 /dev/vda rw\n2 1 0:2 / {tmp_path} rw - nfs4 server:/x rw\n"
    with pytest.raises(StoreOnNetwork, match="nfs4") as caught:
        prepare_home(tmp_path / "a" / "home", mountinfo=mounts)
    assert caught.value.path == str(tmp_path / "a" / "home")
    assert tree(tmp_path) == []


def test_a_link_to_the_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "net" / "home")
    mounts = f"1 0 0:1 / / rw - ext4 /dev/vda rw\n2 1 0:2 / {tmp_path}/net rw - nfs server:/x rw\n"
    with pytest.raises(StoreOnNetwork):
        prepare_home(tmp_path / "home", mountinfo=mounts)
    assert tree(tmp_path) == ["home", "net"]


# -- what dead processes left -------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return prepare_home(tmp_path / "home")


def test_only_what_is_old_enough_is_swept(home: Path) -> None:
    now = time.time()
    for name, age in (("old", 100), ("young", 10)):
        (home / "tmp" / name).touch()
        os.utime(home / "tmp" / name, (now - age, now - age))
    assert sweep_tmp(home, 50) == 1
    assert tree(home / "tmp") == ["young"]


def test_every_kind_of_entry_is_swept_and_no_link_is_followed(home: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (home / "tmp" / "folder" / "inner").mkdir(parents=True)
    (home / "tmp" / "folder" / "link").symlink_to(tmp_path / "precious")
    (home / "tmp" / "link").symlink_to(tmp_path / "precious")
    (home / "tmp" / "file").touch()
    os.mkfifo(home / "tmp" / "fifo")
    assert sweep_tmp(home, 0) == 4
    assert tree(home / "tmp") == []
    assert tree(tmp_path / "precious") == ["file"]


def test_what_a_living_process_holds_is_not_swept(home: Path) -> None:
    (home / "tmp" / "folder").mkdir()
    (home / "tmp" / "file").touch()
    holding = [os.open(home / "tmp" / name, os.O_RDONLY) for name in ("folder", "file")]
    for fd in holding:
        fcntl.flock(fd, fcntl.LOCK_EX)
    assert sweep_tmp(home, 0) == 0
    for fd in holding:
        os.close(fd)
    assert sweep_tmp(home, 0) == 2


def test_a_home_without_tmp_has_nothing_to_sweep(tmp_path: Path) -> None:
    assert sweep_tmp(tmp_path, 0) == 0
