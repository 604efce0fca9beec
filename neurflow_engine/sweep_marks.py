"""Flagged groups of several classes that look like one thing: one stamp may mislead towards seven classes. Imports no torch.

In: debug reports of several classes on the same images. Out: ``Mark``s.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from neurflow_engine.records import Damping
from neurflow_engine.store import DebugReport
from neurflow_engine.sweep_result import Mark

ALIKE = {"direction": 0.7, "presence": 0.7}  # |cosine| of directions in one layer, and correlation of presence over all images


def marks(reports: Mapping[str, DebugReport]) -> list[Mark]:
    """Flagged groups that are alike across classes, those of most classes first.

    Two groups of different classes are alike when they lie in one layer and their directions there have an absolute cosine of at least
    0.7, or when their presence over all images is correlated by at least 0.7. What is alike is joined (single linkage).

    Args:
        reports: by class name, on the same images.
    """
    groups = [(name, group["id"]) for name, report in reports.items() for group in report.json["groups"] if group["misleading"]]
    links = {}
    for one, other in combinations(range(len(groups)), 2):
        if groups[one][0] != groups[other][0]:
            alike = likeness(*((reports[name], group) for name, group in (groups[one], groups[other])))
            if best := max(((value, how) for how, value in alike.items() if value >= ALIKE[how]), default=None):
                links[one, other] = best
    return sorted(_joined(groups, links), key=lambda mark: -len({name for name, _ in mark.groups}))


def likeness(one: tuple[DebugReport, str], other: tuple[DebugReport, str]) -> dict[str, float]:
    """How alike two groups are, by the ways in which they can be compared: see ``ALIKE``."""
    found = {}
    entries = [report.group(group) for report, group in (one, other)]
    if [image["path"] for image in one[0].json["images"]] == [image["path"] for image in other[0].json["images"]]:
        shown = np.stack([report.presence(group) for report, group in (one, other)])
        shown = shown[:, ~np.isnan(shown).any(0)]
        if shown.size and all(values.std() > 0 for values in shown):
            found["presence"] = float(np.corrcoef(*shown)[0, 1])
    if entries[0]["layer"] == entries[1]["layer"]:
        silencers = [report.silencer(group) for report, group in (one, other)]
        if all(isinstance(silencer, Damping) for silencer in silencers):
            left, right = (np.asarray(silencer.pattern, float) for silencer in silencers)
            found["direction"] = float(abs(left @ right) / max(np.linalg.norm(left) * np.linalg.norm(right), 1e-12))
    return found


def _joined(groups: list[tuple[str, str]], links: Mapping[tuple[int, int], tuple[float, str]]) -> Iterator[Mark]:
    """What hangs together by links."""
    if not links:
        return
    rows, columns = zip(*links, strict=True)
    table = coo_array((np.ones(len(links)), (rows, columns)), shape=(len(groups), len(groups)))
    _, part = connected_components(table, directed=False)
    for number in np.unique(part):
        own = [place for place in range(len(groups)) if part[place] == number]
        if len(own) > 1:
            similarity, how = min(link for ends, link in links.items() if ends[0] in own)
            yield Mark(tuple(groups[place] for place in own), how, similarity)
