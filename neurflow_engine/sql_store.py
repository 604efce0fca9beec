"""What people say about neuron groups, kept in SQL: how it stands now, and its whole history.

In: the columns of what is said, and changes by people who may work at once. Out: stores such as ``labels.LabelStore``, in which nothing
is lost and nobody overwrites anybody unseen.
"""

import json
import os
import sqlite3
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Generic, Self, TypeVar

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from neurflow_engine import migrations
from neurflow_engine.errors import InputError, NeurflowError, WorkspaceError
from neurflow_engine.remote import is_url

DATABASE = "labels.sqlite"  # of a workspace, where no other is set
MAX_LENGTH = 120  # characters of a text or an author's name
PATIENCE = 10.0  # seconds that a change waits for another program that has a SQLite file to itself

Record = TypeVar("Record")
Change = TypeVar("Change")


class UtcDateTime(sql.types.TypeDecorator):
    """Aware UTC times in any database; SQLite forgets the zone, so it is put back."""

    impl = sql.DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value, dialect):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def choice(kind: type[StrEnum], length: int = 16) -> sql.Enum:
    """Column type of a StrEnum, stored as its text of at most ``length`` characters."""
    return sql.Enum(kind, native_enum=False, length=length, values_callable=lambda members: [member.value for member in members])


JSON = sql.JSON(none_as_null=True)  # column type of what is kept, but never searched


class Layout(Generic[Record, Change]):
    """The tables of one kind of thing that is said about groups, e.g. labels: one of things as they are, one of changes.

    A thing is known by its key; its content is what a change writes and an undo brings back; author, time and version are added.
    """

    def __init__(
        self,
        noun: str,
        key: Sequence[str],
        content: Mapping[str, sql.types.TypeEngine],
        required: Sequence[str],
        nothing: object,
        record: type[Record],
        change: type[Change],
    ):
        """
        Args:
            noun: e.g. "label"; the tables are called after it.
            key: names of the text columns that a thing is known by.
            content: column types by name; ``required`` names those that are never empty.
            nothing: a frozen dataclass of the content's columns as they are before anybody said anything.
            record: dataclass of key, content, "author", "updated" and "version".
            change: dataclass of "version", "action", content, "author" and "time".
        """
        self.noun, self.key, self.nothing = noun, tuple(key), nothing
        self.record, self.change = record, change
        self.metadata = sql.MetaData()

        def columns() -> list[sql.Column]:
            return [sql.Column(name, kind, nullable=name not in required) for name, kind in content.items()]

        def keys() -> list[sql.Column]:
            return [sql.Column(name, sql.String, primary_key=True) for name in key]

        self.things = sql.Table(
            f"{noun}s",
            self.metadata,
            *keys(),
            *columns(),
            sql.Column("author", sql.String, nullable=False),
            sql.Column("updated", UtcDateTime, nullable=False),
            sql.Column("version", sql.Integer, nullable=False),
        )
        self.changes = sql.Table(
            f"{noun}_changes",
            self.metadata,
            *keys(),
            sql.Column("version", sql.Integer, primary_key=True, autoincrement=False),
            sql.Column("action", sql.String, nullable=False),
            *columns(),
            sql.Column("author", sql.String, nullable=False),
            sql.Column("time", UtcDateTime, nullable=False),
            sql.Column("restores", sql.Integer),  # of an undo: the version it went back to; 0: before the first change
            sql.ForeignKeyConstraint(key, [f"{noun}s.{name}" for name in key]),
        )

    def content_of(self, row: object) -> object:
        """The content in a record or a row of any of the tables."""
        return type(self.nothing)(**{field.name: getattr(row, field.name) for field in fields(self.nothing)})

    def of(self, table: sql.Table, key: Sequence[str]) -> tuple:
        """The conditions that pick one thing's rows."""
        return tuple(table.c[name] == value for name, value in zip(self.key, key, strict=True))


class SqlStore:
    """Tables of one kind in the SQL database of the workspace; many threads and processes may use one database, and one store, at once.

    All methods raise WorkspaceError when the database cannot be used.
    """

    noun: str  # e.g. "label": what messages call the database after
    metadata: sql.MetaData  # the tables

    def __init__(self, url: str | sql.URL):
        """Open the database, upgrade it and create the tables where they are missing; raises WorkspaceError in one sentence."""
        try:
            parsed = sql.make_url(url)
            # a server that does not answer is said to be so before anybody gives up waiting for the page
            waiting = {"connect_timeout": 10} if parsed.get_backend_name() == "postgresql" else {}
            self._engine = sql.create_engine(parsed, pool_pre_ping=True, connect_args=waiting)
        except (SQLAlchemyError, ImportError) as error:
            problem = f"The {self.noun} database URL cannot be used: {_first_line(error)}"
            raise WorkspaceError(
                f"{problem}; expected e.g. sqlite:///labels.sqlite or postgresql://user@host/database in NEURFLOW_DATABASE_URL."
            ) from None
        if self._engine.dialect.name == "sqlite":
            sql.event.listen(self._engine, "connect", _prepare_sqlite)
        with self._speaking():
            migrations.prepare(self._engine, self.metadata)

    @classmethod
    def for_workspace(cls, address: Path | str) -> Self:
        """The store of a workspace: ``NEURFLOW_DATABASE_URL`` where it is set, else ``labels.sqlite`` in its folder.

        A workspace at a URL has none in a folder: what people say on one machine would be hidden from the others.
        """
        url = os.environ.get("NEURFLOW_DATABASE_URL", "")
        if is_url(address) and (not url or url.startswith("sqlite")):
            raise WorkspaceError(
                f"Workspace {address} is shared by several machines, so its labels need a database that all of them reach, and "
                f"{'NEURFLOW_DATABASE_URL names a file of this one' if url else 'NEURFLOW_DATABASE_URL is not set'}; "
                "set it to e.g. postgresql://user@host/database."
            )
        if url:
            return cls(url)
        try:
            Path(address).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkspaceError(
                f"The workspace {address} cannot be created: {error.strerror}; choose a folder that can be written."
            ) from None
        return cls(sql.URL.create("sqlite", database=str(Path(address) / DATABASE)))

    def close(self) -> None:
        """Let go of the database's connections; the store may be used again."""
        self._engine.dispose()

    @property
    def path(self) -> str | None:
        """The file of a SQLite database; None on a server."""
        return self._engine.url.database if self._engine.dialect.name == "sqlite" else None

    def copy_to(self, other: Self) -> None:
        """Copy all rows, as they stand at one moment, to another database, all of them or none.

        Raises WorkspaceError when it holds some already, or either database cannot be used.
        """
        reading = self._engine.connect().execution_options(isolation_level="SERIALIZABLE")
        with self._speaking(), other._speaking(), reading as source, other._engine.begin() as target:
            for table in self.metadata.sorted_tables:
                if target.execute(sql.select(sql.func.count()).select_from(table)).scalar():
                    raise WorkspaceError(f"The {self.noun} database {other._name} holds {table.name} already; restore into an empty one.")
                # numbers that a database gives itself are given anew, in the same order
                columns = [column for column in table.c if column is not table.autoincrement_column]
                for rows in source.execute(sql.select(*columns).order_by(*table.primary_key)).mappings().partitions(1000):
                    target.execute(sql.insert(table), [dict(row) for row in rows])

    @property
    def _name(self) -> str:
        return self._engine.url.render_as_string(hide_password=True)

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Turn whatever the database reports into one sentence."""
        try:
            yield
        except IntegrityError:
            raise LostRace from None
        except SQLAlchemyError as error:
            if _first_line(error) == "database is locked":
                raise WorkspaceError(
                    f"The {self.noun} database {self._name} is locked by another program for more than {PATIENCE:g} s, so nothing was "
                    "changed; try again, and if it stays so, end the program that holds it."
                ) from None
            raise WorkspaceError(
                f"The {self.noun} database {self._name} cannot be used: {_first_line(error)}; "
                "check that it can be reached and written and has space left, or set NEURFLOW_DATABASE_URL to another one."
            ) from None

    @contextmanager
    def _reading(self) -> Iterator[sql.Connection]:
        with self._speaking(), self._engine.connect() as connection:
            yield connection


class GroupStore(SqlStore, Generic[Record, Change]):
    """Things that are said about groups, or about a whole run.

    Every change names the version it was made on (0: nobody said anything yet). A change made on an older version is refused with
    ``_conflict`` and writes nothing.
    """

    layout: Layout[Record, Change]

    @property
    def noun(self) -> str:
        return self.layout.noun

    @property
    def metadata(self) -> sql.MetaData:
        return self.layout.metadata

    # reading

    def _found(self, query: sql.Select) -> list[Record]:
        with self._reading() as connection:
            return [self.layout.record(**row._mapping) for row in connection.execute(query)]

    def _get(self, key: Sequence[str]) -> Record | None:
        found = self._found(sql.select(self.layout.things).where(*self.layout.of(self.layout.things, key)))
        return found[0] if found else None

    def _history(self, key: Sequence[str]) -> list[Change]:
        changes = self.layout.changes
        query = sql.select(*(changes.c[field.name] for field in fields(self.layout.change))).where(*self.layout.of(changes, key))
        with self._reading() as connection:
            return [self.layout.change(**row._mapping) for row in connection.execute(query.order_by(changes.c.version))]

    def decided(self) -> dict[str, int]:
        """How many things people decided on, by run."""
        run = self.layout.things.c.run_id
        with self._reading() as connection:
            query = sql.select(run, sql.func.count().label("n")).where(self._is_decided()).group_by(run)
            return {row.run_id: row.n for row in connection.execute(query)}

    def _is_decided(self) -> sql.ColumnElement[bool]:
        """The condition of what counts as a person's decision."""
        return sql.true()

    # changing

    def _change(
        self,
        key: Sequence[str],
        expected_version: int,
        author: str,
        action: str,
        change: Callable[[object], object],
        mine: str,
        restores: int | None = None,
    ) -> Record:
        """Compare and swap: write what ``change`` makes of the content, if the thing still has the expected version."""
        layout, author = self.layout, checked_text(author, "The author")
        before = self._get(key)
        if expected_version != (before.version if before else 0):
            raise self._conflict(before, key, expected_version, mine)
        old = layout.content_of(before) if before else layout.nothing
        new = change(old)
        if before and new == old and restores is None:
            return before
        time, version, known_by = datetime.now(UTC), expected_version + 1, dict(zip(layout.key, key, strict=True))
        after = layout.record(**known_by, **asdict(new), author=author, updated=time, version=version)
        try:
            # the write comes first in its transaction: SQLite then waits for its turn instead of failing half way
            with self._speaking(), self._engine.begin() as connection:
                if before is None:
                    connection.execute(sql.insert(layout.things).values(**asdict(after)))
                else:
                    where = (*layout.of(layout.things, key), layout.things.c.version == expected_version)
                    if not connection.execute(sql.update(layout.things).where(*where).values(**asdict(after))).rowcount:
                        raise LostRace
                entry = {**known_by, "version": version, "action": action, "author": author, "time": time}
                connection.execute(sql.insert(layout.changes).values(**entry, **asdict(new), restores=restores))
        except LostRace:
            raise self._conflict(self._get(key), key, expected_version, mine) from None
        return after

    def _undo(self, key: Sequence[str], author: str, expected_version: int) -> Record:
        layout = self.layout
        query = sql.select(layout.changes).where(*layout.of(layout.changes, key), layout.changes.c.version <= expected_version)
        with self._reading() as connection:
            versions = {row.version: row for row in connection.execute(query)}

        def origin(version: int) -> int:  # an undo stands for the version that it brought back
            row = versions.get(version)
            return version if row is None or row.restores is None else row.restores

        last = origin(expected_version)
        target = origin(last - 1) if last else 0

        def undone(now: object) -> object:
            if not last:
                raise InputError(f"Nothing is left to undo on {self._called(key)}.")
            return layout.content_of(versions[target]) if target else layout.nothing

        return self._change(key, expected_version, author, "undone", undone, "the undo", restores=target)

    def _called(self, key: Sequence[str]) -> str:
        """The thing of this key in a sentence."""
        return f"the {self.layout.noun} of group {dict(zip(self.layout.key, key, strict=True))['group_id']}"

    def _conflict(self, now: Record | None, key: Sequence[str], expected_version: int, mine: str) -> NeurflowError:
        """What is raised when the thing is not as it was when ``mine`` was decided."""
        raise NotImplementedError


class LostRace(Exception):
    """Somebody else wrote the version that was about to be written."""


def _prepare_sqlite(connection: sqlite3.Connection, _record) -> None:
    connection.execute(f"PRAGMA busy_timeout = {PATIENCE * 1000:.0f}")
    connection.execute("PRAGMA foreign_keys = ON")
    with suppress(sqlite3.OperationalError):  # a read-only file keeps its journal, and can still be read
        connection.execute("PRAGMA journal_mode = WAL")


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().split("\n")[0].rstrip(".")


def checked_text(text: str, what: str = "A label", longest: int = MAX_LENGTH) -> str:
    """The text stripped and in Unicode's composed form (NFC); markup is only text and stays as it is.

    Raises InputError unless it has 1 to ``longest`` characters on one line, at least one of them visible, and no control characters.

    >>> checked_text("  cafe\\u0301 ")
    'café'
    """
    text = unicodedata.normalize("NFC", text).strip()
    categories = {unicodedata.category(character) for character in text}
    if not any(category[0] in "LMNPS" for category in categories):
        raise InputError(f"{what} needs at least one visible character, got {text!r}.")
    if len(text) > longest:
        raise InputError(f"{what} has {len(text)} characters, at most {longest} are possible; shorten it.")
    if categories & {"Cc", "Cs", "Zl", "Zp"}:
        raise InputError(f"{what} is one line without control characters, got {text!r}.")
    return text


def checked_json(value: object, what: str) -> object:
    """The value as JSON brings it back (tuples as lists); raises InputError where JSON cannot hold it, e.g. NaN."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} cannot be kept as JSON: {error}; use plain numbers, texts, lists and None.") from None
