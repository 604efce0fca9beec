"""What an analysis will cost, from the speed that was measured when the same model was evaluated on this machine. Imports no torch.

In: an evaluation and the settings. Out: seconds and memory, to be shown before anybody waits for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, prod

from neurflow_engine.records import LOGITS
from neurflow_engine.store import Evaluation

_NODES = 8  # of the quadrature, in all steps but the linear one below the logits
_SPREAD = 0.5  # core neurons of many neurons, and patches of many concepts, are drawn from about this part of all there are
_AGAIN = 0.35  # share of neurons whose gradients are taken in float32 too
_CROP = 0.001  # seconds to cut a patch out of an image and keep its rows
_PAIR = 0.0002  # seconds per (neuron, patch): reducing gradients, reading and writing rows
_NEURON = 0.004  # seconds to divide and describe one concept
_FIXED = 3.0  # seconds to load the model, find its layers and write the run
_COPIES, _BATCH = 64, 16  # scaled copies and patches in one pass on a CPU
_IN_FLIGHT = 6  # outputs of the widest layer alive at once in a forward pass
_SLACK = 1.5  # for the backward pass, beside what autograd keeps
_BASE_MB = 300.0  # beyond the loaded model: libraries loaded on the way, blocks of rows, what the allocator keeps


@dataclass(frozen=True)
class Cost:
    """A prediction; meant to be right within a factor of 1.5 on an otherwise idle machine."""

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
    memory_mb: int = 3000,
) -> Cost:
    """Predict the cost of analysing ``n_images`` probe images at ``layers`` (without the logits, deepest first)."""
    speed = evaluation.speed
    places = {place["name"]: place for place in evaluation.places} | {LOGITS: {"share": 1.0, "bytes": 1.0}}
    height, width = evaluation.manifest["model"]["preprocessing"]["input_size"]
    n_patches = n_images * sum(_windows(height, part) * _windows(width, part) for part in granularities)
    seconds = _FIXED + n_patches * (speed["forward"] + _CROP)
    n_neurons, largest = 1.0, 0.0
    for upper, lower in pairwise((LOGITS, *layers)):
        top, bottom = places.get(upper, places[LOGITS]), places.get(lower, places[LOGITS])
        part, kept = max(0.01, top["share"] - bottom["share"]), max(0.01, top["bytes"] - bottom["bytes"]) * speed["saved"]
        nodes = 1 if upper == LOGITS and part < 0.1 else _NODES
        pairs = n_neurons * min(top_k, n_patches)
        patches = _distinct(pairs, n_patches)
        per_copy = part * (patches * speed["forward"] + pairs * max(0.0, speed["gradient"] - speed["forward"] / 2))
        again = part * _AGAIN * (patches * speed["forward"] + pairs * max(0.0, speed["exact_gradient"] - speed["forward"]))
        seconds += nodes * (per_copy + again) + _PAIR * pairs + _NEURON * n_neurons
        largest = max(largest, min(_COPIES, nodes * patches) * (_SLACK * kept + 24 * prod(bottom.get("shape", (0,)))))
        n_neurons = _distinct(n_neurons * tau, bottom.get("n_channels", 1 << 10))
    seconds += _NEURON * n_neurons
    widest = max((prod(place.get("shape", (0,))) for place in places.values()), default=0)
    working = max(largest, _BATCH * _IN_FLIGHT * 4 * widest) / (1 << 20)
    return Cost(seconds, min(max(memory_mb, speed["memory_mb"] + _BASE_MB), speed["memory_mb"] + _BASE_MB + working), n_patches)


def _distinct(drawn: float, among: float) -> float:
    """How many different ones ``drawn`` draws find, when they crowd in a part of all."""
    return among * (1 - exp(-_SPREAD * drawn / among))


def _windows(side: int, part: float) -> int:
    window = max(1, int(part * side + 1e-6))
    return (side - window) // max(1, window // 2) + 1
