"""What an analysis will cost, from the speed that was measured when the same model was evaluated on this machine. Imports no torch.

In: an evaluation and the settings. Out: seconds and memory, to be shown before anybody waits for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, prod
from statistics import mean

from neurflow_engine.effort import (
    CONTROL_IMAGES,
    DRAWS,
    ENOUGH_WRONG,
    FIRST_DRAWS,
    LAYERS,
    PER_STEP,
    REFINED,
    RIGHT_PER_HALF,
    SCOPES,
    STEPS,
    WRONG_PER_HALF,
)
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
_OPENED = 2.0  # seconds to load the model in a process that is there already, to find its layers and to write what is found
_GROUPS = 5  # of the circuit in a layer, about
_BACKWARD = 3.0  # passes that one with gradients takes as long as
_TRIED = 2.5  # ways of a layer and scope that are measured before anything is refined, about
_DEBUG_MB = 500  # that debugging takes beyond an analysis, about
_FLOAT = 4  # bytes
_COPY = 0.5  # of the bytes planned for a copy, those that are really taken: half of them are bfloat16, or never alive at once


@dataclass(frozen=True)
class Cost:
    """A prediction, meant to be right within a factor of 1.5 on an otherwise idle machine."""

    seconds: float
    memory_mb: float
    n_patches: int


@dataclass(frozen=True)
class SweepCost:
    """A prediction for many classes, one after the other."""

    survey_seconds: float  # of the one pass over the patches of all images
    class_seconds: dict[int, float]  # by class; 0 where nothing is predicted as it
    memory_mb: float  # of the largest class
    n_patches: int
    survey_bytes: int  # what the one pass leaves on the disk

    @property
    def seconds(self) -> float:
        """Of everything, with the start of the processes."""
        return _FIXED + self.survey_seconds + sum(self.class_seconds.values())


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
    n_patches = n_images * patches_per_image(evaluation, granularities)
    steps, working = _steps(evaluation, n_patches, layers, tau, top_k)
    seconds = _FIXED + n_patches * (speed["forward"] + _CROP) + sum(step.seconds for step in steps)
    return Cost(seconds, _resident_mb(evaluation, working, memory_mb), n_patches)


def predict_sweep(
    evaluation: Evaluation,
    indices: Sequence[int],
    layers: Sequence[str],
    max_images: int = 100,
    tau: int = 16,
    top_k: int = 50,
    granularities: Sequence[float] = (1.0, 0.5, 0.25),
    memory_mb: int = 3000,
    draws: int = DRAWS,
) -> SweepCost:
    """Predict the cost of analysing and debugging classes of an evaluated folder, its patches passed once for all of them."""
    forward, n_windows = evaluation.speed["forward"], patches_per_image(evaluation, granularities)
    places = {place["name"]: place for place in evaluation.places}
    predicted = evaluation.predictions["predicted"].value_counts()
    debugging = _Debugging(evaluation, layers, draws)
    seconds, largest = {}, 0.0
    for index in indices:
        n_images = min(max_images, int(predicted.get(index, 0)))
        if not n_images:
            seconds[index] = 0.0
            continue
        steps, working = _steps(evaluation, n_images * n_windows, layers, tau, top_k)
        again = sum(forward * places.get(step.lower, {"share": 1.0})["share"] * step.patches for step in steps)  # maps are not kept
        seconds[index] = _OPENED + again + sum(step.seconds for step in steps) + debugging.seconds(index)
        largest = max(largest, working)
    n_patches, n_channels = len(evaluation.predictions) * n_windows, len(evaluation.class_names)
    n_channels += sum(places[name]["n_channels"] for name in layers if name in places)
    return SweepCost(
        survey_seconds=n_patches * (forward + _CROP),
        class_seconds=seconds,
        memory_mb=_resident_mb(evaluation, largest, memory_mb) + _DEBUG_MB,
        n_patches=n_patches,
        survey_bytes=n_patches * n_channels * _FLOAT,
    )


def patches_per_image(evaluation: Evaluation, granularities: Sequence[float]) -> int:
    """How many windows an image is cut into."""
    height, width = evaluation.manifest["model"]["preprocessing"]["input_size"]
    return sum(_windows(height, part) * _windows(width, part) for part in granularities)


def _resident_mb(evaluation: Evaluation, working: float, allowed_mb: int) -> float:
    """Memory of a process that works in ``working`` bytes beyond the model, but for the model in no more than it is allowed."""
    base = evaluation.speed["memory_mb"] + _BASE_MB
    return max(base, min(allowed_mb, base + working / (1 << 20)))


@dataclass(frozen=True)
class _Step:
    """What one layer step takes."""

    lower: str
    patches: float  # different ones that it looks at
    seconds: float


def _steps(evaluation: Evaluation, n_patches: int, layers: Sequence[str], tau: int, top_k: int) -> tuple[list[_Step], float]:
    """The layer steps of an analysis, and the bytes that the largest of them works in."""
    speed, places = evaluation.speed, {place["name"]: place for place in evaluation.places}
    widest = max((prod(place["shape"]) for place in places.values()), default=0)
    steps, working, n_neurons = [], _BATCH * _IN_FLIGHT * 4.0 * widest, 1.0
    for upper, lower in pairwise((LOGITS, *layers)):
        step, scale = _like(speed["steps"], upper, lower, places)
        pairs = n_neurons * min(top_k, n_patches)
        patches = _distinct(pairs, n_patches)
        again = _AGAIN * step["exact"] * (tau < places.get(lower, {"n_channels": tau + 1})["n_channels"])
        seconds = (1 + again) * scale * (step["patch"] * patches + step["pair"] * pairs)
        working = max(working, _COPY * min(_COPIES, step["n_nodes"] * patches) * scale * step["copy_bytes"])
        n_neurons = _distinct(n_neurons * tau, places.get(lower, {"n_channels": 1 << 10})["n_channels"])
        steps.append(_Step(lower, patches, seconds + _NEURON * n_neurons))
    return steps, working


class _Debugging:
    """Seconds that looking for what misleads towards a class takes: passes of what lies above a layer, times how often they are made.

    The counts are those of ``misleading`` and ``contrast_search``; how many groups a circuit has is not known before, nor whether a
    first contrast group leaves enough images wrong to look for a second.
    """

    def __init__(self, evaluation: Evaluation, layers: Sequence[str], draws: int):
        self._forward, self._draws, self._n_images = evaluation.speed["forward"], draws, len(evaluation.predictions)
        above = {place["name"]: 1 - place["share"] for place in evaluation.places}
        self._typical = mean(above.values()) if above else 0.5  # share of a pass that lies above a layer
        self._of_circuit = sum(above.get(layer, 0.5) for layer in layers)
        known = evaluation.predictions.dropna(subset="true")
        is_right = known["predicted"] == known["true"]
        self._wrong = known.loc[~is_right, "predicted"].value_counts()
        self._right = known.loc[is_right, "true"].value_counts()
        self._per_class = max(1, 2 * RIGHT_PER_HALF // max(1, len(self._right)))
        self._right_taken = int(self._right.clip(upper=self._per_class).sum())

    def seconds(self, index: int) -> float:
        """Of one class."""
        own = int(self._right.get(index, 0))
        n_right = (self._right_taken + min(own, 2 * self._per_class) - min(own, self._per_class)) / 2
        n_wrong = min(int(self._wrong.get(index, 0)), 2 * WRONG_PER_HALF) / 2
        passes = 2 * (n_wrong + n_right)
        if n_wrong:
            controls = min(n_wrong, CONTROL_IMAGES)
            passes += _GROUPS * self._of_circuit * (4 * (n_wrong + n_right) + FIRST_DRAWS * controls)
        if 2 * n_wrong >= ENOUGH_WRONG:
            passes += self._contrast(n_wrong + n_right) + self._typical * self._draws * controls + self._n_images
        return self._forward * passes

    def _contrast(self, n_images: float) -> float:
        """Passes of a search for a contrast group, on ``n_images``."""
        plain = LAYERS * len(SCOPES) * _TRIED * n_images / 2
        return self._typical * (plain + REFINED * (_BACKWARD * PER_STEP + n_images / 2 / max(STEPS)))


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
