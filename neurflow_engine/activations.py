"""One pass over the patches: pooled activations of all chosen layers at once.

In: a classifier, preprocessed images, their patches. Out: an array (n_patches, n_channels) per layer.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from neurflow_engine.images import crop_patches
from neurflow_engine.layers import pooled
from neurflow_engine.models import Classifier
from neurflow_engine.progress import Stage
from neurflow_engine.records import Layer, Patch
from neurflow_engine.tracing import record

BATCH = 16  # images or patches in one forward pass: on a CPU more is slower, as activations no longer fit its caches, and takes memory


def in_batches(items: Sequence, size: int) -> Iterator[Sequence]:
    """Consecutive slices of at most ``size`` items."""
    return (items[start : start + size] for start in range(0, len(items), size))


def patch_inputs(classifier: Classifier, images: Tensor, patches: Sequence[Patch]) -> Tensor:
    """Patches at the model's input size, on its device: (n_patches, channels, height, width)."""
    return crop_patches(images, patches, classifier.preprocessing.input_size).to(classifier.device)


def pooled_activations(
    classifier: Classifier, images: Tensor, patches: Sequence[Patch], layers: Sequence[Layer], tick: Stage
) -> dict[str, np.ndarray]:
    """Activation of every neuron of the layers on every patch, by layer name: (n_patches, n_channels), float32.

    Args:
        images: (n_images, channels, height, width), preprocessed; patches refer to them by position.
        tick: advanced by the number of patches done.
    """
    by_name = {layer.name: layer for layer in layers}
    found = {layer.name: np.empty((len(patches), layer.n_channels), np.float32) for layer in layers}
    done = 0
    for batch in in_batches(patches, BATCH):
        inputs = patch_inputs(classifier, images, batch)
        outputs = record(classifier, inputs, list(by_name), keep=lambda name, output: pooled(by_name[name], output).float())
        for name, output in outputs.items():
            found[name][done : done + len(batch)] = output.cpu().numpy()
        done += len(batch)
        tick.advance(len(batch))
    return found
