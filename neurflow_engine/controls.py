"""Random controls: what an effect is compared with before anybody believes it. Imports neither torch nor timm.

In: some neurons or a silencer, and how active all neurons of their layer are; figures of random draws. Out: equally many other neurons
that are about as active, silencers that do as much elsewhere, and the interval in which the draws lie.
"""

from collections.abc import Sequence

import numpy as np

from neurflow_engine.records import Damping, Filling, Silencer

_POSITIONS = 1024  # of an image, at most: enough to tell how much a damping does
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


def random_twins(silencer: Silencer, sample: np.ndarray, shown: np.ndarray, draws: int, seed: int) -> list[Silencer]:
    """Silencers that do as much as the given one, to other neurons or in another direction.

    Of a filling: as many other neurons that are about as active, filled in the same way (zero, or their means). Of a damping: dampings
    along random directions, random sums of what right images have more or less than their mean, so that they are as likely as the
    layer's own variation. Each begins at the level that as many positions surpass, and takes away as much in the mean.

    Args:
        sample: (n_images, n_channels), pooled activations of right images.
        shown: (n_images, n_positions, n_channels), positions of images that the silencer works on: what "as much" is measured on.
    """
    if isinstance(silencer, Filling):
        mean = sample.mean(0)
        filled = np.any(silencer.values)
        sets = matched_neurons(silencer.neurons, mean, draws, seed)
        return [Filling(silencer.layer, drawn, tuple(float(mean[one]) if filled else 0.0 for one in drawn)) for drawn in sets]
    shown = shown[:, np.linspace(0, shown.shape[1] - 1, min(shown.shape[1], _POSITIONS)).astype(int)]
    excess = _excess(shown @ silencer.filter, silencer.level, silencer.scope)
    share, amount = float((excess > 0).mean()), float((excess * np.linalg.norm(_taken(silencer, shown), axis=-1)).mean())
    random = np.random.default_rng(seed).standard_normal((draws, len(sample))) @ (sample - sample.mean(0))
    random = (random / np.maximum(np.linalg.norm(random, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    return [_acting_as_much(silencer, direction, shown @ direction, share, amount) for direction in random]


def _acting_as_much(damping: Damping, direction: np.ndarray, scores: np.ndarray, share: float, amount: float) -> Damping:
    """A damping along a unit direction that changes a share of the positions by a mean amount; their scores are (n_images, n_positions)."""
    compared = scores.mean(1) if damping.scope == "image" else scores
    level = float(np.quantile(compared, 1 - share))
    excess = float(_excess(scores, level, damping.scope).mean())
    pattern = direction * (amount / excess if excess > 0 else 0.0)
    return Damping(damping.layer, direction, pattern.astype(np.float32), level, damping.scope)


def _excess(scores: np.ndarray, level: float, scope: str) -> np.ndarray:
    """How far scores (n_images, n_positions) lie above the level, of the image as a whole in scope "image"."""
    return np.maximum(0.0, (scores.mean(1, keepdims=True) if scope == "image" else scores) - level)


def _taken(damping: Damping, shown: np.ndarray) -> np.ndarray:
    """What a damping takes away for each unit above its level, at positions (n_images, n_positions, n_channels)."""
    if damping.variation is None:
        return np.broadcast_to(damping.pattern, shown.shape)
    there = shown - damping.variation.usual
    return damping.pattern + there @ damping.variation.reading.T @ damping.variation.writing


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and the 2.5 % and 97.5 % quantiles of some draws."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def spread(values: np.ndarray) -> dict[str, float]:
    """``interval`` as it is written in JSON: {"mean", "low", "high"}."""
    return dict(zip(("mean", "low", "high"), interval(values), strict=True))
