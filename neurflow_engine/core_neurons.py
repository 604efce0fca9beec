"""Core neurons: the few neurons of the next lower layer on which a neuron's concept rests.

In: integrated gradients of one neuron over its concept. Out: the core set, and its signed share in each semantic group.
"""

from collections.abc import Sequence

import numpy as np


def core_neurons(attributions: np.ndarray, tau: int) -> tuple[int, ...]:
    """The heuristic core set of NeurFlow (Cao et al. 2025, section 3.2): the ``tau`` largest mean absolute attributions.

    Args:
        attributions: (n_patches of V_a, n_channels), integrated gradients averaged over positions, signed.
        tau: largest number of core neurons, >= 1.

    Returns:
        Channel indices, strongest first; the lower index first where two are equal. Channels without any attribution are left out.
    """
    scores = np.abs(attributions).mean(0)
    strongest = np.argsort(-scores, kind="stable")[:tau]
    return tuple(int(index) for index in strongest if scores[index] > 0)


def is_close_call(attributions: np.ndarray, tau: int, tolerance: float) -> bool:
    """Whether the weakest core neuron and the strongest that is none differ by less than ``tolerance`` of the former.

    Args:
        attributions: (n_patches of V_a, n_channels), as for ``core_neurons``.
    """
    scores = np.sort(np.abs(attributions).mean(0))[::-1]
    return len(scores) > tau and bool(scores[tau - 1] - scores[tau] < tolerance * scores[tau - 1])


def core_weights(attributions: np.ndarray, core: Sequence[int]) -> tuple[float, ...]:
    """How much each core neuron drives a semantic group, -1..1; absolute values sum to 1 (or are all 0 without attribution).

    Args:
        attributions: (n_patches of the semantic group, n_channels), signed.
        core: channel indices; the weights come in the same order.
    """
    signed = attributions[:, list(core)].astype(np.float64).mean(0)
    total = np.abs(signed).sum()
    return tuple(float(weight) for weight in (signed / total if total > 0 else signed))
