"""Who is alive and whose turn it is, with real locks between real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from treadle.errors import EngineClosed, OptionError, StoreUnwritable
from treadle.storage import owners
from treadle.storage.owners import CommitLock, OwnerLock, is_alive, sweep

Other = subprocess.Popen[str]
Start = Callable[[str], Other]

HOLD_OWNER = """
    lock = OwnerLock.acquire(home, "other")
    say("held")
    hear()
"""
HOLD_COMMIT = """
    lock = CommitLock(home)
    assert lock.acquire(30)
    say("held")
    hear()
    lock.release()
    say("freed")
    hear()
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "owners").mkdir()
    return tmp_path


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Start another process that runs a script; it says lines and hears lines, so nobody has to sleep."""
    others: list[Other] = []

    def run(script: str) -> Other:
        head = """
            import os, sys
            from pathlib import Path
            from treadle.errors import *
            from treadle.storage.owners import *
            home = Path(sys.argv[1])
            def say(*words): print(*words, flush=True)
            def hear(): return sys.stdin.readline()
        """
        code = textwrap.dedent(head) + textwrap.dedent(script)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", code, str(home)]
        others.append(subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return others[-1]

    yield run
    for other in others:
        other.kill()
        other.wait()
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.close()
        other.stdout.close()


def heard(other: Other) -> str:
    assert other.stdout is not None
    return other.stdout.readline().strip()


def tell(other: Other) -> None:
    assert other.stdin is not None
    other.stdin.write("\n")
    other.stdin.flush()


def kill(other: Other) -> None:
    other.kill()
    other.wait()


def seen_alive_elsewhere(home: Path, owner_id: str) -> bool:
    """Ask in another process; a forked one, which needs no imports."""
    child = os.fork()
    if child == 0:
        os._exit(is_alive(home, owner_id))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


# -- owners -------------------------------------------------------------------------------


def test_an_owner_is_alive_here_and_elsewhere_until_it_releases_its_lock(home: Path, start: Start) -> None:
    lock = OwnerLock.acquire(home, "mine")
    other = start("while True:\n    say(is_alive(home, 'mine')); hear()")
    assert is_alive(home, "mine")
    assert heard(other) == "True"
    lock.release()
    tell(other)
    assert not is_alive(home, "mine")
    assert heard(other) == "False"
    assert os.listdir(home / "owners") == []


def test_the_lock_file_is_private(home: Path) -> None:
    lock = OwnerLock.acquire(home, "mine")
    assert lock.path.stat().st_mode & 0o777 == 0o600
    lock.release()


def test_releasing_twice_does_nothing(home: Path) -> None:
    lock = OwnerLock.acquire(home, "mine")
    lock.release()
    spare = os.open(home, os.O_RDONLY)  # takes the number that the lock's descriptor had
    lock.release()
    os.close(spare)


@pytest.mark.crash
def test_a_killed_process_is_dead_at_once_and_its_file_can_be_swept(home: Path, start: Start) -> None:
    other = start(HOLD_OWNER)
    assert heard(other) == "held"
    assert is_alive(home, "other")
    assert sweep(home) == []
    kill(other)
    assert not is_alive(home, "other")
    assert sweep(home) == ["other"]
    assert os.listdir(home / "owners") == []


@pytest.mark.crash
def test_a_forked_child_does_not_keep_its_dead_parent_alive(home: Path, start: Start) -> None:
    other = start("""
        lock = OwnerLock.acquire(home, "other")
        child = os.fork()
        if child == 0:
            hear()
            os._exit(0)
        say(child)
        os.waitpid(child, 0)
    """)
    child = int(heard(other))
    assert is_alive(home, "other")
    kill(other)
    os.kill(child, 0)  # it lives
    assert not is_alive(home, "other")


def test_a_forked_child_cannot_end_its_parents_lock(home: Path, start: Start) -> None:
    other = start("""
        lock = OwnerLock.acquire(home, "other")
        if os.fork() == 0:
            say(is_alive(home, "other"), lock.renew())
            lock.release()
            os._exit(0)
        os.wait()
        say("child gone")
        hear()
    """)
    assert heard(other) == "True False"
    assert heard(other) == "child gone"
    assert is_alive(home, "other")


def test_two_engines_of_one_process_are_two_owners(home: Path) -> None:
    first, second = OwnerLock.acquire(home, "first"), OwnerLock.acquire(home, "second")
    first.release()
    assert not is_alive(home, "first")
    assert is_alive(home, "second")
    assert seen_alive_elsewhere(home, "second")
    second.release()


def test_asking_never_loses_the_lock_of_this_process_by_whatever_path(home: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(home)
    lock = OwnerLock.acquire(home, "mine")
    assert is_alive(home, "mine")
    assert is_alive(link, "mine")
    assert sweep(link) == []
    assert seen_alive_elsewhere(home, "mine")
    lock.release()


def test_a_lock_lost_by_a_stray_close_is_renewed(home: Path) -> None:
    lock = OwnerLock.acquire(home, "mine")
    lock.path.read_bytes()  # what a backup inside this process would do
    assert not seen_alive_elsewhere(home, "mine")
    assert lock.renew()
    assert seen_alive_elsewhere(home, "mine")
    lock.release()
    assert not lock.renew()


def test_renewing_says_when_another_process_has_taken_the_file_away(home: Path, start: Start) -> None:
    lock = OwnerLock.acquire(home, "mine")
    lock.path.read_bytes()
    assert heard(start("say(sweep(home))")) == "['mine']"
    assert not lock.renew()
    lock.release()


def test_two_that_ask_do_not_take_each_other_for_the_owner(home: Path, start: Start) -> None:
    (home / "owners" / "dead").touch()
    asker = start("""
        import fcntl
        file = open(home / "owners" / "dead", "r+b")
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        say("asking")
        hear()
    """)
    assert heard(asker) == "asking"
    assert not is_alive(home, "dead")


def test_a_new_owner_outlasts_processes_that_sweep_all_the_time(home: Path, start: Start) -> None:
    sweepers = [start("while True:\n    sweep(home); is_alive(home, 'e-5')") for _ in range(2)]
    (home / "owners" / "dead").touch()
    while (home / "owners" / "dead").exists():
        pass
    for number in range(300):
        lock = OwnerLock.acquire(home, f"e-{number}")
        assert lock.renew()
        lock.release()
    assert all(sweeper.poll() is None for sweeper in sweepers)


def test_a_sweep_that_came_late_leaves_the_file_that_was_made_since(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / "owners" / "late"
    path.touch()
    real = owners.record_lock

    def late(fd: int, *, shared: bool) -> None:
        path.unlink()  # another sweep
        path.write_text("made since")
        real(fd, shared=shared)

    monkeypatch.setattr(owners, "record_lock", late)
    sweep(home)
    assert path.read_text() == "made since"


def test_a_forked_child_sees_its_parent_die(home: Path, start: Start) -> None:
    other = start("""
        lock = OwnerLock.acquire(home, "other")
        if os.fork() == 0:
            say(is_alive(home, "other"))
            hear()
            say(is_alive(home, "other"))
            os._exit(0)
        os.wait()
    """)
    assert heard(other) == "True"
    kill(other)
    tell(other)
    assert heard(other) == "False"


def test_a_sweep_leaves_what_is_no_owners_file(home: Path) -> None:
    (home / "owners" / ".hidden").touch()
    (home / "owners" / "folder").mkdir()
    os.mkfifo(home / "owners" / "fifo")
    assert sweep(home) == []
    assert not is_alive(home, "fifo")
    assert not is_alive(home, "folder")
    assert len(os.listdir(home / "owners")) == 3


def test_a_home_without_owners_has_nobody_alive(tmp_path: Path) -> None:
    assert sweep(tmp_path) == []
    assert not is_alive(tmp_path, "other")
    with pytest.raises(StoreUnwritable):
        OwnerLock.acquire(tmp_path, "mine")


def test_an_id_is_used_once(home: Path) -> None:
    lock = OwnerLock.acquire(home, "mine")
    with pytest.raises(OptionError):
        OwnerLock.acquire(home, "mine")
    assert lock.renew()
    lock.release()


@pytest.mark.parametrize("owner_id", ["", ".", "..", "../mine", "a/b", "a\0b", "a\n", "-a", "x" * 65, "ä"])
def test_an_id_never_becomes_another_path(home: Path, owner_id: str) -> None:
    (home / "mine").touch()
    assert not is_alive(home, owner_id)
    with pytest.raises(OptionError):
        OwnerLock.acquire(home, owner_id)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can become another user")
def test_an_owner_that_cannot_be_asked_counts_as_alive(home: Path, start: Start) -> None:
    (home / "owners" / "foreign").touch(0o600)
    assert not is_alive(home, "foreign")
    home.chmod(0o755)
    other = start("""
        os.chroot(home)  # the folders above it are closed to others
        os.setuid(12345)
        say(is_alive(Path("/"), "foreign"), is_alive(Path("/"), "missing"))
    """)
    assert heard(other) == "True False"


# -- the commit lock ----------------------------------------------------------------------


@pytest.fixture
def lock(home: Path) -> Iterator[CommitLock]:
    lock = CommitLock(home)
    yield lock
    lock.close()


def test_two_engines_of_one_process_exclude_each_other(home: Path, lock: CommitLock) -> None:
    second = CommitLock(home)
    assert lock.acquire(0)
    assert not second.acquire(0)
    assert not second.acquire(0.01)
    lock.release()
    assert second.acquire(0)
    second.release()
    second.close()


def test_the_threads_of_one_engine_exclude_each_other(lock: CommitLock) -> None:
    assert lock.acquire(0)
    assert not lock.acquire(0)
    assert not lock.acquire(0.01)
    lock.release()
    assert lock.acquire(0)
    lock.release()


def test_one_that_waits_gets_the_lock_when_it_is_freed(lock: CommitLock, start: Start) -> None:
    other = start(HOLD_COMMIT)
    assert heard(other) == "held"
    assert not lock.acquire(0)
    got: list[bool] = []
    waiter = threading.Thread(target=lambda: got.append(lock.acquire(30)))
    waiter.start()
    tell(other)
    assert heard(other) == "freed"
    waiter.join(30)
    assert got == [True]
    lock.release()


@pytest.mark.crash
def test_a_killed_holder_frees_the_lock(lock: CommitLock, start: Start) -> None:
    other = start(HOLD_COMMIT)
    assert heard(other) == "held"
    kill(other)
    assert lock.acquire(0)
    lock.release()


@pytest.mark.crash
def test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent(lock: CommitLock, start: Start) -> None:
    other = start("""
        lock = CommitLock(home)
        assert lock.acquire(30)
        child = os.fork()
        if child == 0:
            try:
                say("taken", lock.acquire(0))
            except EngineForked:
                say(os.getpid())
            hear()
            os._exit(0)
        os.waitpid(child, 0)
    """)
    child = int(heard(other))
    assert not lock.acquire(0)
    kill(other)
    os.kill(child, 0)  # it lives
    assert lock.acquire(0)
    lock.release()


def test_a_forked_child_that_ends_leaves_the_lock_with_its_parent(lock: CommitLock, start: Start) -> None:
    other = start("""
        lock = CommitLock(home)
        assert lock.acquire(30)
        if os.fork() == 0:
            lock.release()
            lock.close()
            os._exit(0)
        os.wait()
        say("child gone")
        hear()
    """)
    assert heard(other) == "child gone"
    assert not lock.acquire(0)


def test_no_update_is_lost_between_processes(home: Path, start: Start) -> None:
    (home / "count").write_text("0")
    script = """
        lock = CommitLock(home)
        for _ in range(300):
            assert lock.acquire(30)
            (home / "count").write_text(str(int((home / "count").read_text()) + 1))
            lock.release()
        say("done")
    """
    others = [start(script) for _ in range(3)]
    assert [heard(other) for other in others] == ["done"] * 3
    assert (home / "count").read_text() == "900"


def test_a_free_lock_cannot_be_released(lock: CommitLock) -> None:
    with pytest.raises(RuntimeError):
        lock.release()


def test_a_closed_lock_is_free_and_says_so(home: Path, lock: CommitLock) -> None:
    assert lock.acquire(0)
    assert "held" in repr(lock)
    lock.close()
    lock.close()
    second = CommitLock(home)
    assert second.acquire(0)
    second.release()
    second.close()
    with pytest.raises(EngineClosed):
        lock.acquire(0)
    assert "closed" in repr(lock)


def test_a_lock_in_a_home_that_is_missing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreUnwritable, match="Fix: "):
        CommitLock(tmp_path / "missing")
