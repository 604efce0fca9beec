"""Understanding one image: where in it a group fires, along which routes a wrong answer comes about, and which right images look alike.

In: a debugger and an image, or a debug report. Out: heat maps, blame, neighbours, and the evidence that a report hands over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from neurflow_engine.attribution import Attribution, integrated_gradients
from neurflow_engine.debug_report import Evidence
from neurflow_engine.debugging import EPSILON, Debugger, grid, presence
from neurflow_engine.errors import InputError, LayerError, RunError, near_matches
from neurflow_engine.groups import shares
from neurflow_engine.images import cut_patches
from neurflow_engine.layers import positions
from neurflow_engine.records import LOGITS, Circuit, Layer
from neurflow_engine.store import DebugReport
from neurflow_engine.tracing import record

ROUTES = 3  # shown at most
_TOP = f"{LOGITS}/0"  # the group of the logit
_WORTH_SHOWING = 1 / 3  # a route is shown when it carries at least this share of what the strongest one carries
_RULES = ((1, 0), (8, 0), (8, 6), (16, 6))  # of quadrature (nodes, crowding), tried in turn; finer ones take too long for a click
_ADDS_UP = 0.05  # relative completeness gap up to which a cheaper quadrature rule is taken
_EXACT = 0.01  # the same for a single node, which is right in linear networks only
_COPIES = 8  # scaled copies of the image in one forward pass: what autograd keeps of more would not fit beside the app
_HOT = (230, 0, 126)  # colour of a heat map at its hottest: like the boxes on pictures, found in few photos
_STRONGEST = 0.75  # how much of it covers the picture there
_DISTORTED = 1.25  # proportions of a grid of tokens may differ from the image's by this factor, at most


# where a group fires


def heat_map(debugger: Debugger, path: Path, group_id: str) -> np.ndarray:
    """Where in an image a group fires: (height, width) of the preprocessed image, 0..1, upsampled bilinearly from its layer's grid.

    For a group of the circuit: its presence at each position, by the formula of ``debugging.presence`` (NeurFlow, section 4.3), 1 where
    its neurons are as active as they typically are in it. For a contrast group: how far the score at each position lies above the group's
    usual level, 1 where it is as far above it as in the wrong images.

    Raises:
        RunError: there is no such group; DataError: the image cannot be read; LayerError: the layer keeps no places of the image.
    """
    layer = _layer_of(debugger, group_id)
    image = debugger.load([path])
    size = tuple(image.shape[2:])
    places = grid_of(layer, size)  # before the network runs for nothing
    output = record(debugger.classifier, image, [layer.name])[layer.name].float().cpu()
    return enlarged(_shown(debugger, group_id, positions(layer, output)[0].numpy()).reshape(places), size)


def enlarged(shown: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (rows, columns) of 0..1 upsampled bilinearly to ``size`` (height, width)."""
    grown = interpolate(torch.from_numpy(shown).float()[None, None], size=size, mode="bilinear", align_corners=False)
    return grown[0, 0].clamp(0, 1).numpy()


def best_patch(heat: np.ndarray, granularity: float = 0.25) -> tuple[int, int, int, int]:
    """The window (left, top, right, bottom) in which a heat map (height, width) is hottest on average, among the patches of an image.

    Args:
        granularity: side of the windows / side of the image; their stride is half a window.
    """

    def warmth(box: tuple[int, int, int, int]) -> float:
        left, top, right, bottom = box
        return float(heat[top:bottom, left:right].mean())

    return max((patch.box for patch in cut_patches(1, heat.shape, (granularity,))), key=warmth)


def grid_of(layer: Layer, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the positions of a layer's output, for an input of ``size`` (height, width).

    Patch tokens, in one row, are folded into the grid whose proportions are nearest to the input's.

    Raises:
        LayerError: the layer has no space, or its tokens fill no such grid.
    """
    places = [length for axis, length in enumerate(layer.shape, start=1) if axis != layer.channel_axis]
    if len(places) == 2 and places != [1, 1]:
        return tuple(places)
    if len(places) == 1 and places[0] - layer.n_prefix_tokens > 1:
        rows, columns = grid(places[0] - layer.n_prefix_tokens, size)
        if abs(log(rows * size[1] / (columns * size[0]))) <= log(_DISTORTED):
            return rows, columns
    shape = " x ".join(map(str, layer.shape))
    raise LayerError(
        f"Layer {layer.name} keeps no places of the image (its output is {shape} for an input of {size[0]} x {size[1]}), so there is no "
        "map of where a group fires in it; look at the group's best patch, or at a group of a layer with space."
    )


def _layer_of(debugger: Debugger, group_id: str) -> Layer:
    known = {group.id: group.layer for group in debugger.circuit.groups if group.layer != LOGITS}
    if debugger.report is not None:
        known |= {entry["id"]: entry["layer"] for entry in debugger.report.json["groups"]}
    if group_id not in known:
        raise RunError(f"Run {debugger.run.id} has no group {group_id!r}.{near_matches(group_id, known)}")
    return debugger.layers[known[group_id]]


def _shown(debugger: Debugger, group_id: str, at_positions: np.ndarray) -> np.ndarray:
    """How strongly each position shows a group, 0..1."""
    if group_id in debugger.circuit.group:
        return presence(debugger.circuit.group[group_id], at_positions)
    group, filter = debugger.report.group(group_id), debugger.report.silencer(group_id).filter
    return np.clip((at_positions @ filter - group["usual"]) / max(group["typical"] - group["usual"], EPSILON), 0, 1)


# along which routes a wrong answer comes about


@dataclass(frozen=True)
class Route:
    """A way through the circuit, and how much of what speaks for the two answers takes it."""

    groups: tuple[str, ...]  # one of each layer, shallowest first; the logit follows the last
    wrong: float  # share of what speaks for the wrong answer, 0..1
    true: float  # share of what speaks for the true answer, 0..1


@dataclass(frozen=True)
class Blame:
    """Which routes carry the wrong answer on one image, beside those that carry the true one."""

    wrong_routes: tuple[Route, ...]  # strongest first, three at most; none where no positive edges lead up to the answer
    true_routes: tuple[Route, ...]
    contributions: dict[str, tuple[float, float]]  # by group: to the wrong and to the true logit, in logits
    gap: float  # of the attributions' completeness, relative, in the layer where it is largest: above 0.2 or so they say little


def blame(debugger: Debugger, path: Path, wrong_index: int, true_index: int) -> Blame:
    """The routes through the circuit that carry the wrong logit of an image, and those that carry the true one.

    What a group contributes to a logit: integrated gradients of the logit with respect to the output of the group's layer, from the zero
    baseline (Sundararajan et al. 2017), summed over positions and over the group's neurons; a neuron of two groups is shared between
    them as in the edges of the circuit.

    A route's share: what speaks for a logit (positive contributions) flows down from it and divides, in the deepest layer in proportion
    to the contributions of the groups there, and below each group in proportion to edge weight times contribution of the groups that
    feed it; edges and contributions that are not positive take nothing. The share is what arrives along the route: the product of the
    parts it takes at each step. A product rather than the weakest link, because many routes have their weakest link in common, and which
    of them came first would then hang on noise; the shares of all routes sum to 1 at most, so they can be read as parts of a whole.

    Args:
        wrong_index, true_index: classes, e.g. the predicted and the true one.

    Raises:
        InputError: the classes are the same or no classes of the model; DataError: the image cannot be read.
    """
    names = debugger.classifier.class_names
    for index in (wrong_index, true_index):
        if not 0 <= index < len(names):
            raise InputError(f"Class {index} is not one of the model's {len(names)} classes, 0 to {len(names) - 1}.")
    if wrong_index == true_index:
        raise InputError(f"The wrong and the true class are both {names[true_index]}; choose an image that is predicted wrong.")
    circuit, image = debugger.circuit, debugger.load([path])
    contributions: dict[str, tuple[float, float]] = {}
    gaps = []
    for layer in circuit.layers[1:]:
        found = _attribution(debugger, layer, image, (wrong_index, true_index))
        contributions |= _of_groups(circuit, layer, found.channels)
        gaps.append(found.relative_gap)
    wrong, true = ({group: values[side] for group, values in contributions.items()} for side in (0, 1))
    steps_wrong, steps_true = steps(circuit, wrong), steps(circuit, true)
    routes = [
        tuple(Route(groups, _share(groups, steps_wrong), _share(groups, steps_true)) for groups in strongest_routes(circuit, own))
        for own in (steps_wrong, steps_true)
    ]
    return Blame(*routes, contributions, max(gaps))


def _attribution(debugger: Debugger, layer: str, image: Tensor, classes: tuple[int, int]) -> Attribution:
    """Attributions of the logits of ``classes``, one row each, summed over positions.

    The rules of quadrature are tried from the cheapest on, until the attributions add up; where none does, the one that misses least.
    """
    segment = debugger.replay.segment(layer)
    context = segment.context(image) if segment.needs_context else None
    at_cut = record(debugger.classifier, image, [layer])[layer]
    place = debugger.layers[layer]
    best = None
    for nodes, crowding in _RULES:
        found = integrated_gradients(
            lambda scaled: segment.repeated(scaled, context, len(scaled)), at_cut, [classes], place.channel_axis, nodes, crowding, _COPIES
        )
        if best is None or found.relative_gap < best.relative_gap:
            best = found
        if best.relative_gap <= (_EXACT if nodes == 1 else _ADDS_UP):
            break
    n_positions = at_cut.numel() // place.n_channels
    return Attribution(best.channels * n_positions, best.change, best.gap)


def _of_groups(circuit: Circuit, layer: str, channels: np.ndarray) -> dict[str, tuple[float, float]]:
    """Contributions of the groups of a layer, from those of its channels: (2, n_channels)."""
    groups = circuit.groups_of(layer)
    share_of = shares(groups, [neuron for neuron in circuit.neurons if neuron.layer == layer])
    return {
        group.id: tuple(float(sum(share_of[neuron][group.id] * row[neuron] for neuron in group.neurons)) for row in channels)
        for group in groups
    }


def steps(circuit: Circuit, contributions: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """How what speaks for a logit divides on its way down: by (upper group, lower group), the part 0..1 that the lower group takes.

    The upper group of the deepest layer is the logit's. See ``blame`` for the rule.
    """
    parts: dict[tuple[str, str], float] = {}
    flows = {(_TOP, group.id): contributions[group.id] for group in circuit.groups_of(circuit.layers[1])}
    for edge in circuit.edges:
        if edge.target != _TOP and edge.weight > 0:
            flows[edge.target, edge.source] = edge.weight * contributions[edge.source]
    for upper in {pair[0] for pair in flows}:
        own = {pair: max(flow, 0.0) for pair, flow in flows.items() if pair[0] == upper}
        total = sum(own.values())
        parts |= {pair: flow / total for pair, flow in own.items() if total and flow}
    return parts


def strongest_routes(circuit: Circuit, parts: Mapping[tuple[str, str], float], n: int = ROUTES) -> tuple[tuple[str, ...], ...]:
    """The routes with the largest shares, strongest first: groups from the shallowest to the deepest layer.

    At most ``n``, and only those that carry at least a third of what the strongest one carries.
    """
    reached = {_TOP: [(1.0, ())]}  # by group: the best ways down to it, which is all that going on from it needs
    for layer in circuit.layers[1:]:
        found = {}
        for group in circuit.groups_of(layer):
            ways = [
                (share * parts[upper, group.id], (group.id, *route))
                for upper, known in reached.items()
                for share, route in known
                if (upper, group.id) in parts
            ]
            found[group.id] = sorted(ways, key=lambda way: (-way[0], way[1]))[:n]
        reached = found
    ways = sorted((way for known in reached.values() for way in known), key=lambda way: (-way[0], way[1]))[:n]
    return tuple(route for share, route in ways if share >= _WORTH_SHOWING * ways[0][0])


def _share(route: Sequence[str], parts: Mapping[tuple[str, str], float]) -> float:
    """What arrives along a route."""
    downwards = [_TOP, *reversed(route)]
    return float(np.prod([parts.get(pair, 0.0) for pair in pairwise(downwards)]))


# which right images look alike


@dataclass(frozen=True)
class Neighbour:
    """A correctly classified image that shows the same group."""

    path: str  # relative to the report's images
    true: str  # class
    presence: float  # of the group, 0..1
    distance: float  # between the presences of all groups, 0 is the same


def nearest(report: DebugReport, path: str, group_id: str, n: int = 6) -> list[Neighbour]:
    """Correctly classified images that show a group too, most alike first.

    Candidates show the group at its alarm level or above; where they are fewer than ``n``, those that show it most join them, behind.
    Alike are images whose presences of all groups of the report are near: Euclidean distance, because how strongly groups are shown
    matters as much as in which proportion. Groups that were not measured in the image, and images in which fewer were, are left out.

    Args:
        path: of an image of the report, relative to its folder.

    Raises:
        InputError: the report knows no such image; RunError: it knows no such group.
    """
    images, groups = report.json["images"], report.json["groups"]
    place = {image["path"]: number for number, image in enumerate(images)}
    if path not in place:
        raise InputError(f"Report {report.id} has no image {path!r}.{near_matches(path, place)}")
    shown, alarm = report.presence(group_id), report.group(group_id)["alarm_level"]
    profiles = np.stack([report.presence(entry["id"]) for entry in groups], axis=1)
    measured = ~np.isnan(profiles[place[path]])
    distance = np.linalg.norm((profiles - profiles[place[path]])[:, measured], axis=1)
    comparable = ~np.isnan(distance + shown)
    right = [number for number in np.flatnonzero(comparable) if _is_right(images[number]) and number != place[path]]
    showing = [number for number in right if shown[number] >= alarm]
    others = sorted(set(right) - set(showing), key=lambda number: -shown[number])
    chosen = [*sorted(showing, key=lambda number: distance[number])[:n], *others][:n]
    return [Neighbour(images[number]["path"], images[number]["true"], float(shown[number]), float(distance[number])) for number in chosen]


def _is_right(image: Mapping) -> bool:
    return image["true"] == image["predicted"]


# what a report shows


def evidence(debugger: Debugger, n: int = 4, draws: int = 20, seed: int = 0, groups: int = 3) -> tuple[Evidence, ...]:
    """What silencing each of the most misleading groups does to some wrong images, beside random controls.

    The images are drawn at random (seeded) from the wrong ones of the half that figures are reported on, so they are neither the best
    nor the ones that the groups were found on; those whose file is gone are passed over.

    Args:
        n: images of each group; groups: how many groups, at most.

    Raises:
        RunError: the debugger has no report.
    """
    report = debugger.report
    if report is None:
        raise RunError(f"There is no debug report of run {debugger.run.id} to give evidence of; run debug first.")
    target = debugger.circuit.target_name
    wrong = [image for image in report.json["images"] if image["true"] is not None and image["predicted"] == target != image["true"]]
    wrong = [image for image in wrong if image["half"] == "reported" and (report.images_root / image["path"]).is_file()]
    order = np.random.default_rng(seed).permutation(len(wrong))[:n]
    chosen = [wrong[place] for place in sorted(order)]
    paths = [report.images_root / image["path"] for image in chosen]
    found = []
    for group in [entry["id"] for entry in report.json["groups"] if entry["misleading"]][:groups] if chosen else []:
        silencers = debugger.silencers([group])
        effect = debugger.effect(paths, silencers)
        controls = debugger.control(paths, silencers, draws, seed)
        for image, path, before, after, control in zip(chosen, paths, effect.before, effect.after, controls, strict=True):
            pixels = debugger.classifier.preprocessing.to_pixels(debugger.load([path])[0])
            heat = _overlaid(debugger, path, group, pixels)
            found.append(Evidence(group, image["path"], image["true"], Image.fromarray(pixels), heat, before, after, control))
    return tuple(found)


def _overlaid(debugger: Debugger, path: Path, group_id: str, pixels: np.ndarray) -> Image.Image | None:
    """The image in grey with a group's heat map on it; None where there is no map."""
    try:
        heat = heat_map(debugger, path, group_id)
    except LayerError:
        return None
    return overlay(pixels, heat)


def overlay(pixels: np.ndarray, heat: np.ndarray) -> Image.Image:
    """Pixels (height, width, 3) of 0..255, grey and dimmed where a heat map (height, width) of 0..1 is cold, magenta where it is hot."""
    grey = np.repeat(pixels.mean(2, keepdims=True), 3, axis=2) * 0.75 + 40
    hot = grey * (1 - _STRONGEST) + np.array(_HOT) * _STRONGEST
    return Image.fromarray((grey + heat[:, :, None] * (hot - grey)).round().clip(0, 255).astype(np.uint8))
