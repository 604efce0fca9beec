"""How fast and how large a network is on this machine: measured once with an evaluation, to predict what an analysis will cost.

In: a classifier and a few images. Out: a ``Speed``, with the shares of time and memory that lie before each module.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from neurflow_engine.batching import BATCH, Capacity, saved_bytes, unless_out_of_memory
from neurflow_engine.layer_step import native_bfloat16
from neurflow_engine.models import Classifier
from neurflow_engine.tracing import folded, map_leaves, trace

_SECONDS = 1.0  # that one forward pass may take, about
_BYTES = 1 << 28  # that one measurement may keep for its backward pass
_REPEATS = 2  # the fastest counts: what else runs on the machine only ever slows down


@dataclass(frozen=True)
class Speed:
    """Of passes through the whole network as an analysis makes them: BatchNorm folded, gradients in bfloat16 where the device has it."""

    forward: float  # seconds per image
    gradient: float  # seconds per image, forward and backward
    exact_gradient: float  # the same in float32
    saved: int  # bytes per image that autograd keeps
    memory_mb: float  # resident set of the process, the model loaded and used
    before: dict[str, tuple[float, float]]  # by module: shares (0..1) of time and of kept bytes up to its output


def measure(classifier: Classifier, images: Tensor) -> Speed:
    """Time a few passes of ``images``, (n_images, channels, height, width)."""
    images = images[:BATCH].to(classifier.device, memory_format=torch.channels_last)
    with folded(classifier, images[:2]):
        first = _seconds_per_image(lambda some: _logits(classifier, some), images[:1])
        images = images[: max(1, int(_SECONDS / first))]
        forward = _seconds_per_image(lambda some: _logits(classifier, some), images)
        memory_mb = psutil.Process().memory_info().rss / (1 << 20)
        saved = unless_out_of_memory(lambda: saved_bytes(lambda: _score(classifier, images[:1]))) or _BYTES
        images = images[: max(1, _BYTES // max(1, saved))]
        exact = _seconds_per_image(lambda some: _score(classifier, some).backward(), images)
        gradient = exact
        if native_bfloat16(classifier.device):
            with torch.autocast(classifier.device.type, torch.bfloat16):
                gradient = _seconds_per_image(lambda some: _score(classifier, some).backward(), images)
        before = _shares(classifier, images)
    return Speed(forward, gradient, exact, saved, memory_mb, before)


@torch.no_grad()
def _logits(classifier: Classifier, images: Tensor) -> Tensor:
    return classifier.model(images)


@torch.enable_grad()
def _score(classifier: Classifier, images: Tensor) -> Tensor:
    return classifier.model(images.clone().requires_grad_(True))[:, 0].sum()


def _seconds_per_image(work: Callable[[Tensor], object], images: Tensor) -> float:
    """Of the fastest of a few calls; with fewer images after each one that runs out of memory."""
    capacity = Capacity(images.device, len(images), 1)
    found = []
    while len(found) < _REPEATS:
        some = images[: capacity.size]
        began = time.perf_counter()
        if unless_out_of_memory(lambda some=some: (work(some),)) is None:
            capacity.shrink()
            continue
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        found.append((time.perf_counter() - began) / len(some))
    return min(found)


def _shares(classifier: Classifier, images: Tensor) -> dict[str, tuple[float, float]]:
    """By module, the shares of time and of all outputs' bytes up to the end of its last call."""
    began = time.perf_counter()

    def note(name: str, output: object) -> tuple[float, int]:
        sizes: list[int] = []
        map_leaves(Tensor, lambda tensor: sizes.append(tensor.nbytes), output)
        return time.perf_counter() - began, sum(sizes)

    calls = trace(classifier, images, keep=note)
    total_time, total_bytes = time.perf_counter() - began, sum(call.output[1] for call in calls)
    before, bytes_so_far = {}, 0
    for call in calls:
        bytes_so_far += call.output[1]
        before[call.name] = (call.output[0] / total_time, bytes_so_far / max(1, total_bytes))
    return before
