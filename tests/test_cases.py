"""Wrong and right images: what silencing is worth, and what a lower logit of the target alone would bring back at what price."""

import numpy as np
import pytest

from neurflow_engine.cases import COST, Cases, lower_logit, price, selectivity, worth

TARGET = 0


def cases_of(logits: np.ndarray, true: np.ndarray) -> Cases:
    predicted = logits.argmax(1)
    return Cases(np.flatnonzero((predicted == TARGET) & (true != TARGET)), np.flatnonzero(predicted == true), true, TARGET)


def figures(logits: np.ndarray, cases: Cases, by: float) -> dict[str, float]:
    """What taking ``by`` from the target's logit does, by prediction."""
    lowered = logits.copy()
    lowered[:, TARGET] -= by
    is_right = lowered.argmax(1) == cases.true
    return {"recovered": float(is_right[cases.wrong].mean())} | price(is_right[cases.right], cases)


class TestLowerLogit:
    @pytest.mark.parametrize("seed", range(5))
    def test_is_the_constant_that_is_worth_most(self, seed):
        random = np.random.default_rng(seed)
        true = random.integers(0, 4, 200)
        logits = random.standard_normal((200, 4)) + np.array([4, 2, 2, 2])[true, None] * np.eye(4)[true] + (np.arange(4) == TARGET)
        cases = cases_of(logits, true)
        found = lower_logit(logits, cases)
        assert found["recovered"] > 0
        assert {name: found[name] for name in found if name != "by"} == pytest.approx(figures(logits, cases, found["by"] + 1e-9))
        assert worth(found) >= max(worth(figures(logits, cases, by)) for by in np.linspace(0, 6, 601))

    def test_nothing_is_taken_where_the_wrong_images_lie_no_nearer_to_the_border_than_the_class_itself(self):
        true = np.repeat([0, 1, 1], 20)
        logits = np.repeat([[2.0, 0.0], [6.0, 0.0], [0.0, 3.0]], 20, axis=0)
        found = lower_logit(logits, cases_of(logits, true))
        assert found == {"by": 0.0, "recovered": 0.0, "clean_accuracy_change": 0.0, "target_recall_change": 0.0}

    def test_a_wrong_image_whose_next_class_is_another_wrong_one_does_not_come_back(self):
        true = np.repeat([0, 1, 2], 10)
        logits = np.repeat([[9.0, 0, 0], [1.0, 0.5, 0.0], [1.0, 0.5, 0.0]], 10, axis=0)
        found = lower_logit(logits, cases_of(logits, true))
        assert (found["by"], found["recovered"]) == (0.5, 0.5)


class TestSelectivity:
    TRUE = np.repeat([0, 1, 1], 4)
    BEFORE = np.repeat([[2.0, 0.0, 1.0], [2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], 4, axis=0)

    def fallen(self, own: float, wrong: float) -> float:
        """Of taking so much from the target's logit in its own and in wrong images."""
        after = self.BEFORE.copy()
        after[:4, TARGET] -= own
        after[4:8, TARGET] -= wrong
        return selectivity(self.BEFORE, after, cases_of(self.BEFORE, self.TRUE))

    def test_is_0_5_for_a_lower_logit_and_1_for_what_works_on_wrong_images_alone(self):
        assert self.fallen(0.7, 0.7) == 0.5
        assert self.fallen(0.1, 0.7) == 1.0
        assert self.fallen(0.7, 0.1) == 0.0

    def test_is_0_5_where_there_is_nothing_to_compare(self):
        cases = cases_of(self.BEFORE[4:], self.TRUE[4:])
        assert selectivity(self.BEFORE[4:], self.BEFORE[4:] - 1, cases) == 0.5


def test_what_is_lost_counts_for_more_than_what_comes_back():
    outcome = {"recovered": 0.5, "clean_accuracy_change": 0.0, "target_recall_change": 0.0}
    assert worth(outcome) == 0.5
    assert worth(outcome | {"clean_accuracy_change": -0.01}) == pytest.approx(0.5 - COST * 0.01)
    assert worth(outcome | {"target_recall_change": -0.25}) == 0.25
    assert worth(outcome | {"clean_accuracy_change": 0.1, "target_recall_change": 0.1}) == 0.5  # gains elsewhere are not what is asked
