"""Two runs side by side: which groups of one the other has too, and what differs. Imports neither torch nor timm.

In: two finished runs - two checkpoints, two classes, before and after fine-tuning. Out: groups matched by where their patches lie, each
match beside the best that random groups reach; what appeared and vanished; weights, fidelity and accuracy of both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from neurflow_engine.accuracy import compared
from neurflow_engine.controls import spread
from neurflow_engine.errors import InputError, RunError
from neurflow_engine.labels import spreadsheet_safe
from neurflow_engine.records import LOGITS, Circuit, Edge, NeuronGroup
from neurflow_engine.store import SCHEMA, Evaluation, Run, Workspace

DRAWS = 100  # of random groups in the control
ALIKE = 0.5  # overlap from which a group that has its like in the other run is not said to be gone
FEWEST_IMAGES = 5  # probe images of both runs, below which patches say too little
_CELLS = 8  # along a side of an image: windows of a whole, a half and a quarter of it begin and end between cells
_DIGITS = 4

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Pair:
    """A group and the group of the other run that it was held against."""

    left: str  # group id
    right: str
    overlap: float  # 0..1, of patches or of directions
    random: dict[str, float]  # mean, low and high of the best overlap that as many random groups reach with it

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the two overlap more than random groups do; of a group without a match, that its like was matched with another one."""
        return self.overlap > self.random["high"]


@dataclass(frozen=True)
class WeightChange:
    """An edge between groups that both runs have; a run that lacks the edge has weight 0 there."""

    left: Edge | None
    right: Edge | None

    @property
    def before(self) -> float:
        return self.left.weight if self.left else 0.0

    @property
    def after(self) -> float:
        return self.right.weight if self.right else 0.0

    @property
    def change(self) -> float:
        """Of the weight, -2..2."""
        return self.after - self.before


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common; the class logit, which always is one group, is left out of the groups."""

    left: Run
    right: Run
    by: Literal["patches", "directions"] | None  # how groups were matched; None where they cannot be
    how: str  # the same in one sentence, with what it rests on
    n_shared: int  # probe images of both runs
    layers: tuple[tuple[str, str], ...]  # layers whose groups were held against each other, deepest first
    matches: tuple[Pair, ...]  # that overlap more than random groups do, most alike first
    unsure: tuple[Pair, ...]  # that overlap by half or more, as random groups as small as these do too
    vanished: tuple[Pair, ...]  # groups of the left run alone, each with the group most like it
    appeared: tuple[Pair, ...]  # groups of the right run alone
    untold: tuple[tuple[Side, str], ...]  # groups of which nothing can be said: no patch in a shared image, or no such layer there
    weights: tuple[WeightChange, ...]  # between matched groups, largest change first
    draws: int


def compare(left: Run, right: Run, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Match the groups of two runs.

    Where the runs share probe images, two groups overlap as much as their patches there do: with each patch a unit vector over the cells
    of its image that it covers, and each group the sum of its patches, the overlap is the Tanimoto coefficient a.b / (a.a + b.b - a.b).
    Of windows that are the same or apart it is the Jaccard index; windows that lie over each other count in part. Without shared
    images, groups of the same weights are matched by the cosine of their directions; other groups cannot be matched.

    Groups of a layer are assigned one to one, for the largest total overlap. A pair is a match when it overlaps more than the upper end of
    its control: the best overlap with any group of the layer after the other run's images were shuffled (for directions: after its
    neurons were exchanged for random ones of those that either circuit has). A pair that overlaps by half or more without being surer
    than chance, such as two groups on one image, is neither a match nor gone.

    Raises:
        InputError: the two are one run, or there is no draw.
    """
    if left.id == right.id:
        raise InputError(f"A comparison needs two runs, got {left.id} twice.")
    if draws < 2:
        raise InputError(f"draws = {draws}: a control needs at least two random draws.")
    shared = shared_images(left, right)
    by, how = _way(left, right, len(shared))
    layers = _layer_pairs(left.circuit, right.circuit)
    generator = np.random.default_rng(seed)
    found: dict[str, list[Pair]] = {kind: [] for kind in ("matches", "unsure", "vanished", "appeared")}
    told: set[tuple[Side, str]] = set()
    for pair in layers if by else ():
        groups = tuple(run.circuit.groups_of(layer) for run, layer in zip((left, right), pair, strict=True))
        vectors = _by_patches(left, right, groups, shared) if by == "patches" else _by_directions(left, right, groups, pair)
        known = [[group.id for group, there in zip(*side, strict=True) if there] for side in zip(groups, vectors.there, strict=True)]
        if all(known):
            told |= {("left", group) for group in known[0]} | {("right", group) for group in known[1]}
            for kind, pairs in _assigned(known, vectors, draws, generator).items():
                found[kind] += pairs
    both: tuple[tuple[Side, Run], ...] = (("left", left), ("right", right))
    named = [(side, group.id) for side, run in both for group in run.circuit.groups if group.layer != LOGITS]
    untold = tuple(one for one in named if one not in told)
    matches = sorted(found["matches"], key=lambda pair: -pair.overlap)
    weights = _weights(left.circuit, right.circuit, matches) if by else ()
    others = [tuple(found[kind]) for kind in ("unsure", "vanished", "appeared")]
    return Comparison(left, right, by, how, len(shared), layers, tuple(matches), *others, untold, weights, draws)


# what can be held against each other


def shared_images(left: Run, right: Run) -> list[tuple[int, int]]:
    """Probe images of both runs as pairs of image ids: of the same path, and the same folder by content or the same thumbnail."""
    same_folder = left.manifest["data"]["fingerprint"] == right.manifest["data"]["fingerprint"]
    others = {image.path: image.id for image in right.circuit.images}

    def is_same(one: int, other: int) -> bool:
        files = left.image_thumbnail(one), right.image_thumbnail(other)
        return same_folder or (all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes())

    pairs = [(image.id, others[image.path]) for image in left.circuit.images if image.path in others]
    return [pair for pair in pairs if is_same(*pair)]


def same_weights(left: Run, right: Run) -> bool:
    """Whether both runs are of one network."""
    models = [run.manifest["model"] for run in (left, right)]
    return models[0]["fingerprint"] == models[1]["fingerprint"]


def _way(left: Run, right: Run, n_shared: int) -> tuple[Literal["patches", "directions"] | None, str]:
    images = f"{n_shared} probe image{'' if n_shared == 1 else 's'}"
    numbers = f"{len(left.circuit.images)} and {len(right.circuit.images)} probe images"
    if n_shared >= FEWEST_IMAGES:
        return (
            "patches",
            f"Groups are matched by where their patches lie in the {n_shared} images that are probe images of both ({numbers}).",
        )
    why = "The runs have no probe image in common" if not n_shared else f"The runs have only {images} in common"
    if same_weights(left, right):
        return (
            "directions",
            f"{why}, so groups are matched by their directions in the layer, which both runs share: the weights are the same.",
        )
    return None, (
        f"{why} and their weights differ, so groups cannot be matched: neither patches nor neurons can be held against each other. "
        "Analyse the same class on the same images with both models."
    )


def _layer_pairs(left: Circuit, right: Circuit) -> tuple[tuple[str, str], ...]:
    """Layers of the same name; where two architectures have none in common, by order from the deepest."""
    own, others = left.layers[1:], right.layers[1:]
    common = tuple((layer, layer) for layer in own if layer in others)
    return common or tuple(zip(own, others, strict=False))


# overlap, and its control


@dataclass(frozen=True)
class _Vectors:
    """Groups of a layer of both runs, and how they overlap."""

    there: tuple[np.ndarray, np.ndarray]  # (n_groups,) booleans: groups that can be compared
    overlap: np.ndarray  # (n_left, n_right) of those
    shuffled: Callable[[np.random.Generator], np.ndarray]  # the same with the right groups made random


def _by_patches(left: Run, right: Run, groups: Sequence[Sequence[NeuronGroup]], shared: Sequence[tuple[int, int]]) -> _Vectors:
    sides = [
        _coverage(run, own, {pair[side]: row for row, pair in enumerate(shared)})
        for side, (run, own) in enumerate(zip((left, right), groups, strict=True))
    ]
    there = tuple(side.any(axis=(1, 2)) for side in sides)
    own, others = (side[known] for side, known in zip(sides, there, strict=True))
    norms = [(side**2).sum(axis=(1, 2)) for side in (own, others)]

    def overlap(order: np.ndarray | slice) -> np.ndarray:
        dot = own.reshape(len(own), -1) @ others[:, order].reshape(len(others), -1).T
        return dot / (norms[0][:, None] + norms[1][None] - dot)

    return _Vectors(there, overlap(slice(None)), lambda generator: overlap(generator.permutation(len(shared))))


def _coverage(run: Run, groups: Sequence[NeuronGroup], row: Mapping[int, int]) -> np.ndarray:
    """Sum of every group's patches in some images, (n_groups, n_images, _CELLS²), each patch a unit vector over the cells it covers."""
    size = run.manifest["model"]["preprocessing"]["input_size"]
    covered = np.zeros((len(groups), len(row), _CELLS**2), np.float32)
    windows: dict[tuple[int, ...], np.ndarray] = {}
    for number, group in enumerate(groups):
        for patch in (run.circuit.patches[one] for one in group.patches):
            if patch.image in row:
                if patch.box not in windows:
                    windows[patch.box] = _window(patch.box, size)
                covered[number, row[patch.image]] += windows[patch.box]
    return covered


def _window(box: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """(_CELLS²,) unit vector: the shares of the cells that a box (left, top, right, bottom) covers in an image of (height, width)."""
    left, top, right, bottom = box
    area = np.outer(_stretch(top, bottom, size[0]), _stretch(left, right, size[1])).ravel()
    return (area / np.linalg.norm(area)).astype(np.float32)


def _stretch(low: float, high: float, length: int) -> np.ndarray:
    edges = np.linspace(0, length, _CELLS + 1)
    return np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0, None)


def _by_directions(left: Run, right: Run, groups: Sequence[Sequence[NeuronGroup]], layers: tuple[str, str]) -> _Vectors:
    n_channels = left.layers[layers[0]].n_channels
    own, others = (_directions(side, n_channels) for side in groups)
    pool = np.flatnonzero(own.any(axis=0) | others.any(axis=0))
    there = tuple(np.ones(len(side), bool) for side in (own, others))

    def shuffled(generator: np.random.Generator) -> np.ndarray:
        random = np.zeros_like(others)
        for group, vector in zip(groups[1], random, strict=True):
            vector[generator.choice(pool, len(group.neurons), replace=False)] = group.direction
        return own @ random.T

    return _Vectors(there, own @ others.T, shuffled)


def _directions(groups: Sequence[NeuronGroup], n_channels: int) -> np.ndarray:
    """(n_groups, n_channels) of unit vectors."""
    vectors = np.zeros((len(groups), n_channels))
    for vector, group in zip(vectors, groups, strict=True):
        vector[list(group.neurons)] = group.direction
    return vectors


def _assigned(groups: Sequence[Sequence[str]], vectors: _Vectors, draws: int, generator: np.random.Generator) -> dict[str, list[Pair]]:
    """Pairs of one layer, by what they are: matches, vanished, appeared."""
    overlap = vectors.overlap
    random = [vectors.shuffled(generator) for _ in range(draws)]
    best = [np.stack([one.max(axis=axis) for one in random]) for axis in (1, 0)]  # (draws, n_left) and (draws, n_right)
    control = [[spread(column) for column in side.T] for side in best]
    own, others = groups
    matched, unsure = [], []
    for row, column in zip(*linear_sum_assignment(-overlap), strict=True):
        if overlap[row, column] > max(control[0][row]["high"], control[1][column]["high"]):
            matched.append((row, column))
        elif overlap[row, column] >= ALIKE:
            unsure.append((row, column))
    rows, columns = ({pair[side] for pair in matched + unsure} for side in (0, 1))

    def pair(row: int, column: int, side: int) -> Pair:
        return Pair(own[row], others[column], float(overlap[row, column]), control[side][column if side else row])

    return {
        "matches": [pair(row, column, 0) for row, column in matched],
        "unsure": [pair(row, column, 0) for row, column in unsure],
        "vanished": [pair(row, int(overlap[row].argmax()), 0) for row in range(len(own)) if row not in rows],
        "appeared": [pair(int(overlap[:, column].argmax()), column, 1) for column in range(len(others)) if column not in columns],
    }


def _weights(left: Circuit, right: Circuit, matches: Sequence[Pair]) -> tuple[WeightChange, ...]:
    """Edges between groups that both circuits have, and from them to the class."""
    logit = f"{LOGITS}/0"
    to_right = {pair.left: pair.right for pair in matches} | {logit: logit}
    to_left = {right: left for left, right in to_right.items()}
    others = {(edge.source, edge.target): edge for edge in right.edges}
    changes, seen = [], set()
    for edge in left.edges:
        ends = to_right.get(edge.source), to_right.get(edge.target)
        if None not in ends:
            changes.append(WeightChange(edge, others.get(ends)))
            seen.add(ends)
    for ends, edge in others.items():
        if ends not in seen and set(ends) <= to_left.keys():
            changes.append(WeightChange(None, edge))
    return tuple(sorted(changes, key=lambda one: -abs(one.change)))


# fidelity and accuracy of both

_MEASURES = {
    "mask": "still the class with the core silenced",
    "keep": "still the class with all but the core silenced",
    "overlap": "concepts that survive without their core",
}


def fidelity(left: Mapping | None, right: Mapping | None, layers: Sequence[tuple[str, str]]) -> list[dict]:
    """Figures of two fidelity reports beside each other.

    Returns:
        one row per layer and measure: "left_layer", "right_layer", "measure", and of each side its figure ("left", "right") and the mean
        and 95 % interval of random neurons ("left_random", "right_random"), None where there is none. Measure "trusted" has the verdict.
    """
    found = [{entry["layer"]: entry for entry in (report or {"layers": ()})["layers"]} for report in (left, right)]
    rows = []
    for pair in layers:
        own = [side.get(layer) for side, layer in zip(found, pair, strict=True)]
        if not any(own):
            continue
        for measure, figure in (("trusted", _trusted), *((name, _core(name)) for name in _MEASURES), ("edges", _edges), ("gap", _gap)):
            values = [figure(entry) if entry else (None, None) for entry in own]
            rows.append(
                {"left_layer": pair[0], "right_layer": pair[1], "measure": measure}
                | {"left": values[0][0], "left_random": values[0][1], "right": values[1][0], "right_random": values[1][1]}
            )
    return rows


def _trusted(layer: Mapping) -> tuple:
    return layer["verdict"]["trusted"], None


def _core(name: str) -> Callable[[Mapping], tuple]:
    return lambda layer: (layer.get(f"{name}_core"), layer.get(f"{name}_random"))


def _edges(layer: Mapping) -> tuple:
    known = [value for value in layer["edge_correlation"].values() if value is not None]
    return (median(known) if known else None), None


def _gap(layer: Mapping) -> tuple:
    return (layer["completeness_gap"] or {}).get("median"), None


MEASURES = {"trusted": "trusted"} | _MEASURES | {"edges": "what the lines foretell (correlation)", "gap": "attribution gap"}


def accuracies_of(left: Run, right: Run, workspace: Workspace) -> dict | None:
    """Accuracies of the evaluations that two runs were built on; None where one of them is gone, and as for ``accuracies``."""
    try:
        return accuracies(*(workspace.open_evaluation(run.manifest["evaluation"]) for run in (left, right)))
    except RunError:
        return None


def accuracies(left: Evaluation, right: Evaluation) -> dict | None:
    """Accuracy of two evaluations, in all and of every class, by class name.

    Returns:
        {"same_images": bool, "all": figures, "classes": [figures with "name"]}; None where both are one evaluation or true classes are not
        known. Figures are those of ``accuracy.compared`` where the images are the same, else without an interval of the change, and with
        n of the left evaluation.
    """
    if left.id == right.id or left.accuracy is None or right.accuracy is None:
        return None
    same = left.manifest["data"]["fingerprint"] == right.manifest["data"]["fingerprint"]
    frames = [_right_or_wrong(one) for one in (left, right)]
    if same:
        joined = frames[0].join(frames[1], suffixes=("_left", "_right"), how="inner")
        joined = joined[joined["true_left"] == joined["true_right"]]

        def figures(rows: pd.DataFrame) -> dict:
            return compared(rows["is_right_left"].to_numpy(bool), rows["is_right_right"].to_numpy(bool))

        classes = [{"name": name} | figures(rows) for name, rows in joined.groupby("true_left", sort=False)]
        return {"same_images": True, "all": figures(joined), "classes": _sorted(classes)}
    shares = [frame.groupby("true", sort=False)["is_right"].agg(["mean", "size"]) for frame in frames]
    classes = [
        {"name": name} | _apart(int(shares[0].loc[name, "size"]), *(float(share.loc[name, "mean"]) for share in shares))
        for name in shares[0].index
        if name in shares[1].index
    ]
    return {"same_images": False, "all": _apart(len(frames[0]), left.accuracy, right.accuracy), "classes": _sorted(classes)}


def _right_or_wrong(evaluation: Evaluation) -> pd.DataFrame:
    known = evaluation.predictions.dropna(subset="true")
    names = [evaluation.class_names[int(index)] for index in known["true"]]
    return pd.DataFrame({"true": names, "is_right": (known["true"] == known["predicted"]).to_numpy()}, index=known["path"].to_numpy())


def _apart(n: int, before: float, after: float) -> dict:
    return {"n": n, "before": before, "after": after, "change": after - before, "low": None, "high": None}


def _sorted(classes: list[dict]) -> list[dict]:
    return sorted(classes, key=lambda row: (-abs(row["change"]), row["name"]))


# to hand over


def as_json(found: Comparison, left_names: Mapping[str, str], right_names: Mapping[str, str]) -> dict:
    """The comparison as ``compare LEFT RIGHT --json`` prints it.

    Args:
        left_names, right_names: names in force by group id; groups without one have ``null``.
    """

    def about(run: Run) -> dict:
        model, circuit = run.manifest["model"], run.circuit
        return {
            "run": run.id,
            "model": {"name": model["name"], "checkpoint_sha256": model["checkpoint_sha256"]},
            "target": {"index": circuit.target_index, "name": circuit.target_name},
            "probe_images": len(circuit.images),
        }

    def told(pair: Pair) -> dict:
        labels = {"left_label": left_names.get(pair.left), "right_label": right_names.get(pair.right)}
        return {"left": pair.left, "right": pair.right} | labels | _figures(pair)

    def edge(one: Edge | None) -> dict | None:
        return one and {"source": one.source, "target": one.target}

    return {
        "schema": SCHEMA,
        "left": about(found.left),
        "right": about(found.right),
        "by": found.by,
        "how": found.how,
        "shared_images": found.n_shared,
        "draws": found.draws,
        "layers": [{"left": left, "right": right} for left, right in found.layers],
        "matches": [told(pair) for pair in found.matches],
        "unsure": [told(pair) for pair in found.unsure],
        "vanished": [told(pair) for pair in found.vanished],
        "appeared": [told(pair) for pair in found.appeared],
        "untold": [{"side": side, "group": group} for side, group in found.untold],
        "weights": [
            {"left": edge(one.left), "right": edge(one.right), "before": one.before, "after": one.after, "change": one.change}
            for one in found.weights
        ],
    }


def _figures(pair: Pair) -> dict:
    return {"overlap": round(pair.overlap, _DIGITS), "random": {name: round(value, _DIGITS) for name, value in pair.random.items()}}


def to_csv(found: Comparison, left_names: Mapping[str, str], right_names: Mapping[str, str]) -> str:
    """One row per match and per group that only one run has; no cell can run as a formula."""
    rows = []
    kinds = (("match", found.matches), ("unsure", found.unsure), ("vanished", found.vanished), ("appeared", found.appeared))
    for kind, pairs in kinds:
        for pair in pairs:
            random = {f"random_{name}": round(value, _DIGITS) for name, value in pair.random.items()}
            rows.append(
                {"outcome": kind, "left_run": found.left.id, "right_run": found.right.id}
                | {"left_group": pair.left, "left_name": spreadsheet_safe(left_names.get(pair.left, ""))}
                | {"right_group": pair.right, "right_name": spreadsheet_safe(right_names.get(pair.right, ""))}
                | {"by": found.by, "overlap": round(pair.overlap, _DIGITS)}
                | random
            )
    for side, group in found.untold:
        names = left_names if side == "left" else right_names
        rows.append({"outcome": "cannot be told", f"{side}_group": group, f"{side}_name": spreadsheet_safe(names.get(group, ""))})
    columns = ("outcome", "left_run", "right_run", "left_group", "left_name", "right_group", "right_name", "by", "overlap")
    return pd.DataFrame(rows, columns=[*columns, "random_mean", "random_low", "random_high"]).to_csv(index=False)
