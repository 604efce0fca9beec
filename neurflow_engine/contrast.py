"""Contrast groups: directions of a layer that tell wrong images from right ones, found from nothing but which are which.

In: what a layer gives for some wrong and some right images. Out: ``Damping`` records that take a direction back to its usual level.
Two kinds: *position*, a mark that some places of an image carry, and *image*, something diffuse that changes the mean over all places.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.cluster import MiniBatchKMeans
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score

from neurflow_engine.records import Damping
from neurflow_engine.trials import Trials, pooled_outputs

_CLUSTERS = 32  # kinds of places that a layer tells apart, about
_STARTS = 3  # clusters most typical of wrong images, from which a direction is refined
_REFINEMENTS = 3
_POSITIONS = 400  # of an image, at most, drawn at random: enough to meet a mark of a hundredth of the area
_FOR_COVARIANCE = 6000  # positions
_USUAL = 0.9  # quantile over right images above which a place is taken for marked while a direction is refined
_MARKED = 0.7  # of an image's strongest place: places above belong to the mark too


def direction(trials: Trials, layer: str, scope: str, wrong: Sequence[int], right: Sequence[int], seed: int = 0) -> Damping | None:
    """The direction of a layer in which wrong images differ most from right ones, relative to how much right ones differ by themselves.

    The pattern d is the mean difference (of whole images, or of the marked places from all places of right images), the filter the
    matched one, S^-1 d / (d' S^-1 d) with the shrunk covariance S (Ledoit and Wolf 2004): Fisher's linear discriminant. Where the marked
    places are not known, they start as a cluster of places (k-means) that is typical of wrong images, and become the places that the
    filter finds in each wrong image, for a few rounds (multiple-instance learning).

    Args:
        wrong, right: images of ``trials``; right ones of other classes than the target, or what is typical of it would count as wrong.

    Returns:
        The level is 0 still (``at_level`` sets it); None where the two kinds of images do not differ.
    """
    if scope == "image":
        return _diffuse(trials, layer, wrong, right)
    marks = [mark for mark in _marks(trials, layer, wrong, right, seed) if mark is not None]
    if not marks:
        return None
    return max(marks, key=lambda mark: auc(trials.scores(mark, wrong), trials.scores(mark, right)))


def at_level(trials: Trials, damping: Damping, right: Sequence[int], quantile: float) -> Damping:
    """The damping that begins where a share ``quantile`` of right images lie below."""
    return replace(damping, level=float(np.quantile(trials.scores(damping, right), quantile)))


def auc(high: np.ndarray, low: np.ndarray) -> float:
    """How often a value of ``high`` lies above one of ``low`` (area under the ROC curve, 0..1)."""
    if not len(high) or not len(low):
        return 0.5
    return float(roc_auc_score(np.r_[np.ones(len(high)), np.zeros(len(low))], np.r_[high, low]))


def _diffuse(trials: Trials, layer: str, wrong: Sequence[int], right: Sequence[int]) -> Damping | None:
    own, usual = pooled_outputs(trials, layer, wrong), pooled_outputs(trials, layer, right)
    centred = np.r_[own - own.mean(0), usual - usual.mean(0)]
    return _Spread(centred).matched(layer, "image", own.mean(0) - usual.mean(0))


def _marks(trials: Trials, layer: str, wrong: Sequence[int], right: Sequence[int], seed: int):
    """A refined direction for each of the clusters of places that are most typical of wrong images."""
    random = np.random.default_rng(seed)
    own, usual = (_some_positions(trials, layer, rows, random) for rows in (wrong, right))
    if own.shape[1] < 2:
        return  # a layer without space
    background = usual.reshape(-1, usual.shape[2])
    background = background[random.permutation(len(background))[:_FOR_COVARIANCE]]
    mean, scale = background.mean(0), background.std(0) + 1e-6
    places = np.concatenate([own.reshape(-1, own.shape[2])[random.permutation(own.shape[0] * own.shape[1])[:_FOR_COVARIANCE]], background])
    clusters = MiniBatchKMeans(min(_CLUSTERS, len(places)), random_state=seed, n_init=3).fit(places / scale)
    shares = [_shares(clusters, images / scale) for images in (own, usual)]
    typical = (shares[0].mean(0) - shares[1].mean(0)) / np.sqrt(shares[0].var(0) + shares[1].var(0) + 1e-9)
    usual_spread = _Spread(background - mean)
    for cluster in np.argsort(-typical, kind="stable")[:_STARTS]:
        start = clusters.cluster_centers_[cluster] * scale - mean
        yield _refined(layer, start, own, usual, mean, usual_spread)


def _refined(layer: str, start: np.ndarray, own: np.ndarray, usual: np.ndarray, mean: np.ndarray, spread: "_Spread") -> Damping | None:
    """The direction whose marked places are those that it finds itself."""
    found = spread.matched(layer, "position", start)
    for _ in range(_REFINEMENTS):
        if found is None:
            break
        shown, level = own @ found.filter, np.quantile((usual @ found.filter).max(1), _USUAL)
        strongest = shown.max(1, keepdims=True)
        marked = (strongest > level) & (shown >= np.maximum(level, _MARKED * strongest))
        if marked.any(1).sum() < 3:
            break
        # Each image counts once, however many of its places are marked.
        means = np.stack([places[chosen].mean(0) for places, chosen in zip(own, marked, strict=True) if chosen.any()])
        found = spread.matched(layer, "position", means.mean(0) - mean)
    return found


class _Spread:
    """How a layer's neurons vary together where nothing is wrong: their shrunk covariance, ready to be divided by."""

    def __init__(self, centred: np.ndarray):
        """``centred``: (n, n_channels), of mean zero."""
        self._scale = centred.std(0) + 1e-6 * max(float(centred.std()), 1e-12)
        covariance = ledoit_wolf(centred / self._scale, assume_centered=True)[0]
        self._factor = cho_factor(covariance + 1e-6 * np.eye(len(covariance)))  # or neurons that never change could not be divided by

    def matched(self, layer: str, scope: str, pattern: np.ndarray) -> Damping | None:
        """The pattern with its matched filter; None where there is nothing to match."""
        filter = cho_solve(self._factor, pattern / self._scale) / self._scale
        size = float(filter @ pattern)
        if not np.isfinite(size) or size <= 0:
            return None
        return Damping(layer, (filter / size).astype(np.float32), pattern.astype(np.float32), 0.0, scope)


def _some_positions(trials: Trials, layer: str, rows: Sequence[int], random: np.random.Generator) -> np.ndarray:
    """(n_images, n_positions, n_channels), the same positions of all images."""
    chosen, found = None, []
    for _, values in trials.positions(layer, rows):
        if chosen is None:
            chosen = np.sort(random.permutation(values.shape[1])[:_POSITIONS])
        found.append(values[:, chosen])
    return np.concatenate(found)


def _shares(clusters: MiniBatchKMeans, images: np.ndarray) -> np.ndarray:
    """How much of each image belongs to each cluster, (n_images, n_clusters)."""
    return np.stack([np.bincount(clusters.predict(places), minlength=clusters.n_clusters) / len(places) for places in images])
