"""The versions of the database that labels, verdicts and proposals share, and the step from each to the next.

In: an engine and the tables a store needs. Out: a database of the present version, with a copy of what was in it before an upgrade.
A new database gets its tables as they are now; the steps only bring along what older programs left.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count

import sqlalchemy as sql

from neurflow_engine.errors import WorkspaceError

VERSIONS = sql.Table("schema_version", sql.MetaData(), sql.Column("version", sql.Integer, primary_key=True, autoincrement=False))
_VERDICT_VERSIONS = "verdict_schema_version"  # of version 1, in which verdicts counted for themselves
_TABLES = (
    "labels",
    "label_changes",
    "verdicts",
    "verdict_changes",
    "edits",
    "edit_changes",
)  # what people said; a server may hold tables of others too
_LOCK = 0x6E66_6C6F  # any number that no other program on a PostgreSQL server is likely to lock


def _keep_evidence(connection: sql.Connection) -> None:
    """1 -> 2: names keep the evidence that they were approved on; verdicts follow the one version of the database."""
    for table in ("labels", "label_changes"):
        if sql.inspect(connection).has_table(table):
            connection.execute(sql.text(f"ALTER TABLE {table} ADD COLUMN evidence JSON"))
    connection.execute(sql.text(f"DROP TABLE IF EXISTS {_VERDICT_VERSIONS}"))


STEPS: dict[int, Callable[[sql.Connection], None]] = {2: _keep_evidence}  # by the version that a step leads to
VERSION = max(STEPS)


def prepare(engine: sql.Engine, tables: sql.MetaData) -> None:
    """Bring a database to the present version, and create those of the tables that it lacks. All of it happens, or nothing.

    Before an upgrade, a SQLite file is copied to e.g. ``labels.sqlite.v1.bak`` beside it, and on a server each table to e.g.
    ``labels_v1``. Raises WorkspaceError when the database is newer than this program or the copy cannot be written.
    """
    with engine.connect() as connection:
        if _stored_version(connection) == VERSION and not set(tables.tables) - set(sql.inspect(connection).get_table_names()):
            return
    with _alone(engine) as connection:
        version = _stored_version(connection)
        if 0 < version < VERSION:
            _back_up(connection, version)
            for number in range(version + 1, VERSION + 1):
                STEPS[number](connection)
        tables.create_all(connection)
        if version < VERSION:
            VERSIONS.create(connection, checkfirst=True)
            connection.execute(sql.insert(VERSIONS).values(version=VERSION))


def _stored_version(connection: sql.Connection) -> int:
    """The version of the database, 0 for an empty one; raises WorkspaceError when this program does not know it."""
    names = set(sql.inspect(connection).get_table_names())
    if VERSIONS.name in names:
        # version 1 wrote its number last, so without a number it was interrupted there
        version = connection.execute(sql.select(sql.func.max(VERSIONS.c.version))).scalar() or 1
    else:
        version = 1 if _VERDICT_VERSIONS in names else 0
    if version > VERSION:
        name = connection.engine.url.render_as_string(hide_password=True)
        raise WorkspaceError(f"The database {name} has schema version {version}, this program knows {VERSION}; update the program.")
    return version


@contextmanager
def _alone(engine: sql.Engine) -> Iterator[sql.Connection]:
    """A transaction that only one process at a time can be in, so that nobody upgrades what somebody else is upgrading."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # Python's driver would let statements about tables run outside of it
        elif engine.dialect.name == "postgresql":
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_LOCK)))
        yield connection


def _back_up(connection: sql.Connection, version: int) -> None:
    if connection.dialect.name != "sqlite":
        for table in set(_TABLES) & set(sql.inspect(connection).get_table_names()):
            connection.execute(sql.text(f"CREATE TABLE {table}_v{version} AS SELECT * FROM {table}"))
        return
    path = connection.exec_driver_sql("PRAGMA database_list").one()[2]
    ends = (f".v{version}{f'.{number}' if number > 1 else ''}.bak" for number in count(1))
    backup = next(path + end for end in ends if not os.path.exists(path + end))
    try:
        # read through a connection of its own: one that is about to write would make the copy wait for itself
        with closing(sqlite3.connect(path)) as original, closing(sqlite3.connect(f"{backup}.partial")) as copy:
            original.backup(copy)
        os.replace(f"{backup}.partial", backup)
    except (sqlite3.Error, OSError) as error:
        raise WorkspaceError(
            f"The database {path} of version {version} was not upgraded, because its backup {backup} cannot be written: {error}; "
            "make room for it or choose a folder that can be written."
        ) from None
