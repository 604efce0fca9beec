"""What silencing does to the output of a layer: plain tensor operations, the same in the app and in a fix that is handed over.

In: a silencer and a layer's output. Out: a changed copy. Class and register tokens are changed by a filling only: a damping is about
positions of the image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from neurflow_engine.records import Damping, Filling, Layer, Silencer


def silenced(layer: Layer, output: Tensor, silencer: Silencer) -> Tensor:
    """A copy of the layer's output in which the silencer has done its work.

    Args:
        output: images first, e.g. (n, n_channels, height, width) or (n, n_tokens, n_channels).
    """
    return filled(layer, output, silencer) if isinstance(silencer, Filling) else damped(layer, output, silencer)


def filled(layer: Layer, output: Tensor, filling: Filling) -> Tensor:
    """A copy in which the neurons have their fixed values at every position."""
    index = torch.as_tensor(filling.neurons, dtype=torch.long, device=output.device)
    values = torch.as_tensor(filling.values, dtype=output.dtype, device=output.device)
    shape = [1] * output.ndim
    shape[layer.channel_axis] = len(values)
    expanded = list(output.shape)
    expanded[layer.channel_axis] = len(values)
    return output.index_copy(layer.channel_axis, index, values.view(shape).expand(expanded).contiguous())


def zeroed(layer: Layer, output: Tensor, neurons: Sequence[int]) -> Tensor:
    """A copy in which the neurons are zero at every position."""
    return filled(layer, output, Filling(layer.name, tuple(neurons), (0.0,) * len(neurons)))


def damped(layer: Layer, output: Tensor, damping: Damping) -> Tensor:
    """A copy in which what exceeds the level along the direction is taken away (``Damping`` gives the formula).

    The damping's vectors may be tensors too; gradients flow to them.
    """
    tensor = lambda vector: torch.as_tensor(vector, device=output.device, dtype=output.dtype)  # noqa: E731
    taken = along_channels(layer, output.ndim, tensor(damping.pattern))
    if damping.variation is not None:
        usual, reading, writing = (tensor(vector) for vector in vars(damping.variation).values())
        there = output.movedim(layer.channel_axis, -1) - usual
        taken = taken + (there @ reading.mT @ writing).movedim(-1, layer.channel_axis)
    return output - excess(layer, output, damping) * taken


def excess(layer: Layer, output: Tensor, damping: Damping) -> Tensor:
    """How far each position lies above the level, with an axis of length 1 in place of the channels; 0 for prefix tokens."""
    filter = torch.as_tensor(damping.filter, device=output.device, dtype=output.dtype)
    shown = (output * along_channels(layer, output.ndim, filter)).sum(layer.channel_axis, keepdim=True)
    positions = [axis for axis in range(1, output.ndim) if axis != layer.channel_axis]
    of_image = shown
    if positions:
        patches = shown.narrow(1, layer.n_prefix_tokens, shown.shape[1] - layer.n_prefix_tokens) if layer.n_prefix_tokens else shown
        over = torch.mean if damping.scope == "image" else torch.amax
        of_image = over(patches, positions, keepdim=True).expand_as(shown)
    above = torch.relu((shown if damping.scope == "position" else of_image) - damping.level)
    if damping.most is not None:
        above = above.clamp(max=damping.most)
    if damping.least is not None:
        above = above * (of_image - damping.least).clamp(0.0, 1.0)
    if layer.n_prefix_tokens:
        above = torch.cat([torch.zeros_like(above[:, : layer.n_prefix_tokens]), above[:, layer.n_prefix_tokens :]], 1)
    return above


def along_channels(layer: Layer, n_axes: int, vector: Tensor) -> Tensor:
    """A vector (n_channels,) with the axes of the layer's output."""
    shape = [1] * n_axes
    shape[layer.channel_axis] = len(vector)
    return vector.view(shape)
