"""The layers of a network: where it can be cut, and along which axis its neurons lie.

In: a network and its input shape. Out: ``Layer`` records, ordered from input to output. Facts come from timm's own metadata and from
two forward passes; nothing here knows an architecture by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neurflow_engine.errors import LayerError, near_matches
from neurflow_engine.records import LOGITS, Layer
from neurflow_engine.tracing import Call, Network, trace


@dataclass(frozen=True)
class Anatomy:
    """Everything that can be cut in a network, and the places that timm names as its stages."""

    layers: dict[str, Layer]  # by name, ordered from input to output; ``logits`` last
    stages: tuple[str, ...]  # from input to output, without logits
    unfit: dict[str, str]  # names of modules that cannot be cut at, and why

    @property
    def places(self) -> tuple[str, ...]:
        """What to offer in a list: the stages and the blocks inside them, from input to output."""
        parents = {name.rpartition(".")[0] for name in self.stages}

        def offered(name: str) -> bool:
            parent, _, number = name.rpartition(".")
            is_block = parent in parents or parent.removesuffix(".blocks") in self.stages
            return name in self.stages or (number.isdigit() and is_block and parent != "")

        return tuple(name for name in self.layers if offered(name))

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
    """Find the layers of a network by watching it at work on two noise images of ``input_shape`` (channels, height, width)."""
    generator = torch.Generator().manual_seed(0)
    parameter = next(network.model.parameters())
    noise = torch.randn((2, *input_shape), generator=generator).to(parameter.device, parameter.dtype)
    calls = trace(network, noise, keep=lambda name, output: tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__)
    with network.lock, torch.no_grad():
        n_classes = network.model(noise).shape[-1]
    described = {info["module"]: info["num_chs"] for info in _feature_info(network.model)}
    channels_last = getattr(network.model, "output_fmt", "NCHW") == "NHWC"
    n_prefix = getattr(network.model, "num_prefix_tokens", 0)

    counts: dict[str, int] = {}
    for call in calls:
        counts[call.name] = counts.get(call.name, 0) + 1
    layers, unfit = {}, {}
    for call in calls:
        if counts[call.name] > 1:
            unfit[call.name] = f"it is called {counts[call.name]} times in one forward pass"
        elif isinstance(call.output, str):
            unfit[call.name] = f"its output is a {call.output}, not one tensor"
        elif len(call.output) < 2 or call.output[0] != 2:
            unfit[call.name] = f"its output of shape {call.output} has no image axis in front"
        else:
            layers[call.name] = _layer(call, described.get(call.name), channels_last, n_prefix)
    layers = {name: _without_prefix_where_absent(layer, layers, n_prefix) for name, layer in layers.items()}
    stages = tuple(name for name in layers if name in described) or _row_of_blocks(calls, layers)
    if not stages:
        raise LayerError("No layer of this model can be cut: timm names none of its modules as a stage that returns one tensor.")
    layers[LOGITS] = Layer(LOGITS, n_classes, 1, (n_classes,))
    return Anatomy(layers, _with_last_features(layers, stages), unfit)


def _feature_info(model) -> list[dict]:
    info = getattr(model, "feature_info", None) or []
    entries = info if isinstance(info, list) else info.info
    return [entry for entry in entries if entry.get("module")]


def _layer(call: Call, n_channels: int | None, channels_last: bool, n_prefix: int) -> Layer:
    shape = call.output[1:]
    conventional = {1: 1, 2: 2, 3: 3 if channels_last else 1}.get(len(shape), 1)
    matching = [axis for axis, size in enumerate(shape, start=1) if size == n_channels]
    axis = conventional if conventional in matching or not matching else matching[0]
    return Layer(call.name, shape[axis - 1], axis, shape, n_prefix if len(shape) == 2 else 0)


def _without_prefix_where_absent(layer: Layer, layers: dict[str, Layer], n_prefix: int) -> Layer:
    """Token layers before the class token is joined, or after it is dropped, have fewer tokens than the longest ones."""
    if not layer.n_prefix_tokens:
        return layer
    n_tokens = [other.shape[2 - other.channel_axis] for other in layers.values() if len(other.shape) == 2]
    is_short = layer.shape[2 - layer.channel_axis] + n_prefix in n_tokens
    return replace(layer, n_prefix_tokens=0) if is_short else layer


def _row_of_blocks(calls: Sequence[Call], layers: dict[str, Layer]) -> tuple[str, ...]:
    """The top-level modules that keep space, for a model without usable metadata."""
    return tuple(call.name for call in calls if "." not in call.name and call.name in layers and len(layers[call.name].shape) > 1)


def _with_last_features(layers: dict[str, Layer], stages: tuple[str, ...]) -> tuple[str, ...]:
    """Append the last top-level module before pooling where it makes new features, e.g. the 1x1 convolution of a MobileNet."""
    order = list(layers)
    later = [name for name in order[order.index(stages[-1]) + 1 :] if "." not in name and len(layers[name].shape) > 1]
    spatial = [name for name in later if layers[name].shape[-2:] != (1, 1) and not stages[-1].startswith(name + ".")]
    if spatial and layers[spatial[-1]].n_channels != layers[stages[-1]].n_channels:
        return (*stages, spatial[-1])
    return stages


def pooled(layer: Layer, output: Tensor) -> Tensor:
    """Activation of each neuron: mean over space or patch tokens.

    Args:
        output: the layer's output, images first, e.g. (n, n_channels, height, width) or (n, n_tokens, n_channels).

    Returns:
        (n, n_channels).
    """
    tokens = output[:, layer.n_prefix_tokens :] if layer.n_prefix_tokens else output
    return tokens.movedim(layer.channel_axis, 1).flatten(2).mean(2) if tokens.ndim > 2 else tokens


def channel_means(layer: Layer, output: Tensor) -> Tensor:
    """Mean over all positions, class and register tokens included: (n, n_channels)."""
    return pooled(replace(layer, n_prefix_tokens=0), output)


def silenced(layer: Layer, output: Tensor, neurons: Sequence[int]) -> Tensor:
    """A copy of the layer's output in which the given neurons are zero at every position."""
    quiet = output.clone()
    quiet.index_fill_(layer.channel_axis, torch.as_tensor(list(neurons), dtype=torch.long, device=output.device), 0)
    return quiet
