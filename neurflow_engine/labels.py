"""The names that people give to neuron groups, kept in SQL so that several people can review at once.

In: a run, a group, a wording and its author. Out: the label in force, its whole history, and tables to take away and bring back.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum

import sqlalchemy as sql

from neurflow_engine.errors import InputError, LabelConflictError, WorkspaceError, near_matches
from neurflow_engine.sql_store import JSON, GroupStore, Layout, LostRace, checked_json, checked_text, choice

ID_LENGTH = 300  # characters of a run's or a group's id
_NAMING = ("edited", "fixed", "imported", "carried")  # actions that bring in a name of their own


class LabelState(StrEnum):
    """Where a label stands in review."""

    PENDING = "pending"
    APPROVED = "approved"
    EDITED = "edited"
    REJECTED = "rejected"
    NEEDS_REVIEW = "needs review"  # named in another run, and the group is no longer quite the same


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
    evidence: dict | None = None  # what the name in force rests on, frozen when it was given; see evidence.py


@dataclass(frozen=True)
class LabelChange:
    """One entry of a label's history: who did what, and what the label was afterwards."""

    version: int
    action: str  # proposed, edited, approved, fixed (edited and approved in one), rejected, reopened, undone, imported or carried
    state: LabelState
    text: str | None
    proposed: str | None
    proposer: str | None
    author: str
    time: datetime  # aware, UTC
    evidence: dict | None = None
    restores: int | None = None  # of an undo: the version it went back to; 0: before the first change


@dataclass(frozen=True)
class _Wording:
    """The part of a label that changes hands; what a change writes and an undo brings back."""

    state: LabelState = LabelState.PENDING
    text: str | None = None
    proposed: str | None = None
    proposer: str | None = None
    evidence: dict | None = None


COLUMNS = (*(field.name for field in fields(Label)), "history")  # of exported rows
_JSON_COLUMNS = ("evidence", "history")


class LabelStore(GroupStore[Label, LabelChange]):
    """Labels in an SQL database; many threads and processes may use one database, and one store, at once.

    Every change names the version it was made on (0: no label yet). A change made on an older version raises
    LabelConflictError and writes nothing. All methods raise WorkspaceError when the database cannot be used.
    """

    layout = Layout(
        noun="label",
        key=("run_id", "group_id"),
        content={
            "state": choice(LabelState),
            "text": sql.String(),
            "proposed": sql.String(),
            "proposer": sql.String(),
            "evidence": JSON,
        },
        required=("state",),
        nothing=_Wording(),
        record=Label,
        change=LabelChange,
    )

    # reading

    def get(self, run_id: str, group_id: str) -> Label | None:
        """The label of a group; None when nobody has said anything about it."""
        return self._get((run_id, group_id))

    def for_run(self, run_id: str, evidence: bool = True) -> dict[str, Label]:
        """The labels of a run by group id; without their evidence, which is most of what there is to read, in a fraction of the time."""
        labels = self.layout.things
        columns = labels.c if evidence else [column for column in labels.c if column is not labels.c.evidence]
        return {label.group_id: label for label in self._found(sql.select(*columns).where(labels.c.run_id == run_id))}

    def history(self, run_id: str, group_id: str) -> list[LabelChange]:
        """All changes of a label, oldest first."""
        return self._history((run_id, group_id))

    def export_rows(self, run_ids: Iterable[str] | None = None) -> list[dict]:
        """Labels of the given runs (None: of all runs) as JSON-ready rows, each with its whole history, sorted by run and group."""
        changes = self.layout.changes
        query = sql.select(changes).order_by(changes.c.version)
        if run_ids is not None:
            query = query.where(changes.c.run_id.in_(list(run_ids)))
        histories: dict[tuple[str, str], list[dict]] = {}
        with self._reading() as connection:
            for change in connection.execute(query):
                entry = {field.name: getattr(change, field.name) for field in fields(LabelChange)}
                entry |= {"state": change.state.value, "time": change.time.isoformat()}
                histories.setdefault((change.run_id, change.group_id), []).append(entry)
        rows = []
        for (run_id, group_id), history in sorted(histories.items()):
            last = history[-1]  # a label is what its last change made of it
            known = last | {"run_id": run_id, "group_id": group_id, "updated": last["time"], "history": history}
            rows.append({name: known[name] for name in COLUMNS})
        return rows

    def _is_decided(self) -> sql.ColumnElement[bool]:
        return self.layout.things.c.state != LabelState.PENDING

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
            return _Wording(state, now.text, text, proposer, now.evidence)

        while True:  # a proposal overrules nobody, so it is made again on the newer version; each round somebody has succeeded
            label = self.get(run_id, group_id)
            with suppress(LabelConflictError):
                return self._change(
                    (run_id, group_id), label.version if label else 0, proposer, "proposed", proposal, f"the proposal “{text}”"
                )

    def edit(self, run_id: str, group_id: str, text: str, author: str, expected_version: int, evidence: dict | None = None) -> Label:
        """Give a name: ``text`` is in force, state edited. The name that is in force already changes nothing.

        Args:
            evidence: what the name rests on, JSON-ready; see ``evidence.freeze``.

        Raises:
            InputError: the text is unusable; LabelConflictError: the label was changed since ``expected_version``.
        """
        text, evidence = checked_text(text), checked_json(evidence, "The evidence of a label")

        def edited(now: _Wording) -> _Wording:
            return now if now.text == text else _Wording(LabelState.EDITED, text, now.proposed, now.proposer, evidence)

        return self._change((run_id, group_id), expected_version, author, "edited", edited, f"“{text}”")

    def decide(
        self,
        run_id: str,
        group_id: str,
        state: LabelState | str,
        author: str,
        expected_version: int,
        evidence: dict | None = None,
        text: str | None = None,
    ) -> Label:
        """Approve (the name in force, or else the proposal), reject, or reopen (``pending``) a label.

        A typed name that is rejected or reopened is no longer in force and becomes the proposal of the person who typed it.

        Args:
            evidence: what an approved name rests on, JSON-ready; see ``evidence.freeze``. Approving it again does not change it.
            text: the name to approve in place of the one on the table: corrected and approved in one change, which one undo takes back.

        Raises:
            InputError: there is nothing to approve; LabelConflictError: the label was changed since ``expected_version``.
        """
        actions = {LabelState.APPROVED: "approved", LabelState.REJECTED: "rejected", LabelState.PENDING: "reopened"}
        if state not in actions:
            raise InputError(f"A label is decided as approved, rejected or pending, got {str(state)!r}.")
        state, action, mine = LabelState(state), actions[state], f"“{actions[state]}”"
        if text is not None:
            if state != LabelState.APPROVED:
                raise InputError(f"Only a name that is approved can be corrected in the same step, got {state.value!r} with {text!r}.")
            text = checked_text(text)
            label = self.get(run_id, group_id)
            if label is None or text != (label.text or label.proposed):
                action, mine = "fixed", f"“{text}” (approved)"
        evidence = checked_json(evidence, "The evidence of a label")

        def decided(now: _Wording) -> _Wording:
            if state == LabelState.APPROVED:
                name = text or now.text or now.proposed
                if name is None:
                    raise InputError(f"Group {group_id} has no name to approve; type one first.")
                if (now.state, now.text) == (state, name):
                    return now
                return _Wording(state, name, now.proposed, now.proposer, evidence)
            typist = now.text and self._typist(run_id, group_id, now.text)
            return _Wording(state, None, *((now.text, typist) if typist else (now.proposed, now.proposer)))

        return self._change((run_id, group_id), expected_version, author, action, decided, mine)

    def approve_many(
        self, run_id: str, versions: Iterable[tuple[str, int]], author: str, evidence: Mapping[str, dict] | None = None
    ) -> tuple[int, list[str]]:
        """Approve what stands there in many groups of a run, each given as (group id, version that was seen).

        Args:
            evidence: by group id, as in ``decide``.

        Returns:
            how many are approved now, and one sentence for each group that is not; none of these stops the others.
        """
        n, problems = 0, []
        for group_id, version in versions:
            try:
                self.decide(run_id, group_id, LabelState.APPROVED, author, version, (evidence or {}).get(group_id))
            except WorkspaceError:
                raise
            except (InputError, LabelConflictError) as error:
                problems.append(str(error))
            else:
                n += 1
        return n, problems

    def carry(self, run_id: str, group_id: str, text: str, state: LabelState, author: str, evidence: dict) -> Label:
        """Bring in the name that a group has in another run; see ``evidence.carry_over``.

        Raises InputError when somebody has decided about the group of this run already.
        """
        text, evidence = checked_text(text), checked_json(evidence, "The evidence of a label")
        label = self.get(run_id, group_id)

        def carried(now: _Wording) -> _Wording:
            if now.text is not None or now.state != LabelState.PENDING:
                raise InputError(f"Group {group_id} of run {run_id} is {now.state} already, so “{text}” was not carried over to it.")
            return _Wording(LabelState(state), text, now.proposed, now.proposer, evidence)

        return self._change((run_id, group_id), label.version if label else 0, author, "carried", carried, f"“{text}”")

    def import_rows(self, rows: Iterable[Mapping], author: str) -> tuple[int, list[str]]:
        """Bring in exported rows; a row that cannot be brought in is left out, and the others go in.

        What the history of a row knows beyond this database is added as it is, with its authors and times. A row that says otherwise than
        its own history was changed by hand since: that is a change by ``author``. A row that is no newer than the label here changes
        nothing, and one that was changed since by hand, or whose history is not that of the label here, is refused.

        Returns:
            how many labels are new or changed, and one sentence for each row that was left out.
        """
        author, n, problems = checked_text(author, "The author"), 0, []
        for row in rows:
            try:
                n += self._import(_checked_row(row), author)
            except WorkspaceError:
                raise
            except (InputError, LabelConflictError) as error:
                problems.append(f"{_named(row)}: {error}")
        return n, problems

    def _import(self, row: "_ImportedRow", author: str) -> bool:
        key, mine, theirs = (row.run_id, row.group_id), self.history(row.run_id, row.group_id), list(row.history)
        is_newer = len(theirs) > len(mine) and theirs[: len(mine)] == mine
        if is_newer:
            self._append(key, theirs, len(mine))
            mine = theirs
        new, now = row.wording, self.layout.content_of(mine[-1]) if mine else self.layout.nothing
        if new == now:
            return is_newer
        if theirs and mine[: len(theirs)] == theirs and new == self.layout.content_of(theirs[-1]):
            return False  # an export from before
        said = f"“{new.text or new.proposed}” ({new.state})"
        if theirs and theirs != mine:
            raise self._conflict(self.get(*key), key, len(theirs), said)
        if new.text != now.text and new.evidence == now.evidence:
            new = replace(new, evidence=None)  # it was of the name before
        self._change(key, row.version if mine else 0, author, "imported", lambda _: new, said)
        return True

    def _append(self, key: tuple[str, str], history: Sequence[LabelChange], n_known: int) -> None:
        """Write a history from its ``n_known``-th change on, and the label as it leaves it."""
        layout, last, known_by = self.layout, history[-1], dict(zip(self.layout.key, key, strict=True))
        label = asdict(layout.content_of(last)) | {"author": last.author, "updated": last.time, "version": last.version}
        try:
            with self._speaking(), self._engine.begin() as connection:
                if n_known:
                    where = (*layout.of(layout.things, key), layout.things.c.version == n_known)
                    if not connection.execute(sql.update(layout.things).where(*where).values(**label)).rowcount:
                        raise LostRace
                else:
                    connection.execute(sql.insert(layout.things).values(**known_by, **label))
                connection.execute(sql.insert(layout.changes), [known_by | asdict(change) for change in history[n_known:]])
        except LostRace:
            raise self._conflict(self.get(*key), key, n_known, "the imported row") from None

    def undo(self, run_id: str, group_id: str, author: str, expected_version: int) -> Label:
        """Go back to how the label was before its last change; again: before the change before that. History only grows.

        Raises InputError when nothing is left to undo, LabelConflictError when the label was changed since ``expected_version``.
        """
        return self._undo((run_id, group_id), author, expected_version)

    def _conflict(self, now: Label | None, key: Sequence[str], expected_version: int, mine: str) -> LabelConflictError:
        _, group_id = key
        if now is None:
            return LabelConflictError(
                f"Group {group_id} has no label yet, so {mine} on its version {expected_version} was not saved; load it again."
            )
        theirs = f"“{now.text}” ({now.state})" if now.text else f"{now.state} without a name"
        return LabelConflictError(
            f"{now.author} changed the label of group {group_id} to {theirs} at {now.updated:%Y-%m-%d %H:%M:%S} UTC, "
            f"so {mine} made on version {expected_version} was not saved; look at version {now.version} and decide again.",
            now,
        )

    def _typist(self, run_id: str, group_id: str, text: str) -> str | None:
        """Who brought in this text last; None when it was an approved proposal."""
        changes = self.layout.changes
        typed = (*self.layout.of(changes, (run_id, group_id)), changes.c.action.in_(_NAMING), changes.c.text == text)
        with self._reading() as connection:
            return connection.execute(sql.select(changes.c.author).where(*typed).order_by(changes.c.version.desc()).limit(1)).scalar()


_FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r", "\n", "'")


def spreadsheet_safe(value: object) -> object:
    """A cell that no spreadsheet takes for a formula.

    Text that begins with ``=``, ``+``, ``-`` or ``@``, or with a tab or line break that some programs skip, gets an apostrophe in front,
    and so does text that begins with an apostrophe: taking one leading apostrophe off every cell that has one gives back the values.
    """
    return f"'{value}" if str(value).startswith(_FORMULA_STARTS) else value


def to_csv(rows: list[dict]) -> str:
    """Exported rows as CSV with a header line; a missing value is an empty cell, and no cell can run as a formula.

    Evidence and history are JSON in one cell each.
    """
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    for row in rows:
        cells = row | {name: row[name] and json.dumps(row[name], ensure_ascii=False) for name in _JSON_COLUMNS}
        writer.writerow({name: spreadsheet_safe(value) for name, value in cells.items()})
    return out.getvalue()


def to_json(rows: list[dict]) -> str:
    """Exported rows as a JSON list, readable and in Unicode."""
    return json.dumps(rows, ensure_ascii=False, indent=2) + "\n"


def read_csv(content: bytes | str) -> tuple[list[dict], list[str]]:
    """Rows for ``LabelStore.import_rows`` from CSV: what ``to_csv`` wrote, or a table of one's own.

    Only the columns run_id and group_id are needed, and text or proposed with proposer; further ones are passed over. Cells may be
    separated by commas, semicolons or tabs, as spreadsheets like it.

    Returns:
        the rows that can be used, and one sentence for each that cannot.

    Raises:
        InputError: the file is no UTF-8 text or no such table.
    """
    text = _decoded(content)
    csv.field_size_limit(2**31 - 1)  # a long history is one cell
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    try:
        missing = [name for name in ("run_id", "group_id") if name not in (reader.fieldnames or ())]
        if missing:
            near = near_matches(missing[0], reader.fieldnames or ())
            raise InputError(
                f"The table of labels has no column {' and no column '.join(missing)}; its first line names the columns.{near}"
            )
        return _usable(map(_from_cells, reader))
    except csv.Error as error:
        raise InputError(f"The table of labels is no CSV: {error} in line {reader.line_num}; export it as CSV in UTF-8 again.") from None


def read_json(content: bytes | str) -> tuple[list[dict], list[str]]:
    """Rows for ``LabelStore.import_rows`` from JSON: what ``to_json`` wrote, or a list of objects with the same keys.

    Returns:
        the rows that can be used, and one sentence for each that cannot.

    Raises:
        InputError: the file is no UTF-8 text or no JSON list.
    """
    try:
        rows = json.loads(_decoded(content))
    except (ValueError, RecursionError) as error:
        raise InputError(f"The file of labels is no JSON: {error}.") from None
    if not isinstance(rows, list):
        raise InputError(f"The file of labels is a JSON {type(rows).__name__}, expected a list of labels.")
    return _usable(rows)


@dataclass(frozen=True)
class _ImportedRow:
    """A row whose every value is as it should be."""

    run_id: str
    group_id: str
    version: int  # that a change by hand was made on
    wording: _Wording
    history: tuple[LabelChange, ...]


def _decoded(content: bytes | str) -> str:
    if isinstance(content, str):
        return content.removeprefix("\ufeff")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("The file of labels is no text in UTF-8; save it in UTF-8 again.") from None


def _from_cells(cells: dict) -> dict:
    """A row of CSV with its values as JSON has them; a cell that is no JSON stays text, which no column of these takes."""
    row = {name: cell.removeprefix("'") or None for name, cell in cells.items() if name in COLUMNS and cell is not None}
    for name in ("version", *_JSON_COLUMNS):
        if row.get(name) is not None:
            with suppress(ValueError, RecursionError):
                row[name] = json.loads(row[name])
    return row


def _usable(rows: Iterable[object]) -> tuple[list[dict], list[str]]:
    usable, problems, seen = [], [], {}
    for number, row in enumerate(rows, 1):
        try:
            checked = _checked_row(row)
            key = (checked.run_id, checked.group_id)
            if key in seen:
                raise InputError(f"row {seen[key]} is about the same group; keep one of them.")
            seen[key] = number
        except InputError as error:
            problems.append(f"Row {number} ({_named(row)}): {error}")
        else:
            usable.append(row)
    return usable, problems


def _named(row: object) -> str:
    row = row if isinstance(row, Mapping) else {}
    return f"group {row.get('group_id')!r} of run {row.get('run_id')!r}"


def _checked_row(row: object) -> _ImportedRow:
    """Raises InputError when anything in the row is not as an export would have it."""
    if not isinstance(row, Mapping):
        raise InputError(f"A label is an object with run_id and group_id, got {type(row).__name__}.")
    run_id, group_id = (checked_text(_text(row, name) or "", f"The {name}", ID_LENGTH) for name in ("run_id", "group_id"))
    history = row.get("history") or []
    if not isinstance(history, list):
        raise InputError(f"The history of a label is a list of changes, got {type(history).__name__}.")
    version = row.get("version") or 0
    if type(version) is not int:
        raise InputError(f"The version of a label is a whole number, got {version!r}.")
    changes = tuple(_checked_change(change, number) for number, change in enumerate(history, 1))
    return _ImportedRow(run_id, group_id, version, _checked_wording(row), changes)


def _checked_wording(row: Mapping) -> _Wording:
    text, proposed, proposer = (_text(row, name) for name in ("text", "proposed", "proposer"))
    state = row.get("state") or (LabelState.PENDING if text is None else LabelState.EDITED)
    if state not in list(LabelState):
        known = [each.value for each in LabelState]
        raise InputError(f"There is no state {state!r}; it is one of {', '.join(known)}.{near_matches(str(state), known)}")
    if (text is None) != (state in (LabelState.PENDING, LabelState.REJECTED)):
        raise InputError(f"A label that is {state} has {'a' if text is None else 'no'} text; its wording goes into “proposed” until then.")
    if (proposed is None) != (proposer is None):
        raise InputError(f"A proposal and its proposer come together, got {proposed!r} by {proposer!r}.")
    evidence = row.get("evidence")
    if not isinstance(evidence, dict | None):
        raise InputError(f"The evidence of a label is a JSON object, got {type(evidence).__name__}.")
    return _Wording(
        LabelState(state),
        text and checked_text(text),
        proposed and checked_text(proposed),
        proposer and checked_text(proposer, "The proposer"),
        checked_json(evidence, "The evidence of a label"),
    )


def _checked_change(change: object, number: int) -> LabelChange:
    if not isinstance(change, Mapping) or change.get("version") != number:
        raise InputError(f"Change {number} in the history of a label is not an object with the version {number}.")
    restores = change.get("restores")
    if restores is not None and not (type(restores) is int and 0 <= restores < number):
        raise InputError(f"Change {number} in the history of a label went back to version {restores!r}, which is not before it.")
    try:
        time = datetime.fromisoformat(_text(change, "time") or "")
    except ValueError:
        raise InputError(f"Change {number} in the history of a label has no time such as 2026-01-31T12:00:00+00:00.") from None
    if time.tzinfo is None:
        raise InputError(f"The time of change {number} in the history of a label, {time.isoformat()}, does not say its zone, e.g. +00:00.")
    return LabelChange(
        version=number,
        action=checked_text(_text(change, "action") or "", "An action", 16),
        **vars(_checked_wording(change)),
        author=checked_text(_text(change, "author") or "", "The author"),
        time=time.astimezone(UTC),
        restores=restores,
    )


def _text(row: Mapping, name: str) -> str | None:
    value = row.get(name)
    if not isinstance(value, str | None):
        raise InputError(f"The {name} of a label is text, got {value!r}.")
    return value or None
