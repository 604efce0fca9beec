"""Neuron groups of a layer and the edges between neighbouring layers.

In: explained neurons with their semantic groups and representations. Out: the nodes and the weighted edges of the circuit.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from neurflow_engine.concepts import clustered
from neurflow_engine.records import Edge, Member, Neuron, NeuronGroup, SemanticGroup

_MEMBERS = 4  # semantic groups per neuron group, on average, that the smallest number of groups must leave


def neuron_groups(
    layer: str, neurons: Sequence[Neuron], representations: np.ndarray, min_groups: int, max_groups: int
) -> tuple[NeuronGroup, ...]:
    """Ward clusters of all semantic groups of a layer, the number chosen by silhouette (NeurFlow, section 3.3).

    Args:
        neurons: the explained neurons of the layer.
        representations: (n_semantic_groups, n_features), in the order of the neurons and their semantic groups.
        min_groups: smallest number of groups tried where the layer has at least four times as many semantic groups, else fewer; with
            ``max_groups`` the same it is the number. The silhouette alone likes to say two, object and background, which tells little.
        max_groups: largest number of groups tried.

    Returns:
        Groups in order of first appearance; their ids hold this order until ``ranked`` gives them their place.
    """
    semantic_groups = [group for neuron in neurons for group in neuron.semantic_groups]
    fewest = min_groups if min_groups == max_groups else max(2, min(min_groups, len(semantic_groups) // _MEMBERS))
    clustering = clustered(representations, range(fewest, max_groups + 1))
    return tuple(
        _neuron_group(f"{layer}/{number}", layer, clustering.members(number), semantic_groups, representations, clustering.silhouettes)
        for number in range(clustering.n_clusters)
    )


def logit_group(layer: str, neuron: Neuron) -> NeuronGroup:
    """The single group at the top of the circuit: the class logit with all its semantic groups."""
    return group_of(f"{layer}/0", layer, neuron.semantic_groups)


def group_of(group_id: str, layer: str, members: Sequence[SemanticGroup]) -> NeuronGroup:
    """A neuron group of these semantic groups, whose likeness is not known."""
    return _neuron_group(group_id, layer, np.arange(len(members)), members, None, None)


def _neuron_group(
    group_id: str,
    layer: str,
    rows: np.ndarray,
    semantic_groups: Sequence[SemanticGroup],
    representations: np.ndarray | None,
    silhouettes: np.ndarray | None,
) -> NeuronGroup:
    members = [semantic_groups[row] for row in rows]
    activations = defaultdict(list)
    for member in members:
        activations[member.neuron].extend([member.mean_activation] * len(member.patches))
    neurons = tuple(sorted(activations))
    return NeuronGroup(
        id=group_id,
        layer=layer,
        members=tuple(Member(member.neuron, member.id) for member in members),
        patches=_typical_patches(members, representations, rows),
        neurons=neurons,
        mean_activations=tuple(float(np.mean(activations[neuron])) for neuron in neurons),
        silhouette=None if silhouettes is None else float(silhouettes[rows].mean()),
    )


def _typical_patches(members: Sequence[SemanticGroup], representations: np.ndarray | None, rows: np.ndarray) -> tuple[int, ...]:
    """Patches of the members: those shared by most members first, then those that are strongest in the most central members."""
    centrality = np.zeros(len(members))
    if representations is not None:
        own = representations[rows]
        centrality = np.linalg.norm(own - own.mean(0), axis=1)
    shared: dict[int, int] = defaultdict(int)
    best: dict[int, tuple[int, float]] = {}
    for member, distance in zip(members, centrality, strict=True):
        for rank, patch in enumerate(member.patches):
            shared[patch] += 1
            best[patch] = min(best.get(patch, (rank, distance)), (rank, distance))
    return tuple(sorted(shared, key=lambda patch: (-shared[patch], best[patch], patch)))


def edges_between(
    lower_groups: Sequence[NeuronGroup], lower: Sequence[Neuron], upper_groups: Sequence[NeuronGroup], upper: Sequence[Neuron]
) -> tuple[Edge, ...]:
    """Edges from the groups of a layer to those of the next layer up.

    ``weight``: each member of the upper group (a semantic group with weights over its core neurons) gives the weight of a core neuron
    to the lower groups in which that neuron takes part, divided by the share of the neuron's patches in each; the weight of the edge is
    the mean over members, so it lies in -1..1, neither the sizes of the groups nor neurons in two groups count twice, and the absolute
    weights into one group sum to at most 1. ``raw_weight``: the plain sum over members and neurons, as published.
    """
    share_of = shares(lower_groups, lower)
    weights_of = {group.id: (neuron.core, group.weights) for neuron in upper for group in neuron.semantic_groups}
    edges = []
    for upper_group in upper_groups:
        weight, raw = defaultdict(float), defaultdict(float)
        for member in upper_group.members:
            for index, value in zip(*weights_of[member.semantic_group], strict=True):
                for group_id, share in share_of.get(index, {}).items():
                    weight[group_id] += share * value / len(upper_group.members)
                    raw[group_id] += value
        edges += [Edge(group.id, upper_group.id, weight[group.id], raw[group.id]) for group in lower_groups if group.id in raw]
    return tuple(edges)


def shares(groups: Sequence[NeuronGroup], neurons: Sequence[Neuron]) -> Mapping[int, Mapping[str, float]]:
    """For each neuron the groups it takes part in, with the share of its patches in each; the shares of a neuron sum to 1."""
    n_patches = {group.id: len(group.patches) for neuron in neurons for group in neuron.semantic_groups}
    found: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for group in groups:
        for member in group.members:
            found[member.neuron][group.id] += n_patches[member.semantic_group]
    return {neuron: {group: n / sum(own.values()) for group, n in own.items()} for neuron, own in found.items()}


def ranked(
    layer: str, groups: Sequence[NeuronGroup], edges: Sequence[Edge], importance: Mapping[str, float]
) -> tuple[tuple[NeuronGroup, ...], tuple[Edge, ...], dict[str, float]]:
    """Renumber the groups of a layer from the most to the least important, and the edges with them.

    Args:
        importance: of the groups of the layer above, by id; the logit has 1.

    Returns:
        Groups and edges with their final ids, and the importance of each group.
    """
    total = importance_of(groups, edges, importance)
    order = sorted(groups, key=lambda group: -total[group.id])
    new_id = {group.id: f"{layer}/{place}" for place, group in enumerate(order)}
    return (
        tuple(replace(group, id=new_id[group.id]) for group in order),
        tuple(replace(edge, source=new_id[edge.source]) for edge in edges),
        {new_id[group.id]: total[group.id] for group in order},
    )


def importance_of(groups: Sequence[NeuronGroup], edges: Sequence[Edge], importance: Mapping[str, float]) -> dict[str, float]:
    """Importance of the groups of a layer by id: sum over the groups above of |edge weight| times their ``importance``."""
    total = dict.fromkeys((group.id for group in groups), 0.0)
    for edge in edges:
        total[edge.source] += abs(edge.weight) * importance[edge.target]
    return total
