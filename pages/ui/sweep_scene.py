"""What the parts of the Sweep page share: the sweep, its classes as a table, and which of them are shown.

In: a sweep, and the filters in the address. Out: rows with their state in words, and how far people have judged them.
"""

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from neurflow_engine.store import Evaluation
from neurflow_engine.sweep_result import ClassOutcome, ClassState, Sweep, evaluation_of
from pages.ui import cached, session

ALL, MISLED, FAILED = "all", "misled", "failed"
SHOWS = (ALL, MISLED, FAILED)
# of a class: a sign and a word
_STATES = {
    ClassState.WAITING: "… waiting",
    ClassState.NOTHING: "– never predicted",
    ClassState.FAILED: "✗ failed",
}


@dataclass(frozen=True, eq=False)
class Scene:
    """What the page is about."""

    sweep: Sweep
    evaluation: Evaluation
    table: pd.DataFrame  # Sweep.table

    @classmethod
    def of(cls, sweep: Sweep) -> "Scene":
        """A sweep as it is now; raises RunError when its evaluation is gone."""
        return cls(sweep, evaluation_of(sweep, cached.workspace()), cached.sweep_table(sweep))

    @cached_property
    def outcomes(self) -> dict[int, ClassOutcome]:
        """By index of the class."""
        return {outcome.index: outcome for outcome in self.sweep.classes}

    @property
    def chosen(self) -> ClassOutcome | None:
        """The class whose groups are shown."""
        return next((outcome for index, outcome in self.outcomes.items() if str(index) == session.get("target")), None)

    @cached_property
    def only(self) -> str:
        return session.one_of("only", SHOWS, ALL)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The rows that pass the filters."""
        rows, text = self.table, (session.get("find") or "").strip().casefold()
        if self.only == MISLED:
            rows = rows[rows["flagged"] > 0]
        elif self.only == FAILED:
            rows = rows[rows["state"] == ClassState.FAILED]
        if text:
            rows = rows[[text in name.casefold() for name in rows["class"]]]
        return rows.reset_index(drop=True)

    def count(self, show: str) -> int:
        """Classes that pass a filter."""
        if show == MISLED:
            return int((self.table["flagged"] > 0).sum())
        return int((self.table["state"] == ClassState.FAILED).sum()) if show == FAILED else len(self.table)

    def state(self, index: int) -> str:
        """How a class stands, as a sign and a word."""
        outcome = self.outcomes[index]
        if outcome.state != ClassState.DONE:
            return _STATES[outcome.state]
        if outcome.flags:
            return "! misled"
        return "? cannot tell" if outcome.report is None else "✓ not misled"

    def judged(self, index: int) -> int:
        """How many flagged groups of a class people have given a verdict on."""
        outcome = self.outcomes[index]
        if not outcome.flags:
            return 0
        verdicts = cached.verdicts().for_run(outcome.run, outcome.report)
        return sum(bool(flag.group in verdicts and verdicts[flag.group].judgement) for flag in outcome.flags)
