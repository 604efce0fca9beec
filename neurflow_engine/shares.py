"""Shares of images: their intervals, and whether one is larger than another. Imports neither torch nor timm.

In: counts. Out: intervals and p-values, corrected for their number.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from scipy.stats import binomtest, fisher_exact

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Share:
    """So many of so many images; ``of`` is at least 1."""

    count: int
    of: int

    @property
    def value(self) -> float:
        """0..1."""
        return self.count / self.of

    @property
    def interval(self) -> list[float]:
        """95 % interval, 0..1."""
        return share_interval(self.count, self.of)


def share_interval(count: int, n: int) -> list[float]:
    """95 % interval of a share (Wilson 1927)."""
    interval = binomtest(count, n).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]


def p_larger(before: Share, after: Share) -> float:
    """One-sided p-value that a share has grown, of images that need not be the same (Fisher's exact test)."""
    table = [[after.count, after.of - after.count], [before.count, before.of - before.count]]
    return float(fisher_exact(table, alternative="greater").pvalue)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """P-values corrected for their number (Holm 1979)."""
    corrected, largest = {}, 0.0
    for rank, (name, value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, value * (len(p_values) - rank)))
        corrected[name] = largest
    return corrected
