"""Does a name tell what fires a group from what leaves it silent? Figures beside baselines, from answers about patches nobody saw before.

In: how strongly patches show a group, and whether a name fits each of them. Out: F1, AUPRC and correlation with intervals, the same for a
constant, a shuffled and the second-best name, and whether the name is supported. Imports no torch and knows no network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neurflow_engine.records import NeuronGroup

CONSTANT = "object"  # a name that fits every patch
LEAST = 3  # patches that fire, and that stay silent, below which nothing is said
DRAWS = 2000  # of the bootstrap
_BINS = 3  # parts of the range of presence on each side of the level, from which equally many patches are drawn
_EPSILON = 1e-9


def presence(group: NeuronGroup, activations: np.ndarray) -> np.ndarray:
    """How strongly patches show a group, 0..1: their activations along the group's direction, 1 at its mean strength and above.

    min(1, max(0, d . phi / |m|)) with m the mean activations of the group's neurons and d = m / |m| its direction. Unlike the geometric
    mean of ``debugging.presence`` it does not vanish as soon as one of many neurons is silent.

    Args:
        activations: (n_patches, n_channels) of the group's layer.

    Returns:
        (n_patches,).
    """
    strength = float(np.linalg.norm(group.mean_activations))
    projected = np.asarray(activations[:, list(group.neurons)], np.float64) @ np.asarray(group.direction)
    return np.clip(projected / max(strength, _EPSILON), 0, 1)


def firing_level(presences: np.ndarray, own: Sequence[int]) -> float:
    """The presence from which on a patch fires the group: half way between a usual patch of the run and a patch of the group.

    Args:
        presences: (n_patches,) of all patches of the run; ``own``: those of the group.
    """
    usual, typical = np.median(presences), np.median(presences[list(own)])
    return float(max((usual + typical) / 2, usual + _EPSILON))


def halves(presences: np.ndarray, images: np.ndarray, level: float) -> tuple[frozenset[int], frozenset[int]]:
    """Images divided in two, so that what proposes a name and what tests it never see the same image, nor overlapping windows of it.

    In the order of their strongest patch, each goes to the part that has fewer patches that fire so far, then to that of fewer images.

    Args:
        presences: (n_patches,); images: (n_patches,), the image of each; level: presence from which on a patch fires the group.
    """
    known = np.unique(images)
    strongest = {int(image): float(presences[images == image].max()) for image in known}
    firing = {int(image): int((presences[images == image] >= level).sum()) for image in known}
    parts: tuple[list[int], list[int]] = ([], [])
    for image in sorted(strongest, key=lambda image: -strongest[image]):
        min(parts, key=lambda part: (sum(firing[one] for one in part), len(part))).append(image)
    return frozenset(parts[0]), frozenset(parts[1])


def held_out(presences: np.ndarray, images: np.ndarray, level: float, among: Sequence[int], n: int, seed: int) -> tuple[int, ...]:
    """Up to ``n`` patches from the whole range of presence, in an order that tells nothing: half of them fire the group where enough do.

    Each side of the level is cut into three equal parts of its range, from which equally many are drawn, spread over the images. So the
    sample is even over presence, not over how often it occurs: figures from it compare names, they are no rates of the data.

    Args:
        presences: (n_patches,); images: (n_patches,), the image of each; among: patches that may be drawn.
    """
    generator = np.random.default_rng(seed)
    among = np.asarray(sorted(among), int)
    fires = among[presences[among] >= level]
    silent = among[presences[among] < level]
    n_fires = min(len(fires), max(n // 2, n - len(silent)))
    drawn = [
        *_drawn(fires, presences, images, n_fires, generator),
        *_drawn(silent, presences, images, min(len(silent), n - n_fires), generator),
    ]
    return tuple(int(patch) for patch in generator.permutation(np.asarray(drawn, int)))


def _drawn(among: np.ndarray, presences: np.ndarray, images: np.ndarray, n: int, generator: np.random.Generator) -> list[int]:
    """``n`` of these, in turn from parts of their range, each time one of an image that was drawn from least."""
    if not len(among):
        return []
    low, high = presences[among].min(), presences[among].max()
    part = np.minimum((_BINS * (presences[among] - low) / max(high - low, _EPSILON)).astype(int), _BINS - 1)
    bins = [list(generator.permutation(among[part == number])) for number in range(_BINS)][::-1]
    taken = np.zeros(images.max() + 1, int)
    drawn: list[int] = []
    while len(drawn) < n:
        for patches in bins:
            if patches and len(drawn) < n:
                chosen = min(patches, key=lambda patch: taken[images[patch]])
                patches.remove(chosen)
                taken[images[chosen]] += 1
                drawn.append(int(chosen))
    return drawn


@dataclass(frozen=True)
class Answers:
    """What the scorer said of one wording: for each patch whether it fits, None where it gave no answer."""

    text: str
    fits: tuple[bool | None, ...]


def figures(
    patches: Sequence[int],
    presences: Sequence[float],
    level: float,
    answers: Answers,
    shuffled: Answers | None = None,
    runner_up: Answers | None = None,
    seed: int = 0,
) -> dict:
    """How well a name tells firing patches from silent ones: ``proposals.Score.figures``.

    F1 and AUPRC (average precision) of "it fits" against "it fires"; Pearson correlation of "it fits" with presence. These are measures
    that pass the sanity checks of NeuronEval (Oikarinen, Yan, Weng, ICML 2025), on patches of the whole range. Intervals are 95 % of a
    bootstrap that draws firing and silent patches each for themselves. The constant name fits every patch: nobody is asked about it.

    A name is *supported* when its correlation is clearly above that of the constant (which is 0) and of the shuffled name (95 % intervals
    of the differences, over the same draws, lie above 0), its F1 and AUPRC are above theirs, and the runner-up is not clearly better.
    Correlation decides with its interval because it uses all of presence, so that it tells more from few patches than the others.

    Args:
        patches: ids; presences: (n_patches,) 0..1; level: presence from which on a patch fires the group.
        answers: about these patches; where too few fire or stay silent, nothing can be said whatever they are.
        shuffled: the name of another group; runner_up: the second-best name of this one.
    """
    strengths = np.asarray(presences, float)
    fires = strengths >= level
    asked = LEAST <= fires.sum() <= len(fires) - LEAST
    answered = np.array([fit is not None or not asked for fit in answers.fits], bool)
    strip = [
        {"patch": int(patch), "presence": round(float(shown), 4), "fires": bool(fired), "fits": fit}
        for patch, shown, fired, fit in zip(patches, strengths, fires, answers.fits, strict=True)
    ]
    strengths, fires = strengths[answered], fires[answered]

    def of(other: Answers) -> np.ndarray:
        return np.array([bool(fit) for fit in other.fits], bool)[answered]

    found = {"n": len(fires), "n_fires": int(fires.sum()), "fires_at": round(level, 4), "f1": None, "auprc": None, "correlation": None}
    others = {"constant": (CONSTANT, np.ones(len(fires), bool))}
    others |= {name: (one.text, of(one)) for name, one in (("shuffled", shuffled), ("runner_up", runner_up)) if one is not None}
    if min(found["n_fires"], found["n"] - found["n_fires"]) < LEAST:
        reason = (
            f"Cannot tell: of {found['n']} held-out patches{' with an answer' if asked else ''} {found['n_fires']} fire the group and "
            f"{found['n'] - found['n_fires']} do not; at least {LEAST} of each are needed."
        )
        return found | {"baselines": _baselines(others, None), "supported": False, "reason": reason, "patches": strip}
    draws = _stratified(fires, seed)
    mine = _measured(of(answers), fires, strengths, draws)
    compared = {name: _measured(fits, fires, strengths, draws) for name, (_, fits) in others.items()}
    found |= {measure: _with_interval(values) for measure, values in mine.items()}
    supported, reason = _judged(mine, compared, {name: text for name, (text, _) in others.items()})
    return found | {"baselines": _baselines(others, compared), "supported": supported, "reason": reason, "patches": strip}


def _stratified(fires: np.ndarray, seed: int) -> np.ndarray:
    """(1 + DRAWS, n) places: the sample itself, then draws with replacement within firing and within silent patches."""
    generator = np.random.default_rng(seed)
    sides = [np.flatnonzero(fires), np.flatnonzero(~fires)]
    drawn = np.concatenate([generator.choice(side, (DRAWS, len(side))) for side in sides], axis=1)
    return np.concatenate([np.concatenate(sides)[None], drawn])


def _measured(fits: np.ndarray, fires: np.ndarray, strengths: np.ndarray, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Each measure on every draw, (1 + DRAWS,); the first is the sample itself."""
    said, true, shown = fits[draws].astype(float), fires[draws].astype(float), strengths[draws]
    hits, n_said, n_true = (said * true).sum(1), said.sum(1), true.sum(1)
    recall, precision = hits / n_true, hits / np.maximum(n_said, 1)
    said_away, shown_away = said - said.mean(1, keepdims=True), shown - shown.mean(1, keepdims=True)
    spread = np.sqrt((said_away**2).sum(1) * (shown_away**2).sum(1))
    return {
        "f1": 2 * hits / (n_said + n_true),
        "auprc": recall * precision + (1 - recall) * n_true / draws.shape[1],  # steps of the curve when the score is yes or no
        "correlation": np.where(spread > _EPSILON, (said_away * shown_away).sum(1) / np.maximum(spread, _EPSILON), 0.0),
    }


def _with_interval(values: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return {"value": round(float(values[0]), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _baselines(others: dict[str, tuple[str, np.ndarray]], compared: dict[str, dict[str, np.ndarray]] | None) -> dict:
    found = dict.fromkeys(("constant", "shuffled", "runner_up"))
    for name, (text, _) in others.items():
        measured = {measure: round(float(values[0]), 4) for measure, values in compared[name].items()} if compared else {}
        found[name] = {"text": text} | (measured or dict.fromkeys(("f1", "auprc", "correlation")))
    return found


def _judged(mine: dict[str, np.ndarray], compared: dict[str, dict[str, np.ndarray]], texts: dict[str, str]) -> tuple[bool, str]:
    """Whether the name is supported, and why in one sentence."""
    correlation = _with_interval(mine["correlation"])
    words = {"constant": "a name that fits everything", "shuffled": "the name of another group"}
    baselines = [name for name in words if name in compared]
    beside = " and ".join(f"{_said(compared[name])} for {words[name]} (“{texts[name]}”)" for name in baselines)

    def ahead(name: str) -> np.ndarray:
        return (mine["correlation"] - compared[name]["correlation"])[1:]

    if correlation["low"] <= 0:
        return False, (
            f"It does not go with presence: correlation {correlation['value']:+.2f}, "
            f"95 % interval {correlation['low']:+.2f} to {correlation['high']:+.2f}."
        )
    for name in baselines:
        in_all = all(mine[measure][0] > compared[name][measure][0] for measure in mine)
        if not in_all or np.quantile(ahead(name), 0.025) <= 0:
            return False, f"It is not clearly better than its baselines: {_said(mine)}, beside {beside}."
    if "runner_up" in compared and np.quantile(ahead("runner_up"), 0.975) < 0:
        return False, f"The runner-up “{texts['runner_up']}” does better: {_said(compared['runner_up'])}, beside {_said(mine)}."
    return True, f"It tells what fires the group from what does not: {_said(mine)}, beside {beside}."


def _said(measured: dict[str, np.ndarray]) -> str:
    f1, auprc, correlation = (measured[name][0] for name in ("f1", "auprc", "correlation"))
    return f"correlation {correlation:+.2f}, F1 {f1:.2f}, AUPRC {auprc:.2f}"
