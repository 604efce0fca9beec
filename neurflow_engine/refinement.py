"""A damping improved by what it does: a few gradient steps from where the contrast of activations put it.

In: a damping, wrong images that it is to mend and right ones that it is to leave alone. Out: a damping of the same layer, scope and
level. A mean difference says what a mark adds to a layer, not what must be taken away so that the layers above no longer see it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from neurflow_engine.cases import Cases
from neurflow_engine.effort import PER_STEP
from neurflow_engine.records import Damping, Variation
from neurflow_engine.silencing import damped
from neurflow_engine.trials import Trials

_PIXELS_AT_ONCE = 32 * 128 * 128  # of the images whose gradients are computed together, to bound the memory they take
_RATE = 0.06  # of Adam, in units of each neuron's own spread; falls to 0 along a cosine
_LEAVE_ALONE = 8.0  # weight of right images in the end: how much a changed answer there counts against a mended one


def pattern_refined(
    trials: Trials, damping: Damping, cases: Cases, scale: tuple[np.ndarray, np.ndarray], steps: int, seed: int = 0
) -> Damping:
    """The damping after some steps of Adam on its pattern: when it acts, and how that varies, stay as they are.

    Few numbers and few steps, so that they are learned from few images; see ``whole_refined`` for the loss and the arguments.
    """
    pattern, spread = _tensors(trials, damping.pattern, scale[1])
    move = torch.zeros_like(pattern)
    return _descended(trials, cases, [move], lambda: replace(damping, pattern=pattern + move * spread), steps, seed)


def whole_refined(
    trials: Trials, damping: Damping, cases: Cases, scale: tuple[np.ndarray, np.ndarray], steps: int, rank: int = 0, seed: int = 0
) -> Damping:
    """The damping after some steps of Adam on its filter and pattern, and on a variation; the network's weights stay as they are.

    The loss is the cross-entropy of wrong images to their true class, plus a rising weight times the divergence (Kullback-Leibler) of
    right images' answers from those of the intact network. How well it does must be measured on other images: with so many numbers to
    move, those it is fitted on are partly learned by heart.

    Args:
        scale: ``neuron_scale`` of the layer, over right images.
        rank: of the variation; 0: what is taken away is the same everywhere.

    Raises:
        LayerError: the network cannot be cut at the damping's layer.
    """
    filter, pattern, mean, spread = _tensors(trials, damping.filter, damping.pattern, *scale)
    per_neuron = filter.norm() / len(filter) ** 0.5
    start = torch.randn((rank, len(filter)), generator=torch.Generator().manual_seed(seed)).to(filter) / len(filter) ** 0.5
    moves = [torch.zeros_like(filter), torch.zeros_like(pattern), start, torch.zeros_like(start)]

    def moved() -> Damping:
        variation = Variation(mean, moves[2] / spread, moves[3] * spread) if rank else None
        return replace(damping, filter=filter + moves[0] * per_neuron, pattern=pattern + moves[1] * spread, variation=variation)

    return _descended(trials, cases, moves if rank else moves[:2], moved, steps, seed)


def _tensors(trials: Trials, *vectors: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(vector).to(trials.replay.classifier.device) for vector in vectors]


def _descended(trials: Trials, cases: Cases, moves: Sequence[Tensor], moved: Callable[[], Damping], steps: int, seed: int) -> Damping:
    """What ``moved`` gives once the moves have gone down the loss."""
    for move in moves:
        move.requires_grad_()
    name = moved().layer
    layer, device = trials.replay.layers[name], trials.replay.classifier.device
    optimiser = torch.optim.Adam(moves, lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    random = np.random.default_rng(seed)
    for step in range(steps):
        optimiser.zero_grad()
        # First mend, then leave alone: with the full weight from the start, doing nothing is the nearest solution.
        weight = 1 + (_LEAVE_ALONE - 1) * step / steps
        for rows, weights, wanted in _batches(trials, cases, weight, random):
            outputs = torch.from_numpy(trials.outputs[name].read(rows)).to(device)
            logits = trials.replay.differentiable(name, damped(layer, outputs, moved()), trials.context(name, rows))
            # Cross-entropy to a distribution differs from the divergence by what does not depend on the damping.
            loss = (functional.cross_entropy(logits, wanted.to(device), reduction="none") * weights.to(device)).sum()
            for move, gradient in zip(moves, torch.autograd.grad(loss, moves), strict=True):
                move.grad = gradient if move.grad is None else move.grad + gradient
        optimiser.step()
        schedule.step()
    return _as_arrays(moved())


def _as_arrays(damping: Damping) -> Damping:
    array = lambda vector: vector.detach().cpu().numpy() if isinstance(vector, Tensor) else vector  # noqa: E731
    variation = damping.variation and Variation(*(array(vector) for vector in vars(damping.variation).values()))
    return replace(damping, filter=array(damping.filter), pattern=array(damping.pattern), variation=variation)


def _batches(trials: Trials, cases: Cases, leave_alone: float, random: np.random.Generator) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """The images of one step in portions that fit: rows, each one's weight in the loss, and the answers (n_images, n_classes) wanted."""
    half = PER_STEP // 2
    of_target = half // 2 if len(cases.right_target) else 0
    drawn = [_drawn(cases.wrong, half, random), _drawn(cases.right_target, of_target, random)]
    drawn.append(_drawn(cases.right_others, half - of_target, random))
    rows = np.concatenate(drawn)
    n_classes = trials.intact.shape[1]
    wanted = torch.from_numpy(trials.intact[rows]).softmax(1)
    wanted[:half] = functional.one_hot(torch.from_numpy(cases.true[rows[:half]]), n_classes).float()
    weights = torch.full((len(rows),), leave_alone / half)
    weights[:half] = 1 / half
    *_, height, width = trials.images.shape
    at_once = max(4, min(PER_STEP, _PIXELS_AT_ONCE // (height * width)))
    for start in range(0, len(rows), at_once):
        some = slice(start, start + at_once)
        yield rows[some], weights[some], wanted[some]


def _drawn(rows: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """``n`` of the rows at random, the same one twice only where there are fewer."""
    return random.choice(rows, n, replace=len(rows) < n) if n else np.zeros(0, int)


def neuron_scale(trials: Trials, layer: str, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each neuron of a layer over positions and images, both (n_channels,)."""
    sums, squares, n = 0.0, 0.0, 0
    for _, values in trials.positions(layer, rows):
        flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
        sums, squares, n = sums + flat.sum(0), squares + (flat**2).sum(0), n + len(flat)
    mean = sums / n
    deviation = np.sqrt(np.maximum(squares / n - mean**2, 0))
    return mean.astype(np.float32), deviation.astype(np.float32) + 1e-6
