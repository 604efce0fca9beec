"""What an analysis will cost, from the speed that was measured when the same model was evaluated on this machine. Imports no torch.

In: an evaluation and the settings. Out: seconds and memory, to be shown before anybody waits for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, prod

from neurflow_engine.records import LOGITS
from neurflow_engine.store import Evaluation

_SPREAD = 0.5  # core neurons of many neurons, and patches of many concepts, are drawn from about this part of all there are
_AGAIN = 0.35  # share of neurons whose gradients are taken in float32 too
_CROP = 0.0015  # seconds to cut a patch out of an image and keep its rows
_NEURON = 0.004  # seconds to divide and describe one concept
_FIXED = 8.0  # seconds to start, load the model, find its layers and write the run
_COPIES, _BATCH = 64, 16  # scaled copies and patches in one pass on a CPU
_IN_FLIGHT = 6  # outputs of the widest layer alive at once in a forward pass
_BASE_MB = 150.0  # beyond the loaded model: libraries loaded on the way, blocks of rows, what the allocator keeps
_COPY = 0.5  # of the bytes planned for a copy, those that are really taken: half of them are bfloat16, or never alive at once


@dataclass(frozen=True)
class Cost:
    """A prediction, meant to be right within a factor of 1.5 on an otherwise idle machine."""

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
    places = {place["name"]: place for place in evaluation.places}
    height, width = evaluation.manifest["model"]["preprocessing"]["input_size"]
    n_patches = n_images * sum(_windows(height, part) * _windows(width, part) for part in granularities)
    widest = max((prod(place["shape"]) for place in places.values()), default=0)
    seconds, working = _FIXED + n_patches * (speed["forward"] + _CROP), _BATCH * _IN_FLIGHT * 4.0 * widest
    n_neurons = 1.0
    for upper, lower in pairwise((LOGITS, *layers)):
        step, scale = _like(speed["steps"], upper, lower, places)
        pairs = n_neurons * min(top_k, n_patches)
        patches = _distinct(pairs, n_patches)
        again = _AGAIN * step["exact"] * (tau < places.get(lower, {"n_channels": tau + 1})["n_channels"])
        seconds += (1 + again) * scale * (step["patch"] * patches + step["pair"] * pairs) + _NEURON * n_neurons
        working = max(working, _COPY * min(_COPIES, step["n_nodes"] * patches) * scale * step["copy_bytes"])
        n_neurons = _distinct(n_neurons * tau, places.get(lower, {"n_channels": 1 << 10})["n_channels"])
    seconds += _NEURON * n_neurons
    base = speed["memory_mb"] + _BASE_MB
    return Cost(seconds, max(base, min(memory_mb, base + working / (1 << 20))), n_patches)


def _like(steps: Sequence[dict], upper: str, lower: str, places: dict) -> tuple[dict, float]:
    """The timed step that is most like the one from ``upper`` to ``lower``, and how many times as long the latter takes."""
    if not steps:
        return {"n_nodes": 8, "patch": 0.0, "pair": 0.0, "exact": 1.0, "copy_bytes": 0.0}, 1.0

    def ends(up: str, low: str) -> tuple[float, float]:
        return places.get(up, {"share": 1.0})["share"], places.get(low, {"share": 1.0})["share"]

    top, bottom = ends(upper, lower)
    own_kind = [step for step in steps if (step["upper"] == LOGITS) == (upper == LOGITS)] or steps
    like = min(
        own_kind,
        key=lambda step: sum(abs(one - other) for one, other in zip(ends(step["upper"], step["lower"]), (top, bottom), strict=True)),
    )
    like_top, like_bottom = ends(like["upper"], like["lower"])
    same = (like["upper"], like["lower"]) == (upper, lower)
    return like, 1.0 if same else max(0.02, top - bottom) / max(0.02, like_top - like_bottom)


def _distinct(drawn: float, among: float) -> float:
    """How many different ones ``drawn`` draws find, when they crowd in a part of all."""
    return among * (1 - exp(-_SPREAD * drawn / among))


def _windows(side: int, part: float) -> int:
    window = max(1, int(part * side + 1e-6))
    return (side - window) // max(1, window // 2) + 1
