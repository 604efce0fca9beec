"""A circuit as a drawing: which groups and edges to show, and where they go.

In: a circuit, how many groups and how weak an edge may be. Out: groups in rows by layer, with few crossings, that fill a frame.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from neurflow_engine.records import Circuit, Edge, NeuronGroup

NODE, COLUMN, LINE = 84, 122, 116  # side of a node, distance of nodes on a line, distance of the lines of a row; in units of the drawing
GAPS = 100, 250  # between rows, at least and at most
FRAME = 880, 640  # the shape that a drawing is fitted into
ENOUGH = 0.8  # of the largest scale there could be is given up for fewer lines
MOST_EDGES = 1500  # drawn at once; the browser follows the mouse no longer where there are more
_SWEEPS = 12


@dataclass(frozen=True)
class Drawing:
    """What is shown of a circuit, and where."""

    rows: tuple[tuple[str, ...], ...]  # group ids from left to right, logits first
    layers: tuple[str, ...]  # of the rows
    edges: tuple[Edge, ...]  # strongest last, so that they lie on top
    position: dict[str, tuple[float, float]]  # centre of each group
    heights: tuple[float, ...]  # of the middle of the rows

    @property
    def groups(self) -> tuple[str, ...]:
        """All groups shown."""
        return tuple(group for row in self.rows for group in row)


def most_important(circuit: Circuit, limit: int, always: Collection[str] = (), layers: Sequence[str] = ()) -> tuple[NeuronGroup, ...]:
    """At most ``limit`` groups: the same number from every layer where there are enough, the most important of each layer first.

    Args:
        always: groups that are among them in any case.
        layers: from which they are taken, the logits among them; all where none are named.
    """
    queues = [[group.id for group in circuit.groups_of(layer)] for layer in layers or circuit.layers]
    chosen = dict.fromkeys(group for group in always if group in circuit.group)
    for place in range(max(map(len, queues))):
        for queue in queues:
            if place < len(queue) and len(chosen) < limit:
                chosen[queue[place]] = None
    return tuple(group for group in circuit.groups if group.id in chosen)


def default_threshold(circuit: Circuit, groups: Sequence[NeuronGroup]) -> float:
    """The weight below which edges are left out at first, in steps of 0.01: so that about three for every two groups remain."""
    shown = {group.id for group in groups}
    weights = sorted((abs(edge.weight) for edge in circuit.edges if edge.source in shown and edge.target in shown), reverse=True)
    wanted = max(45, 3 * len(shown) // 2)
    return int(100 * weights[wanted - 1]) / 100 if len(weights) > wanted else 0.0


def draw(circuit: Circuit, groups: Sequence[NeuronGroup], threshold: float, always: Collection[str] = ()) -> Drawing:
    """Place groups in rows by layer, in an order with few crossings.

    Edges with an absolute weight below ``threshold`` are left out, and those beyond the MOST_EDGES strongest, but each group keeps its
    strongest one upwards. Groups without any are left out, unless they are in ``always``. Within a row, the order by the mean position of
    the neighbours is tried from above and from below in turn (barycentre method of Sugiyama et al., 1981), and the one with the fewest
    crossings is kept.
    """
    shown = {group.id for group in groups}
    ranked = sorted((edge for edge in circuit.edges if edge.source in shown and edge.target in shown), key=_strength)
    rows, joined, backbone = [], set(), {}
    for layer in circuit.layers:
        row = [group.id for group in circuit.groups_of(layer) if group.id in shown]
        if rows:
            own = set(row)
            backbone |= {edge.source: edge for edge in ranked if edge.source in own and edge.target in joined}
            row = [group for group in row if group in backbone or group in always]
        joined |= set(row)
        rows.append(row)
    strong = [edge for edge in ranked if abs(edge.weight) >= threshold and edge.source in joined and edge.target in joined]
    edges = sorted({*strong[-MOST_EDGES:], *backbone.values()}, key=_strength)
    layers = [layer for layer, row in zip(circuit.layers, rows, strict=True) if row]
    rows = _untangled([row for row in rows if row], edges)
    position, heights = _placed(rows)
    return Drawing(tuple(map(tuple, rows)), tuple(layers), tuple(edges), position, heights)


def _strength(edge: Edge) -> tuple[float, str, str]:
    return abs(edge.weight), edge.source, edge.target


# where


def _placed(rows: Sequence[Sequence[str]]) -> tuple[dict[str, tuple[float, float]], tuple[float, ...]]:
    """Centres of the groups, and the height of each row; a long row stands in several lines, so that the pictures stay large."""
    longest = max(len(row) for row in rows)
    scales = {columns: _scale(rows, columns) for columns in range(min(longest, 6), longest + 1)}
    columns = max(columns for columns, scale in scales.items() if scale >= ENOUGH * max(scales.values()))
    gap = _gap(rows, columns)
    position, heights, height = {}, [], 0.0
    for row in rows:
        lines = ceil(len(row) / columns)
        for place, group in enumerate(row):
            x = COLUMN / lines * (place - (len(row) - 1) / 2)
            position[group] = (x, height + LINE * (place % lines))
        heights.append(height + LINE * (lines - 1) / 2)
        height += LINE * (lines - 1) + gap
    return position, tuple(heights)


def _extent(rows: Sequence[Sequence[str]], columns: int) -> tuple[float, float]:
    """Width of a drawing with so many columns, and height of its rows without the gaps between them."""
    lines = [ceil(len(row) / columns) for row in rows]
    width = max(COLUMN * len(row) / count for row, count in zip(rows, lines, strict=True))
    return width + 2 * COLUMN, sum(LINE * (count - 1) for count in lines)


def _gap(rows: Sequence[Sequence[str]], columns: int) -> float:
    """Between rows, so that the drawing has the shape of the frame where that can be."""
    width, height = _extent(rows, columns)
    return min(max(GAPS[0] + NODE / 2, (width * FRAME[1] / FRAME[0] - height) / max(1, len(rows) - 1)), GAPS[1] + NODE / 2)


def _scale(rows: Sequence[Sequence[str]], columns: int) -> float:
    """How large the drawing is in the frame."""
    width, height = _extent(rows, columns)
    return min(FRAME[0] / width, FRAME[1] / (height + _gap(rows, columns) * (len(rows) - 1) + 1.5 * NODE))


# in which order


def _untangled(rows: list[list[str]], edges: Sequence[Edge]) -> list[list[str]]:
    best, fewest = rows, crossings(rows, edges)
    joined = defaultdict(list)  # the groups that a group is joined with
    for edge in edges:
        joined[edge.source].append((edge.target, abs(edge.weight)))
        joined[edge.target].append((edge.source, abs(edge.weight)))
    for sweep in range(_SWEEPS):
        if fewest == 0:
            break
        rows = [list(row) for row in rows]
        downwards = sweep % 2 == 0
        for level in range(1, len(rows)) if downwards else range(len(rows) - 2, 0, -1):
            rows[level] = _by_neighbours(rows[level], rows[level - 1 if downwards else level + 1], joined)
        now = crossings(rows, edges)
        if now < fewest:
            best, fewest = rows, now
    return best


def _by_neighbours(row: list[str], fixed: list[str], joined: dict[str, list[tuple[str, float]]]) -> list[str]:
    """The row in the order of the mean place of each group's neighbours in a row that stays; -0.5..0.5 from left to right."""
    place = {group: (number + 0.5) / len(fixed) - 0.5 for number, group in enumerate(fixed)}

    def barycentre(group: str) -> float:
        pulls = [(weight, place[other]) for other, weight in joined[group] if other in place]
        total = sum(weight for weight, _ in pulls)
        return sum(weight * where for weight, where in pulls) / total if total else 0.0

    return sorted(row, key=barycentre)


def crossings(rows: Sequence[Sequence[str]], edges: Sequence[Edge]) -> int:
    """How many pairs of edges cross."""
    level = {group: number for number, row in enumerate(rows) for group in row}
    place = {group: number for row in rows for number, group in enumerate(row)}
    count = 0
    for number in range(1, len(rows)):
        ends = np.array([(place[edge.source], place[edge.target]) for edge in edges if level.get(edge.source) == number]).reshape(-1, 2)
        lower, upper = ends.T
        count += int(((lower[:, None] < lower) & (upper[:, None] > upper)).sum())
    return count
