"""The search for contrast groups: which layer, which scope, refined how - chosen by cross-validation among the images it is given.

In: trials and the half of the images that groups are chosen on. Out: dampings, the best first.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from neurflow_engine.cases import Cases, outcome, worth
from neurflow_engine.contrast import at_level, direction
from neurflow_engine.effort import AT_LENGTH, BEST, FINALISTS, FIRST_STEPS, REFINEMENTS, SCOPES, STEPS
from neurflow_engine.errors import LayerError
from neurflow_engine.progress import Progress, Stage
from neurflow_engine.records import Damping
from neurflow_engine.refinement import neuron_scale, refined
from neurflow_engine.trials import Trials

ENOUGH = 12  # right images of other classes, to tell what is usual; half as many wrong ones
ROUNDS = 2  # of looking for another contrast group in what the first leaves wrong
_TOO_DEAR = -1.0  # worth of a first look that costs more than everything that could come back: not worth more steps
_LEVELS = (0.5, 0.9)  # quantiles of right images at which a damping begins that is not refined
_REFINED_LEVEL = 0.5  # likewise of one that is


@dataclass(frozen=True)
class How:
    """How a contrast group is made."""

    layer: str
    scope: str  # of SCOPES
    level: float  # quantile of right images at which the damping begins
    steps: int = 0  # of refinement
    rank: int = 0  # of the variation
    leave_alone: float = 8.0  # weight of right images


def contrast_groups(trials: Trials, cases: Cases, progress: Progress, seed: int) -> list[Damping]:
    """The best damping of all layers; then, where it leaves many images wrong, the best for those."""
    found: list[Damping] = []
    layers = _distinct_layers(trials)
    for number in range(ROUNDS):
        if len(cases.wrong) < (2 * ENOUGH if number else ENOUGH // 2) or len(cases.right_others) < ENOUGH:
            break
        options = [(layer, scope) for layer in layers for scope in SCOPES]
        n_steps = len(options) * FIRST_STEPS + STEPS * AT_LENGTH
        with progress.stage(f"contrast {number + 1}" if number else "contrast", n_steps) as tick:
            best = _best(trials, cases, options, seed, tick)
        if best is None:
            break
        found.append(best)
        stays_wrong = trials.logits([best], cases.wrong).argmax(1) != cases.true[cases.wrong]
        if stays_wrong.mean() > 0.9:
            break
        cases = replace(cases, wrong=cases.wrong[stays_wrong])
    return found


def _best(trials: Trials, cases: Cases, options: Sequence[tuple[str, str]], seed: int, tick: Stage) -> Damping | None:
    """The damping that undoes most of the wrong images at the least price; None where nothing is worth its price.

    Every layer and scope gets a first look on one fold: as the contrast gives it, and after a few steps of refinement. The most promising
    ones, and the earliest layer, where a mark has not mixed with the rest yet but more steps are needed, are refined further in several
    ways on that fold; the best of all are measured on the other fold too, and the simplest of those that are about as good is taken. Of two
    that are worth the same, the one wins that makes the model surer of the true classes: folds of few images cannot tell them apart
    otherwise.
    """
    folds = cases.folds()

    @cache
    def start(layer: str, scope: str, fold: int | None) -> Damping | None:
        own = cases if fold is None else folds[fold]
        return direction(trials, layer, scope, own.wrong, own.right_others, seed)

    @cache
    def scale(layer: str, fold: int | None) -> tuple[np.ndarray, np.ndarray]:
        return neuron_scale(trials, layer, (cases if fold is None else folds[fold]).right)

    def made(how: How, fold: int | None) -> Damping | None:
        own, damping = cases if fold is None else folds[fold], start(how.layer, how.scope, fold)
        tick.advance(how.steps)
        if damping is None:
            return None
        damping = at_level(trials, damping, own.right_others, how.level)
        return refined(trials, damping, own, scale(how.layer, fold), how.steps, how.rank, how.leave_alone, seed) if how.steps else damping

    def value(how: How, fold: int) -> tuple[float, float]:
        damping = made(how, fold)
        if damping is None:
            return -np.inf, 0.0
        found = outcome(trials, [damping], folds[1 - fold])
        return worth(found), found["sureness"]

    plain = {how: value(how, 0) for option in options for how in (How(*option, level) for level in _LEVELS)}
    first = {option: value(How(*option, _REFINED_LEVEL, FIRST_STEPS), 0) for option in options}
    promising = sorted(first, key=first.get, reverse=True)[:FINALISTS]
    earliest = max((option for option in options if option[0] == options[0][0]), key=first.get)
    finalists = [option for option in dict.fromkeys([*promising, earliest]) if first[option][0] > _TOO_DEAR]
    ways = [How(*option, _REFINED_LEVEL, STEPS, *way) for option in finalists for way in REFINEMENTS]
    values = plain | {how: value(how, 0) for how in ways}
    best = sorted(values, key=values.get, reverse=True)[:BEST]
    both = {how: tuple(np.mean([values[how], value(how, 1)], axis=0)) for how in best}
    chosen = simplest(both, len(cases.wrong))
    return made(chosen, None) if both[chosen][0] > 0 else None


def simplest(values: Mapping[How, tuple[float, float]], n_wrong: int) -> How:
    """The way with the fewest steps, and of these of the lowest rank, among those within a standard error of the best; of equals the best.

    What a refinement gains on few images by chance it loses on others, and right images with it (the rule of one standard error: Breiman
    et al., Classification and Regression Trees, 1984, section 3.4.3).

    Args:
        values: (worth, sureness), means over the folds.
        n_wrong: images that may come back, in all folds.
    """
    best = max(worth for worth, _ in values.values())
    share = min(max(best, 0.0), 1.0)
    error = (share * (1 - share) / n_wrong) ** 0.5
    good = [how for how, (worth, _) in values.items() if worth >= best - error]
    return min(good, key=lambda how: (how.steps, how.rank, *(-value for value in values[how])))


def _distinct_layers(trials: Trials) -> list[str]:
    """The layers that differ in what they give and at which the network can be cut: a stage gives what its last block gives."""
    found: dict[bytes, str] = {}
    for layer, outputs in trials.outputs.items():
        with suppress(LayerError):
            trials.replay.segment(layer)
            found[outputs.read([0]).tobytes()] = layer
    return list(found.values())
