"""The names that people give to neuron groups, kept in SQL so that several people can review at once.

In: a run, a group, a wording and its author. Out: the label in force, its whole history, and tables to take away.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sql

from neurflow_engine.errors import InputError, LabelConflictError
from neurflow_engine.sql_store import JSON, GroupStore, Layout, checked_text, choice


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
    action: str  # proposed, edited, approved, rejected, reopened or undone
    state: LabelState
    text: str | None
    proposed: str | None
    proposer: str | None
    author: str
    time: datetime  # aware, UTC
    evidence: dict | None = None


@dataclass(frozen=True)
class _Wording:
    """The part of a label that changes hands; what a change writes and an undo brings back."""

    state: LabelState = LabelState.PENDING
    text: str | None = None
    proposed: str | None = None
    proposer: str | None = None
    evidence: dict | None = None


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

    def for_run(self, run_id: str) -> dict[str, Label]:
        """The labels of a run by group id."""
        labels = self.layout.things
        return {label.group_id: label for label in self._found(sql.select(labels).where(labels.c.run_id == run_id))}

    def history(self, run_id: str, group_id: str) -> list[LabelChange]:
        """All changes of a label, oldest first."""
        return self._history((run_id, group_id))

    def export_rows(self, run_ids: Iterable[str] | None = None) -> list[dict]:
        """Labels of the given runs (None: of all runs) as flat, JSON-ready rows, sorted by run and group."""
        labels = self.layout.things
        query = sql.select(labels).order_by(labels.c.run_id, labels.c.group_id)
        if run_ids is not None:
            query = query.where(labels.c.run_id.in_(list(run_ids)))
        return [asdict(label) | {"state": label.state.value, "updated": label.updated.isoformat()} for label in self._found(query)]

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

    def edit(self, run_id: str, group_id: str, text: str, author: str, expected_version: int) -> Label:
        """Give a name: ``text`` is in force, state edited. The name that is in force already changes nothing.

        Raises InputError for an unusable text, LabelConflictError when the label was changed since ``expected_version``.
        """
        text = checked_text(text)

        def edited(now: _Wording) -> _Wording:
            return now if now.text == text else _Wording(LabelState.EDITED, text, now.proposed, now.proposer)

        return self._change((run_id, group_id), expected_version, author, "edited", edited, f"“{text}”")

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

        return self._change((run_id, group_id), expected_version, author, actions[state], decided, f"“{actions[state]}”")

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
            f"so {mine} made on version {expected_version} was not saved; look at version {now.version} and decide again."
        )

    def _typist(self, run_id: str, group_id: str, text: str) -> str | None:
        """Who typed this text last; None when it was an approved proposal."""
        changes = self.layout.changes
        typed = (*self.layout.of(changes, (run_id, group_id)), changes.c.action == "edited", changes.c.text == text)
        with self._reading() as connection:
            return connection.execute(sql.select(changes.c.author).where(*typed).order_by(changes.c.version.desc()).limit(1)).scalar()


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
        row = row | {"evidence": row["evidence"] and json.dumps(row["evidence"], ensure_ascii=False)}
        writer.writerow({name: spreadsheet_safe(value) for name, value in row.items()})
    return out.getvalue()


def to_json(rows: list[dict]) -> str:
    """Exported rows as a JSON list, readable and in Unicode."""
    return json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
