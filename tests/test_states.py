"""Every page in every state: nothing there yet, the demo, jobs that failed, a run as large as they get; in both themes and two widths.

With ``NEURFLOW_SCREENSHOTS=FOLDER`` each is also saved as a picture, to be looked at.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlencode

import hand_made
import hand_made_debug
import hand_made_labels
import hand_made_sweeps
import huge
import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import ROOT, graph_frame, quiet, serving

from neurflow_engine.jobs import Jobs, JobState
from neurflow_engine.records import LOGITS
from neurflow_engine.store import Workspace
from neurflow_engine.sweep_result import Mark
from pages.ui import glossary

pytestmark = pytest.mark.slow

PAGES = sorted(path.stem for path in (ROOT / "pages").glob("*.py"))
THEMES, WIDTHS = ("light", "dark"), (1440, 900)
# of every page: what its views are called, and their addresses without the run
VIEWS = {
    "analyze": {"": {}},
    "circuit": {"": {}, "group": {"group": "GROUP"}, "trust": {"tab": "Trust"}, "images": {"tab": "Images by logit"}},
    "debug": {"": {}, "image": {"image": "IMAGE", "silence": "GROUP"}, "several": {"silence": "GROUP"}},
    "labels": {"": {}, "table": {"view": "Table"}, "proposals": {"view": "Proposals"}, "files": {"view": "Files"}},
    "compare": {"": {"with": "OTHER"}},
    "sweep": {"": {}, "class": {"target": "TARGET"}},
}
CASES = [
    (state, page, view)
    for state in ("empty", "demo", "failed", "huge")
    for page in PAGES
    for view in (VIEWS[page] if state == "demo" else [""])
]
# Streamlit's own: its file field is an unnamed section inside a named one
AXE = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"],
    "rules": {"presentation-role-conflict": {"enabled": False}},
}
# a link to a page asks for these two beside it first, and then finds them at the root
EXPECTED_404 = re.compile(r"/_stcore/(health|host-config)$")


def demo_state(run, images: Path, source: Workspace, root: Path) -> dict[str, str]:
    """The analysed demo, debugged, checked and partly named; returns what stands for the capitals in the addresses."""
    workspace = Workspace(shutil.copytree(source.root, root))
    report = hand_made_debug.report(run, images, workspace)
    hand_made.write(hand_made.fidelity_report(run), root)
    hand_made_labels.write(run, root)
    wrong = next(image["path"] for image in report.json["images"] if image["predicted"] == run.circuit.target_name != image["true"])
    evaluation, target = workspace.open_evaluation(run.manifest["evaluation"]), run.circuit.target_name
    other = next(name for name in evaluation.class_names if name != target)
    mark = Mark(((target, hand_made_debug.CONTRAST), (other, "layer1/contrast-1")), "presence", 0.8)
    failed, runs = {other: "The disk is full; free some of it."}, {target: (run.id, report.id)}
    flags = {target: (hand_made_debug.CONTRAST,)}
    hand_made_sweeps.write(workspace, "by-hand", evaluation, flags, failed, runs=runs, marks=[mark])
    about = {"run": run.id, "evaluation": evaluation.id, "TARGET": str(run.circuit.target_index)}
    return about | {"IMAGE": wrong, "GROUP": hand_made_debug.CIRCUIT}


def failed_state(run, source: Workspace, root: Path) -> dict[str, str]:
    """Jobs of several kinds that could not do what they were asked."""
    shutil.copytree(source.root, root)
    jobs = Jobs(root)
    started = [
        jobs.start("analyze", "Analyse no class", ["analyze", "--model", "resnet10t", "--data", "/does/not/exist", "--target", "x"]),
        jobs.start("fidelity", "Check no run", ["fidelity", run.id, "--draws", "-1"]),
        jobs.start("sweep", "Sweep nothing", ["sweep", "--model", "resnet10t", "--data", "/does/not/exist"]),
        jobs.start("label", "Labels for no group", ["label", run.id, "--groups", "layer99/1", "--workspace", str(root)]),
        jobs.start("debug", "Misleading groups of nothing", ["debug", run.id, "--images", "/does/not/exist", "--workspace", str(root)]),
    ]
    until = time.monotonic() + 120
    while any(jobs.get(job.id).active for job in started):
        assert time.monotonic() < until
        time.sleep(0.2)
    assert {jobs.get(job.id).state for job in started} == {JobState.FAILED}
    return {"run": run.id, "job": started[0].id}


def huge_state(root: Path) -> dict[str, str]:
    workspace = Workspace(root)
    run = huge.write(workspace)
    evaluation = workspace.evaluations()[0]
    frame = evaluation.predictions
    image = frame["path"][frame["predicted"] == run.circuit.target_index].iloc[0]
    group, other = run.circuit.inputs(f"{LOGITS}/0")[0].source, huge.write(workspace, seed=1)
    return {"run": run.id, "evaluation": evaluation.id, "IMAGE": image, "GROUP": group, "OTHER": other.id}


@pytest.fixture(scope="module")
def states(request, tmp_path_factory) -> Iterator:
    """A function from a state's name to the address of a server in this state, and what its links hold; servers are started once."""
    started: dict[str, tuple[str, dict[str, str]]] = {}
    with ExitStack() as servers:

        def state(name: str) -> tuple[str, dict[str, str]]:
            if name not in started:
                root = tmp_path_factory.mktemp(name) / "workspace"
                wanted = request.getfixturevalue
                makers = {
                    "empty": lambda: {},
                    "demo": lambda: demo_state(wanted("demo_run"), wanted("demo_images"), wanted("analysed_demo"), root),
                    "failed": lambda: failed_state(wanted("demo_run"), wanted("analysed_demo"), root),
                    "huge": lambda: huge_state(root),
                }
                known = makers[name]()
                started[name] = servers.enter_context(serving(root)), known
            return started[name]

        yield state


@pytest.fixture(params=THEMES)
def tab(request, browser):
    """A tab in one of the themes; at its end nobody but the app was asked, and nothing was complained about."""
    context = browser.new_context(viewport={"width": WIDTHS[0], "height": 1000}, color_scheme=request.param)
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    asked, complaints = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "console",
        lambda said: complaints.append(said.text) if said.type == "error" and not EXPECTED_404.search(said.location["url"]) else None,
    )
    yield opened
    context.close()
    assert not [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:", "about:"))]
    assert not complaints


def settled(tab) -> None:
    """Once everything is drawn, and the model was asked what it says."""
    quiet(tab)
    tab.wait_for_timeout(500)  # a page that finds something to follow runs once more
    quiet(tab)
    if tab.locator("iframe[title='Circuit graph']:visible").count():
        graph_frame(tab)


def saved(tab, name: str) -> None:
    """The whole page as a picture, where that was asked for."""
    if folder := os.environ.get("NEURFLOW_SCREENSHOTS"):
        size = tab.viewport_size
        height = tab.locator("[data-testid=stMain]").evaluate("main => main.scrollHeight")
        tab.set_viewport_size({**size, "height": min(max(height, size["height"]), 4000)})
        tab.wait_for_timeout(800)
        tab.screenshot(path=Path(folder) / f"{name}.png")
        tab.set_viewport_size(size)


def is_as_wide_as_its_window(tab) -> bool:
    return tab.evaluate(
        """() => [document.scrollingElement, document.querySelector('[data-testid=stMain]'),
                  document.querySelector('[data-testid=stSidebarContent]')]
                 .every(part => !part || part.scrollWidth <= part.clientWidth + 1)"""
    )


def barriers(tab) -> list[str]:
    """What keeps people who see or hear the page in another way from using it, as axe finds it."""
    found = Axe().run(tab, options=AXE).response["violations"]
    return [f"{one['id']}: {json.dumps([node['html'][:200] for node in one['nodes'][:3]])}" for one in found]


@pytest.mark.parametrize(("state", "page", "view"), CASES)
def test_a_page_in_a_state(tab, states, state, page, view):
    address, known = states(state)
    parameters = {name: known.get(value, value) for name, value in VIEWS[page][view].items() if value != "OTHER" or value in known}
    parameters = parameters if known else {}
    parameters |= {name: value for name, value in known.items() if name.islower() and (name != "job" or page == "analyze")}
    tab.goto(f"{address}/{'' if page == 'analyze' else page}?{urlencode(parameters)}")
    tab.get_by_role("heading", level=1).wait_for()
    settled(tab)
    assert tab.get_by_text("Something went wrong that should not have").count() == 0
    theme = tab.evaluate("() => matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'")
    for width in WIDTHS:
        tab.set_viewport_size({"width": width, "height": 1000})
        tab.wait_for_timeout(400)
        saved(tab, f"{state}-{page}{'-' if view else ''}{view}-{theme}-{width}")
        assert is_as_wide_as_its_window(tab)
    assert not barriers(tab)


def test_the_words_are_one_click_away_and_gone_with_a_key(tab, states):
    address, _ = states("empty")
    for page in PAGES:
        tab.goto(f"{address}/{'' if page == 'analyze' else page}")
        button = tab.get_by_role("button", name="Words")
        button.focus()
        tab.keyboard.press("Enter")
        words = tab.get_by_role("dialog")
        for part in glossary.WORDS.values():
            for word, meaning in part.items():
                words.get_by_text(word, exact=True).wait_for()
                assert meaning in words.inner_text()
        assert not barriers(tab)
        tab.keyboard.press("Escape")
        words.wait_for(state="detached")
