"""A circuit built again: from all of its images it is the same, from several parts together it is what each part alone gives."""

import pytest

from neurflow_engine.errors import DataError
from neurflow_engine.evaluation import classifier_of
from neurflow_engine.progress import Silent
from neurflow_engine.rebuilding import halves, rebuilt
from neurflow_engine.stability import stability
from neurflow_engine.store import Run


@pytest.fixture(scope="module")
def classifier(demo_run):
    return classifier_of(demo_run, "cpu")


def built(run, classifier, image_sets, folder):
    with Silent().stage("rebuild", None) as tick:
        return rebuilt(run, classifier, image_sets, folder, tick)


def described(circuit):
    groups = {group.id: (group.neurons, group.patches) for group in circuit.groups}
    return groups, {(edge.source, edge.target): pytest.approx(edge.weight, abs=0.02) for edge in circuit.edges}


def test_halves_are_seeded_and_as_large_as_they_say():
    drawn = halves(9, 20, seed=3)
    assert drawn == halves(9, 20, seed=3) != halves(9, 20, seed=4)
    assert all(len(set(half)) == 4 and set(half) <= set(range(9)) for half in drawn)
    assert set().union(*drawn) == set(range(9))
    assert halves(3, 20, seed=3) == []


def test_from_all_images_everything_returns(demo_run, classifier, tmp_path):
    (again,) = built(demo_run, classifier, [range(len(demo_run.circuit.images))], tmp_path)
    returning = stability(demo_run.circuit, [again])
    assert set(returning["groups"].values()) == {1.0}
    # bfloat16 alone, as here, may move a core neuron that hardly counts
    assert sum(returning["edges"].values()) >= 0.9 * len(demo_run.circuit.edges)


def test_parts_together_give_what_each_gives_alone_and_only_of_their_own_patches(demo_run, classifier, tmp_path):
    parts = [tuple(range(6)), tuple(range(6, 12))]
    together = built(demo_run, classifier, parts, tmp_path)
    for part, circuit in zip(parts, together, strict=True):
        (alone,) = built(demo_run, classifier, [part], tmp_path)
        assert described(circuit) == described(alone)
        assert {circuit.patches[patch].image for group in circuit.groups for patch in group.patches} <= set(part)
    assert [len(circuit.neuron["logits", circuit.target_index].patches) for circuit in together] == [5, 5]  # half of the run's 10
    assert together[0].groups != together[1].groups
    for layer in demo_run.circuit.layers:
        assert len(together[0].groups_of(layer)) == len(demo_run.circuit.groups_of(layer))


def test_an_image_that_is_gone_is_named(demo_run, classifier, tmp_path):
    class Elsewhere(Run):
        data_root = tmp_path

    with pytest.raises(DataError, match=demo_run.circuit.images[0].path):
        built(Elsewhere(demo_run.folder), classifier, [(0, 1)], tmp_path)
