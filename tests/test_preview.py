"""The fix preview: what silencing does to a whole folder, told for every class, the worst group, and the images that changed."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made_debug import filling_and_damping

from neurflow_engine import silencer_file
from neurflow_engine.debugging import Debugger
from neurflow_engine.errors import DataError, RunError
from neurflow_engine.images import open_image
from neurflow_engine.preview import compared, preview
from neurflow_engine.progress import Silent
from neurflow_engine.silencing import silenced, zeroed
from neurflow_engine.store import MANIFEST, SCHEMA, DebugReport
from neurflow_engine.tracing import edited

GROUPS = ("layer3/0", "layer4/1")


@pytest.fixture(scope="module")
def folder(demo_images, tmp_path_factory):
    """Four of the demo's classes, a folder of no class, and copies: one in the same class, one in another class."""
    root = tmp_path_factory.mktemp("preview") / "images"
    for name in ("sailboat", "owl", "fish", "car"):
        shutil.copytree(demo_images / name, root / name)
    shutil.copytree(demo_images / "car", root / "no class of the model")
    for path in (root / "no class of the model").iterdir():
        path.write_bytes(path.read_bytes() + b"\0")  # the same picture, another content
    shutil.copy(root / "owl" / "000.png", root / "owl" / "copy.png")
    shutil.copy(root / "fish" / "003.png", root / "car" / "fish.png")
    return root


@pytest.fixture(scope="module")
def found(demo_run, folder, demo_workspace):
    return preview(demo_run, folder, GROUPS, demo_workspace, device="cpu")


@pytest.fixture(scope="module")
def expected(demo_run, found, folder):
    """Logits before and after of the images of ``found``, from the intact network and with both groups' neurons at zero."""
    debugger = Debugger(demo_run, "cpu")
    transform = debugger.classifier.preprocessing.transform()
    images = torch.stack([transform(open_image(folder / path)) for path in found["images"]["path"]])
    with torch.no_grad(), ExitStack() as stack:
        before = debugger.classifier.model(images)
        for group in GROUPS:
            layer, neurons = debugger.layers[group.split("/")[0]], demo_run.circuit.group[group].neurons
            edit = lambda output, layer=layer, neurons=neurons: zeroed(layer, output, neurons)  # noqa: E731
            stack.enter_context(edited(debugger.classifier, layer.name, edit))
        return before, debugger.classifier.model(images)


def test_every_content_of_known_class_counts_once(found):
    paths = found["images"]["path"]
    assert found["n_images"] == len(paths) == len(set(paths)) == 47
    assert {"owl/000.png", "owl/copy.png"} & set(paths) == {"owl/000.png"}
    assert not [path for path in paths if path.startswith("no class")]
    assert (found["n_duplicates"], found["n_unknown"]) == (2, 12)


def test_one_content_in_folders_of_two_classes_is_left_out_and_told(found):
    assert found["skipped"] == [
        {"path": "car/fish.png", "reason": "has the content of fish/003.png, which lies in the folder of another class"}
    ]
    assert not {"car/fish.png", "fish/003.png"} & set(found["images"]["path"])


def test_predictions_are_those_of_the_network_with_the_neurons_at_zero(found, expected, demo_run):
    names = np.array(demo_run.class_names)
    for when, logits in zip(("before", "after"), expected, strict=True):
        assert found["images"][when] == names[logits.argmax(1)].tolist()
    true = torch.tensor([demo_run.class_names.index(name) for name in found["images"]["true"]])
    gained = [logits.softmax(1).gather(1, true[:, None])[:, 0] for logits in expected]
    assert found["images"]["change"] == pytest.approx((gained[1] - gained[0]).tolist(), abs=1e-3)
    assert found["images"]["before"] != found["images"]["after"]


def test_accuracies_are_shares_of_the_images_listed(found):
    images = {name: np.array(values) for name, values in found["images"].items() if name != "presence"}
    right = {when: images[when] == images["true"] for when in ("before", "after")}
    assert found["accuracy"] == compared(right["before"], right["after"])
    assert sorted(row["name"] for row in found["classes"]) == ["car", "fish", "owl", "sailboat"]
    for row in found["classes"]:
        own = images["true"] == row["name"]
        assert (row["n"], row["before"], row["after"]) == (own.sum(), right["before"][own].mean(), right["after"][own].mean())
        assert row["low"] <= row["change"] <= row["high"]


def test_helped_and_hurt_are_the_images_whose_prediction_became_right_or_wrong(found, expected):
    rows = list(zip(*(found["images"][name] for name in ("path", "true", "before", "after")), strict=True))
    probabilities = dict(zip(found["images"]["path"], expected[1].softmax(1).max(1).values.tolist(), strict=True))
    assert {row["path"] for row in found["helped"]} == {path for path, true, before, after in rows if before != true == after}
    assert {row["path"] for row in found["hurt"]} == {path for path, true, before, after in rows if before == true != after}
    assert found["helped"]
    for changed in (found["helped"], found["hurt"]):
        strength = [abs(row["change"]) for row in changed]
        assert strength == sorted(strength, reverse=True)
        for row in changed:
            assert row["probability"] == pytest.approx(probabilities[row["path"]], abs=1e-3)


def test_without_a_report_groups_are_classes_and_the_worst_is_told_before_and_after(found):
    assert [(cell["name"], cell["present"]) for cell in found["groups"]] == [(row["name"], None) for row in found["classes"]]
    for when in ("before", "after"):
        worst = min(found["classes"], key=lambda row: row[when])
        assert found["worst_group"][when] == {"name": worst["name"], "accuracy": worst[when], "n": worst["n"]}
    assert (found["report"], found["unseen"], found["images"]["presence"]) == (None, None, None)


def test_is_found_when_it_was_made_before(found, demo_run, folder, demo_workspace):
    progress = Silent()
    assert preview(demo_run, folder, GROUPS[::-1], demo_workspace, progress, device="cpu") == found
    assert "preview" not in progress.seconds
    other = preview(demo_run, folder, GROUPS[:1], demo_workspace, progress, device="cpu")
    assert other["preview"] != found["preview"]
    assert "preview" in progress.seconds
    kept = {kept["preview"] for kept in demo_workspace.previews(demo_run.id)}
    assert {found["preview"], other["preview"]} <= kept
    assert demo_workspace.previews("another run") == []


def test_workers_change_nothing(found, demo_run, folder, workspace):
    helped = preview(demo_run, folder, GROUPS, workspace, device="cpu", workers=1)
    assert helped | {"created": None} == found | {"created": None}


@pytest.mark.parametrize(("groups", "why"), [((), "at least one group"), (("layer3/99",), r"'layer3/99'.* Did you mean layer3/")])
def test_a_preview_of_no_group_or_of_an_unknown_one_is_refused(demo_run, folder, workspace, groups, why):
    with pytest.raises(RunError, match=why):
        preview(demo_run, folder, groups, workspace, device="cpu")
    assert not (workspace.root / "previews").exists()


def test_a_folder_without_known_classes_is_refused(demo_run, folder, workspace):
    with pytest.raises(DataError, match=r"No true class is known .*put them into folders named after classes"):
        preview(demo_run, folder / "owl", GROUPS, workspace, device="cpu")
    assert workspace.previews(demo_run.id) == []


class TestWithAReport:
    IDS = ("layer3/0", "layer3/contrast-1")

    @pytest.fixture(scope="class")
    @staticmethod
    def report(demo_run, found, folder, tmp_path_factory):
        """A report on the images of ``found`` with a group set to constants and a damped one; sailboats and two owls show one of them."""
        silencers = filling_and_damping(demo_run)
        paths = found["images"]["path"]
        shown = {
            "layer3/0": [float(path.startswith("sailboat")) for path in paths],
            "layer3/contrast-1": [0.5 if path in ("owl/003.png", "owl/004.png") else 0.49 for path in paths],
        }
        manifest = {
            "schema": SCHEMA,
            "method": DebugReport.METHOD,
            "report": "report",
            "run": demo_run.id,
            "images_root": str(folder),
            "images": [{"path": path, "half": ("chosen", "reported", None)[row % 3]} for row, path in enumerate(paths)],
            "groups": [
                {
                    "id": name,
                    "kind": "circuit" if name == "layer3/0" else "contrast",
                    "layer": "layer3",
                    "alarm_level": 0.5,
                    "presence": values,
                }
                for name, values in shown.items()
            ],
        }
        folder = tmp_path_factory.mktemp("reports") / "report"
        folder.mkdir()
        silencer_file.write(folder / DebugReport.SILENCERS, silencers, {})
        (folder / MANIFEST).write_text(json.dumps(manifest))
        return DebugReport(folder)

    @pytest.fixture(scope="class")
    @staticmethod
    def fixed(demo_run, folder, demo_workspace, report):
        return preview(demo_run, folder, TestWithAReport.IDS, demo_workspace, report=report, device="cpu")

    def test_groups_are_silenced_as_the_report_recommends(self, fixed, found, report, demo_run, folder):
        debugger = Debugger(demo_run, "cpu")
        transform = debugger.classifier.preprocessing.transform()
        images = torch.stack([transform(open_image(folder / path)) for path in fixed["images"]["path"]])

        def edit(output):
            for group in self.IDS:
                output = silenced(debugger.layers["layer3"], output, report.silencer(group))
            return output

        with torch.no_grad(), edited(debugger.classifier, "layer3", edit):
            after = debugger.classifier.model(images).argmax(1)
        assert fixed["images"]["after"] == [demo_run.class_names[index] for index in after]
        assert fixed["images"]["before"] == found["images"]["before"]
        assert (fixed["report"], fixed["silenced"]) == ("report", list(self.IDS))

    def test_groups_are_classes_divided_by_whether_one_of_the_silenced_groups_is_present(self, fixed, report):
        images = {name: np.array(values) for name, values in fixed["images"].items() if name != "presence"}
        right = images["before"] == images["true"], images["after"] == images["true"]
        owls = (images["true"] == "owl") & ~np.isin(images["path"], ("owl/003.png", "owl/004.png"))
        sides = {
            "car with none of the groups": images["true"] == "car",
            "fish with none of the groups": images["true"] == "fish",
            "owl with none of the groups": owls,  # two owls are too few to be a group
            "sailboat with one of the groups": images["true"] == "sailboat",
        }
        expected = {name: compared(*(answers[own] for answers in right)) for name, own in sides.items()}
        own = {cell["name"]: {key: cell[key] for key in ("n", "before", "after", "change", "low", "high")} for cell in fixed["groups"]}
        assert own == expected
        assert {cell["name"]: cell["n"] for cell in fixed["groups"]}["owl with none of the groups"] == 10
        assert fixed["images"]["presence"] == {group: report.group(group)["presence"] for group in self.IDS}

    def test_classes_with_too_few_images_of_a_side_are_one_group_together(self, fixed, report, demo_run, folder, workspace, tmp_path):
        shutil.copytree(report.folder, tmp_path / "other")
        shown = {self.IDS[0]: [float(not path.startswith("sailboat") and Path(path).stem < "004") for path in fixed["images"]["path"]]}
        groups = [group | {"presence": shown.get(group["id"], [0.0] * fixed["n_images"])} for group in report.json["groups"]]
        (tmp_path / "other" / MANIFEST).write_text(json.dumps(report.json | {"groups": groups}))
        other = preview(demo_run, folder, self.IDS, workspace, report=DebugReport(tmp_path / "other"), device="cpu")
        assert other["images"]["presence"][self.IDS[0]] == shown[self.IDS[0]]
        present = np.array(shown[self.IDS[0]]) == 1
        cells = {cell["name"]: cell for cell in other["groups"]}
        assert set(cells) == {
            "all classes with one of the groups",
            "other classes with none of the groups",
            "sailboat with none of the groups",
        }
        assert cells["all classes with one of the groups"]["class"] is None
        assert cells["all classes with one of the groups"]["n"] == present.sum() >= 10
        assert sum(cell["n"] for cell in cells.values()) == other["n_images"]
        before = np.array(other["images"]["before"]) == np.array(other["images"]["true"])
        assert cells["all classes with one of the groups"]["before"] == before[present].mean()

    def test_what_the_silencers_were_not_chosen_on_is_told_apart(self, fixed):
        right = [np.array(fixed["images"][when]) == np.array(fixed["images"]["true"]) for when in ("before", "after")]
        unseen = np.arange(len(right[0])) % 3 != 0
        assert fixed["unseen"] == compared(*(side[unseen] for side in right))

    def test_on_another_folder_groups_are_classes_and_nothing_was_seen(self, demo_run, demo_images, workspace, report):
        other = preview(demo_run, demo_images, self.IDS, workspace, report=report, device="cpu")
        assert other["unseen"] == other["accuracy"]
        assert other["images"]["presence"] is None
        assert {cell["present"] for cell in other["groups"]} == {None}

    def test_where_a_group_was_not_measured_in_every_image_groups_are_classes(self, demo_run, folder, workspace, report, fixed, tmp_path):
        shutil.copytree(report.folder, tmp_path / "partly")
        groups = [group | {"presence": [None, *group["presence"][1:]]} for group in report.json["groups"]]
        (tmp_path / "partly" / MANIFEST).write_text(json.dumps(report.json | {"groups": groups}))
        other = preview(demo_run, folder, self.IDS, workspace, report=DebugReport(tmp_path / "partly"), device="cpu")
        assert other["images"]["presence"] is None
        assert {cell["name"] for cell in other["groups"]} == {"car", "fish", "owl", "sailboat"}
        assert other["images"]["after"] == fixed["images"]["after"]

    def test_what_was_chosen_on_is_known_within_a_larger_folder_too(self, demo_run, folder, workspace, report, fixed, tmp_path):
        shutil.copytree(report.folder, tmp_path / "larger")
        images = [image | {"path": f"{folder.name}/{image['path']}"} for image in report.json["images"]]
        content = report.json | {"report": "larger", "images_root": str(folder.parent), "images": images}
        (tmp_path / "larger" / "manifest.json").write_text(json.dumps(content))
        found = preview(demo_run, folder, self.IDS, workspace, report=DebugReport(tmp_path / "larger"), device="cpu")
        assert found["unseen"] == fixed["unseen"] != found["accuracy"]

    def test_a_report_of_another_run_is_refused(self, demo_run, folder, workspace, report, tmp_path):
        shutil.copytree(report.folder, tmp_path / "other")
        (tmp_path / "other" / MANIFEST).write_text(json.dumps(report.json | {"run": "another"}))
        with pytest.raises(RunError, match=r"Debug report other is of run another, not of run "):
            preview(demo_run, folder, self.IDS, workspace, report=DebugReport(tmp_path / "other"), device="cpu")


class TestCompared:
    def test_by_hand(self):
        before = np.array([True, True, False, False, False, False, True, True])
        after = np.array([True, False, True, True, True, False, True, True])
        found = compared(before, after)
        assert (found["n"], found["before"], found["after"], found["change"]) == (8, 0.5, 0.75, 0.25)
        # p = (3 + 1) / 10, q = (1 + 1) / 10: 0.2 +- 1.96 sqrt((0.6 - 0.04) / 10)
        assert (found["low"], found["high"]) == pytest.approx((0.2 - 0.463814, 0.2 + 0.463814), abs=1e-5)

    def test_many_images_give_the_interval_of_a_bootstrap_over_images(self):
        generator = np.random.default_rng(0)
        before = generator.random(800) < 0.7
        after = np.where(generator.random(800) < 0.15, ~before, before)
        drawn = generator.integers(0, 800, (4000, 800))
        low, high = np.quantile(after[drawn].mean(1) - before[drawn].mean(1), (0.025, 0.975))
        found = compared(before, after)
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.003)

    @pytest.mark.parametrize(("n", "reach"), [(10, 0.24), (1000, 0.003)])
    def test_no_change_is_only_as_sure_as_there_are_images(self, n, reach):
        found = compared(np.ones(n, bool), np.ones(n, bool))
        assert found["change"] == 0
        assert found["high"] == -found["low"] == pytest.approx(reach, rel=0.1)

    def test_stays_within_what_is_possible_and_has_no_figures_without_images(self):
        assert compared(np.zeros(3, bool), np.ones(3, bool))["high"] == 1
        assert compared(np.ones(3, bool), np.zeros(3, bool))["low"] == -1
        assert compared(np.zeros(0, bool), np.zeros(0, bool)) == dict.fromkeys(("before", "after", "change", "low", "high")) | {"n": 0}
