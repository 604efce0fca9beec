"""Integrated gradients: exact on polynomials, complete on smooth networks, and no sample or target disturbs another."""

import numpy as np
import pytest
import torch
from nets import SkipAround, images, network
from numpy.testing import assert_allclose
from torch import nn

from neurflow_engine.attribution import RULES, Attribution, gauss_legendre, integrated_gradients, path_nodes, quadrature_rule
from neurflow_engine.records import LOGITS
from neurflow_engine.tracing import Segment, record

SMOOTH = {
    "GELU perceptron": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 16), nn.GELU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))
    ),
    "softplus convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Softplus(), nn.Conv2d(6, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(20, 4))
    ),
}


@pytest.fixture(params=SMOOTH)
def smooth(request):
    torch.manual_seed(0)
    return SMOOTH[request.param]().eval().requires_grad_(False)


def by_brute_force(function, inputs, output, n_steps=400):
    """Midpoint Riemann sum of the definition, one sample and one step at a time: (n_samples, *positions)."""
    total = torch.zeros_like(inputs, dtype=torch.float64)
    for sample in range(len(inputs)):
        for step in range(n_steps):
            scaled = (inputs[sample : sample + 1] * (step + 0.5) / n_steps).requires_grad_(True)
            (gradient,) = torch.autograd.grad(function(scaled)[0, output], scaled)
            total[sample] += gradient[0].double() / n_steps
    return (total * inputs).float()


def test_is_exact_on_a_polynomial_solved_on_paper():
    # f = sum over positions of a^2 b, g = sum of b: IG of a^2 b is 2/3 a^2 b for a and 1/3 a^2 b for b.
    def function(x):
        a, b = x[:, 0], x[:, 1]
        return torch.stack([(a**2 * b).sum(1), b.sum(1)], 1)

    inputs = torch.tensor([[[3.0, 1.0], [2.0, 3.0]], [[1.0, 0.0], [6.0, 5.0]]])  # (2 samples, 2 channels, 2 positions)
    found = integrated_gradients(function, inputs, [(0, 1), (0,)], channel_axis=1, n_nodes=2)
    assert_allclose(found.channels, [[7.0, 3.5], [0.0, 2.5], [2.0, 1.0]])  # means over the 2 positions
    assert_allclose(found.change, [21.0, 5.0, 6.0])
    assert_allclose(found.gap, 0, atol=1e-5)
    assert found.relative_gap < 1e-6


def test_too_few_nodes_show_in_the_gap():
    found = integrated_gradients(lambda x: (x**4).sum((1, 2))[:, None], torch.full((1, 1, 1), 2.0), [(0,)], 1, n_nodes=1)
    # one node in the middle: 2 * 4 * 1^3 = 8 instead of 16
    assert found.channels.item() == pytest.approx(8)
    assert found.gap.item() == pytest.approx(8)
    assert found.relative_gap == pytest.approx(0.5)


def test_nodes_integrate_polynomials_of_degree_2n_minus_1_exactly():
    nodes, weights = gauss_legendre(3)
    assert [(weights * nodes**degree).sum() for degree in range(6)] == pytest.approx([1 / (degree + 1) for degree in range(6)])
    assert (weights * nodes**6).sum() != pytest.approx(1 / 7, rel=1e-5)


def test_crowded_nodes_integrate_too_and_lie_near_the_baseline():
    nodes, weights = path_nodes(12, 6)
    assert [(weights * nodes**degree).sum() for degree in range(5)] == pytest.approx([1 / (degree + 1) for degree in range(5)], rel=1e-6)
    assert nodes[0] < gauss_legendre(12)[0][0] / 10
    assert (np.diff(nodes) > 0).all()
    assert nodes[-1] < 1


def test_without_crowding_the_nodes_are_even():
    assert_allclose(path_nodes(5, 0), gauss_legendre(5))
    assert_allclose(path_nodes(5, 1e-6), gauss_legendre(5), rtol=1e-5)


def test_crowded_nodes_are_closer_where_the_network_normalises():
    def function(x):  # changes fastest near the baseline, as a LayerNorm does
        return (x / (x.square().mean(1, keepdim=True) + 1e-3).sqrt())[:, 0].mean(1, keepdim=True)

    inputs = images(4, 6).flatten(2)
    gaps = [integrated_gradients(function, inputs, [(0,)] * 4, 1, n_nodes=8, crowding=crowding).relative_gap for crowding in (0, 6)]
    assert gaps[1] < gaps[0] / 5


def attribution(gap: float, distance: float) -> Attribution:
    """With this relative gap, and this distance from channels of (1, 1)."""
    return Attribution(np.array([[1.0, 1 + 2 * distance]]), np.ones(1), np.array([gap]))


@pytest.mark.parametrize(
    ("found", "taken"),
    [
        ({(1, 0): (0.005, 0)}, (1, 0)),
        ({(1, 0): (0.04, 0), (8, 0): (0.04, 0.09)}, (8, 0)),  # within the tolerance, but not linear
        ({(8, 0): (0.04, 0.5), (8, 6): (0.05, 0.1)}, (8, 6)),  # adds up only because errors cancel
        ({(8, 0): (0.2, 0.09), (16, 0): (0.03, 0.05)}, (16, 0)),  # does not add up
        ({(8, 6): (0.2, 0.09), (16, 6): (0.15, 0.01), (32, 6): (0.12, 0)}, (8, 6)),  # nothing adds up: the cheapest that has converged
        ({(8, 6): (0.2, 0.09), (32, 6): (0.02, 0)}, (32, 6)),  # only the finest adds up
        ({}, (32, 6)),
    ],
)
def test_the_cheapest_rule_that_adds_up_and_has_converged_is_taken(found, taken):
    known = dict.fromkeys(RULES, (0.9, 0.9)) | {(32, 6): (0.9, 0)} | found
    assert quadrature_rule(lambda *rule: attribution(*known[rule]), 0.05) == taken


def test_distance_is_relative_to_the_other_and_the_median_over_pairs():
    one = Attribution(np.array([[1.0, -2.0], [0.0, 0.0], [5.0, 5.0]]), np.ones(3), np.zeros(3))
    other = Attribution(np.array([[1.0, -3.0], [1.0, 1.0], [5.0, 5.0]]), np.ones(3), np.zeros(3))
    assert one.distance(other) == pytest.approx(0.25)  # of 0.25, 1 and 0


def test_the_gap_is_below_one_percent_on_a_smooth_network(smooth):
    found = integrated_gradients(smooth, 2 * images(5, 6), [range(4)] * 5, channel_axis=1, n_nodes=8)
    assert np.abs(found.change).min() > 1e-3
    assert found.relative_gap < 0.01


def test_equals_a_riemann_sum_of_the_definition(smooth):
    inputs = 2 * images(2, 6)
    found = integrated_gradients(smooth, inputs, [(1,), (1,)], channel_axis=1, n_nodes=16)
    expected = by_brute_force(smooth, inputs, 1)
    assert_allclose(found.channels, expected.mean((2, 3)), rtol=1e-3, atol=1e-5)
    assert_allclose(found.change, (smooth(inputs) - smooth(0 * inputs))[:, 1], rtol=1e-5)


def test_channels_may_lie_on_any_axis(smooth):
    inputs = images(2, 6)
    expected = integrated_gradients(smooth, inputs, [(0,), (2, 1)], 1, 4)
    found = integrated_gradients(lambda x: smooth(x.permute(0, 3, 1, 2)), inputs.permute(0, 2, 3, 1), [(0,), (2, 1)], 3, 4)
    assert_allclose(found.channels, expected.channels, rtol=1e-4, atol=1e-6)


def test_shared_between_targets_it_equals_one_target_at_a_time(smooth):
    inputs, wanted = images(3, 6), [(3, 0), (), (1, 2, 0)]
    shared = integrated_gradients(smooth, inputs, wanted, 1, 4)
    alone = [
        integrated_gradients(smooth, inputs[sample : sample + 1], [(output,)], 1, 4)
        for sample, outputs in enumerate(wanted)
        for output in outputs
    ]
    assert len(shared.change) == 5
    for name in ("channels", "change", "gap"):
        assert_allclose(getattr(shared, name), np.concatenate([getattr(one, name) for one in alone]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("max_copies", [1, 3, 7])
def test_few_copies_at_a_time_give_the_same_as_all_at_once(smooth, max_copies):
    inputs, wanted, sizes = images(3, 6), [(3, 0), (), (1, 2, 0)], []

    def counted(scaled):
        sizes.append(len(scaled))
        return smooth(scaled)

    expected = integrated_gradients(smooth, inputs, wanted, 1, 8)
    found = integrated_gradients(counted, inputs, wanted, 1, 8, max_copies=max_copies)
    assert max(sizes[:-1]) <= max(3, max_copies)  # the last call is for both ends of the path
    for name in ("channels", "change", "gap"):
        assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-6)


def test_known_ends_of_the_path_are_not_computed_again(smooth):
    inputs, calls = images(2, 6), []

    def counted(scaled):
        calls.append(len(scaled))
        return smooth(scaled)

    expected = integrated_gradients(smooth, inputs, [(0,), (1,)], 1, 4)
    ends = smooth(inputs), smooth(torch.zeros_like(inputs))
    found = integrated_gradients(counted, inputs, [(0,), (1,)], 1, 4, ends=ends)
    assert calls == [8]
    assert_allclose(found.gap, expected.gap, atol=1e-6)


def test_mixed_precision_comes_close_and_keeps_the_ends_exact(smooth):
    inputs = images(4, 6)
    exact, mixed = (integrated_gradients(smooth, inputs, [(0, 1)] * 4, 1, 8, mixed=mixed) for mixed in (False, True))
    assert_allclose(mixed.change, exact.change, rtol=1e-6)
    assert_allclose(mixed.channels, exact.channels, atol=0.02 * np.abs(exact.channels).max())
    assert not np.array_equal(mixed.channels, exact.channels)


def test_samples_do_not_influence_each_other(smooth):
    inputs = images(3, 6)
    together = integrated_gradients(smooth, inputs, [(1,)] * 3, 1, 4)
    changed = integrated_gradients(smooth, torch.cat([inputs[:1], 100 * inputs[1:]]), [(1,)] * 3, 1, 4)
    assert_allclose(together.channels[0], changed.channels[0], rtol=1e-5)
    assert not np.allclose(together.channels[1], changed.channels[1])


def test_through_a_segment_every_sample_keeps_its_own_context():
    net = network(SkipAround())
    segment = Segment(net, "cut", LOGITS, images(3, 6))
    inputs = images(3, 6, seed=4)
    at_cut, context = record(net, inputs, ["cut"])["cut"], segment.context(inputs)
    found = integrated_gradients(
        lambda scaled: segment.repeated(scaled, context, len(scaled) // 3), at_cut, [(2,), (0, 2), (2,)], channel_axis=1, n_nodes=16
    )
    rows = []
    for sample in range(3):
        own = segment.context(inputs[sample : sample + 1])
        rows.append(by_brute_force(lambda x, own=own: segment(x, own), at_cut[sample : sample + 1], 2))
    assert_allclose(found.channels[[0, 2, 3]], torch.cat(rows).mean((2, 3)), rtol=1e-3, atol=1e-5)
    assert not np.allclose(found.channels[0], found.channels[2])
    assert found.relative_gap < 0.01


def test_inputs_do_not_ask_for_gradients_afterwards(smooth):
    inputs = images(2, 6)
    integrated_gradients(smooth, inputs, [(0,), (1,)], 1, 2)
    assert not inputs.requires_grad


def test_the_relative_gap_is_a_share_of_the_change():
    attribution = Attribution(np.zeros((3, 2)), np.array([1.0, -2.0, 3.0]), np.array([0.0, 1.0, 0.5]))
    assert attribution.relative_gap == pytest.approx(1.5 / 6)
