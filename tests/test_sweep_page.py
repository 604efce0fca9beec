"""The Sweep page without a browser: what hand-made sweeps show, whole, half done and failed, and where their rows lead."""

import io
import time

import hand_made_debug
import hand_made_runs
import pandas as pd
import pytest
from conftest import draw_images
from hand_made_sweeps import CLASSES, evaluation, flag, write
from test_pages import EVIL, in_address, opened, written

from neurflow_engine.jobs import Jobs
from neurflow_engine.sweep_result import ClassOutcome, ClassState, Mark, Sweep, table_file
from pages.ui import cached, commands, show

TAKEN = {("dog", "cat"): 40, ("owl", "cat"): 30, ("fox", "dog"): 4}


@pytest.fixture
def own(workspace, tmp_path) -> Sweep:
    """A sweep in which one class is misled, with its run and its report, and one failed."""
    images = draw_images(tmp_path / "images", *CLASSES, n=3)
    corners = [hand_made_runs.patch(image, 1) for image in range(10)]
    run = hand_made_runs.write(workspace, "cat-run", {"layer3": [corners], "layer2": [corners]}, {("layer2/0", "layer3/0"): 0.5})
    report = hand_made_debug.report(run, images, workspace)
    of = evaluation(workspace, "of-one", taken=TAKEN, root=str(images))
    mark = Mark((("cat", hand_made_debug.CONTRAST), ("dog", "layer1/contrast-3")), "presence", 0.83)
    flags, runs = {"cat": (flag(hand_made_debug.CONTRAST, 0.71),)}, {"cat": (run.id, report.id)}
    return write(workspace, "one", of, flags, {"fox": "The disk is full."}, runs=runs, marks=[mark])


def grid(app) -> pd.DataFrame:
    """The table of classes."""
    return next(one.value for one in app.dataframe if "most misleading" in str(one.proto.columns) or "first_flag" in one.value)


class TestWithoutASweep:
    def test_where_nothing_was_evaluated_it_says_what_to_do_first(self, workspace):
        app = opened("sweep")
        assert not app.error
        assert "A sweep analyses every class" in written(app)
        assert app.button(key="go_analyze")

    @pytest.mark.parametrize("which", ["All", "Worst", "Chosen"])
    def test_the_form_starts_a_sweep_of_an_evaluation(self, workspace, monkeypatch, which):
        evaluation(workspace, "of-one", taken=TAKEN)
        started = []
        monkeypatch.setattr(Jobs, "start", lambda jobs, kind, title, argv, memory_mb: started.append((kind, title, argv)))
        app = opened("sweep")
        assert not app.error
        app.segmented_control(key="sweep_which").set_value(which).run()
        if which == "Worst":
            app.number_input(key="sweep_worst_of-one").set_value(3).run()
        if which == "Chosen":
            assert app.button(key="start_sweep").disabled
            app.multiselect(key="sweep_chosen_of-one").set_value([2, 0]).run()
        app.button(key="start_sweep").click().run()
        targets, title = {
            "All": ("all", "Sweep all classes"), "Worst": ("worst:3", "Sweep the worst 3 classes"), "Chosen": ("2,0", "Sweep 2 classes"),
        }[which]  # fmt: skip
        expected = ["sweep", "--model", "net", "--data", "/nowhere", "--targets", targets, "--workspace", str(workspace.root)]
        assert started == [("sweep", title, expected)]
        assert in_address(app, "evaluation") == "of-one"

    def test_a_sweep_that_cannot_be_done_says_why(self, workspace):
        evaluation(workspace, "of-one")
        app = opened("sweep")
        app.button(key="start_sweep").click().run()
        (job,) = cached.jobs().all()
        while cached.jobs().get(job.id).active:
            time.sleep(0.1)
        app.run()
        assert "Sweep all classes" in app.error[0].value
        assert not app.button(key="start_sweep").disabled

    def test_the_form_of_an_evaluation_stands_in_place_of_a_sweep_of_another_one(self, workspace, own):
        evaluation(workspace, "of-other", classes=("bear", "wolf"), root="/elsewhere")
        app = opened("sweep", evaluation="of-other")
        assert "All (2)" in app.segmented_control(key="sweep_which").options
        assert not app.metric
        assert len(app.selectbox(key="other_sweep").options) == 1


class TestASweep:
    def test_says_in_one_line_how_it_went(self, own):
        app = opened("sweep")
        assert not app.error
        assert {metric.label: metric.value for metric in app.metric} == {
            "Classes": "4", "Misled": "1", "Failed": "1", "Images": "400", "Took": "42 s",
        }  # fmt: skip

    def test_the_table_has_the_misled_class_first_with_its_control(self, own):
        rows = grid(opened("sweep"))
        assert list(rows["class"]) == ["cat", "dog", "owl", "fox"]
        assert list(rows["stands"]) == ["! misled", "✓ not misled", "✓ not misled", "✗ failed"]
        first = rows.iloc[0]
        assert (first["wrong"], first["share"], first["flagged"]) == (70, pytest.approx(70 / 3), 1)
        assert (first["recovered"], first["control_high"], first["ceiling"], first["verdicts"]) == (71, 5, 80, "0 of 1")

    def test_a_click_on_a_row_opens_the_class_with_figures_beside_their_control(self, own):
        app = opened("sweep")
        assert "Misleading</span>" not in written(app)
        (key,) = [one.proto.id.rpartition("-")[2] for one in app.dataframe if "first_flag" in one.value]
        app.session_state[key] = {"selection": {"rows": [0], "columns": [], "cells": []}}
        app.run()
        app = opened("sweep", sweep="one", target="0")
        words = written(app)
        assert "brings back <b>71 % [64, 78] · random 2 % [0, 5]</b>" in words
        assert "70 of 300 images of other classes are taken for it: 23.3 % [18.9, 28.4]." in words
        assert "At best 80 % [70, 90] of them can come back" in words
        app.button(key="close_class").click().run()
        assert in_address(app, "target") is None
        assert "Misleading</span>" not in written(app)

    def test_a_verdict_is_given_here_and_counted(self, own):
        group = hand_made_debug.CONTRAST
        app = opened("sweep", target="0")
        app.button(key=f"judge_spurious_{group}").click().run()
        assert "spurious, said me just now" in written(app)
        assert grid(app)["verdicts"].iloc[0] == "1 of 1"

    def test_filters_are_kept_in_the_address(self, own):
        app = opened("sweep", only="misled")
        assert list(grid(app)["class"]) == ["cat"]
        app.segmented_control(key="sweep_only").set_value("all").run()
        app.text_input(key="sweep_find").set_value("O").run()
        assert list(grid(app)["class"]) == ["dog", "owl", "fox"]
        assert in_address(app, "find") == "O"
        app.text_input(key="sweep_find").set_value("zebra").run()
        assert "No class passes the filter" in written(app)

    def test_failed_classes_say_why(self, own):
        app = opened("sweep", only="failed")
        assert list(grid(app)["class"]) == ["fox"]
        (expander,) = [one for one in app.expander if one.label == "1 class failed"]
        assert list(expander.dataframe[0].value["message"]) == ["The disk is full."]
        assert "The disk is full" in opened("sweep", target="3").error[0].value

    def test_a_mark_that_several_classes_share_is_one(self, own):
        app = opened("sweep")
        assert "One thing misleads towards 2 classes." in written(app)
        assert "correlation 0.83 or more" in written(app)
        app.button(key="mark_0_0").click().run()
        assert in_address(app, "target") == "0"

    def test_files_hold_all_classes_and_no_formula(self, workspace):
        name = "=HYPERLINK(1)"
        made = write(workspace, "evil", evaluation(workspace, "of-evil", (name, "dog")), {name: ("layer1/0",)})
        table = cached.sweep_table(made)
        assert pd.read_csv(io.BytesIO(table_file(table, "csv")))["class"].iloc[0] == f"'{name}"
        again = pd.read_parquet(io.BytesIO(table_file(table, "parquet")))
        assert (again["class"].iloc[0], again["recovered"].iloc[0]) == (name, 0.7)

    def test_a_run_that_was_deleted_is_a_sentence(self, workspace):
        write(workspace, "gone", evaluation(workspace, "of-gone", taken=TAKEN), {"cat": ("layer1/0",)})
        app = opened("sweep", target="0")
        assert "Its run was deleted" in written(app)
        assert "There is no run" in app.error[0].value

    def test_names_with_markup_are_text(self, workspace):
        classes = (EVIL, "dog")
        marks = [Mark(((EVIL, "layer1/0"), ("dog", "layer1/1")), "direction", 0.9)]
        of = evaluation(workspace, "of-evil", classes, {("dog", EVIL): 30})
        write(workspace, "evil", of, {EVIL: ("layer1/0",)}, marks=marks)
        app = opened("sweep", target="0")
        blocks = [block.proto.body for block in app.get("html")]
        assert not any("<img src=x" in block for block in blocks)
        assert any("&lt;img src=x" in block for block in blocks)
        assert app.button(key="mark_0_0").label == show.plain(EVIL)


class TestOtherSweeps:
    def test_the_address_says_which_one_is_shown(self, workspace, own):
        write(workspace, "two", evaluation(workspace, "of-two", ("bear", "wolf")))
        for name, first in (("one", "cat"), ("two", "bear")):
            assert grid(opened("sweep", sweep=name))["class"].iloc[0] == first
        app = opened("sweep", sweep="one", target="0")
        app.selectbox(key="other_sweep").set_value("two").run()
        assert (in_address(app, "sweep"), in_address(app, "target")) == ("two", None)
        assert grid(app)["class"].iloc[0] == "bear"

    def test_one_that_is_gone_is_a_sentence_and_a_way_on(self, own):
        app = opened("sweep", sweep="../gone")
        assert len(app.error) == 1
        assert app.selectbox(key="other_sweep")

    def test_one_whose_evaluation_is_gone_is_a_sentence(self, workspace, own):
        (workspace.evaluation_folder("of-one") / "manifest.json").unlink()
        assert opened("sweep", sweep="one").error


class TestAnUnfinishedSweep:
    @pytest.fixture
    def half(self, workspace) -> Sweep:
        return write(workspace, "half", evaluation(workspace, "of-half", taken=TAKEN), {"cat": ("layer1/0",)}, waiting=("owl", "fox"))

    def test_shows_what_has_ended_and_that_nothing_is_at_work(self, half):
        app = opened("sweep")
        assert app.metric[0].value == "2 of 4 ended"
        assert "Nothing is at work on the rest" in app.info[0].value
        assert list(grid(app)["stands"]) == ["! misled", "✓ not misled", "… waiting", "… waiting"]

    def test_a_class_that_ends_appears(self, half):
        app = opened("sweep")
        half.save(ClassOutcome(2, "owl", ClassState.DONE, run="owl-run", report="r", n_groups=3, n_wrong=0, n_others=300))
        app.run()
        assert app.metric[0].value == "3 of 4 ended"

    def test_where_true_classes_are_unknown_nothing_is_called_misleading(self, workspace):
        write(workspace, "unknown", evaluation(workspace, "of-unknown", taken=TAKEN, known=False))
        app = opened("sweep")
        assert set(grid(app)["stands"]) == {"? cannot tell", "– never predicted"} or set(grid(app)["stands"]) == {"? cannot tell"}
        assert "No true classes are known" in app.info[0].value


def test_a_finished_job_leads_to_its_sweep(workspace, own):
    class Done:
        kind, argv = "sweep", ("sweep",)

        def result(self):
            return {"sweep": "one"}

    assert commands.address_of_result(Done()) == ("sweep", {"sweep": "one", "target": None})


def test_a_thousand_classes_are_drawn_quickly(workspace):
    names = tuple(f"class {number}" for number in range(1000))
    taken = {(names[number], names[number + 1]): 2 for number in range(0, 900, 3)}
    flags = {names[number + 1]: ("layer1/0", "layer1/1") for number in range(0, 300, 3)}
    write(workspace, "large", evaluation(workspace, "of-large", names, taken, images=5), flags)
    app = opened("sweep")
    began = time.perf_counter()
    app.text_input(key="sweep_find").set_value("class 1").run()
    assert time.perf_counter() - began < 3
    assert not app.error
    assert len(grid(app)) == 111
