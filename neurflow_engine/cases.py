"""Images in the roles they have while a cause of errors is looked for, and what silencing does to them.

In: trials, which of their images are wrong and which right. Out: shares that come back and that are lost, and what that is worth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import softmax

from neurflow_engine.contrast import auc
from neurflow_engine.records import Silencer
from neurflow_engine.trials import Trials

COST = 10.0  # recovered images that one lost clean image outweighs


@dataclass(frozen=True, eq=False)
class Cases:
    """Some images by their place in the trials: those to be mended and those to be left as they are."""

    wrong: np.ndarray  # predicted as the target, of another class
    right: np.ndarray  # predicted right, of any class
    true: np.ndarray  # class of every image of the trials
    target: int

    @property
    def right_target(self) -> np.ndarray:
        """Right images of the target class."""
        return self.right[self.true[self.right] == self.target]

    @property
    def right_others(self) -> np.ndarray:
        """Right images of other classes than the target: what is usual."""
        return self.right[self.true[self.right] != self.target]

    def folds(self) -> tuple["Cases", "Cases"]:
        """Every other image, and the rest."""
        return tuple(replace(self, wrong=self.wrong[fold::2], right=self.right[fold::2]) for fold in (0, 1))


def outcome(trials: Trials, silencers: Sequence[Silencer], cases: Cases, enough: float = 0.0) -> dict[str, float]:
    """What silencing does: shares of wrong images that come back, and of right ones that are lost.

    Args:
        enough: 0..1; the price is looked at only where more than that comes back.

    Returns:
        "recovered" 0..1, "sureness" 0..1 (mean probability of the true class of the wrong images), "clean_accuracy_change" and
        "target_recall_change" -1..0 (0 where too little comes back, so that the price does not matter).
    """
    true = cases.true
    found = {"recovered": 0.0, "sureness": 0.0, "clean_accuracy_change": 0.0, "target_recall_change": 0.0}
    if len(cases.wrong):
        logits = trials.logits(silencers, cases.wrong)
        found["recovered"] = float((logits.argmax(1) == true[cases.wrong]).mean())
        found["sureness"] = float(softmax(logits, axis=1)[np.arange(len(logits)), true[cases.wrong]].mean())
    if found["recovered"] > enough and len(cases.right):
        found |= price(trials.logits(silencers, cases.right).argmax(1) == true[cases.right], cases)
    return found


def price(stays: np.ndarray, cases: Cases) -> dict[str, float]:
    """What silencing costs: "clean_accuracy_change" and "target_recall_change", -1..0.

    Args:
        stays: (n_right,), which of the right images are still right.
    """
    of_target = stays[cases.true[cases.right] == cases.target]
    return {
        "clean_accuracy_change": float(stays.mean() - 1) if len(stays) else 0.0,
        "target_recall_change": float(of_target.mean() - 1) if len(of_target) else 0.0,
    }


def lower_logit(logits: np.ndarray, cases: Cases) -> dict[str, float]:
    """What a lower logit of the target does, without any group: the constant taken from it that is worth most on these very cases.

    Errors near the border between classes come back so at little price, and a group that belongs to the target does no more than that when
    it is silenced. What a mark has pushed far over the border does not.

    Args:
        logits: (n_images, n_classes), of the intact network, of all images that the cases name.

    Returns:
        "by" (0 or more: images whose target logit exceeds the next one by as much or less are called otherwise), "recovered",
        "clean_accuracy_change" and "target_recall_change" as of ``outcome``; all 0 where no constant is worth its price.
    """
    lead, runner_up = _lead(logits, cases.target)
    mendable = runner_up[cases.wrong] == cases.true[cases.wrong]
    best = {"by": 0.0, "recovered": 0.0} | price(np.ones(len(cases.right), bool), cases)
    for by in np.unique(lead[cases.wrong][mendable]):
        changed = lead <= by
        stays = ~changed[cases.right] | (cases.true[cases.right] != cases.target)
        found = {"by": float(by), "recovered": float((changed[cases.wrong] & mendable).mean())} | price(stays, cases)
        best = max(best, found, key=worth)
    return best


def selectivity(before: np.ndarray, after: np.ndarray, cases: Cases) -> float:
    """How much more silencing takes from wrong images than from right ones of the target, which a lower logit of the target does not.

    Args:
        before, after: logits (n_images, n_classes) of all images that the cases name, of the intact network and with the silencer at work.

    Returns:
        The chance (area under the ROC curve, 0..1) that the lead of the target over the next class falls more in a wrong image than in a
        right one of the target; 0.5 where there are none to compare.
    """
    falls = _lead(before, cases.target)[0] - _lead(after, cases.target)[0]
    return auc(falls[cases.wrong], falls[cases.right_target])


def _lead(logits: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
    """The target's logit less the largest of the others, and which that is: (n_images,) each."""
    others = logits.copy()
    others[:, target] = -np.inf
    return logits[:, target] - others.max(1), others.argmax(1)


def worth(outcome: Mapping[str, float]) -> float:
    """What silencing is worth: the share of wrong images that come back, less ``COST`` times the clean accuracy that it loses, less the
    recall that the target loses. 0 where nothing comes back."""
    return outcome["recovered"] + COST * min(0.0, outcome["clean_accuracy_change"]) + min(0.0, outcome["target_recall_change"])


def margin(logits: np.ndarray, true: np.ndarray, target: int) -> np.ndarray:
    """True logit minus target logit of each image."""
    return logits[np.arange(len(true)), true] - logits[:, target]
