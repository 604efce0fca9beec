"""Concepts: the patches a neuron answers to most, divided into semantic groups.

In: pooled activations. Out: V_a of a neuron, and clusters of vectors chosen by their silhouette.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SEMANTIC_GROUPS = range(2, 6)  # numbers of semantic groups of one neuron that are tried


def concept(activations: np.ndarray, top_k: int) -> tuple[int, ...]:
    """V_a: ids of the ``top_k`` patches with the largest activation, strongest first (lower id first where equal).

    Args:
        activations: (n_patches,) pooled activation of one neuron.
    """
    return tuple(int(patch) for patch in np.argsort(-activations, kind="stable")[:top_k])


@dataclass(frozen=True)
class Clustering:
    """Cluster number of each point, 0.. in order of first appearance; per-point silhouettes, -1..1, None for a single cluster."""

    labels: np.ndarray
    silhouettes: np.ndarray | None

    @property
    def n_clusters(self) -> int:
        return int(self.labels.max()) + 1

    @property
    def silhouette(self) -> float | None:
        """Mean silhouette of all points."""
        return None if self.silhouettes is None else float(self.silhouettes.mean())

    def members(self, cluster: int) -> np.ndarray:
        """Indices of the points of one cluster, ascending."""
        return np.flatnonzero(self.labels == cluster)


def clustered(vectors: np.ndarray, numbers: Sequence[int]) -> Clustering:
    """Ward clustering whose number of clusters has the largest mean silhouette (the smaller number where equal).

    The tree is built once, all numbers are cuts of it, and all silhouettes share its distance matrix.

    Args:
        vectors: (n_points, n_features).
        numbers: cluster numbers to try; those that leave no pair of points together (>= n_points) are passed over.

    Returns:
        A single cluster when the points are fewer than three or all equal.
    """
    # loaded when they are needed: pages that only show groups do not wait for them
    from scipy.cluster.hierarchy import fcluster, ward
    from scipy.spatial.distance import pdist, squareform
    from sklearn.metrics import silhouette_samples

    n_points = len(vectors)
    distances = pdist(vectors.astype(np.float64))
    best = Clustering(np.zeros(n_points, dtype=int), None)
    if n_points < 3 or not distances.max() > 0:
        return best
    tree, square = ward(distances), squareform(distances)
    for number in numbers:
        labels = _renumbered(fcluster(tree, number, criterion="maxclust"))
        if not 2 <= labels.max() + 1 < n_points:
            continue
        found = Clustering(labels, silhouette_samples(square, labels, metric="precomputed"))
        if best.silhouette is None or found.silhouette > best.silhouette:
            best = found
    return best


def _renumbered(labels: np.ndarray) -> np.ndarray:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    return rank[inverse]
