"""The tables of a home's database: how they are made and how a file is recognised; it knows no events.

Append-only means it: triggers refuse every UPDATE and DELETE on the log unless the
``pruning`` table has a row, which only a prune puts there, inside its own transaction. It leaves in
``counters`` how far the numbers had come, so that none is given twice, and how many events are gone.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from treadle.errors import StoreDamaged, StoreForeign, StoreUnwritable, StoreVersion

APPLICATION_ID = 0x74726431  # "trd1"
FORMAT = 1
DATABASE = "treadle.db"

TABLES = """
CREATE TABLE log(seq INTEGER PRIMARY KEY, run TEXT NOT NULL, count INTEGER NOT NULL,
                 first_artifact INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX log_by_run ON log(run);
CREATE TABLE runs(number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, pipeline TEXT NOT NULL, target TEXT NOT NULL,
                  status TEXT NOT NULL, owner TEXT NOT NULL, epoch INTEGER NOT NULL DEFAULT 1,
                  parent TEXT NOT NULL DEFAULT '', key TEXT, arguments_digest BLOB, recoverable INTEGER NOT NULL DEFAULT 1,
                  created_at REAL NOT NULL, ended_at REAL, recoveries INTEGER NOT NULL DEFAULT 0,
                  outcomes INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX runs_by_key ON runs(pipeline, key) WHERE key IS NOT NULL;
CREATE INDEX runs_by_status ON runs(status) WHERE status IN ('running', 'interrupted');
CREATE INDEX runs_by_parent ON runs(parent) WHERE parent <> '';
CREATE TABLE names(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, version INTEGER NOT NULL);
CREATE TABLE artifacts(id INTEGER PRIMARY KEY, name INTEGER NOT NULL, version INTEGER NOT NULL, body BLOB NOT NULL);
CREATE UNIQUE INDEX artifacts_by_version ON artifacts(name, version);
CREATE TABLE cache(key BLOB PRIMARY KEY, artifact INTEGER NOT NULL, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE pruning(active INTEGER NOT NULL);
CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TRIGGER log_keeps_rows BEFORE DELETE ON log WHEN NOT EXISTS (SELECT 1 FROM pruning)
    BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER log_keeps_bytes BEFORE UPDATE ON log
    BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
"""


def connect(path: str, *, durable: bool = True) -> sqlite3.Connection:
    """Open (and if need be create) the database for writing.

    Raises:
        StoreForeign: the file is something else.
        StoreVersion: it was written by a newer release.
        StoreDamaged: SQLite cannot read it.
        StoreUnwritable: it cannot be opened.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, uri=path.startswith("file:"))
    except sqlite3.OperationalError as error:
        raise StoreUnwritable(
            f"the log {path} cannot be opened", why=str(error), fix="check the folder's rights and free space", path=path
        ) from error
    try:
        check(connection, path)
        connection.execute("PRAGMA busy_timeout=30000")
        connection.execute("PRAGMA trusted_schema=OFF")
        if durable:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA wal_autocheckpoint=0")
        _create_if_empty(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def check(connection: sqlite3.Connection, path: str) -> None:
    """Refuse a database that is not ours, before anything is written to it."""
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application == APPLICATION_ID and version == FORMAT and tables:
            connection.execute("SELECT count(*) FROM (SELECT 1 FROM runs LIMIT 1)").fetchone()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
            raise StoreUnwritable(
                f"the log {path} cannot be read", why=str(error), fix="check the file's rights and free space", path=path
            ) from error
        raise StoreDamaged(
            f"the log {path} is damaged and was left untouched",
            why=str(error),
            fix="restore it from a backup, or move it away; `sqlite3 treadle.db .recover` saves what is readable",
            path=path,
        ) from error
    if application == 0 and tables == 0:
        return
    if application != APPLICATION_ID:
        raise StoreForeign(
            f"{path} is a database of another program", fix="give the engine a folder of its own", path=path
        )
    if version != FORMAT:
        raise StoreVersion(
            f"{path} has format {version}, and this release reads format {FORMAT}",
            fix="use the release that wrote it, or another folder",
            path=path,
        )


def _create_if_empty(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            for statement in _statements(TABLES):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={FORMAT}")
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


def quick_check(path: Path) -> str:
    """SQLite's own opinion on the file: ``"ok"`` or what is wrong."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    finally:
        connection.close()
