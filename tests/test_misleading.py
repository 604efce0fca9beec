"""Which groups mislead: the demo's sticker is found, and figures are what the model gives on images the groups were not made on."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from test_shares import wilson

from neurflow_engine import demo
from neurflow_engine.cases import worth
from neurflow_engine.debugging import Debugger
from neurflow_engine.errors import DataError
from neurflow_engine.flagging import judged
from neurflow_engine.images import scan
from neurflow_engine.layers import positions
from neurflow_engine.misleading import find_misleading
from neurflow_engine.records import Damping, Filling
from neurflow_engine.store import Workspace
from neurflow_engine.tracing import record
from neurflow_engine.twins import random_twins

FIGURES = ("recovered", "recovered_interval", "control_recovered", "selectivity", "score")


@pytest.fixture(scope="module")
def report(misled_report) -> dict:
    return misled_report.json


@pytest.fixture(scope="module")
def debugger(demo_run, misled_report):
    return Debugger(demo_run, "cpu", misled_report)


def of_kind(report: dict, half: str | None = None) -> tuple[list[dict], list[dict]]:
    """Wrong and right images, of one half or of both."""
    images = [image for image in report["images"] if half in (None, image["half"])]
    wrong = [image for image in images if image["predicted"] == demo.TARGET != image["true"]]
    return wrong, [image for image in images if image["predicted"] == image["true"]]


def groups_of(report: dict, kind: str) -> list[dict]:
    return [group for group in report["groups"] if group["kind"] == kind]


class TestTheSticker:
    def test_is_what_the_first_flagged_group_shows(self, report):
        first = report["groups"][0]
        assert first["misleading"]
        shown = {marked: [] for marked in (True, False)}
        for image, presence in zip(report["images"], first["presence"], strict=True):
            if image["true"] != demo.TARGET:
                shown["marked" in image["path"]].append(presence)
        above = np.mean([[one > other for other in shown[False]] for one in shown[True]])
        assert above >= 0.9

    def test_is_undone_by_silencing_it(self, report):
        first = report["groups"][0]
        assert first["recovered"] >= 0.85 * report["ceiling"]["mean"]
        assert first["clean_accuracy_change"] >= -0.01
        assert first["control_recovered"]["mean"] < first["recovered"] / 2

    def test_is_found_by_the_contrast_alone_as_well(self, report):
        contrast = groups_of(report, "contrast")[0]
        assert contrast["misleading"]
        assert contrast["recovered"] >= 0.85 * report["ceiling"]["mean"]


class TestHalves:
    def test_are_disjoint_and_hold_wrong_and_right_images_of_every_class_alike(self, report):
        (chosen_wrong, chosen_right), (reported_wrong, reported_right) = (of_kind(report, half) for half in ("chosen", "reported"))
        assert abs(len(chosen_wrong) - len(reported_wrong)) <= 1
        for name in {image["true"] for image in chosen_right}:
            counts = [sum(image["true"] == name for image in images) for images in (chosen_right, reported_right)]
            assert abs(counts[0] - counts[1]) <= 1
        used = [image["path"] for images in (chosen_wrong, chosen_right, reported_wrong, reported_right) for image in images]
        assert len(used) == len(set(used))
        assert {image["half"] for image in report["images"] if image["path"] not in used} <= {None}

    def test_are_counted(self, report):
        wrong, right = of_kind(report)
        assert (report["n_wrong"], report["n_clean"]) == (len(wrong), len(right))
        assert report["n_reported"] == len(of_kind(report, "reported")[0])
        assert report["n_wrong"] >= 24


def silenced_classes(debugger, misled_images, images: list[dict], silencers=()) -> np.ndarray:
    """Names of the classes that the model predicts from the pixels, (n_images,)."""
    logits = debugger.logits(debugger.load([misled_images / image["path"] for image in images]), silencers)
    return np.array(debugger.classifier.class_names)[logits.argmax(1).numpy()]


class TestFigures:
    """Of the best group of each kind, computed again from the pixels and the half that is reported on."""

    @pytest.fixture(params=["circuit", "contrast"])
    def group(self, report, request) -> dict:
        return groups_of(report, request.param)[0]

    def test_recovered_is_the_share_of_wrong_images_whose_true_class_comes_back(self, report, group, debugger, misled_images):
        wrong, _ = of_kind(report, "reported")
        true = [image["true"] for image in wrong]
        assert not (silenced_classes(debugger, misled_images, wrong) == true).any()
        after = silenced_classes(debugger, misled_images, wrong, debugger.silencers([group["id"]]))
        assert group["recovered"] == pytest.approx((after == true).mean())
        assert group["recovered_interval"] == pytest.approx(wilson(group["recovered"], len(wrong)), abs=1e-6)

    def test_clean_accuracy_is_what_right_images_keep(self, report, group, debugger, misled_images):
        _, right = of_kind(report, "reported")
        true = np.array([image["true"] for image in right])
        stays = silenced_classes(debugger, misled_images, right, debugger.silencers([group["id"]])) == true
        assert group["clean_accuracy_change"] == pytest.approx(stays.mean() - 1)
        assert group["clean_accuracy_interval"] == pytest.approx([value - 1 for value in wilson(stays.mean(), len(right))], abs=1e-6)
        assert group["target_recall_change"] == pytest.approx(stays[true == demo.TARGET].mean() - 1)

    def test_the_control_is_what_random_twins_bring_back(self, report, group, debugger, misled_images, misled_report):
        wrong, _ = of_kind(report, "reported")
        true = [image["true"] for image in wrong]
        silencer = misled_report.silencer(group["id"])
        layer, images = debugger.layers[silencer.layer], debugger.load([misled_images / image["path"] for image in wrong])
        shown = positions(layer, record(debugger.classifier, images, [layer.name])[layer.name]).numpy()
        sample = misled_report.sample(silencer.layer)
        twins = random_twins(silencer, sample, shown, report["draws"], report["seed"])[: group["draws"]]
        shares = [(silenced_classes(debugger, misled_images, wrong, [twin]) == true).mean() for twin in twins]
        expected = {"mean": np.mean(shares), "low": np.quantile(shares, 0.025), "high": np.quantile(shares, 0.975)}
        assert group["control_recovered"] == pytest.approx(expected, abs=0.5 / len(wrong))  # an image on the edge may fall to either side

    def test_all_random_draws_stand_behind_a_flag(self, report):
        for group in report["groups"]:
            assert group["draws"] == report["draws"] if group["misleading"] else 0 < group["draws"] <= report["draws"]

    def test_the_best_way_is_chosen_by_its_worth_on_the_other_half(self, report, demo_run, misled_report):
        for group in groups_of(report, "circuit"):
            ways = {way: worth(figures) for way, figures in group["ways"].items()}
            assert set(ways) == {"zero", "mean", "damping"}
            assert ways[group["silencing"]] == max(ways.values())
            silencer = misled_report.silencer(group["id"])
            if group["silencing"] == "damping":
                assert isinstance(silencer, Damping)
                assert set(np.flatnonzero(silencer.pattern)) <= set(demo_run.circuit.group[group["id"]].neurons)
            else:
                assert isinstance(silencer, Filling)
                assert silencer.neurons == demo_run.circuit.group[group["id"]].neurons
                assert any(silencer.values) == (group["silencing"] == "mean")

    def test_the_ceiling_is_how_often_other_images_of_these_classes_are_right(self, report):
        wrong, _ = of_kind(report)
        shares = []
        for image in wrong:
            others = [other for other in report["images"] if other["true"] == image["true"] and other["predicted"] != demo.TARGET]
            shares.append(np.mean([other["predicted"] == other["true"] for other in others]))
        assert report["ceiling"]["mean"] == pytest.approx(np.mean(shares))
        assert report["ceiling"]["low"] <= report["ceiling"]["mean"] <= report["ceiling"]["high"]

    def test_a_lower_logit_is_tried_on_the_reported_half(self, report, debugger, misled_images):
        wrong, right = of_kind(report, "reported")
        names = debugger.classifier.class_names
        logits = debugger.logits(debugger.load([misled_images / image["path"] for image in (*wrong, *right)])).numpy()
        true = np.array([names.index(image["true"]) for image in (*wrong, *right)])
        logits[:, names.index(demo.TARGET)] -= report["lower_logit"]["by"] + 1e-4
        is_right = logits.argmax(1) == true
        assert report["lower_logit"]["recovered"] == pytest.approx(is_right[: len(wrong)].mean())
        assert report["lower_logit"]["clean_accuracy_change"] == pytest.approx(is_right[len(wrong) :].mean() - 1)

    def test_selectivity_is_how_often_a_wrong_image_loses_more_than_an_image_of_the_class(self, report, group, debugger, misled_images):
        wrong, right = of_kind(report, "reported")
        own = [image for image in right if image["true"] == demo.TARGET]
        target = debugger.classifier.class_names.index(demo.TARGET)

        def leads(images: list[dict], silencers=()) -> np.ndarray:
            logits = debugger.logits(debugger.load([misled_images / image["path"] for image in images]), silencers).numpy()
            return logits[:, target] - np.delete(logits, target, axis=1).max(1)

        silencers = debugger.silencers([group["id"]])
        lost = [leads(images) - leads(images, silencers) for images in (wrong, own)]
        expected = np.mean([[np.heaviside(mine - other, 0.5) for other in lost[1]] for mine in lost[0]])
        assert group["selectivity"] == pytest.approx(expected, abs=1e-3)
        assert group["selectivity"] >= 0.8

    def test_presence_is_told_of_every_image_and_its_excess_follows(self, report):
        wrong, right = ({image["path"] for image in images} for images in of_kind(report))
        true = {image["path"]: image["true"] for image in report["images"]}
        for group in report["groups"]:
            presence = {image["path"]: value for image, value in zip(report["images"], group["presence"], strict=True)}
            assert all(0 <= value <= 1 for value in presence.values())
            others = [path for path in right if true[path] != demo.TARGET]
            excess = np.mean([presence[path] for path in wrong]) - np.mean([presence[path] for path in others])
            assert group["presence_excess"] == pytest.approx(excess, abs=1e-4)

    def test_flagged_groups_come_first_and_each_group_has_its_reason(self, report):
        flags = [group["misleading"] for group in report["groups"]]
        assert flags == sorted(flags, reverse=True)
        for flagged in (True, False):
            scores = [group["score"] for group in report["groups"] if group["misleading"] == flagged]
            assert scores == sorted(scores, reverse=True)
        for group in report["groups"]:
            assert (group["misleading"], group["reason"]) == judged(group, report["n_wrong"], report["lower_logit"])
        assert {group["id"] for group in groups_of(report, "circuit")} >= {"layer4/0", "layer3/0", "layer2/0"}
        json.dumps(report, allow_nan=False)


class TestContrastGroups:
    def test_come_with_silencer_sample_and_layer(self, report, misled_report, debugger):
        for group in groups_of(report, "contrast"):
            assert group["id"].startswith(f"{group['layer']}/contrast-")
            silencer = misled_report.silencer(group["id"])
            n_channels = misled_report.layers[group["layer"]].n_channels
            assert silencer.filter.shape == silencer.pattern.shape == (n_channels,)
            assert 0 < group["n_neurons"] <= n_channels
            n_right = len(of_kind(report, "chosen")[1])
            assert misled_report.sample(group["layer"]).shape == (n_right, n_channels)
            assert group["layer"] in debugger.layers

    def test_come_with_pictures_of_where_wrong_images_show_them_most(self, report, misled_report):
        wrong = {image["path"] for image in of_kind(report)[0]}
        for group in groups_of(report, "contrast"):
            assert group["places"]
            for number, place in enumerate(group["places"]):
                assert place["path"] in wrong
                left, top, right, bottom = place["box"]
                assert 0 <= left < right <= 128
                assert 0 <= top < bottom <= 128
                with Image.open(misled_report.patch(group["id"], number)) as picture:
                    assert picture.format == "JPEG"
                    assert min(picture.size) >= 64
            assert not misled_report.patch(group["id"], len(group["places"])).exists()

    def test_groups_of_the_circuit_have_patches_of_the_run_instead(self, report):
        assert all(group["places"] == [] for group in groups_of(report, "circuit"))


@pytest.mark.slow
def test_of_copies_of_a_file_only_the_first_is_looked_at(demo_run, misled_images, demo_workspace, tmp_path):
    images = shutil.copytree(misled_images, tmp_path / "images")
    for path in sorted(images.glob("*/marked-*.png")):
        shutil.copy(path, path.with_name(f"z-{path.name}"))
    report = find_misleading(demo_run, images, demo_workspace, device="cpu", workers=0, draws=2).json
    halves = {image["path"]: image["half"] for image in report["images"]}
    assert {half for path, half in halves.items() if "/z-" in path} == {None}
    assert {halves[image["path"]] for image in of_kind(report)[0] if "/z-" not in image["path"]} == {"chosen", "reported"}


class TestAgain:
    def test_a_finished_report_is_found_and_not_repeated(self, misled_report, demo_run, misled_images, demo_workspace):
        again = find_misleading(demo_run, misled_images, demo_workspace, device="cpu", draws=misled_report.json["draws"])
        assert (again.id, again.json) == (misled_report.id, misled_report.json)
        assert [one.id for one in demo_workspace.debug_reports(demo_run.id)].count(again.id) == 1

    @pytest.mark.slow
    def test_the_same_seed_gives_the_same_figures(self, report, demo_run, misled_images, tmp_path):
        again = find_misleading(demo_run, misled_images, Workspace(tmp_path), device="cpu", draws=report["draws"]).json
        assert again | {"created": 0} == report | {"created": 0}

    def test_in_large_folders_groups_of_the_circuit_are_measured_in_some_images(
        self, misled_report, demo_run, misled_images, tmp_path, monkeypatch
    ):
        for name in ("owl", "fish"):
            (tmp_path / "images" / name).mkdir(parents=True)
            marked = next(path.name for path in sorted((misled_images / name).glob("marked-*.png")))
            for file in ("plain-0.png", "plain-1.png", marked):
                shutil.copy(misled_images / name / file, tmp_path / "images" / name)
        monkeypatch.setattr("neurflow_engine.misleading.PRESENCE_IMAGES", 4)
        found = find_misleading(demo_run, tmp_path / "images", Workspace(tmp_path / "workspace"), device="cpu", draws=1)
        whole = dict(zip((image["path"] for image in misled_report.json["images"]), misled_report.presence("layer3/0"), strict=True))
        told = {image["path"]: value for image, value in zip(found.json["images"], found.presence("layer3/0"), strict=True)}
        measured = {path: value for path, value in told.items() if not np.isnan(value)}
        assert len(measured) == 4
        assert measured == pytest.approx({path: whole[path] for path in measured}, abs=1e-3)
        wrong = {image["path"] for image in of_kind(found.json)[0]}
        assert 0 < len(wrong) <= 4
        assert wrong <= set(measured)
        assert found.json["lower_logit"] is None  # no right image of the class to pay for it
        assert {group["selectivity"] for group in found.json["groups"]} == {0.5}
        json.dumps(found.json, allow_nan=False)

    def test_several_folders_are_looked_at_together(self, demo_run, misled_images, tmp_path):
        for part, name in (("one", "owl"), ("two", "fish")):
            (tmp_path / part / name).mkdir(parents=True)
            for number in (0, 1, 2):
                shutil.copy(misled_images / name / f"plain-{number}.png", tmp_path / part / name)
        folders = [tmp_path / "two", tmp_path / "one"]
        found = find_misleading(demo_run, folders, Workspace(tmp_path / "workspace"), device="cpu", draws=1)
        assert found.images_root == tmp_path
        assert found.json["image_folders"] == [str(tmp_path / "one"), str(tmp_path / "two")]
        assert [image["path"] for image in found.json["images"]] == [image.path for image in scan(folders).images]
        assert {(image["path"].split("/")[0], image["true"]) for image in found.json["images"]} == {("one", "owl"), ("two", "fish")}
        again = find_misleading(demo_run, folders[::-1], Workspace(tmp_path / "other"), device="cpu", draws=1)
        assert again.json | {"created": 0} == found.json | {"created": 0}


class TestTooLittle:
    def test_without_wrong_images_nothing_is_flagged_and_nothing_recovered(self, demo_run, misled_images, tmp_path):
        for name in ("owl", "fish"):
            (tmp_path / "images" / name).mkdir(parents=True)
            for number in range(4):
                shutil.copy(misled_images / name / f"plain-{number}.png", tmp_path / "images" / name)
        report = find_misleading(demo_run, tmp_path / "images", Workspace(tmp_path / "workspace"), device="cpu", draws=2).json
        assert [report[name] for name in ("n_wrong", "n_reported", "ceiling", "lower_logit")] == [0, 0, None, None]
        assert {group["id"] for group in report["groups"]} == {group.id for group in demo_run.circuit.groups if group.layer != "logits"}
        for group in report["groups"]:
            assert not group["misleading"]
            assert group["reason"].startswith("Only 0 images are wrongly taken for the class; at least ")
            assert [group[figure] for figure in FIGURES] == [None] * len(FIGURES)

    def test_images_of_unknown_classes_are_refused_with_what_is_expected(self, demo_run, misled_images, tmp_path):
        (tmp_path / "flat").mkdir()
        shutil.copy(misled_images / "owl" / "plain-0.png", tmp_path / "flat")
        with pytest.raises(DataError, match=r"No true class is known for the images in .*flat.*put them into folders named after classes"):
            find_misleading(demo_run, tmp_path / "flat", Workspace(tmp_path / "workspace"), device="cpu")
