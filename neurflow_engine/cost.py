"""What an analysis will cost, from the speed at which the same model was evaluated on this machine. Imports neither torch nor timm.

In: an evaluation and the settings. Out: seconds and memory, to be shown before anybody waits for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from neurflow_engine.store import Evaluation

# Fitted on MobileNetV2 at 224 px and on the demo's ResNet at 128 px, two cores; in units of one forward pass of one image.
_PREFIX = 0.5  # per patch and layer step: the patches of all concepts go once more up to the cut
_PAIR = 0.15  # per (neuron, patch of its concept): backward passes at the quadrature nodes
_OVERLAP = 0.4  # distinct core neurons of many neurons, as a share of tau for each
_BASE_MB = 1050.0  # Python with torch, timm and a small model, and the attribution's gradients
_BATCH = 16  # patches in one forward pass
_TENSORS = 48  # of the largest stage's size: what is alive inside its widest block, and what the allocator keeps


@dataclass(frozen=True)
class Cost:
    """A prediction; right within about a factor of two."""

    seconds: float
    memory_mb: float
    n_patches: int


def predict(
    evaluation: Evaluation,
    n_images: int,
    layers: Sequence[str],
    tau: int = 16,
    top_k: int = 50,
    granularities: Sequence[float] = (1.0, 0.5, 0.25),
) -> Cost:
    """Predict the cost of analysing ``n_images`` probe images at ``layers`` (without the logits, deepest first)."""
    height, width = evaluation.manifest["model"]["preprocessing"]["input_size"]
    n_patches = n_images * sum(_windows(height, part) * _windows(width, part) for part in granularities)
    channels = {place["name"]: place["n_channels"] for place in evaluation.places}
    largest = max((prod(place["shape"]) for place in evaluation.places), default=0)
    n_neurons, pairs = 1.0, 0.0
    for layer in layers:
        pairs += n_neurons * min(top_k, n_patches)
        n_neurons = min(channels.get(layer, 1 << 10), max(tau, _OVERLAP * tau * n_neurons))
    units = n_patches * (1 + _PREFIX * len(layers)) + _PAIR * pairs
    activations = n_patches * sum(channels.get(layer, 1 << 10) for layer in layers) * 4
    batch = _BATCH * 4 * _TENSORS * largest
    images = n_images * 3 * height * width * 4
    return Cost(units * evaluation.seconds_per_image, _BASE_MB + (activations + batch + images) / (1 << 20), n_patches)


def _windows(side: int, part: float) -> int:
    window = max(1, int(part * side + 1e-6))
    return (side - window) // max(1, window // 2) + 1
