"""How often the parts of a circuit return when it is built again from other images. Imports neither torch nor timm.

In: a circuit, and circuits of the same class and layers built on parts of its probe images. Out: the share of rebuilds in which each
group and each edge returns.
"""

from collections.abc import Sequence

import numpy as np

from neurflow_engine.records import LOGITS, Circuit, NeuronGroup

SAME_GROUP = 0.7  # cosine similarity from which a group counts as the same
SAME_WEIGHT = 0.5  # a matched edge has at least this share of the weight, and at most its inverse


def stability(circuit: Circuit, rebuilt: Sequence[Circuit]) -> dict:
    """Share of the rebuilds in which each group and each edge returns, 0..1 (after Hennig 2007).

    Returns:
        {"draws": number of rebuilds, "groups": {id: share}, "edges": {"source->target": share}}; the logit's group is left out.
    """
    groups = {group.id: 0 for group in circuit.groups if group.layer != LOGITS}
    edges = {f"{edge.source}->{edge.target}": 0 for edge in circuit.edges}
    for other in rebuilt:
        found_groups, found_edges = returned(circuit, other)
        for counts, found in ((groups, found_groups), (edges, found_edges)):
            for name in found & counts.keys():
                counts[name] += 1
    draws = len(rebuilt)
    shares = [{name: round(count / draws, 4) if draws else 0.0 for name, count in counts.items()} for counts in (groups, edges)]
    return {"draws": draws, "groups": shares[0], "edges": shares[1]}


def returned(circuit: Circuit, rebuilt: Circuit) -> tuple[set[str], set[str]]:
    """Ids of the groups, and "source->target" of the edges, that are there again in a rebuilt circuit.

    A group returns when the most similar group of its layer is at least ``SAME_GROUP`` similar (as clusters are looked for in resampled
    data by Hennig 2007). An edge returns when both of its ends do and the edge between them has the same sign and between half and double
    the weight.
    """
    match: dict[str, str] = {}
    for layer in circuit.layers:
        own, others = circuit.groups_of(layer), rebuilt.groups_of(layer)
        similar = similarities(circuit, own, rebuilt, others)
        for group, row in zip(own, similar, strict=True):
            if row.max() >= SAME_GROUP or layer == LOGITS:  # there is one class logit: it is always the same
                match[group.id] = others[int(row.argmax())].id
    weights = {(edge.source, edge.target): edge.weight for edge in rebuilt.edges}
    edges = set()
    for edge in circuit.edges:
        again = weights.get((match.get(edge.source), match.get(edge.target)), 0.0)
        if again * edge.weight > 0 and SAME_WEIGHT <= abs(again / edge.weight) <= 1 / SAME_WEIGHT:
            edges.add(f"{edge.source}->{edge.target}")
    return set(match), edges


def similarities(circuit: Circuit, groups: Sequence[NeuronGroup], rebuilt: Circuit, others: Sequence[NeuronGroup]) -> np.ndarray:
    """Cosine similarity of groups of a layer, 0..1, as vectors over its neurons that hold each neuron's share of patches in the group.

    Returns:
        (n_groups, n_others).
    """
    left, right = _profiles(circuit, groups), _profiles(rebuilt, others)
    neurons = sorted({neuron for profile in (*left, *right) for neuron in profile})
    vectors = [np.array([[profile.get(neuron, 0) for neuron in neurons] for profile in side], float) for side in (left, right)]
    unit = [side.reshape(-1, len(neurons)) / np.maximum(np.linalg.norm(side.reshape(-1, len(neurons)), axis=1, keepdims=True), 1e-12)
            for side in vectors]  # fmt: skip
    return unit[0] @ unit[1].T


def _profiles(circuit: Circuit, groups: Sequence[NeuronGroup]) -> list[dict[int, int]]:
    """Number of patches with which each neuron takes part in each group."""
    n_patches = {group.id: len(group.patches) for neuron in circuit.neurons for group in neuron.semantic_groups}
    found: list[dict[int, int]] = []
    for group in groups:
        profile: dict[int, int] = {}
        for member in group.members:
            profile[member.neuron] = profile.get(member.neuron, 0) + n_patches[member.semantic_group]
        found.append(profile)
    return found
