"""The graph in a real browser: what a click lights, where the keys lead, what the mouse shows, and edits by hand."""

import io
import re
import shutil
from pathlib import Path

import pytest
from browsing import click_group, graph_frame, point_at_group, serving
from PIL import Image

from neurflow_engine.edits import EditStore
from neurflow_engine.store import Workspace

pytestmark = pytest.mark.browser


@pytest.fixture
def own_workspace(demo_run, tmp_path) -> Workspace:
    """One that holds the demo's run alone."""
    workspace = Workspace(tmp_path / "workspace")
    shutil.copytree(demo_run.folder, workspace.run_folder(demo_run.id))
    return workspace


def cascade(edges: list[tuple[str, str]], group: str) -> set[tuple[str, str]]:
    """The edges on ways that lead to a group or from it."""
    found = set()
    for start, end in ((0, 1), (1, 0)):
        reached = {group}
        while True:
            lines = {edge for edge in edges if edge[start] in reached}
            if {edge[end] for edge in lines} <= reached:
                break
            reached |= {edge[end] for edge in lines}
        found |= lines
    return found


LIT = """() => edges.get().filter(edge => edge.color.opacity > 0.11 * base[edge.id]).map(edge => [edge.from, edge.to])"""


def lit(frame) -> set[tuple[str, str]]:
    """The edges that are not faded."""
    return {tuple(edge) for edge in frame.evaluate(LIT)}


def test_a_click_lights_the_cascade_and_the_keys_lead_on(page, demo_run, own_workspace):
    with serving(own_workspace.root) as address:
        page.goto(f"{address}/circuit?run={demo_run.id}")
        frame = graph_frame(page)
        frame.evaluate("window.base = Object.fromEntries(edges.get().map(edge => [edge.id, edge.color.opacity]))")
        drawn = [tuple(edge) for edge in frame.evaluate("edges.get().map(edge => [edge.from, edge.to])")]
        assert lit(frame) == set(drawn)
        group = next(
            group for group in (edge[0] for edge in drawn) if 0 < len(cascade(drawn, group)) < len(drawn) - 3 and group[-2:] == "/0"
        )
        click_group(page, group)
        assert lit(frame) == cascade(drawn, group)
        page.locator(".st-key-panel .nf-name", has_text=group).wait_for()

        # upwards along the strongest line, to the side, and away
        strongest = frame.evaluate(
            "id => edges.get().filter(edge => edge.from === id).sort((a, b) => b.strength - a.strength)[0].to", group
        )
        page.keyboard.press("ArrowUp")
        page.wait_for_url(f"**group={strongest.replace('/', '%2F')}*")
        assert lit(frame) == cascade(drawn, strongest)
        page.locator(".st-key-panel .nf-name").first.wait_for()
        assert frame.evaluate("network.getSelectedNodes()") == [strongest]
        page.keyboard.press("Escape")
        page.get_by_text("Click a group or a line in the graph").wait_for()
        assert lit(frame) == set(drawn)

        # a button beside the graph lights it as well
        page.locator(".st-key-panel [data-testid=stButton] button").first.click()
        page.wait_for_url("**group=*")
        frame.wait_for_function("() => network.getSelectedNodes().length === 1")
        assert lit(frame) == cascade(drawn, frame.evaluate("network.getSelectedNodes()[0]"))


def test_pointing_at_a_group_shows_its_patches_and_the_picture_holds_all_of_the_graph(page, demo_run, own_workspace):
    with serving(own_workspace.root) as address:
        page.goto(f"{address}/circuit?run={demo_run.id}")
        frame = graph_frame(page)
        group = demo_run.circuit.inputs("logits/0")[0].source
        assert group in point_at_group(page, group).inner_text()
        assert frame.evaluate("document.querySelector('div.vis-tooltip img').naturalWidth") == 4 * 64

        # zoomed in, the picture is still of all of it, and the view stays
        frame.evaluate("network.moveTo({ scale: 2, animation: false })")
        with page.expect_download() as download:
            page.get_by_role("button", name="PNG", exact=True).click()
        picture = Image.open(io.BytesIO(Path(download.value.path()).read_bytes())).convert("L")
        extent = frame.evaluate("Math.max(...nodes.get().map(node => node.x)) - Math.min(...nodes.get().map(node => node.x))")
        assert picture.width > extent
        assert frame.evaluate("network.getScale()") == pytest.approx(2, rel=1e-3)
        assert sum(count > 0 for count in picture.histogram()) > 100  # something was drawn


def test_groups_are_merged_and_split_by_hand_and_it_is_undone(page, demo_run, own_workspace):
    first, second = (group.id for group in demo_run.circuit.groups_of(demo_run.circuit.layers[2])[:2])
    store = EditStore.for_workspace(own_workspace.root)
    with serving(own_workspace.root) as address:
        page.goto(f"{address}/circuit?run={demo_run.id}&group={first}")
        graph_frame(page)
        page.get_by_role("button", name="Merge …").click()
        page.get_by_role("dialog").locator("label", has_text=re.compile(f"^Merge with {second}$")).click()
        page.get_by_role("dialog").get_by_role("button", name="Merge 2 groups").click()
        page.get_by_role("dialog").wait_for(state="detached")
        (made,) = store.of(demo_run.id).made
        page.locator(".st-key-panel .nf-name", has_text=made).wait_for()
        assert graph_frame(page).evaluate("id => nodes.get(id) !== null", made)

        page.get_by_role("button", name="Split …").last.click()  # drawn twice for a moment while the panel changes
        page.get_by_role("dialog").get_by_role("button", name="Split into").click()
        page.get_by_role("dialog").wait_for(state="detached")
        for version in (2, 3, 4):
            for _ in range(100):
                if store.of(demo_run.id).version == version:
                    break
                page.wait_for_timeout(100)
            page.wait_for_timeout(500)  # until the page shows it
            if version < 4:
                page.get_by_role("button", name="Undo").click()
        page.get_by_text("Edited by hand").wait_for(state="detached")
        assert graph_frame(page).evaluate("id => nodes.get(id) !== null", first)
    assert store.of(demo_run.id).made == {}
    assert [change.action for change in store.history(demo_run.id)] == ["merged", "split", "undone", "undone"]
    store.close()
