"""Contrast groups: directions of a layer that tell wrong images from right ones, found from nothing but which are which.

In: what a layer gives for some wrong and some right images. Out: ``Damping`` records that take a direction back to its usual level.
Three kinds: *position*, a mark that some places of an image carry, *image*, something diffuse that changes the mean over all places, and
*anywhere*, something that some places betray and that is taken away at all of them.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.cluster import MiniBatchKMeans
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score

from neurflow_engine.records import Damping, Variation
from neurflow_engine.trials import Trials, pooled_outputs

_CLUSTERS = 32  # kinds of places that a layer tells apart, about
_STARTS = 3  # clusters most typical of wrong images, from which a direction is refined
_REFINEMENTS = 3
_POSITIONS = 400  # of an image, at most, drawn at random: enough to meet a mark of a hundredth of the area
_FOR_COVARIANCE = 6000  # positions
_USUAL = 0.9  # quantile over right images above which a place is taken for marked while a direction is refined
_RAMP = 0.25  # of the way from usual to typical, over which a gate opens
_FOR_VARIATION = 50  # places, to tell how they vary
_AXES = 256  # in which places vary most, and outside of which a variation changes nothing
_MARKED = 0.7  # of an image's strongest place: places above belong to the mark too


def direction(trials: Trials, layer: str, scope: str, wrong: Sequence[int], right: Sequence[int], seed: int = 0) -> Damping | None:
    """The direction of a layer in which wrong images differ most from right ones, relative to how much right ones differ by themselves.

    The pattern d is the mean difference (of whole images, or of the marked places from all places of right images), the filter the
    matched one, S^-1 d / (d' S^-1 d) with the shrunk covariance S (Ledoit and Wolf 2004): Fisher's linear discriminant. Where the marked
    places are not known, they start as a cluster of places (k-means) that is typical of wrong images, and become the places that the
    filter finds in each wrong image, for a few rounds (multiple-instance learning).

    Args:
        scope: image or position; ``anywhere`` puts the two together.
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


def anywhere(places: Damping | None, diffuse: Damping | None) -> Damping | None:
    """The direction of scope *anywhere* of a layer: the filter of its *position*, which finds the places, the pattern of its *image*."""
    return replace(places, scope="anywhere", pattern=diffuse.pattern) if places and diffuse else None


def gated(trials: Trials, damping: Damping, wrong: Sequence[int], right: Sequence[int], share: float) -> Damping | None:
    """The damping that takes the pattern away once from what lies clearly more than a share of the way from usual to typical, and leaves
    alone what lies clearly less: for a mark that is there or not.

    Args:
        share: 0..1 between the median of right images and that of wrong ones; between ``_RAMP`` / 2 below and above it a part is taken
            away.

    Returns:
        None where wrong images do not show more of it than right ones.
    """
    width, opens = _gate(trials, damping, wrong, right, share)
    return replace(damping, filter=damping.filter / width, level=opens, most=1.0) if width > 0 else None


def sure(trials: Trials, damping: Damping, wrong: Sequence[int], right: Sequence[int], share: float) -> Damping | None:
    """The damping, in images alone of which some place shows clearly more than a share of the way from usual to typical.

    What it takes away there stays as it was; arguments and returns as of ``gated``.
    """
    width, opens = _gate(trials, damping, wrong, right, share)
    if not width > 0:
        return None
    filter, pattern = damping.filter / width, damping.pattern * width
    return replace(damping, filter=filter, pattern=pattern, level=float(damping.level / width), least=opens)


def _gate(trials: Trials, damping: Damping, wrong: Sequence[int], right: Sequence[int], share: float) -> tuple[np.float32, float]:
    """How wide the gate's ramp is, in what the filter gives; and where it begins, in units of that width."""
    usual, typical = (float(np.median(trials.scores(damping, rows))) for rows in (right, wrong))
    width = np.float32(_RAMP * (typical - usual))
    return width, float((usual + share * (typical - usual)) / width - 0.5) if width > 0 else 0.0


def varying(trials: Trials, damping: Damping, wrong: Sequence[int], right: Sequence[int], rank: int, seed: int = 0) -> Damping:
    """The damping with a variation that gives marked places not only the mean that right images have, but their covariance too.

    With mean m1 and covariance S1 of marked places, m0 and S0 of places of right images, h becomes m0 + T (h - m1) with the optimal
    transport T = S1^-1/2 (S1^1/2 S0 S1^1/2)^1/2 S1^-1/2 between the two as normal distributions (Singh et al. 2024, Representation
    Surgery; Knott and Smith 1984). A mark that is a stripe here and its opposite there changes the covariance alone. Of I - T, the
    ``rank`` directions are kept in which marked places differ most.

    Args:
        wrong, right: as ``direction``; marked are the places of wrong images at which the damping takes away more than half of ``most``,
            or all places where it works on whole images.
    """
    random = np.random.default_rng(seed)
    own, usual = (_some_positions(trials, damping.layer, rows, random) for rows in (wrong, right))
    if damping.scope == "position":
        own = own[own @ damping.filter > damping.level + (damping.most or 0.0) / 2]
    own, usual = (places.reshape(-1, places.shape[-1]) for places in (own, usual))
    own, usual = (places[random.permutation(len(places))[:_FOR_COVARIANCE]].astype(np.float64) for places in (own, usual))
    if len(own) < _FOR_VARIATION:
        return damping
    scale = usual.std(0) + 1e-6 * max(float(usual.std()), 1e-12)
    centred = [(places - places.mean(0)) / scale for places in (own, usual)]
    basis = _main_axes(np.concatenate(centred))
    marked, clean = (ledoit_wolf(places @ basis, assume_centered=True)[0] for places in centred)
    root, inverse = _power(marked, 0.5), _power(marked, -0.5)
    values, axes = np.linalg.eigh(np.eye(len(marked)) - inverse @ _power(root @ clean @ root, 0.5) @ inverse)
    moved = np.abs(values) * np.sqrt(np.einsum("ij,ik,kj->j", axes, marked, axes))
    kept = np.argsort(-moved, kind="stable")[:rank]
    axes = (basis @ axes[:, kept]).T
    reading, writing = axes / scale, values[kept, None] * axes * scale
    pattern = damping.pattern - damping.pattern @ reading.T @ writing
    vectors = (vector.astype(np.float32) for vector in (usual.mean(0), reading, writing))
    return replace(damping, pattern=pattern.astype(np.float32), variation=Variation(*vectors))


def _main_axes(centred: np.ndarray) -> np.ndarray:
    """The directions (n_channels, at most ``_AXES``) in which places vary most."""
    _, axes = np.linalg.eigh(centred.T @ centred)
    return axes[:, ::-1][:, :_AXES]


def _power(symmetric: np.ndarray, exponent: float) -> np.ndarray:
    values, axes = np.linalg.eigh(symmetric)
    return axes * np.maximum(values, 1e-9 * values.max()) ** exponent @ axes.T


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
