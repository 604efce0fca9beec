"""The network from a silenced layer up: what lies below it runs once per image, however much is tried above.

In: a classifier, silencers, images or what a layer gives for them. Out: logits.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from neurflow_engine.models import Classifier
from neurflow_engine.records import LOGITS, Layer, Silencer
from neurflow_engine.silencing import silenced
from neurflow_engine.tracing import Segment, edited, record


class Replay:
    """A classifier whose layers can be silenced."""

    def __init__(self, classifier: Classifier, layers: Mapping[str, Layer]):
        """``layers``: by name, ordered from input to output or the other way round; each can be silenced."""
        self.classifier, self.layers = classifier, dict(layers)
        self._segments: dict[str, Segment] = {}

    def segment(self, layer: str) -> Segment:
        """The network above a layer; raises LayerError where it cannot be cut there."""
        if layer not in self._segments:
            channels, size = self.classifier.preprocessing.in_chans, self.classifier.preprocessing.input_size
            sample = torch.randn((3, channels, *size), generator=torch.Generator().manual_seed(0)).to(self.classifier.device)
            self._segments[layer] = Segment(self.classifier, layer, LOGITS, sample)
        return self._segments[layer]

    def logits(self, images: Tensor, silencers: Sequence[Silencer] = ()) -> Tensor:
        """From the pixels: images (n_images, channels, height, width), preprocessed -> (n_images, n_classes)."""
        with ExitStack() as stack:
            for silencer in silencers:
                stack.enter_context(self._silenced(silencer))
            return record(self.classifier, images, [LOGITS])[LOGITS].float()

    def logits_above(
        self,
        layer: str,
        outputs: Tensor,
        silencers: Sequence[Silencer],
        context: Mapping[str, Sequence[object]] | None = None,
        times: int = 1,
    ) -> Tensor:
        """From what ``layer`` gives for some images, all silencers lying at it or above: (n_images * times, n_classes).

        Args:
            outputs: images first, ``times`` variants of each image one after the other.
            context: what else leads into the network above the layer, where ``segment(layer).needs_context``; of the images once.
        """
        with ExitStack() as stack, torch.no_grad():
            for silencer in silencers:
                if silencer.layer == layer:
                    outputs = silenced(self.layers[layer], outputs, silencer)
                else:
                    stack.enter_context(self._silenced(silencer))
            return self.segment(layer).repeated(outputs, context, times).float()

    def differentiable(self, layer: str, outputs: Tensor, context: Mapping[str, Sequence[object]] | None = None) -> Tensor:
        """From what ``layer`` gives for some images, (n_images, n_classes); gradients flow from the logits to ``outputs``."""
        return self.segment(layer)(outputs, context).float()

    def _silenced(self, silencer: Silencer):
        layer = self.layers[silencer.layer]
        return edited(self.classifier, silencer.layer, lambda output: silenced(layer, output, silencer))
