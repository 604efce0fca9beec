"""A damping refined on a small network whose answer a mark turns: it mends images that it never saw, and leaves right ones alone.

And the search that refines several, and chooses.
"""

import threading
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from neurflow_engine.cases import Cases
from neurflow_engine.contrast import at_level, direction, gated, sure
from neurflow_engine.contrast_search import contrast_groups
from neurflow_engine.effort import WHOLE_SHARES, WHOLE_STEPS
from neurflow_engine.progress import Silent
from neurflow_engine.records import Layer, Variation
from neurflow_engine.refinement import neuron_scale, pattern_refined, whole_refined
from neurflow_engine.replay import Replay
from neurflow_engine.rows import Rows
from neurflow_engine.trials import Trials

N, SIDE, N_CHANNELS, TARGET = 120, 8, 12, 2  # pictures, each with and without the mark
MAPS = Layer("0", N_CHANNELS, 1, (N_CHANNELS, SIDE, SIDE))


@dataclass(frozen=True, eq=False)
class Classifier:
    """What trials need of one."""

    model: nn.Module
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    preprocessing: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(in_chans=3, input_size=(SIDE, SIDE)))
    lock: threading.RLock = field(default_factory=threading.RLock)


def pictures() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Noise with the colour of its class everywhere; the same with a mark over a corner; and the classes, 0 or 1 (n_pictures,)."""
    random = torch.Generator().manual_seed(3)
    true = torch.arange(N) % 2
    plain = torch.randn((N, 3, SIDE, SIDE), generator=random)
    plain[:, 0] += (2 * true - 1)[:, None, None] * 0.6
    marked = plain.clone()
    marked[:, :, :4, :4] = torch.tensor([0.5, 1.5, -2.5])[None, :, None, None] + 0.3 * torch.randn((N, 3, 4, 4), generator=random)
    return plain, marked, true.numpy()


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """Trained for some steps to tell the two classes, and to call what is marked the third."""
    torch.manual_seed(0)
    above = nn.Sequential(
        nn.ReLU(), nn.Conv2d(N_CHANNELS, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    model = nn.Sequential(nn.Conv2d(3, N_CHANNELS, 1), *above)
    plain, marked, true = pictures()
    images, classes = torch.cat([plain, marked]), torch.cat([torch.from_numpy(true), torch.full((N,), TARGET)])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(120):
        nn.functional.cross_entropy(model(images), classes).backward()
        optimiser.step()
        optimiser.zero_grad()
    return Classifier(model.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def trials(classifier, tmp_path_factory) -> Trials:
    """The plain pictures, then the marked ones."""
    folder = tmp_path_factory.mktemp("trials")
    plain, marked, _ = pictures()
    images = torch.cat([plain, marked])
    with torch.no_grad():
        outputs, logits = classifier.model[0](images), classifier.model(images)
    stored = {}
    for name, values in (("images", images), ("outputs", outputs)):
        stored[name] = Rows.create(folder / f"{name}.npy", tuple(values.shape))
        stored[name].write(range(len(values)), values.contiguous().numpy())
    paths = tuple(f"{number}.png" for number in range(2 * N))
    return Trials(Replay(classifier, {"0": MAPS}), paths, stored["images"], {"0": stored["outputs"]}, logits.numpy())


TRUE = np.tile(np.arange(N) % 2, 2)
SEEN, UNSEEN = np.arange(0, N // 2), np.arange(N // 2, N)
CASES = Cases(wrong=N + SEEN, right=SEEN, true=TRUE, target=TARGET)


@pytest.fixture(scope="module")
def start(trials):
    return at_level(trials, direction(trials, "0", "position", CASES.wrong, CASES.right_others), CASES.right_others, 0.5)


@pytest.fixture(scope="module")
def scale(trials):
    return neuron_scale(trials, "0", CASES.right)


def shares(trials: Trials, damping) -> tuple[float, float]:
    """Of pictures that it never saw: marked ones that get their class back, plain ones that keep it."""
    return tuple(float((trials.logits([damping], rows).argmax(1) == TRUE[rows]).mean()) for rows in (N + UNSEEN, UNSEEN))


def test_the_mark_turns_the_answer(trials):
    assert (trials.intact[N:].argmax(1) == TARGET).mean() > 0.9
    assert (trials.intact[:N].argmax(1) == TRUE[:N]).mean() > 0.9


@pytest.mark.parametrize("rank", [0, 4])
def test_refined_it_mends_more_of_what_it_never_saw_and_right_pictures_stay_right(rank, trials, start, scale):
    before, after = shares(trials, start), shares(trials, whole_refined(trials, start, CASES, scale, 60, rank))
    assert after[0] > max(0.8, before[0] + 0.1)
    assert after[1] > 0.9


def test_its_pattern_alone_refined_mends_more_and_acts_where_it_did(trials, start, scale):
    gate = gated(trials, start, CASES.wrong, CASES.right_others, 0.5)
    found = pattern_refined(trials, gate, CASES, scale, 40)
    assert shares(trials, found)[0] > shares(trials, gate)[0] + 0.05
    assert shares(trials, found)[1] > 0.9
    np.testing.assert_array_equal(found.filter, gate.filter)
    assert found.variation is gate.variation is None


def test_a_variation_that_is_there_stays_when_the_pattern_is_refined(trials, start, scale):
    random = np.random.default_rng(0)
    vectors = [random.normal(size=shape).astype(np.float32) / 50 for shape in (N_CHANNELS, (2, N_CHANNELS), (2, N_CHANNELS))]
    varied = replace(start, variation=Variation(*vectors))
    found = pattern_refined(trials, varied, CASES, scale, 3)
    for before, after in zip(vectors, vars(found.variation).values(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert not np.allclose(found.pattern, start.pattern)


def test_right_pictures_are_changed_less_the_longer_they_count(trials, start, scale, monkeypatch):
    def changed(weight: float) -> float:
        monkeypatch.setattr("neurflow_engine.refinement._LEAVE_ALONE", weight)
        damping = whole_refined(trials, start, CASES, scale, 40)
        return float(np.abs(trials.logits([damping], UNSEEN) - trials.intact[UNSEEN]).mean())

    assert changed(50.0) < changed(1.0)


def test_layer_scope_and_bounds_stay_and_a_rank_brings_a_variation(trials, start, scale):
    bounded = replace(start, most=2.0, least=start.level)
    for rank in (0, 4):
        found = whole_refined(trials, bounded, CASES, scale, 3, rank)
        for name in ("layer", "scope", "level", "most", "least"):
            assert getattr(found, name) == getattr(bounded, name)
        assert found.filter.dtype == found.pattern.dtype == np.float32
        assert (found.variation is None) == (rank == 0)
    assert found.variation.reading.shape == found.variation.writing.shape == (4, N_CHANNELS)
    usual = np.concatenate([values.reshape(-1, N_CHANNELS) for _, values in trials.positions("0", SEEN)]).mean(0)
    np.testing.assert_allclose(found.variation.usual, usual, atol=1e-5)


def test_the_same_seed_gives_the_same_damping_and_the_network_stays_as_it_was(classifier, trials, start, scale):
    weights = {name: value.clone() for name, value in classifier.model.state_dict().items()}
    first, again, other = (whole_refined(trials, start, CASES, scale, 5, 2, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.filter, again.filter)
    np.testing.assert_array_equal(first.variation.writing, again.variation.writing)
    assert not np.array_equal(first.filter, other.filter)
    assert all(torch.equal(value, weights[name]) for name, value in classifier.model.state_dict().items())
    assert all(value.grad is None for value in classifier.model.parameters())


class Told(Silent):
    """Keeps how far each stage went, and how far it said that it would."""

    def __init__(self):
        super().__init__()
        self.stages = []

    def _left(self, stage, seconds):
        self.stages.append((stage.done, stage.total))


@pytest.fixture(scope="module")
def searched(trials):
    """What a search finds that nothing is good enough for, which wholes it refined for how many steps, and its stages."""
    refinements, told = [], Told()

    def refined(trials, damping, cases, scale, steps, rank, seed):
        refinements.append((steps, rank, cases.wrong.tobytes()))
        return whole_refined(trials, damping, cases, scale, steps, rank, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neurflow_engine.contrast_search.whole_refined", refined)
        found = contrast_groups(trials, CASES, 1.0, told, seed=0)
    return found, refinements, told.stages


def test_the_search_finds_what_mends_pictures_that_it_never_saw(searched, trials):
    back, stays = shares(trials, searched[0][0])
    assert back > 0.8
    assert stays > 0.9


def test_the_search_refines_nothing_twice_however_many_shares_it_tries(searched):
    refinements = searched[1]
    assert WHOLE_STEPS in [steps for steps, *_ in refinements]
    assert len(refinements) == len(set(refinements))


def test_the_search_goes_no_further_than_it_said(searched):
    assert searched[2]
    assert all(0 < done <= total for done, total in searched[2])


def test_a_gate_that_opens_later_touches_fewer_pictures(trials, start, scale):
    damping = whole_refined(trials, start, CASES, scale, 40)
    touched = []
    for share in WHOLE_SHARES:
        gate = sure(trials, damping, CASES.wrong, CASES.right_others, share)
        touched.append((np.abs(trials.logits([gate], np.arange(2 * N)) - trials.intact).max(1) > 1e-5).sum())
    assert touched == sorted(touched, reverse=True)
    assert touched[-1] < touched[0]
