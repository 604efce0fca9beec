"""Links and history in a real browser: what is on screen is what a copied link opens elsewhere, and what back and forward come back to."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from urllib.parse import parse_qs, urlsplit

import hand_made_sweeps
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browsing import click_group, graph_frame, serving

from neurflow_engine import demo
from neurflow_engine.records import LOGITS
from neurflow_engine.store import Run, Workspace

# what a person sees of a page, without what passes: how long ago something was
SEEN = """() => {
  const main = document.querySelector('[data-testid=stMain]'), found = [main.innerText];
  for (const one of main.querySelectorAll('input, textarea')) found.push(one.type === 'checkbox' ? one.checked : one.value);
  const marks = ['aria-selected', 'aria-checked', 'aria-pressed', 'aria-current', 'aria-valuenow', 'kind'];
  for (const mark of marks) for (const one of main.querySelectorAll(`[${mark}]`)) {
    found.push(`${mark} ${one.getAttribute(mark)} ${one.innerText}`);
  }
  return found.join('\\n');
}"""


OWN = re.compile(r"(kind \w+ )?undo", re.IGNORECASE)  # what a tab can take back is its own, and no part of a link


@pytest.fixture(scope="module")
def served(demo_run, analysed_demo, tmp_path_factory) -> Iterator[tuple[str, Run]]:
    """The demo, and beside its run another one that lacks a group; the address and the run."""
    root = shutil.copytree(analysed_demo.root, tmp_path_factory.mktemp("links") / "workspace")
    other = shutil.copytree(demo_run.folder, root / "runs" / "other-1")
    (other / "manifest.json").write_text(json.dumps(demo_run.manifest | {"run": "other-1", "created": "2026-01-01T00:00:00+00:00"}))
    gone = next(group.id for group in demo_run.circuit.groups[::-1])
    kept = [asdict(group) for group in demo_run.circuit.groups if group.id != gone]
    pq.write_table(pa.Table.from_pylist(kept), other / "groups.parquet")
    edges = [asdict(edge) for edge in demo_run.circuit.edges if gone not in (edge.source, edge.target)]
    pq.write_table(pa.Table.from_pylist(edges), other / "edges.parquet")
    workspace, runs = Workspace(root), {demo.TARGET: (demo_run.id, "no-report")}
    evaluation = workspace.open_evaluation(demo_run.manifest["evaluation"])
    hand_made_sweeps.write(workspace, "by-hand", evaluation, {demo.TARGET: ("layer3/0",)}, runs=runs)
    with serving(root, "--server.fileWatcherType", "none") as address:
        yield address, demo_run


def seen(page) -> str:
    """What is on screen, once nothing changes any more."""
    last, since = "", 0
    for _ in range(200):
        now = page.evaluate(SEEN)
        busy = page.locator("[data-test-script-state=running], [data-testid=stSkeleton]").count()
        since = since + 1 if now == last and not busy else 0
        if since == 4:
            lines = re.sub(r"\d+ \w+ ago|just now", "some time ago", now).splitlines()
            return "\n".join(line for line in lines if line and not OWN.fullmatch(line))
        last = now
        page.wait_for_timeout(250)
    raise AssertionError("the page does not come to rest")


def copied(page) -> str:
    """The link that the button copies."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy link").click()
    page.get_by_text("Copied", exact=True).wait_for()
    return page.evaluate("navigator.clipboard.readText()")


def analyze_view(page, run: Run) -> None:
    """Another class, and one layer less."""
    page.get_by_label("Class", exact=True).click()
    page.get_by_role("option", name="owl").click()
    page.wait_for_url("**target=*")
    page.get_by_role("combobox", name="Layers, deepest first").press("Backspace")
    page.wait_for_url("**layers=*")


def circuit_view(page, run: Run) -> None:
    """A group, clicked in the graph, and fewer lines."""
    group = run.circuit.inputs(f"{LOGITS}/0")[0].source
    click_group(page, group)
    page.locator(".st-key-panel .nf-name", has_text=group).wait_for()
    page.get_by_role("slider").first.press("ArrowRight")
    page.wait_for_url("**weakest=*")


def debug_view(page, run: Run) -> None:
    """The wrong images, one of them, and a group silenced in it."""
    page.get_by_text(re.compile(r"^All wrong \(\d+\)$")).click()
    page.wait_for_url("**show=wrong*")
    seen(page)  # a picture that is drawn anew under the mouse hears no click
    page.get_by_label("Images", exact=True).get_by_role("listitem").nth(1).locator(".pick").click()
    page.wait_for_url("**image=*")
    page.locator("[data-testid=stCheckbox]", has_text="silence").first.locator("label").click(timeout=90_000)
    page.wait_for_url("**silence=*")
    page.get_by_text("20 draws").wait_for(timeout=90_000)


def labels_view(page, run: Run) -> None:
    """The table of one layer's groups, from the earliest on."""
    page.get_by_text("Table", exact=True).click()
    page.get_by_label("Text", exact=True).fill(f"{run.circuit.layers[-1]}/")
    page.get_by_label("Text", exact=True).press("Enter")
    page.wait_for_url("**text=*")
    page.get_by_label("Order", exact=True).click()
    page.get_by_role("option", name="Earliest layers first").click()
    page.wait_for_url("**order=*")


def compare_view(page, run: Run) -> None:
    """The group that only the first of two runs has."""
    page.get_by_role("button", name="other-1").click()
    page.wait_for_url("**with=*")
    seen(page)
    page.get_by_text(re.compile(r"^Only in A \(\d+\)$")).click()
    page.wait_for_url("**kind=*")


def sweep_view(page, run: Run) -> None:
    """The misled classes of some name."""
    page.get_by_text("Misled (1)").click()
    page.wait_for_url("**only=*")
    seen(page)
    page.get_by_label("Find a class").fill(run.circuit.target_name[:4])
    page.get_by_label("Find a class").press("Enter")
    page.wait_for_url("**find=*")


VIEWS = {
    "analyze": (analyze_view, {"run", "target", "layers"}),
    "circuit": (circuit_view, {"run", "group", "weakest"}),
    "debug": (debug_view, {"run", "show", "image", "silence"}),
    "labels": (labels_view, {"run", "view", "text", "order"}),
    "compare": (compare_view, {"run", "with", "kind"}),
    "sweep": (sweep_view, {"run", "only", "find"}),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_copied_link_opens_the_same_view_in_a_fresh_browser(page, browser, served, name):
    address, run = served
    make, expected = VIEWS[name]
    page.goto(f"{address}/{'' if name == 'analyze' else name}?run={run.id}")
    page.locator("h1", has_text=name.capitalize()).wait_for()
    make(page, run)
    before, link = seen(page), copied(page)
    assert link == page.url
    assert parse_qs(urlsplit(link).query).keys() == expected
    fresh = browser.new_context(viewport={"width": 1440, "height": 1200})
    try:
        other = fresh.new_page()
        other.goto(link)
        other.locator("h1", has_text=name.capitalize()).wait_for()
        if name == "circuit":
            assert graph_frame(other).evaluate("network.getSelectedNodes()") == graph_frame(page).evaluate("network.getSelectedNodes()")
        if name == "debug":
            other.get_by_text("20 draws").wait_for(timeout=90_000)
        assert seen(other) == before
        assert other.url == link
    finally:
        fresh.close()


@pytest.mark.slow
def test_back_and_forward_go_through_what_was_seen_one_step_each(page, served):
    address, run = served
    first, second = (edge.source for edge in run.circuit.inputs(f"{LOGITS}/0")[:2])
    links = page.get_by_test_id("stTopNavLink")
    page.goto(f"{address}/circuit?run={run.id}")
    page.get_by_text("Click a group or a line in the graph").wait_for()
    for group in (first, second):
        if group == second:
            page.get_by_label("Find a group").fill(second)
            page.get_by_role("option", name=second).first.click()
        else:
            page.get_by_role("button", name=first).first.click()
        page.locator(".st-key-panel .nf-name", has_text=group).wait_for()
    links.get_by_text("Labels").click()
    page.locator(".st-key-review .nf-name", has_text=second).wait_for()
    page.get_by_text("Table", exact=True).click()
    page.wait_for_url("**view=Table*")
    links.get_by_text("Compare").click()
    page.get_by_text("Compare with …").wait_for()
    steps = [
        (f"labels?run={run.id}&group={second}&view=Table", lambda: page.locator("[data-testid=stDataFrame]").wait_for()),
        (f"labels?run={run.id}&group={second}", lambda: page.locator(".st-key-review .nf-name", has_text=second).wait_for()),
        (f"circuit?run={run.id}&group={second}", lambda: page.locator(".st-key-panel .nf-name", has_text=second).wait_for()),
        (f"circuit?run={run.id}&group={first}", lambda: page.locator(".st-key-panel .nf-name", has_text=first).wait_for()),
        (f"circuit?run={run.id}", lambda: page.get_by_text("Click a group or a line in the graph").wait_for()),
    ]
    for go, over in ((page.go_back, steps), (page.go_forward, steps[-2::-1])):
        for place, arrived in over:
            seen(page)
            go()
            arrived()
            assert page.url.replace("%2F", "/") == f"{address}/{place}"
    seen(page)
    page.go_forward()
    page.get_by_text("Compare with …").wait_for()


@pytest.mark.slow
def test_nothing_chosen_is_lost_on_the_way_through_other_pages(page, served):
    address, run = served
    links = page.get_by_test_id("stTopNavLink")
    page.goto(f"{address}/labels?run={run.id}")
    page.locator("h1", has_text="Labels").wait_for()
    labels_view(page, run)
    before, link = seen(page), page.url
    for name in ("Circuit", "Compare", "Analyze", "Labels"):
        links.get_by_text(name).click()
        page.locator("h1", has_text=name).wait_for()
        page.wait_for_url("**run=*")
    assert seen(page) == before
    assert page.url == link


def test_a_link_to_a_run_that_is_gone_is_one_sentence_and_a_way_on(page, served):
    address, run = served
    page.goto(f"{address}/compare?run={demo.TARGET}-0000000000&group=layer4/0&image=owl/000.png&silence=layer4/0&with=gone")
    alert = page.get_by_test_id("stAlert")
    alert.get_by_text(f"There is no run '{demo.TARGET}-0000000000'").wait_for()
    assert alert.count() == 1
    page.get_by_role("button", name="Open the newest run").click()
    page.wait_for_url(f"**run={run.id}*")
    page.get_by_text(f"There is no run '{demo.TARGET}-0000000000'").wait_for(state="detached")


def test_a_group_of_a_comparison_opens_in_its_own_circuit(page, served):
    address, run = served
    page.goto(f"{address}/compare?run={run.id}&with=other-1")
    page.get_by_role("button", name=re.compile("^B · ")).first.click()
    page.wait_for_url("**/circuit?run=other-1&group=*")
    page.locator(".st-key-panel .nf-name").first.wait_for()


def test_from_an_evaluation_to_all_classes_to_the_pages_of_one(page, served):
    address, run = served
    index = run.circuit.target_index
    page.goto(f"{address}/?run=other-1&evaluation={run.manifest['evaluation']}&target={index}")
    page.get_by_role("button", name="All classes …").click()
    page.wait_for_url(f"**/sweep?**evaluation={run.manifest['evaluation']}*")
    panel = page.locator(".st-key-sweep_class")
    panel.locator(".nf-name", has_text=run.circuit.target_name).wait_for()
    for name, arrived in (("Circuit", "circuit"), ("Labels", "labels"), ("Debug", "debug")):
        panel.get_by_role("button", name=name, exact=True).click()
        page.wait_for_url(f"**/{arrived}?run={run.id}*")
        page.locator("h1", has_text=name).wait_for()
        page.go_back()
        panel.locator(".nf-name").first.wait_for()


def test_a_click_on_a_row_opens_the_class(page, served):
    address, run = served
    page.goto(f"{address}/sweep?run={run.id}")
    grid = page.locator("[data-testid=stDataFrame]").first
    grid.wait_for()
    seen(page)
    box = grid.bounding_box()
    page.mouse.click(box["x"] + 16, box["y"] + 52)  # the box before the first row; the grid is one picture
    page.wait_for_url(f"**target={run.circuit.target_index}*")
    page.locator(".st-key-sweep_class .nf-name", has_text=run.circuit.target_name).wait_for()
    page.get_by_role("button", name="Close", exact=True).click()
    page.locator(".st-key-sweep_class").wait_for(state="detached")
    assert "target=" not in page.url


def test_a_browser_that_copies_nothing_shows_the_link_to_be_copied(page, served):
    address, run = served
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")  # as over http from another machine
    page.goto(f"{address}/circuit?run={run.id}")
    page.get_by_role("button", name="Copy link").click()
    assert page.get_by_label("Address of this view").input_value() == page.url
