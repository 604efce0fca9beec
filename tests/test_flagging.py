"""Which figures make a group misleading, and what is said of it, in literal numbers."""

import re

import numpy as np
import pytest

from neurflow_engine.effort import ENOUGH_WRONG
from neurflow_engine.flagging import gain_p_value, is_beyond, judged

GOOD = {
    "recovered": 0.9,
    "recovered_interval": [0.8, 0.95],
    "beyond_ceiling": False,
    "confused_class": None,
    "control_recovered": {"mean": 0.0, "low": 0.0, "high": 0.01},
    "as_good_at_random": 0.0,
    "selectivity": 0.95,
    "p_value": 1e-6,
    "auc": 1.0,
    "clean_accuracy_change": 0.0,
    "target_recall_change": 0.0,
}
LOWER = {"by": 0.7, "recovered": 0.05, "clean_accuracy_change": 0.0, "target_recall_change": 0.0}


class TestJudgement:
    def test_a_group_that_is_shown_helps_and_costs_nothing_is_misleading(self):
        flagged, reason = judged(GOOD, 100, LOWER)
        assert flagged
        assert "brings their true class back" in reason

    def test_one_that_brings_back_more_than_can_come_back_is_said_to_do_more_than_that(self):
        low = GOOD["recovered_interval"][0]
        few, many = {"mean": low / 2, "low": low / 4, "high": 0.9 * low}, {"mean": low, "low": 0.9 * low, "high": 1.1 * low}
        assert (is_beyond(GOOD, few), is_beyond(GOOD, many), is_beyond(GOOD, None)) == (True, False, False)
        flagged, reason = judged(GOOD | {"beyond_ceiling": True}, 100, LOWER)
        assert flagged
        assert "also pushes answers towards these classes" in reason

    def test_random_silencers_that_bring_back_as_many_at_a_higher_price_are_mentioned(self):
        flagged, reason = judged(GOOD | {"control_recovered": {"mean": 0.1, "low": 0.0, "high": 0.95}}, 100, LOWER)
        assert flagged
        assert "Some random silencers bring back as many, but at a higher price" in reason
        assert "higher price" not in judged(GOOD, 100, LOWER)[1]

    def test_one_whose_wrong_images_are_of_one_class_may_be_what_the_classes_have_in_common(self):
        flagged, reason = judged(GOOD | {"confused_class": "school bus"}, 100, LOWER)
        assert flagged
        assert "Nearly all wrong images are of one class, school bus" in reason
        assert "in common" not in judged(GOOD, 100, LOWER)[1]

    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"recovered": None}, "are needed to tell"),
            ({"as_good_at_random": 0.03}, "no more good than silencing at random"),
            ({"p_value": 0.5}, "no more good than silencing at random"),
            ({"recovered": 0.02}, r"brings back few of the wrong images \(2%"),
            ({"control_recovered": {"mean": 0.85, "low": 0.8, "high": 0.89}}, "few of the wrong images"),
            ({"auc": 0.5}, r"do not show it clearly more than right ones do \(AUC 0\.50"),
            ({"clean_accuracy_change": -0.5}, r"costs 50\.0% of the clean accuracy: the model needs it"),
            ({"target_recall_change": -0.9}, r"loses 90% of the class's own right images: it belongs to the class"),
        ],
    )
    def test_anything_else_is_not_and_the_reason_says_what_is_missing(self, changed, reason):
        flagged, said = judged(GOOD | changed, 100, LOWER)
        assert not flagged
        assert re.search(reason, said), said

    def test_one_that_does_what_a_lower_logit_of_the_class_does_is_not(self):
        alike = GOOD | {"selectivity": 0.5}
        flagged, reason = judged(alike, 100, LOWER | {"recovered": 0.75})
        assert not flagged
        assert (
            "much like calling the class less often: a logit lowered by 0.7 brings back 75% too, and the class's own images lose" in reason
        )
        assert judged(alike, 100, LOWER | {"recovered": 0.65})[0]
        assert judged(alike, 100, LOWER | {"recovered": 0.95, "target_recall_change": -0.6})[0]  # at a price that the group does not have
        assert judged(GOOD, 100, LOWER | {"recovered": 0.75})[0]  # it works on other images
        flagged, reason = judged(alike, 100, None)  # no right image of the class to tell by
        assert flagged
        assert "what it costs the class, and whether it belongs to it, is not known" in reason
        assert "not known" not in judged(GOOD, 100, LOWER)[1]

    def test_few_wrong_images_tell_nothing(self):
        flagged, reason = judged(GOOD, ENOUGH_WRONG - 1, LOWER)
        assert not flagged
        assert reason.startswith(f"Only {ENOUGH_WRONG - 1} images")
        assert judged(GOOD, ENOUGH_WRONG, LOWER)[0]


def test_a_gain_is_tested_against_the_median_of_its_control_on_one_side():
    control = np.zeros((3, 8))
    gains = np.arange(1.0, 9.0)
    assert gain_p_value(np.vstack([gains, control])) == pytest.approx(1 / 2**8)  # all 8 signs positive, exact
    assert gain_p_value(np.vstack([-gains, control])) == pytest.approx(1)
    assert gain_p_value(np.vstack([gains, control + gains])) == 1  # no better than the control
    assert gain_p_value(np.vstack([gains, control, control[:1] + 100])) == pytest.approx(1 / 2**8)  # one draw far out says little
    assert gain_p_value(np.vstack([gains, control])[:, :4]) == 1  # too few images to tell
    assert gain_p_value(np.zeros((1, 0))) == 1
