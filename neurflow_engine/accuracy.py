"""Two accuracies on the same images, and how far their difference is to be trusted. Imports neither torch nor timm.

In: which images were predicted right, once and again. Out: both shares, and the change with its interval.
"""

from math import sqrt

import numpy as np

_Z = 1.959964  # of a 95 % interval


def compared(before: np.ndarray, after: np.ndarray) -> dict:
    """Accuracy before and after, and its change with a 95 % interval for predictions of the same images.

    The interval is the adjusted Wald interval of Bonett and Price (2012), which, unlike a bootstrap, does not shrink to a point where no
    prediction changed: with h images helped and u hurt of n, p = (h + 1)/(n + 2) and q = (u + 1)/(n + 2), it is
    p - q ± 1.96 sqrt((p + q - (p - q)^2) / (n + 2)).

    Args:
        before, after: (n_images,) booleans: whether an image was predicted right.
    """
    n = len(before)
    if not n:
        return {"n": 0, "before": None, "after": None, "change": None, "low": None, "high": None}
    helped, hurt = int((after & ~before).sum()), int((before & ~after).sum())
    p, q = (helped + 1) / (n + 2), (hurt + 1) / (n + 2)
    reach = _Z * sqrt((p + q - (p - q) ** 2) / (n + 2))
    return {
        "n": n,
        "before": float(before.mean()),
        "after": float(after.mean()),
        "change": (helped - hurt) / n,
        "low": max(-1.0, p - q - reach),
        "high": min(1.0, p - q + reach),
    }
