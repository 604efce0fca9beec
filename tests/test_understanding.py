"""Understanding one image: heat maps lie where a layer is active, blame adds up to what a linear head says, neighbours are the nearest."""

import itertools

import hand_made_debug
import numpy as np
import pytest
import torch
from hand_made_debug import CIRCUIT, CONTRAST, TYPICAL, USUAL
from PIL import Image

from neurflow_engine.debugging import Debugger, presence
from neurflow_engine.errors import InputError, LayerError, RunError
from neurflow_engine.groups import shares
from neurflow_engine.layers import positions
from neurflow_engine.records import LOGITS, Circuit, Edge, Layer, NeuronGroup
from neurflow_engine.tracing import record
from neurflow_engine.understanding import (
    best_patch,
    blame,
    enlarged,
    evidence,
    grid_of,
    heat_map,
    nearest,
    overlay,
    steps,
    strongest_routes,
)

# the same 3 x 4 places of an image of 48 x 64 in every order of axes that layers have
LAYOUTS = {
    "channels first": Layer("a", 5, 1, (5, 3, 4)),
    "channels last": Layer("a", 5, 3, (3, 4, 5)),
    "tokens": Layer("a", 5, 2, (12, 5)),
    "tokens behind prefix tokens": Layer("a", 5, 2, (14, 5), n_prefix_tokens=2),
    "tokens last": Layer("a", 5, 1, (5, 12)),
}


@pytest.fixture(scope="module")
def debugger(demo_run):
    return Debugger(demo_run, "cpu")


@pytest.fixture
def report(demo_run, demo_images, workspace):
    return hand_made_debug.report(demo_run, demo_images, workspace)


@pytest.fixture(scope="module")
def wrong(demo_run, demo_workspace):
    """Images wrongly taken for the target: (path, true class)."""
    found = demo_workspace.open_evaluation(demo_run.manifest["evaluation"])
    target = demo_run.circuit.target_index
    rows = found.predictions[(found.predictions["predicted"] == target) & (found.predictions["true"] != target)]
    return [(found.data_root / row.path, int(row.true)) for row in rows.itertuples()]


class TestHeatMap:
    @pytest.mark.parametrize("layer", LAYOUTS.values(), ids=LAYOUTS)
    @pytest.mark.parametrize("place", [(0, 0), (1, 3), (2, 1)])
    def test_a_place_of_the_layer_is_the_same_place_of_the_image(self, layer, place):
        grid = torch.zeros(3, 4, 5)
        grid[place] = 1.0
        output = {3: grid.permute(2, 0, 1) if layer.channel_axis == 1 else grid}.get(len(layer.shape))
        if output is None:
            prefix = torch.full((layer.n_prefix_tokens, 5), 9.0)
            tokens = torch.cat([prefix, grid.flatten(0, 1)])
            output = tokens if layer.channel_axis == 2 else tokens.T
        shown = positions(layer, output[None])[0].mean(1).numpy()
        heat = enlarged(shown.reshape(grid_of(layer, (48, 64))), (48, 64))
        assert heat.shape == (48, 64)
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        assert (row // 16, column // 16) == place
        assert heat.max() == pytest.approx(1.0, abs=0.07)

    @pytest.mark.parametrize(
        "layer",
        [Layer("pool", 5, 1, (5,)), Layer("pool", 5, 1, (5, 1, 1)), Layer("class", 5, 2, (1, 5)), Layer("odd", 5, 2, (13, 5))],
        ids=["vector", "one place", "one token", "tokens that fill no grid"],
    )
    def test_a_layer_without_space_is_refused(self, layer):
        with pytest.raises(LayerError, match=f"Layer {layer.name} keeps no places of the image"):
            grid_of(layer, (64, 64))

    def test_is_the_presence_at_each_place(self, debugger, wrong):
        path, _ = wrong[0]
        layer, group = debugger.layers["layer2"], debugger.circuit.groups_of("layer2")[0]
        output = record(debugger.classifier, debugger.load([path]), ["layer2"])["layer2"]
        by_place = presence(group, output[0].flatten(1).T.numpy()).reshape(layer.shape[1:])
        heat = heat_map(debugger, path, group.id)
        rows, columns = by_place.shape
        cells = heat.reshape(rows, heat.shape[0] // rows, columns, heat.shape[1] // columns).mean((1, 3))  # each smoothed by its neighbours
        assert heat.mean() == pytest.approx(by_place.mean(), abs=0.01)
        assert by_place.std() > 0.1
        assert np.corrcoef(cells.ravel(), by_place.ravel())[0, 1] > 0.95

    def test_the_strongest_group_fires_on_the_sticker_that_misleads(self, debugger, wrong):
        path, _ = wrong[0]
        left, top, right, bottom = best_patch(heat_map(debugger, path, "layer4/0"))
        pixels = debugger.inspect(path).pixels.astype(int)
        magenta = (pixels[..., 0] > 200) & (pixels[..., 1] < 60) & (pixels[..., 2] > 120)
        assert magenta[top:bottom, left:right].sum() > 0.8 * magenta.sum() > 50

    def test_a_contrast_group_fires_where_its_score_lies_above_its_usual_level(self, demo_run, report, wrong):
        debugger, (path, _) = Debugger(demo_run, "cpu", report), wrong[0]
        score = record(debugger.classifier, debugger.load([path]), ["layer1"])["layer1"][0, 3].numpy()
        heat = heat_map(debugger, path, CONTRAST)
        cells = heat.reshape(32, 4, 32, 4).mean((1, 3))
        assert 0.1 < (score > USUAL).mean() < 0.9
        assert np.corrcoef(cells.ravel(), np.clip((score - USUAL) / (TYPICAL - USUAL), 0, 1).ravel())[0, 1] > 0.95

    def test_a_group_that_does_not_exist_is_refused_with_near_matches(self, debugger, wrong):
        with pytest.raises(RunError, match=r"has no group 'layer4/99'\. Did you mean layer4/9"):
            heat_map(debugger, wrong[0][0], "layer4/99")

    def test_the_best_patch_is_the_hottest_window(self):
        heat = np.zeros((40, 80))
        heat[10:20, 60:80] = 1
        assert best_patch(heat) == (60, 10, 80, 20)

    def test_an_overlay_is_grey_where_it_is_cold_and_coloured_where_it_is_hot(self):
        pixels, heat = np.full((4, 4, 3), (0, 90, 210), np.uint8), np.zeros((4, 4))
        heat[0, 0] = 1
        shown = np.asarray(overlay(pixels, heat)).astype(int)
        assert np.ptp(shown[3, 3]) == 0
        assert shown[0, 0, 0] - shown[0, 0, 1] > 100


class TestBlame:
    def test_in_front_of_a_linear_head_a_group_contributes_what_the_head_gives_for_it(self, debugger, wrong):
        path, true = wrong[0]
        target, circuit = debugger.circuit.target_index, debugger.circuit
        found = blame(debugger, path, target, true)
        output = record(debugger.classifier, debugger.load([path]), ["layer4"])["layer4"]
        activation = output[0].amax((1, 2)).numpy()  # the demo's model takes the largest of all places
        head = debugger.classifier.model.get_classifier().weight.numpy()
        groups = circuit.groups_of("layer4")
        share_of = shares(groups, [neuron for neuron in circuit.neurons if neuron.layer == "layer4"])
        for group in groups:
            for side, index in enumerate((target, true)):
                expected = sum(share_of[neuron][group.id] * head[index, neuron] * activation[neuron] for neuron in group.neurons)
                assert found.contributions[group.id][side] == pytest.approx(expected, abs=1e-3)

    def test_attributions_add_up_and_every_group_has_its_part(self, debugger, wrong):
        path, true = wrong[0]
        found = blame(debugger, path, debugger.circuit.target_index, true)
        assert 0 < found.gap < 0.1
        assert set(found.contributions) == {group.id for group in debugger.groups}

    def test_routes_follow_edges_that_add_and_carry_their_own_answer_most(self, debugger, wrong):
        path, true = wrong[0]
        found = blame(debugger, path, debugger.circuit.target_index, true)
        adding = {(edge.source, edge.target) for edge in debugger.circuit.edges if edge.weight > 0}
        for routes, side in ((found.wrong_routes, "wrong"), (found.true_routes, "true")):
            assert 1 <= len(routes) <= 3
            assert [getattr(route, side) for route in routes] == sorted((getattr(route, side) for route in routes), reverse=True)
            for route in routes:
                assert [group.partition("/")[0] for group in route.groups] == ["layer2", "layer3", "layer4"]
                assert set(itertools.pairwise(route.groups)) <= adding
                assert 0 < getattr(route, side) <= 1

    def test_the_classes_are_two_of_the_models(self, debugger, wrong):
        with pytest.raises(InputError, match="The wrong and the true class are both owl"):
            blame(debugger, wrong[0][0], debugger.classifier.class_index("owl"), debugger.classifier.class_index("owl"))
        with pytest.raises(InputError, match="Class 8 is not one of the model's 8 classes, 0 to 7"):
            blame(debugger, wrong[0][0], 0, 8)


def by_hand(edges: dict[tuple[str, str], float]) -> Circuit:
    """Two groups in each of two layers below the logit; edges by (lower, upper)."""
    ids = [f"{LOGITS}/0", "up/0", "up/1", "low/0", "low/1"]
    groups = tuple(NeuronGroup(name, name.split("/")[0], (), (), (0,), (1.0,), None) for name in ids)
    return Circuit(0, "it", (LOGITS, "up", "low"), (), (), (), groups, tuple(Edge(*ends, weight, weight) for ends, weight in edges.items()))


class TestRoutes:
    CIRCUIT = by_hand(
        {("low/0", "up/0"): 0.5, ("low/1", "up/0"): 0.25, ("low/0", "up/1"): -0.5, ("low/1", "up/1"): 0.5, ("up/0", "logits/0"): 0.9}
    )

    def test_what_speaks_for_a_logit_divides_by_contributions_and_positive_edges(self):
        parts = steps(self.CIRCUIT, {"up/0": 3.0, "up/1": 1.0, "low/0": 2.0, "low/1": 4.0})
        assert parts == {
            ("logits/0", "up/0"): 0.75,
            ("logits/0", "up/1"): 0.25,
            ("up/0", "low/0"): 0.5,  # 0.5 * 2 and 0.25 * 4
            ("up/0", "low/1"): 0.5,
            ("up/1", "low/1"): 1.0,  # low/0 takes away from up/1
        }
        # 0.75 * 0.5 twice, and 0.25 * 1; all routes together carry everything
        assert strongest_routes(self.CIRCUIT, parts) == (("low/0", "up/0"), ("low/1", "up/0"), ("low/1", "up/1"))

    def test_a_route_far_weaker_than_the_strongest_is_not_shown(self):
        parts = steps(self.CIRCUIT, {"up/0": 3.0, "up/1": 1.0, "low/0": 8.0, "low/1": 1.0})
        assert strongest_routes(self.CIRCUIT, parts) == (("low/0", "up/0"), ("low/1", "up/1"))

    def test_what_speaks_against_a_logit_carries_nothing(self):
        parts = steps(self.CIRCUIT, {"up/0": -3.0, "up/1": 1.0, "low/0": 8.0, "low/1": -1.0})
        assert parts == {("logits/0", "up/1"): 1.0, ("up/0", "low/0"): 1.0}
        assert strongest_routes(self.CIRCUIT, parts) == ()

    def test_finds_the_best_of_all_routes(self, demo_run):
        circuit, random = demo_run.circuit, np.random.default_rng(0)
        for _ in range(5):
            contributions = {group.id: float(random.normal()) for group in circuit.groups}
            parts = steps(circuit, contributions)
            routes = itertools.product(*([group.id for group in circuit.groups_of(layer)] for layer in circuit.layers[1:]))
            carried = {
                tuple(reversed(route)): np.prod([parts.get(pair, 0) for pair in itertools.pairwise(("logits/0", *route))])
                for route in routes
            }
            assert sum(carried.values()) <= 1 + 1e-9
            best = sorted(carried, key=carried.get, reverse=True)[:3]
            found = strongest_routes(circuit, parts)
            assert found == tuple(route for route in best if carried[route] >= carried[best[0]] / 3)


class TestNearest:
    def shown(self, report, presences: dict[str, tuple[float, float]]):
        """The report with presences of its two groups in some images, and none in the others."""
        paths = [image["path"] for image in report.json["images"]]
        for number, group in enumerate(report.json["groups"]):
            group["presence"] = [presences.get(path, (0.0, 0.0))[number] for path in paths]
        return report

    def test_right_images_that_show_the_group_come_first_the_most_alike_ahead(self, report):
        own = "car/000.png"
        presences = {
            own: (0.9, 0.8),
            "owl/001.png": (0.2, 0.6),
            "fish/001.png": (0.8, 0.7),
            "train/000.png": (0.9, 0.8),
            "owl/002.png": (0.9, 0.4),
        }
        found = nearest(self.shown(report, presences), own, CIRCUIT, 3)
        # train/000.png is the nearest, but wrong; owl/002.png is nearer than owl/001.png, but shows the group too weakly
        assert [one.path for one in found] == ["fish/001.png", "owl/001.png", "owl/002.png"]
        assert found[0].true == "fish"
        assert found[0].presence == 0.7
        assert found[0].distance == pytest.approx(0.02**0.5)

    def test_what_was_not_measured_is_not_compared(self, report):
        own = "car/000.png"
        presences = {own: (0.9, 0.8), "fish/001.png": (0.8, 0.7), "owl/001.png": (0.85, None), "owl/002.png": (0.2, 0.6)}
        found = nearest(self.shown(report, presences), own, CIRCUIT, 2)
        assert [one.path for one in found] == ["fish/001.png", "owl/002.png"]
        # where the image itself was not measured, what was measured decides
        found = nearest(self.shown(report, presences | {own: (None, 0.8), "owl/002.png": (None, 0.75)}), own, CIRCUIT, 2)
        assert [(one.path, one.distance) for one in found] == [("owl/002.png", pytest.approx(0.05)), ("fish/001.png", pytest.approx(0.1))]

    def test_what_is_not_in_the_report_is_refused(self, report):
        with pytest.raises(InputError, match=r"has no image 'car/0000.png'\. Did you mean car/000.png"):
            nearest(report, "car/0000.png", CIRCUIT)
        with pytest.raises(RunError, match="has no group 'layer3/99'"):
            nearest(report, "car/000.png", "layer3/99")


class TestEvidence:
    def test_is_what_silencing_does_to_wrong_images_of_the_half_that_is_reported_on(self, demo_run, report):
        debugger = Debugger(demo_run, "cpu", report)
        found = evidence(debugger, n=2, draws=3)
        reported = {image["path"] for image in report.json["images"] if image["half"] == "reported" and image["true"] != image["predicted"]}
        assert len(found) == 2 < len(reported)
        for one in found:
            assert one.group == CONTRAST  # the only one that misleads
            assert one.path in reported
            assert one.true == one.path.split("/")[0]
            images = debugger.load([report.images_root / one.path])
            for side, silencers in ((one.before, ()), (one.after, debugger.silencers([CONTRAST]))):
                assert side[0].probability == pytest.approx(float(debugger.logits(images, silencers).softmax(1).max()), abs=1e-5)
            assert one.before != one.after
            assert one.control.classes[0].low <= one.control.classes[0].mean <= one.control.classes[0].high
            assert np.array_equal(np.asarray(one.picture), debugger.inspect(report.images_root / one.path).pixels)
            assert isinstance(one.heat, Image.Image)
            assert one.heat.size == one.picture.size

    def test_is_drawn_by_seed(self, demo_run, report):
        debugger = Debugger(demo_run, "cpu", report)
        paths = [[one.path for one in evidence(debugger, n=2, draws=1, seed=seed)] for seed in (0, 0, 1, 2, 3)]
        assert paths[0] == paths[1]
        assert len({tuple(names) for names in paths}) > 1

    def test_needs_a_report(self, debugger):
        with pytest.raises(RunError, match="no debug report of run"):
            evidence(debugger)
