"""One pass over patches: pooled activations of all layers, and full maps where the next stage needs them again.

In: a classifier, images and patches. Out: ``Rows`` on disk, (n_patches, n_channels) per layer, or arrays for a few images.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neurflow_engine.batching import BATCH, Capacity, fitting
from neurflow_engine.images import crop_patches
from neurflow_engine.layers import pooled
from neurflow_engine.models import Classifier
from neurflow_engine.progress import Stage
from neurflow_engine.records import Layer, Patch
from neurflow_engine.rows import Rows
from neurflow_engine.tracing import record, trace

_IN_FLIGHT = 6  # outputs of the widest module that are alive at once in a forward pass, about


def forward_capacity(classifier: Classifier, room: int) -> Capacity:
    """How many images go through the network at once within ``room`` bytes."""
    channels, size = classifier.preprocessing.in_chans, classifier.preprocessing.input_size
    widest = 0

    def note(name: str, output: object) -> None:
        nonlocal widest
        if isinstance(output, Tensor):
            widest = max(widest, output.nbytes // max(1, len(output)))

    trace(classifier, torch.zeros((2, channels, *size), device=classifier.device), keep=note)
    return Capacity(classifier.device, room, _IN_FLIGHT * widest)


@dataclass(frozen=True)
class ProbePatches:
    """The patches of the probe images, cut when they are asked for; the images lie on disk, preprocessed."""

    classifier: Classifier
    images: Rows  # (n_images, channels, height, width)
    patches: tuple[Patch, ...]

    def __len__(self) -> int:
        return len(self.patches)

    def inputs(self, ids: Sequence[int]) -> Tensor:
        """The chosen patches at the model's input size, on its device: (len(ids), channels, height, width)."""
        cropped = self.cropped(ids, self.classifier.preprocessing.input_size)
        return cropped.to(self.classifier.device, memory_format=torch.channels_last)

    def cropped(self, ids: Sequence[int], size: tuple[int, int]) -> Tensor:
        """The chosen patches at ``size`` (height, width), on the CPU: (len(ids), channels, *size)."""
        chosen = [self.patches[number] for number in ids]
        held = sorted({patch.image for patch in chosen})
        place = {image: position for position, image in enumerate(held)}
        moved = [Patch(patch.id, place[patch.image], patch.box) for patch in chosen]
        return crop_patches(torch.from_numpy(self.images.read(held)), moved, size)

    def of_images(self) -> list[list[int]]:
        """Ids of the patches of each image."""
        found = defaultdict(list)
        for patch in self.patches:
            found[patch.image].append(patch.id)
        return [found[image] for image in range(len(self.images))]


def survey(
    probe: ProbePatches, ids: Sequence[int], activations: Mapping[Layer, Rows], maps: Mapping[Layer, Rows], capacity: Capacity, tick: Stage
) -> None:
    """Send the patches ``ids`` through the network once and write their rows.

    Args:
        activations: where the pooled activation of every neuron goes, (n_patches, n_channels), float32.
        maps: where the full output goes, (n_patches, *layer.shape), for the layers from which gradients will start.
        tick: advanced by the number of patches done.
    """
    by_name = {layer.name: layer for layer in (*activations, *maps)}
    whole = {layer.name for layer in maps}

    def keep(name: str, output: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        # copied, because the module that follows may work in place
        full = output.float().cpu().contiguous().numpy().copy() if name in whole else None
        return pooled(by_name[name], output).cpu().numpy().copy(), full

    for batch, found in fitting(ids, capacity, lambda batch: record(probe.classifier, probe.inputs(batch), list(by_name), keep=keep)):
        for layer, rows in activations.items():
            rows.write(batch, found[layer.name][0])
        for layer, rows in maps.items():
            rows.write(batch, found[layer.name][1])
        tick.advance(len(batch))


def pooled_activations(
    classifier: Classifier, images: Tensor, patches: Sequence[Patch], layers: Sequence[Layer], tick: Stage
) -> dict[str, np.ndarray]:
    """Activation of every neuron of the layers on patches of a few images, by layer name: (n_patches, n_channels), float32.

    Args:
        images: (n_images, channels, height, width), preprocessed; patches refer to them by position.
        tick: advanced by the number of patches done.
    """
    by_name = {layer.name: layer for layer in layers}
    found = {layer.name: np.empty((len(patches), layer.n_channels), np.float32) for layer in layers}
    capacity = Capacity(classifier.device, BATCH, 1)
    done = 0

    def pooled_outputs(batch: Sequence[Patch]) -> dict[str, Tensor]:
        inputs = crop_patches(images, batch, classifier.preprocessing.input_size).to(classifier.device, memory_format=torch.channels_last)
        return record(classifier, inputs, list(by_name), keep=lambda name, output: pooled(by_name[name], output))

    for batch, outputs in fitting(patches, capacity, pooled_outputs):
        for name, output in outputs.items():
            found[name][done : done + len(batch)] = output.cpu().numpy()
        done += len(batch)
        tick.advance(len(batch))
    return found
