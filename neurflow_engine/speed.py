"""How fast and how large a network is on this machine: measured with an evaluation, to predict what an analysis will cost.

In: a classifier, its layers and a few images. Out: a ``Speed``: passes as the analysis makes them, on a handful of patches.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from neurflow_engine.activations import ProbePatches, survey
from neurflow_engine.attribution import RULES
from neurflow_engine.batching import BATCH, Capacity, enough_memory, unless_out_of_memory
from neurflow_engine.errors import LayerError, MemoryLimitError
from neurflow_engine.images import cut_patches
from neurflow_engine.layer_step import LayerStep, Pairs
from neurflow_engine.layers import Anatomy
from neurflow_engine.models import Classifier
from neurflow_engine.progress import Silent
from neurflow_engine.records import Layer
from neurflow_engine.rows import Rows
from neurflow_engine.tracing import folded, trace

_DEPTH = 3  # layers below the logits between which steps are timed
_IMAGES, _PATCHES, _NEURONS = 2, 8, 4  # in a timed step
_ROOM = 1 << 29  # bytes that a timed step may take
_TOLERANCE = 0.08  # of the completeness gap, as an analysis has it by default
_QUICK = 0.1  # seconds for an image from which on nobody waits for the quadrature to be tried
_REPEATS = 2  # the fastest counts: what else runs on the machine only ever slows down


@dataclass(frozen=True)
class StepSpeed:
    """Of the attribution of one layer step."""

    upper: str
    lower: str
    n_nodes: int  # of the quadrature
    patch: float  # seconds to send a patch through the segment, at all nodes
    pair: float  # seconds for the gradients of one neuron on one patch
    exact: float  # how many times as long a pair takes in float32; 0 where all gradients are float32 anyway
    copy_bytes: float  # that one scaled copy of a patch takes while gradients are computed


@dataclass(frozen=True)
class Speed:
    """Of a network with BatchNorm folded."""

    forward: float  # seconds per image
    memory_mb: float  # resident set of the process, the model loaded and used
    steps: tuple[StepSpeed, ...]  # between the default layers, as far as they can be cut
    before: dict[str, float]  # by module: share (0..1) of the time of a forward pass up to its output


def measure(classifier: Classifier, anatomy: Anatomy, images: Tensor) -> Speed:
    """Time a few passes of ``images``, (n_images, channels, height, width)."""
    images = images[:BATCH].to(classifier.device, memory_format=torch.channels_last)
    layers = anatomy.chosen(None, _DEPTH)
    with folded(classifier, images[:2], intact=[layer.name for layer in layers]):
        forward = _seconds_per_image(classifier, images)
        memory_mb = psutil.Process().memory_info().rss / (1 << 20)
        steps = [_step(classifier, upper, lower, images[:_IMAGES].cpu(), forward < _QUICK) for upper, lower in pairwise(layers)]
        return Speed(forward, memory_mb, tuple(step for step in steps if step), _shares(classifier, images))


@torch.no_grad()
def _seconds_per_image(classifier: Classifier, images: Tensor) -> float:
    capacity, found = Capacity(classifier.device, len(images), 1), []
    while len(found) < _REPEATS:
        some = images[: capacity.size]
        seconds = unless_out_of_memory(lambda some=some: _seconds(lambda: classifier.model(some), classifier.device))
        if seconds is None:
            capacity.shrink()
        else:
            found.append(seconds / len(some))
    return min(found)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _step(classifier: Classifier, upper: Layer, lower: Layer, images: Tensor, is_quick: bool) -> StepSpeed | None:
    """One layer step on a few patches; None where the network cannot be cut there or the memory is not enough."""
    with tempfile.TemporaryDirectory() as folder, Silent().stage("speed", None) as tick:
        patches = cut_patches(len(images), classifier.preprocessing.input_size, (1.0, 0.5))
        rows = Rows.create(Path(folder) / "images.npy", tuple(images.shape))
        rows.write(range(len(images)), images.numpy())
        probe = ProbePatches(classifier, rows, patches)
        activations = Rows.create(Path(folder) / "activations.npy", (len(patches), upper.n_channels))
        maps = Rows.create(Path(folder) / "maps.npy", (len(patches), *lower.shape))
        ids = list(range(0, len(patches), max(1, len(patches) // _PATCHES)))[:_PATCHES]
        try:
            with enough_memory():
                survey(probe, ids, {upper: activations}, {lower: maps}, Capacity(classifier.device, len(ids), 1), tick)
                strongest = np.argsort(-activations.read(ids).mean(0), kind="stable")[:_NEURONS].tolist()
                return _timed(LayerStep(probe, upper, lower, activations, maps, _ROOM), strongest, ids, classifier.device, is_quick)
        except (LayerError, MemoryLimitError):
            return None


def _timed(step: LayerStep, neurons: list[int], ids: list[int], device: torch.device, is_quick: bool) -> StepSpeed:
    one, all_ = Pairs.of({neurons[0]: ids}), Pairs.of(dict.fromkeys(neurons, ids))
    mixed = step.can_mix
    rule = step.rule(Pairs.of(dict.fromkeys(neurons[:2], ids[:2])), _TOLERANCE, mixed) if is_quick else RULES[1]

    def seconds(pairs: Pairs, mixed: bool) -> float:
        return _seconds(lambda: list(step.attributions(pairs, ids, rule, mixed)), device)

    seconds(one, mixed)  # the first pass prepares what later ones find
    for_one, for_all = seconds(one, mixed), seconds(all_, mixed)
    exact = seconds(all_, False) if mixed else 0.0
    pair = max(1e-6, (for_all - for_one) / (len(ids) * max(1, len(neurons) - 1)))
    patch = max(1e-6, for_one / len(ids) - pair)
    return StepSpeed(step.upper.name, step.lower.name, rule[0], patch, pair, exact / for_all, step.bytes_per_copy)


def _shares(classifier: Classifier, images: Tensor) -> dict[str, float]:
    """By module, the share of the time up to the end of its last call."""
    began = time.perf_counter()
    calls = trace(classifier, images, keep=lambda name, output: time.perf_counter() - began)
    total = time.perf_counter() - began
    return {call.name: call.output / total for call in calls}
