"""The search for contrast groups: which layer, which scope, refined how - chosen by cross-validation among the images it is given.

In: trials and the half of the images that groups are chosen on. Out: dampings, the best first.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from neurflow_engine.cases import Cases, outcome, worth
from neurflow_engine.contrast import anywhere, at_level, direction, gated, sure, varying
from neurflow_engine.effort import (
    BEST,
    FINALISTS,
    FIRST_STEPS,
    RANKS,
    REFINED,
    SCOPES,
    SHARES,
    STEPS,
    WHOLE_RANKS,
    WHOLE_SHARES,
    WHOLE_STEPS,
)
from neurflow_engine.errors import LayerError
from neurflow_engine.progress import Progress, Stage
from neurflow_engine.records import Damping
from neurflow_engine.refinement import neuron_scale, pattern_refined, whole_refined
from neurflow_engine.trials import Trials

ENOUGH = 12  # right images of other classes, to tell what is usual; half as many wrong ones
ROUNDS = 2  # of looking for another contrast group in what the first leaves wrong
_PLAIN_STEPS = 5  # of progress, for all that is tried at a layer and scope before anything is refined

Value = tuple[float, float]  # worth and sureness, see ``outcome``
_WORTHLESS = (-np.inf, 0.0)
# What is done to marked images: the pattern is taken away once; what exceeds the usual level is taken away; the same, with filter, pattern
# and variation refined together.
GATE, SURE, WHOLE = WAYS = ("gate", "sure", "whole")
_USUAL = 0.5  # quantile of right images that is the usual level


@dataclass(frozen=True)
class How:
    """How a contrast group is made."""

    layer: str
    scope: str  # of SCOPES
    way: str  # of WAYS
    share: float  # of the way from usual to typical, from which an image counts as marked
    rank: int = 0  # of the variation
    steps: int = 0  # of refinement


def contrast_groups(trials: Trials, cases: Cases, ceiling: float, progress: Progress, seed: int) -> list[Damping]:
    """The best damping of all layers; then, where it leaves many images wrong, the best for those.

    Args:
        ceiling: 0..1, how many of the wrong images can come back: what comes near it is not improved any more.
    """
    found: list[Damping] = []
    layers = _distinct_layers(trials)
    for number in range(ROUNDS):
        if len(cases.wrong) < (2 * ENOUGH if number else ENOUGH // 2) or len(cases.right_others) < ENOUGH:
            break
        n_steps = len(layers) * len(SCOPES) * _PLAIN_STEPS + REFINED
        with progress.stage(f"contrast {number + 1}" if number else "contrast", n_steps) as tick:
            best = _Search(trials, cases, seed, tick).best(layers, ceiling, thorough=not found)
        if best is None:
            break
        found.append(best)
        stays_wrong = trials.logits([best], cases.wrong).argmax(1) != cases.true[cases.wrong]
        left = stays_wrong.mean()
        if left > 0.9 or left <= 1 - ceiling:
            break
        cases, ceiling = replace(cases, wrong=cases.wrong[stays_wrong]), 1 - (1 - ceiling) / left
    return found


class _Search:
    """Dampings made in many ways on one fold of the images, measured on the other."""

    def __init__(self, trials: Trials, cases: Cases, seed: int, tick: Stage):
        self.trials, self.cases, self.folds, self.seed, self.tick = trials, cases, cases.folds(), seed, tick

    def best(self, layers: Sequence[str], ceiling: float, thorough: bool) -> Damping | None:
        """The damping that undoes most of the wrong images at the least price; None where nothing is worth its price.

        Every layer and scope is tried as the contrast gives it, in several ways. Where that does not come near the ceiling, patterns of
        the most promising ones are refined; where that does not either, and the search is to be thorough, whole dampings of positions.
        What is best on one fold is measured on the other too, and the simplest of those that are about as good is taken.
        """
        enough = ceiling - 2 * standard_error(ceiling, len(self.cases.wrong))
        plain: dict[How, Value] = {}
        for option in ((layer, scope) for layer in layers for scope in SCOPES):
            plain |= self._plain(*option, bar=self._bar(plain))
            self.tick.advance(_PLAIN_STEPS)
        values = self._on_both(plain)
        for refinements in (self._patterns, self._whole) if thorough else (self._patterns,):
            if max(worth for worth, _ in values.values()) >= enough:
                break
            values |= self._on_both({how: self._value(how, 0) for how in refinements(plain, layers)})
        chosen = simplest(values, len(self.cases.wrong))
        return self._made(chosen, None) if values[chosen][0] > 0 else None

    def _plain(self, layer: str, scope: str, bar: float) -> dict[How, Value]:
        """What is tried at a layer and scope without refinement. What counts fewer images as marked brings back less: it is left out
        where even the first brings back no more than the best options are worth."""
        families = [(GATE, rank) for rank in RANKS] + ([(SURE, 0)] if scope == "position" else [])
        found = {}
        for way, rank in families:
            for share in SHARES:
                how = How(layer, scope, way, share, rank)
                found[how] = self._value(how, 0, bar)
                if found[how] == _WORTHLESS:
                    break
        return found

    def _patterns(self, plain: Mapping[How, Value], layers: Sequence[str]) -> list[How]:
        """The best way of each of the most promising layers and scopes, refined for some steps."""
        best: dict[tuple[str, str], How] = {}
        for how in sorted(plain, key=plain.get, reverse=True):
            if plain[how] != _WORTHLESS:
                best.setdefault((how.layer, how.scope), how)
        return [replace(how, steps=steps) for how in list(best.values())[:FINALISTS] for steps in STEPS]

    def _whole(self, plain: Mapping[How, Value], layers: Sequence[str]) -> list[How]:
        """Positions of the layers that promise most after a few steps, and of the earliest layer, where a mark has not mixed with the
        rest yet but more steps are needed."""
        first = {layer: self._value(self._whole_at(layer, WHOLE_RANKS[0], FIRST_STEPS), 0) for layer in layers}
        promising = sorted(first, key=first.get, reverse=True)[: FINALISTS - 1]
        finalists = dict.fromkeys([*promising, layers[0]])
        return [self._whole_at(layer, rank, WHOLE_STEPS) for layer in finalists for rank in WHOLE_RANKS]

    def _whole_at(self, layer: str, rank: int, steps: int) -> How:
        """With the share from which images count as marked that does best: it is chosen once all is refined, and so costs little."""
        return max((How(layer, "position", WHOLE, share, rank, steps) for share in WHOLE_SHARES), key=lambda how: self._value(how, 0))

    def _on_both(self, values: Mapping[How, Value]) -> dict[How, Value]:
        """What the best of some ways on the first fold are worth, made on either fold and measured on the other."""
        best = sorted(values, key=values.get, reverse=True)[:BEST]
        return {how: tuple(np.mean([values[how], self._value(how, 1)], axis=0)) for how in best}

    @staticmethod
    def _bar(values: Mapping[How, Value]) -> float:
        """The worth that a way has to surpass to matter: of the last layer and scope that would be refined."""
        best: dict[tuple[str, str], float] = {}
        for how, (own, _) in values.items():
            best[how.layer, how.scope] = max(own, best.get((how.layer, how.scope), 0.0))
        return sorted(best.values(), reverse=True)[FINALISTS - 1] if len(best) >= FINALISTS else 0.0

    @cache  # noqa: B019 - a search lives no longer than what it keeps
    def _value(self, how: How, fold: int, bar: float = 0.0) -> Value:
        """What a way is worth when it is made on one fold and measured on the other; worthless where no more than ``bar`` comes back."""
        damping = self._made(how, fold)
        if damping is None:
            return _WORTHLESS
        found = outcome(self.trials, [damping], self.folds[1 - fold], bar)
        return (worth(found), found["sureness"]) if found["recovered"] > bar else _WORTHLESS

    def _made(self, how: How, fold: int | None) -> Damping | None:
        """The damping that a way gives on one fold, or on all images; None where wrong images do not differ."""
        own = self._own(fold)
        if how.way == WHOLE:
            found = self._refined(how.layer, how.scope, how.rank, how.steps, fold)
            return found and sure(self.trials, found, own.wrong, own.right_others, how.share)
        start = self._start(replace(how, steps=0), fold)
        self.tick.advance(how.steps)
        return (
            pattern_refined(self.trials, start, own, self._scale(how.layer, fold), how.steps, self.seed) if start and how.steps else start
        )

    @cache  # noqa: B019
    def _refined(self, layer: str, scope: str, rank: int, steps: int, fold: int | None) -> Damping | None:
        """A whole damping, refined; in images that count as marked and in others alike."""
        self.tick.advance(steps)
        found, own = self._direction(layer, scope, fold), self._own(fold)
        if found is None:
            return None
        start = at_level(self.trials, found, own.right_others, _USUAL)
        return whole_refined(self.trials, start, own, self._scale(layer, fold), steps, rank, self.seed)

    @cache  # noqa: B019
    def _start(self, how: How, fold: int | None) -> Damping | None:
        """The damping before it is refined."""
        own, found = self._own(fold), self._direction(how.layer, how.scope, fold)
        if found is None:
            return None
        if how.way == GATE:
            found = gated(self.trials, found, own.wrong, own.right_others, how.share)
            return varying(self.trials, found, own.wrong, own.right_others, how.rank, self.seed) if found and how.rank else found
        found = at_level(self.trials, found, own.right_others, _USUAL)
        return sure(self.trials, found, own.wrong, own.right_others, how.share)

    @cache  # noqa: B019
    def _scale(self, layer: str, fold: int | None) -> tuple[np.ndarray, np.ndarray]:
        return neuron_scale(self.trials, layer, self._own(fold).right)

    @cache  # noqa: B019
    def _direction(self, layer: str, scope: str, fold: int | None) -> Damping | None:
        if scope == "anywhere":
            return anywhere(self._direction(layer, "position", fold), self._direction(layer, "image", fold))
        return direction(self.trials, layer, scope, self._own(fold).wrong, self._own(fold).right_others, self.seed)

    def _own(self, fold: int | None) -> Cases:
        return self.cases if fold is None else self.folds[fold]


def standard_error(share: float, n: int) -> float:
    """Of a share 0..1 of ``n`` images."""
    share = min(max(share, 0.0), 1.0)
    return (share * (1 - share) / n) ** 0.5


def simplest(values: Mapping[How, Value], n_wrong: int) -> How:
    """The way with the fewest steps, and of these of the lowest rank, among those within a standard error of the best; of equals the best.

    What a refinement gains on few images by chance it loses on others, and right images with it (the rule of one standard error: Breiman
    et al., Classification and Regression Trees, 1984, section 3.4.3). What decides is the mean of worth and sureness: counts of few images
    cannot tell ways apart that probabilities do; half a standard error of a count is about one of that mean.

    Args:
        values: means over the folds.
        n_wrong: images that may come back, in all folds.
    """
    means = {how: float(np.mean(value)) for how, value in values.items()}
    best = max(means.values())
    good = [how for how in means if means[how] >= best - standard_error(best, n_wrong) / 2]
    return min(good, key=lambda how: (how.way == WHOLE, how.steps, how.rank, -means[how]))


def _distinct_layers(trials: Trials) -> list[str]:
    """The layers that differ in what they give and at which the network can be cut: a stage gives what its last block gives."""
    found: dict[bytes, str] = {}
    for layer, outputs in trials.outputs.items():
        with suppress(LayerError):
            trials.replay.segment(layer)
            found[outputs.read([0]).tobytes()] = layer
    return list(found.values())
