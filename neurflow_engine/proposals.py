"""Wordings that were proposed for neuron groups and how they scored, as they came: kept, never changed. Imports neither torch nor timm.

In: what a language model or the offline description said of a group, what a scorer found of a wording. Out: all of it again by run, in the
database of the labels; which wording is in force is the labels' matter.
"""

from dataclasses import asdict, dataclass, fields
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sql

from neurflow_engine.errors import InputError
from neurflow_engine.sql_store import JSON, SqlStore, UtcDateTime, checked_json, checked_text, choice

SENTENCE_LENGTH = 600  # characters of a sentence, a combination or a reason


class Outcome(StrEnum):
    """What came of asking for a wording."""

    PROPOSED = "proposed"
    NO_COMMON_FEATURE = "no common feature"
    FAILED = "failed"


@dataclass(frozen=True)
class Proposal:
    """One answer to the question what a group shows."""

    run_id: str
    group_id: str
    proposer: str  # name of the model, or of the offline description
    outcome: Outcome
    name: str | None  # the wording; None unless one was proposed
    sentence: str | None  # the visible features, in one sentence
    combination: str | None  # how the lower features combine
    confidence: float | None  # 0..1, what the proposer said of itself
    reason: str | None  # why it failed, in one clear sentence
    evidence: dict  # what the proposer saw, JSON-ready: ids of patches, names of lower groups, hash of the prompt, model
    tokens_in: int  # 0 for what cost nothing: offline descriptions and replies that were kept
    tokens_out: int
    time: datetime  # aware, UTC


@dataclass(frozen=True)
class Score:
    """How well one wording tells what fires a group from what does not."""

    run_id: str
    group_id: str
    text: str  # the wording
    scorer: str  # name of the model, or of the offline description
    figures: dict  # JSON-ready; see scoring.py
    time: datetime  # aware, UTC


def _table(name: str, metadata: sql.MetaData, *columns: sql.Column) -> sql.Table:
    """A table of what was said about groups, one row each time, with these columns beside its number, run, group and time."""
    known_by = (
        sql.Column("id", sql.Integer, primary_key=True),
        sql.Column("run_id", sql.String, nullable=False, index=True),
        sql.Column("group_id", sql.String, nullable=False),
    )
    return sql.Table(name, metadata, *known_by, *columns, sql.Column("time", UtcDateTime, nullable=False))


class ProposalStore(SqlStore):
    """Proposals and scores in the SQL database of the labels; many threads and processes may add to it at once."""

    noun = "label"
    metadata = sql.MetaData()
    _proposals = _table(
        "proposals",
        metadata,
        sql.Column("proposer", sql.String, nullable=False),
        sql.Column("outcome", choice(Outcome, 32), nullable=False),
        sql.Column("name", sql.String),
        sql.Column("sentence", sql.String),
        sql.Column("combination", sql.String),
        sql.Column("confidence", sql.Double),
        sql.Column("reason", sql.String),
        sql.Column("evidence", JSON, nullable=False),
        sql.Column("tokens_in", sql.Integer, nullable=False),
        sql.Column("tokens_out", sql.Integer, nullable=False),
    )
    _scores = _table(
        "label_scores",
        metadata,
        sql.Column("text", sql.String, nullable=False),
        sql.Column("scorer", sql.String, nullable=False),
        sql.Column("figures", JSON, nullable=False),
    )

    def add(self, proposal: Proposal) -> None:
        """Keep a proposal.

        Raises InputError when a text is unusable (more than one line, too long, nothing visible), the confidence lies outside of 0..1, a
        name comes without being proposed or the other way round, a failure has no reason, or the evidence is not JSON.
        """
        if (proposal.name is not None) != (proposal.outcome == Outcome.PROPOSED):
            raise InputError(f"A proposal has a name if its outcome is “proposed”, got {proposal.name!r} with “{proposal.outcome}”.")
        if proposal.outcome == Outcome.FAILED and proposal.reason is None:
            raise InputError(f"A proposal for group {proposal.group_id} that failed needs its reason.")
        if proposal.confidence is not None and not 0 <= proposal.confidence <= 1:
            raise InputError(f"The confidence of a proposal is 0 to 1, got {proposal.confidence}.")
        texts = {"sentence": "The sentence", "combination": "The combination", "reason": "The reason"}
        checked = {name: checked_text(text, what, SENTENCE_LENGTH) for name, what in texts.items() if (text := getattr(proposal, name))}
        name = proposal.name and checked_text(proposal.name)
        evidence = checked_json(proposal.evidence, "The evidence of a proposal")
        proposer = checked_text(proposal.proposer, "The proposer")
        values = asdict(proposal) | dict.fromkeys(texts) | checked | {"name": name, "evidence": evidence, "proposer": proposer}
        with self._speaking(), self._engine.begin() as connection:
            connection.execute(sql.insert(self._proposals).values(**values))

    def for_run(self, run_id: str) -> dict[str, list[Proposal]]:
        """All proposals for a run by group id, newest first."""
        found: dict[str, list[Proposal]] = {}
        for proposal in self._newest_first(self._proposals, Proposal, run_id):
            found.setdefault(proposal.group_id, []).append(proposal)
        return found

    def add_score(self, score: Score) -> None:
        """Keep a score. Raises InputError when the wording is unusable or the figures are not JSON (NaN is not; None is)."""
        values = {
            "text": checked_text(score.text),
            "scorer": checked_text(score.scorer, "The scorer"),
            "figures": checked_json(score.figures, "The figures of a score"),
        }
        with self._speaking(), self._engine.begin() as connection:
            connection.execute(sql.insert(self._scores).values(**asdict(score) | values))

    def scores(self, run_id: str) -> dict[str, dict[str, Score]]:
        """The newest score of every wording of a run, by group id and wording."""
        found: dict[str, dict[str, Score]] = {}
        for score in self._newest_first(self._scores, Score, run_id):
            found.setdefault(score.group_id, {}).setdefault(score.text, score)
        return found

    def newest(self, run_id: str) -> tuple[int, int]:
        """Numbers of the newest proposal and score of a run, 0 where there is none: they change whenever something is added."""
        with self._reading() as connection:
            newest = (sql.select(sql.func.max(table.c.id)).where(table.c.run_id == run_id) for table in (self._proposals, self._scores))
            return tuple(connection.execute(query).scalar() or 0 for query in newest)

    def _newest_first(self, table: sql.Table, kind: type, run_id: str) -> list:
        columns = (table.c[field.name] for field in fields(kind))
        with self._reading() as connection:
            rows = connection.execute(sql.select(*columns).where(table.c.run_id == run_id).order_by(table.c.id.desc())).all()
        return [kind(**row._mapping) for row in rows]
