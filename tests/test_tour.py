"""The tour of the demo."""

import shutil

import pytest
from browsing import serving
from test_pages import in_address, opened, run, written  # noqa: F401

from pages.ui import cached, tour


def test_without_the_demo_there_is_no_tour(workspace):
    app = opened("analyze", tour="2")
    assert "Tour" not in written(app)
    assert not [button for button in app.button if button.key.startswith("tour")]


def test_the_tour_is_gone_once_it_is_ended(run):  # noqa: F811
    app = opened("circuit", run=run.id, tour="2")
    assert tour.STEPS[1].title in written(app)
    app.button(key="tour_end").click().run()
    assert in_address(app, "tour") is None
    assert "Tour, step" not in written(app)
    app.switch_page("pages/labels.py").run()
    assert in_address(app, "tour") is None


def test_a_step_is_done_once_what_it_asks_for_is_there(run):  # noqa: F811
    group = run.circuit.inputs("logits/0")[0].source
    assert "done" not in written(opened("circuit", run=run.id, tour="2"))
    assert "✓ done" in written(opened("circuit", run=run.id, tour="2", group=group))
    assert "done" not in written(opened("labels", run=run.id, tour="5"))
    cached.labels().edit(run.id, group, "white star", "ana", 0)
    assert "✓ done" in written(opened("labels", run=run.id, tour="5"))


@pytest.mark.parametrize("number", ["0", "6", "-1", "x", "٣", "1,2"])
def test_a_step_that_there_is_not_is_passed_over(run, number):  # noqa: F811
    assert "Tour, step" not in written(opened("circuit", run=run.id, tour=number))


def test_the_tour_leads_through_the_pages(page, demo_run, analysed_demo, tmp_path):
    with serving(shutil.copytree(analysed_demo.root, tmp_path / "workspace")) as address:
        page.goto(f"{address}/labels?run={demo_run.id}")
        page.get_by_role("button", name="Tour").click()
        for number, step in enumerate(tour.STEPS, 1):
            page.get_by_role("heading", name=step.title).wait_for()
            assert f"tour={number}" in page.url
            assert f"run={demo_run.id}" in page.url
            page.get_by_role("heading", name=step.page.capitalize(), level=1).wait_for()
            if number < len(tour.STEPS):
                page.get_by_role("button", name="Next step").click()
        page.get_by_role("link", name="Circuit").click()  # whoever leaves the way finds back to it
        page.get_by_role("button", name="Go there").click()
        page.get_by_role("heading", name="Labels", level=1).wait_for()
