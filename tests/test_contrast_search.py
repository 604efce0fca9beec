"""Which of several ways to make a contrast group is taken, when folds of few images rank them."""

from neurflow_engine.contrast_search import How, simplest

PLAIN, HIGH = How("early", "position", 0.5), How("early", "position", 0.9)
REFINED, VARIED = How("early", "position", 0.5, steps=80), How("early", "position", 0.5, steps=80, rank=8)


def test_a_refinement_that_is_hardly_better_is_not_worth_its_steps():
    values = {VARIED: (0.74, 0.9), REFINED: (0.72, 0.9), PLAIN: (0.70, 0.5)}
    assert simplest(values, n_wrong=70) == PLAIN  # one standard error is 0.05
    assert simplest({VARIED: (0.74, 0.9), REFINED: (0.72, 0.9)}, n_wrong=70) == REFINED


def test_one_that_is_clearly_better_is():
    values = {REFINED: (0.74, 0.9), PLAIN: (0.60, 0.5)}
    assert simplest(values, n_wrong=70) == REFINED
    assert simplest(values, n_wrong=6) == PLAIN  # so few images do not show it
    assert simplest({REFINED: (0.74, 0.9), PLAIN: (0.72, 0.5)}, n_wrong=100_000) == REFINED


def test_among_equally_simple_ones_worth_decides_then_sureness():
    assert simplest({PLAIN: (0.70, 0.9), HIGH: (0.73, 0.5)}, n_wrong=70) == HIGH
    assert simplest({PLAIN: (0.70, 0.5), HIGH: (0.70, 0.9)}, n_wrong=70) == HIGH


def test_what_brings_everything_back_leaves_no_doubt():
    assert simplest({REFINED: (1.0, 0.9), PLAIN: (0.99, 0.9)}, n_wrong=50) == REFINED
    assert simplest({REFINED: (-0.2, 0.9), PLAIN: (-0.3, 0.9)}, n_wrong=50) == REFINED
