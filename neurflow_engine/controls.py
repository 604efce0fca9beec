"""Random controls: what an effect is compared with before anybody believes it. Imports neither torch nor timm.

In: some neurons or a silencer, and how active all neurons of their layer are; figures of random draws. Out: equally many other neurons
that are about as active, silencers that do as much elsewhere, and the interval in which the draws lie.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from neurflow_engine.records import Filling, Silencer

MATCHED_AMONG = 10  # a control neuron is drawn among this many neurons of nearest mean activation


def matched_neurons(neurons: Sequence[int], mean_activations: np.ndarray, draws: int, seed: int) -> list[tuple[int, ...]]:
    """Random sets of other neurons of a layer, as many and about as active as the given ones.

    Each neuron is replaced by one drawn among the ``MATCHED_AMONG`` nearest in mean activation that are neither given nor drawn yet.
    A set is smaller than asked for where the layer has too few other neurons.

    Args:
        mean_activations: (n_channels,) over all patches of the run.
    """
    generator = np.random.default_rng(seed)
    others = np.setdiff1d(np.arange(len(mean_activations)), neurons)
    sets = []
    for _ in range(draws):
        free, drawn = others.copy(), []
        for neuron in generator.permutation(list(neurons)):
            if not len(free):
                break
            nearest = np.argsort(np.abs(mean_activations[free] - mean_activations[neuron]), kind="stable")[:MATCHED_AMONG]
            place = generator.choice(nearest)
            drawn.append(int(free[place]))
            free = np.delete(free, place)
        sets.append(tuple(sorted(drawn)))
    return sets


def random_twins(silencer: Silencer, sample: np.ndarray, draws: int, seed: int) -> list[Silencer]:
    """Silencers that do as much as the given one, to other neurons or in another direction.

    Of a filling: as many other neurons that are about as active, filled in the same way (zero, or their means). Of a damping: at the same
    places of the same images the same amount is taken away, along a random direction instead: a random sum of what right images have
    more or less than their mean, so that it is as likely as the layer's own variation.

    Args:
        sample: (n_images, n_channels), pooled activations of right images.
    """
    if isinstance(silencer, Filling):
        mean = sample.mean(0)
        filled = np.any(silencer.values)
        sets = matched_neurons(silencer.neurons, mean, draws, seed)
        return [Filling(silencer.layer, drawn, tuple(float(mean[one]) if filled else 0.0 for one in drawn)) for drawn in sets]
    generator, centred = np.random.default_rng(seed), sample - sample.mean(0)
    unit = silencer.filter / max(float(np.linalg.norm(silencer.filter)), 1e-12)

    def elsewhere(vectors: np.ndarray) -> np.ndarray:
        """As many random vectors of the same lengths, (draws, *vectors.shape)."""
        drawn = generator.standard_normal((draws, *vectors.shape[:-1], len(centred))) @ centred
        drawn -= (drawn @ unit)[..., None] * unit
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True) / np.maximum(np.linalg.norm(drawn, axis=-1, keepdims=True), 1e-12)
        return (drawn * lengths).astype(np.float32)

    twins = [replace(silencer, pattern=pattern) for pattern in elsewhere(silencer.pattern)]
    variation = silencer.variation
    if variation is None:
        return twins
    return [
        replace(twin, variation=replace(variation, writing=writing))
        for twin, writing in zip(twins, elsewhere(variation.writing), strict=True)
    ]


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and the 2.5 % and 97.5 % quantiles of some draws."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def spread(values: np.ndarray) -> dict[str, float]:
    """``interval`` as it is written in JSON: {"mean", "low", "high"}."""
    return dict(zip(("mean", "low", "high"), interval(values), strict=True))
