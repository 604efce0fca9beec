"""The layers of a network: where it can be cut, and along which axis its neurons lie.

In: a network and its input shape. Out: ``Layer`` records, ordered from input to output. Facts come from timm's own metadata and from
two forward passes; nothing here knows an architecture by name.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from math import log, prod

import torch
from torch import Tensor, nn

from neurflow_engine.errors import LayerError, near_matches
from neurflow_engine.records import LOGITS, Layer
from neurflow_engine.tracing import Network, Place, edited, leaves, map_leaves, record, trace


@dataclass(frozen=True)
class Anatomy:
    """Everything that can be cut in a network, and the places that timm names as its stages."""

    layers: dict[str, Layer]  # by name, ordered from input to output; ``logits`` last
    stages: tuple[str, ...]  # from input to output, without logits
    unfit: dict[str, str]  # names of modules that cannot be cut at, and why

    @property
    def places(self) -> tuple[str, ...]:
        """What to offer in a list: the stages and the blocks inside them, from input to output."""
        stages = {Place.of(name).module for name in self.stages}
        parents = {module.rpartition(".")[0] for module in stages}

        def offered(name: str) -> bool:
            module = Place.of(name).module
            parent, _, number = module.rpartition(".")
            is_block = parent in parents or parent.removesuffix(".blocks") in stages
            return module in stages or (number.isdigit() and is_block and parent != "")

        return tuple(name for name in self.layers if offered(name))

    @property
    def entry(self) -> tuple[str, ...]:
        """What leads into the first of the places, e.g. a stem or the embedding of patches; none where a stage is that already."""
        first = self.places[0]
        within = Place.of(first).module.partition(".")[0]
        before = list(self.layers)[: list(self.layers).index(first)]
        return tuple(name for name in before if Place.of(name).module.partition(".")[0] != within)[-1:]

    def default(self, depth: int) -> tuple[str, ...]:
        """``depth`` stages, deepest first; evenly spaced where a network is a long row of equal blocks."""
        shapes = {self.layers[name].shape for name in self.stages}
        step = max(1, len(self.stages) // max(4, depth)) if len(shapes) <= 2 else 1
        return self.stages[::-1][::step][:depth]

    def chosen(self, names: Sequence[str] | None, depth: int) -> tuple[Layer, ...]:
        """The layers to analyse, ``logits`` first and then deepest to shallowest.

        Raises:
            LayerError: a name does not exist, cannot be cut at, or the names are not ordered from deep to shallow.
        """
        names = tuple(names) if names else self.default(depth)
        if LOGITS in names:
            raise LayerError(f"The {LOGITS} are always analysed; name the layers below them, e.g. {','.join(self.default(depth))}.")
        for name in names:
            if name in self.unfit:
                raise LayerError(f"Layer {name} cannot be used: {self.unfit[name]}; choose among {', '.join(self.places)}.")
            if name not in self.layers:
                raise LayerError(
                    f"Layer {name!r} is not in this model.{near_matches(name, self.layers)} Its stages are {', '.join(self.stages)}."
                )
        order = list(self.layers)
        if list(names) != sorted(names, key=order.index, reverse=True):
            right = ",".join(sorted(names, key=order.index, reverse=True))
            raise LayerError(f"Layers {','.join(names)} are not listed deepest first; write {right}.")
        return (self.layers[LOGITS], *(self.layers[name] for name in names))


def examine(network: Network, input_shape: tuple[int, int, int]) -> Anatomy:
    """Find the layers of a network by watching it at work on two noise images of ``input_shape`` (channels, height, width).

    Raises:
        LayerError: the network has no place where it can be cut.
    """
    generator = torch.Generator().manual_seed(0)
    parameter = next(network.model.parameters())
    noise = torch.randn((2, *input_shape), generator=generator).to(parameter.device, parameter.dtype)
    calls = trace(network, noise, keep=lambda name, output: map_leaves(Tensor, lambda tensor: tensor.shape, output))
    n_classes = record(network, noise[:1], [LOGITS])[LOGITS].shape[-1]
    described = _described_stages(network.model)
    find_axis = _AxisFinder(input_shape[1:], getattr(network.model, "output_fmt", "NCHW") == "NHWC")

    counts = Counter(call.name for call in calls)
    layers, unfit = {}, {}
    for call in calls:
        shapes = dict(leaves(torch.Size, call.output))
        if counts[call.name] > 1:
            unfit[call.name] = f"it is called {counts[call.name]} times in one forward pass"
            continue
        if () not in shapes:
            inside = ", ".join(Place(call.name, path).name for path in shapes)
            holding = f"not one tensor; name one of those it holds, {inside}" if inside else "which holds no tensor"
            unfit[call.name] = f"its output is a {type(call.output).__name__}, {holding}"
        for path, shape in shapes.items():
            name = Place(call.name, path).name
            if len(shape) < 2 or shape[0] != 2:
                unfit[name] = f"its output of shape {tuple(shape)} has no image axis in front"
            else:
                axis = find_axis(shape[1:], described.get(call.name, frozenset()))
                layers[name] = Layer(name, shape[axis], axis, tuple(shape[1:]))
    layers = _with_prefix_tokens(layers, _n_prefix_tokens(network.model))
    stages = _stages(network, noise[:1], described, layers)
    if not stages:
        raise LayerError("No layer of this model can be cut: none of its modules is called once and returns a tensor with space or tokens.")
    stages = _with_last_features(layers, stages, n_classes)
    layers[LOGITS] = Layer(LOGITS, n_classes, 1, (n_classes,))
    return Anatomy(layers, stages, unfit)


def _described_stages(model: nn.Module) -> dict[str, frozenset[int]]:
    """The modules that timm's ``feature_info`` names as stages, in its order, with the numbers of channels it gives for each."""
    info = getattr(model, "feature_info", None) or []
    found: dict[str, frozenset[int]] = {}
    for entry in info if isinstance(info, list) else info.info:
        if entry.get("module"):
            found[entry["module"]] = found.get(entry["module"], frozenset()) | {entry["num_chs"]}
    modules = dict(model.named_modules())
    return {_existing(name, found, modules): channels for name, channels in found.items()}


def _existing(name: str, described: Sequence[str], modules: dict[str, nn.Module]) -> str:
    """``name``; where it is no module, as ``block.2``, the same place in the row of as many modules most alike in name, ``blocks``."""
    row, _, number = name.rpartition(".")
    if name in modules or not number.isdigit():
        return name
    numbers = {other.rpartition(".")[2] for other in described if other.rpartition(".")[0] == row}
    rows = [other for other, module in modules.items() if other and {child for child, _ in module.named_children()} == numbers]
    rows.sort(key=lambda other: (other.count("."), -SequenceMatcher(None, other, row).ratio()))
    return f"{rows[0]}.{number}" if rows else name


@dataclass(frozen=True)
class _AxisFinder:
    """Tells along which axis of an output, counted with its image axis, the neurons lie."""

    image_size: tuple[int, int]
    channels_last: bool

    def __call__(self, shape: Sequence[int], described: frozenset[int]) -> int:
        """The axis of as many channels as ``described``; else the one beside which space has the image's proportions; else timm's rule."""
        conventional = {1: 1, 2: 2, 3: 3 if self.channels_last else 1}.get(len(shape), 1)
        candidates = [axis for axis, size in enumerate(shape, start=1) if size in described] or list(range(1, len(shape) + 1))
        if len(shape) == 3:
            likely = {1: self._distortion(*shape[1:]), 3: self._distortion(*shape[:2])}
            candidates = [axis for axis in candidates if likely.get(axis) == min(likely.values())] or candidates
        return conventional if conventional in candidates else candidates[0]

    def _distortion(self, height: int, width: int) -> float:
        return abs(log(height * self.image_size[1] / (width * self.image_size[0])))


def _n_prefix_tokens(model: nn.Module) -> int:
    """Class, distillation and register tokens in front of the patch tokens: what the model declares, else the size of its class token."""
    declared = getattr(model, "num_prefix_tokens", None)
    if declared is not None:
        return declared
    tokens = [value.shape[1] for name, value in model.named_parameters() if "cls_token" in name and value.ndim == 3]
    return max(tokens, default=0)


def _with_prefix_tokens(layers: dict[str, Layer], n_prefix: int) -> dict[str, Layer]:
    """Note the prefix tokens of each layer of tokens that has them.

    Layers before the class token is joined, or after it is dropped, have fewer tokens than the longest ones.
    """
    n_tokens = {name: layer.shape[0] for name, layer in layers.items() if len(layer.shape) == 2 and layer.channel_axis == 2}
    known = set(n_tokens.values())
    return {
        name: replace(layer, n_prefix_tokens=n_prefix)
        if name in n_tokens and n_tokens[name] > n_prefix and n_tokens[name] + n_prefix not in known
        else layer
        for name, layer in layers.items()
    }


def _stages(network: Network, image: Tensor, described: dict[str, frozenset[int]], layers: dict[str, Layer]) -> tuple[str, ...]:
    """One layer for each described stage, from input to output.

    Where fewer than two can be cut, the outermost modules that keep space are stages too, looked for from the top down.
    """
    spatial = dict.fromkeys(Place.of(name).module for name, layer in layers.items() if prod(layer.shape) > layer.n_channels)
    stages: tuple[str, ...] = ()
    for depth in range(-1, 3):
        outermost = {module: frozenset() for module in spatial if module.count(".") <= depth}
        stages = _one_of_each(network, image, outermost | described, layers)
        if len(stages) > 1:
            break
    return stages


def _one_of_each(network: Network, image: Tensor, modules: dict[str, frozenset[int]], layers: dict[str, Layer]) -> tuple[str, ...]:
    """A layer for each module that has one, given the numbers of channels it is said to have, from input to output.

    Of several tensors that a module returns, the one most as described, spatial and wide among those that lead to the next module's.
    """
    order = list(layers)
    choices = [(names, channels) for module, channels in modules.items() if (names := _at_or_inside(module, layers))]
    found, upper = set(), LOGITS
    for names, channels in sorted(choices, key=lambda choice: order.index(choice[0][-1]), reverse=True):

        def rank(name: str, channels=channels) -> tuple:
            return layers[name].n_channels in channels, len(layers[name].shape), layers[name].n_channels, order.index(name)

        ranked = sorted(names, key=rank, reverse=True)
        best = next((name for name in ranked if len(ranked) == 1 or _leads(network, image, name, upper)), None)
        if best:
            found.add(best)
            upper = best
    return tuple(name for name in layers if name in found)


def _at_or_inside(module: str, layers: dict[str, Layer]) -> list[str]:
    """The layers in a module's output; where it has none, those in the output of the last module inside it that has."""
    if own := [name for name in layers if Place.of(name).module == module]:
        return own
    inside = [Place.of(name).module for name in layers if name.startswith(f"{module}.")]
    return [name for name in layers if Place.of(name).module == inside[-1]] if inside else []


def _leads(network: Network, image: Tensor, lower: str, upper: str) -> bool:
    """Whether layer ``upper`` depends on layer ``lower``: NaN there leave a trace."""
    with edited(network, lower, lambda output: torch.full_like(output, float("nan"))):
        return bool(record(network, image, [upper])[upper].isnan().any())


def _with_last_features(layers: dict[str, Layer], stages: tuple[str, ...], n_classes: int) -> tuple[str, ...]:
    """Append the last top-level module before pooling where it makes new features, e.g. the 1x1 convolution of a MobileNet.

    As many channels as classes are no features but scores of places, as an auxiliary head gives.
    """
    order = list(layers)
    later = [name for name in order[order.index(stages[-1]) + 1 :] if "." not in name and len(layers[name].shape) > 1]
    later = [name for name in later if layers[name].n_channels != n_classes]
    spatial = [name for name in later if layers[name].shape[-2:] != (1, 1) and not stages[-1].startswith(name + ".")]
    if spatial and layers[spatial[-1]].n_channels != layers[stages[-1]].n_channels:
        return (*stages, spatial[-1])
    return stages


def pooled(layer: Layer, output: Tensor) -> Tensor:
    """Activation of each neuron: mean over space or patch tokens.

    Args:
        output: the layer's output, images first, e.g. (n, n_channels, height, width) or (n, n_tokens, n_channels).

    Returns:
        (n, n_channels), float32 where the output has less precision.
    """
    tokens = output[:, layer.n_prefix_tokens :] if layer.n_prefix_tokens else output
    spread = tokens.movedim(layer.channel_axis, 1).flatten(2) if tokens.ndim > 2 else tokens[..., None]
    return spread.mean(2, dtype=torch.float32 if output.dtype.itemsize < 4 else None)


def positions(layer: Layer, output: Tensor) -> Tensor:
    """What each position of the image has in each neuron, without prefix tokens: (n, n_positions, n_channels)."""
    tokens = output[:, layer.n_prefix_tokens :] if layer.n_prefix_tokens else output
    return tokens.movedim(layer.channel_axis, -1).flatten(1, -2) if tokens.ndim > 2 else tokens[:, None]
