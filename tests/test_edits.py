"""Edits by hand: the circuit they lead to is what the engine would have computed, the run stays as it is, and every edit can be undone."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from neurflow_engine import edits
from neurflow_engine.edits import Arrangement, Edits, EditStore, edited, origins
from neurflow_engine.errors import EditConflictError, InputError
from neurflow_engine.groups import edges_between, group_of
from neurflow_engine.labels import LabelStore
from neurflow_engine.records import LOGITS, Circuit, Neuron, Patch, ProbeImage, SemanticGroup

BELOW = "blocks/1"  # a layer's name may hold a slash


def semantic(layer: str, neuron: int, number: int, patches: tuple[int, ...], weights: tuple[float, ...] = ()) -> SemanticGroup:
    return SemanticGroup(f"{layer}:{neuron}.{number}", layer, neuron, patches, 1.0 + neuron, weights)


def neuron(layer: str, index: int, core: tuple[int, ...], *parts: SemanticGroup) -> Neuron:
    return Neuron(layer, index, tuple(patch for part in parts for patch in part.patches), core, parts, 0.5, 0.0)


@pytest.fixture
def circuit() -> Circuit:
    """A logit of three neurons below it; neuron 0 has two semantic groups, which lie in two groups."""
    logit = neuron(LOGITS, 7, (0, 1, 2), semantic(LOGITS, 7, 0, (0, 1, 2), (0.5, 0.3, -0.2)))
    below = (
        neuron(BELOW, 0, (), semantic(BELOW, 0, 0, (0, 1, 2)), semantic(BELOW, 0, 1, (3,))),
        neuron(BELOW, 1, (), semantic(BELOW, 1, 0, (1, 4))),
        neuron(BELOW, 2, (), semantic(BELOW, 2, 0, (4, 5))),
    )
    parts = {part.id: part for one in below for part in one.semantic_groups}
    top = group_of(f"{LOGITS}/0", LOGITS, logit.semantic_groups)
    groups = (
        group_of(f"{BELOW}/0", BELOW, [parts[f"{BELOW}:0.0"], parts[f"{BELOW}:1.0"]]),
        group_of(f"{BELOW}/1", BELOW, [parts[f"{BELOW}:2.0"]]),
        group_of(f"{BELOW}/2", BELOW, [parts[f"{BELOW}:0.1"]]),
    )
    images = (ProbeImage(0, "a.png", 7, 0.9, 3.0),)
    patches = tuple(Patch(number, 0, (0, 0, 8, 8)) for number in range(6))
    edges = edges_between(groups, below, (top,), (logit,))
    return Circuit(7, "cat", (LOGITS, BELOW), images, patches, (logit, *below), (top, *groups), edges)


def weights(circuit: Circuit) -> dict[str, float]:
    return {edge.source: pytest.approx(edge.weight) for edge in circuit.edges}


def arranged(now: Arrangement) -> Edits:
    return Edits("run", now.pinned, now.hidden, now.made, now.said, "ana", None, 1)


def test_a_merged_group_holds_all_members_and_its_edge_is_computed_anew(circuit):
    assert weights(circuit) == {f"{BELOW}/0": 0.5 * 3 / 4 + 0.3, f"{BELOW}/1": -0.2, f"{BELOW}/2": 0.5 / 4}
    now = edits.merged(circuit, Arrangement(), [f"{BELOW}/2", f"{BELOW}/1"])
    after = edited(circuit, arranged(now))
    assert [group.id for group in after.groups] == ["logits/0", f"{BELOW}/0", f"{BELOW}/1+2"]
    group = after.group[f"{BELOW}/1+2"]
    assert group.neurons == (0, 2)
    assert set(group.patches) == {3, 4, 5}
    assert weights(after) == {f"{BELOW}/0": 0.675, f"{BELOW}/1+2": 0.125 - 0.2}
    assert origins(circuit, group) == (f"{BELOW}/1", f"{BELOW}/2")


def test_a_split_group_gives_its_weight_to_its_parts(circuit):
    now = edits.split(circuit, Arrangement(), f"{BELOW}/0", [[f"{BELOW}:1.0"], [f"{BELOW}:0.0"]])
    after = edited(circuit, arranged(now))
    assert weights(after) == {f"{BELOW}/0.1": 0.3, f"{BELOW}/0.2": 0.375, f"{BELOW}/1": -0.2, f"{BELOW}/2": 0.125}
    assert [group.id for group in after.groups_of(BELOW)] == [f"{BELOW}/0.2", f"{BELOW}/0.1", f"{BELOW}/1", f"{BELOW}/2"]  # by importance
    assert origins(circuit, after.group[f"{BELOW}/0.1"]) == (f"{BELOW}/0",)


def test_all_parts_merged_are_the_computed_group_again(circuit):
    now = edits.split(circuit, Arrangement(), f"{BELOW}/0", [[f"{BELOW}:1.0"], [f"{BELOW}:0.0"]])
    now = edits.merged(circuit, now, [f"{BELOW}/0.1", f"{BELOW}/0.2"])
    assert now.made == {}
    assert edited(circuit, arranged(now)) is circuit


def test_ids_say_what_was_done_and_never_mean_two_things(circuit):
    now = edits.merged(circuit, Arrangement(), [f"{BELOW}/1", f"{BELOW}/0"])
    members = now.made[f"{BELOW}/0+1"]
    now = edits.split(circuit, now, f"{BELOW}/0+1", [members[:1], members[1:]])
    assert set(now.made) == {f"{BELOW}/(0+1).1", f"{BELOW}/(0+1).2"}
    again = edits.split(circuit, now, f"{BELOW}/(0+1).2", [[part] for part in now.made[f"{BELOW}/(0+1).2"]])
    assert set(again.made) == {f"{BELOW}/(0+1).1", f"{BELOW}/(0+1).2.1"}  # the other part is the computed group 1
    joined = edits.merged(circuit, again, [f"{BELOW}/(0+1).1", f"{BELOW}/2"])
    assert f"{BELOW}/(0+1).1+2" in joined.made


def test_a_group_is_taken_back_with_all_that_shares_its_origins(circuit):
    now = edits.split(circuit, Arrangement(), f"{BELOW}/0", [[f"{BELOW}:1.0"], [f"{BELOW}:0.0"]])
    now = edits.merged(circuit, now, [f"{BELOW}/0.1", f"{BELOW}/1"])
    now = edits.pinned(circuit, now, f"{BELOW}/0.2", True)
    back = edits.restored(circuit, now, f"{BELOW}/0.1+1")
    assert (back.made, back.pinned) == ({}, [])


def test_a_hidden_group_is_left_out_with_its_edges_and_comes_back(circuit):
    now = edits.hidden(circuit, Arrangement(), f"{BELOW}/0", True)
    after = edited(circuit, arranged(now))
    assert f"{BELOW}/0" not in after.group
    assert weights(after) == {f"{BELOW}/1": -0.2, f"{BELOW}/2": 0.125}  # what others carry stays what it was
    assert edited(circuit, arranged(edits.hidden(circuit, now, f"{BELOW}/0", False))) is circuit


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c, now: edits.merged(c, now, [f"{BELOW}/0"]), "Between 2 and 24 groups"),
        (lambda c, now: edits.merged(c, now, [f"{BELOW}/0", f"{BELOW}/0"]), "Between 2 and 24 groups"),
        (lambda c, now: edits.merged(c, now, [f"{BELOW}/0", "logits/0"]), "Groups of layers blocks/1 and logits"),
        (lambda c, now: edits.merged(c, now, [f"{BELOW}/0", f"{BELOW}/10"]), "The circuit has no group 'blocks/1/10'. Did you mean"),
        (lambda c, now: edits.pinned(c, now, "<script>", True), "has no group '<script>'"),
        (lambda c, now: edits.hidden(c, now, "logits/0", True), "is the class itself"),
        (lambda c, now: edits.split(c, now, "logits/0", [[f"{LOGITS}:7.0"], []]), "is the class itself"),
        (lambda c, now: edits.split(c, now, f"{BELOW}/0", [[f"{BELOW}:1.0"], []]), "hold each of its 2 semantic groups once"),
        (lambda c, now: edits.split(c, now, f"{BELOW}/0", [[f"{BELOW}:1.0"], [f"{BELOW}:1.0"]]), "once"),
        (lambda c, now: edits.split(c, now, f"{BELOW}/0", [[f"{BELOW}:1.0"], [f"{BELOW}:2.0"]]), "once"),
        (lambda c, now: edits.split(c, now, f"{BELOW}/1", [[f"{BELOW}:2.0"]]), "got 1 parts"),
        (lambda c, now: edits.restored(c, now, f"{BELOW}/1"), "is as computed"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(circuit, change, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        change(circuit, Arrangement())


# with a real run


@pytest.fixture
def store(database):
    store = EditStore(database)
    yield store
    store.close()


def lower_groups(run) -> list[str]:
    return [group.id for group in run.circuit.groups_of(run.circuit.layers[-1])]


def test_edits_are_remembered_shared_and_undone_one_by_one(store, database, demo_run):
    first, second, third = lower_groups(demo_run)[:3]
    assert store.of(demo_run.id) == Edits(demo_run.id)
    store.pin(demo_run, first, "ana", 0)
    store.merge(demo_run, [first, second], "bob", 1)
    store.hide(demo_run, third, "ana", 2)
    other = EditStore(database)
    now = other.of(demo_run.id)
    other.close()
    assert (now.version, now.hidden, now.pinned, now.author, now.said) == (3, [third], [], "ana", f"hid {third}")
    assert len(edited(demo_run.circuit, now).groups) == len(demo_run.circuit.groups) - 2
    back = store.undo(demo_run.id, "cy", 3)
    assert (back.hidden, len(back.made)) == ([], 1)
    back = store.undo(demo_run.id, "cy", 4)
    assert (back.pinned, back.made) == ([first], {})
    back = store.undo(demo_run.id, "cy", 5)
    assert (back.pinned, back.changes_circuit, back.said) == ([], False, None)
    with pytest.raises(InputError, match=f"Nothing is left to undo on the circuit of run {demo_run.id}"):
        store.undo(demo_run.id, "cy", 6)
    assert [(change.author, change.action) for change in store.history(demo_run.id)] == [
        ("ana", "pinned"), ("bob", "merged"), ("ana", "hidden"), ("cy", "undone"), ("cy", "undone"), ("cy", "undone"),
    ]  # fmt: skip


def test_an_edit_of_an_older_version_is_refused_and_says_what_was_done(store, demo_run):
    first, second = lower_groups(demo_run)[:2]
    store.hide(demo_run, first, "ana", 0)
    with pytest.raises(EditConflictError, match=f"ana edited this circuit at .* UTC \\(hid {first}\\), so the change was not saved"):
        store.hide(demo_run, second, "bob", 0)
    assert store.of(demo_run.id).hidden == [first]


def test_of_many_edits_at_once_one_is_kept_and_the_others_are_told(store, demo_run):
    groups = lower_groups(demo_run)[:4]

    def hide(group):
        try:
            return store.hide(demo_run, group, "ana", 0).hidden
        except EditConflictError:
            return None

    with ThreadPoolExecutor(4) as pool:
        kept = [result for result in pool.map(hide, groups) if result]
    assert len(kept) == len(store.history(demo_run.id)) == 1
    assert store.of(demo_run.id).hidden == kept[0]


def test_edges_of_a_run_computed_anew_are_those_that_were_computed(store, demo_run):
    first, second, third = lower_groups(demo_run)[:3]
    store.merge(demo_run, [first, second], "ana", 0)
    (name,) = store.of(demo_run.id).made
    after = edited(demo_run.circuit, store.of(demo_run.id))
    assert {edge for edge in demo_run.circuit.edges if edge.source == third} == {edge for edge in after.edges if edge.source == third}
    joined = {}
    for edge in demo_run.circuit.edges:
        if edge.source in (first, second):
            joined[edge.target] = joined.get(edge.target, 0.0) + edge.weight
    assert {edge.target: pytest.approx(edge.weight) for edge in after.outputs(name)} == joined


def test_two_parts_are_suggested_that_can_be_split_and_put_together_again(store, demo_run):
    group = max(demo_run.circuit.groups_of(demo_run.circuit.layers[1]), key=lambda group: len(group.members))
    larger, smaller = edits.suggested_parts(demo_run, group)
    assert len(larger) >= len(smaller) >= 1
    now = store.split(demo_run, group.id, [larger, smaller], "ana", 0)
    assert set(now.made) == {f"{group.id}.1", f"{group.id}.2"}
    assert store.restore(demo_run, f"{group.id}.2", "ana", 1).changes_circuit is False


def test_labels_beside_the_edits_are_left_alone(store, database, demo_run):
    first, second = lower_groups(demo_run)[:2]
    labels = LabelStore(database)
    labels.edit(demo_run.id, first, "white star", "ana", 0)
    store.merge(demo_run, [first, second], "bob", 0)
    assert labels.for_run(demo_run.id)[first].text == "white star"
    labels.close()
