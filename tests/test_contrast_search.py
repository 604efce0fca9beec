"""Which of several ways to make a contrast group is taken, when folds of few images rank them."""

from neurflow_engine.contrast_search import How, simplest

PLAIN, LATER = How("early", "position", "gate", 0.5), How("early", "position", "gate", 0.8)
VARIED = How("early", "position", "gate", 0.5, rank=32)
REFINED = How("early", "position", "gate", 0.5, steps=40)
WHOLE = How("early", "position", "whole", 0.65, steps=15)


def test_a_refinement_that_is_hardly_better_is_not_worth_its_steps():
    values = {WHOLE: (0.74, 0.74), REFINED: (0.73, 0.73), VARIED: (0.72, 0.72), PLAIN: (0.71, 0.71)}
    assert simplest(values, n_wrong=50) == PLAIN  # half a standard error is 0.03
    for simpler in (PLAIN, VARIED, REFINED):
        assert simplest(values, n_wrong=50) == simpler
        del values[simpler]


def test_one_that_is_clearly_better_is():
    values = {REFINED: (0.74, 0.74), PLAIN: (0.64, 0.64)}
    assert simplest(values, n_wrong=70) == REFINED
    assert simplest(values, n_wrong=4) == PLAIN  # so few images do not show it
    assert simplest({REFINED: (0.74, 0.9), PLAIN: (0.72, 0.9)}, n_wrong=100_000) == REFINED


def test_sureness_counts_as_much_as_worth():
    assert simplest({REFINED: (0.70, 0.80), PLAIN: (0.70, 0.60)}, n_wrong=70) == REFINED
    assert simplest({REFINED: (0.70, 0.60), PLAIN: (0.60, 0.70)}, n_wrong=70) == PLAIN


def test_among_equally_simple_ones_the_better_is_taken():
    assert simplest({PLAIN: (0.70, 0.6), LATER: (0.73, 0.6)}, n_wrong=70) == LATER
    assert simplest({PLAIN: (0.70, 0.6), LATER: (0.70, 0.5)}, n_wrong=70) == PLAIN


def test_what_brings_everything_back_leaves_no_doubt():
    assert simplest({REFINED: (1.0, 1.0), PLAIN: (0.99, 1.0)}, n_wrong=50) == REFINED
    assert simplest({REFINED: (-0.2, 0.1), PLAIN: (-0.3, 0.1)}, n_wrong=50) == REFINED
