"""Proposals and scores made by hand: as a language model and a scorer could have left them."""

import shutil
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from neurflow_engine.labels import LabelStore
from neurflow_engine.proposals import Outcome, Proposal, ProposalStore, Score
from neurflow_engine.records import LOGITS
from neurflow_engine.store import Run

MODEL, SCORER, RUNNER_UP = "vision-9b", "vision-9b-scorer", "bright corner"
TIME = datetime(2026, 1, 1, 10, 2, tzinfo=UTC)


def with_more_groups(run: Run, workspace: Path, at_least: int) -> Run:
    """A copy of a run in which groups are divided in two by their patches until there are enough of them to review."""
    folder = shutil.copytree(run.folder, workspace / "runs" / run.id)
    groups = list(run.circuit.groups)
    for place, group in enumerate([group for group in groups if group.layer != LOGITS]):
        if len(groups) > at_least:
            break
        half = len(group.patches) // 2
        groups[groups.index(group)] = replace(group, patches=group.patches[:half])
        groups.append(replace(group, id=f"{group.layer}/{100 + place}", patches=group.patches[half:]))
    pq.write_table(pa.Table.from_pylist([asdict(group) for group in groups]), folder / "groups.parquet")
    return Run(folder)


def interval(value: float, width: float = 0.08) -> dict:
    return {"value": value, "low": max(0.0, value - width), "high": min(1.0, value + width)}


def names(run: Run) -> dict[str, str]:
    """The wording on the table of every group that has one: all but the last two."""
    groups = [group.id for group in run.circuit.groups if group.layer != LOGITS]
    words = ("white star", "dark stripes", "round red edge", "blue sky above", "date stamp in a corner")
    return {group: f"{words[place % len(words)]} {place}" for place, group in enumerate(groups[:-2])}


def figures(run: Run, group: str, f1: float, supported: bool) -> dict:
    """Figures of a wording; three patches fit while the group is silent, one fires it and does not fit."""
    own = run.circuit.group[group].patches
    silent = [patch.id for patch in run.circuit.patches if patch.id not in own][:12]
    shown = [{"patch": patch, "presence": 0.9, "fires": True, "fits": place > 0} for place, patch in enumerate(own[-6:])]
    shown += [{"patch": patch, "presence": 0.1, "fires": False, "fits": place < 3} for place, patch in enumerate(silent)]
    return {
        "n": len(shown),
        "n_fires": 6,
        "f1": interval(f1),
        "auprc": interval(0.8),
        "correlation": interval(0.6),
        "baselines": {
            "constant": {"text": "object", "f1": 0.5, "auprc": 0.33, "correlation": 0.0},
            "shuffled": {"text": "dark stripes", "f1": 0.3, "auprc": 0.31, "correlation": -0.05},
            "runner_up": {"text": RUNNER_UP, "f1": 0.44, "auprc": 0.5, "correlation": 0.2},
        },
        "supported": supported,
        "reason": "It beats every baseline." if supported else "It is no better than “object”.",
        "patches": shown,
    }


def write(run: Run, workspace) -> dict[str, str]:
    """Put them where the workspace keeps them: the first is supported, every third is not, the last two groups have no proposal."""
    labels, proposals = LabelStore.for_workspace(workspace), ProposalStore.for_workspace(workspace)
    found = names(run)
    groups = [group.id for group in run.circuit.groups if group.layer != LOGITS]

    def proposal(group: str, outcome: Outcome, name: str | None, reason: str | None = None) -> Proposal:
        said = ("Bright shapes on a dark ground, mostly in a corner.", "The lower star and the lower edge.") if name else (None, None)
        evidence = {"patches": list(run.circuit.group[group].patches[:4]), "prompt": "0" * 64, "model": MODEL}
        evidence |= {"runner_up": RUNNER_UP} if name else {}
        return Proposal(run.id, group, MODEL, outcome, name, *said, 0.8 if name else None, reason, evidence, 900, 60, TIME)

    for place, (group, name) in enumerate(found.items()):
        proposals.add(proposal(group, Outcome.PROPOSED, name))
        labels.propose(run.id, group, name, MODEL)
        supported = place % 3 != 1
        proposals.add_score(Score(run.id, group, name, SCORER, figures(run, group, 0.9 - 0.02 * place, supported), TIME))
    proposals.add(proposal(groups[-2], Outcome.NO_COMMON_FEATURE, None))
    proposals.add(proposal(groups[-1], Outcome.FAILED, None, "The reply was cut off after 400 tokens, twice."))
    labels.close()
    proposals.close()
    return found
