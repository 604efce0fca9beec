"""The names that people give to neuron groups, kept in SQL so that several people can review at once.

In: a run, a group, a wording and its author. Out: the label in force, its whole history, and tables to take away.
"""

import csv
import io
import json
import os
import sqlite3
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.schema import CreateTable

from neurflow_engine.errors import InputError, LabelConflictError, WorkspaceError

SCHEMA_VERSION = 1
MAX_LENGTH = 120  # characters of a label or an author's name


class LabelState(StrEnum):
    """Where a label stands in review."""

    PENDING = "pending"
    APPROVED = "approved"
    EDITED = "edited"
    REJECTED = "rejected"


@dataclass(frozen=True)
class Label:
    """What a neuron group is called now."""

    run_id: str
    group_id: str
    proposed: str | None  # the wording on the table; a typed name that was rejected or reopened comes back here
    proposer: str | None
    text: str | None  # the name in force; None while the label is pending or rejected
    state: LabelState
    author: str  # who made the last change
    updated: datetime  # of the last change, aware, UTC
    version: int  # 1, 2, ...: counts changes


@dataclass(frozen=True)
class LabelChange:
    """One entry of a label's history: who did what, and what the label was afterwards."""

    version: int
    action: str  # proposed, edited, approved, rejected, reopened or undone
    state: LabelState
    text: str | None
    proposed: str | None
    proposer: str | None
    author: str
    time: datetime  # aware, UTC


class _UtcDateTime(sql.types.TypeDecorator):
    """Aware UTC times in any database; SQLite forgets the zone, so it is put back."""

    impl = sql.DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value, dialect):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_State = sql.Enum(LabelState, native_enum=False, length=16, values_callable=lambda states: [state.value for state in states])
_metadata = sql.MetaData()
_schema_version = sql.Table("schema_version", _metadata, sql.Column("version", sql.Integer, primary_key=True, autoincrement=False))
_labels = sql.Table(
    "labels",
    _metadata,
    sql.Column("run_id", sql.String, primary_key=True),
    sql.Column("group_id", sql.String, primary_key=True),
    sql.Column("proposed", sql.String),
    sql.Column("proposer", sql.String),
    sql.Column("text", sql.String),
    sql.Column("state", _State, nullable=False),
    sql.Column("author", sql.String, nullable=False),
    sql.Column("updated", _UtcDateTime, nullable=False),
    sql.Column("version", sql.Integer, nullable=False),
)
_changes = sql.Table(
    "label_changes",
    _metadata,
    sql.Column("run_id", sql.String, primary_key=True),
    sql.Column("group_id", sql.String, primary_key=True),
    sql.Column("version", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("action", sql.String, nullable=False),
    sql.Column("state", _State, nullable=False),
    sql.Column("text", sql.String),
    sql.Column("proposed", sql.String),
    sql.Column("proposer", sql.String),
    sql.Column("author", sql.String, nullable=False),
    sql.Column("time", _UtcDateTime, nullable=False),
    sql.Column("restores", sql.Integer),  # of an undo: the version it went back to; 0: before the first change
    sql.ForeignKeyConstraint(["run_id", "group_id"], ["labels.run_id", "labels.group_id"]),
)


@dataclass(frozen=True)
class _Wording:
    """The part of a label that changes hands; what a change writes and an undo brings back."""

    state: LabelState = LabelState.PENDING
    text: str | None = None
    proposed: str | None = None
    proposer: str | None = None


class LabelStore:
    """Labels in an SQL database; many threads and processes may use one database, and one store, at once.

    Every change names the version it was made on (0: no label yet). A change made on an older version raises
    LabelConflictError and writes nothing. All methods raise WorkspaceError when the database cannot be used.
    """

    def __init__(self, url: str | sql.URL):
        """Open the database and create its tables when they are missing; raises WorkspaceError in one sentence."""
        try:
            self._engine = sql.create_engine(url, pool_pre_ping=True)
        except (SQLAlchemyError, ImportError) as error:
            problem = f"The label database URL cannot be used: {_first_line(error)}"
            raise WorkspaceError(f"{problem}; expected e.g. sqlite:///labels.sqlite in NEURFLOW_DATABASE_URL.") from None
        if self._engine.dialect.name == "sqlite":
            sql.event.listen(self._engine, "connect", _prepare_sqlite)
        with self._speaking():
            version = self._stored_version()
            if version is None:
                self._create_tables()
        if version is not None and version > SCHEMA_VERSION:
            raise WorkspaceError(
                f"The label database {self._name} has schema version {version}, this program knows {SCHEMA_VERSION}; update the program."
            )

    @classmethod
    def for_workspace(cls, folder: Path | str) -> "LabelStore":
        """The store of a workspace: ``NEURFLOW_DATABASE_URL`` where it is set, else ``labels.sqlite`` in the folder."""
        url = os.environ.get("NEURFLOW_DATABASE_URL")
        if url:
            return cls(url)
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkspaceError(
                f"The workspace {folder} cannot be created: {error.strerror}; choose a folder that can be written."
            ) from None
        return cls(sql.URL.create("sqlite", database=str(Path(folder) / "labels.sqlite")))

    def close(self) -> None:
        """Let go of the database's connections; the store may be used again."""
        self._engine.dispose()

    # reading

    def get(self, run_id: str, group_id: str) -> Label | None:
        """The label of a group; None when nobody has said anything about it."""
        with self._reading() as connection:
            row = connection.execute(sql.select(_labels).where(*_of(_labels, run_id, group_id))).one_or_none()
        return row and Label(**row._mapping)

    def for_run(self, run_id: str) -> dict[str, Label]:
        """The labels of a run by group id."""
        with self._reading() as connection:
            rows = connection.execute(sql.select(_labels).where(_labels.c.run_id == run_id)).all()
        return {row.group_id: Label(**row._mapping) for row in rows}

    def history(self, run_id: str, group_id: str) -> list[LabelChange]:
        """All changes of a label, oldest first."""
        columns = [_changes.c[field.name] for field in fields(LabelChange)]
        with self._reading() as connection:
            rows = connection.execute(sql.select(*columns).where(*_of(_changes, run_id, group_id)).order_by(_changes.c.version)).all()
        return [LabelChange(**row._mapping) for row in rows]

    def export_rows(self, run_ids: Iterable[str] | None = None) -> list[dict]:
        """Labels of the given runs (None: of all runs) as flat, JSON-ready rows, sorted by run and group."""
        query = sql.select(_labels).order_by(_labels.c.run_id, _labels.c.group_id)
        if run_ids is not None:
            query = query.where(_labels.c.run_id.in_(list(run_ids)))
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return [dict(row._mapping) | {"state": row.state.value, "updated": row.updated.isoformat()} for row in rows]

    # changing

    def propose(self, run_id: str, group_id: str, text: str, proposer: str) -> Label:
        """Put a wording on the table. A name in force stays in force; a rejected label is open again.

        The same proposal by the same proposer changes nothing. Raises InputError for an unusable text.
        """
        text, proposer = checked_text(text), checked_text(proposer, "The proposer")

        def proposal(now: _Wording) -> _Wording:
            if (now.proposed, now.proposer) == (text, proposer):
                return now
            state = LabelState.PENDING if now.state == LabelState.REJECTED else now.state
            return _Wording(state, now.text, text, proposer)

        while True:  # a proposal overrules nobody, so it is made again on the newer version; each round somebody has succeeded
            label = self.get(run_id, group_id)
            with suppress(LabelConflictError):
                return self._change(
                    run_id, group_id, label.version if label else 0, proposer, "proposed", proposal, f"the proposal “{text}”"
                )

    def edit(self, run_id: str, group_id: str, text: str, author: str, expected_version: int) -> Label:
        """Give a name: ``text`` is in force, state edited. The name that is in force already changes nothing.

        Raises InputError for an unusable text, LabelConflictError when the label was changed since ``expected_version``.
        """
        text = checked_text(text)

        def edited(now: _Wording) -> _Wording:
            return now if now.text == text else _Wording(LabelState.EDITED, text, now.proposed, now.proposer)

        return self._change(run_id, group_id, expected_version, author, "edited", edited, f"“{text}”")

    def decide(self, run_id: str, group_id: str, state: LabelState | str, author: str, expected_version: int) -> Label:
        """Approve (the name in force, or else the proposal), reject, or reopen (``pending``) a label.

        A typed name that is rejected or reopened is no longer in force and becomes the proposal of the person who typed it.
        Raises InputError when there is nothing to approve, LabelConflictError when the label was changed since ``expected_version``.
        """
        actions = {LabelState.APPROVED: "approved", LabelState.REJECTED: "rejected", LabelState.PENDING: "reopened"}
        if state not in actions:
            raise InputError(f"A label is decided as approved, rejected or pending, got {str(state)!r}.")
        state = LabelState(state)

        def decided(now: _Wording) -> _Wording:
            if state == LabelState.APPROVED:
                if now.text is None and now.proposed is None:
                    raise InputError(f"Group {group_id} has no name to approve; type one first.")
                return _Wording(state, now.text or now.proposed, now.proposed, now.proposer)
            typist = now.text and self._typist(run_id, group_id, now.text)
            return _Wording(state, None, *((now.text, typist) if typist else (now.proposed, now.proposer)))

        return self._change(run_id, group_id, expected_version, author, actions[state], decided, f"“{actions[state]}”")

    def undo(self, run_id: str, group_id: str, author: str, expected_version: int) -> Label:
        """Go back to how the label was before its last change; again: before the change before that. History only grows.

        Raises InputError when nothing is left to undo, LabelConflictError when the label was changed since ``expected_version``.
        """
        query = sql.select(_changes).where(*_of(_changes, run_id, group_id), _changes.c.version <= expected_version)
        with self._reading() as connection:
            versions = {row.version: row for row in connection.execute(query)}

        def origin(version: int) -> int:  # an undo stands for the version that it brought back
            row = versions.get(version)
            return version if row is None or row.restores is None else row.restores

        last = origin(expected_version)
        target = origin(last - 1) if last else 0

        def undone(now: _Wording) -> _Wording:
            if not last:
                raise InputError(f"Nothing is left to undo on the label of group {group_id}.")
            return _wording(versions[target]) if target else _Wording()

        return self._change(run_id, group_id, expected_version, author, "undone", undone, "the undo", restores=target)

    def _change(
        self,
        run_id: str,
        group_id: str,
        expected_version: int,
        author: str,
        action: str,
        change: Callable[[_Wording], _Wording],
        mine: str,
        restores: int | None = None,
    ) -> Label:
        """Compare and swap: write what ``change`` makes of the label, if the label still has the expected version."""
        author = checked_text(author, "The author")
        before = self.get(run_id, group_id)
        if expected_version != (before.version if before else 0):
            raise self._conflict(run_id, group_id, expected_version, mine)
        old = _wording(before) if before else _Wording()
        new = change(old)
        if before and new == old and restores is None:
            return before
        time, version = datetime.now(UTC), expected_version + 1
        after = Label(run_id, group_id, new.proposed, new.proposer, new.text, new.state, author, time, version)
        try:
            # the write comes first in its transaction: SQLite then waits for its turn instead of failing half way
            with self._speaking(), self._engine.begin() as connection:
                if before is None:
                    connection.execute(sql.insert(_labels).values(**asdict(after)))
                else:
                    where = (*_of(_labels, run_id, group_id), _labels.c.version == expected_version)
                    if not connection.execute(sql.update(_labels).where(*where).values(**asdict(after))).rowcount:
                        raise _LostRace
                entry = {"run_id": run_id, "group_id": group_id, "version": version, "action": action, "author": author, "time": time}
                connection.execute(sql.insert(_changes).values(**entry, **asdict(new), restores=restores))
        except _LostRace:
            raise self._conflict(run_id, group_id, expected_version, mine) from None
        return after

    def _conflict(self, run_id: str, group_id: str, expected_version: int, mine: str) -> LabelConflictError:
        now = self.get(run_id, group_id)
        if now is None:
            return LabelConflictError(
                f"Group {group_id} has no label yet, so {mine} on its version {expected_version} was not saved; load it again."
            )
        theirs = f"“{now.text}” ({now.state})" if now.text else f"{now.state} without a name"
        return LabelConflictError(
            f"{now.author} changed the label of group {group_id} to {theirs} at {now.updated:%Y-%m-%d %H:%M:%S} UTC, "
            f"so {mine} made on version {expected_version} was not saved; look at version {now.version} and decide again."
        )

    def _typist(self, run_id: str, group_id: str, text: str) -> str | None:
        """Who typed this text last; None when it was an approved proposal."""
        typed = (*_of(_changes, run_id, group_id), _changes.c.action == "edited", _changes.c.text == text)
        with self._reading() as connection:
            return connection.execute(sql.select(_changes.c.author).where(*typed).order_by(_changes.c.version.desc()).limit(1)).scalar()

    # the database

    @property
    def _name(self) -> str:
        return self._engine.url.render_as_string(hide_password=True)

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Turn whatever the database reports into one sentence."""
        try:
            yield
        except IntegrityError:
            raise _LostRace from None
        except SQLAlchemyError as error:
            raise WorkspaceError(
                f"The label database {self._name} cannot be used: {_first_line(error)}; "
                "check that it can be reached and written and has space left, or set NEURFLOW_DATABASE_URL to another one."
            ) from None

    @contextmanager
    def _reading(self) -> Iterator[sql.Connection]:
        with self._speaking(), self._engine.connect() as connection:
            yield connection

    def _stored_version(self) -> int | None:
        with self._engine.connect() as connection:
            if not sql.inspect(connection).has_table(_schema_version.name):
                return None
            return connection.execute(sql.select(sql.func.max(_schema_version.c.version))).scalar()

    def _create_tables(self) -> None:
        """Create what is missing; the version row comes last, so whoever sees it sees all tables."""
        version = sql.insert(_schema_version).values(version=SCHEMA_VERSION)
        for statement in (*(CreateTable(table, if_not_exists=True) for table in _metadata.sorted_tables), version):
            # an IntegrityError says that somebody who opened the new database in the same moment was faster
            with suppress(IntegrityError), self._engine.begin() as connection:
                connection.execute(statement)


class _LostRace(Exception):
    """Somebody else wrote the version that was about to be written."""


def _prepare_sqlite(connection: sqlite3.Connection, _record) -> None:
    connection.execute("PRAGMA busy_timeout = 30000")
    connection.execute("PRAGMA foreign_keys = ON")
    with suppress(sqlite3.OperationalError):  # a read-only file keeps its journal, and can still be read
        connection.execute("PRAGMA journal_mode = WAL")


def _of(table: sql.Table, run_id: str, group_id: str) -> tuple:
    return table.c.run_id == run_id, table.c.group_id == group_id


def _wording(row) -> _Wording:
    return _Wording(row.state, row.text, row.proposed, row.proposer)


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().split("\n")[0].rstrip(".")


def checked_text(text: str, what: str = "A label") -> str:
    """The text stripped and in Unicode's composed form (NFC); markup is only text and stays as it is.

    Raises InputError unless it has 1 to 120 characters on one line, at least one of them visible, and no control characters.

    >>> checked_text("  cafe\\u0301 ")
    'café'
    """
    text = unicodedata.normalize("NFC", text).strip()
    categories = {unicodedata.category(character) for character in text}
    if not any(category[0] in "LMNPS" for category in categories):
        raise InputError(f"{what} needs at least one visible character, got {text!r}.")
    if len(text) > MAX_LENGTH:
        raise InputError(f"{what} has {len(text)} characters, at most {MAX_LENGTH} are possible; shorten it.")
    if categories & {"Cc", "Cs", "Zl", "Zp"}:
        raise InputError(f"{what} is one line without control characters, got {text!r}.")
    return text


_COLUMNS = tuple(field.name for field in fields(Label))
_FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "'")


def spreadsheet_safe(value: object) -> object:
    """A cell that no spreadsheet takes for a formula.

    Text that begins with ``=``, ``+``, ``-`` or ``@`` gets an apostrophe in front, and so does text that begins with an apostrophe:
    taking one leading apostrophe off every cell that has one gives back the values.
    """
    return f"'{value}" if str(value).startswith(_FORMULA_STARTS) else value


def to_csv(rows: list[dict]) -> str:
    """Exported rows as CSV with a header line; a missing value is an empty cell, and no cell can run as a formula."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, _COLUMNS)
    writer.writeheader()
    for row in rows:
        writer.writerow({name: spreadsheet_safe(value) for name, value in row.items()})
    return out.getvalue()


def to_json(rows: list[dict]) -> str:
    """Exported rows as a JSON list, readable and in Unicode."""
    return json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
