"""A home that cannot be used is refused by ``async with Engine(home)``, with reason and remedy, and stays as it was."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from storekit import files_of, open_files, run_python, threads, until

from treadle import Engine, pipeline, step
from treadle.errors import (
    LogUnavailable,
    StoreDamaged,
    StoreError,
    StoreForeign,
    StoreOnNetwork,
    StoreUnwritable,
    StoreVersion,
)
from treadle.storage import home as homes
from treadle.storage import writer as writers
from treadle.storage.owners import CommitLock

DATABASE = "treadle.db"


@step(cache=False)
async def number(x: int) -> int:
    return x


@step
async def page(x: int) -> str:
    return f"{x:05d}" * 1000


@pipeline
async def numbers(n: int) -> int:
    return len(await number.map(range(n)))


@pipeline
async def pages(n: int) -> int:
    return len(await page.map(range(n)))


async def fill(home: Path, target: Any = numbers, n: int = 20) -> None:
    async with Engine(home) as engine:
        assert (await engine.run(target, n)).value == n


def opening(home: Path) -> StoreError:
    """The error with which the home is refused; nothing of the attempt may be left in this process."""

    async def main() -> StoreError:
        await until(lambda: not threads())  # a thread of an engine that has closed ends a moment later, with its files
        before = open_files()
        with pytest.raises(StoreError) as caught:
            async with Engine(home):
                pass
        await until(lambda: not threads())
        assert open_files() == before
        return caught.value

    return asyncio.run(main())


def refused(home: Path, kind: type[StoreError], *says: str) -> None:
    """The home is refused as it should be, and nothing in or beside it has changed."""
    before, listing = files_of(home.parent), sorted(os.listdir(home.parent))
    error = opening(home)
    assert type(error) is kind
    for text in says:
        assert re.search(text, str(error)), f"{text!r} is not said by: {error}"
    assert error.fix
    assert error.path
    assert files_of(home.parent) == before
    assert sorted(os.listdir(home.parent)) == listing


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("mine")
    refused(tmp_path / "home", StoreUnwritable, "home", "Fix: ")


def test_a_file_above_the_home_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    error = opening(tmp_path / "file" / "home")
    assert type(error) is StoreUnwritable
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["owners", "blobs", "tmp"])
def test_a_file_where_the_home_needs_a_folder_is_refused(home: Path, name: str) -> None:
    home.mkdir(0o700)
    (home / name).write_text("mine")
    refused(home, StoreUnwritable, "is in the way", "move it away")


AS_NOBODY = """
import asyncio, os, sys
from treadle import Engine
from treadle.errors import StoreUnwritable

async def main():
    async with Engine("memory://"):
        pass  # what is imported late may not be readable as nobody
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    try:
        async with Engine(sys.argv[1]):
            print("open")
    except StoreUnwritable as error:
        print(error)

asyncio.run(main())
"""


def test_a_home_that_this_user_cannot_write_is_refused() -> None:
    """Root may write everywhere, so the program gives that up first."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        done = run_python(AS_NOBODY, Path(folder, "home"))
        assert "home cannot be made or written" in done.stdout, done
        assert "Permission denied" in done.stdout
        assert "choose another home with TREADLE_HOME" in done.stdout
        assert os.listdir(folder) == []


def test_a_home_of_another_user_is_refused(home: Path) -> None:
    home.mkdir(0o700)
    os.chown(home, 65534, 65534)
    refused(home, StoreUnwritable, "belongs to .*65534", "runs as root", "chown")


def test_a_log_of_another_user_in_an_own_home_is_refused(home: Path) -> None:
    asyncio.run(fill(home))
    os.chown(home / DATABASE, 65534, 65534)
    refused(home, StoreUnwritable, "belongs to .*65534")


def test_a_home_on_a_network_file_system_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mountinfo = f"36 25 0:31 / {home.parent} rw shared:7 - nfs4 server:/export rw"
    monkeypatch.setattr(homes, "read_mountinfo", lambda: mountinfo)
    refused(home, StoreOnNetwork, "network file system \\(nfs4\\)", "local disk", "artifacts may live elsewhere")


def test_a_log_of_a_newer_format_is_refused(home: Path) -> None:
    asyncio.run(fill(home))
    connection = sqlite3.connect(home / DATABASE)
    connection.execute("PRAGMA user_version=2")
    connection.close()
    refused(home, StoreVersion, "has format 2, and this release reads format 1", "use the release that wrote it")


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
@pytest.mark.parametrize("application", [0, 0x0F055112])
def test_the_database_of_another_program_is_refused(home: Path, journal: str, application: int) -> None:
    home.mkdir()
    connection = sqlite3.connect(home / DATABASE)
    connection.execute(f"PRAGMA journal_mode={journal}")
    connection.execute(f"PRAGMA application_id={application}")
    connection.execute("CREATE TABLE customers(name)")
    connection.commit()
    connection.close()
    refused(home, StoreForeign, "of another program", "a folder of its own")


def test_the_log_that_another_program_has_not_yet_replayed_is_left_to_it(home: Path, tmp_path: Path) -> None:
    """SQLite would replay the other program's WAL into its database as soon as it opened it."""
    home.mkdir()
    connection = sqlite3.connect(tmp_path / "live.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE customers(name)")
    connection.execute("INSERT INTO customers VALUES('Ada')")
    for ending in ("", "-wal"):
        (home / f"{DATABASE}{ending}").write_bytes((tmp_path / f"live.db{ending}").read_bytes())
    connection.close()
    refused(home, StoreForeign, "of another program")


@pytest.mark.parametrize("content", [b"dear diary\n", b"PK\3\4" + bytes(5000), b"\0", bytes(4096)])
def test_a_file_that_is_no_database_is_refused(home: Path, content: bytes) -> None:
    home.mkdir()
    (home / DATABASE).write_bytes(content)
    refused(home, StoreDamaged, "is damaged, or no log", "left untouched", "backup, or move it away")


def damage_header(database: Path) -> None:
    database.write_bytes(b"\xff" * 16 + database.read_bytes()[16:])


def damage_tables(database: Path) -> None:
    content = bytearray(database.read_bytes())
    content[100:4096] = b"\x55" * 3996
    database.write_bytes(bytes(content))


def damage_end(database: Path) -> None:
    database.write_bytes(database.read_bytes()[:-8192])


def damage_size(database: Path) -> None:
    database.write_bytes(database.read_bytes()[:-100])


@pytest.mark.damaged_home
@pytest.mark.parametrize("damage", [damage_header, damage_tables, damage_end, damage_size])
def test_a_damaged_log_is_refused(home: Path, damage: Callable[[Path], None]) -> None:
    asyncio.run(fill(home))
    damage(home / DATABASE)
    refused(home, StoreDamaged, "is damaged", "left untouched", "restore it from a backup", "recover")


@pytest.mark.damaged_home
def test_a_flipped_page_that_is_found_while_running_is_no_wrong_answer(home: Path) -> None:
    """Most damage shows only when its page is read: the run says so, and nothing claims to have succeeded."""

    async def main() -> None:
        await fill(home, pages, 400)
        async with Engine(home) as engine:
            database = home / DATABASE
            content = bytearray(database.read_bytes())
            for start in range(4096, len(content), 4096):
                if content[start] in (2, 5, 10, 13):  # the pages of a tree
                    content[start : start + 8] = b"\xa5" * 8
            database.write_bytes(bytes(content))
            with pytest.raises(LogUnavailable, match=r"malformed.*restore the home from a backup"):
                await pages(400)
            assert engine.health()["status"] == "degraded"

    asyncio.run(main())


def test_an_engine_that_cannot_open_its_artifact_store_leaves_nothing_behind(home: Path, tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "file").write_text("mine")
        before = open_files()
        for _ in range(3):
            with pytest.raises(OSError, match="artifact store cannot create"):
                async with Engine(home, artifacts=tmp_path / "file" / "store"):
                    pass
        await until(lambda: not threads())
        assert open_files() == before
        assert os.listdir(home / "owners") == []
        async with Engine(home):
            pass

    asyncio.run(main())


def test_an_engine_waits_for_the_commit_lock_and_then_gives_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "LOCK_TIMEOUT_S", 0.05)

    async def main() -> None:
        await fill(home)
        held = CommitLock(home)
        assert held.acquire(1.0)
        before = open_files()
        with pytest.raises(LogUnavailable, match="commit lock"):
            async with Engine(home):
                pass
        await until(lambda: not threads())
        assert open_files() == before
        held.release()
        held.close()
        await fill(home)

    asyncio.run(main())


def test_an_opening_that_is_cancelled_leaves_nothing_behind(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        await fill(home)
        held = CommitLock(home)
        assert held.acquire(1.0)
        before = open_files()
        opening = asyncio.create_task(Engine(home).open())
        await until(lambda: "treadle-io-1" in threads())
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        held.release()
        await until(lambda: not threads())
        assert open_files() == before
        assert os.listdir(home / "owners") == []
        held.close()

    asyncio.run(main())
