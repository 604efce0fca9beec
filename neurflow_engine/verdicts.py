"""What people decided about a group: does the class rest on it with good reason, or does it mislead. Imports neither torch nor timm.

In: a group of a run (so of one class), a person's verdict after a look at a few images, and a note. Out: the verdict in force and its
history, kept beside the labels, so that nobody is asked twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sql

from neurflow_engine.errors import InputError, VerdictConflictError
from neurflow_engine.sql_store import GroupStore, Layout, checked_text, choice

NOTE_LENGTH = 300  # characters


class Judgement(StrEnum):
    """Whether a group belongs to the class or only happens to come with it (the words of Singla and Feizi, ICLR 2022)."""

    CORE = "core"  # part of what makes the class
    SPURIOUS = "spurious"  # comes with the class in some data, and misleads without it
    UNCLEAR = "unclear"  # looked at, and not to be told


@dataclass(frozen=True)
class Verdict:
    """What a person decided about a group and the class of its run."""

    run_id: str
    report_id: str  # the debug report that a contrast group belongs to; empty for a group of the circuit
    group_id: str
    judgement: Judgement | None  # None once it was undone
    note: str | None
    author: str  # who made the last change
    updated: datetime  # of the last change, aware, UTC
    version: int  # 1, 2, ...: counts changes


@dataclass(frozen=True)
class VerdictChange:
    """One entry of a verdict's history: who did what, and what was in force afterwards."""

    version: int
    action: str  # given or undone
    judgement: Judgement | None
    note: str | None
    author: str
    time: datetime  # aware, UTC


@dataclass(frozen=True)
class _Decision:
    """The part of a verdict that a change writes and an undo brings back."""

    judgement: Judgement | None = None
    note: str | None = None


class VerdictStore(GroupStore[Verdict, VerdictChange]):
    """Verdicts in the SQL database of the labels; many threads and processes may use one database, and one store, at once.

    A verdict on a group of the circuit holds for the run, whatever report it was given in; a contrast group exists in one debug report
    only, so its verdict is kept under that report's id as well. Every change names the version it was made on (0: no verdict yet). A
    change made on an older version raises VerdictConflictError and writes nothing. All methods raise WorkspaceError when the database
    cannot be used.
    """

    layout = Layout(
        noun="verdict",
        key=("run_id", "report_id", "group_id"),
        content={"judgement": choice(Judgement), "note": sql.String()},
        required=(),
        nothing=_Decision(),
        record=Verdict,
        change=VerdictChange,
    )

    # reading

    def get(self, run_id: str, group_id: str, report_id: str | None = None) -> Verdict | None:
        """The verdict on a group; None when nobody has given one."""
        return self._get(_key(run_id, group_id, report_id))

    def for_run(self, run_id: str, report_id: str | None = None) -> dict[str, Verdict]:
        """The verdicts on the groups of a run by group id, with ``report_id`` also those on the contrast groups of that debug report."""
        verdicts = self.layout.things
        query = sql.select(verdicts).where(verdicts.c.run_id == run_id, verdicts.c.report_id.in_({"", report_id or ""}))
        return {verdict.group_id: verdict for verdict in self._found(query.order_by(verdicts.c.group_id))}

    def history(self, run_id: str, group_id: str, report_id: str | None = None) -> list[VerdictChange]:
        """All changes of a verdict, oldest first."""
        return self._history(_key(run_id, group_id, report_id))

    def _is_decided(self) -> sql.ColumnElement[bool]:
        return self.layout.things.c.judgement.is_not(None)

    # changing

    def give(
        self, run_id: str, group_id: str, judgement: str, author: str, expected_version: int, note: str = "", report_id: str | None = None
    ) -> Verdict:
        """Decide. The verdict and note that are in force already change nothing.

        Args:
            note: why, on one line of at most 300 characters; an empty one is none.
            report_id: the debug report, needed for contrast groups and without effect on groups of the circuit.

        Raises:
            InputError: the judgement is unknown, a text is unusable, or a contrast group comes without its report;
            VerdictConflictError: the verdict was changed since ``expected_version``.
        """
        if judgement not in list(Judgement):
            raise InputError(f"A verdict is core, spurious or unclear, got {str(judgement)!r}.")
        decision = _Decision(Judgement(judgement), checked_text(note, "A note", NOTE_LENGTH) if note.strip() else None)
        return self._change(_key(run_id, group_id, report_id), expected_version, author, "given", lambda _: decision, _said(decision))

    def undo(self, run_id: str, group_id: str, author: str, expected_version: int, report_id: str | None = None) -> Verdict:
        """Go back to what was in force before the last change; again: before the change before that. History only grows.

        Raises InputError when nothing is left to undo, VerdictConflictError when the verdict was changed since ``expected_version``.
        """
        return self._undo(_key(run_id, group_id, report_id), author, expected_version)

    def _conflict(self, now: Verdict | None, key: Sequence[str], expected_version: int, mine: str) -> VerdictConflictError:
        group_id = key[-1]
        if now is None:
            return VerdictConflictError(
                f"Group {group_id} has no verdict yet, so {mine} on its version {expected_version} was not saved; load it again."
            )
        theirs = f"gave the verdict {_said(now)} on" if now.judgement else "took back the verdict on"
        return VerdictConflictError(
            f"{now.author} {theirs} group {group_id} at {now.updated:%Y-%m-%d %H:%M:%S} UTC, "
            f"so {mine} made on version {expected_version} was not saved; look at version {now.version} and decide again."
        )


def _said(decision: Verdict | _Decision) -> str:
    return f"“{decision.judgement}” ({decision.note})" if decision.note else f"“{decision.judgement}”"


def _key(run_id: str, group_id: str, report_id: str | None) -> tuple[str, str, str]:
    if not group_id.rpartition("/")[2].startswith("contrast-"):
        return run_id, "", group_id
    if not report_id:
        raise InputError(f"Group {group_id} belongs to a debug report, so its verdict needs the report's id.")
    return run_id, report_id, group_id
