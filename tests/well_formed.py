"""What every circuit has to satisfy, whatever the model and the images were."""

import json
from collections import Counter
from itertools import pairwise

import pytest


def assert_well_formed(circuit: dict, tau: int, top_k: int, size: tuple[int, int]) -> None:
    """Check the JSON of ``circuit RUN --json``.

    Args:
        size: (height, width) of the preprocessed images.
    """
    json.dumps(circuit, allow_nan=False)
    layers = circuit["layers"]
    assert layers[0] == "logits"
    assert len(set(layers)) == len(layers)
    _assert_patches(circuit["patches"], size)
    _assert_neurons(circuit, tau, top_k)
    _assert_groups(circuit)
    _assert_edges(circuit)
    assert min(circuit["seconds"].values()) >= 0
    assert set(layers) <= set(circuit["seconds"])
    assert circuit["peak_memory_mb"] > 0


def _assert_patches(patches, size):
    assert [patch["id"] for patch in patches] == list(range(len(patches)))
    assert len({(patch["image"], *patch["box"]) for patch in patches}) == len(patches)
    for patch in patches:
        left, top, right, bottom = patch["box"]
        assert 0 <= left < right <= size[1], patch
        assert 0 <= top < bottom <= size[0], patch


def _assert_neurons(circuit, tau, top_k):
    layers, neurons, n_patches = circuit["layers"], circuit["neurons"], len(circuit["patches"])
    of_layer = {layer: [neuron for neuron in neurons if neuron["layer"] == layer] for layer in layers}
    assert sum(map(len, of_layer.values())) == len(neurons)
    assert [neuron["layer"] for neuron in neurons] == [layer for layer in layers for _ in of_layer[layer]]
    assert [neuron["index"] for neuron in of_layer["logits"]] == [circuit["target"]["index"]]
    for upper, lower in pairwise(layers):
        core = {index for neuron in of_layer[upper] for index in neuron["core"]}
        assert [neuron["index"] for neuron in of_layer[lower]] == sorted(core), lower
    for neuron in neurons:
        name = (neuron["layer"], neuron["index"])
        patches, core, groups = neuron["patches"], neuron["core"], neuron["semantic_groups"]
        assert len(patches) == len(set(patches)) == min(top_k, n_patches), name
        assert set(patches) <= set(range(n_patches)), name
        assert len(core) == len(set(core)) <= tau, name
        assert bool(core) == (neuron["layer"] != layers[-1]), name
        assert 1 <= len(groups) <= 5, name
        assert sorted(patch for group in groups for patch in group["patches"]) == sorted(patches), name
        for number, group in enumerate(groups):
            assert group["id"] == f"{neuron['layer']}:{neuron['index']}.{number}"
            assert group["patches"], group["id"]
            assert [entry["index"] for entry in group["core"]] == core, group["id"]
            if core:
                assert sum(abs(entry["weight"]) for entry in group["core"]) == pytest.approx(1), group["id"]


def _assert_groups(circuit):
    semantic_groups = {group["id"]: (neuron, group) for neuron in circuit["neurons"] for group in neuron["semantic_groups"]}
    members = Counter()
    for layer in circuit["layers"]:
        groups = [group for group in circuit["groups"] if group["layer"] == layer]
        assert [group["id"] for group in groups] == [f"{layer}/{number}" for number in range(len(groups))]
        assert groups, layer
        assert layer != "logits" or len(groups) == 1
        for group in groups:
            held = set()
            for member in group["members"]:
                neuron, semantic_group = semantic_groups[member["semantic_group"]]
                assert (neuron["layer"], neuron["index"]) == (layer, member["neuron"])
                members[member["semantic_group"]] += 1
                held |= set(semantic_group["patches"])
            assert sorted(group["patches"]) == sorted(held), group["id"]
            assert group["label"] is None or isinstance(group["label"], str)
    assert sum(len(group["patches"]) > 0 for group in circuit["groups"]) == len(circuit["groups"])
    assert members == Counter(semantic_groups.keys())  # each takes part in exactly one group


def _assert_edges(circuit):
    layer_of = {group["id"]: group["layer"] for group in circuit["groups"]}
    neighbours = {(lower, upper) for upper, lower in pairwise(circuit["layers"])}
    into = Counter()
    for edge in circuit["edges"]:
        assert (layer_of[edge["source"]], layer_of[edge["target"]]) in neighbours, edge
        into[edge["target"]] += abs(edge["weight"])
    assert len({(edge["source"], edge["target"]) for edge in circuit["edges"]}) == len(circuit["edges"])
    assert max(into.values()) <= 1 + 1e-9
    lowest = circuit["layers"][-1]
    assert {group for group, layer in layer_of.items() if layer != lowest} == set(into)  # all but the lowest are built from something
