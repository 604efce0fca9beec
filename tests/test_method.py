"""The method on paper: concepts, core neurons, semantic groups, neuron groups, edges, presence and controls, in literal numbers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nets import network
from scipy.cluster import hierarchy
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import silhouette_score
from torch import nn

from neurflow_engine.attribution import integrated_gradients
from neurflow_engine.circuit import explained
from neurflow_engine.concepts import clustered, concept
from neurflow_engine.controls import matched_neurons
from neurflow_engine.core_neurons import core_neurons, core_weights
from neurflow_engine.debugging import presence
from neurflow_engine.groups import edges_between, logit_group, neuron_groups, ranked
from neurflow_engine.layers import pooled
from neurflow_engine.records import LOGITS, Edge, Layer, Member, Neuron, NeuronGroup, SemanticGroup
from neurflow_engine.tracing import Segment, record

# Derandomised: a suite that fails for one person has to fail for all.
PROPERTY = settings(deadline=None, max_examples=100, derandomize=True, database=None)


def neuron(layer, index, core, *semantic_groups):
    """A neuron whose semantic groups are given as (patches, weights)."""
    groups = tuple(
        SemanticGroup(f"{layer}:{index}.{number}", layer, index, tuple(patches), 1.0, tuple(weights))
        for number, (patches, weights) in enumerate(semantic_groups)
    )
    return Neuron(layer, index, tuple(patch for group in groups for patch in group.patches), tuple(core), groups, None, None)


def group(layer, number, *members, mean_activations=()):
    """A neuron group with members given as (neuron, number of its semantic group)."""
    return NeuronGroup(
        id=f"{layer}/{number}",
        layer=layer,
        members=tuple(Member(index, f"{layer}:{index}.{part}") for index, part in members),
        patches=(),
        neurons=tuple(sorted({index for index, _ in members})),
        mean_activations=tuple(mean_activations),
        silhouette=None,
    )


class TestCoreNeurons:
    def test_are_the_largest_mean_absolute_attributions_strongest_first(self):
        attributions = np.array([[1.0, -5.0, 0.0, 2.0], [1.0, 3.0, 0.0, -2.5]])  # mean |.|: 1, 4, 0, 2.25
        assert core_neurons(attributions, 2) == (1, 3)
        assert core_neurons(attributions, 16) == (1, 3, 0)  # a neuron without any attribution is none
        assert core_neurons(np.ones((3, 4)), 2) == (0, 1)  # the lower index where equal

    def test_attributions_5_3_2_weigh_a_half_three_tenths_and_a_fifth(self):
        assert core_weights(np.array([[5.0, 3.0, 2.0]]), (0, 1, 2)) == pytest.approx((0.5, 0.3, 0.2))

    def test_weights_keep_their_sign(self):
        attributions = np.array([[6.0, -1.0, 9.0], [2.0, -3.0, 9.0]])  # mean: 4, -2, 9
        assert core_weights(attributions, (0, 1)) == pytest.approx((2 / 3, -1 / 3))

    def test_without_attribution_there_is_no_weight(self):
        assert core_weights(np.zeros((2, 3)), (0, 2)) == (0.0, 0.0)

    @PROPERTY
    @given(
        arrays(np.float32, st.tuples(st.integers(1, 6), st.just(8)), elements=st.floats(-1e3, 1e3, width=32)),
        st.permutations(range(8)),
        st.integers(1, 8),
    )
    def test_absolute_weights_sum_to_one_in_any_order(self, attributions, order, tau):
        core = order[:tau]
        weights = core_weights(attributions, core)
        means = dict(zip(range(8), attributions.astype(np.float64).mean(0), strict=True))
        total = sum(abs(means[index]) for index in core)
        if total > 1e-300:
            assert sum(map(abs, weights)) == pytest.approx(1, abs=1e-12)
            assert weights == pytest.approx([means[index] / total for index in core], abs=1e-12)
        assert core_weights(attributions, core[::-1]) == pytest.approx(weights[::-1], abs=1e-12)


class TestClustering:
    POINTS = np.concatenate([np.random.default_rng(0).normal(center, 0.3, (8, 3)) for center in (0, 4, 9)])

    def test_takes_the_number_of_clusters_with_the_largest_silhouette(self):
        found = clustered(self.POINTS, range(2, 6))
        assert found.n_clusters == 3
        assert found.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
        assert found.silhouette == pytest.approx(silhouette_score(self.POINTS, found.labels))
        assert found.members(1).tolist() == list(range(8, 16))

    @PROPERTY
    @given(st.integers(0, 10_000), st.integers(4, 30), st.integers(1, 5))
    def test_cuts_and_choice_are_those_of_scikit_learn(self, seed, n_points, n_features):
        points = np.random.default_rng(seed).normal(size=(n_points, n_features))
        numbers = [number for number in range(2, 6) if number < n_points]
        cuts = [AgglomerativeClustering(number, linkage="ward").fit_predict(points) for number in numbers]
        for number, labels in zip(numbers, cuts, strict=True):
            assert same_partition(clustered(points, [number]).labels, labels)
        best = max(cuts, key=lambda labels: silhouette_score(points, labels))
        assert same_partition(clustered(points, range(2, 6)).labels, best)

    def test_is_the_same_every_time_and_numbered_by_first_appearance(self):
        shuffled = self.POINTS[np.random.default_rng(1).permutation(24)]
        found = clustered(shuffled, range(2, 6))
        assert np.array_equal(found.labels, clustered(shuffled.copy(), range(2, 6)).labels)
        firsts = [int(np.flatnonzero(found.labels == number)[0]) for number in range(found.n_clusters)]
        assert firsts[0] == 0
        assert all(one < other for one, other in pairwise(firsts))

    def test_the_tree_is_built_once_for_all_numbers(self, monkeypatch):
        built = []
        ward = hierarchy.ward
        monkeypatch.setattr(hierarchy, "ward", lambda distances: built.append(len(distances)) or ward(distances))
        clustered(self.POINTS, range(2, 13))
        assert built == [24 * 23 // 2]

    @pytest.mark.parametrize("points", [np.zeros((1, 2)), np.array([[0.0, 1], [5, 5]]), np.ones((6, 2))], ids=["one", "two", "all equal"])
    def test_too_few_or_equal_points_stay_together(self, points):
        found = clustered(points, range(2, 6))
        assert (found.n_clusters, found.silhouette) == (1, None)

    def test_copies_of_two_points_are_two_clusters(self):
        found = clustered(np.array([[0.0, 0], [1, 1], [0, 0], [1, 1]]), range(2, 6))
        assert found.labels.tolist() == [0, 1, 0, 1]
        assert found.silhouette == 1


def same_partition(one, other):
    return len(set(zip(one, other, strict=True))) == len(set(one)) == len(set(other))


def test_a_concept_is_the_strongest_patches_the_lower_id_first_where_equal():
    assert concept(np.array([1.0, 7.0, 3.0, 7.0, -2.0]), 3) == (1, 3, 2)
    assert concept(np.array([1.0, 2.0]), 50) == (1, 0)


class TestSolvedOnPaper:
    """A network of 3 "low" neurons, 2 "high" ones and one class, seen through 7 patches.

    low = ReLU(input), high = ReLU((2, 1, -1) low, (0, 1, 2) low), logit = high_0 + 2 high_1. Every input has two positions, a quarter
    below and a quarter above the value in the table, which is their mean. k = 4 and tau = 3.

    patch     low          high      logit
    0       10  0  0      20  0       20
    1        0 10  1       9 12       33
    2        9  0  1      17  2       21
    3        0  9  0       9  9       27
    4        1  1  0       3  1        5
    5        0  0  3       0  6       12
    6        8  0  0      16  0       16
    """

    LOW = np.array([[10, 0, 0], [0, 10, 1], [9, 0, 1], [0, 9, 0], [1, 1, 0], [0, 0, 3], [8, 0, 0]], dtype=float)
    LAYERS = (Layer(LOGITS, 1, 1, (1,)), Layer("high", 2, 1, (2, 1, 2)), Layer("low", 3, 1, (3, 1, 2)))

    @pytest.fixture(scope="class")
    @staticmethod
    def patches():
        values = torch.tensor(TestSolvedOnPaper.LOW, dtype=torch.float32)
        return torch.stack([0.75 * values, 1.25 * values], 2)[:, :, None]  # (n_patches, n_channels, 1, 2)

    @pytest.fixture(scope="class")
    @staticmethod
    def net():
        class Paper(nn.Module):
            def __init__(self):
                super().__init__()
                self.low, self.mix, self.high, self.head = nn.ReLU(), nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)
                with torch.no_grad():
                    self.mix.weight.copy_(torch.tensor([[2.0, 1.0, -1.0], [0.0, 1.0, 2.0]])[:, :, None, None])
                    self.head.weight.copy_(torch.tensor([[1.0, 2.0]]))

            def forward(self, x):
                return self.head(self.high(self.mix(self.low(x))).mean((2, 3)))

        return network(Paper())

    @pytest.fixture(scope="class")
    @staticmethod
    def activations(net, patches):
        found = record(net, patches, [layer.name for layer in TestSolvedOnPaper.LAYERS])
        return {layer.name: pooled(layer, found[layer.name]).numpy() for layer in TestSolvedOnPaper.LAYERS}

    @pytest.fixture(scope="class")
    @staticmethod
    def solved(net, patches, activations):
        """Neurons and representations by layer, as the pipeline makes them."""
        solved, indices = {}, (0,)
        for upper, lower in zip(TestSolvedOnPaper.LAYERS, (*TestSolvedOnPaper.LAYERS[1:], None), strict=True):
            neurons, representations = [], []
            for index in indices:
                chosen = concept(activations[upper.name][:, index], 4)
                attribution = None
                if lower:
                    inputs = patches[list(chosen)]
                    segment = Segment(net, lower.name, upper.name, patches[:3])
                    attribution = integrated_gradients(
                        lambda scaled, upper=upper, segment=segment: pooled(upper, segment(scaled)),
                        record(net, inputs, [lower.name])[lower.name], [(index,)] * 4, 1, 2,
                    )  # fmt: skip
                vectors = activations[(lower or upper).name]
                rows = list(chosen)
                found, own = explained(upper.name, index, chosen, activations[upper.name][rows, index], vectors[rows], attribution, tau=3)
                neurons.append(found)
                representations += own
            solved[upper.name] = tuple(neurons), np.stack(representations)
            indices = sorted({index for found in neurons for index in found.core})
        return solved

    @pytest.fixture(scope="class")
    @staticmethod
    def circuit(solved):
        """Groups and edges by layer, as the pipeline makes them."""
        (logit,), _ = solved[LOGITS]
        top = (logit_group(LOGITS, logit),)
        high, representations = solved["high"]
        groups = neuron_groups("high", high, representations, min_groups=2, max_groups=3)
        groups, edges, importance = ranked("high", groups, edges_between(groups, high, top, [logit]), {"logits/0": 1.0})
        low, representations = solved["low"]
        below = neuron_groups("low", low, representations, min_groups=2, max_groups=3)
        below, under, _ = ranked("low", below, edges_between(below, low, groups, high), importance)
        return {LOGITS: top, "high": groups, "low": below}, {"high": edges, "low": under}

    def test_activations(self, activations):
        assert activations["low"].tolist() == self.LOW.tolist()
        assert activations["high"].tolist() == [[20, 0], [9, 12], [17, 2], [9, 9], [3, 1], [0, 6], [16, 0]]
        assert activations[LOGITS].ravel().tolist() == [20, 33, 21, 27, 5, 12, 16]

    def test_the_logit(self, solved):
        ((logit,), representations) = solved[LOGITS]
        assert logit.patches == (1, 3, 2, 0)
        assert logit.core == (0, 1)  # mean |(9, 24), (9, 18), (17, 4), (20, 0)| = 13.75, 11.5
        one, other = logit.semantic_groups
        assert (one.id, one.patches, one.mean_activation) == ("logits:0.0", (1, 3), 30)
        assert one.weights == pytest.approx((0.3, 0.7))  # mean 9, 21
        assert (other.id, other.patches, other.mean_activation) == ("logits:0.1", (2, 0), 20.5)
        assert other.weights == pytest.approx((18.5 / 20.5, 2 / 20.5))
        assert representations.tolist() == [[9, 10.5], [18.5, 1]]
        assert logit.completeness_gap < 1e-6

    def test_the_high_neurons(self, solved):
        (first, second), representations = solved["high"]
        assert (first.patches, first.core) == ((0, 2, 6, 1), (0, 1, 2))  # mean |.| 13.5, 2.5, 0.5
        assert [own.patches for own in first.semantic_groups] == [(0, 2, 6), (1,)]
        assert first.semantic_groups[0].weights == pytest.approx((54 / 55, 0, -1 / 55))  # mean 18, 0, -1/3
        assert first.semantic_groups[1].weights == pytest.approx((0, 10 / 11, -1 / 11))
        assert [own.mean_activation for own in first.semantic_groups] == pytest.approx([53 / 3, 9])
        assert (second.patches, second.core) == ((1, 3, 5, 2), (1, 2))  # low 0 has no attribution
        assert [own.patches for own in second.semantic_groups] == [(1, 3), (5, 2)]
        assert second.semantic_groups[0].weights == pytest.approx((9.5 / 10.5, 1 / 10.5))
        assert second.semantic_groups[1].weights == pytest.approx((0, 1))
        np.testing.assert_allclose(representations, [[9, 0, 1 / 3], [0, 10, 1], [0, 9.5, 0.5], [4.5, 0, 2]], rtol=1e-6)

    def test_the_low_neurons_have_no_core_and_are_divided_by_their_own_vectors(self, solved):
        neurons, representations = solved["low"]
        assert [found.patches for found in neurons] == [(0, 2, 6, 4), (1, 3, 4, 0), (5, 1, 2, 0)]
        assert [[own.patches for own in found.semantic_groups] for found in neurons] == [
            [(0, 2, 6), (4,)],
            [(1, 3), (4, 0)],
            [(5, 1), (2, 0)],
        ]
        assert {found.core for found in neurons} == {()}
        assert {own.weights for found in neurons for own in found.semantic_groups} == {()}
        assert representations[1].tolist() == [1, 1, 0]

    def test_neuron_groups(self, circuit):
        groups, _ = circuit
        (top,) = groups[LOGITS]
        assert (top.id, top.members) == ("logits/0", (Member(0, "logits:0.0"), Member(0, "logits:0.1")))
        one, other = groups["high"]
        assert (one.id, one.members) == ("high/0", (Member(0, "high:0.0"), Member(1, "high:1.1")))
        assert (other.id, other.members) == ("high/1", (Member(0, "high:0.1"), Member(1, "high:1.0")))
        assert one.patches[0] == 2  # the only one of both members
        assert set(one.patches) == {0, 2, 5, 6}
        assert one.neurons == other.neurons == (0, 1)
        assert one.mean_activations == pytest.approx((53 / 3, 4))
        assert other.mean_activations == pytest.approx((9, 10.5))
        assert one.direction == pytest.approx((0.97531, 0.22082), abs=1e-5)
        assert one.silhouette == pytest.approx((1 - 4.79873 / 13.27875 + 1 - 4.79873 / 10.81487) / 2, abs=1e-5)

    def test_edges(self, circuit):
        _, edges = circuit
        # Of neuron 0, 3 of 4 patches are in high/0; of neuron 1, 2 of 4: 0.3 * 3/4 + 0.7 * 1/2 and 0.902 * 3/4 + 0.098 * 1/2, their mean.
        one, other = edges["high"]
        assert (one.source, one.target, other.source, other.target) == ("high/0", "logits/0", "high/1", "logits/0")
        assert one.weight == pytest.approx((0.575 + (18.5 * 0.75 + 2 * 0.5) / 20.5) / 2)
        assert other.weight == pytest.approx((0.425 + (18.5 * 0.25 + 2 * 0.5) / 20.5) / 2)
        assert (one.raw_weight, other.raw_weight) == pytest.approx((2, 2))
        for target in ("high/0", "high/1"):
            into = [edge.weight for edge in edges["low"] if edge.target == target]
            assert sum(into) == pytest.approx({"high/0": (53 / 55 + 1) / 2, "high/1": (9 / 11 + 1) / 2}[target])


class TestEdges:
    def test_a_neuron_in_two_groups_is_shared_by_its_patches_and_not_counted_twice(self):
        lower = [neuron("low", 3, (), ((1, 2, 3), ()), ((4,), ()))]
        groups = [group("low", 0, (3, 0)), group("low", 1, (3, 1))]
        upper = [neuron("high", 7, (3,), ((1, 2), (-1.0,)))]
        edges = edges_between(groups, lower, [group("high", 0, (7, 0))], upper)
        assert edges == (Edge("low/0", "high/0", -0.75, -1.0), Edge("low/1", "high/0", -0.25, -1.0))

    def test_the_size_of_the_upper_group_divides_the_weight_but_not_the_raw_weight(self):
        lower = [neuron("low", 0, (), ((1,), ())), neuron("low", 1, (), ((1,), ()))]
        upper = [neuron("high", index, (0, 1), ((1,), (0.5, 0.5))) for index in range(3)] + [neuron("high", 3, (0,), ((1,), (1.0,)))]
        (edge,) = edges_between([group("low", 0, (0, 0))], lower, [group("high", 0, (0, 0), (1, 0), (2, 0), (3, 0))], upper)
        assert edge == Edge("low/0", "high/0", pytest.approx(2.5 / 4), pytest.approx(2.5))

    def test_opposite_weights_cancel_and_groups_without_a_common_neuron_have_no_edge(self):
        lower = [neuron("low", 0, (), ((1,), ())), neuron("low", 1, (), ((1,), ()))]
        upper = [neuron("high", 0, (0,), ((1,), (1.0,)), ((2,), (-1.0,)))]
        edges = edges_between([group("low", 0, (0, 0)), group("low", 1, (1, 0))], lower, [group("high", 0, (0, 0), (0, 1))], upper)
        assert edges == (Edge("low/0", "high/0", 0.0, 0.0),)

    @PROPERTY
    @given(st.data())
    def test_shares_sum_to_one_and_absolute_weights_into_a_group_to_at_most_one(self, data):
        n_lower, n_groups = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
        parts = st.lists(st.integers(1, 9), min_size=1, max_size=4)  # sizes of the semantic groups of a neuron
        lower = [neuron("low", index, (), *[(range(size), ()) for size in data.draw(parts)]) for index in range(n_lower)]
        members = [[] for _ in range(n_groups)]
        for found in lower:
            for part in range(len(found.semantic_groups)):
                members[data.draw(st.integers(0, n_groups - 1))].append((found.index, part))
        groups = [group("low", number, *own) for number, own in enumerate(members) if own]
        core = tuple(range(n_lower))
        attribution = arrays(np.float64, (1, n_lower), elements=st.floats(-9, 9))
        upper = [neuron("high", index, core, ((0,), core_weights(data.draw(attribution), core))) for index in range(3)]
        target = group("high", 0, (0, 0), (1, 0), (2, 0))
        edges = edges_between(groups, lower, [target], upper)
        assert sum(abs(edge.weight) for edge in edges) <= 1 + 1e-9
        for index in core:  # a neuron on its own passes all of its weight on: its shares sum to 1
            only = [neuron("high", 9, (index,), ((0,), (1.0,)))]
            assert sum(edge.weight for edge in edges_between(groups, lower, [group("high", 9, (9, 0))], only)) == pytest.approx(1)
        weights = {found.index: found.semantic_groups[0].weights for found in upper}
        for edge in edges:
            inside = next(own for own in groups if own.id == edge.source).neurons
            assert edge.raw_weight == pytest.approx(sum(weights[own][index] for own in weights for index in inside), abs=1e-9)


def test_groups_are_numbered_by_what_they_pass_on_to_important_groups():
    groups = [group("low", number, (number, 0)) for number in range(3)]
    edges = [Edge("low/0", "high/0", 0.2, 1), Edge("low/1", "high/0", -0.5, 1), Edge("low/2", "high/1", 0.9, 1)]
    found, renamed, importance = ranked("low", groups, edges, {"high/0": 1.0, "high/1": 0.3})
    assert [(own.id, own.neurons) for own in found] == [("low/0", (1,)), ("low/1", (2,)), ("low/2", (0,))]
    assert [edge.source for edge in renamed] == ["low/2", "low/0", "low/1"]
    assert importance == pytest.approx({"low/0": 0.5, "low/1": 0.27, "low/2": 0.2})


class TestPresence:
    GROUP = group("layer", 0, (1, 0), (3, 0), mean_activations=(2.0, -4.0))

    def test_is_the_geometric_mean_of_activation_over_usual_activation(self):
        activations = np.array([[9.0, 2.0, 9.0, 4.0], [9, 1, 9, 1], [9, 0.5, 9, 4]])
        assert presence(self.GROUP, activations) == pytest.approx([1, np.sqrt(0.5 * 0.25), 0.5], abs=1e-4)

    def test_one_silent_or_negative_neuron_makes_it_almost_nothing(self):
        activations = np.array([[0, 2.0, 0, 0.0], [0, 2, 0, -7]])
        assert presence(self.GROUP, activations) == pytest.approx([1e-3, 1e-3], rel=1e-3)  # sqrt(1 * epsilon)

    @PROPERTY
    @given(arrays(np.float32, (5, 4), elements=st.floats(-1e4, 1e4, width=32)))
    def test_lies_between_0_and_1(self, activations):
        values = presence(self.GROUP, activations)
        assert ((values >= 0) & (values <= 1)).all()


class TestMatchedNeurons:
    ACTIVATIONS = np.linspace(0, 1, 200)

    def test_are_as_many_distinct_others(self):
        given = (3, 50, 51, 120)
        for drawn in matched_neurons(given, self.ACTIVATIONS, draws=50, seed=0):
            assert len(set(drawn)) == 4
            assert not set(drawn) & set(given)

    def test_are_near_in_mean_activation(self):
        for drawn in matched_neurons((50, 150), self.ACTIVATIONS, draws=50, seed=0):
            assert 45 <= drawn[0] <= 55
            assert 145 <= drawn[1] <= 155

    def test_depend_on_the_seed_and_differ_between_draws(self):
        one, again, other = (matched_neurons((50, 150), self.ACTIVATIONS, 20, seed) for seed in (1, 1, 2))
        assert one == again
        assert one != other
        assert len(set(one)) > 10

    def test_of_almost_the_whole_layer_are_what_is_left(self):
        assert matched_neurons((0, 1, 2, 3), np.arange(6.0), draws=2, seed=0) == [(4, 5), (4, 5)]


class TestTheNumberOfGroups:
    """Two far blobs of twelve semantic groups each, one of them made of three: the silhouette alone says two."""

    def groups(self, n_members: int, min_groups: int):
        centres = np.array([[0.0, 0.0], [0.0, 3.0], [3.0, 0.0], [40.0, 40.0]])
        spread = np.random.default_rng(0).normal(0, 0.1, (n_members, 2))
        representations = centres[np.arange(n_members) % 4] + spread
        neurons = [
            Neuron("l", index, (index,), (), (SemanticGroup(f"l:{index}.0", "l", index, (index,), 1.0, ()),), None, None)
            for index in range(n_members)
        ]
        return neuron_groups("l", neurons, representations, min_groups, 12)

    def test_a_floor_divides_what_the_silhouette_would_leave_together(self):
        assert [len(group.members) for group in self.groups(24, 2)] == [18, 6]
        assert [len(group.members) for group in self.groups(24, 4)] == [6, 6, 6, 6]

    def test_a_layer_with_few_semantic_groups_is_not_torn_apart(self):
        assert len(self.groups(8, 4)) == 2
