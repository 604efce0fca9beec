"""Contrast groups on layers made by hand: a mark is found wherever it lies, a shift by its mean, and in nothing there is nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from nets import network
from torch import nn

from neurflow_engine.contrast import anywhere, at_level, auc, direction, gated, sure, varying
from neurflow_engine.effort import SCOPES
from neurflow_engine.records import Damping, Layer
from neurflow_engine.replay import Replay
from neurflow_engine.rows import Rows
from neurflow_engine.silencing import silenced
from neurflow_engine.trials import Trials

N_IMAGES, SIDE, N_CHANNELS = 48, 6, 8  # of each kind
LAYOUTS = {
    "NCHW": Layer("maps", N_CHANNELS, 1, (N_CHANNELS, SIDE, SIDE)),
    "NHWC": Layer("maps", N_CHANNELS, 3, (SIDE, SIDE, N_CHANNELS)),
    "tokens behind a class token": Layer("maps", N_CHANNELS, 2, (1 + SIDE * SIDE, N_CHANNELS), n_prefix_tokens=1),
}
WRONG, RIGHT = np.arange(N_IMAGES), np.arange(N_IMAGES, 2 * N_IMAGES)
SEEN, UNSEEN = slice(0, None, 2), slice(1, None, 2)  # a direction is fitted on the first and judged on the second


def usual(seed: int = 1) -> tuple[np.ndarray, np.random.Generator]:
    """Positions (n_images, n_positions, n_channels) whose neurons go up and down together, four of them far more than the others."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((N_CHANNELS, N_CHANNELS)) * np.array([4, 4, 4, 4, 1, 1, 1, 1])
    return 2 + random.standard_normal((2 * N_IMAGES, SIDE * SIDE, N_CHANNELS)) @ mixed.T * 0.3, random


def mark(random: np.random.Generator) -> np.ndarray:
    """What a mark adds, (n_channels,): spread over all neurons, so that none of them alone shows it."""
    return random.choice([-1.0, 1.0], N_CHANNELS) * 2


def recorded(values: np.ndarray, layer: Layer, folder) -> Trials:
    """Trials whose one layer gives these positions (n_images, n_positions, n_channels); a class token shouts at random."""
    tokens = torch.from_numpy(values.astype(np.float32))
    if layer.n_prefix_tokens:
        shouting = 100 * torch.randn((len(values), 1, N_CHANNELS), generator=torch.Generator().manual_seed(9))
        outputs = torch.cat([shouting, tokens], 1)
    else:
        outputs = tokens.unflatten(1, (SIDE, SIDE)).movedim(-1, layer.channel_axis)
    return of_outputs(outputs, layer, folder)


def of_outputs(outputs: torch.Tensor, layer: Layer, folder) -> Trials:
    rows = Rows.create(folder / f"{layer.channel_axis}.npy", tuple(outputs.shape))
    rows.write(range(len(outputs)), outputs.contiguous().numpy())
    replay = Replay(network(nn.Identity()), {"maps": layer})
    paths = tuple(f"{number}.png" for number in range(len(outputs)))
    return Trials(replay, paths, images=rows, outputs={"maps": rows}, intact=np.zeros((len(outputs), 2), np.float32))


def marked_somewhere(seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions with a mark at a random one of each wrong image; the mark, and where it lies (n_wrong,)."""
    values, random = usual(seed)
    added, places = mark(random), random.integers(SIDE * SIDE, size=N_IMAGES)
    values[WRONG, places] += added
    return values, added, places


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def layer(request) -> Layer:
    return request.param


@pytest.fixture
def trials(layer, tmp_path):
    """A mark at one place of each wrong image."""
    return recorded(marked_somewhere()[0], layer, tmp_path)


@pytest.fixture
def found(trials):
    return direction(trials, "maps", "position", WRONG[SEEN], RIGHT[SEEN])


class TestAMark:
    def test_is_told_from_all_else_on_images_that_were_not_looked_at(self, trials, found):
        assert auc(trials.scores(found, WRONG[UNSEEN]), trials.scores(found, RIGHT[UNSEEN])) > 0.99

    def test_is_found_where_it_lies_and_as_what_it_adds(self, trials, found):
        _, added, places = marked_somewhere()
        strongest = np.concatenate([(values @ found.filter).argmax(1) for _, values in trials.positions("maps", WRONG)])
        assert (strongest == places).mean() > 0.9
        assert found.pattern @ added / np.linalg.norm(found.pattern) / np.linalg.norm(added) > 0.9
        assert found.filter @ found.pattern == pytest.approx(1, abs=1e-4)

    def test_is_more_than_a_difference_of_means(self, trials, found):
        """The mean over an image hardly shows it, and the loud neurons drown it without the covariance."""
        _, added, _ = marked_somewhere()
        plain = replace(found, filter=(added / (added @ added)).astype(np.float32))
        on = {scope: auc(*(trials.scores(replace(plain, scope=scope), rows) for rows in (WRONG, RIGHT))) for scope in SCOPES}
        assert max(on.values()) < auc(trials.scores(found, WRONG), trials.scores(found, RIGHT)) - 0.2

    def test_damped_it_is_back_at_the_level_and_the_rest_is_as_it_was(self, trials, found, layer, tmp_path):
        damping = at_level(trials, found, RIGHT[SEEN], 0.9)
        before = torch.from_numpy(trials.outputs["maps"].read(range(2 * N_IMAGES)))
        after = silenced(layer, before, damping)
        (tmp_path / "after").mkdir()
        scores = of_outputs(after, layer, tmp_path / "after").scores(damping, WRONG)
        assert (trials.scores(damping, WRONG) > damping.level).mean() > 0.9
        assert scores.max() <= damping.level + 1e-3
        untouched = trials.scores(damping, RIGHT) <= damping.level
        assert 0.7 < untouched.mean() < 1
        assert torch.equal(after[RIGHT][untouched], before[RIGHT][untouched])

    def test_is_the_same_again_for_the_same_seed(self, trials, found):
        again, other = (direction(trials, "maps", "position", WRONG[SEEN], RIGHT[SEEN], seed) for seed in (0, 1))
        assert np.array_equal(again.filter, found.filter)
        assert np.array_equal(again.pattern, found.pattern)
        assert not np.array_equal(other.filter, found.filter)

    @pytest.mark.parametrize("seed", [2, 3])
    def test_is_not_mistaken_for_a_stronger_mark_that_right_images_carry(self, seed, tmp_path):
        values, random = usual(seed)
        added, places = mark(random), random.integers(SIDE * SIDE, size=N_IMAGES)
        values[WRONG, places] += added
        other = 1.5 * mark(random)
        for _ in range(4):
            values[RIGHT, random.integers(SIDE * SIDE, size=N_IMAGES)] += other
        trials = recorded(values, LAYOUTS["NCHW"], tmp_path)
        found = direction(trials, "maps", "position", WRONG[SEEN], RIGHT[SEEN])
        assert auc(trials.scores(found, WRONG[UNSEEN]), trials.scores(found, RIGHT[UNSEEN])) > 0.99
        np.testing.assert_allclose(found.pattern @ added / (added @ added), 1, atol=0.15)  # as strong as it is
        assert found.pattern @ added / np.linalg.norm(found.pattern) / np.linalg.norm(added) > 0.9


class TestAShift:
    @pytest.fixture
    def trials(self, layer, tmp_path):
        """A little of the mark everywhere: less at each position than positions differ by themselves."""
        values, random = usual()
        values[WRONG] += mark(random) / 15
        return recorded(values, layer, tmp_path)

    def test_is_found_in_the_mean_over_the_image_better_than_at_its_strongest_place(self, trials):
        found = {scope: direction(trials, "maps", scope, WRONG[SEEN], RIGHT[SEEN]) for scope in ("image", "position")}
        seen = {scope: auc(*(trials.scores(one, rows[UNSEEN]) for rows in (WRONG, RIGHT))) for scope, one in found.items()}
        assert seen["image"] > 0.99
        assert seen["position"] < 0.9
        assert found["image"].scope == "image"

    def test_damped_it_is_back_at_the_level(self, trials, layer, tmp_path):
        damping = at_level(trials, direction(trials, "maps", "image", WRONG[SEEN], RIGHT[SEEN]), RIGHT[SEEN], 0.5)
        after = silenced(layer, torch.from_numpy(trials.outputs["maps"].read(WRONG)), damping)
        (tmp_path / "after").mkdir()
        scores = of_outputs(after, layer, tmp_path / "after").scores(damping, range(N_IMAGES))
        above = trials.scores(damping, WRONG) > damping.level
        assert above.mean() > 0.9
        np.testing.assert_allclose(scores[above], damping.level, atol=1e-3)


class TestAGate:
    """A mark that is there or not, taken away once where it is."""

    def changed(self, trials: Trials, damping: Damping) -> np.ndarray:
        """How far each position is moved, (2 * N_IMAGES, SIDE * SIDE)."""
        layer = trials.replay.layers["maps"]
        before = torch.from_numpy(trials.outputs["maps"].read(range(2 * N_IMAGES)))
        moved = (before - silenced(layer, before, damping)).movedim(layer.channel_axis, -1).reshape(2 * N_IMAGES, -1, N_CHANNELS)
        return moved[:, layer.n_prefix_tokens :].norm(dim=-1).numpy()

    def test_takes_the_pattern_away_once_where_the_mark_is_and_nothing_elsewhere(self, trials, found):
        _, _, places = marked_somewhere()
        moved = self.changed(trials, gated(trials, found, WRONG[SEEN], RIGHT[SEEN], 0.5)) / np.linalg.norm(found.pattern)
        at_marks = moved[WRONG, places]
        assert (at_marks[UNSEEN] > 0.99).mean() > 0.8
        assert at_marks.max() < 1.0001
        assert (moved[RIGHT[UNSEEN]].max(1) == 0).mean() > 0.95

    def test_opens_later_where_a_larger_share_is_asked_for(self, trials, found):
        opened = [(self.changed(trials, gated(trials, found, WRONG, RIGHT, share)) > 0).sum() for share in (-0.2, 0.5, 1.0)]
        assert opened[0] > opened[1] > opened[2] > 0

    def test_of_what_exceeds_a_level_changes_no_image_without_a_sure_place_and_the_others_as_before(self, trials, found):
        plain = at_level(trials, found, RIGHT[SEEN], 0.1)
        everywhere, where_sure = self.changed(trials, plain), self.changed(trials, sure(trials, plain, WRONG[SEEN], RIGHT[SEEN], 0.5))
        assert (everywhere[RIGHT] > 0).any(1).mean() > 0.8
        assert (where_sure[RIGHT[UNSEEN]] == 0).all(1).mean() > 0.95
        whole = where_sure[WRONG].max(1) >= 0.999 * everywhere[WRONG].max(1)
        assert whole.mean() > 0.8
        np.testing.assert_allclose(where_sure[WRONG][whole], everywhere[WRONG][whole], rtol=1e-3, atol=1e-3)

    def test_is_none_where_right_images_show_as_much(self, trials, found):
        assert gated(trials, found, RIGHT, WRONG, 0.5) is None
        assert sure(trials, found, RIGHT, WRONG, 0.5) is None


class TestAStripe:
    """A mark whose sign differs from place to place: its mean is nothing, and it is everywhere."""

    @pytest.fixture
    def trials(self, layer, tmp_path):
        values, random = usual()
        values[WRONG] += random.choice([-1.0, 1.0], (N_IMAGES, SIDE * SIDE, 1)) * mark(random)
        return recorded(values, layer, tmp_path)

    @staticmethod
    def covariances(trials: Trials, damping: Damping) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of positions of unseen images: wrong ones before and after, and right ones."""
        layer = trials.replay.layers["maps"]

        def covariance(outputs: torch.Tensor) -> np.ndarray:
            places = outputs.movedim(layer.channel_axis, -1).reshape(len(outputs), -1, N_CHANNELS)[:, layer.n_prefix_tokens :]
            return np.cov(places.reshape(-1, N_CHANNELS).numpy().T)

        wrong, right = (torch.from_numpy(trials.outputs["maps"].read(rows[UNSEEN])) for rows in (WRONG, RIGHT))
        return covariance(wrong), covariance(silenced(layer, wrong, damping)), covariance(right)

    @pytest.fixture
    def always(self):
        """Takes something away at every place of every image."""
        return Damping("maps", np.zeros(N_CHANNELS, np.float32), np.zeros(N_CHANNELS, np.float32), -1.0, "image", most=1.0)

    def test_is_undone_by_a_variation_that_brings_the_covariance_back(self, trials, always):
        before, after, usual_ = self.covariances(trials, varying(trials, always, WRONG[SEEN], RIGHT[SEEN], rank=1))
        assert np.linalg.norm(after - usual_) < 0.4 * np.linalg.norm(before - usual_)

    def test_of_all_directions_as_much_is_undone_as_the_rank_allows(self, trials, always):
        left = []
        for rank in (0, 1, N_CHANNELS):
            before, after, usual_ = self.covariances(trials, varying(trials, always, WRONG, RIGHT, rank))
            left.append(np.linalg.norm(after - usual_) / np.linalg.norm(before - usual_))
        assert left[0] == pytest.approx(1, abs=1e-6)
        assert left[2] < 0.1

    def test_moves_the_mean_to_that_of_right_images_whatever_the_rank(self, layer, tmp_path):
        values, random = usual()
        values[WRONG] = values[WRONG] * 1.5 + mark(random)
        trials = recorded(values, layer, tmp_path)
        shift = gated(trials, direction(trials, "maps", "image", WRONG, RIGHT), WRONG, RIGHT, 0.2)
        wrong = torch.from_numpy(trials.outputs["maps"].read(WRONG))
        for rank in (0, 2, 4):
            after = silenced(layer, wrong, varying(trials, shift, WRONG, RIGHT, rank))
            places = after.movedim(layer.channel_axis, -1).reshape(N_IMAGES, -1, N_CHANNELS)[:, layer.n_prefix_tokens :]
            np.testing.assert_allclose(places.mean((0, 1)), values[RIGHT].mean((0, 1)), atol=0.1)

    def test_anywhere_takes_the_filter_of_places_and_the_pattern_of_whole_images(self, trials):
        places, diffuse = (direction(trials, "maps", scope, WRONG, RIGHT) for scope in ("position", "image"))
        both = anywhere(places, diffuse)
        assert both.scope == "anywhere"
        assert both.filter is places.filter
        assert both.pattern is diffuse.pattern
        assert anywhere(None, diffuse) is anywhere(places, None) is None


class TestNothing:
    def test_the_same_images_on_both_sides_have_no_shift(self, tmp_path):
        trials = recorded(usual()[0], LAYOUTS["NCHW"], tmp_path)
        assert direction(trials, "maps", "image", WRONG, WRONG) is None

    def test_neurons_that_never_change_show_nothing(self, tmp_path):
        trials = recorded(np.ones((2 * N_IMAGES, SIDE * SIDE, N_CHANNELS)), LAYOUTS["NCHW"], tmp_path)
        assert direction(trials, "maps", "image", WRONG, RIGHT) is None

    def test_a_layer_without_space_has_no_marks(self, tmp_path):
        layer = Layer("maps", N_CHANNELS, 1, (N_CHANNELS,))
        values, random = usual()
        values[WRONG] += mark(random)
        trials = of_outputs(torch.from_numpy(values.mean(1).astype(np.float32)), layer, tmp_path)
        assert direction(trials, "maps", "position", WRONG, RIGHT) is None
        shift = direction(trials, "maps", "image", WRONG[SEEN], RIGHT[SEEN])
        assert auc(trials.scores(shift, WRONG[UNSEEN]), trials.scores(shift, RIGHT[UNSEEN])) > 0.99

    @pytest.mark.parametrize("scope", ["image", "position"])
    def test_what_is_found_between_images_of_one_kind_does_not_hold_on_others(self, scope, tmp_path):
        trials = recorded(usual()[0], LAYOUTS["NCHW"], tmp_path)
        found = direction(trials, "maps", scope, WRONG[SEEN], RIGHT[SEEN])
        assert 0.25 < auc(trials.scores(found, WRONG[UNSEEN]), trials.scores(found, RIGHT[UNSEEN])) < 0.75


def test_a_damping_begins_where_the_share_asked_for_lies_below(tmp_path):
    values = np.zeros((5, 4, 2), np.float32)
    values[:, 2, 0] = [1, 2, 3, 4, 5]  # the strongest of four positions, in neuron 0
    layer = Layer("maps", 2, 2, (4, 2))
    trials = of_outputs(torch.from_numpy(values), layer, tmp_path)
    along = np.array([1, 0], np.float32)
    assert at_level(trials, Damping("maps", along, along, 0.0, "position"), range(5), 0.75).level == 4
    assert at_level(trials, Damping("maps", along, along, 0.0, "image"), range(5), 0.75).level == 1  # a quarter of it in the mean
    assert at_level(trials, Damping("maps", along, along, 0.0, "position"), [0, 1], 0.5).level == 1.5


def test_auc_is_how_often_a_value_lies_above():
    assert auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert auc(np.array([0.0, 2.0]), np.array([1.0])) == 0.5
    assert auc(np.array([0.0, 2.0, 3.0]), np.array([1.0, 1.5])) == pytest.approx(2 / 3)
    assert auc(np.array([]), np.array([1.0])) == 0.5
