"""One step down the network: shared passes over patches give what one neuron and one patch at a time give, in any amount of memory."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import SkipAround, images, network, timm_network
from numpy.testing import assert_allclose

from neurflow_engine.activations import ProbePatches, survey
from neurflow_engine.attribution import RULES, integrated_gradients
from neurflow_engine.batching import Capacity
from neurflow_engine.core_neurons import core_neurons, is_close_call
from neurflow_engine.errors import LayerError
from neurflow_engine.images import cut_patches
from neurflow_engine.layer_step import COPIES, Attributions, LayerStep, Pairs
from neurflow_engine.layers import examine, pooled
from neurflow_engine.models import Preprocessing
from neurflow_engine.progress import Stage
from neurflow_engine.records import LOGITS
from neurflow_engine.rows import Rows
from neurflow_engine.tracing import Segment, record

AMPLE = 1 << 40
CPU = torch.device("cpu")
VIT = {"num_classes": 5, "img_size": 48, "depth": 3}
CASES = {  # network, side of the images, lower and upper layer, and whether a branch leads around the cut
    "resnet10t": (lambda: timm_network("resnet10t", num_classes=5), 64, "layer3", "layer4", False),
    "resnet10t to the logits": (lambda: timm_network("resnet10t", num_classes=5), 64, "layer4", LOGITS, False),
    "vit": (lambda: timm_network("vit_tiny_patch16_224", **VIT), 48, "blocks.0", "blocks.2", False),
    "branch around the cut": (lambda: network(SkipAround()), 16, "cut", LOGITS, True),
}
CONCEPTS = {0: (7, 2, 11), 2: (2, 5, 0, 7), 1: (2, 19)}  # patches by neuron; patch 2 is wanted by all


@dataclass(frozen=True)
class Classifier:
    """What is asked of one between loading and grouping."""

    model: torch.nn.Module
    lock: object
    preprocessing: Preprocessing
    device: torch.device


class Subject:
    """A network, its two layers, and 20 patches of two images, with their activations and maps on disk."""

    def __init__(self, name: str, folder):
        build, side, lower, upper, self.around = CASES[name]
        net = build()
        self.classifier = Classifier(
            net.model, net.lock, Preprocessing((side, side), 3, (0.0,) * 3, (1.0,) * 3, "bilinear", 1.0, "center"), CPU
        )
        layers = examine(net, (3, side, side)).layers
        self.lower, self.upper = layers[lower], layers[upper]
        on_disk = Rows.create(folder / "images.npy", (2, 3, side, side))
        on_disk.write([0, 1], images(2, side).numpy())
        self.probe = ProbePatches(self.classifier, on_disk, cut_patches(2, (side, side), (1.0, 0.5)))
        self.activations = Rows.create(folder / "activations.npy", (len(self.probe), self.upper.n_channels))
        self.maps = Rows.create(folder / "maps.npy", (len(self.probe), *self.lower.shape))
        self.ticks = Ticks()
        patches = range(len(self.probe))
        survey(self.probe, patches, {self.upper: self.activations}, {self.lower: self.maps}, Capacity(CPU, 8, 1), self.ticks)

    def step(self, maps: bool = True, room: int = AMPLE) -> LayerStep:
        return LayerStep(self.probe, self.upper, self.lower, self.activations, self.maps if maps else None, room)

    def one_at_a_time(self, rule):
        """By (neuron, patch): channels, f(x) - f(0) and gap, each from a forward pass of its own through the plain segment."""
        segment = Segment(self.classifier, self.lower.name, self.upper.name, self.probe.inputs([0, 1, 2]))
        found = {}
        for neuron, patches in CONCEPTS.items():
            for patch in patches:
                inputs = self.probe.inputs([patch])
                context = segment.context(inputs) if segment.needs_context else None
                at_cut = record(self.classifier, inputs, [self.lower.name])[self.lower.name]

                def through(scaled, context=context):
                    return pooled(self.upper, segment.repeated(scaled, context, len(scaled)))

                one = integrated_gradients(through, at_cut, [(neuron,)], self.lower.channel_axis, *rule)
                found[neuron, patch] = (one.channels[0], one.change[0], one.gap[0])
        assert segment.needs_context == self.around
        return found


class Ticks(Stage):
    def __init__(self):
        self.done = 0

    def advance(self, n=1):
        self.done += n


@pytest.fixture(scope="module", params=CASES)
def subject(request, tmp_path_factory):
    return Subject(request.param, tmp_path_factory.mktemp("subject"))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    return Subject("resnet10t", tmp_path_factory.mktemp("resnet"))


def by_pair(pairs, batches):
    """What a step yields, by (neuron, patch), and the sizes of its batches."""
    found, sizes = {}, []
    for batch, attribution in batches:
        sizes.append(len(batch))
        wanted = [(neuron, patch) for patch in batch for neuron in pairs.neurons[patch]]
        rows = zip(attribution.channels, attribution.change, attribution.gap, strict=True)
        found |= dict(zip(wanted, rows, strict=True))
    return found, sizes


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    channels = np.abs([channels for channels, *_ in expected.values()]).max()
    changes = np.abs([change for _, change, _ in expected.values()]).max()
    for pair in expected:
        assert_allclose(found[pair][0], expected[pair][0], atol=1e-4 * channels, rtol=1e-3)
        assert_allclose(found[pair][1], expected[pair][1], atol=1e-4 * changes)
        assert_allclose(found[pair][2], expected[pair][2], atol=1e-3 * changes)


@pytest.fixture(scope="module")
def expected(subject):
    return subject.one_at_a_time((8, 1))


class TestEquals:
    """One neuron and one patch at a time, through the plain segment."""

    @pytest.mark.parametrize("maps", [True, False], ids=["maps kept", "maps computed again"])
    @pytest.mark.parametrize("room", [AMPLE, 1], ids=["ample", "no room"])
    def test_whether_maps_are_kept_and_whatever_room_there_is(self, subject, expected, maps, room):
        pairs = Pairs.of(CONCEPTS)
        found, sizes = by_pair(pairs, subject.step(maps, room).attributions(pairs, pairs.patches, (8, 1), mixed=False))
        assert_same(found, expected)
        assert sizes == ([6] if room == AMPLE else [1] * 6)

    def test_bfloat16_comes_close_and_the_ends_stay_exact(self, subject, expected):
        pairs = Pairs.of(CONCEPTS)
        found, _ = by_pair(pairs, subject.step().attributions(pairs, pairs.patches, (8, 1), mixed=True))
        for neuron in CONCEPTS:
            own = [pair for pair in expected if pair[0] == neuron]
            exact, mixed = (np.abs([values[pair][0] for pair in own]).mean(0) for values in (expected, found))
            assert np.linalg.norm(mixed - exact) < 0.06 * np.linalg.norm(exact)
            assert_allclose([found[pair][1] for pair in own], [expected[pair][1] for pair in own], rtol=1e-3, atol=1e-5)

    def test_going_on_in_the_middle(self, subject, expected):
        pairs = Pairs.of(CONCEPTS)
        step = subject.step()
        first, _ = by_pair(pairs, step.attributions(pairs, pairs.patches[:4], (8, 1), mixed=False))
        rest, _ = by_pair(pairs, step.attributions(pairs, pairs.patches[4:], (8, 1), mixed=False))
        assert not first.keys() & rest.keys()
        assert_same(first | rest, expected)


class TestBatches:
    def test_hold_as_many_scaled_copies_as_are_useful(self, resnet):
        pairs = Pairs.of({0: range(20)})
        _, sizes = by_pair(pairs, resnet.step().attributions(pairs, pairs.patches, (8, 1), mixed=False))
        assert sizes == [COPIES // 8, COPIES // 8, 4]

    def test_are_smaller_with_less_room(self, resnet):
        pairs = Pairs.of({0: range(20)})
        largest = [
            max(by_pair(pairs, resnet.step(room=room).attributions(pairs, pairs.patches, (1, 1), mixed=False))[1])
            for room in (1 << 18, 1 << 20, 1 << 21, AMPLE)
        ]
        assert largest == sorted(set(largest))
        assert largest[-1] == 20

    def test_are_halved_when_memory_runs_out_after_all(self, resnet, monkeypatch):
        """As a real allocator would: a backward pass through more than three copies is refused."""
        refused = []

        def frugal(tensor, *arguments, **options):
            if len(tensor) > 3:
                refused.append(len(tensor))
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
            return convolve(tensor, *arguments, **options)

        expected = resnet.one_at_a_time((8, 1))
        pairs, step = Pairs.of(CONCEPTS), resnet.step()
        convolve = torch.nn.functional.conv2d
        monkeypatch.setattr("torch.nn.functional.conv2d", frugal)
        found, _ = by_pair(pairs, step.attributions(pairs, pairs.patches, (8, 1), mixed=False))
        assert_same(found, expected)
        assert refused == [48, 32, 16, 8, 4]


class TestTheRule:
    def test_is_one_node_where_the_segment_is_linear(self, tmp_path):
        subject = Subject("resnet10t to the logits", tmp_path)
        assert subject.step().rule(Pairs.of(CONCEPTS), 0.01, mixed=False) == RULES[0]

    def test_has_more_nodes_where_it_is_not(self, resnet):
        pairs, step = Pairs.of(CONCEPTS), resnet.step()
        rule = step.rule(pairs, 0.05, mixed=False)
        assert rule in RULES[1:]
        assert step.rule(pairs, 1e9, mixed=False) in RULES[1:]  # no tolerance makes it linear


def test_layers_between_which_no_path_leads_are_refused(resnet):
    with pytest.raises(LayerError, match="No path leads from layer4 to layer3"):
        LayerStep(resnet.probe, resnet.lower, resnet.upper, resnet.activations, None, AMPLE)


def test_the_survey_counts_every_patch(subject):
    assert subject.ticks.done == 20
    expected = record(subject.classifier, subject.probe.inputs(range(20)), [subject.lower.name, subject.upper.name])
    assert_allclose(subject.maps.read(range(20)), expected[subject.lower.name], rtol=1e-3, atol=1e-4)
    assert_allclose(subject.activations.read(range(20)), pooled(subject.upper, expected[subject.upper.name]), rtol=1e-3, atol=1e-4)


class TestPairs:
    def test_solved_by_hand(self):
        pairs = Pairs.of({5: (3, 1), 9: (1, 4), 2: (1, 3)})
        assert pairs.patches == [1, 3, 4]  # wanted by three, two and one
        assert pairs.neurons == {1: (5, 9, 2), 3: (5, 2), 4: (9,)}
        assert pairs.row_of == {(5, 1): 0, (9, 1): 1, (2, 1): 2, (5, 3): 3, (2, 3): 4, (9, 4): 5}
        assert pairs.count([3, 4]) == 3

    @given(st.dictionaries(st.integers(0, 20), st.lists(st.integers(0, 30), unique=True, max_size=8), max_size=8))
    def test_every_pair_has_one_row_in_computing_order(self, concepts):
        pairs = Pairs.of(concepts)
        assert set(pairs.row_of) == {(neuron, patch) for neuron, patches in concepts.items() for patch in patches}
        in_order = [(neuron, patch) for patch in pairs.patches for neuron in pairs.neurons[patch]]
        assert [pairs.row_of[pair] for pair in in_order] == list(range(len(in_order)))
        assert pairs.count(pairs.patches) == len(in_order)
        wishes = [len(pairs.neurons[patch]) for patch in pairs.patches]
        assert wishes == sorted(wishes, reverse=True)


def test_attributions_come_back_by_neuron_in_the_order_asked_for(tmp_path, resnet):
    pairs, step = Pairs.of(CONCEPTS), resnet.step()
    table = Attributions(pairs, Rows.create(tmp_path / "table.npy", Attributions.shape(pairs, resnet.lower.n_channels)))
    found = {}
    for batch in (pairs.patches[3:], pairs.patches[:3]):
        for part, attribution in step.attributions(pairs, batch, (1, 1), mixed=False):
            table.write(pairs, part, attribution)
            found |= by_pair(pairs, [(part, attribution)])[0]
    for neuron, patches in CONCEPTS.items():
        for order in (patches, patches[::-1]):
            own = table.of(neuron, order)
            for place, name in enumerate(("channels", "change", "gap")):
                assert_allclose(getattr(own, name), [found[neuron, patch][place] for patch in order])


class TestCloseCalls:
    SCORES = np.array([[4.0, -1.0, 0.0, 2.0], [-4.0, 1.05, 0.0, 2.0]])  # mean absolute values 4, 1.025, 0, 2

    @pytest.mark.parametrize(
        ("tau", "tolerance", "close"),
        [
            (1, 0.49, False),  # 4 against 2
            (1, 0.51, True),
            (2, 0.48, False),  # 2 against 1.025
            (2, 0.49, True),
            (3, 0.99, False),  # 1.025 against nothing
            (4, 1.0, False),  # there is no fifth
            (9, 1.0, False),
        ],
    )
    def test_solved_by_hand(self, tau, tolerance, close):
        assert is_close_call(self.SCORES, tau, tolerance) is close

    def test_without_any_attribution_nothing_is_close(self):
        assert not is_close_call(np.zeros((3, 5)), 2, 0.5)

    @given(st.integers(0, 1 << 20), st.integers(1, 12))
    def test_where_it_is_not_close_an_error_of_half_the_tolerance_changes_no_core_neuron(self, seed, tau):
        generator = np.random.default_rng(seed)
        exact = generator.normal(size=(5, 12)) * generator.exponential(size=12)
        disturbed = exact * (1 + 0.004 * generator.uniform(-1, 1, size=exact.shape))
        if not is_close_call(exact, tau, 0.01):
            assert set(core_neurons(disturbed, tau)) == set(core_neurons(exact, tau))
