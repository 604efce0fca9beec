"""Scores of names: against figures known by hand, and against names that fit everything."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score

from neurflow_engine.scoring import Answers, figures, firing_level, halves, held_out, presence

N = 20
PRESENCES = np.linspace(0.0, 0.95, N)  # the upper ten fire at 0.475
FIRES = PRESENCES >= 0.475


def scored(fits, **others) -> dict:
    return figures(range(100, 100 + N), PRESENCES, 0.475, Answers("name", tuple(fits)), **others)


def test_a_name_that_is_right_everywhere_is_supported():
    found = scored(FIRES.tolist(), shuffled=Answers("other", tuple((~FIRES).tolist())))
    assert found["f1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["auprc"]["value"] == 1.0
    assert found["correlation"]["value"] == pytest.approx(np.corrcoef(FIRES, PRESENCES)[0, 1], abs=1e-4)
    assert found["supported"]
    assert (found["n"], found["n_fires"]) == (20, 10)
    assert found["reason"] == (
        "It tells what fires the group from what does not: correlation +0.87, F1 1.00, AUPRC 1.00, beside correlation +0.00, F1 0.67, "
        "AUPRC 0.50 for a name that fits everything (“object”) and correlation -0.87, F1 0.00, AUPRC 0.50 for the name of another group "
        "(“other”)."
    )


def test_a_name_that_fits_every_patch_is_never_supported_and_equals_the_constant():
    found = scored([True] * N)
    constant = found["baselines"]["constant"]
    assert constant["text"] == "object"
    assert (found["f1"]["value"], found["auprc"]["value"], found["correlation"]["value"]) == (0.6667, 0.5, 0.0)
    assert {measure: found[measure]["value"] for measure in ("f1", "auprc", "correlation")} == {
        measure: constant[measure] for measure in ("f1", "auprc", "correlation")
    }
    assert not found["supported"]


def test_a_name_for_the_opposite_is_not_supported():
    found = scored((~FIRES).tolist())
    assert (found["f1"]["value"], found["supported"]) == (0.0, False)
    assert found["correlation"]["high"] < 0


@pytest.mark.parametrize("wrong_side", [True, False])
def test_names_that_fit_too_much_or_too_little_score_lower(wrong_side):
    """The two sanity checks of NeuronEval: extra labels, and missing labels."""
    generator = np.random.default_rng(0)
    fits = FIRES.copy()
    changed = generator.choice(np.flatnonzero(wrong_side != FIRES), 5, replace=False)
    fits[changed] = wrong_side
    right, worse = scored(FIRES.tolist()), scored(fits.tolist())
    for measure in ("f1", "auprc", "correlation"):
        assert worse[measure]["value"] < right[measure]["value"] - 0.1


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=N, max_size=N))
def test_figures_are_those_of_scikit_learn(fits):
    found = scored(fits)
    assert found["f1"]["value"] == pytest.approx(f1_score(FIRES, fits, zero_division=0), abs=1e-4)
    assert found["auprc"]["value"] == pytest.approx(average_precision_score(FIRES, fits), abs=1e-4)
    expected = np.corrcoef(fits, PRESENCES)[0, 1] if len(set(fits)) == 2 else 0.0
    assert found["correlation"]["value"] == pytest.approx(expected, abs=1e-4)
    for measure in ("f1", "auprc", "correlation"):
        assert found[measure]["low"] <= found[measure]["value"] + 1e-9
        assert found[measure]["value"] <= found[measure]["high"] + 1e-9


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """A scorer that is right about 80 % of the time: its F1 over many patches lies in most of the intervals from few."""
    generator = np.random.default_rng(1)
    many = np.tile(FIRES, 5000)
    truth = f1_score(many, np.where(generator.random(len(many)) < 0.8, many, ~many))
    inside = 0
    for _ in range(60):
        found = scored(np.where(generator.random(N) < 0.8, FIRES, ~FIRES).tolist())
        inside += found["f1"]["low"] <= truth <= found["f1"]["high"]
    assert inside >= 50


def test_a_runner_up_that_is_clearly_better_takes_the_support_away():
    presences = np.repeat(PRESENCES, 4)
    fires = presences >= 0.475
    fits = fires.copy()
    fits[-40:-30] = False
    mine, better = Answers("name", tuple(fits.tolist())), Answers("the better one", tuple(fires.tolist()))
    assert figures(range(80), presences, 0.475, mine)["supported"]
    beside = figures(range(80), presences, 0.475, mine, runner_up=better)
    assert not beside["supported"]
    assert beside["reason"].startswith("The runner-up “the better one” does better: correlation +0.87, F1 1.00, AUPRC 1.00, beside")
    swapped = figures(range(80), presences, 0.475, better, runner_up=mine)
    assert swapped["supported"]


def test_a_name_that_is_right_where_it_fits_but_misses_most_is_not_supported():
    presences = np.repeat(PRESENCES, 4)
    fits = (presences >= 0.475) & (np.arange(80) % 3 == 0)
    found = figures(range(80), presences, 0.475, Answers("name", tuple(fits.tolist())))
    assert found["auprc"]["low"] > found["baselines"]["constant"]["auprc"]
    assert found["f1"]["value"] < found["baselines"]["constant"]["f1"]
    assert (found["supported"], "It is not clearly better than its baselines" in found["reason"]) == (False, True)


def test_a_name_is_measured_against_the_shuffled_one_too():
    good = (FIRES | (np.arange(N) == 9)).tolist()
    alone, beside = scored(good), scored(good, shuffled=Answers("as good", tuple(FIRES.tolist())))
    assert alone["supported"]
    assert (beside["supported"], beside["reason"][:42]) == (False, "It is not clearly better than its baseline")


def test_a_lucky_hit_is_not_supported():
    fits = [False] * N
    fits[-1] = True
    found = scored(fits)
    assert found["auprc"]["value"] > found["baselines"]["constant"]["auprc"]
    assert not found["supported"]


def test_unanswered_patches_count_neither_way_and_are_shown():
    fits: list[bool | None] = FIRES.tolist()
    fits[0] = fits[-1] = None
    found = scored(fits)
    assert (found["n"], found["n_fires"], found["f1"]["value"]) == (18, 9, 1.0)
    assert found["patches"][0] == {"patch": 100, "presence": 0.0, "fires": False, "fits": None}
    assert len(found["patches"]) == N


def test_with_too_few_patches_nothing_is_claimed():
    found = figures(range(4), [0.1, 0.2, 0.8, 0.9], 0.5, Answers("name", (False, False, True, True)))
    assert (found["f1"], found["auprc"], found["correlation"], found["supported"]) == (None, None, None, False)
    assert found["reason"] == ("Cannot tell: of 4 held-out patches 2 fire the group and 2 do not; at least 3 of each are needed.")
    assert found["baselines"]["constant"] == {"text": "object", "f1": None, "auprc": None, "correlation": None}


def test_with_too_few_answers_nothing_is_claimed():
    found = scored([None] * 8 + [True] * 12)
    assert (found["n"], found["n_fires"], found["f1"], found["supported"]) == (12, 10, None, False)
    assert found["reason"].startswith("Cannot tell: of 12 held-out patches with an answer 10 fire the group and 2 do not;")


def test_the_same_answers_give_the_same_figures():
    assert scored(FIRES.tolist()) == scored(FIRES.tolist())


def test_presence_is_the_share_of_the_groups_own_strength_along_its_direction():
    group = SimpleNamespace(mean_activations=(3.0, 4.0), direction=(0.6, 0.8), neurons=(1, 2))
    activations = np.array([[9, 3, 4], [9, 0, 0], [9, 6, 8], [9, -1, -1], [9, 0, 4]], float)
    assert presence(group, activations) == pytest.approx([1, 0, 1, 0, 0.64])


def test_a_patch_fires_from_half_way_between_the_usual_and_the_typical_one():
    presences = np.array([0.1, 0.1, 0.2, 0.2, 0.3, 0.9, 0.9])
    assert firing_level(presences, [5, 6]) == pytest.approx((0.2 + 0.9) / 2)


def test_proposer_and_scorer_see_different_images_with_about_equally_many_firing_patches():
    images = np.repeat(np.arange(6), 4)
    presences = np.tile([0.0, 0.1, 0.1, 0.1], 6)
    presences[:4] = [0.9, 0.8, 0.8, 0.8]  # the first image fires as often as the three that follow it
    presences[[5, 9, 13]] = [0.7, 0.7, 0.6]
    shown, kept = halves(presences, images, 0.5)
    assert not shown & kept
    assert shown | kept == set(range(6))
    assert (0 in shown, {1, 2, 3} <= kept) == (True, True)


def test_held_out_patches_span_the_whole_range_and_many_images():
    generator = np.random.default_rng(0)
    presences, images = generator.beta(1, 6, 1000), generator.integers(0, 20, 1000)
    drawn = held_out(presences, images, 0.4, range(1000), 24, seed=0)
    shown = presences[list(drawn)]
    assert len(set(drawn)) == 24
    assert (shown >= 0.4).sum() == 12
    assert all(((shown >= low) & (shown < low + 0.4 / 3)).sum() == 4 for low in (0, 0.4 / 3, 0.8 / 3))
    assert len(set(images[list(drawn)])) >= 15
    assert drawn == held_out(presences, images, 0.4, range(1000), 24, seed=0)
    assert drawn != held_out(presences, images, 0.4, range(1000), 24, seed=1)


def test_of_held_out_patches_only_those_allowed_are_drawn_and_few_firing_ones_are_filled_up():
    presences, images = np.linspace(0, 1, 100), np.arange(100)
    allowed = list(range(0, 100, 2))
    assert set(held_out(presences, images, 0.5, allowed, 24, seed=0)) <= set(allowed)
    few = held_out(presences, images, 0.95, allowed, 24, seed=0)
    assert (len(few), (presences[list(few)] >= 0.95).sum()) == (24, 2)
    assert len(held_out(presences, images, 0.5, [], 24, seed=0)) == 0
    assert len(held_out(presences, images, 0.0, allowed, 24, seed=0)) == 24


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_name_that_fits_at_random_is_rarely_supported(share):
    generator = np.random.default_rng(2)
    presences = np.linspace(0.0, 0.95, 40)
    names = (Answers("name", tuple((generator.random(40) < share).tolist())) for _ in range(200))
    lucky = sum(figures(range(40), presences, 0.475, name)["supported"] for name in names)
    assert lucky <= 16  # of 200: 2.5 % by the intervals; bootstraps of few patches are a little too sure, up to 4 % of 1,000 were measured
