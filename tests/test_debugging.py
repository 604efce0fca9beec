"""Debugging a run: what silencing does is what the intact network does with those neurons at zero, beside a matched control."""

import json
import shutil

import numpy as np
import pytest
import torch

from neurflow_engine.controls import interval
from neurflow_engine.debugging import Debugger, _gain_p_value, _holm, find_misleading
from neurflow_engine.errors import RunError
from neurflow_engine.records import LOGITS
from neurflow_engine.silencing import zeroed
from neurflow_engine.store import Run
from neurflow_engine.tracing import record


@pytest.fixture(scope="module")
def debugger(demo_run):
    return Debugger(demo_run, "cpu")


@pytest.fixture(scope="module")
def paths(demo_images):
    return [demo_images / name / "000.png" for name in ("sailboat", "owl", "fish")]


class TestSilencing:
    def test_a_replay_from_any_layer_equals_the_intact_network_with_the_same_neurons_silenced(self, debugger, paths):
        images = debugger.load(paths)
        intact = record(debugger.classifier, images, list(debugger.run.layers))
        for name, layer in debugger.run.layers.items():
            if name == LOGITS:
                continue
            neurons = debugger.circuit.groups_of(name)[0].neurons
            expected = debugger.silenced_logits(images, {name: neurons})
            with torch.no_grad():
                replayed = debugger.from_layer(name)(zeroed(layer, intact[name], neurons))
            torch.testing.assert_close(replayed, expected, rtol=1e-4, atol=1e-4)
            assert not torch.allclose(expected, intact[LOGITS], atol=1e-2)

    def test_the_logit_depends_on_the_last_layer_alone(self, debugger, paths):
        images, layer = debugger.load(paths), debugger.run.layers["layer4"]
        everything = debugger.silenced_logits(images, {"layer4": range(layer.n_channels)})
        torch.testing.assert_close(everything, debugger.classifier.model.get_classifier().bias.expand(3, -1))

    def test_groups_of_several_layers_are_silenced_together(self, debugger, paths):
        ids = ["layer4/0", "layer4/1", "layer3/0"]
        neurons = debugger.neurons_of(ids)
        assert set(neurons) == {"layer4", "layer3"}
        assert set(neurons["layer4"]) == {index for group in ids[:2] for index in debugger.circuit.group[group].neurons}
        found = debugger.silence(paths, ids, draws=3, seed=0)
        expected = debugger.silenced_logits(debugger.load(paths), neurons).softmax(1).max(1)
        assert [row[0].index for row in found.after] == expected.indices.tolist()
        assert [row[0].probability for row in found.after] == pytest.approx(expected.values.tolist(), abs=1e-6)

    def test_the_control_is_seeded_and_told_for_every_class_that_is_shown(self, debugger, paths):
        one, again, other = (debugger.silence(paths, ["layer4/0"], draws=5, seed=seed) for seed in (0, 0, 1))
        assert one == again
        assert one.control != other.control
        for before, after, control in zip(one.before, one.after, one.control, strict=True):
            assert {row.index for row in control.classes} == {top.index for top in (*before, *after)}
            assert all(0 <= row.low <= row.mean <= row.high <= 1 for row in control.classes)

    def test_the_model_is_as_before(self, debugger, paths):
        images = debugger.load(paths)
        before = debugger.classifier.model(images)
        debugger.silence(paths, ["layer4/0", "layer2/0"], draws=2)
        assert torch.equal(debugger.classifier.model(images), before)


class TestInspection:
    def test_tells_presence_and_the_best_patch_of_every_group(self, debugger, paths):
        found = debugger.inspect(paths[0])
        groups = {group.id for group in debugger.groups}
        assert set(found.presence) == set(found.best_patch) == groups
        assert all(0 <= value <= 1 for value in found.presence.values())
        for left, top, right, bottom in found.best_patch.values():
            assert 0 <= left < right <= 128
            assert 0 <= top < bottom <= 128
        assert found.pixels.shape == (128, 128, 3)
        assert found.top5[0].name == "sailboat"

    def test_agrees_with_the_presence_in_a_batch(self, debugger, paths):
        together = debugger.presence(debugger.load(paths))
        alone = debugger.inspect(paths[1]).presence
        for group, value in alone.items():
            assert together[group][1] == pytest.approx(value, rel=1e-3, abs=1e-5)


class TestReport:
    @pytest.fixture(scope="class")
    @staticmethod
    def folder(demo_images, tmp_path_factory):
        """Four of the demo's classes."""
        root = tmp_path_factory.mktemp("four") / "images"
        for name in ("sailboat", "owl", "fish", "car"):
            shutil.copytree(demo_images / name, root / name)
        return root

    @pytest.fixture(scope="class")
    @staticmethod
    def report(demo_run, folder, demo_workspace):
        return find_misleading(demo_run, folder, demo_workspace, device="cpu", draws=3)

    def test_counts_wrong_and_clean_images(self, report):
        images = report["images"]
        assert report["n_wrong"] == sum(image["predicted"] == "sailboat" != image["true"] for image in images) > 0
        assert report["n_clean"] == sum(image["predicted"] == image["true"] for image in images)

    def test_recovered_is_the_share_of_wrong_images_whose_true_class_comes_back(self, report, debugger, folder):
        images, names = report["images"], list(debugger.classifier.class_names)
        wrong = [image for image in images if image["predicted"] == "sailboat" != image["true"]]
        clean = [image for image in images if image["predicted"] == image["true"]]
        for entry in (report["groups"][0], report["groups"][-1]):
            neurons = debugger.neurons_of([entry["id"]])
            right = []
            for rows in (wrong, clean):
                logits = debugger.silenced_logits(debugger.load([folder / row["path"] for row in rows]), neurons)
                right.append(np.mean([names[index] == row["true"] for index, row in zip(logits.argmax(1).tolist(), rows, strict=True)]))
            assert entry["recovered"] == pytest.approx(right[0])
            assert entry["clean_accuracy_change"] == pytest.approx(right[1] - 1)

    def test_the_most_misleading_come_first_and_keep_to_their_definition(self, report):
        groups = report["groups"]
        assert [entry["misleading"] for entry in groups] == sorted((entry["misleading"] for entry in groups), reverse=True)
        for entry in groups:
            if entry["misleading"]:
                assert entry["p_value"] < 0.05
                assert entry["recovered"] > entry["control_recovered"]["high"]
                assert entry["clean_accuracy_change"] >= -0.02
                assert entry["presence_excess"] > 0

    def test_is_found_when_it_was_made_before(self, report, demo_run, folder, demo_workspace):
        assert find_misleading(demo_run, folder, demo_workspace, device="cpu", draws=3) == report


def test_a_run_of_a_model_that_has_changed_is_refused(demo_run, tmp_path):
    shutil.copytree(demo_run.folder, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["model"]["fingerprint"] = "0" * 64
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"is not the one that run .* analysed"):
        Debugger(Run(tmp_path / "run"), "cpu")


def test_p_values_are_corrected_for_their_number():
    # Holm: 0.01 * 3, then 0.03 * 2, then 0.04 * 1, never below the one before
    assert _holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"b": 0.03, "c": 0.06, "a": 0.06})
    assert _holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


def test_a_gain_is_tested_against_the_mean_of_its_control_on_one_side():
    control = np.zeros((3, 8))
    gains = np.arange(1.0, 9.0)
    assert _gain_p_value(np.vstack([gains, control])) == pytest.approx(1 / 2**8)  # all 8 signs positive, exact
    assert _gain_p_value(np.vstack([-gains, control])) == pytest.approx(1)
    assert _gain_p_value(np.vstack([gains, control + gains])) == 1  # no better than the control
    assert _gain_p_value(np.vstack([gains, control])[:, :4]) == 1  # too few images to tell


def test_an_interval_is_the_mean_and_the_central_95_percent():
    assert interval(np.arange(101.0)) == pytest.approx((50, 2.5, 97.5))
