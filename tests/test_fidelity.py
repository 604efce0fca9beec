"""Fidelity: knock-outs in a network solved by hand, the statistics in literal numbers, and verdicts on trained and untrained networks."""

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from nets import randomised
from PIL import Image
from torch import nn

from neurflow_engine import fidelity
from neurflow_engine.__main__ import main
from neurflow_engine.config import AnalysisConfig, ModelConfig
from neurflow_engine.errors import DataError, InputError
from neurflow_engine.fidelity import check, core_by_importance, correlation, margins, mean_weights, random_sets, refined, surviving_share
from neurflow_engine.knockouts import Knockouts, Step, quieted
from neurflow_engine.models import Classifier, Preprocessing
from neurflow_engine.pipeline import analyze, prepare
from neurflow_engine.progress import Cancelled, Silent
from neurflow_engine.records import LOGITS, Circuit, Edge, Layer, Member, Neuron, NeuronGroup, Patch, ProbeImage, SemanticGroup
from neurflow_engine.stability import returned, stability
from neurflow_engine.store import Run, Workspace
from neurflow_engine.verdict import discernment, judged


class HandMade(nn.Module):
    """Logits 2.5 red and 1 + green, by way of ``first`` (red, green, blue) and ``second`` (red, green, blue, red / 2, 0)."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 5, 1, bias=False), nn.Conv2d(5, 2, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            rows = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0, 0], [0, 0, 0]])
            self.second.weight.copy_(rows.view(5, 3, 1, 1))
            self.head.weight.copy_(torch.tensor([[2.0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]).view(2, 5, 1, 1))
            self.head.bias.copy_(torch.tensor([0.0, 1.0]))

    def forward(self, x):
        return self.head(self.second(self.first(x))).mean((2, 3))


@dataclass(frozen=True)
class HandMadeRun:
    """What knock-outs need of a run."""

    data_root: Path
    layers: dict
    circuit: Circuit
    id: str = "by-hand"


@pytest.fixture
def knockouts(tmp_path):
    """Two images, red 1 and red 0.6, without green; each is its own patch."""
    for name, red in (("bright", 255), ("dark", 153)):
        Image.new("RGB", (4, 4), (red, 0, 51)).save(tmp_path / f"{name}.png")
    preprocessing = Preprocessing((4, 4), 3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", 1.0, "center")
    model = HandMade().eval().requires_grad_(False)
    config = ModelConfig(name="by-hand")
    classifier = Classifier(model, config, "by-hand", ("red", "other"), "by hand", preprocessing, None, "0", torch.device("cpu"))
    images = tuple(ProbeImage(number, f"{name}.png", 0, 1.0, 1.0) for number, name in enumerate(("bright", "dark")))
    patches = tuple(Patch(number, number, (0, 0, 4, 4)) for number in range(2))
    layers = [Layer(LOGITS, 2, 1, (2,)), Layer("second", 5, 1, (5, 4, 4)), Layer("first", 3, 1, (3, 4, 4))]
    circuit = Circuit(0, "red", tuple(layer.name for layer in layers), images, patches, (), (), ())
    return Knockouts(HandMadeRun(tmp_path, {layer.name: layer for layer in layers}, circuit), classifier)


@pytest.fixture
def tick():
    with Silent().stage("test") as tick:
        yield tick


class TestKnockouts:
    def test_logits_of_the_intact_network(self, knockouts):
        np.testing.assert_allclose(knockouts.logits([0, 1]), [[2.5, 1], [1.5, 1]], atol=1e-6)

    def test_every_variant_silences_neurons_of_its_own(self, knockouts, tick):
        kept = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 0]], bool)
        found = knockouts.silenced_logits([0, 1], {"second": kept}, tick)
        expected = [[[2.5, 1], [1.5, 1]], [[0.5, 1], [0.3, 1]], [[2.0, 1], [1.2, 1]], [[2.0, 1], [1.2, 1]]]
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_several_layers_are_silenced_together(self, knockouts, tick):
        kept = {"second": np.array([[1, 1, 1, 0, 1], [1, 1, 1, 0, 1]], bool), "first": np.array([[1, 1, 1], [0, 1, 1]], bool)}
        found = knockouts.silenced_logits([0, 1], kept, tick)
        np.testing.assert_allclose(found, [[[2, 1], [1.2, 1]], [[0, 1], [0, 1]]], atol=1e-6)

    def test_activations_of_an_upper_neuron_without_lower_ones(self, knockouts, tick):
        step = Step(knockouts, "second", "first", tick)
        found = step.activations([0, 3], [1, 0], [(), (0,), (1, 2)])  # patches in the order asked for
        np.testing.assert_allclose(found, [[[0.6, 0.3], [1, 0.5]], [[0, 0], [0, 0]], [[0.6, 0.3], [1, 0.5]]], atol=1e-6)
        np.testing.assert_allclose(step.activations([0], [0], [()])[0, 0], [1.0], atol=1e-6)  # from what is held now

    def test_what_is_forgotten_is_computed_again(self, knockouts, tick, monkeypatch):
        monkeypatch.setattr("neurflow_engine.knockouts._HELD_BYTES", 0)
        step = Step(knockouts, LOGITS, "second", tick)
        first = step.activations([0], [0, 1], [(), (0,)])
        step.forget()
        np.testing.assert_array_equal(step.activations([0], [0, 1], [(), (0,)]), first)
        np.testing.assert_allclose(first[..., 0], [[2.5, 1.5], [0.5, 0.3]], atol=1e-6)

    def test_the_channel_axis_may_be_last(self):
        layer = Layer("tokens", 2, 2, (3, 2))
        quiet = quieted(layer, torch.ones(2, 3, 2), torch.tensor([[True, False], [False, True]]))
        assert quiet.tolist() == [[[1, 0]] * 3, [[0, 1]] * 3]

    def test_an_image_that_is_gone_is_named(self, knockouts):
        (knockouts.run.data_root / "dark.png").unlink()
        with pytest.raises(DataError, match=r"dark\.png of run by-hand is no longer there"):
            knockouts.logits([0, 1])


def neuron(layer, index, core, *semantic_groups):
    """A neuron whose semantic groups are given as (patches, weights)."""
    groups = tuple(
        SemanticGroup(f"{layer}:{index}.{number}", layer, index, tuple(patches), 1.0, tuple(weights))
        for number, (patches, weights) in enumerate(semantic_groups)
    )
    return Neuron(layer, index, tuple(patch for group in groups for patch in group.patches), tuple(core), groups, None, None)


def circuit_of(layers, neurons=(), groups=(), edges=()):
    return Circuit(7, "class", tuple(layers), (), (), tuple(neurons), tuple(groups), tuple(edges))


class TestStatistics:
    def test_weights_are_means_over_semantic_groups_by_their_patches(self):
        upper = neuron("u", 0, (4, 9), ((1, 2, 3), (0.6, 0.4)), ((5,), (-0.2, 0.8)))
        assert mean_weights(upper) == pytest.approx({4: (3 * 0.6 - 0.2) / 4, 9: (3 * 0.4 + 0.8) / 4})
        assert mean_weights(upper, absolute=True) == pytest.approx({4: (3 * 0.6 + 0.2) / 4, 9: (3 * 0.4 + 0.8) / 4})

    def test_importance_passes_down_from_the_logit(self):
        neurons = [
            neuron(LOGITS, 7, (1, 2), ((0,), (0.3, -0.7))),
            neuron("a", 1, (5, 6), ((0,), (0.9, 0.1))),  # importance 0.3: passes 0.27 and 0.03
            neuron("a", 2, (6, 8), ((0,), (0.5, 0.5))),  # importance 0.7: passes 0.35 and 0.35
        ]
        assert core_by_importance(circuit_of((LOGITS, "a", "b"), neurons)) == {"a": (2, 1), "b": (6, 8, 5)}

    def test_a_margin_is_to_the_best_other_class(self):
        assert margins(np.array([[3.0, 1, 2], [1, 4, 0]]), 0).tolist() == [1, -3]
        assert margins(np.array([[3.0]]), 0).tolist() == [3]

    def test_share_of_a_concept_that_survives(self):
        activations = np.array([[9, 8, 3, 2], [9, 1, 3, 2], [1, 1, 3, 2]])
        assert surviving_share(activations, 2).tolist() == [1, 0.5, 0]

    def test_ties_are_settled_as_if_by_lot(self):
        assert surviving_share(np.zeros(8), 2) == pytest.approx(2 / 8)  # silent everywhere: no more than chance
        assert surviving_share(np.array([5, 1, 1, 0]), 2) == pytest.approx((1 + 0.5) / 2)

    def test_correlation_with_its_interval(self):
        x = np.arange(40.0)
        assert correlation(x, 3 * x + 1, 0) == pytest.approx((1, 1, 1))
        noise = np.random.default_rng(0).normal(size=40)
        value, low, high = correlation(x, noise, 0)
        assert low < 0 < high
        assert value == pytest.approx(np.corrcoef(x, noise)[0, 1])

    def test_no_correlation_of_constants_or_of_few_pairs(self):
        assert correlation(np.ones(40), np.arange(40.0), 0) is None
        assert correlation(np.arange(5.0), np.arange(5.0), 0) is None

    def test_random_sets_are_distinct_and_no_more_than_there_are(self):
        generator = np.random.default_rng(0)
        assert random_sets((3, 5, 9), 2, 60, generator) == [(3, 5), (3, 9), (5, 9)]
        assert random_sets((3, 5, 9), 3, 60, generator) == []  # the only set there is tells nothing
        drawn = random_sets(range(40), 5, 60, generator)
        assert len(set(drawn)) == 60
        assert all(len(set(one)) == 5 for one in drawn)


class TestRefining:
    EFFECTS = np.array([5.0, 4, 3, 2, 1, 0])  # of six neurons, alone

    def losses(self, cores):
        """What is left: the less, the more of neurons 0, 1 and 5 are in the core (5 only together with 0)."""
        return [(float(6 - 3 * (0 in core) - 2 * (1 in core) - (5 in core and 0 in core)), 0.0) for core in cores]

    def test_swaps_until_nothing_improves(self):
        core, n_swaps = refined((3, 4), self.EFFECTS, self.losses)
        assert set(core) == {0, 1}
        assert n_swaps == 2

    def test_keeps_a_core_that_cannot_be_bettered(self):
        assert refined((0, 1), self.EFFECTS, self.losses) == ((0, 1), 0)

    def test_is_never_worse_than_before(self):
        generator = np.random.default_rng(0)
        for _ in range(30):
            effects, hidden, before = generator.normal(size=12), generator.normal(size=12), tuple(generator.permutation(12)[:4].tolist())
            losses = lambda cores: [(round(-hidden[list(core)].sum()), float(hidden[core[0]])) for core in cores]  # noqa: E731, B023
            core, _ = refined(before, effects, losses)
            assert losses([core]) <= losses([before])
            assert len(set(core)) == len(before)


def group(layer, number, *members):
    """A neuron group with members given as (neuron, number of its semantic group)."""
    named = tuple(Member(index, f"{layer}:{index}.{part}") for index, part in members)
    return NeuronGroup(f"{layer}/{number}", layer, named, (), tuple(sorted({index for index, _ in members})), (), None)


class TestStability:
    NEURONS = (neuron(LOGITS, 7, (0, 1, 2)), *(neuron("a", index, (), ((0, 1), ()), ((2,), ())) for index in range(3)))
    TOP = group(LOGITS, 0, (7, 0))

    def built(self, groups, edges):
        top = neuron(LOGITS, 7, (), ((0,), ()))
        return circuit_of((LOGITS, "a"), (top, *self.NEURONS[1:]), (self.TOP, *groups), edges)

    @pytest.fixture
    def circuit(self):
        groups = (group("a", 0, (0, 0), (1, 0)), group("a", 1, (2, 0)))
        return self.built(groups, (Edge("a/0", "logits/0", 0.6, 1), Edge("a/1", "logits/0", -0.2, 1)))

    def test_a_group_returns_under_any_number(self, circuit):
        groups = (group("a", 0, (2, 0), (2, 1)), group("a", 1, (1, 0), (0, 0)))
        again = self.built(groups, (Edge("a/0", "logits/0", -0.15, 1), Edge("a/1", "logits/0", 1.0, 1)))
        assert returned(circuit, again) == ({"logits/0", "a/0", "a/1"}, {"a/0->logits/0", "a/1->logits/0"})

    def test_a_group_of_other_neurons_does_not_return_and_its_edges_neither(self, circuit):
        # neuron 0 in 2 of its patches against 0 and 1 in 2 each: cosine 0.71; then 1 patch beside 2 of neuron 2: 2 / sqrt(8 * 5) = 0.32
        groups = (group("a", 0, (0, 0)), group("a", 1, (0, 1), (2, 0)))
        again = self.built(groups, (Edge("a/0", "logits/0", 0.6, 1), Edge("a/1", "logits/0", -0.2, 1)))
        assert returned(circuit, again)[0] == {"logits/0", "a/0", "a/1"}
        groups = (group("a", 0, (0, 1), (2, 0)),)
        assert returned(circuit, self.built(groups, (Edge("a/0", "logits/0", -0.2, 1),))) == ({"logits/0", "a/1"}, {"a/1->logits/0"})

    def test_an_edge_returns_with_its_sign_and_about_its_weight(self, circuit):
        for weights, expected in (((0.29, 0.2), set()), ((1.3, -0.41), set()), ((0.3, -0.4), {"a/0->logits/0", "a/1->logits/0"})):
            edges = tuple(Edge(f"a/{number}", "logits/0", weight, 1) for number, weight in enumerate(weights))
            assert returned(circuit, self.built(circuit.groups[1:], edges))[1] == expected

    def test_shares_over_rebuilds(self, circuit):
        half = self.built(circuit.groups[1:2], circuit.edges[:1])
        assert stability(circuit, [circuit, half]) == {
            "draws": 2,
            "groups": {"a/0": 1.0, "a/1": 0.5},
            "edges": {"a/0->logits/0": 1.0, "a/1->logits/0": 0.5},
        }


def figures(margin=-4.0, overlap=0.2, edges=0.8, gap=0.01, discerning=1.0, precision=None):
    """Figures of one layer with random neurons at margin -0.2 +- 0.5 and overlap 0.8 +- 0.1."""
    layer = {
        "layer": "a",
        "n_tested": 16,
        "mask_core": 1.0,
        "mask_random": {"mean": 1.0, "low": 1.0, "high": 1.0},
        "mask_core_margin": margin,
        "mask_random_margin": {"mean": -0.2, "low": -0.7, "high": 0.3},
        "overlap_core": overlap,
        "overlap_random": {"mean": 0.8, "low": 0.7, "high": 0.9},
        "edge_correlation_interval": {"1": {"low": edges - 0.2, "high": edges + 0.2}, "5": {"low": edges, "high": 1.0}, "10": None},
        "completeness_gap": {"median": gap, "worst": gap},
    }
    return {"layers": [layer], "discernment": discerning, "precision": precision}


class TestVerdict:
    TWIN = figures(margin=0.2, discerning=0.1)

    def test_trusts_what_stands_every_test(self):
        found = judged(figures(), self.TWIN)
        assert found["verdict"]["trusted"] is True
        assert found["layers"][0]["verdict"]["trusted"] is True
        assert "3.80 logits more" in found["layers"][0]["verdict"]["reasons"][0]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"margin": -0.6}, "hurts the class no more than silencing random neurons"),
            ({"overlap": 0.75}, "survive the loss of their core"),
            ({"edges": 0.0}, "do not foretell"),
            ({"gap": 0.3}, "do not add up (median gap 0.30)"),
            ({"discerning": 0.15}, "hardly better than an untrained one"),
            ({"precision": {"right": 3, "of": 20, "chance": 0.125, "p_value": 0.47}}, "hardly more often than by chance (3 of 20; 12%"),
        ],
    )
    def test_one_failed_test_is_enough_and_is_named(self, change, reason):
        found = judged(figures(**change), self.TWIN)
        assert found["verdict"]["trusted"] is found["layers"][0]["verdict"]["trusted"] is False
        (sentence,) = found["layers"][0]["verdict"]["reasons"]
        assert reason in sentence

    def test_a_twin_that_does_as_much_denies_it(self):
        reasons = judged(figures(), figures(margin=-3.6, discerning=0.1))["layers"][0]["verdict"]["reasons"]
        assert len(reasons) == 1
        assert "(3.80 logits beyond random neurons) than in an untrained twin (up to 3.90)" in reasons[0]

    def test_nothing_is_better_than_itself(self):
        assert judged(figures(), figures())["verdict"]["trusted"] is False

    def test_without_a_twin_or_a_figure_it_cannot_tell(self):
        assert judged(figures(), {"layers": []})["verdict"]["trusted"] is None
        without_edges = figures()
        without_edges["layers"][0]["edge_correlation_interval"] = {"1": None}
        found = judged(without_edges, self.TWIN)
        assert found["verdict"] == {"trusted": None, "reasons": ["Cannot be judged: a."]}

    def test_discernment_does_not_count_what_all_classes_share(self):
        assert discernment(np.array([[0.0, 0], [5, 5]])) == 0
        assert discernment(np.array([[1.0, -1], [-1, 1]])) == 1


SMALL = {"max_images": 6, "top_k": 6, "tau": 8, "granularities": (1.0, 0.5), "depth": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def small_run(demo_config, demo_workspace):
    """A run of the demo within seconds."""
    return analyze(demo_config.model_copy(update=SMALL), demo_workspace)


class TestReport:
    @pytest.fixture(scope="class")
    @staticmethod
    def report(small_run, demo_workspace):
        return check(small_run, demo_workspace, device="cpu", draws=20, refine=True)

    def test_has_every_measure_of_every_layer(self, report, small_run):
        assert [layer["layer"] for layer in report["layers"]] == list(small_run.circuit.layers[1:])
        for layer in report["layers"]:
            for measure in ("mask", "keep", "overlap"):
                assert 0 <= layer[f"{measure}_core"] <= 1
                assert 0 <= layer[f"{measure}_random"]["low"] <= layer[f"{measure}_random"]["high"] <= 1
            assert set(layer["edge_correlation"]) == {"1", "5", "10", "20", "50"}
            assert layer["n_tested"] <= layer["n_channels"] // 3
        deepest = report["layers"][0]
        assert deepest["mask_core_cumulative"] == deepest["mask_core"]
        assert json.loads(json.dumps(report, allow_nan=False)) == report

    def test_every_measure_is_explained_with_its_source(self, report):
        named = {"mask", "keep", "mask_margin", "keep_margin", "mask_cumulative", "keep_cumulative", "overlap", "edge_correlation"}
        named |= {"completeness_gap", "silhouette", "stability", "twin", "discernment"}
        assert set(fidelity.EXPLANATIONS) == named
        for text in fidelity.EXPLANATIONS.values():
            assert text.endswith(".")
            assert "\n" not in text

    def test_the_trained_network_is_told_from_its_untrained_twin(self, report):
        assert report["discernment"] > 20 * report["twin"]["discernment"]
        assert report["precision"]["p_value"] < 0.01
        assert report["layers"][0]["verdict"]["trusted"] is True
        assert report["twin"]["verdict"]["trusted"] is False
        assert all(layer["verdict"]["trusted"] is False for layer in report["twin"]["layers"])

    def test_without_the_core_the_class_is_lost_and_with_it_alone_it_stays(self, report):
        deepest = report["layers"][0]
        assert deepest["mask_core"] < deepest["mask_random"]["low"]
        assert deepest["keep_core"] > deepest["keep_random"]["mean"]
        assert deepest["edge_correlation"]["5"] == pytest.approx(1, abs=0.05)  # pooling and classifier are nearly linear

    def test_refined_cores_are_never_worse(self, report, small_run):
        for layer in report["layers"]:
            assert layer["overlap_refined"] <= layer["overlap_core"]
            assert layer["swaps"] == sum(core["swaps"] for core in layer["refined"])
            for core in layer["refined"]:
                before = small_run.circuit.neuron[core["layer"], core["neuron"]].core
                assert len(set(core["core"])) == len(core["core"]) <= len(before)

    def test_is_found_when_it_was_made_before(self, report, small_run, demo_workspace, monkeypatch):
        monkeypatch.setattr(fidelity, "_report", None)
        assert check(small_run, demo_workspace, device="cpu", draws=20, refine=True) == report
        assert report in demo_workspace.fidelity_reports(small_run.id)
        assert demo_workspace.fidelity_reports("another") == []

    def test_leaves_no_run_but_its_own(self, report, small_run, demo_workspace):
        assert not any("lighthouse" in run.id for run in demo_workspace.runs())
        assert not (demo_workspace.fidelity_folder(report["report"]) / "work").exists()

    def test_the_command_prints_the_report_and_a_table(self, report, small_run, demo_workspace, capsys):
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        arguments = ["fidelity", small_run.id, "--refine", "--draws", "20", "--device", "cpu", "--workspace", str(demo_workspace.root)]
        capsys.readouterr()
        try:
            assert main([*arguments, "--json"]) == 0
            assert json.loads(capsys.readouterr().out) == report
            assert main(arguments) == 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        header, *lines = capsys.readouterr().out.splitlines()
        assert header.split()[0] == "layer"
        for layer in report["layers"]:
            (line,) = [line for line in lines if line.startswith(f"{layer['layer']} ")]
            assert f"{layer['mask_core']:.2f} vs {layer['mask_random']['mean']:.2f}" in line
            assert ("NOT trusted" in line) is (layer["verdict"]["trusted"] is False)
        assert "untrained twin: NOT trusted" in lines

    def test_one_draw_is_no_control(self, small_run, demo_workspace):
        with pytest.raises(InputError, match="1 random draws make no interval"):
            check(small_run, demo_workspace, draws=1)


class StopsAfter(Silent):
    """Asks the work to stop as soon as a stage is finished, as a person would."""

    def __init__(self, stage: str):
        super().__init__()
        self._last = stage

    def _left(self, stage, seconds):
        if stage.name == self._last:
            self.stop()


class Named(Silent):
    """Remembers which stages ran."""

    def __init__(self):
        super().__init__()
        self.names = []

    def _began(self, stage):
        self.names.append(stage.name)


def untrained_run(model: ModelConfig, data: Path, workspace: Workspace):
    """A small run of a network for the class that it predicts most often."""
    from neurflow_engine.evaluation import evaluate

    subject = prepare(model, data, "cpu")
    predicted = evaluate(subject.classifier, subject.anatomy, subject.image_set, workspace, Silent()).predictions["predicted"]
    return analyze(AnalysisConfig(model=model, data=data, target=str(int(predicted.mode()[0])), **SMALL), workspace)


class TestUntrained:
    @pytest.fixture(scope="class")
    @staticmethod
    def run(demo_config, demo_images, tmp_path_factory):
        model = demo_config.model.model_copy(update={"random_weights": True})
        return untrained_run(model, demo_images, Workspace(tmp_path_factory.mktemp("untrained")))

    def test_an_interrupted_check_goes_on_and_the_network_is_not_trusted(self, run, workspace):
        with pytest.raises(Cancelled):
            check(run, workspace, StopsAfter("knock out layer4"), "cpu", draws=5)
        assert workspace.fidelity_reports(run.id) == []
        again = Named()
        report = check(run, workspace, again, "cpu", draws=5)
        assert "knock out layer4" not in again.names
        assert "silence layer3" in again.names
        assert report["verdict"]["trusted"] is False
        assert not any(layer["verdict"]["trusted"] for layer in report["layers"])

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("vit_tiny_patch16_224", 48)])
    @pytest.mark.parametrize("seed", [1, 2])
    def test_other_random_weights_are_not_trusted_either(self, name, size, seed, demo_images, workspace, tmp_path):
        torch.manual_seed(seed)
        arguments = {"num_classes": 8} | ({"img_size": size} if "vit" in name else {})
        model = timm.create_model(name, **arguments)
        safetensors.torch.save_file((randomised(model, seed) if seed == 2 else model).state_dict(), tmp_path / "untrained.safetensors")
        config = ModelConfig(name=name, checkpoint=tmp_path / "untrained.safetensors", input_size=(size, size))
        report = check(untrained_run(config, demo_images, workspace), workspace, device="cpu", draws=20)
        assert report["verdict"]["trusted"] is False
        assert not any(layer["verdict"]["trusted"] for layer in report["layers"])


def test_a_probe_image_that_is_gone_is_named(small_run, tmp_path):
    shutil.copytree(small_run.folder, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["data"]["root"] = str(tmp_path / "nowhere")
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "moved"}))
    with pytest.raises(DataError, match=r"nowhere.* is no longer there; put it back"):
        check(Run(tmp_path / "run"), Workspace(tmp_path / "workspace"), device="cpu", draws=2)
