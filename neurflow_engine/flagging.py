"""Whether a group misleads the model, by the figures of silencing it: the rule of every flag, and the sentence that goes with it.

In: figures of a group on images that nothing was chosen on. Out: a flag or none, and why.
"""

from collections.abc import Mapping

import numpy as np
from scipy.stats import wilcoxon

from neurflow_engine.cases import worth
from neurflow_engine.effort import ENOUGH_WRONG

SIGNIFICANT = 0.05  # p-value, corrected for the number of groups
BY_CHANCE = 0.025  # of the random silencers, how many may be worth as much as a misleading group
AFFORDABLE = 0.02  # clean accuracy that silencing a misleading group may cost at most
AFFORDABLE_IN_TARGET = 0.1  # likewise of the target class alone, and no more than a fifth of what comes back
CLEARLY_ABOVE = 0.8  # AUC of a misleading group, wrong images against right ones of other classes; some right ones carry the mark too
SELECTIVE = 0.8  # AUC from which on silencing works on wrong images rather than on all that are called the class
WORTHWHILE = 0.2  # of the wrong images, more than each control, that silencing a misleading group must bring back
_BEYOND = (
    "It brings back more than the model gets right of these classes otherwise, so it does more than take away what misleads: it also "
    "pushes answers towards these classes."
)
_NO_PRICE = "No image of the class itself is predicted right here, so what it costs the class, and whether it belongs to it, is not known."
_CONFUSED = (
    "Nearly all wrong images are of one class, {}: it may be what the two classes have in common rather than a mark, so look at its "
    "pictures before you act on it."
)


def judged(entry: Mapping, n_wrong: int, lower_logit: Mapping | None) -> tuple[bool, str]:
    """Whether a group is misleading, and why or why not in a sentence or two.

    Args:
        entry: its figures.
        n_wrong: wrong images of the folder.
        lower_logit: what a lower logit of the class does on the images that the figures are of; None without right images of the class.
    """
    if n_wrong < ENOUGH_WRONG or entry["recovered"] is None:
        return False, f"Only {n_wrong} images are wrongly taken for the class; at least {ENOUGH_WRONG} are needed to tell."
    control, recovered = entry["control_recovered"], entry["recovered"]
    lost = -entry["target_recall_change"]
    if entry["as_good_at_random"] > BY_CHANCE or entry["p_value"] >= SIGNIFICANT:
        return False, "Silencing it does no more good than silencing at random."
    if recovered - control["mean"] < WORTHWHILE:
        return (
            False,
            f"Silencing it brings back few of the wrong images ({recovered:.0%}; {WORTHWHILE:.0%} more than at random are asked for).",
        )
    if entry["auc"] < CLEARLY_ABOVE:
        return False, f"Wrong images do not show it clearly more than right ones do (AUC {entry['auc']:.2f}, {CLEARLY_ABOVE} is asked for)."
    if entry["clean_accuracy_change"] < -AFFORDABLE:
        return False, f"Silencing it costs {-entry['clean_accuracy_change']:.1%} of the clean accuracy: the model needs it."
    if lost > max(AFFORDABLE_IN_TARGET, 0.2 * recovered):
        return False, f"Silencing it loses {lost:.0%} of the class's own right images: it belongs to the class."
    if lower_logit and worth(entry) - worth(lower_logit) < WORTHWHILE and entry["selectivity"] < SELECTIVE:
        return (
            False,
            f"Silencing it is much like calling the class less often: a logit lowered by {lower_logit['by']:.1f} brings back "
            f"{lower_logit['recovered']:.0%} too, and the class's own images lose by it as wrong ones do. It may belong to the class.",
        )
    reasons = ["Wrong images show it far more than right ones, silencing it brings their true class back, and costs little elsewhere."]
    if recovered <= control["high"]:
        reasons.append("Some random silencers bring back as many, but at a higher price.")
    if entry["beyond_ceiling"]:
        reasons.append(_BEYOND)
    if not lower_logit:
        reasons.append(_NO_PRICE)
    if entry["confused_class"]:
        reasons.append(_CONFUSED.format(entry["confused_class"]))
    return True, " ".join(reasons)


def is_beyond(entry: Mapping, ceiling: Mapping | None) -> bool:
    """Whether silencing a group brings back clearly more wrong images than the model gets right of their classes anyway."""
    return bool(ceiling) and entry["recovered"] is not None and entry["recovered_interval"][0] > ceiling["high"]


def gain_p_value(gain: np.ndarray) -> float:
    """One-sided signed-rank test over images that a group gains more than the median of its control; gain is (1 + draws, n_images)."""
    difference = gain[0] - np.median(gain[1:], axis=0) if gain.shape[1] else np.zeros(0)
    if len(difference) < 5 or not difference.any():
        return 1.0
    return float(wilcoxon(difference, alternative="greater").pvalue)
