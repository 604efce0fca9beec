"""Trying out silencers on many images: what the layers give for these images lies on disk, so only what lies above a cut runs again.

In: a classifier, layers, images. Out: positions of the layers, and logits with silencers at work.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from neurflow_engine.batching import BATCH, Capacity, fitting
from neurflow_engine.images import ImageBatches
from neurflow_engine.layers import positions
from neurflow_engine.models import Classifier
from neurflow_engine.progress import Progress, Stage
from neurflow_engine.records import LOGITS, Damping, Layer, Silencer
from neurflow_engine.replay import Replay
from neurflow_engine.rows import Rows
from neurflow_engine.store import Draft
from neurflow_engine.tracing import record

_AT_ONCE = 32  # images in one pass of what lies above a cut


@dataclass(frozen=True)
class Trials:
    """Some images whose outputs at all layers of ``replay`` are kept on disk; images are named by their place in ``paths``."""

    replay: Replay
    paths: tuple[str, ...]
    images: Rows  # (n_images, channels, height, width), preprocessed
    outputs: Mapping[str, Rows]  # by layer, (n_images, *layer.shape)
    intact: np.ndarray  # (n_images, n_classes): logits of the intact network

    @classmethod
    def record(
        cls, classifier: Classifier, layers: Mapping[str, Layer], root, paths: Sequence[str], draft: Draft, progress: Progress
    ) -> "Trials":
        """Send the images through the network once and keep what the layers give for them.

        Raises:
            DataError: an image can no longer be decoded.
        """
        size = classifier.preprocessing.input_size
        images = draft.rows(f"{Draft.WORK}/images", (len(paths), classifier.preprocessing.in_chans, *size))
        outputs = {name: draft.rows(f"{Draft.WORK}/outputs/{name}", (len(paths), *layer.shape)) for name, layer in layers.items()}
        intact = np.zeros((len(paths), classifier.n_classes), np.float32)
        capacity = Capacity(classifier.device, BATCH, 1)
        with progress.stage("outputs", len(paths)) as tick:
            for rows, batch in ImageBatches(root, paths, classifier.preprocessing, BATCH):
                images.write(rows, batch.numpy())
                done = 0
                for some, found in fitting(batch, capacity, lambda some: record(classifier, some.to(classifier.device), [*layers, LOGITS])):
                    own = rows[done : done + len(some)]
                    for name, array in outputs.items():
                        array.write(own, found[name].float().cpu().contiguous().numpy())
                    intact[own] = found[LOGITS].float().cpu().numpy()
                    done += len(some)
                tick.advance(len(rows))
        return cls(Replay(classifier, layers), tuple(paths), images, outputs, intact)

    def positions(self, layer: str, rows: Sequence[int]) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        """What a layer gives, position by position: (places in ``rows``, (n_images, n_positions, n_channels)), a few images at a time."""
        for start in range(0, len(rows), _AT_ONCE):
            output = torch.from_numpy(self.outputs[layer].read(rows[start : start + _AT_ONCE]))
            yield range(start, start + len(output)), positions(self.replay.layers[layer], output).numpy()

    def context(self, layer: str, rows: Sequence[int]):
        """What else leads into the network above a layer for some images; None where nothing does."""
        segment = self.replay.segment(layer)
        if not segment.needs_context:
            return None
        return segment.context(torch.from_numpy(self.images.read(rows)).to(self.replay.classifier.device))

    def scores(self, damping: Damping, rows: Sequence[int]) -> np.ndarray:
        """How much each image shows of a direction: filter . h, its mean over positions or the largest as the scope says; (len(rows),)."""
        found = np.zeros(len(rows), np.float32)
        for places, values in self.positions(damping.layer, rows):
            found[list(places)] = damping.of_images(values @ damping.filter)
        return found

    def logits(self, silencers: Sequence[Silencer], rows: Sequence[int], tick: Stage | None = None) -> np.ndarray:
        """Logits of some images with the silencers at work together, (len(rows), n_classes)."""
        return self.logits_of_many([silencers], rows, tick)[0]

    def logits_of_many(self, variants: Sequence[Sequence[Silencer]], rows: Sequence[int], tick: Stage | None = None) -> np.ndarray:
        """As ``logits``, for several sets of silencers whose lowest layer is the same: (n_variants, len(rows), n_classes)."""
        order = list(self.outputs)
        lowest = min((silencer.layer for silencer in variants[0]), key=order.index)
        device = self.replay.classifier.device
        found = np.zeros((len(variants), len(rows), self.intact.shape[1]), np.float32)
        capacity = Capacity(device, _AT_ONCE, 1, _AT_ONCE)
        done = 0

        def all_variants(some: Sequence[int]) -> np.ndarray:
            outputs = torch.from_numpy(self.outputs[lowest].read(some)).to(device)
            context = self.context(lowest, some)
            logits = []
            for silencers in variants:
                logits.append(self.replay.logits_above(lowest, outputs, silencers, context).cpu().numpy())
                if tick:
                    tick.advance(0)
            return np.stack(logits)

        for some, logits in fitting(rows, capacity, all_variants):
            found[:, done : done + len(some)] = logits
            done += len(some)
            if tick:
                tick.advance(0)
        return found


def pooled_outputs(trials: Trials, layer: str, rows: Sequence[int]) -> np.ndarray:
    """Mean over positions of what a layer gives, (len(rows), n_channels)."""
    return np.concatenate([values.mean(1) for _, values in trials.positions(layer, rows)])
