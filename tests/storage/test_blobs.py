"""Blobs: what was put is got back or refused, on this machine and in object stores."""

from __future__ import annotations

import errno
import importlib
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from blake3 import blake3
from fsspec.implementations.memory import MemoryFileSystem

from treadle.contracts import ArtifactStore
from treadle.errors import ArtifactDamaged, ArtifactStoreError, OptionError
from treadle.storage import failpoints, fsspec_blobs
from treadle.storage.blob_checks import location_of
from treadle.storage.blobs import LocalBlobs, open_blobs
from treadle.storage.fsspec_blobs import FsspecBlobs
from treadle.storage.home import prepare_home, sweep_tmp

DATA = bytes(range(256)) * 300
SUM = blake3(DATA).digest()
WHERE = location_of(SUM)
POINTS = ["blob-temp-written", "blob-synced", "blob-renamed"]
NO_LOCATIONS = [
    "",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    WHERE.upper(),
    WHERE + "\n",
    WHERE + "0",
    WHERE.replace("/", ""),
    "aa/../" + WHERE[3:],
    WHERE[:-1] + "\0",
]


class MovingFileSystem(MemoryFileSystem):
    """A file system that is written to by moving, as those behind ssh are; in memory."""

    protocol = "webdav"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        if self.exists(path2):
            raise FileExistsError(path2)
        super().mv(path1, path2, **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("webdav://", "memory://"))


@pytest.fixture(autouse=True)
def moving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, "webdav", MovingFileSystem)


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return prepare_home(tmp_path / "home")


@pytest.fixture
def local(home: Path) -> LocalBlobs:
    return LocalBlobs(home / "blobs", home / "tmp")


@pytest.fixture(params=["local", "memory", "webdav"])
def store(request: pytest.FixtureRequest, home: Path) -> ArtifactStore:
    return open_blobs(None if request.param == "local" else f"{request.param}://{uuid.uuid4().hex}/blobs", home)


# -- every store --------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", DATA, bytes(2_000_000)])
def test_what_was_put_is_got_back(store: ArtifactStore, data: bytes) -> None:
    checksum = blake3(data).digest()
    location = store.put(data, checksum)
    assert location == location_of(checksum)
    assert store.exists(location, len(data))
    assert store.get(location, len(data), checksum) == data


def test_any_view_of_bytes_can_be_put(store: ArtifactStore) -> None:
    store.put(memoryview(bytearray(DATA)), SUM)
    assert store.get(WHERE, len(DATA), SUM) == DATA


def test_a_blob_that_is_not_there_is_damage(store: ArtifactStore) -> None:
    assert not store.exists(WHERE, len(DATA))
    assert not store.delete(WHERE)
    assert list(store.list()) == []
    with pytest.raises(ArtifactDamaged, match="missing") as caught:
        store.get(WHERE, len(DATA), SUM)
    assert caught.value.path.endswith(WHERE)


def test_a_blob_is_known_by_its_size(store: ArtifactStore) -> None:
    store.put(DATA, SUM)
    assert not store.exists(WHERE, len(DATA) - 1)
    for wrong in (len(DATA) - 1, len(DATA) + 1):
        with pytest.raises(ArtifactDamaged):
            store.get(WHERE, wrong, SUM)


def test_bytes_of_another_blob_are_never_given_out(store: ArtifactStore) -> None:
    other = bytes(reversed(DATA))
    where = store.put(other, blake3(other).digest())
    with pytest.raises(ArtifactDamaged, match="content"):
        store.get(where, len(DATA), SUM)


def test_a_deleted_blob_is_gone_and_can_be_put_again(store: ArtifactStore) -> None:
    store.put(DATA, SUM)
    assert store.delete(WHERE)
    assert not store.exists(WHERE, len(DATA))
    store.put(DATA, SUM)
    assert store.get(WHERE, len(DATA), SUM) == DATA


def test_the_list_names_every_blob_with_size_and_time(store: ArtifactStore) -> None:
    for data in (b"a", b"bb", b"ccc"):
        store.put(data, blake3(data).digest())
    found = {location: size for location, size, _ in store.list()}
    assert found == {location_of(blake3(data).digest()): len(data) for data in (b"a", b"bb", b"ccc")}
    now = max(used for _, _, used in store.list())
    store.put(DATA, SUM)
    assert abs(next(used for location, _, used in store.list() if location == WHERE) - now) < 60


def test_a_blob_found_by_a_put_after_the_list_was_made_is_not_deleted(store: ArtifactStore) -> None:
    store.put(DATA, SUM)
    [(location, _, used)] = store.list()
    assert not store.delete(location, unless_used_since=used - 3600)
    assert store.exists(WHERE, len(DATA))
    assert store.delete(location, unless_used_since=used)


@pytest.mark.parametrize("location", NO_LOCATIONS)
def test_a_malformed_location_never_reaches_a_path(store: ArtifactStore, location: str) -> None:
    store.put(DATA, SUM)
    assert not store.exists(location, len(DATA))
    assert not store.delete(location)
    with pytest.raises(ArtifactDamaged, match="malformed"):
        store.get(location, len(DATA), SUM)
    assert store.exists(WHERE, len(DATA))


def test_a_checksum_of_another_kind_is_refused(store: ArtifactStore) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        store.put(DATA, SUM[:20])
    assert list(store.list()) == []


# -- damage on this machine ---------------------------------------------------------------


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def as_socket(path: Path) -> None:
    # The path of a socket has at most 107 bytes, so it is made under a short name.
    short = Path(f"/tmp/{uuid.uuid4().hex}")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(short))
    short.rename(path)


def as_link_to_the_same_bytes(path: Path) -> None:
    path.rename(path.parent.parent / "sound")
    path.symlink_to("../sound")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, 1000),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(DATA + b"x"),
    "one bit flipped": lambda path: path.write_bytes(DATA[:5000] + bytes([DATA[5000] ^ 1]) + DATA[5001:]),
    "zeroed": lambda path: path.write_bytes(bytes(len(DATA))),
    "tail zeroed": lambda path: path.write_bytes(DATA[:-512] + bytes(512)),
    "swapped": lambda path: path.write_bytes(DATA[::-1]),
    "missing": Path.unlink,
    "link": as_link_to_the_same_bytes,
    "link to nothing": lambda path: replace(path, lambda at: at.symlink_to("nothing")),
    "link to itself": lambda path: replace(path, lambda at: at.symlink_to(at.name)),
    "folder": lambda path: replace(path, Path.mkdir),
    "folder with something in it": lambda path: replace(path, lambda at: (at / "x").mkdir(parents=True)),
    "fifo": lambda path: replace(path, os.mkfifo),
    "socket": lambda path: replace(path, as_socket),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_is_never_given_out_and_a_put_repairs_it(home: Path, local: LocalBlobs, damage: str) -> None:
    local.put(DATA, SUM)
    DAMAGES[damage](home / "blobs" / WHERE)
    with pytest.raises(ArtifactDamaged) as caught:
        local.get(WHERE, len(DATA), SUM)
    assert caught.value.path == str(home / "blobs" / WHERE)
    local.put(DATA, SUM)
    assert local.get(WHERE, len(DATA), SUM) == DATA
    sweep_tmp(home, 0)
    assert os.listdir(home / "tmp") == []


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage != "missing"])
def test_whatever_lies_there_can_be_deleted(home: Path, local: LocalBlobs, damage: str) -> None:
    local.put(DATA, SUM)
    DAMAGES[damage](home / "blobs" / WHERE)
    assert local.delete(WHERE)
    assert not os.path.lexists(home / "blobs" / WHERE)


@pytest.mark.parametrize("damage", ["truncated", "missing", "link", "folder", "fifo", "socket"])
def test_a_look_up_does_not_take_damage_of_this_kind_for_a_blob(home: Path, local: LocalBlobs, damage: str) -> None:
    local.put(DATA, SUM)
    DAMAGES[damage](home / "blobs" / WHERE)
    assert not local.exists(WHERE, len(DATA))


def test_a_file_where_the_blobs_folder_should_be_is_damage(home: Path, local: LocalBlobs) -> None:
    (home / "blobs" / WHERE[:2]).touch()
    assert not local.exists(WHERE, len(DATA))
    assert not local.delete(WHERE)
    assert list(local.list()) == []
    with pytest.raises(ArtifactDamaged):
        local.get(WHERE, len(DATA), SUM)
    with pytest.raises(ArtifactStoreError):
        local.put(DATA, SUM)


def test_nothing_is_written_through_a_link_in_place_of_a_folder(home: Path, local: LocalBlobs, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (home / "blobs" / WHERE[:2]).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactStoreError):
        local.put(DATA, SUM)
    assert os.listdir(tmp_path / "elsewhere") == os.listdir(home / "tmp") == []


def test_folders_that_were_removed_are_made_again(home: Path, local: LocalBlobs) -> None:
    local.put(DATA, SUM)
    (home / "blobs" / WHERE).unlink()
    (home / "blobs" / WHERE[:2]).rmdir()
    local.put(DATA, SUM)
    assert local.get(WHERE, len(DATA), SUM) == DATA


# -- writing on this machine --------------------------------------------------------------


def test_files_and_folders_are_private(home: Path, local: LocalBlobs, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        local.put(DATA, SUM)
        LocalBlobs(tmp_path / "other")
    finally:
        os.umask(before)
    assert stat.S_IMODE((home / "blobs" / WHERE).stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "blobs" / WHERE[:2]).stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o700


def test_a_put_of_what_is_there_writes_nothing_but_restarts_its_grace(home: Path, local: LocalBlobs) -> None:
    local.put(DATA, SUM)
    path = home / "blobs" / WHERE
    os.utime(path, (1000, 1000))
    before = path.stat()
    [(_, _, seen)] = local.list()
    failpoints.arm("blob-temp-written", 1, lambda: pytest.fail("it was written again"))
    local.put(DATA, SUM)
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime > 1000
    assert not local.delete(WHERE, unless_used_since=seen)
    assert local.get(WHERE, len(DATA), SUM) == DATA


def test_bytes_are_on_the_disk_before_their_name_and_the_name_before_the_answer(
    home: Path, local: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, move = os.fsync, os.replace

    def sync(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}")).relative_to(home)
        steps.append(f"sync {'temp' if path.parts[0] == 'tmp' else path}")
        fsync(fd)

    def replace(source: Path, target: Path) -> None:
        steps.append("rename")
        move(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    local.put(DATA, SUM)
    assert steps == ["sync blobs", "sync temp", "rename", f"sync blobs/{WHERE[:2]}"]
    steps.clear()
    local.put(DATA, SUM)
    assert steps == [f"sync blobs/{WHERE[:2]}"]


@pytest.mark.parametrize("point", POINTS[:2])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failed_write_leaves_nothing_and_can_be_repeated(
    home: Path, local: LocalBlobs, point: str, number: int
) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    failpoints.arm(point, 1, fail)
    with pytest.raises(ArtifactStoreError, match=os.strerror(number)) as caught:
        local.put(DATA, SUM)
    assert isinstance(caught.value.__cause__, OSError)
    assert os.listdir(home / "tmp") == []
    assert list(local.list()) == []
    local.put(DATA, SUM)
    assert local.get(WHERE, len(DATA), SUM) == DATA


def test_a_write_that_the_kernel_breaks_off_leaves_nothing(home: Path, local: LocalBlobs) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(DATA) // 2, before[1]))
    try:
        with pytest.raises(ArtifactStoreError, match="too large"):
            local.put(DATA, SUM)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(home / "tmp") == []
    assert list(local.list()) == []


def test_a_cancelled_write_leaves_nothing(home: Path, local: LocalBlobs) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    failpoints.arm("blob-temp-written", 1, stop)
    with pytest.raises(KeyboardInterrupt):
        local.put(DATA, SUM)
    assert os.listdir(home / "tmp") == []


def test_a_sweep_does_not_take_the_file_of_a_living_writer(home: Path, local: LocalBlobs) -> None:
    swept: list[int] = []
    failpoints.arm("blob-temp-written", 1, lambda: swept.append(sweep_tmp(home, 0)))
    local.put(DATA, SUM)
    assert swept == [0]
    assert local.get(WHERE, len(DATA), SUM) == DATA


def test_many_writers_of_equal_and_of_different_bytes_do_not_disturb_each_other(home: Path, local: LocalBlobs) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(8)
    blobs = [bytes([number]) * 5000 for number in range(10)]

    def work() -> None:
        try:
            start.wait(30)
            for data in blobs:
                checksum = blake3(data).digest()
                assert local.get(local.put(data, checksum), len(data), checksum) == data
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(list(local.list())) == 10
    assert os.listdir(home / "tmp") == []


def test_a_put_that_has_returned_survives_a_collection_that_runs_all_the_time(home: Path, local: LocalBlobs) -> None:
    path, ended = home / "blobs" / WHERE, threading.Event()

    def collect() -> None:
        while not ended.is_set():
            for location, _, used in local.list():
                if used <= 1000:
                    local.delete(location, unless_used_since=used)

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for _ in range(200):
            local.put(DATA, SUM)
            assert path.exists()
            os.utime(path, (1000, 1000))
    finally:
        ended.set()
        collector.join(30)


# -- crashes ------------------------------------------------------------------------------

PUT = """
import sys
from pathlib import Path
from treadle.storage.local_blobs import LocalBlobs
from blake3 import blake3
data = bytes(range(256)) * 300
LocalBlobs(Path(sys.argv[1]) / "blobs", Path(sys.argv[1]) / "tmp").put(data, blake3(data).digest())
"""


@pytest.mark.crash
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_writer_leaves_a_whole_blob_or_none(home: Path, local: LocalBlobs, point: str) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), failpoints.VARIABLE: f"{point}:1"}
    ended = subprocess.run([sys.executable, "-c", PUT, str(home)], env=env, timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    renamed = point == "blob-renamed"
    assert local.exists(WHERE, len(DATA)) is renamed
    assert len(os.listdir(home / "tmp")) == (0 if renamed else 1)
    if renamed:
        assert local.get(WHERE, len(DATA), SUM) == DATA
    sweep_tmp(home, 0)
    assert os.listdir(home / "tmp") == []
    local.put(DATA, SUM)
    assert local.get(WHERE, len(DATA), SUM) == DATA


# -- object stores ------------------------------------------------------------------------


def remote(scheme: str) -> tuple[FsspecBlobs, Any]:
    store = FsspecBlobs(f"{scheme}://{uuid.uuid4().hex}/blobs")
    return store, store._fs


@pytest.mark.parametrize("scheme", ["memory", "webdav"])
def test_a_put_repairs_a_damaged_object(scheme: str) -> None:
    store, files = remote(scheme)
    store.put(DATA, SUM)
    files.pipe_file(store._path(WHERE), bytes(len(DATA)))
    with pytest.raises(ArtifactDamaged):
        store.get(WHERE, len(DATA), SUM)
    store.put(DATA, SUM)
    assert store.get(WHERE, len(DATA), SUM) == DATA
    assert [location for location, _, _ in store.list()] == [WHERE]
    assert not [path for path in files.find(store._root) if "/tmp/" in path]


@pytest.mark.parametrize("scheme", ["memory", "webdav"])
def test_a_folder_in_place_of_an_object_is_damage(scheme: str) -> None:
    store, files = remote(scheme)
    files.makedirs(store._path(WHERE))
    assert not store.exists(WHERE, len(DATA))
    with pytest.raises(ArtifactDamaged):
        store.get(WHERE, len(DATA), SUM)
    assert store.delete(WHERE)


@pytest.mark.parametrize("scheme", ["memory", "webdav"])
def test_half_an_upload_is_an_error(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, files = remote(scheme)
    whole = type(files).pipe_file
    monkeypatch.setattr(type(files), "pipe_file", lambda self, path, value: whole(self, path, value[: len(value) // 2]))
    with pytest.raises(ArtifactStoreError, match="arrived"):
        store.put(DATA, SUM)


@pytest.mark.parametrize("error", [OSError("connection reset"), TimeoutError("too slow"), RuntimeError("403")])
def test_a_store_that_cannot_be_reached_is_not_taken_for_damage(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, files = remote("webdav")
    store.put(DATA, SUM)

    def fail(*_: object, **__: object) -> None:
        raise error

    for name in ("cat_file", "pipe_file", "info", "rm", "find"):
        monkeypatch.setattr(type(files), name, fail)
    uses: list[Callable[[], object]] = [
        lambda: store.get(WHERE, len(DATA), SUM),
        lambda: store.put(DATA, SUM),
        lambda: store.exists(WHERE, len(DATA)),
        lambda: store.delete(WHERE),
        lambda: list(store.list()),
    ]
    for use in uses:
        with pytest.raises(ArtifactStoreError, match=str(error)):
            use()


def test_a_failed_move_leaves_no_file_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    store, files = remote("webdav")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk quota exceeded")

    monkeypatch.setattr(type(files), "mv", fail)
    with pytest.raises(ArtifactStoreError, match="quota"):
        store.put(DATA, SUM)
    assert files.find(store._root) == []


def test_an_object_without_a_time_counts_as_new(monkeypatch: pytest.MonkeyPatch) -> None:
    store, files = remote("memory")
    store.put(DATA, SUM)
    known = type(files).info
    monkeypatch.setattr(type(files), "info", lambda self, path: {**known(self, path), "created": None})
    assert not store.delete(WHERE, unless_used_since=1000)


# -- which store an option means ----------------------------------------------------------


def test_no_option_means_the_homes_own_folder(home: Path) -> None:
    open_blobs(None, home).put(DATA, SUM)
    assert (home / "blobs" / WHERE).read_bytes() == DATA


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_folder_is_given_as_path_or_url(home: Path, tmp_path: Path, form: str) -> None:
    open_blobs(form.format(tmp_path / "elsewhere"), home).put(DATA, SUM)
    assert (tmp_path / "elsewhere" / WHERE).read_bytes() == DATA
    assert next(open_blobs(tmp_path / "elsewhere", home).list())[:2] == (WHERE, len(DATA))


def test_a_relative_folder_is_fixed_when_it_is_opened(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_blobs("elsewhere", home)
    monkeypatch.chdir("/")
    store.put(DATA, SUM)
    assert (tmp_path / "elsewhere" / WHERE).exists()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a\0b",
        "simplecache::s3://bucket",
        "simplecache::file:///tmp/x",
        "file:///tmp/x::memory://y",
        "file://relative/x",
        "local:///tmp/x",
        "s3://key:hunter2@bucket/x",
        "s3://hunter2@bucket/x",
        "webdav://me:hunter2@host/x",
        "abfs://a@b@hunter2/x",
        "s3://bucket/x?token=hunter2",
        "s3://bucket/x#hunter2",
        "s3://bucket/../hunter2",
        "s3://bucket/a b",
        "s3://bucket/a\\b",
        "s3://bucket/x\n",
        "s3://",
        "s3:///",
        "https://host/x",
        "http://host/x",
        "zip://x",
        "reference://x",
        "github://x",
        "nosuch://x",
        "S3://bucket",
        "://x",
    ],
)
def test_a_url_that_is_unsafe_or_cannot_be_written_to_is_refused_without_showing_secrets(home: Path, url: str) -> None:
    with pytest.raises(OptionError) as caught:
        open_blobs(url, home)
    assert "hunter2" not in str(caught.value)


def test_a_missing_library_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(OptionError, match="s3fs"):
        open_blobs("s3://bucket/x", home)


def test_a_folder_that_cannot_be_made_is_named(home: Path) -> None:
    with pytest.raises(ArtifactStoreError, match="/proc/nowhere"):
        open_blobs("/proc/nowhere", home)


def test_fsspec_is_imported_only_when_a_url_asks_for_it() -> None:
    code = "import sys, treadle.storage.blobs; sys.exit('fsspec' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("size", [1, 10, 20, 25])
def test_an_object_comes_in_pieces_and_damage_shows_at_the_end(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec_blobs, "PIECE_BYTES", 10)
    store = FsspecBlobs(f"memory://pieces/{size}")
    data = bytes(range(size))
    location = store.put(data, blake3(data).digest())
    pieces = [bytes(piece) for piece in store.pieces(location, size, blake3(data).digest())]
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= 11
    for wrong in (size - 1, size + 1):
        with pytest.raises(ArtifactDamaged):
            list(store.pieces(location, wrong, blake3(data).digest()))
    with pytest.raises(ArtifactDamaged):
        list(store.pieces(location, size, bytes(32)))
