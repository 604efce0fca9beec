"""Integrated gradients of a callable, with its own completeness gap.

In: a differentiable function of a tensor and, for each sample, the outputs to explain. Out: attributions reduced per channel, and how
far they are from adding up. Knows nothing of models: the forward pass at a quadrature node is shared by all outputs of a sample.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# (nodes, crowding) tried in turn; one node is exact where the network is linear. The last is what the others are compared with.
RULES = ((1, 0), (8, 0), (8, 6), (16, 0), (16, 6), (32, 6))
_LINEAR = 0.01  # relative gap of a single node up to which a network counts as linear
_CONVERGED = 0.1  # distance from the finest rule up to which attributions count as converged: it leaves the core neurons as they are


@dataclass(frozen=True)
class Attribution:
    """Integrated gradients of pairs (sample, output), reduced over positions.

    ``channels`` is (n_pairs, n_channels): mean over positions of the signed attribution.
    ``change`` is f(x) - f(0) of each pair and ``gap`` is |sum of attributions - change|, both (n_pairs,).
    """

    channels: np.ndarray
    change: np.ndarray
    gap: np.ndarray

    @property
    def relative_gap(self) -> float:
        """Sum of gaps over sum of |change|: 0 means that the attributions add up (completeness axiom)."""
        return float(self.gap.sum() / max(np.abs(self.change).sum(), 1e-12))

    def distance(self, other: "Attribution") -> float:
        """Sum of absolute differences over channels, relative to the sum of the other's absolute values: median over the same pairs."""
        differences = np.abs(self.channels - other.channels).sum(1) / np.maximum(np.abs(other.channels).sum(1), 1e-12)
        return float(np.median(differences))


def gauss_legendre(n_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (n_nodes,) of Gauss-Legendre quadrature on [0, 1]; exact for polynomials of degree 2 n - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    return (nodes + 1) / 2, weights / 2


def path_nodes(n_nodes: int, crowding: float) -> tuple[np.ndarray, np.ndarray]:
    """Where on the path from the baseline (0) to the input (1) gradients are taken, and their weights: both (n_nodes,).

    Gauss-Legendre nodes t of the integral over a = (e^ct - 1) / (e^c - 1), da = c e^ct / (e^c - 1) dt, with c the crowding: the larger, the
    more nodes lie near the baseline, where networks with LayerNorm change fastest. 0 means even nodes, a = t, which suit networks that
    are linear in pieces.
    """
    nodes, weights = gauss_legendre(n_nodes)
    if not crowding:
        return nodes, weights
    scale = np.expm1(crowding)
    return np.expm1(crowding * nodes) / scale, crowding * np.exp(crowding * nodes) / scale * weights


def quadrature_rule(attribution_of: Callable[[int, float], Attribution], tolerance: float) -> tuple[int, float]:
    """(nodes, crowding) of the cheapest rule that is good enough on a few trial pairs.

    Good enough: the attributions add up (relative gap within ``tolerance``) and differ little from those of the finest rule. Adding up
    alone is not enough, because errors of channels cancel; and where no rule adds up, as in networks that jump at the baseline, the
    second decides alone. A single node is for linear networks only: their gap is far below any tolerance.
    """
    if attribution_of(*RULES[0]).relative_gap <= min(_LINEAR, tolerance):
        return RULES[0]
    finest = attribution_of(*RULES[-1])
    close = []
    for rule in RULES[1:-1]:
        found = attribution_of(*rule)
        if found.distance(finest) <= _CONVERGED:
            if found.relative_gap <= tolerance:
                return rule
            close.append(rule)
    return RULES[-1] if finest.relative_gap <= tolerance or not close else close[0]


def integrated_gradients(
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    wanted: Sequence[Sequence[int]],
    channel_axis: int,
    n_nodes: int,
    crowding: float = 0,
    max_copies: int = 1 << 30,
    mixed: bool = False,
    ends: tuple[Tensor, Tensor] | None = None,
) -> Attribution:
    """Integrated gradients from the zero baseline (Sundararajan et al. 2017, eq. 1), x * integral of df/dx(a x) over a in [0, 1].

    Args:
        function: maps (n, ...) to (n, n_outputs), sample by sample (no sample may influence another).
            It is called with whole multiples of the samples: their scaled copies, node by node.
        inputs: (n_samples, ...) with channels along ``channel_axis``.
        wanted: for each sample the outputs to explain.
        channel_axis: axis of the channels in ``inputs``, counted with the sample axis in front.
        n_nodes, crowding: the quadrature rule, see ``path_nodes``.
        max_copies: scaled copies in one call of the function, at most, as far as one node of all samples allows.
        mixed: gradients in bfloat16 where the operators have it; f(x) - f(0) stays in float32.
        ends: f(x) and f(0), (n_samples, n_outputs) each, where they are known already.

    Returns:
        One row per (sample, output) pair, samples in order and outputs in the order of ``wanted``.
    """
    n_samples, n_channels = len(inputs), inputs.shape[channel_axis]
    first_row = np.concatenate([[0], np.cumsum([len(outputs) for outputs in wanted])]).astype(int)
    channels = inputs.new_zeros((first_row[-1], n_channels))
    totals, change = inputs.new_zeros(first_row[-1]), inputs.new_zeros(first_row[-1])
    rounds = []  # the number-th output of every sample that has so many: one backward pass for all of them
    for number in range(max((len(columns) for columns in wanted), default=0)):
        samples = [sample for sample, columns in enumerate(wanted) if number < len(columns)]
        rounds.append((samples, [wanted[sample][number] for sample in samples], first_row[samples] + number))

    nodes, weights = path_nodes(n_nodes, crowding)
    at_once = max(1, max_copies // n_samples)
    for start in range(0, n_nodes, at_once):
        own_nodes, own_weights = nodes[start : start + at_once], weights[start : start + at_once]
        scaled = torch.cat([inputs * float(node) for node in own_nodes]).requires_grad_(True)
        with torch.enable_grad(), torch.autocast(inputs.device.type, torch.bfloat16, enabled=mixed):
            outputs = function(scaled)
        outputs = outputs.view(len(own_nodes), n_samples, -1)
        for number, (samples, columns, rows) in enumerate(rounds, start=1):
            chosen = outputs[:, samples, columns].sum()
            (gradient,) = torch.autograd.grad(chosen, scaled, retain_graph=number < len(rounds))
            attribution = (_weighted_sum(gradient, own_weights, n_samples) * inputs).movedim(channel_axis, 1).flatten(2)[samples]
            channels[rows] += attribution.mean(2)
            totals[rows] += attribution.sum((1, 2))
    with torch.no_grad():
        at_input, at_baseline = ends or function(torch.cat([inputs, torch.zeros_like(inputs)])).split(n_samples)
        for sample, columns in enumerate(wanted):
            change[first_row[sample] : first_row[sample + 1]] = (at_input - at_baseline)[sample, list(columns)]
    gap = (totals - change).abs()
    return Attribution(*(values.float().cpu().numpy() for values in (channels, change, gap)))


def _weighted_sum(gradient: Tensor, weights: np.ndarray, n_samples: int) -> Tensor:
    """Sum over nodes of weight times gradient, (n_nodes * n_samples, ...) to (n_samples, ...); node by node, as that stays in caches."""
    parts = gradient.split(n_samples)
    total = parts[0] * float(weights[0])
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total.add_(part, alpha=float(weight))
    return total
