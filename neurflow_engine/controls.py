"""Random controls: what an effect is compared with before anybody believes it. Imports neither torch nor timm.

In: some neurons, and how active all neurons of their layer are; figures of random draws. Out: equally many other neurons that are about
as active, and the interval in which the draws lie.
"""

from collections.abc import Sequence

import numpy as np

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


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and the 2.5 % and 97.5 % quantiles of some draws."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def spread(values: np.ndarray) -> dict[str, float]:
    """``interval`` as it is written in JSON: {"mean", "low", "high"}."""
    return dict(zip(("mean", "low", "high"), interval(values), strict=True))
