"""Integrated gradients of a callable, with its own completeness gap.

In: a differentiable function of a tensor and, for each sample, the outputs to explain. Out: attributions reduced per channel, and how
far they are from adding up. Knows nothing of models: the forward pass at a quadrature node is shared by all outputs of a sample.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RULES = ((1, 1), (8, 1), (8, 2), (16, 2))  # (nodes, power) tried in turn: one node is exact where the network is linear


@dataclass(frozen=True)
class Attribution:
    """Integrated gradients of pairs (sample, output), reduced over positions.

    ``channels`` is (n_pairs, n_channels): mean over positions of the signed attribution.
    ``change`` is f(x) - f(0) of each pair and ``gap`` is |sum of attributions - change|, both (n_pairs,).
    """

    channels: Tensor
    change: Tensor
    gap: Tensor

    def rows(self, indices: Sequence[int]) -> "Attribution":
        """The chosen pairs, in the order of ``indices``."""
        return Attribution(self.channels[indices], self.change[indices], self.gap[indices])

    @property
    def relative_gap(self) -> float:
        """Sum of gaps over sum of |change|: 0 means that the attributions add up (completeness axiom)."""
        return float(self.gap.sum() / self.change.abs().sum().clamp(min=1e-12))


def gauss_legendre(n_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (n_nodes,) of Gauss-Legendre quadrature on [0, 1]; exact for polynomials of degree 2 n - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    return (nodes + 1) / 2, weights / 2


def path_nodes(n_nodes: int, power: int) -> tuple[np.ndarray, np.ndarray]:
    """Where on the path from the baseline (0) to the input (1) gradients are taken, and their weights: both (n_nodes,).

    Gauss-Legendre nodes t of the integral over a = t^p, da = p t^(p-1) dt. With power 2 they lie closer near the baseline, where
    networks with LayerNorm change fastest; with power 1, even nodes suit networks that are linear in pieces.
    """
    nodes, weights = gauss_legendre(n_nodes)
    return nodes**power, power * nodes ** (power - 1) * weights


def quadrature_rule(gap_of: Callable[[int, int], float], tolerance: float) -> tuple[int, int]:
    """(nodes, power) of the first rule whose relative gap is within ``tolerance``; where none is, of the one with the smallest gap.

    A single node is never taken as the lesser evil: it is right for linear networks only.
    """
    gaps = {}
    for rule in RULES:
        gaps[rule] = gap_of(*rule)
        if gaps[rule] <= tolerance:
            return rule
    return min(RULES[1:], key=gaps.get)


def integrated_gradients(
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    wanted: Sequence[Sequence[int]],
    channel_axis: int,
    n_nodes: int,
    power: int = 1,
) -> Attribution:
    """Integrated gradients from the zero baseline (Sundararajan et al. 2017, eq. 1), x * integral of df/dx(a x) over a in [0, 1].

    Args:
        function: maps (n, ...) to (n, n_outputs), sample by sample (no sample may influence another).
            It is called with ``n_nodes * n_samples`` scaled copies, node by node.
        inputs: (n_samples, ...) with channels along ``channel_axis``.
        wanted: for each sample the outputs to explain.
        channel_axis: axis of the channels in ``inputs``, counted with the sample axis in front.
        n_nodes, power: the quadrature rule, see ``path_nodes``.

    Returns:
        One row per (sample, output) pair, samples in order and outputs in the order of ``wanted``.
    """
    n_samples, n_channels = len(inputs), inputs.shape[channel_axis]
    first_row = np.concatenate([[0], np.cumsum([len(outputs) for outputs in wanted])])
    channels = inputs.new_zeros((first_row[-1], n_channels))
    totals, change = inputs.new_zeros(first_row[-1]), inputs.new_zeros(first_row[-1])

    nodes, weights = (torch.as_tensor(values, dtype=inputs.dtype, device=inputs.device) for values in path_nodes(n_nodes, power))
    shape = (n_nodes, *(1 for _ in range(inputs.ndim)))
    scaled = (nodes.view(shape) * inputs).flatten(0, 1).requires_grad_(True)
    with torch.enable_grad():
        outputs = function(scaled)
    outputs = outputs.view(n_nodes, n_samples, -1)
    rounds = max((len(columns) for columns in wanted), default=0)
    for number in range(rounds):
        samples = [sample for sample, columns in enumerate(wanted) if number < len(columns)]
        columns = [wanted[sample][number] for sample in samples]
        rows = torch.as_tensor(first_row[samples] + number, device=inputs.device)
        (gradient,) = torch.autograd.grad(outputs[:, samples, columns].sum(), scaled, retain_graph=number < rounds - 1)
        mean_gradient = (weights.view(shape) * gradient.view(n_nodes, *inputs.shape)[:, samples]).sum(0)
        attribution = (mean_gradient * inputs[samples]).movedim(channel_axis, 1).flatten(2)
        channels[rows] = attribution.mean(2)
        totals[rows] = attribution.sum((1, 2))
    with torch.no_grad():
        ends = function(torch.cat([inputs, torch.zeros_like(inputs)])).view(2, n_samples, -1)
        for sample, columns in enumerate(wanted):
            change[first_row[sample] : first_row[sample + 1]] = (ends[0] - ends[1])[sample, list(columns)]
    return Attribution(channels, change, (totals - change).abs())


def joined(parts: Sequence[Attribution]) -> Attribution:
    """Attributions of several batches as one."""
    return Attribution(*(torch.cat([getattr(part, name) for part in parts]) for name in ("channels", "change", "gap")))
