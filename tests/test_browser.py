"""The app in a real browser: the session of a stranger, from the first click to a restart, and what only a browser can tell."""

import shutil
import zipfile
from pathlib import Path

import hand_made
import pandas as pd
import pytest
from browsing import EVIL, click_group, graph_frame, point_at_group, quiet, serving

from neurflow_engine import demo, silencer_file
from neurflow_engine.labels import LabelStore
from neurflow_engine.store import Workspace


def test_the_session_of_a_stranger(page, tmp_path):
    workspace = tmp_path / "workspace"
    with serving(workspace) as address:
        # one click analyses the demo, and leads to its circuit
        page.goto(address)
        page.get_by_role("button", name="Analyse the demo").click()
        page.get_by_role("button", name="Cancel").first.wait_for()
        page.wait_for_url("**/circuit?run=*", timeout=240_000)
        run = Workspace(workspace).open_run(Workspace(workspace).runs()[0].id)
        assert run.circuit.target_name == demo.TARGET

        # a click on a node opens its panel
        page.get_by_text("Click a group or a line in the graph").wait_for()
        group = run.circuit.inputs("logits/0")[0].source
        click_group(page, group)
        panel = page.locator(".st-key-panel")
        panel.locator(".nf-name", has_text=group).wait_for()
        assert panel.locator(".nf-strip").first.locator("img").count() > 1
        assert f"group={group.replace('/', '%2F')}" in page.url

        # silencing the group changes what the model says of an image that it was wrong on
        wrong = next(image for image in run.circuit.images if image.true != run.circuit.target_index)
        page.goto(f"{address}/debug?run={run.id}&image={wrong.path}")
        answer = page.locator(".st-key-split_debug .nf-name").first
        answer.wait_for()
        before = answer.inner_text()
        assert before.startswith(demo.TARGET)
        page.locator("[data-testid=stCheckbox]", has_text="silence").first.locator("label").click()
        page.get_by_role("button", name="Silence nothing").wait_for()
        after = page.locator(".st-key-split_debug .nf-name").first.inner_text()
        assert after.startswith(before)
        assert after != f"{before} stays {before}"

        # a name is typed, and approved with a key
        page.goto(f"{address}/labels?run={run.id}&group={group}")
        field = page.get_by_label("Name", exact=True)
        field.fill("white star on magenta")
        field.press("Control+Enter")
        page.locator(".st-key-review .nf-name", has_text="white star on magenta").wait_for()
        page.locator("h1").click()
        page.wait_for_timeout(700)  # keys are bound a moment after the page is drawn
        page.keyboard.press("a")
        page.wait_for_function("group => !location.search.includes(group)", arg=f"group={group.replace('/', '%2F')}")

    # the server is another one now: run and label are still there
    with serving(workspace) as address:
        page.goto(f"{address}/labels?run={run.id}&group={group}")
        page.locator(".st-key-review .nf-name", has_text="white star on magenta").wait_for()
        page.locator(".st-key-review", has_text="approved").wait_for()
        page.goto(f"{address}/circuit?run={run.id}&group={group}")
        page.locator(".st-key-panel .nf-name", has_text="white star on magenta").wait_for()
        assert graph_frame(page).evaluate("network.getSelectedNodes()") == [group]


def test_from_a_confusion_cell_to_a_fix_that_is_handed_over(page, demo_run, misled_report, misled_images, demo_workspace, tmp_path):
    from playwright.sync_api import expect

    workspace = Workspace(shutil.copytree(demo_workspace.root, tmp_path / "workspace"))
    evaluation = next(one for one in workspace.evaluations() if one.data_root == misled_images)
    group = next(name for name, entry in misled_report.groups.items() if entry["misleading"])
    frame = evaluation.predictions
    target, owl = demo_run.circuit.target_index, evaluation.class_names.index("owl")
    taken = frame[(frame["true"] == owl) & (frame["predicted"] == target)]
    with serving(workspace.root) as address:
        page.goto(f"{address}/debug?run={demo_run.id}&evaluation={evaluation.id}")

        # a cell of the confusion matrix shows its images; a click on one asks what the model says of it
        page.get_by_role("button", name=f"owl taken for {demo.TARGET}: {len(taken)} of 16").click()
        page.wait_for_url(f"**show={owl}-{target}*")
        pictures = page.get_by_role("listitem")
        expect(pictures).to_have_count(len(taken))

        # a long class name is cut short, how sure the model is of it never
        said = pictures.last.locator(".said")
        said.locator("span").evaluate("name => name.textContent = 'a class of a very long name'")
        edges = [part.evaluate("part => part.getBoundingClientRect().right") for part in (said.locator("b"), said)]
        assert edges[0] <= edges[1]
        assert "%" in said.locator("b").inner_text()

        pictures.first.click()
        answer = page.locator(".st-key-split_debug .nf-name").first
        answer.get_by_text(demo.TARGET).wait_for()
        assert "becomes" not in answer.inner_text()

        # the flagged group is silenced: the answer changes at once, and its control comes after it
        flag = page.locator(".st-key-flag_0")
        assert "random" in flag.inner_text()
        flag.get_by_role("button", name="Silence").click()
        page.locator(".nf-answer", has_text="becomes owl").wait_for()
        page.get_by_text("20 draws").wait_for()
        others = page.get_by_role("checkbox", name="select")
        others.nth(1).click()
        page.locator(".nf-answer", has_text="wrong images come back").wait_for()

        # tried on the whole folder, by a job
        flag.get_by_role("button", name="Preview fix").click()
        page.locator(".st-key-fix .nf-facts").wait_for(timeout=120_000)
        (preview,) = workspace.previews(demo_run.id)
        assert preview["silenced"] == [group]
        assert preview["accuracy"]["after"] > preview["accuracy"]["before"]
        page.locator(".st-key-fix", has_text=f"{len(preview['helped'])} helped").wait_for()

        # a person decides, and the decision is kept
        flag.get_by_role("button", name="Verdict").click()
        page.get_by_role("button", name="spurious", exact=True).click()
        flag.get_by_text("spurious, said me just now").wait_for()
        page.keyboard.press("Escape")

        # everything to hand over is a real file
        quiet(page)  # a run of the page that ends takes the files of the one before with it
        downloads = {}
        for button in ("Fix (zip)", "Ranking (CSV)", "FiftyOne (CSV)", "Report (HTML)"):
            with page.expect_download(timeout=60_000) as download:
                page.locator(".st-key-hand_over").get_by_role("button", name=button).click()
            downloads[button] = Path(download.value.path())
    with zipfile.ZipFile(downloads["Fix (zip)"]) as archive:
        archive.extractall(tmp_path / "fix")
    about, silencers = silencer_file.read(tmp_path / "fix")
    assert about["run"] == demo_run.id
    assert list(silencers) == [group]
    ranking = pd.read_csv(downloads["Ranking (CSV)"])
    assert len(ranking) == len(frame)
    assert ranking["path"][:5].str.contains("marked").all()
    assert pd.read_csv(downloads["FiftyOne (CSV)"])["tags"].str.contains(group, regex=False).any()
    report = downloads["Report (HTML)"].read_text(encoding="utf-8")
    assert report.startswith("<!doctype html>")
    assert "spurious" in report


def test_names_with_markup_stay_text_and_the_graph_cannot_reach_the_app(page, demo_run, analysed_demo, tmp_path):
    workspace = shutil.copytree(analysed_demo.root, tmp_path / "workspace")
    group = demo_run.circuit.inputs("logits/0")[0].source
    store = LabelStore.for_workspace(workspace)
    store.edit(demo_run.id, group, EVIL, "ana", 0)
    store.close()
    with serving(workspace) as address:
        for name in ("circuit", "labels", "debug"):
            page.goto(f"{address}/{name}?run={demo_run.id}&group={group}&image={demo_run.circuit.images[0].path}&silence={group}")
            page.locator(".nf-name, .nf-words", has_text="onerror").first.wait_for()
            if name == "circuit":
                frame = graph_frame(page)
                assert "onerror" in point_at_group(page, group).inner_text()
                (picture,) = frame.evaluate("[...document.querySelectorAll('div.vis-tooltip img')].map(image => image.src)")
                assert picture.startswith("data:image/jpeg;base64,")
                reached = "(() => { try { return parent.document.title } catch (error) { return error.name } })()"
                assert frame.evaluate(reached) == "SecurityError"
            assert page.title() != "owned"


@pytest.mark.parametrize("width", [1440, 900])
def test_the_trust_view_fits_and_the_graph_says_what_seldom_returns(page, width, demo_run, analysed_demo, tmp_path):
    workspace = shutil.copytree(analysed_demo.root, tmp_path / "workspace")
    hand_made.write(hand_made.fidelity_report(demo_run), workspace)
    page.set_viewport_size({"width": width, "height": 1200})
    with serving(workspace) as address:
        page.goto(f"{address}/circuit?run={demo_run.id}")
        frame = graph_frame(page)
        edge = demo_run.circuit.inputs("logits/0")[0]
        assert frame.evaluate("id => nodes.get(id).solid", edge.source) < 1
        assert "returns in 8 of 10 rebuilds" in point_at_group(page, edge.source).inner_text()

        page.get_by_role("tab", name="Trust").click()
        page.get_by_text("This circuit is not to be trusted").wait_for()
        charts = page.locator("[data-testid=stVegaLiteChart]:visible")
        charts.nth(10).locator("canvas, svg").first.wait_for()  # they are drawn one after the other
        assert charts.count() == 11
        for number in range(charts.count()):
            box = charts.nth(number).bounding_box()
            assert box["width"] > 300
            assert box["x"] + box["width"] <= width
        main = page.locator("[data-testid=stMain]")
        assert main.evaluate("main => main.scrollWidth <= main.clientWidth")
        quiet(page)  # a button that is drawn anew while it is pressed hears nothing
        page.get_by_text("All numbers").click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Download CSV").click()
        table = pd.read_csv(download.value.path())
        assert set(table["layer"]) == set(demo_run.circuit.layers[1:])
        assert set(table["of"]) == {"this circuit", "untrained twin"}


def test_the_first_link_to_a_server_just_started_has_the_frame_around_its_page(page, tmp_path):
    with serving(tmp_path / "workspace") as address:
        page.goto(f"{address}/labels")
        page.get_by_role("button", name="Go to Analyze").wait_for()
        assert page.locator("[data-testid=stTopNavLink]").all_inner_texts() == ["Analyze", "Circuit", "Debug", "Labels", "Compare", "Sweep"]


def test_the_graph_is_saved_as_a_picture(page, demo_run, analysed_demo, tmp_path):
    with serving(shutil.copytree(analysed_demo.root, tmp_path / "workspace")) as address:
        page.goto(f"{address}/circuit?run={demo_run.id}")
        graph_frame(page)
        quiet(page)
        for button, start in (("PNG", b"\x89PNG"), ("SVG", b"<?xml"), ("JSON", b"{"), ("HTML", b"<!doctype html>")):
            with page.expect_download() as download:
                page.get_by_role("button", name=button, exact=True).click()
            assert Path(download.value.path()).read_bytes().startswith(start)
            assert download.value.suggested_filename == f"{demo_run.id}.{button.lower()}"
