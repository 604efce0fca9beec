"""Proposals and scores: everything that was said about a group is kept as it came, and nothing is changed."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from neurflow_engine.errors import InputError
from neurflow_engine.labels import LabelStore
from neurflow_engine.proposals import Outcome, Proposal, ProposalStore, Score

STORE = ProposalStore  # of the fixture "store"
RUN, GROUP = "demo-1", "blocks.3/2"
NOW = datetime(2026, 11, 23, 13, 55, 52, 584220, UTC)
PROPOSAL = Proposal(
    run_id=RUN,
    group_id=GROUP,
    proposer="model x",
    outcome=Outcome.PROPOSED,
    name="orange wing panel",
    sentence="An orange panel beside a white one.",
    combination="Orange (1) on the left of white (2).",
    confidence=0.7,
    reason=None,
    evidence={"patches": [3, 1], "lower": {"blocks.2/0": "orange"}, "prompt": "ab12", "base_url_host": None},
    tokens_in=812,
    tokens_out=40,
    time=NOW,
)
FAILED = replace(
    PROPOSAL,
    outcome=Outcome.FAILED,
    name=None,
    sentence=None,
    combination=None,
    confidence=None,
    reason="The reply was empty.",
    tokens_out=0,
)
SCORE = Score(RUN, GROUP, "orange wing panel", "model y", {"f1": {"value": 0.8, "low": 0.6, "high": 0.9}, "baselines": None}, NOW)


def test_a_run_without_proposals_has_none(store):
    assert store.for_run(RUN) == {}
    assert store.scores(RUN) == {}


def test_proposals_come_back_as_they_were_newest_first(store, database):
    none = replace(PROPOSAL, outcome=Outcome.NO_COMMON_FEATURE, name=None, time=NOW - timedelta(days=1))
    elsewhere = replace(PROPOSAL, group_id="blocks.3/0", name="<script>alert(1)</script>", sentence="![x](http://leak.example/a.png)")
    for proposal in (PROPOSAL, FAILED, elsewhere, none, replace(PROPOSAL, run_id="another")):
        store.add(proposal)
    again = ProposalStore(database)
    assert again.for_run(RUN) == {GROUP: [none, FAILED, PROPOSAL], "blocks.3/0": [elsewhere]}
    assert again.for_run(RUN)[GROUP][0].time.utcoffset() == timedelta(0)
    again.close()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": None}, "A proposal has a name if its outcome is “proposed”, got None"),
        ({"outcome": Outcome.NO_COMMON_FEATURE}, "got 'orange wing panel' with “no common feature”"),
        ({"name": "x" * 121}, "121 characters, at most 120"),
        ({"name": "two\nlines"}, "control characters"),
        ({"sentence": "x" * 601}, "The sentence has 601 characters, at most 600"),
        ({"combination": "a\x00b"}, "The combination is one line without control characters"),
        ({"confidence": 1.5}, "The confidence of a proposal is 0 to 1, got 1.5"),
        ({"confidence": float("nan")}, "The confidence of a proposal is 0 to 1, got nan"),
        ({"outcome": Outcome.FAILED, "name": None}, "blocks.3/2 that failed needs its reason"),
        ({"evidence": {"share": float("inf")}}, "The evidence of a proposal cannot be kept as JSON"),
        ({"proposer": " "}, "The proposer needs at least one visible character"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_an_unusable_proposal_is_refused_and_nothing_is_written(store, change, why):
    with pytest.raises(InputError, match=why):
        store.add(replace(PROPOSAL, **change))
    assert store.for_run(RUN) == {}


def test_the_newest_score_of_every_wording_counts(store):
    later = replace(SCORE, figures={"f1": {"value": 0.5}}, scorer="model z")
    other = replace(SCORE, text="object")
    for score in (SCORE, other, later, replace(SCORE, run_id="another")):
        store.add_score(score)
    assert store.scores(RUN) == {GROUP: {"orange wing panel": later, "object": other}}
    assert store.scores("nothing") == {}


def test_the_newest_numbers_change_whenever_something_is_added_to_the_run(store):
    seen = [store.newest(RUN)]
    for add in (lambda: store.add(PROPOSAL), lambda: store.add_score(SCORE), lambda: store.add(FAILED), lambda: store.add_score(SCORE)):
        add()
        seen.append(store.newest(RUN))
    store.add(replace(PROPOSAL, run_id="another"))
    assert seen[0] == (0, 0)
    assert len(set(seen)) == 5
    assert store.newest(RUN) == seen[-1]


@pytest.mark.parametrize(("change", "why"), [({"figures": {"f1": float("nan")}}, "The figures of a score"), ({"text": ""}, "visible")])
def test_an_unusable_score_is_refused_and_nothing_is_written(store, change, why):
    with pytest.raises(InputError, match=why):
        store.add_score(replace(SCORE, **change))
    assert store.scores(RUN) == {}


def test_what_many_threads_add_at_once_all_arrives(store):
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda number: store.add(replace(PROPOSAL, tokens_in=number)), range(120)))
    assert sorted(proposal.tokens_in for proposal in store.for_run(RUN)[GROUP]) == list(range(120))


def test_proposals_lie_beside_the_labels_in_one_database(tmp_path, monkeypatch):
    monkeypatch.delenv("NEURFLOW_DATABASE_URL", raising=False)
    label = LabelStore.for_workspace(tmp_path).propose(RUN, GROUP, PROPOSAL.name, PROPOSAL.proposer)
    ProposalStore.for_workspace(tmp_path).add(PROPOSAL)
    assert [path.name for path in tmp_path.glob("*.sqlite")] == ["labels.sqlite"]
    assert LabelStore.for_workspace(tmp_path).get(RUN, GROUP) == label
