"""What silencing does to a layer's output, on any values: constants are set; above its level a direction goes, below it nothing changes."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurflow_engine.records import Damping, Filling, Layer, Variation
from neurflow_engine.silencing import excess, silenced

N_IMAGES, HEIGHT, WIDTH = 2, 3, 2
NCHW = Layer("maps", 5, 1, (5, HEIGHT, WIDTH))
NHWC = Layer("maps", 5, 3, (HEIGHT, WIDTH, 5))
TOKENS = Layer("maps", 5, 2, (HEIGHT * WIDTH, 5))
PREFIXED = Layer("maps", 5, 2, (2 + HEIGHT * WIDTH, 5), n_prefix_tokens=2)
VECTOR = Layer("maps", 5, 1, (5,))
LAYERS = (NCHW, NHWC, TOKENS, PREFIXED, VECTOR)

layers = st.sampled_from(LAYERS)
scopes = st.sampled_from(["position", "image", "anywhere"])
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=60, deadline=None)


def noise(layer: Layer, seed: int) -> torch.Tensor:
    """In double precision, so that what is exact in the formula is so in the test."""
    return torch.randn((N_IMAGES, *layer.shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def damping(seed: int, scope: str, level: float = 0.1) -> Damping:
    """Of a random direction, with filter . pattern = 1."""
    random = np.random.default_rng(seed)
    filter, pattern = random.normal(size=5), random.normal(size=5)
    pattern[0] += (1 - filter @ pattern) / filter[0]
    return Damping("maps", filter, pattern, level, scope)


def of_image(layer: Layer, output: torch.Tensor) -> torch.Tensor:
    """Vectors of the positions of the image, (n_images, n_positions, n_channels)."""
    return output.movedim(layer.channel_axis, -1).reshape(N_IMAGES, -1, layer.n_channels)[:, layer.n_prefix_tokens :]


def score(layer: Layer, output: torch.Tensor, damping: Damping) -> torch.Tensor:
    """s of each position; in scope "image" its mean over the image, in "anywhere" the largest."""
    shown = of_image(layer, output) @ torch.from_numpy(damping.filter)
    return {"position": shown, "image": shown.mean(1), "anywhere": shown.amax(1)}[damping.scope]


@quick
@given(layers, seeds, st.dictionaries(st.integers(0, 4), st.floats(-1e3, 1e3), max_size=5))
def test_filled_neurons_have_their_values_everywhere_and_the_others_stay(layer, seed, values):
    output = noise(layer, seed)
    before = output.clone()
    after = silenced(layer, output, Filling("maps", tuple(values), tuple(values.values())))
    assert torch.equal(output, before)
    for neuron in range(5):
        expected = torch.full_like(before.select(layer.channel_axis, neuron), values[neuron]) if neuron in values else None
        found = after.select(layer.channel_axis, neuron)
        assert torch.equal(found, before.select(layer.channel_axis, neuron) if expected is None else expected)


@quick
@given(layers, seeds, st.sampled_from(["position", "image"]), st.floats(-3, 3))
def test_after_damping_no_score_exceeds_the_level_and_those_that_did_reach_it(layer, seed, scope, level):
    output, silencer = noise(layer, seed), damping(seed, scope, level)
    before, after = score(layer, output, silencer), score(layer, silenced(layer, output, silencer), silencer)
    torch.testing.assert_close(after, before.clamp(max=level), rtol=0, atol=1e-9 * (1 + float(np.abs(silencer.pattern).max())))


@quick
@given(layers, seeds, scopes)
def test_a_damping_changes_the_output_along_its_pattern_only(layer, seed, scope):
    output, silencer = noise(layer, seed), damping(seed, scope, -0.5)
    taken = of_image(layer, output - silenced(layer, output, silencer))
    pattern = torch.from_numpy(silencer.pattern)
    amounts = taken @ pattern / (pattern @ pattern)
    torch.testing.assert_close(taken, amounts[..., None] * pattern, rtol=1e-9, atol=1e-9)
    assert (amounts >= -1e-12).all()


@quick
@given(layers, seeds, scopes)
def test_below_the_level_nothing_changes(layer, seed, scope):
    output, silencer = noise(layer, seed), damping(seed, scope)
    quiet = replace(silencer, level=float(score(layer, output, silencer).max()) + 1e-9)
    assert torch.equal(silenced(layer, output, quiet), output)


@quick
@given(seeds, scopes)
def test_prefix_tokens_are_neither_damped_nor_counted_but_filled(seed, scope):
    output, silencer = noise(PREFIXED, seed), damping(seed, scope, -0.5)
    after = silenced(PREFIXED, output, silencer)
    assert torch.equal(after[:, :2], output[:, :2])
    assert torch.equal(after[:, 2:], silenced(TOKENS, output[:, 2:], silencer))
    assert (silenced(PREFIXED, output, Filling("maps", (1,), (7.0,)))[:, :, 1] == 7).all()


@quick
@given(seeds, scopes, st.booleans())
def test_maps_maps_with_channels_last_and_tokens_are_silenced_alike(seed, scope, fills):
    output = noise(NCHW, seed)
    silencer = Filling("maps", (4, 0), (0.5, -2.0)) if fills else damping(seed, scope)
    expected = silenced(NCHW, output, silencer)
    channels_last = silenced(NHWC, output.permute(0, 2, 3, 1), silencer).permute(0, 3, 1, 2)
    tokens = silenced(TOKENS, output.flatten(2).mT, silencer).mT.reshape(output.shape)
    torch.testing.assert_close(channels_last, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-12)


@quick
@given(layers, seeds)
def test_an_image_is_silenced_the_same_alone_and_among_others(layer, seed):
    output = noise(layer, seed)
    for scope in ("position", "image", "anywhere"):
        silencer = damping(seed, scope)
        together = silenced(layer, output, silencer)
        torch.testing.assert_close(silenced(layer, output[:1], silencer), together[:1], rtol=0, atol=1e-12)


def test_each_position_answers_for_itself_or_all_for_their_mean():
    layer = Layer("maps", 2, 1, (2, 1, 2))
    output = torch.tensor([[[[4.0, 0.0]], [[1.0, 1.0]]]])  # neuron 0: 4 on the left, 0 on the right; neuron 1: 1 on both
    filter, pattern = np.float32([1, 0]), np.float32([1, 0.5])
    by_position = silenced(layer, output, Damping("maps", filter, pattern, 1.0, "position"))
    by_image = silenced(layer, output, Damping("maps", filter, pattern, 1.0, "image"))
    assert by_position.tolist() == [[[[1.0, 0.0]], [[-0.5, 1.0]]]]  # left: 3 above the level
    assert by_image.tolist() == [[[[3.0, -1.0]], [[0.5, 0.5]]]]  # the mean, 2, is 1 above it
    assert excess(layer, output, Damping("maps", filter, pattern, 1.0, "position")).tolist() == [[[[3.0, 0.0]]]]


def test_what_some_place_betrays_is_taken_away_everywhere():
    layer = Layer("maps", 2, 1, (2, 1, 2))
    output = torch.tensor([[[[4.0, 0.0]], [[1.0, 1.0]]], [[[0.5, 0.0]], [[1.0, 1.0]]]])  # the second image shows less than the level
    filter, pattern = np.float32([1, 0]), np.float32([0, 0.5])
    after = silenced(layer, output, Damping("maps", filter, pattern, 1.0, "anywhere"))
    assert after.tolist() == [[[[4.0, 0.0]], [[-0.5, -0.5]]], [[[0.5, 0.0]], [[1.0, 1.0]]]]


def test_of_a_mark_that_is_there_or_not_no_more_than_the_most_is_taken_away():
    layer = Layer("maps", 1, 1, (1, 1, 4))
    output = torch.tensor([[[[0.5, 1.25, 2.0, 9.0]]]])
    one = np.float32([1])
    assert excess(layer, output, Damping("maps", one, one, 1.0, "position", most=1.0)).tolist() == [[[[0.0, 0.25, 1.0, 1.0]]]]


def test_images_without_a_sure_place_stay_as_they_are():
    layer = Layer("maps", 1, 1, (1, 1, 3))
    output = torch.tensor([[[[0.0, 2.0, 5.0]]], [[[0.0, 2.0, 4.5]]], [[[2.0, 2.0, 4.0]]]])
    one = np.float32([1])
    found = excess(layer, output, Damping("maps", one, one, 1.0, "position", least=4.0))
    assert found.tolist() == [[[[0.0, 1.0, 4.0]]], [[[0.0, 0.5, 1.75]]], [[[0.0, 0.0, 0.0]]]]


def test_lower_precision_stays_and_gradients_flow():
    output = noise(NCHW, 0).to(torch.bfloat16).requires_grad_()
    for silencer in (Filling("maps", (1,), (0.5,)), damping(0, "image", -1.0)):
        after = silenced(NCHW, output, silencer)
        assert after.dtype == torch.bfloat16
        (gradient,) = torch.autograd.grad(after.float().sum(), output)
        assert gradient.abs().sum() > 0


@quick
@given(layers, seeds, scopes)
def test_what_a_variation_takes_away_follows_its_formula_at_every_position(layer, seed, scope):
    output, plain, random = noise(layer, seed), damping(seed, scope), np.random.default_rng(seed)
    variation = Variation(random.normal(size=5), random.normal(size=(2, 5)), random.normal(size=(2, 5)))
    found = of_image(layer, silenced(layer, output, replace(plain, variation=variation)))
    h = of_image(layer, output).numpy()
    s = score(layer, output, plain).numpy()
    above = np.maximum(0, s - plain.level).reshape(N_IMAGES, -1, 1)
    expected = h - above * (plain.pattern + (h - variation.usual) @ variation.reading.T @ variation.writing)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_a_variation_of_nothing_changes_nothing():
    layer = Layer("maps", 5, 1, (5, 3, 3))
    output, plain = noise(layer, 0), damping(0, "position")
    nothing = Variation(np.ones(5), np.ones((2, 5)), np.zeros((2, 5)))
    assert torch.equal(silenced(layer, output, replace(plain, variation=nothing)), silenced(layer, output, plain))
