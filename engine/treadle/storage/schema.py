"""The tables of a home's database: how they are made and how a file is recognised; it knows no events.

Append-only means it: triggers refuse every UPDATE and DELETE on the log unless the
``pruning`` table has a row, which only a prune puts there, inside its own transaction. It leaves in
``counters`` how far the numbers had come, so that none is given twice, and how many events are gone.

A file is recognised by its first bytes, read as bytes: SQLite would create companions of a stranger's
database, or even replay them into it. That works for our own since the tables are made before the
switch to WAL, so that a file which is not empty always says whose it is.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress

from treadle.errors import StoreDamaged, StoreError, StoreForeign, StoreUnwritable, StoreVersion

APPLICATION_ID = 0x74726431  # "trd1"
FORMAT = 1
PAGE_BYTES = 1024
"""A commit writes whole pages of five trees: a small one took 250 us with SQLite's 4,096 bytes, and 165 with these."""
DATABASE = "treadle.db"

HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\0"

TABLES = """
CREATE TABLE log(seq INTEGER PRIMARY KEY, run TEXT NOT NULL, count INTEGER NOT NULL,
                 first_artifact INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX log_by_run ON log(run);
CREATE TABLE runs(number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, pipeline TEXT NOT NULL, target TEXT NOT NULL,
                  status TEXT NOT NULL, owner TEXT NOT NULL, epoch INTEGER NOT NULL DEFAULT 1,
                  parent TEXT NOT NULL DEFAULT '', key TEXT, arguments_digest BLOB,
                  recoverable INTEGER NOT NULL DEFAULT 1, created_at REAL NOT NULL, ended_at REAL,
                  recoveries INTEGER NOT NULL DEFAULT 0,
                  outcomes INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX runs_by_key ON runs(pipeline, key) WHERE key IS NOT NULL;
CREATE INDEX runs_by_status ON runs(status) WHERE status IN ('running', 'interrupted');
CREATE INDEX runs_by_parent ON runs(parent) WHERE parent <> '';
CREATE TABLE names(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, version INTEGER NOT NULL);
CREATE TABLE artifacts(id INTEGER PRIMARY KEY, name INTEGER NOT NULL, version INTEGER NOT NULL, body BLOB NOT NULL);
CREATE UNIQUE INDEX artifacts_by_version ON artifacts(name, version);
CREATE TABLE cache(key BLOB PRIMARY KEY, artifact INTEGER NOT NULL, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE manifests(code BLOB PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE pruning(active INTEGER NOT NULL);
CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TRIGGER log_keeps_rows BEFORE DELETE ON log WHEN NOT EXISTS (SELECT 1 FROM pruning)
    BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER log_keeps_bytes BEFORE UPDATE ON log
    BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
"""

ALIASES = """CREATE TABLE IF NOT EXISTS
    aliases(name INTEGER NOT NULL, artifact INTEGER NOT NULL, PRIMARY KEY(name, artifact)) WITHOUT ROWID"""
"""Second names of artifacts; made by itself, since homes of this format from before it have none."""


def inspect(path: str | os.PathLike[str]) -> bool:
    """Refuse a file that is not a log of this release, touching nothing; says whether there is a log at all.

    Raises:
        StoreForeign: it is the database of another program.
        StoreVersion: another release wrote it.
        StoreDamaged: it is no database, or not a whole one.
        StoreUnwritable: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(path, error) from error
    if not header:
        return False
    if not header.startswith(_MAGIC) or len(header) < HEADER_BYTES:
        raise _damaged(path, "it does not begin as a database does")
    version, application = _number(header, 60), _number(header, 68)
    if application != APPLICATION_ID:
        raise StoreForeign(
            f"{path} is a database of another program, and was left untouched",
            fix="give the engine a folder of its own",
            path=str(path),
        )
    if version != FORMAT:
        raise StoreVersion(
            f"{path} has format {version}, and this release reads format {FORMAT}",
            fix="use the release that wrote it, or another folder; the file was left untouched",
            path=str(path),
        )
    page = _number(header, 16) >> 16
    page = 65536 if page == 1 else page
    if page < 512 or page & (page - 1) or size % page:
        raise _damaged(path, "its size is not that of whole pages")
    # A page count is right only if the header was written by whoever changed the file last.
    if _number(header, 24) == _number(header, 92) and size < page * _number(header, 28) and not _has_companions(path):
        raise _damaged(path, "its end is missing")
    return True


def _number(header: bytes, place: int) -> int:
    return int.from_bytes(header[place : place + 4], "big")


def _has_companions(path: str | os.PathLike[str]) -> bool:
    for ending in ("-wal", "-journal"):
        with suppress(OSError):
            if os.stat(f"{os.fspath(path)}{ending}").st_size:
                return True
    return False


def connect(path: str, *, durable: bool = True, create: bool = True) -> sqlite3.Connection:
    """Open the database for writing, and create it if need be and ``create`` allows.

    Raises:
        StoreForeign: the file is something else.
        StoreVersion: it was written by a newer release.
        StoreDamaged: SQLite cannot read it.
        StoreUnwritable: it cannot be opened, or is gone although it must be there.
    """
    if durable and not inspect(path) and not create:
        raise gone(path)
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, uri=path.startswith("file:"))
    except sqlite3.OperationalError as error:
        raise _unreadable(path, error) from error
    try:
        _check(connection, path)
        connection.execute("PRAGMA busy_timeout=30000")
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA temp_store=MEMORY")  # for what undoes a statement; as a file it cost 10 % of it
        connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        _create_if_empty(connection)
        if durable:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA wal_autocheckpoint=0")
    except sqlite3.Error as error:
        connection.close()
        raise _unreadable(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, path: str) -> None:
    """Read as much as tells whether the tables are there."""
    try:
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for table in ("log", "runs", "names", "artifacts", "cache", "counters"):
                connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()
    except sqlite3.DatabaseError as error:
        raise trouble(path, error) from error


def trouble(path: str, error: sqlite3.Error) -> StoreError:
    """What is wrong with a log that SQLite cannot read."""
    if is_gone(path):
        return gone(path)
    lost = isinstance(error, sqlite3.OperationalError) and not any(sign in str(error) for sign in _DAMAGE)
    return _unreadable(path, error) if lost else _damaged(path, str(error))


def is_gone(path: str) -> bool:
    """Whether there is no such file any more; SQLite would make an empty one."""
    return not path.startswith("file:") and not os.path.exists(path)


def gone(path: str) -> StoreUnwritable:
    """A log that was there."""
    return StoreUnwritable(
        f"the log {path} has been removed",
        why="what it held of runs and artifacts has gone with it",
        fix="restore the home from a backup, or run the pipeline again; nobody may delete a home that is in use",
        path=path,
    )


_DAMAGE = ("malformed", "not a database", "no such table")


def _damaged(path: str | os.PathLike[str], why: str) -> StoreDamaged:
    return StoreDamaged(
        f"the log {path} is damaged, or no log, and was left untouched",
        why=why,
        fix="restore it from a backup, or move it away; `sqlite3 treadle.db .recover` saves what is readable",
        path=str(path),
    )


def _unreadable(path: str | os.PathLike[str], error: Exception) -> StoreUnwritable:
    return StoreUnwritable(
        f"the log {path} cannot be opened", why=str(error), fix="check the file's rights and free space", path=str(path)
    )


def _create_if_empty(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            for statement in _statements(TABLES):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={FORMAT}")
        connection.execute(ALIASES)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> list[str]:
    found: list[str] = []
    rest = ""
    for piece in script.split(";"):
        rest += piece + ";"
        if sqlite3.complete_statement(rest):
            found.append(rest)
            rest = ""
    return found
