"""Debugging a run: what silencing does is what the intact network does with its layers changed, beside a matched random control."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hand_made_debug import filling_and_damping

from neurflow_engine import demo, silencer_file
from neurflow_engine.controls import interval
from neurflow_engine.debugging import Debugger, contrast_presence, grid, window_around
from neurflow_engine.errors import DataError, RunError
from neurflow_engine.files import write_json
from neurflow_engine.layers import positions
from neurflow_engine.records import LOGITS, Damping, Filling, Layer, Variation
from neurflow_engine.silencing import silenced
from neurflow_engine.store import MANIFEST, SCHEMA, DebugReport, Run
from neurflow_engine.tracing import edited, record
from neurflow_engine.twins import random_twins

GROUPS = ("layer4/0", "layer4/1", "layer3/0", "layer2/0")


@pytest.fixture(scope="module")
def debugger(demo_run):
    """Without a report."""
    return Debugger(demo_run, "cpu")


@pytest.fixture(scope="module")
def informed(demo_run, misled_report):
    """With a report."""
    return Debugger(demo_run, "cpu", misled_report)


@pytest.fixture(scope="module")
def contrast(misled_report) -> str:
    """A group that was not in the circuit."""
    return next(group["id"] for group in misled_report.json["groups"] if group["kind"] == "contrast")


@pytest.fixture(scope="module")
def paths(misled_images):
    return [misled_images / demo.TARGET / "plain-0.png", misled_images / "owl" / "marked-8.png", misled_images / "car" / "plain-1.png"]


def assert_shown(tops, logits: torch.Tensor) -> None:
    """The five classes of largest probability of each image, as ``Effect`` tells them; two that are as likely may change places."""
    for row, expected in zip(tops, logits.softmax(1), strict=True):
        assert [top.probability for top in row] == pytest.approx(expected.topk(5).values.tolist(), abs=1e-5)
        assert [top.probability for top in row] == pytest.approx([float(expected[top.index]) for top in row], abs=1e-5)
        assert len({top.index for top in row}) == 5


class TestSilencers:
    def test_without_a_report_groups_of_a_layer_are_set_to_zero_together(self, debugger):
        found = {silencer.layer: silencer for silencer in debugger.silencers(GROUPS)}
        assert list(found) == ["layer4", "layer3", "layer2"]
        neurons = {index for group in GROUPS[:2] for index in debugger.circuit.group[group].neurons}
        assert found["layer4"] == Filling("layer4", tuple(sorted(neurons)), (0.0,) * len(neurons))

    def test_a_report_says_how_each_group_is_silenced(self, informed, contrast, misled_report):
        first = misled_report.json["groups"][0]["id"]
        damping, filling = informed.silencers([first, contrast, first])
        assert isinstance(damping, Damping)
        assert isinstance(filling, Filling)
        assert (damping.layer, filling.layer) == (contrast.rpartition("/")[0], first.rpartition("/")[0])
        np.testing.assert_array_equal(damping.filter, misled_report.silencer(contrast).filter)
        assert filling == misled_report.silencer(first)

    def test_are_the_same_in_whatever_order_groups_are_named(self, demo_run, paths, tmp_path):
        """A damping and a filling of one layer do not give the same the other way round, so their order may not be left to chance."""
        both = filling_and_damping(demo_run)
        silencer_file.write(tmp_path / DebugReport.SILENCERS, both, {})
        entries = [{"id": name, "kind": "contrast" if "contrast" in name else "circuit"} for name in both]
        write_json(tmp_path / MANIFEST, {"schema": SCHEMA, "method": DebugReport.METHOD, "groups": entries})
        informed = Debugger(demo_run, "cpu", DebugReport(tmp_path))
        silencers = informed.silencers(list(both))
        assert informed.silencers(list(both)[::-1]) == silencers
        damping, filling = silencers
        assert isinstance(damping, Damping)
        images = informed.load(paths)
        expected = informed.logits(images, [damping, filling])
        assert not torch.allclose(informed.logits(images, [filling, damping]), expected, atol=1e-2)
        layer = informed.layers["layer3"]
        given = record(informed.classifier, images, [layer.name])[layer.name]
        for silencer in silencers:
            given = silenced(layer, given, silencer)
        at_its_values = positions(layer, given)[..., list(filling.neurons)]
        torch.testing.assert_close(at_its_values, torch.tensor(filling.values).expand_as(at_its_values))

    def test_unknown_groups_bring_near_matches(self, debugger, informed, contrast):
        with pytest.raises(RunError, match=r"has no group 'layer4/00' that can be silenced\. Did you mean .*layer4/0"):
            debugger.silencers(["layer4/00"])
        with pytest.raises(RunError, match=f"Did you mean .*{contrast}"):
            informed.silencers([f"{contrast}0"])
        with pytest.raises(RunError, match=f"has no group '{contrast}'"):
            debugger.silencers([contrast])  # exists in a report only
        with pytest.raises(RunError, match="has no group 'logits/0'"):
            debugger.silencers(["logits/0"])


class TestEffect:
    @pytest.mark.parametrize("group", GROUPS)
    def test_is_that_of_the_intact_network_with_its_neurons_at_zero(self, debugger, paths, group):
        neurons = list(debugger.circuit.group[group].neurons)

        def at_zero(output):
            changed = output.clone()
            changed[:, neurons] = 0
            return changed

        images, model = debugger.load(paths), debugger.classifier.model
        with torch.no_grad():
            before = model(images)
            with edited(debugger.classifier, group.split("/")[0], at_zero):
                after = model(images)
        effect = debugger.effect(paths, debugger.silencers([group]))
        assert_shown(effect.before, before)
        assert_shown(effect.after, after)
        assert not torch.allclose(before, after, atol=1e-2)
        torch.testing.assert_close(debugger.logits(images, debugger.silencers([group])), after, rtol=1e-4, atol=1e-4)

    def test_is_the_same_from_held_outputs_as_from_the_pixels(self, informed, paths, misled_report):
        images = informed.load(paths)
        for group in misled_report.json["groups"][:6]:
            silencers = informed.silencers([group["id"]])
            first, again = (informed.effect(paths, silencers) for _ in range(2))
            assert first == again
            assert_shown(first.after, informed.logits(images, silencers))

    def test_of_groups_at_several_layers_is_that_of_all_together(self, informed, paths, contrast):
        groups = ["layer4/0", contrast, "layer2/0"]
        together = informed.silencers(groups)
        images = informed.load(paths)
        expected = informed.logits(images, together)
        assert_shown(informed.effect(paths, together).after, expected)
        assert_shown(informed.effect(paths, informed.silencers(groups[::-1])).after, expected)
        assert_shown(informed.effect(paths, together[::-1]).after, informed.logits(images, together[::-1]))
        for alone in together:
            assert not torch.allclose(informed.logits(images, [alone]), expected, atol=1e-2)

    def test_of_nothing_is_none(self, debugger, paths):
        effect = debugger.effect(paths, ())
        assert effect.before == effect.after

    def test_of_all_neurons_below_the_logits_leaves_the_bias(self, debugger, paths):
        n = debugger.layers["layer4"].n_channels
        everything = Filling("layer4", tuple(range(n)), (0.0,) * n)
        bias = debugger.classifier.model.get_classifier().bias
        torch.testing.assert_close(debugger.logits(debugger.load(paths), [everything]), bias.expand(3, -1))

    def test_is_that_of_the_file_as_it_is_now(self, debugger, paths, tmp_path):
        path, silencers = tmp_path / "image.png", debugger.silencers(["layer4/0"])
        shutil.copy2(paths[0], path)
        assert debugger.effect([path], silencers) == debugger.effect(paths[:1], silencers)
        shutil.copy2(paths[1], path)
        assert debugger.effect([path], silencers) == debugger.effect(paths[1:2], silencers)
        path.unlink()
        with pytest.raises(DataError, match=r"image\.png cannot be read"):
            debugger.effect([path], silencers)

    def test_leaves_the_model_as_it_was(self, informed, paths, contrast):
        images = informed.load(paths)
        before = informed.classifier.model(images)
        informed.control(paths, informed.silencers(["layer4/0", contrast]), draws=2)
        assert torch.equal(informed.classifier.model(images), before)


class TestControl:
    def test_is_seeded_and_told_for_every_class_that_is_shown(self, debugger, paths):
        silencers = debugger.silencers(["layer4/0"])
        one, again, other = (debugger.control(paths, silencers, draws=5, seed=seed) for seed in (0, 0, 1))
        assert one == again
        assert one != other
        effect = debugger.effect(paths, silencers)
        for before, after, outcome in zip(effect.before, effect.after, one, strict=True):
            assert {row.index for row in outcome.classes} == {top.index for top in (*before, *after)}
            assert all(0 <= row.low <= row.mean <= row.high <= 1 for row in outcome.classes)

    def test_is_what_random_twins_of_all_silencers_do_together(self, informed, paths, contrast, misled_report):
        silencers = informed.silencers(["layer3/0", contrast])
        draws = 4
        images = informed.load(paths)

        def twins_of(silencer):
            layer = informed.layers[silencer.layer]
            shown = positions(layer, record(informed.classifier, images, [layer.name])[layer.name]).numpy()
            return random_twins(silencer, misled_report.sample(silencer.layer), shown, draws, seed=3)

        twins = [twins_of(silencer) for silencer in silencers]
        expected = torch.stack([informed.logits(images, together) for together in zip(*twins, strict=True)]).softmax(2).numpy()
        intact = informed.logits(images).argmax(1).numpy()
        for image, outcome in enumerate(informed.control(paths, silencers, draws, seed=3)):
            assert outcome.changed == (expected[:, image].argmax(1) != intact[image]).mean()
            for row in outcome.classes:
                assert row.mean == pytest.approx(expected[:, image, row.index].mean(), abs=1e-5)
                assert row.high <= expected[:, image, row.index].max() + 1e-5


class TestRandomTwins:
    SAMPLE = np.random.default_rng(0).gamma(2.0, 1.0, (30, 40)).astype(np.float32)

    @pytest.mark.parametrize("values", [(0.0, 0.0, 0.0), (1.0, 2.0, 0.0)], ids=["zero", "mean"])
    def test_of_a_filling_fill_as_many_other_neurons_in_the_same_way(self, values):
        filling = Filling("layer", (3, 5, 8), values)
        twins = random_twins(filling, self.SAMPLE, self.shown(), 20, seed=0)
        assert len(twins) == 20
        for twin in twins:
            assert len(set(twin.neurons)) == 3
            assert not set(twin.neurons) & set(filling.neurons)
            assert twin.values == pytest.approx(tuple(self.SAMPLE.mean(0)[list(twin.neurons)]) if any(values) else (0, 0, 0))
        assert len({twin.neurons for twin in twins}) > 10
        again, other = (random_twins(filling, self.SAMPLE, self.shown(), 20, seed) for seed in (0, 1))
        assert twins == again != other

    def test_of_a_filling_take_neurons_that_are_about_as_active(self):
        sample = np.tile(np.arange(100, dtype=np.float32), (4, 1))  # neuron n has mean activation n
        for twin in random_twins(Filling("layer", (50,), (0.0,)), sample, sample[:, None], 20, seed=0):
            assert abs(twin.neurons[0] - 50) <= 5

    def shown(self, n_images: int = 6, n_positions: int = 50) -> np.ndarray:
        return np.random.default_rng(5).gamma(2.0, 1.0, (n_images, n_positions, 40)).astype(np.float32)

    def damping(self, scope: str, seed: int = 1, varies: bool = False, most: float | None = None) -> Damping:
        random = np.random.default_rng(seed)
        vector = lambda *shape: (random.normal(size=shape) / 6).astype(np.float32)  # noqa: E731
        variation = Variation(vector(40), vector(3, 40), vector(3, 40)) if varies else None
        filter = vector(40)
        scores = self.shown() @ filter
        level = float(np.median({"position": scores, "image": scores.mean(1), "anywhere": scores.max(1)}[scope]))
        return Damping("layer", filter, vector(40), level, scope, variation, most)

    @staticmethod
    def taken(damping: Damping, shown: np.ndarray) -> np.ndarray:
        """How much each position loses, (n_images, n_positions)."""
        layer = Layer("layer", 40, 2, shown.shape[1:])
        before = torch.from_numpy(shown)
        return (before - silenced(layer, before, damping)).norm(dim=-1).numpy()

    @pytest.mark.parametrize("varies", [False, True], ids=["the same everywhere", "with a variation"])
    @pytest.mark.parametrize("most", [None, 0.2], ids=["all", "no more than the most"])
    @pytest.mark.parametrize("scope", ["position", "image", "anywhere"])
    def test_of_a_damping_act_as_often_and_take_away_as_much_in_other_directions(self, scope, most, varies):
        damping, shown = self.damping(scope, varies=varies, most=most), self.shown()
        own = self.taken(damping, shown)
        assert 0 < (own > 0).mean() < 1
        for twin in random_twins(damping, self.SAMPLE, shown, 20, seed=0):
            found = self.taken(twin, shown)
            assert found.mean() == pytest.approx(own.mean(), rel=1e-3)
            assert (found > 0).mean() == pytest.approx((own > 0).mean(), abs=0.02)
            assert (twin.layer, twin.scope, twin.variation, twin.most, twin.least) == ("layer", scope, None, most, None)
            along, ours = (vector / np.linalg.norm(vector) for vector in (twin.pattern, damping.pattern))
            assert abs(along @ ours) < 0.9

    def test_of_a_damping_are_the_same_for_the_same_seed(self):
        damping, shown = self.damping("position"), self.shown()
        twins, again, other = (random_twins(damping, self.SAMPLE, shown, 3, seed) for seed in (0, 0, 1))
        for twin, same, different in zip(twins, again, other, strict=True):
            np.testing.assert_array_equal(twin.pattern, same.pattern)
            assert not np.allclose(twin.pattern, different.pattern)
        assert not np.allclose(twins[0].pattern, twins[1].pattern)

    def test_of_a_damping_that_does_nothing_here_do_nothing_either(self):
        shown = self.shown()
        for twin in random_twins(replace(self.damping("position"), level=1e6), self.SAMPLE, shown, 3, seed=0):
            assert self.taken(twin, shown).sum() == pytest.approx(0, abs=1e-6)

    def test_of_a_damping_keep_to_what_varies_in_the_layer(self):
        sample = self.SAMPLE.copy()
        sample[:, 7] = 2.0  # never changes
        for twin in random_twins(self.damping("image"), sample, self.shown(), 5, seed=0):
            assert twin.pattern[7] == pytest.approx(0, abs=1e-5)


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
        assert found.top5[0].name == demo.TARGET

    def test_agrees_with_the_presence_in_a_batch(self, debugger, paths):
        together = debugger.presence(debugger.load(paths))
        alone = debugger.inspect(paths[1]).presence
        for group, value in alone.items():
            assert together[group][1] == pytest.approx(value, rel=1e-3, abs=1e-5)

    def test_with_a_report_tells_what_the_report_tells_of_all_its_groups(self, informed, paths, misled_images, misled_report):
        place = {image["path"]: number for number, image in enumerate(misled_report.json["images"])}
        for path in paths[:2]:
            found = informed.inspect(path)
            assert set(found.presence) == set(found.best_patch) == set(misled_report.groups)
            number = place[path.relative_to(misled_images).as_posix()]
            told = {name: group["presence"][number] for name, group in misled_report.groups.items()}
            assert found.presence == pytest.approx(told, abs=2e-3)

    def test_a_contrast_group_is_strong_where_the_sticker_is_and_weak_without(self, informed, contrast, misled_images):
        values = {
            kind: [informed.inspect(misled_images / name / file).presence[contrast] for name in ("owl", "fish", "car", "train")]
            for kind, file in (("marked", "marked-12.png"), ("plain", "plain-3.png"))
        }
        assert np.median(values["marked"]) > 0.5 > np.median(values["plain"])

    def test_presence_of_a_contrast_group_lies_between_its_usual_and_its_typical_level(self):
        scores = np.array([-100.0, 1.0, 1.5, 2.0, 100.0])
        assert contrast_presence(scores, usual=1.0, typical=2.0) == pytest.approx([0, 0.05, 0.5, 0.95, 1])


def test_a_window_lies_around_its_position_and_within_the_image():
    assert grid(12, (90, 120)) == (3, 4)
    assert grid(7 * 7, (224, 224)) == (7, 7)
    assert window_around(5, 12, (90, 120)) == (25, 30, 65, 60)  # row 1 of 3, column 1 of 4: its centre is at (45, 45)
    assert window_around(0, 12, (90, 120)) == (0, 0, 40, 30)
    assert window_around(11, 12, (90, 120)) == (80, 60, 120, 90)
    assert window_around(0, 1, (90, 120)) == (40, 30, 80, 60)


def test_a_run_of_a_model_that_has_changed_is_refused(demo_run, tmp_path):
    shutil.copytree(demo_run.folder, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["model"]["fingerprint"] = "0" * 64
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"is not the one that run .* analysed"):
        Debugger(Run(tmp_path / "run"), "cpu")


def test_the_logits_are_no_layer_to_be_silenced(debugger):
    assert LOGITS not in debugger.layers
    assert LOGITS not in {group.layer for group in debugger.groups}


def test_an_interval_is_the_mean_and_the_central_95_percent():
    assert interval(np.arange(101.0)) == pytest.approx((50, 2.5, 97.5))
