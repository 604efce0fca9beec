"""What happens when neurons are set to zero: measured in the network, many sets of neurons side by side.

In: a finished run, its model, sets of neurons. Out: predictions on the probe images, or activations of an upper neuron on patches. What
lies below the layer runs once per batch of images; only what lies above it runs again for every set.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from neurflow_engine.batching import BATCH, in_batches
from neurflow_engine.errors import DataError
from neurflow_engine.images import crop_patches, open_image
from neurflow_engine.layers import pooled
from neurflow_engine.models import Classifier
from neurflow_engine.progress import Stage
from neurflow_engine.records import LOGITS, Layer, Patch
from neurflow_engine.store import Run
from neurflow_engine.tracing import Segment, edited, record

_HELD_BYTES = 400 << 20  # of outputs at a cut that are kept; beyond, they are computed again when they are needed
_HELD_IMAGES = 64
_VARIANTS = 64  # silenced copies in one forward pass of what lies above a cut


class Knockouts:
    """A run with its model, ready to silence any neurons of its layers."""

    def __init__(self, run: Run, classifier: Classifier):
        self.run, self.classifier = run, classifier
        self._transform = classifier.preprocessing.transform()
        self._images: dict[int, Tensor] = {}

    def images(self, ids: Sequence[int]) -> Tensor:
        """At most ``BATCH`` probe images, preprocessed, on the model's device: (n_images, channels, height, width); raises DataError."""
        for number in ids:
            if number not in self._images:
                while len(self._images) >= _HELD_IMAGES:
                    del self._images[next(iter(self._images))]
                path = self.run.data_root / self.run.circuit.images[number].path
                if not path.is_file():
                    raise DataError(f"Image {path} of run {self.run.id} is no longer there; put it back, or analyse the class again.")
                self._images[number] = self._transform(open_image(path, self.classifier.preprocessing.in_chans))
            self._images[number] = self._images.pop(number)  # the one used last is dropped last
        images = torch.stack([self._images[number] for number in ids])
        return images.to(self.classifier.device, memory_format=torch.channels_last)

    def patches(self, ids: Sequence[int]) -> Tensor:
        """Patches by id at the model's input size, on its device: (n_patches, channels, height, width)."""
        patches = [self.run.circuit.patches[number] for number in ids]
        places = {image: place for place, image in enumerate(dict.fromkeys(patch.image for patch in patches))}
        moved = [Patch(patch.id, places[patch.image], patch.box) for patch in patches]
        cropped = crop_patches(self.images(list(places)), moved, self.classifier.preprocessing.input_size)
        return cropped.to(memory_format=torch.channels_last)

    def segment(self, lower: str, upper: str) -> Segment:
        """The network between two layers."""
        channels, size = self.classifier.preprocessing.in_chans, self.classifier.preprocessing.input_size
        sample = torch.randn((3, channels, *size), generator=torch.Generator().manual_seed(0)).to(self.classifier.device)
        return Segment(self.classifier, lower, upper, sample)

    def logits(self, image_ids: Sequence[int]) -> np.ndarray:
        """Logits of the intact network, (n_images, n_classes)."""
        outputs = [record(self.classifier, self.images(batch), [LOGITS])[LOGITS] for batch in in_batches(image_ids, BATCH)]
        return torch.cat(outputs).float().cpu().numpy()

    def silenced_logits(
        self,
        image_ids: Sequence[int],
        kept: Mapping[str, np.ndarray],
        tick: Stage,
        summary: Callable[[np.ndarray], np.ndarray] = lambda logits: logits,
    ) -> np.ndarray:
        """Logits when some neurons of one or more layers are zero, for several variants of what is kept.

        Args:
            kept: by layer, (n_variants, n_channels) of bool: False where a neuron is zero at every position.
            tick: advanced by one per image and variant.
            summary: what to hold of logits (n, n_classes), one entry per row: all of them take much room where there are many classes.

        Returns:
            (n_variants, n_images, ...), without a summary (n_variants, n_images, n_classes).
        """
        lowest = [name for name in self.run.layers if name in kept][-1]
        segment, above = self.segment(lowest, LOGITS), [name for name in kept if name != lowest]
        n_variants = len(kept[lowest])
        found, done = None, 0
        for batch in in_batches(image_ids, BATCH):
            images = self.images(batch)
            cut = record(self.classifier, images, [lowest])[lowest]
            context = segment.context(images) if segment.needs_context else None
            for rows in in_batches(range(n_variants), max(1, _VARIANTS // len(batch))):
                masks = {name: torch.as_tensor(values[list(rows)]).repeat_interleave(len(batch), 0) for name, values in kept.items()}
                with ExitStack() as stack, torch.no_grad():
                    for name in above:
                        edit = lambda output, name=name: quieted(self.run.layers[name], output, masks[name])  # noqa: E731, B023
                        stack.enter_context(edited(self.classifier, name, edit))
                    variants = quieted(self.run.layers[lowest], torch.cat([cut] * len(rows)), masks[lowest])
                    value = summary(segment.repeated(variants, context, len(rows)).float().cpu().numpy())
                if found is None:
                    found = np.empty((n_variants, len(image_ids), *value.shape[1:]), np.float32)
                found[list(rows), done : done + len(batch)] = value.reshape(len(rows), len(batch), *value.shape[1:])
                tick.advance(len(rows) * len(batch))
            done += len(batch)
        return found


class Step:
    """One step of the circuit: what the neurons of the upper layer do when neurons of the next lower layer are zero."""

    def __init__(self, knockouts: Knockouts, upper: str, lower: str, tick: Stage):
        """``tick``: of the stage that asks, which may be cancelled between two passes."""
        self._knockouts, self.lower, self.upper = knockouts, knockouts.run.layers[lower], knockouts.run.layers[upper]
        self._segment, self._tick = knockouts.segment(lower, upper), tick
        self._held: dict[int, Tensor] = {}  # output of the lower layer by patch, with its axis of images: joining keeps the memory format

    def forget(self) -> None:
        """Drop what is held of the lower layer where that has become much; for the turn from one upper neuron to the next."""
        if sum(output.nbytes for output in self._held.values()) > _HELD_BYTES // 2:
            self._held.clear()

    def activations(self, neurons: Sequence[int], patches: Sequence[int], silenced: Sequence[Sequence[int]]) -> np.ndarray:
        """Activations of neurons of the upper layer on patches, once for each set of lower neurons that are zero meanwhile.

        Returns:
            (n_sets, n_patches, n_neurons).
        """
        kept = np.ones((len(silenced), self.lower.n_channels), bool)
        for row, indices in enumerate(silenced):
            kept[row, list(indices)] = False
        found = np.empty((len(silenced), len(patches), len(neurons)), np.float32)
        order = sorted(range(len(patches)), key=lambda place: patches[place])  # patches of one image lie together
        for places in in_batches(order, BATCH):
            cut, context = self._at_cut([patches[place] for place in places])
            for rows in in_batches(range(len(silenced)), max(1, _VARIANTS // len(places))):
                masks = torch.as_tensor(kept[list(rows)]).repeat_interleave(len(places), 0)
                with torch.no_grad():
                    variants = quieted(self.lower, torch.cat([cut] * len(rows)), masks)
                    output = pooled(self.upper, self._segment.repeated(variants, context, len(rows)))[:, list(neurons)]
                found[np.ix_(list(rows), places)] = output.float().cpu().numpy().reshape(len(rows), len(places), -1)
                self._tick.advance(0)
        return found

    def _at_cut(self, patches: Sequence[int]) -> tuple[Tensor, object]:
        """Output of the lower layer on patches, and what leads around it."""
        if self._segment.needs_context or not all(patch in self._held for patch in patches):
            inputs = self._knockouts.patches(patches)
            cut = record(self._knockouts.classifier, inputs, [self.lower.name])[self.lower.name]
            if self._segment.needs_context:
                return cut, self._segment.context(inputs)
            if cut[0].nbytes * (len(self._held) + len(patches)) <= _HELD_BYTES:
                self._held.update(zip(patches, cut.split(1), strict=True))
            return cut, None
        return torch.cat([self._held[patch] for patch in patches]), None


def quieted(layer: Layer, output: Tensor, kept: Tensor) -> Tensor:
    """A layer's output in which each image has neurons of its own set to zero, at every position.

    Args:
        output: images first, channels along the layer's channel axis.
        kept: (n_images, n_channels) of bool.
    """
    shape = [1] * output.ndim
    shape[0], shape[layer.channel_axis] = kept.shape
    return output * kept.to(output.device, output.dtype).view(shape)
