"""Evidence: what a name rests on is frozen with it, and a name follows its group into a re-run as far as the group is the same."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest

from neurflow_engine.errors import InputError
from neurflow_engine.evidence import carry_over, freeze, group_hash, overlap
from neurflow_engine.labels import LabelStore
from neurflow_engine.pipeline import analyze
from neurflow_engine.proposals import Outcome, Proposal, Score
from neurflow_engine.records import Circuit, Member, NeuronGroup, Patch, ProbeImage

NOW = datetime(2026, 11, 23, 13, 55, 52, tzinfo=UTC)


@dataclass(frozen=True)
class Analysis:
    """As much of a run as labels need."""

    id: str
    circuit: Circuit


def circuit(groups, images="abcdefgh", reverse=False):
    """A circuit of one layer from {group number: (neurons, patches)}; patch n shows image n, and each image is one patch."""
    order = list(reversed(images)) if reverse else list(images)  # ids say nothing: another run numbers its images anew
    return Circuit(
        target_index=0,
        target_name="owl",
        layers=("logits", "layer"),
        images=tuple(ProbeImage(number, f"owl/{name}.png", 0, 0.9, 3.0) for number, name in enumerate(order)),
        patches=tuple(Patch(number, number, (0, 0, 16, 16)) for number in range(len(order))),
        neurons=(),
        groups=tuple(
            NeuronGroup(
                id=f"layer/{number}",
                layer="layer",
                members=tuple(Member(neuron, f"layer:{neuron}.0") for neuron in neurons),
                patches=tuple(order.index(name) for name in patches),
                neurons=tuple(neurons),
                mean_activations=(1.0,) * len(neurons),
                silhouette=None,
            )
            for number, (neurons, patches) in groups.items()
        ),
        edges=(),
    )


OLD = circuit({0: ((1, 2, 3, 4), "abcd"), 1: ((5, 6), "ef"), 2: ((7, 8, 9), "gh")})


@pytest.fixture
def store(tmp_path):
    store = LabelStore(f"sqlite:///{tmp_path / 'labels.sqlite'}")
    yield store
    store.close()


def named(store, run="old"):
    """The groups 0 and 1 are approved, 2 has only a proposal."""
    old = Analysis(run, OLD)
    for group, name in (("layer/0", "orange panel"), ("layer/1", "date stamp")):
        store.decide(run, group, "approved", "ana", 0, freeze(old, group), name)
    store.propose(run, "layer/2", "snow", "model x")
    return old


def test_the_hash_of_a_group_depends_on_its_members_and_patches_only():
    same = circuit({3: ((4, 3, 2, 1), "dcba")}, reverse=True)
    assert group_hash(same, "layer/3") == group_hash(OLD, "layer/0")
    others = [circuit({0: ((1, 2, 3), "abcd")}), circuit({0: ((1, 2, 3, 4), "abce")}), circuit({0: ((1, 2, 3, 5), "abcd")})]
    moved = replace(OLD, patches=(Patch(0, 0, (0, 0, 16, 15)), *OLD.patches[1:]))
    hashes = {group_hash(other, "layer/0") for other in (OLD, moved, *others)}
    assert len(hashes) == 5


def test_overlap_is_the_smaller_share_of_common_neurons_and_patches():
    new = circuit(
        {0: ((1, 2, 3, 5), "abcd"), 1: ((1, 2, 3, 4), "abef"), 2: ((1, 2, 3, 4), "efgh"), 3: ((1, 2, 3, 4), "abcd")}, reverse=True
    )
    found = [overlap(OLD, "layer/0", new, group.id) for group in new.groups]
    assert found == pytest.approx([3 / 5, 2 / 6, 0, 1])
    deeper = replace(new, groups=(replace(new.groups[3], layer="another"),))
    assert overlap(OLD, "layer/0", deeper, "layer/3") == 0


def test_patches_count_only_where_both_runs_saw_the_image():
    half = circuit({0: ((1, 2, 3, 4), "abxy")}, images="abxy")
    assert overlap(OLD, "layer/0", half, "layer/0") == 1
    assert overlap(OLD, "layer/0", circuit({0: ((1, 2), "xy")}, images="xy"), "layer/0") == 0.5  # other images: the neurons decide


def test_frozen_evidence_holds_the_group_the_proposal_and_the_score():
    proposal = Proposal("old", "layer/1", "model x", Outcome.PROPOSED, "stamp", None, None, 0.5, None, {"prompt": "ab12"}, 10, 2, NOW)
    score = Score("old", "layer/1", "stamp", "model y", {"f1": {"value": 0.5}}, NOW)
    frozen = freeze(Analysis("old", OLD), "layer/1", proposal, score)
    assert frozen["group_hash"] == group_hash(OLD, "layer/1")
    assert (frozen["run"], frozen["layer"], frozen["neurons"]) == ("old", "layer", [5, 6])
    assert frozen["patches"] == [["owl/e.png", 0, 0, 16, 16], ["owl/f.png", 0, 0, 16, 16]]
    assert frozen["proposal"]["evidence"] == {"prompt": "ab12"}
    assert (frozen["proposal"]["proposer"], frozen["proposal"]["outcome"], frozen["proposal"]["confidence"]) == ("model x", "proposed", 0.5)
    assert frozen["score"] == {"text": "stamp", "scorer": "model y", "figures": {"f1": {"value": 0.5}}, "time": NOW.isoformat()}


def test_a_name_follows_an_unchanged_group_under_another_number(store):
    old, new = named(store), Analysis("new", circuit({0: ((5, 6), "ef"), 1: ((1, 2, 3, 4), "abcd")}, reverse=True))
    first, second = carry_over(old, new, store, "bob")
    assert (first.source, first.target, first.overlap, first.reason) == ("layer/0", "layer/1", 1.0, None)
    assert (second.source, second.target) == ("layer/1", "layer/0")
    label = store.get("new", "layer/1")
    assert label == first.label
    assert (label.text, label.state, label.author) == ("orange panel", "approved", "bob")
    assert label.evidence["group_hash"] == group_hash(OLD, "layer/0")
    assert label.evidence["carried"] == {
        "run": "old", "group": "layer/0", "author": "ana", "state": "approved", "overlap": 1.0, "same_group": True,
    }  # fmt: skip
    assert [change.action for change in store.history("new", "layer/1")] == ["carried"]
    assert store.get("old", "layer/0").text == "orange panel"


@pytest.mark.parametrize(
    ("patches", "state"),
    [("abcde", "approved"), ("abef", "needs review"), ("aefgh", "needs review"), ("efgh", None)],
)
def test_a_name_falls_back_to_needs_review_where_too_little_of_its_group_is_left(store, patches, state):
    old, new = named(store), Analysis("new", circuit({0: ((1, 2, 3, 4), patches)}))
    carried = carry_over(old, new, store, "bob")[0]
    if state is None:
        assert carried.target is None
        assert carried.label is None
        assert (
            carried.reason == "“orange panel”, the name of group layer/0 of run old, was not carried over: no group of run new is like it."
        )
        assert store.for_run("new") == {}
    else:
        assert (carried.label.text, carried.label.state) == ("orange panel", state)
        assert carried.label.evidence["carried"]["same_group"] is False
        assert store.decide("new", "layer/0", "approved", "ana", 1).state == "approved"


def test_of_two_names_for_one_group_the_one_with_more_in_common_is_carried(store):
    old, new = named(store), Analysis("new", circuit({0: ((1, 2, 3, 4, 5, 6), "abcdef")}))
    taken, left = carry_over(old, new, store, "bob")
    assert taken.target == "layer/0"
    assert (left.source, left.target, left.label, left.overlap) == ("layer/1", None, None, pytest.approx(1 / 3))
    assert left.reason.endswith("was not carried over: the group most like it, layer/0, got the name of one that is more so.")
    assert store.get("new", "layer/0").text == "orange panel"


def test_a_name_is_never_carried_over_a_decision(store):
    old, new = named(store), Analysis("new", OLD)
    store.edit("new", "layer/0", "wing", "cid", 0)
    store.propose("new", "layer/1", "digits", "model x")
    kept, carried = carry_over(old, new, store, "bob")
    assert kept.label is None
    assert "layer/0 of run new is edited already" in kept.reason
    assert store.get("new", "layer/0").text == "wing"
    assert (carried.label.text, carried.label.proposed, carried.label.version) == ("date stamp", "digits", 2)
    assert [record.label for record in carry_over(old, new, store, "bob")] == [None, None]  # twice changes nothing
    with pytest.raises(InputError, match="from one run to another, got old twice"):
        carry_over(old, old, store, "bob")


def test_names_survive_a_second_analysis_of_the_demo(demo_run, demo_config, demo_workspace, store):
    """The real thing: the same model and images with longer concepts, so that groups change a little or a lot."""
    for group in demo_run.circuit.groups:
        store.decide(demo_run.id, group.id, "approved", "ana", 0, freeze(demo_run, group.id), f"name of {group.id}")
    again = analyze(demo_config.model_copy(update={"top_k": 12}), demo_workspace)
    assert again.id != demo_run.id
    carried = carry_over(demo_run, again, store, "bob")
    assert [record.source for record in carried] == [group.id for group in demo_run.circuit.groups]
    labels = store.for_run(again.id)
    assert labels == {record.target: record.label for record in carried if record.label}
    for record in carried:
        if record.label:
            assert record.label.text == f"name of {record.source}"
            assert record.label.state == ("approved" if record.overlap >= 0.5 else "needs review")
            assert record.overlap == overlap(demo_run.circuit, record.source, again.circuit, record.target)
    assert {label.state for label in labels.values()} == {"approved", "needs review"}
