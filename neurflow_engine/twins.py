"""Random twins of a silencer: what its effect is compared with before anybody believes it.

In: a silencer and what its layer gives. Out: silencers that do as much to other neurons, or along other directions.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from neurflow_engine.controls import matched_neurons
from neurflow_engine.records import Damping, Filling, Layer, Silencer
from neurflow_engine.silencing import damped, excess

_POSITIONS = 1024  # of an image, at most: enough to tell how much a damping does


def random_twins(silencer: Silencer, sample: np.ndarray, shown: np.ndarray, draws: int, seed: int) -> list[Silencer]:
    """Silencers that do as much as the given one, to other neurons or in another direction.

    Of a filling: as many other neurons that are about as active, filled in the same way (zero, or their means). Of a damping: dampings
    along random directions, random sums of what right images have more or less than their mean, so that they are as likely as the
    layer's own variation. Each begins at the level that as many positions surpass, rises from there as steeply beside how much it varies,
    and takes away as much in the mean of these positions, whatever the images.

    Args:
        sample: (n_images, n_channels), pooled activations of right images.
        shown: (n_images, n_positions, n_channels), positions of images that the silencer works on: what "as much" is measured on.
    """
    if isinstance(silencer, Filling):
        mean = sample.mean(0)
        filled = np.any(silencer.values)
        sets = matched_neurons(silencer.neurons, mean, draws, seed)
        return [Filling(silencer.layer, drawn, tuple(float(mean[one]) if filled else 0.0 for one in drawn)) for drawn in sets]
    some = np.linspace(0, shown.shape[1] - 1, min(shown.shape[1], _POSITIONS)).astype(int)
    positions = torch.from_numpy(shown[:, some])
    layer = Layer(silencer.layer, positions.shape[2], 2, tuple(positions.shape[1:]))
    share = float((excess(layer, positions, silencer) > 0).float().mean())
    amount = _amount(layer, positions, silencer)
    random = np.random.default_rng(seed).standard_normal((draws, len(sample))) @ (sample - sample.mean(0))
    random = (random / np.maximum(np.linalg.norm(random, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    spread = _compared(positions, silencer).std()
    twins = (replace(silencer, filter=one, pattern=one, variation=None, least=None) for one in random)
    return [_acting_as_much(layer, positions, twin, share, spread, amount) for twin in twins]


def _acting_as_much(layer: Layer, positions: Tensor, damping: Damping, share: float, spread: float, amount: float) -> Damping:
    """The damping with the level and the size at which it changes a share of the positions by a mean amount."""
    compared = _compared(positions, damping)
    scale = np.float32(spread / compared.std() if compared.std() > 0 else 1.0)
    damping = replace(damping, filter=damping.filter * scale, level=float(np.quantile(compared * scale, 1 - share)))
    own = _amount(layer, positions, damping)
    return replace(damping, pattern=damping.pattern * np.float32(amount / own if own > 0 else 0.0))


def _compared(positions: Tensor, damping: Damping) -> np.ndarray:
    """What is compared with the level: s of every position, or one for every image."""
    scores = (positions @ torch.from_numpy(damping.filter)).numpy()
    return scores if damping.scope == "position" else damping.of_images(scores)


def _amount(layer: Layer, positions: Tensor, damping: Damping) -> float:
    """How far a damping moves the positions (n_images, n_positions, n_channels) of a layer, in the mean."""
    return float((positions - damped(layer, positions, damping)).norm(dim=-1).mean())
