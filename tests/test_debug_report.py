"""The debug report to hand over: what it says, that nobody's text becomes markup, and that it needs nothing but itself."""

import re
import shutil
from datetime import UTC, datetime
from html import unescape

import hand_made_debug
import pytest
from hand_made_debug import CIRCUIT, CONTRAST
from PIL import Image

from neurflow_engine.debug_report import Evidence, debug_html
from neurflow_engine.debugging import ControlClass, ControlOutcome, TopClass
from neurflow_engine.store import Workspace
from neurflow_engine.verdicts import Judgement, Verdict

EVIL = "<img src=x onerror=\"document.title='owned'\"> {{ 7 * 7 }}"


def text(page: bytes) -> str:
    """What a reader sees, on one line."""
    body = page.decode().split("<body>")[1]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def evidence(run, report) -> Evidence:
    """A wrong image that silencing brings back."""
    wrong = next(image for image in report.json["images"] if image["predicted"] != image["true"])
    own, target = run.class_names.index(wrong["true"]), run.circuit.target_index
    before = (TopClass(target, run.class_names[target], 0.93), TopClass(own, wrong["true"], 0.05))
    other = next(index for index in range(len(run.class_names)) if index not in (own, target))
    after = (
        TopClass(own, wrong["true"], 0.88),
        TopClass(target, run.class_names[target], 0.06),
        TopClass(other, run.class_names[other], 0.03),
    )
    control = ControlOutcome((ControlClass(target, run.class_names[target], 0.92, 0.9, 0.94),), 0.0)
    picture = Image.new("RGB", (128, 128), (20, 120, 220))
    return Evidence(CONTRAST, wrong["path"], wrong["true"], picture, picture, before, after, control)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def report(demo_run, demo_images, workspace):
    return hand_made_debug.report(demo_run, demo_images, workspace)


def preview(report) -> dict:
    """A fix that helps two images, hurts one, and changes most classes not at all."""
    classes = [{"name": "owl", "n": 12, "before": 0.75, "after": 0.9167, "change": 0.1667, "low": -0.08, "high": 0.36}]
    classes += [{"name": "car", "n": 12, "before": 1.0, "after": 0.9167, "change": -0.0833, "low": -0.26, "high": 0.12}]
    classes += [
        {"name": f"class {number}", "n": 12, "before": 1.0, "after": 1.0, "change": 0.0, "low": -0.1, "high": 0.1} for number in range(50)
    ]
    helped = [{"path": f"owl/00{number}.png", "true": "owl", "before": "sailboat", "after": "owl"} for number in (0, 1)]
    return {
        "silenced": [CONTRAST],
        "images_root": str(report.images_root),
        "n_images": 1096,
        "accuracy": {"n": 1096, "before": 0.901, "after": 0.92, "change": 0.019, "low": 0.004, "high": 0.03},
        "unseen": {"n": 500, "before": 0.9, "after": 0.914, "change": 0.014, "low": 0.001, "high": 0.031},
        "classes": classes,
        "worst_group": {
            "before": {"name": "owl, present", "accuracy": 0.1, "n": 11},
            "after": {"name": "car, not present", "accuracy": 0.8, "n": 40},
        },
        "helped": helped,
        "hurt": [{"path": "car/001.png", "true": "car", "before": "car", "after": "train"}],
    }


@pytest.fixture(scope="module")
def full(demo_run, report) -> bytes:
    """Everything that a page can hold."""
    verdict = Verdict(demo_run.id, report.id, CONTRAST, Judgement.SPURIOUS, EVIL, "ana", datetime(2026, 1, 3, tzinfo=UTC), 1)
    return debug_html(demo_run, report, {CONTRAST: EVIL}, {CONTRAST: verdict}, [evidence(demo_run, report)], preview(report))


class TestWhatItSays:
    def test_leads_with_who_is_misled_by_what_and_what_helps(self, demo_run, report):
        seen = text(debug_html(demo_run, report))
        assert re.match(
            r"Why images are wrongly taken for sailboat \S+ \(model\) takes 7 of 84 images of other classes for sailboat. "
            r"One group of neurons misleads it: layer1/contrast-0. Once it is silenced, 71 % \[64, 78\] of these images get their true "
            r"class back, beside 2 % \[0, 5\] by random silencing and 5 % by a lower logit alone; 84 % \[79, 88\] is the most that can be "
            r"expected. Accuracy on images that were right changes by -0.2 points \[-0.8, \+0.3\].",
            seen,
        )

    def test_every_group_has_its_figures_and_the_reason(self, demo_run, report):
        seen = text(debug_html(demo_run, report)).split("All groups that were tried")[1]
        assert "71 % [64, 78] random 2 % [0, 5] -0.2 points [-0.8, +0.3] < 0.001 0.94 4 % +0.69" in seen
        assert f"{CIRCUIT} zero 7 neurons 3 % [1, 9]" in seen
        assert "Silencing it brings no more wrong images back than random neurons do." in seen

    def test_shows_what_silencing_does_to_an_image_beside_its_control(self, demo_run, report):
        one = evidence(demo_run, report)
        seen = text(debug_html(demo_run, report, evidence=[one]))
        assert f"sailboat → {one.true} before silenced random sailboat 93 % 6 % 92 % [90, 94] {one.true} ✓ true 5 % 88 % –" in seen
        assert f"{one.after[2].name} < 5 % 3 % –" in seen  # not among the classes shown before, so less likely than all of them

    def test_shows_what_a_fix_does_to_a_whole_folder(self, demo_run, report):
        seen = text(debug_html(demo_run, report, preview=preview(report))).split("The fix on a whole folder")[1]
        assert "accuracy goes from 90.1 % to 92.0 %, +1.9 points [+0.4, +3.0]." in seen
        assert "On the 500 images that nothing was chosen on it goes from 90.0 % to 91.4 %, +1.4 points [+0.1, +3.1]." in seen
        assert "10 % (owl, present, 11 images) before and 80 % (car, not present, 40 images) after" in seen
        assert (
            "the 40 classes of 52 that change most class images before after change owl 12 75 % 92 % +16.7 points [-8.0, +36.0] car" in seen
        )
        assert "2 helped owl sailboat → owl owl sailboat → owl 1 hurt car car → train" in seen

    def test_people_and_their_verdicts_are_named(self, full):
        assert "Judged spurious by ana on 2026-01-03" in text(full)

    def test_a_clean_model_is_said_to_be_one(self, demo_run, demo_images, workspace, report):
        groups = [group | {"misleading": False} for group in report.json["groups"]]
        found = hand_made_debug.report(demo_run, demo_images, workspace, "clean", groups=groups)
        seen = text(debug_html(demo_run, found))
        assert "None of the 2 groups of neurons that were tried can be blamed for it" in seen
        assert "Once it is silenced" not in seen

    def test_a_folder_without_wrong_images_has_figures_for_nothing(self, demo_run, demo_images, workspace, report):
        images = [image | {"predicted": image["true"], "half": None} for image in report.json["images"]]
        none = dict.fromkeys(("recovered", "recovered_interval", "control_recovered", "as_good_at_random", "selectivity", "score"))
        groups = [group | none | {"misleading": False} for group in report.json["groups"]]
        changed = {"images": images, "groups": groups, "n_wrong": 0, "ceiling": None, "lower_logit": None}
        seen = text(debug_html(demo_run, hand_made_debug.report(demo_run, demo_images, workspace, "none", **changed)))
        assert "takes none of 84 images of other classes for sailboat, so there is nothing to blame" in seen
        assert "– random –" in seen

    def test_images_that_have_gone_are_left_out_and_said_to_be(self, demo_run, demo_images, workspace, tmp_path):
        shutil.copytree(demo_images, tmp_path / "images")
        found = hand_made_debug.report(demo_run, tmp_path / "images", workspace, "gone")
        assert "file not found" not in text(debug_html(demo_run, found))
        (tmp_path / "images" / "owl" / "000.png").unlink()
        assert text(debug_html(demo_run, found)).count("file not found") == 1


class TestSelfContained:
    def test_no_text_of_people_becomes_markup(self, full):
        page = full.decode()
        assert "<img src=x" not in page
        assert "&lt;img src=x onerror=" in page
        assert "{{ 7 * 7 }}" in page

    def test_holds_no_script_and_no_address(self, full):
        page = full.decode()
        assert page.startswith("<!doctype html>")
        assert "default-src 'none'" in page
        assert not re.search(r"<script|<link|<iframe|javascript:|https?://|url\(|@import", page)
        assert re.findall(r'src="(.{0,23})', page) == ["data:image/jpeg;base64,"] * page.count("<img ")

    def test_stays_small(self, full):
        assert 20_000 < len(full) < 3_000_000

    def test_opened_from_disk_without_a_network_everything_shows(self, full, browser, tmp_path):
        path = tmp_path / "report.html"
        path.write_bytes(full)
        asked, complaints = [], []
        for scheme, width in (("light", 1440), ("dark", 900), ("light", 400)):
            context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme, offline=True)
            tab = context.new_page()
            tab.on("request", lambda request: asked.append(request.url))
            tab.on("console", lambda message: complaints.append(message.text))
            tab.on("pageerror", lambda error: complaints.append(str(error)))
            tab.goto(path.as_uri())
            widths = tab.evaluate("Array.from(document.images, image => image.naturalWidth)")
            assert len(widths) == full.decode().count("<img ") > 10
            assert min(widths) > 0
            assert tab.title() == "Why images are wrongly taken for sailboat"
            assert tab.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
            context.close()
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()] * 3
        assert not complaints
