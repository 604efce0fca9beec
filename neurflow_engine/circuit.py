"""From attributions to a circuit: semantic groups of each neuron, neuron groups of each layer, edges between neighbouring layers.

In: concepts, pooled activations and attributions of the explained neurons. Out: the ``Circuit``. Knows no network.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from neurflow_engine.attribution import Attribution
from neurflow_engine.concepts import SEMANTIC_GROUPS, clustered
from neurflow_engine.core_neurons import core_neurons, core_weights
from neurflow_engine.groups import edges_between, logit_group, neuron_groups, ranked
from neurflow_engine.records import LOGITS, Circuit, Edge, Neuron, NeuronGroup, Patch, ProbeImage, SemanticGroup


def explained(
    layer: str,
    index: int,
    patches: tuple[int, ...],
    strength: np.ndarray,
    vectors: np.ndarray,
    attribution: Attribution | None,
    tau: int,
) -> tuple[Neuron, list[np.ndarray]]:
    """One neuron with its core neurons and semantic groups, and the representation of each semantic group.

    Args:
        patches: the concept of the neuron.
        strength: (n_patches of the concept,), activation of the neuron.
        vectors: (n_patches of the concept, n_features), pooled activations of the next lower layer, by which the concept is divided.
        attribution: one row per patch of the concept; None in the shallowest layer.
    """
    clustering = clustered(vectors, SEMANTIC_GROUPS)
    channels = attribution.channels if attribution else None
    core = core_neurons(channels, tau) if attribution else ()
    semantic_groups, representations = [], []
    for number in range(clustering.n_clusters):
        rows = clustering.members(number)
        own = tuple(patches[row] for row in rows)
        semantic_groups.append(
            SemanticGroup(
                id=f"{layer}:{index}.{number}",
                layer=layer,
                neuron=index,
                patches=own,
                mean_activation=float(strength[rows].mean()),
                weights=core_weights(channels[rows], core) if attribution else (),
            )
        )
        representations.append(vectors[rows].mean(0))
    gap = attribution.relative_gap if attribution else None
    return Neuron(layer, index, patches, core, tuple(semantic_groups), clustering.silhouette, gap), representations


def assembled(
    found: Mapping[str, tuple[Sequence[Neuron], np.ndarray]],
    target_name: str,
    images: Sequence[ProbeImage],
    patches: Sequence[Patch],
    n_groups: Callable[[str], tuple[int, int]],
) -> Circuit:
    """Group the explained neurons of all layers and join the groups; those of a layer are numbered by their importance for the one above.

    Args:
        found: by layer, logits first, then deepest to shallowest: the explained neurons, and the representations of their semantic
            groups, (n_semantic_groups, n_features).
        n_groups: least and most neuron groups of a layer, given its name.
    """
    groups: list[NeuronGroup] = []
    edges: list[Edge] = []
    neurons: list[Neuron] = []
    above: tuple[Sequence[NeuronGroup], Sequence[Neuron]] = ((), ())
    importance: dict[str, float] = {}
    for layer, (own, representations) in found.items():
        if layer == LOGITS:
            grouped, importance = (logit_group(LOGITS, own[0]),), {f"{LOGITS}/0": 1.0}
        else:
            grouped = neuron_groups(layer, own, representations, *n_groups(layer))
            grouped, between, importance = ranked(layer, grouped, edges_between(grouped, own, *above), importance)
            edges += between
        groups += grouped
        neurons += own
        above = (grouped, own)
    target = found[LOGITS][0][0].index
    return Circuit(target, target_name, tuple(found), tuple(images), tuple(patches), tuple(neurons), tuple(groups), tuple(edges))
