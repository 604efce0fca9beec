"""The Compare page without a browser: what two hand-made runs have in common, in every part, and what it says where there is nothing."""

import csv
import io
import json
import shutil

import hand_made
import pytest
from hand_made_runs import patch, write
from test_pages import EVIL, in_address, opened, written

from neurflow_engine.comparison import compare, to_csv
from neurflow_engine.labels import LabelStore
from neurflow_engine.store import Run


def corners(box: int, first: int = 0) -> list[int]:
    return [patch(image, box) for image in range(first, first + 10)]


@pytest.fixture
def runs(workspace) -> tuple[Run, Run]:
    """Two groups are in both; one is only in each."""
    upper, lower, gone, new = corners(1), corners(2), corners(3, 5), corners(4, 10)
    edges = {("l1/0", "l2/0"): 0.6, ("l2/0", "logits/0"): 1.0}
    return (
        write(workspace, "before-1", {"l2": [upper], "l1": [lower, gone]}, edges),
        write(workspace, "after-1", {"l2": [upper], "l1": [new, lower]}, {("l1/1", "l2/0"): 0.25}, weights="b" * 64),
    )


@pytest.fixture
def app(runs):
    return opened("compare", run="before-1", **{"with": "after-1"})


def part(app, name: str):
    return app.segmented_control(key="part").set_value(name).run()


def test_a_single_run_leads_to_another_analysis(workspace):
    write(workspace, "alone-1", {"l2": [corners(1)]})
    app = opened("compare", run="alone-1")
    assert not app.error
    assert "only one run" in written(app)
    assert app.button(key="go_analyze")


def test_another_run_is_a_click_away(runs):
    app = opened("compare", run="before-1")
    app.button(key="with_after-1").click().run()
    assert in_address(app, "with") == "after-1"
    assert "<b>2</b> groups in both" in written(app)


@pytest.mark.parametrize(("other", "sentence"), [("gone-9", "no run 'gone"), ("before-1", "with itself"), ("../../etc", "no run")])
def test_a_link_to_a_second_run_that_cannot_be_is_one_sentence_and_others_are_offered(runs, other, sentence):
    app = opened("compare", run="before-1", **{"with": other})
    assert len(app.error) == 1
    assert sentence in app.error[0].value.replace("\\", "")
    assert app.button(key="with_after-1")


def test_groups_in_both_show_their_overlap_beside_chance(app):
    words = written(app)
    assert "<b>2</b> groups in both" in words
    assert "<b>1</b> groups only in A" in words
    assert "20 images that are probe images of both" in words
    assert words.count("random 0.") == 2
    assert app.button(key="open_left_l1/0_l1/0").label == r"A · l1/0"
    assert app.button(key="open_right_l1/1_l1/0").label == r"B · l1/1"


def test_a_group_of_one_run_alone_says_which_is_most_like_it(app):
    app.segmented_control(key="kind").set_value("Only in B").run()
    assert in_address(app, "kind") == "Only in B"
    words = written(app)
    assert "most like it" in words
    assert "no more alike than random groups" in words
    assert app.button(key="open_right_l1/0_l1/0")


def test_only_the_groups_of_a_layer(app):
    app.selectbox(key="layer").set_value("l2").run()
    assert app.button(key="open_left_l2/0_l2/0")
    assert not [button for button in app.button if button.key.startswith("open_left_l1")]


def test_weights_before_and_after(app):
    frame = part(app, "Weights").dataframe[0].value
    assert list(frame["change"]) == pytest.approx([-1.0, -0.35])
    assert list(frame["from"]) == ["l2/0", "l1/0 ↔ l1/1"]


def test_trust_where_nobody_checked_and_where_one_did(app, runs, workspace):
    assert "Neither run was checked" in written(part(app, "Trust"))
    hand_made.write(hand_made.fidelity_report(runs[0]), workspace.root)
    app.run()
    frame = app.dataframe[0].value
    assert "B was not checked yet" in app.info[0].value
    assert set(frame["B"]) == {"–"}
    assert list(frame.loc[frame["measure"] == "trusted", "A"]) == ["trusted", "not to be trusted"]
    assert frame["A"].str.contains(r"0\.12 · random 0\.93 \[0\.88, 0\.97\]").any()


def test_accuracy_where_there_is_none_and_on_the_same_images(demo_run, analysed_demo, workspace):
    """A second run of the demo, on an evaluation in which one image more is wrong."""
    shutil.copytree(analysed_demo.root, workspace.root, dirs_exist_ok=True)
    folder = shutil.copytree(demo_run.folder, workspace.root / "runs" / "again-1")
    manifest = json.loads((folder / "manifest.json").read_text()) | {"run": "again-1"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    app = part(opened("compare", run=demo_run.id, **{"with": "again-1"}), "Accuracy")
    assert "One evaluation for both" in written(app)

    own = workspace.open_evaluation(demo_run.manifest["evaluation"])
    other = shutil.copytree(own.folder, workspace.root / "evaluations" / "other")
    (other / "manifest.json").write_text(json.dumps(own.manifest | {"evaluation": "other"}))
    frame = own.predictions.copy()
    row = frame.index[(frame["true"] == frame["predicted"]) & (frame["true"] != demo_run.circuit.target_index)][0]
    frame.loc[row, "predicted"] = demo_run.circuit.target_index
    frame.to_parquet(other / "predictions.parquet")
    folder = shutil.copytree(demo_run.folder, workspace.root / "runs" / "again-2")
    (folder / "manifest.json").write_text(json.dumps(manifest | {"evaluation": "other", "run": "again-2"}))
    app = part(opened("compare", run="again-2", **{"with": demo_run.id}), "Accuracy")
    assert f"→ {100 * own.accuracy:.1f} % (+{100 / len(frame):.1f} points" in written(app)
    assert len(app.dataframe[0].value) == len(own.class_names)


def test_runs_that_cannot_be_matched_say_why(workspace):
    write(workspace, "cats-1", {"l2": [corners(1)]})
    write(workspace, "dogs-1", {"l2": [corners(1)]}, images=[f"dog/{number}.png" for number in range(20)], weights="b" * 64)
    app = opened("compare", run="cats-1", **{"with": "dogs-1"})
    assert not app.error
    assert "no probe image in common and their weights differ" in written(app)
    assert "cannot be matched at all" in " ".join(caption.value for caption in app.caption)


def test_swapping_makes_b_the_open_run(app):
    app.button(key="swap").click().run()
    assert (in_address(app, "run"), in_address(app, "with")) == ("after-1", "before-1")


def test_the_open_run_changes_and_the_comparison_stays(app):
    app.switch_page("pages/circuit.py").run()
    app.switch_page("pages/compare.py").run()
    assert (in_address(app, "run"), in_address(app, "with")) == ("before-1", "after-1")


def test_names_stay_text_and_no_cell_runs(runs, workspace):
    store = LabelStore.for_workspace(workspace.root)
    store.edit("before-1", "l2/0", EVIL, "ana", 0)
    store.close()
    app = opened("compare", run="before-1", **{"with": "after-1"})
    assert r"\!\[x\]" in app.button(key="open_left_l2/0_l2/0").label
    assert "<img src=x" not in " ".join(block.proto.body for block in app.get("html"))
    rows = csv.DictReader(io.StringIO(to_csv(compare(*runs), {"l2/0": "@cmd"}, {})))
    assert "'@cmd" in {row["left_name"] for row in rows}
