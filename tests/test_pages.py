"""The pages without a browser: what they show when there is nothing, with the demo's run, and when something is wrong."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import hand_made
import hand_made_debug
import pytest
from streamlit.testing.v1 import AppTest

from neurflow_engine import access, demo, inventory, replay, tracing
from neurflow_engine.fidelity import EXPLANATIONS
from neurflow_engine.labels import LabelStore
from neurflow_engine.preview import preview
from neurflow_engine.records import LOGITS
from pages.ui import cached, commands, graph, show, storage, trust

APP = str(Path(__file__).parents[1] / "app.py")
PAGES = ("analyze", "circuit", "debug", "labels", "compare", "sweep")
EVIL = "</script><img src=x onerror=alert(1)> ![x](http://leak.example/a.png) href"


def opened(page: str, **parameters: str) -> AppTest:
    """The app on one of its pages, as a link with these parameters opens it."""
    app = AppTest.from_file(APP, default_timeout=120)
    app.query_params.update(parameters)
    if page != "analyze":
        app.switch_page(f"pages/{page}.py")
    app.run()
    assert not app.exception
    return app


def in_address(app: AppTest, name: str) -> str | None:
    """A parameter of the address; AppTest holds lists."""
    values = app.query_params.get(name)
    return values[0] if isinstance(values, list) else values


def written(app: AppTest) -> str:
    """All HTML of a page, with its text as people read it."""
    return unescape(" ".join(block.proto.body for block in app.get("html")))


@pytest.fixture
def run(demo_run, analysed_demo, tmp_path, monkeypatch):
    """The demo's run in a workspace of this test's own."""
    workspace = shutil.copytree(analysed_demo.root, tmp_path / "workspace")
    monkeypatch.setenv("NEURFLOW_WORKSPACE", str(workspace))
    return demo_run


@pytest.mark.parametrize("page", PAGES)
def test_a_page_without_a_run_says_what_to_do_next(page, workspace):
    app = opened(page)
    assert not app.error
    assert app.title[0].value == page.capitalize()
    assert app.button(key="start_demo" if page == "analyze" else "go_analyze")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_on_the_newest_run_when_the_link_names_none(page, run):
    app = opened(page)
    assert not app.error
    assert in_address(app, "run") == run.id


@pytest.mark.parametrize("page", ["circuit", "debug", "labels", "compare"])
def test_an_unknown_run_is_one_sentence_that_names_near_matches_and_a_way_on(page, run):
    app = opened(page, run=run.id[:-1] + "x", group="layer1/0", image="owl/0.png")
    assert len(app.error) == 1
    assert run.id.replace("-", r"\-") in app.error[0].value
    app.button(key="open_newest").click().run()
    assert not app.error
    assert in_address(app, "run") == run.id
    assert in_address(app, "group") is None


def test_what_an_address_leaves_out_is_not_put_back(run):
    group = run.circuit.groups[1].id
    app = opened("circuit", run=run.id, group=group)
    del app.query_params["group"]  # as going back does
    app.run()
    assert in_address(app, "group") is None
    assert "Click a group or a line" in " ".join(caption.value for caption in app.caption)


def test_parameters_that_mean_nothing_are_passed_over(run):
    for page, parameters in (
        ("circuit", {"tab": "Nothing", "limit": "-3", "weakest": "nan", "stability": "perhaps"}),
        ("labels", {"view": "Nothing", "in": "layer99", "states": "a,b", "score": "x", "order": "", "like": "../x"}),
        ("analyze", {"layers": "layer99", "target": "x"}),
    ):
        app = opened(page, run=run.id, **parameters)
        assert not app.error
        assert in_address(app, "run") == run.id


def test_moving_to_another_page_keeps_the_run_and_the_group(run):
    group = run.circuit.groups[1].id
    app = opened("circuit", run=run.id, group=group)
    app.switch_page("pages/labels.py").run()
    assert (in_address(app, "run"), in_address(app, "group")) == (run.id, group)


class TestAnalyze:
    @pytest.mark.parametrize("parameter", ["job", "evaluation"])
    def test_a_link_to_something_that_is_not_there_is_one_sentence_and_the_form_stays(self, run, parameter):
        app = opened("analyze", **{parameter: "../nothing"})
        assert len(app.error) == 1
        assert app.button(key="evaluate")

    def test_a_folder_that_does_not_exist_is_refused_before_a_job_starts(self, run):
        app = opened("analyze")
        app.segmented_control(key="image_kind").set_value("Folder").run()
        app.text_input(key="image_folder").set_value("/does/not/exist").run()
        app.button(key="evaluate").click().run()
        assert "/does/not/exist" in app.error[0].value.replace("\\", "")
        assert not cached.jobs().all()

    def test_a_model_folder_can_be_evaluated_with_merged_classes_too(self, run, tmp_path):
        (tmp_path / "merged.json").write_text('{"vehicle": ["car", "train"]}')
        app = opened("analyze")
        app.segmented_control(key="model_kind").set_value("My checkpoint").run()
        app.text_input(key="checkpoint").set_value(str(demo.MODEL_FOLDER)).run()
        app.text_input(key="merge_My checkpoint").set_value(str(tmp_path / "merged.json")).run()
        app.button(key="evaluate").click().run()
        assert not app.error
        (job,) = cached.jobs().all()
        commands.cancel(job)
        assert job.argv[:5] == ("evaluate", "--model", f"local-dir:{demo.MODEL_FOLDER}", "--merge", str(tmp_path / "merged.json"))

    def test_a_link_to_a_class_picks_it(self, run):
        evaluation = cached.evaluation(run.manifest["evaluation"])
        for index in evaluation.predictions["predicted"].unique()[:3]:
            app = opened("analyze", target=str(index))
            assert app.selectbox(key="target_class").value == index

    def test_a_class_that_is_never_predicted_falls_back_to_the_one_with_most_false_positives(self, run):
        evaluation = cached.evaluation(run.manifest["evaluation"])
        worst = evaluation.per_class().sort_values("false_positives").iloc[-1]["index"]
        assert opened("analyze", target="999").selectbox(key="target_class").value == worst

    def test_the_price_is_shown_before_the_button_is_pressed(self, run):
        assert re.search(
            r"predicted images · 3 layers below the logits · about \d+ (s|min), \d\.\d GB",
            " ".join(c.value for c in opened("analyze").caption),
        )

    def test_a_class_name_with_markup_stays_text(self):
        assert show.plain("![x](http://leak.example)") == r"\!\[x\]\(http:​//leak\.example\)"
        assert ":red[" not in show.plain(":red[x] :material/home:")


class TestCircuit:
    def test_a_click_on_a_group_shows_its_panel_and_an_invented_one_nothing(self, run):
        group = run.circuit.groups[1]
        app = opened("circuit", run=run.id, group=group.id)
        assert f"{len(group.neurons)} neurons" in [expander.label for expander in app.expander]
        app = opened("circuit", run=run.id)
        app.session_state["graph"] = {"selection": {"node": "layer9/99", "edge": None}}
        app.run()
        assert in_address(app, "group") is None
        assert not app.error

    def test_an_edge_in_the_link_shows_both_of_its_groups(self, run):
        edge = max(run.circuit.edges, key=lambda edge: abs(edge.weight))
        app = opened("circuit", run=run.id, edge=graph.edge_id(edge))
        assert app.metric[0].value == f"{edge.weight:+.3f}"
        upper = run.circuit.target_name if edge.target == f"{LOGITS}/0" else edge.target
        assert app.button(key="open_Upper group").label == f"Open {show.plain(upper)}"

    def test_a_group_that_the_run_does_not_have_is_one_sentence(self, run):
        app = opened("circuit", run=run.id, group="layer9/99")
        assert len(app.error) == 1
        assert "layer9/99" in app.error[0].value


class TestTrust:
    @pytest.fixture
    def report(self, run) -> dict:
        made = hand_made.fidelity_report(run)
        hand_made.write(made, cached.workspace().root)
        return made

    def test_before_a_check_it_says_so_with_the_price(self, run):
        app = opened("circuit", run=run.id, tab="Trust")
        assert "○ not checked" in written(app)
        assert re.search(r"Not checked yet.* About \d+ (s|min)\.", written(app))
        assert not app.button(key="check_circuit").disabled

    @pytest.mark.parametrize("refine", [False, True])
    def test_the_button_starts_the_check_in_the_background(self, run, refine):
        app = opened("circuit", run=run.id, tab="Trust")
        app.checkbox(key="refine").set_value(refine)
        app.button(key="check_circuit").click().run()
        (job,) = cached.jobs().all()
        cached.jobs().cancel(job.id)
        assert job.argv[: 2 + refine] == ("fidelity", run.id, "--refine")[: 2 + refine]
        assert ("--refine" in job.argv) == refine

    def test_the_verdict_stands_on_top_with_its_reasons_and_in_the_sidebar(self, run, report):
        words = written(opened("circuit", run=run.id, tab="Trust"))
        assert "✗</span> This circuit is not to be trusted" in words
        for of in (report, *report["layers"]):
            assert of["verdict"]["reasons"][0] in words
        assert "✗ not to be trusted</div>" in words.partition("nf-card")[2]

    @pytest.mark.parametrize(("trusted", "badge"), [(True, "✓ trusted"), (False, "✗ not to be trusted"), (None, "? undecided")])
    def test_the_sidebar_tells_verdicts_apart_by_more_than_colour(self, run, report, trusted, badge):
        changed = report | {"report": "newer", "created": "2026-02-01T00:00:00+00:00", "verdict": {"trusted": trusted, "reasons": []}}
        hand_made.write(changed, cached.workspace().root)
        assert badge in written(opened("labels", run=run.id))

    def test_every_measure_is_a_chart_with_the_line_that_explains_it(self, run, report):
        app = opened("circuit", run=run.id, tab="Trust")
        for name in [measure.name for measure in trust.MEASURES] + ["edge_correlation", "completeness_gap", "silhouette", "stability"]:
            assert EXPLANATIONS[name] in written(app)
        specs = [json.loads(chart.proto.spec) for chart in app.get("vega_lite_chart")]
        assert len(specs) == len(trust.MEASURES) + 4
        fields = [set(re.findall(r'"field": ?"(\w+)"', json.dumps(spec))) for spec in specs]
        assert all({"layer", "value"} <= found for found in fields)
        assert all({"low", "high", "mean"} <= found for found in fields[: len(trust.MEASURES)])

    def test_numbers_carry_their_control_and_their_twin_in_one_cell(self, run, report):
        (table,) = (frame.value for frame in opened("circuit", run=run.id, tab="Trust").dataframe if "measure" in frame.value)
        cells = {(row.measure, row.layer): row.value for row in table.itertuples()}
        good = run.circuit.layers[1]
        assert cells["Core silenced", good] == "0.12 · random 0.93 [0.88, 0.97] · twin 0.90"
        assert cells["Concepts without their core", good] == "0.20 · random 0.80 [0.70, 0.90] · refined 0.15 · twin 0.80"
        assert cells["Edge correlation, 5 neurons", good] == "0.60 [-0.30, 0.70] · twin -0.10"
        assert cells["Edge correlation, 50 neurons", good].startswith("–")
        assert cells["Completeness gap", good] == "0.01 · worst 0.04 · twin 0.01"

    @pytest.mark.parametrize("nothing", [None, {"draws": 0, "groups": {}, "edges": {}}])
    def test_a_report_without_twin_stability_and_most_figures_is_shown(self, run, report, nothing):
        poor = [
            layer | {"mask_core": None, "mask_random": None, "silhouette": None, "completeness_gap": None, "overlap_refined": None}
            | {"edge_correlation": dict.fromkeys(trust.SIZES), "edge_correlation_interval": dict.fromkeys(trust.SIZES)}
            for layer in report["layers"]
        ]  # fmt: skip
        changed = report | {"report": "poor", "created": "2026-02-01T00:00:00+00:00", "layers": poor, "twin": None, "stability": nothing}
        hand_made.write(changed, cached.workspace().root)
        app = opened("circuit", run=run.id, tab="Trust")
        assert not app.error
        assert "Untrained twin:" not in written(app)

    def test_what_is_measured_once_stands_beside_the_twin(self, run, report):
        words = written(opened("circuit", run=run.id, tab="Trust"))
        assert "Untrained twin: not to be trusted, as it should be" in words
        assert "Logits vary over patches by 0.91 · twin 0.07." in words
        assert "6 of 12 images predicted as the class are of it · chance 12 % · p 0.0004." in words

    @pytest.mark.parametrize(
        ("trusted", "said"),
        [(True, "trusted, so these measures cannot tell a circuit from a network"), (None, "undecided, it cannot be analysed.")],
    )
    def test_a_twin_that_does_not_say_no_is_pointed_out(self, run, report, trusted, said):
        twin = {"layers": [], "verdict": {"trusted": trusted, "reasons": ["it cannot be analysed."]}}
        changed = report | {"report": "twin", "created": "2026-02-01T00:00:00+00:00", "twin": twin}
        hand_made.write(changed, cached.workspace().root)
        assert f"Untrained twin: {said}" in written(opened("circuit", run=run.id, tab="Trust"))

    def test_reasons_and_layers_with_markup_stay_text(self, run, report):
        evil = [layer | {"layer": EVIL, "verdict": {"trusted": False, "reasons": [EVIL]}} for layer in report["layers"]]
        changed = report | {"report": "evil", "created": "2026-02-01T00:00:00+00:00", "layers": evil}
        hand_made.write(changed, cached.workspace().root)
        app = opened("circuit", run=run.id, tab="Trust")
        assert EVIL in written(app)
        assert not [block for block in app.get("html") if "<img src=x" in block.proto.body]
        assert not [block for block in app.markdown if "leak.example" in block.value]

    def test_groups_and_lines_say_how_often_they_return(self, run, report):
        edge = run.circuit.edges[0]
        assert "returns in 8 of 10 rebuilds" in written(opened("circuit", run=run.id, group=edge.source))
        assert any(
            "returns in 3 of 10 rebuilds" in caption.value for caption in opened("circuit", run=run.id, edge=graph.edge_id(edge)).caption
        )

    def test_what_seldom_returns_is_pale_until_the_switch_is_turned(self, run, report):
        app = opened("circuit", run=run.id)
        assert "in how many of 10 circuits" in written(app)
        app.toggle(key="show_stability").set_value(False).run()
        assert "in how many of 10 circuits" not in written(app)


def test_the_plain_grid_shows_every_image_by_logit_and_marks_the_wrong_ones(run):
    (grid,) = (
        block.proto.body
        for block in opened("circuit", run=run.id, tab="Images by logit").get("html")
        if 'class="nf-grid"' in block.proto.body
    )
    cells = re.findall(r"<figcaption>(.*?)</figcaption>", grid)
    assert len(cells) == len(run.circuit.images)
    logits = [float(cell.rpartition(" ")[2]) for cell in cells]
    assert logits == sorted(logits, reverse=True)
    wrong = sum(image.true != run.circuit.target_index for image in run.circuit.images)
    assert 0 < wrong == sum(cell.startswith("✗ ") for cell in cells) == grid.count("outline:3px")


class TestDebug:
    def test_silencing_a_group_puts_new_classes_beside_the_old_ones_and_a_random_control(self, run):
        image, group = run.circuit.images[0].path, run.circuit.groups[1].id
        app = opened("debug", run=run.id, image=image)
        assert not app.dataframe
        app.toggle(key=f"silence_{run.id}_{group}_False").set_value(True).run()
        assert in_address(app, "silence") == group
        table = app.dataframe[0].value
        assert list(table.columns) == ["class", "before", "silenced · random control"]
        assert table["silenced · random control"].str.fullmatch(r"(\d+\.\d %|–) · random \d+\.\d % \[\d+\.\d, \d+\.\d\]").all()

    def test_the_network_is_ready_for_every_group_before_the_first_click(self, run, report, monkeypatch):
        cut = []

        def noting(classifier, lower, *rest):
            cut.append(lower)
            return tracing.Segment(classifier, lower, *rest)

        monkeypatch.setattr(replay, "Segment", noting)
        cached.forget()
        app = opened("debug", run=run.id, image=run.circuit.images[0].path)
        groups = {name: entry["layer"] for name, entry in report.groups.items()}
        assert cut[0] == groups[next(name for name, entry in report.groups.items() if entry["misleading"])]
        assert len(cut) == len(set(cut))
        assert set(cut) == {*groups.values(), *(group.layer for group in run.circuit.groups if group.layer != LOGITS)}
        ready = list(cut)
        app.button(key=f"flagged_{hand_made_debug.CONTRAST}").click().run()
        assert "random control" in app.dataframe[0].value.columns[-1]
        assert cut == ready

    def test_a_switch_that_the_browser_has_not_taken_away_yet_gives_nothing_back(self, run, report):
        app = opened("debug", run=run.id, image=run.circuit.images[0].path)
        late = app.toggle(key=f"silence_{run.id}_{hand_made_debug.CONTRAST}_False")._widget_state
        app.button(key=f"flagged_{hand_made_debug.CONTRAST}").click().run()
        assert in_address(app, "silence") == hand_made_debug.CONTRAST
        known = app._tree.get_widget_states()
        known.widgets.append(late)
        app._run(known)
        assert in_address(app, "silence") == hand_made_debug.CONTRAST

    @pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd", "upload:../../secret.png", "upload:nothing.png"])
    def test_a_link_can_only_name_images_that_are_listed(self, run, name):
        app = opened("debug", run=run.id, image=name)
        assert len(app.error) == 1

    def test_an_uploaded_image_is_looked_at(self, run):
        source = run.data_root / run.circuit.images[0].path
        app = opened("debug", run=run.id)
        app.file_uploader(key="upload").upload("../own.png", source.read_bytes(), "image/png").run()
        assert in_address(app, "image").startswith("upload:")
        assert not app.error
        (kept,) = cached.workspace().root.rglob("*.png")
        assert kept.is_relative_to(cached.workspace().uploads_folder)

    def test_a_file_that_is_no_image_is_one_sentence(self, run):
        app = opened("debug", run=run.id)
        app.file_uploader(key="upload").upload("broken.png", b"text", "image/png").run()
        assert len(app.error) == 1
        assert not app.exception

    def test_a_report_with_nothing_flagged_says_why_not_even_the_best(self, run):
        report = hand_made_debug.report(run, run.data_root, cached.workspace())
        groups = [entry | {"misleading": False, "reason": "No more than random."} for entry in report.json["groups"]]
        hand_made_debug.report(run, run.data_root, cached.workspace(), groups=groups)
        said = opened("debug", run=run.id).info[0].value.replace("\\", "")
        assert "No group is clearly misleading" in said
        assert "71 % [64, 78] · random 2 % [0, 5]" in said
        assert "No more than random." in said

    @pytest.fixture
    def report(self, run):
        return hand_made_debug.report(run, run.data_root, cached.workspace())

    def test_a_flagged_group_comes_with_its_figures_each_beside_its_control_or_interval(self, run, report):
        app = opened("debug", run=run.id)
        said = re.sub("<[^>]+>", "", written(app))
        for figure in (
            f"brings back 71 % [64, 78] · random 2 % [0, 5] of {report.json['n_reported']} wrong images",
            "clean accuracy -0.2 points [-0.8, +0.3]",
            "at best 84 % [79, 88] can come back",
        ):
            assert figure in said
        (table,) = (frame.value for frame in app.dataframe if "recovered · random control" in frame.value)
        assert list(table["group"]) == list(report.groups)
        assert table["recovered · random control"][1] == "3 % [1, 9] · random 2 % [0, 5]"

    def test_without_right_images_of_the_class_a_flag_says_that_its_price_there_is_not_known(self, run):
        hand_made_debug.report(run, run.data_root, cached.workspace(), "no-price", lower_logit=None)
        said = re.sub("<[^>]+>", "", written(opened("debug", run=run.id)))
        assert f"no image of {run.circuit.target_name} is predicted right here, so what it costs that class is not known" in said

    def test_where_a_group_was_measured_in_some_images_the_page_says_in_how_many(self, run):
        whole = hand_made_debug.report(run, run.data_root, cached.workspace(), "partly")
        n = len(whole.json["images"])
        partly = [None] * 10 + [0.25] * (n - 10)
        groups = [entry | {"presence": partly} if entry["kind"] == "circuit" else entry for entry in whole.json["groups"]]
        report = hand_made_debug.report(run, run.data_root, cached.workspace(), "partly", groups=groups)
        image = report.json["images"][0]["path"]  # not measured itself
        app = opened("debug", run=run.id, silence=hand_made_debug.CIRCUIT, look="Right images alike", image=image)
        assert not app.error
        assert "presence 0.25" in written(app)
        said = " ".join(caption.value for caption in app.caption)
        assert f"in the {n - 10} of {n} images in which it was measured" in said
        (table,) = (frame.value for frame in app.dataframe if "on right" in frame.value)
        assert table.set_index("group").loc[hand_made_debug.CIRCUIT, "on right"] == 0.25
        assert "would bring back 5 %" in said

    def test_a_name_given_by_people_stays_text_on_a_flag(self, run, report):
        groups = [entry | {"misleading": True} for entry in report.json["groups"]]
        hand_made_debug.report(run, run.data_root, cached.workspace(), groups=groups)
        cached.labels().edit(run.id, hand_made_debug.CIRCUIT, EVIL[:100], "ana", 0)
        cached.verdicts().give(run.id, hand_made_debug.CIRCUIT, "spurious", EVIL[:50], 0, EVIL[:100], report.id)
        app = opened("debug", run=run.id, silence=hand_made_debug.CIRCUIT)
        bodies = " ".join(block.proto.body for block in app.get("html"))
        assert "<img src=x" not in bodies
        assert bodies.count("&lt;img src=x") >= 3

    def test_a_flagged_group_of_the_circuit_can_be_named_and_one_found_by_contrast_cannot(self, run, report):
        groups = [entry | {"misleading": True} for entry in report.json["groups"]]
        hand_made_debug.report(run, run.data_root, cached.workspace(), groups=groups)
        buttons = {button.key for button in opened("debug", run=run.id).button}
        assert {f"flagged_{hand_made_debug.CIRCUIT}", f"flagged_{hand_made_debug.CONTRAST}"} <= buttons
        assert f"name_{hand_made_debug.CIRCUIT}" in buttons
        assert f"name_{hand_made_debug.CONTRAST}" not in buttons

    def test_silencing_with_no_image_picked_is_tried_on_all_that_are_shown_and_can_be_undone(self, run, report):
        app = opened("debug", run=run.id)
        app.button(key=f"flagged_{hand_made_debug.CONTRAST}").click().run()
        assert in_address(app, "silence") == hand_made_debug.CONTRAST
        assert re.search(r"<b>\d+ of (\d+)</b> wrong images come back: \d+ % \[\d+, \d+\]", written(app))
        assert re.search(r"random neurons change \d+ % of the answers \(20 draws\)", written(app))
        (table,) = (frame.value for frame in app.dataframe if "random control" in frame.value)
        assert table["random control"].str.fullmatch(r"\d+ % change").all()
        assert set(table["outcome"]) <= {"✓ comes back", "still wrong"}
        app.button(key="silence_nothing").click().run()
        assert in_address(app, "silence") is None
        app.button(key="undo_silence").click().run()
        assert in_address(app, "silence") == hand_made_debug.CONTRAST
        app.button(key="undo_silence").click().run()
        assert in_address(app, "silence") is None
        assert "undo_silence" not in {button.key for button in app.button}

    def test_several_images_are_looked_at_together(self, run, report):
        app = opened("debug", run=run.id, images="0,3,999999,x")
        (table,) = (frame.value for frame in app.dataframe if "before" in frame.value)
        assert len(table) == 2
        assert not app.error

    @pytest.mark.parametrize("cell", ["1-999", "x-1", "-", "1-2-3"])
    def test_a_link_to_a_cell_that_is_not_there_shows_the_wrong_images(self, run, cell):
        app = opened("debug", run=run.id, show=cell)
        assert in_address(app, "show") == cell
        assert not app.error
        assert "Taken for it" in str(app.get("button_group")[0].proto)

    def test_a_verdict_is_remembered_with_who_gave_it_and_taken_back(self, run, report):
        group = hand_made_debug.CONTRAST
        app = opened("debug", run=run.id)
        app.text_input(key=f"author_{group}").set_value("ana").run()
        app.button(key=f"judge_spurious_{group}").click().run()
        given = cached.verdicts().get(run.id, group, report.id)
        assert (given.judgement, given.author) == ("spurious", "ana")
        assert "spurious, said ana just now" in written(app)
        app.button(key=f"judge_undo_{group}").click().run()
        assert cached.verdicts().get(run.id, group, report.id).judgement is None

    def test_a_group_that_is_not_flagged_gets_a_verdict_where_it_is_silenced(self, run, report):
        group = hand_made_debug.CIRCUIT
        app = opened("debug", run=run.id, silence=group)
        app.button(key=f"judge_core_{group}").click().run()
        assert cached.verdicts().get(run.id, group).judgement == "core"
        (table,) = (frame.value for frame in app.dataframe if "verdict" in frame.value)
        assert dict(zip(table["group"], table["verdict"], strict=True)) == {hand_made_debug.CONTRAST: "", group: "core"}

    def test_a_preview_shows_accuracy_before_and_after_with_intervals(self, run, report):
        found = preview(run, run.data_root, [hand_made_debug.CONTRAST], cached.workspace(), report=report, device="cpu", workers=0)
        said = written(opened("debug", run=run.id, fix=hand_made_debug.CONTRAST))
        assert re.search(r"\d+\.\d % → \d+\.\d % \([+-]\d+\.\d points \[[+-]\d+\.\d, [+-]\d+\.\d\]\)", said)
        assert re.search(r"Worst group\D*\d+\.\d % \[\d+\.\d, \d+\.\d\] → ", re.sub("<[^>]+>", "", said))
        assert f"{len(found['helped'])} helped" in re.sub("<[^>]+>", "", said)

    def test_a_fix_without_a_preview_offers_to_make_it(self, run, report):
        app = opened("debug", run=run.id, fix=hand_made_debug.CIRCUIT)
        assert "make_preview" in {button.key for button in app.button}

    def test_a_blame_path_has_shares_and_its_own_check(self, run, report):
        wrong = next(image for image in run.circuit.images if image.true != run.circuit.target_index)
        app = opened("debug", run=run.id, image=wrong.path)
        app.segmented_control(key="view").set_value("Blame path").run()
        assert not app.error
        said = re.sub("<[^>]+>", "", written(app))
        assert re.search(r"wrong \d+ % · true \d+ %", said)
        assert any("integrated gradients; they miss" in caption.value for caption in app.caption)


class TestLabels:
    @pytest.fixture
    def store(self, run):
        return LabelStore.for_workspace(cached.workspace().root)

    def test_the_name_is_shown_on_the_circuit_page(self, run, store):
        group = run.circuit.groups[1].id
        store.edit(run.id, group, "white star", "ana", 0)
        app = opened("circuit", run=run.id, group=group)
        assert any("white star" in str(block.proto) for block in app.get("html"))


class TestStorage:
    def open(self, run) -> AppTest:
        def dialog() -> None:
            from pages.ui import session, storage

            session.restore("labels")  # as app.py does
            storage.contents()

        app = AppTest.from_function(dialog, default_timeout=60)
        app.query_params["run"] = run.id
        app.session_state["stored_runs"] = {"selection": {"rows": [0], "columns": [], "cells": []}}
        return app.run()

    def test_every_page_says_how_much_room_is_left(self, run):
        assert re.fullmatch(r"[\d.]+ [MG]B free", opened("labels", run=run.id).button(key="storage").label)

    def test_a_run_is_deleted_only_after_somebody_said_that_they_mean_it(self, run):
        cached.labels().edit(run.id, run.circuit.groups[1].id, "wings", "ana", 0)
        assert cached.run(run.id).id == run.id
        app = self.open(run)
        assert any("are free" in text.value for text in app.text)
        assert any("What people decided (1) stays" in text.value for text in app.text)
        assert app.button(key=f"delete_{run.id}").disabled
        app.checkbox(key=f"sure_{run.id}").check().run()
        app.button(key=f"delete_{run.id}").click().run()
        assert not app.exception
        assert cached.workspace().runs() == []
        assert in_address(app, "run") is None
        assert "There is no run" in opened("circuit", run=run.id).error[0].value
        assert cached.labels().get(run.id, run.circuit.groups[1].id).text == "wings"

    def test_a_viewer_sees_what_takes_room_and_deletes_nothing(self, run, monkeypatch):
        monkeypatch.setattr(access, "LOCAL", access.Person(None, access.Role.VIEWER))
        app = self.open(run)
        assert any("are free" in text.value for text in app.text)
        assert any("Only reviewers delete" in caption.value for caption in app.caption)
        assert not [button.key for button in app.button if button.key and button.key.startswith("delete_")]
        with pytest.raises(access.AccessError, match="viewer"):
            storage.delete(inventory.choose(inventory.take(cached.workspace()), [run.id]))
        assert [one.id for one in cached.workspace().runs()] == [run.id]
