"""Names that are markup, scripts, templates, links or formulas stay text: on every page, in the graph and in all that is handed over.

Class names, file names, the model's name, labels, proposals, authors, notes and a job's last words are hostile all at once here.
"""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import hand_made
import hand_made_labels
import hand_made_runs
import hand_made_sweeps
import pytest
from browsing import ROOT, click_group, graph_frame, quiet, serving
from playwright.sync_api import Error as PlaywrightError

from neurflow_engine import demo
from neurflow_engine.config import AnalysisConfig, ModelConfig
from neurflow_engine.jobs import Jobs, JobState
from neurflow_engine.labels import LabelState, LabelStore
from neurflow_engine.misleading import find_misleading
from neurflow_engine.pipeline import analyze
from neurflow_engine.preview import preview
from neurflow_engine.proposals import Outcome, Proposal, ProposalStore, Score
from neurflow_engine.records import LOGITS
from neurflow_engine.store import Workspace
from neurflow_engine.sweep_result import Mark
from neurflow_engine.verdicts import Judgement, VerdictStore

pytestmark = pytest.mark.slow

# What runs sets window.owned or asks for an address with "leak" in it; what a template computes contains 1337.
CLASSES = (  # without slashes: folders and files have these names too
    "<img src=leak1 onerror=window.owned=1>",
    "<svg onload=window.owned=2> href",
    "![x](leak3.png) [y](javascript:window.owned=3)",
    "{{7*191}} ${7*191} #{7*191} {%print(7*191)%}",
    '=HYPERLINK("leak5","y")',
    "<a href=javascript:window.owned=6 onclick=window.owned=6>z",
    "<script>window.owned=7<!-- sail'\"boat",
    "@SUM(7*191) :red[w] :material_delete: $7^7$ `v`",
)
LABELS = (
    "</script><script>window.owned=11</script>",
    '"><img src="leak12.png" onerror="window.owned=12">',
    "![x](http://leak13.example/a.png) [y](javascript:window.owned=13)",
    "{{7*191}} ${7*191} <%= 7*191 %> {{constructor.constructor('window.owned=14')()}}",
    "=cmd|' /C calc'!A0",
    "<a href='https://leak16.example'>href</a> https://leak16.example",
    "<iframe srcdoc='<script>top.owned=17</script>'></iframe>",
    "+7*191",
    "-7*191 <style>@import url(//leak19.example);</style>",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "' onmouseover='window.owned=21' x='",
    "<math><mi//xlink:href='data:x,<script>window.owned=22</script>'>",
    "]]>--><svg/onload=window.owned=23>",
    "\\u003cscript\\u003ewindow.owned=24\\u003c/script\\u003e &lt;img src=leak24 onerror=window.owned=24&gt;",
    ":red[text] :material/bolt: :smile: **bold** $7^7$ ~~x~~",
)
AUTHOR = "<img src=leak31 onerror=window.owned=31>"
MODEL_NAME = "<img src=leak41 onerror=window.owned=41> {{7*191}}"
TARGET = 6

# Everything in a document, its shadow roots included, that could run or ask for something because of a name.
SUSPECTS = """() => {
  const found = [], walk = root => {
    for (const element of root.querySelectorAll('*')) {
      for (const { name, value } of element.attributes) {
        if (/^on/i.test(name)) found.push(`${element.tagName} ${name}=${value}`);
        if (/^(src|href|xlink:href|action|formaction|data|poster|srcset)$/i.test(name) && !/^data:image\\/(png|jpeg);/.test(value)
            && /leak|owned|^ *javascript:/i.test(value))
          found.push(`${element.tagName} ${name}=${value.slice(0, 90)}`);
      }
      if (element.tagName === 'SCRIPT' && /^\\s*window\\.owned/.test(element.textContent)) found.push('SCRIPT');
      if (element.tagName === 'STYLE' && /@import url\\(.*leak/.test(element.textContent)) found.push('STYLE');
      if (element.shadowRoot) walk(element.shadowRoot);
    }
  };
  walk(document);
  if (window.owned !== undefined) found.push(`ran: ${window.owned}`);
  if (/\\b1337\\b/.test(document.body.innerText)) found.push('a template was computed');
  return found;
}"""


def config(root: Path) -> AnalysisConfig:
    return AnalysisConfig(
        model=ModelConfig(name=f"local-dir:{root / MODEL_NAME}"),
        data=root / "data <svg onload=window.owned=51> ${7*191}",
        target=str(TARGET),
        max_images=12,
        top_k=10,
        device="cpu",
    )


def write_hostile_inputs(root: Path) -> AnalysisConfig:
    """The demo's model and pictures under names that are anything but."""
    chosen = config(root)
    model = root / MODEL_NAME
    shutil.copytree(demo.MODEL_FOLDER, model)
    about = json.loads((model / "config.json").read_text())
    about["label_names"] = list(CLASSES)
    (model / "config.json").write_text(json.dumps(about))
    endings = cycle(CLASSES)
    for name, own in zip(demo.CLASSES, CLASSES, strict=True):
        (chosen.data / own).mkdir(parents=True)
        for number in range(6):
            picture, _ = demo.draw(name, number, seed=5, mark=number % 2 == 0)
            picture.save(chosen.data / own / f"{next(endings)} {number}.png", compress_level=1)
    (chosen.data / CLASSES[0] / "<img src=leak61 onerror=window.owned=61>.png").write_bytes(b"no picture")
    return chosen


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[Workspace, str, str]:
    """A workspace in which everything that has a name has a hostile one; the ids of its run and of its debug report."""
    root = tmp_path_factory.mktemp("hostile")
    chosen, workspace = write_hostile_inputs(root), Workspace(root / "workspace")
    run = analyze(chosen, workspace)
    assert run.circuit.target_name == CLASSES[TARGET]
    report = find_misleading(run, chosen.data, workspace, device="cpu", workers=0, draws=20)
    groups = [group.id for group in run.circuit.groups if group.layer != LOGITS]
    preview(run, chosen.data, [next(iter(report.groups))], workspace, report=report, device="cpu", workers=0)
    fidelity = hand_made.fidelity_report(run)
    fidelity["verdict"]["reasons"] = list(LABELS)
    hand_made.write(fidelity, workspace.root)
    name_everything(run, report, workspace, groups)
    jobs = Jobs(workspace.root)
    for title in (LABELS[1], LABELS[2]):  # it fails, and says so in words that hold the class
        job = jobs.start("analyze", title, ["analyze", "--model", chosen.model.name, "--data", str(chosen.data), "--target", LABELS[1]])
    while jobs.get(job.id).active:
        time.sleep(0.2)
    assert jobs.get(job.id).state == JobState.FAILED
    return workspace, run.id, report.id


def name_everything(run, report, workspace: Workspace, groups: list[str]) -> None:
    labels, proposals, verdicts = (store.for_workspace(workspace.root) for store in (LabelStore, ProposalStore, VerdictStore))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for number, (group, text) in enumerate(zip(groups, cycle(LABELS), strict=False)):
        evidence = {"patches": list(run.circuit.group[group].patches[:4]), "model": text, "base_url_host": text}
        evidence |= {"runner_up": LABELS[number % 3]}
        proposals.add(Proposal(run.id, group, text, Outcome.PROPOSED, text, text, text, 0.5, None, evidence, 1, 1, now))
        figures = hand_made_labels.figures(run, group, 0.9, number % 2 == 0) | {"reason": text}
        for baseline in ("shuffled", "runner_up"):
            figures["baselines"][baseline]["text"] = text
        proposals.add_score(Score(run.id, group, text, text, figures, now))
        label = labels.propose(run.id, group, text, text)
        if number % 3 == 0:
            labels.decide(run.id, group, LabelState.APPROVED, AUTHOR, label.version, evidence=evidence)
        elif number % 3 == 1:
            labels.edit(run.id, group, f"{text[:100]} too", AUTHOR, label.version)
    proposals.add(Proposal(run.id, groups[-1], LABELS[0], Outcome.FAILED, None, None, None, None, LABELS[1], {}, 1, 1, now))
    for group in report.groups:
        verdicts.give(run.id, group, Judgement.SPURIOUS, AUTHOR, 0, note=LABELS[2], report_id=report.id)
    for store in (labels, proposals, verdicts):
        store.close()


@pytest.fixture
def watched(browser):
    """A tab that fails at its end where it asked anybody but the app, a name was taken for an address, or a dialogue was opened."""
    context = browser.new_context(viewport={"width": 1440, "height": 1200}, color_scheme="light")
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    asked, complaints = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialogue: (complaints.append(dialogue.message), dialogue.dismiss()))
    yield tab
    context.close()
    assert not [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:", "about:", "file:"))]
    assert not [url for url in asked if "leak" in urlsplit(url).path and not url.startswith("data:")]
    assert not complaints


def nothing_ran(tab) -> None:
    """Neither in the page nor in any frame of it."""
    tab.wait_for_timeout(400)  # what an event handler would need
    for frame in tab.frames:
        allowed = frame.evaluate(SUSPECTS)
        assert not allowed, f"{allowed} in {frame.url}"


def settled(tab) -> None:
    """Once the script of the page has run to its end."""
    quiet(tab)
    tab.wait_for_timeout(200)
    assert tab.get_by_text("Something went wrong that should not have").count() == 0


def hover_all(tab, selector: str, at_most: int = 12) -> None:
    """Point at things, so that their tooltips show; not at what is hidden or being redrawn just now."""
    tab.locator(selector).first.wait_for()
    pointed = 0
    for number in range(min(tab.locator(selector).count(), at_most)):
        with suppress(PlaywrightError):
            tab.locator(selector).nth(number).hover(force=True, timeout=2000)
            pointed += 1
            tab.wait_for_timeout(60)
    assert pointed


def open_lists(tab) -> None:
    """Open every list to choose from, and see that nothing runs."""
    for name in tab.get_by_role("combobox").all():
        if name.is_visible():
            name.click()
            tab.wait_for_timeout(200)
            nothing_ran(tab)
            tab.keyboard.press("Escape")


def shows(tab, text: str) -> bool:
    """Whether the text stands on the page as it is."""
    return text in tab.evaluate("() => document.body.innerText")


def test_the_analyze_page(watched, hostile):
    workspace, _, _ = hostile
    evaluation = workspace.evaluations()[0]
    with serving(workspace.root) as address:
        watched.goto(f"{address}/?evaluation={evaluation.id}")
        watched.get_by_text("Earlier runs").wait_for()
        settled(watched)
        assert shows(watched, CLASSES[TARGET])
        nothing_ran(watched)
        watched.locator("[data-testid=stVegaLiteChart] .mark-rect path").first.hover(force=True)
        watched.locator("#vg-tooltip-element.visible", has_text="onerror").wait_for()
        nothing_ran(watched)
        for expander in watched.locator("[data-testid=stExpander] summary").all():
            expander.click()
        settled(watched)
        hover_all(watched, "button:visible", 30)
        nothing_ran(watched)


def test_the_circuit_page_and_its_graph(watched, hostile):
    workspace, run_id, _ = hostile
    run = workspace.open_run(run_id)
    group = run.circuit.inputs(f"{LOGITS}/0")[0].source
    with serving(workspace.root) as address:
        watched.goto(f"{address}/circuit?run={run_id}")
        frame = graph_frame(watched)
        assert shows(watched, CLASSES[TARGET])
        nothing_ran(watched)
        for node in frame.evaluate("nodes.getIds().filter(id => !String(id).startsWith('row:'))"):  # every tooltip, as vis.js shows it
            frame.evaluate("id => { const tip = nodes.get(id).title; document.body.append(tip); }", node)
        nothing_ran(watched)
        click_group(watched, group)
        watched.locator(".st-key-panel .nf-name").wait_for()
        settled(watched)
        hover_all(watched, ".st-key-panel .nf-tile, .st-key-panel button")
        nothing_ran(watched)
        edge = run.circuit.inputs(f"{LOGITS}/0")[0]
        watched.goto(f"{address}/circuit?run={run_id}&edge={quote(f'{edge.source}>{edge.target}')}")
        watched.get_by_text("Raw weight").wait_for()
        settled(watched)
        nothing_ran(watched)
        watched.get_by_role("combobox").last.click()
        watched.get_by_role("option").first.wait_for()
        nothing_ran(watched)
        watched.keyboard.press("Escape")
        for tab in ("Trust", "Images by logit"):
            watched.get_by_role("tab", name=tab).click()
            settled(watched)
            hover_all(watched, "[data-testid=stVegaLiteChart]:visible path, .nf-grid img:visible")
            nothing_ran(watched)
        assert shows(watched, CLASSES[run.circuit.images[0].true])


def test_the_debug_page(watched, hostile):
    workspace, run_id, report_id = hostile
    run, evaluation = workspace.open_run(run_id), workspace.evaluations()[0]
    report = workspace.open_debug_report(report_id)
    group = next(iter(report.groups))
    with serving(workspace.root) as address:
        watched.goto(f"{address}/debug?run={run_id}&evaluation={evaluation.id}")
        settled(watched)
        nothing_ran(watched)
        path = next(image["path"] for image in report.json["images"] if image["true"] != image["predicted"])
        watched.goto(f"{address}/debug?run={run_id}&evaluation={evaluation.id}&image={quote(path)}&silence={quote(group)}")
        watched.locator(".st-key-split_debug .nf-name").first.wait_for()
        settled(watched)
        assert shows(watched, CLASSES[TARGET])
        nothing_ran(watched)
        hover_all(watched, ".nf-tile:visible, [role=listitem]:visible, [data-testid=stVegaLiteChart]:visible path")
        for view in ("Blame path", "Right images alike", "Groups in this image", "All wrong (", "Right ("):
            watched.locator("[data-testid=stButtonGroup] button", has_text=view).first.click()  # a page that is being redrawn may hold two
            settled(watched)
            nothing_ran(watched)
        for popover in watched.locator("[data-testid=stPopover] button:visible").all()[:2]:
            popover.click()
            settled(watched)
            nothing_ran(watched)
            watched.keyboard.press("Escape")
        open_lists(watched)
        watched.goto(f"{address}/debug?run={run_id}&evaluation={evaluation.id}&fix={quote(group)}")
        settled(watched)
        nothing_ran(watched)
        own = {"name": f"{CLASSES[0]}.png", "mimeType": "image/png", "buffer": run.image_thumbnail(0).read_bytes()}
        watched.locator("[data-testid=stFileUploaderDropzoneInput]").first.set_input_files(own)
        settled(watched)
        nothing_ran(watched)


def test_the_labels_page(watched, hostile):
    workspace, run_id, _ = hostile
    run = workspace.open_run(run_id)
    groups = [group.id for group in run.circuit.groups if group.layer != LOGITS]
    with serving(workspace.root) as address:
        for number, group in enumerate(groups[: len(LABELS)]):
            watched.goto(f"{address}/labels?run={run_id}&group={quote(group)}")
            watched.locator(".st-key-review .nf-name").first.wait_for()
            settled(watched)
            assert shows(watched, LABELS[number][:100])
            nothing_ran(watched)
        hover_all(watched, ".st-key-review .nf-tile, .nf-map i, .st-key-review button")
        nothing_ran(watched)
        for view in ("Table", "Proposals", "Files"):
            watched.locator("[data-testid=stButtonGroup] button", has_text=view).first.click()  # a page that is being redrawn may hold two
            settled(watched)
            nothing_ran(watched)
        content = io.StringIO()
        rows = [(run_id, group, text, text) for group, text in zip(groups, LABELS, strict=False)]  # a state is none of these
        csv.writer(content).writerows([("run_id", "group_id", "state", "text"), *rows])
        given = {"name": f"{CLASSES[0]}.csv", "mimeType": "text/csv", "buffer": content.getvalue().encode()}
        watched.locator("[data-testid=stFileUploaderDropzoneInput]").set_input_files(given)
        watched.get_by_text("left out").wait_for()
        settled(watched)
        assert shows(watched, LABELS[0])  # the reason why a row is left out names what stands in it
        nothing_ran(watched)


@pytest.fixture
def alike(tmp_path) -> Workspace:
    """Two runs by hand, whose images and groups have hostile names, and jobs that failed with hostile titles."""
    workspace = Workspace(tmp_path / "workspace")
    images = tuple(f"{text.replace('/', ':')}/{number}.png" for number, text in enumerate(LABELS))
    groups = {"layer2": [[0, 1, 2], [10, 11]], "layer1": [[5, 6, 7], [15, 16], [20, 21]]}
    labels = LabelStore.for_workspace(workspace.root)
    for name, weights in (("one", "a" * 64), ("two", "b" * 64)):
        run = hand_made_runs.write(workspace, name, groups, {("layer1/0", "layer2/0"): 0.5}, images, weights)
        for text, group in zip(LABELS, run.circuit.groups[1:], strict=False):
            labels.edit(name, group.id, text, AUTHOR, 0)
    labels.close()
    jobs = Jobs(workspace.root)
    for text in LABELS[:3]:
        job = jobs.start("analyze", text, ["analyze", "--model", text, "--data", text, "--target", text])
        while jobs.get(job.id).active:
            time.sleep(0.1)
    return workspace


def test_the_compare_page_and_the_jobs_beside_it(watched, alike):
    with serving(alike.root) as address:
        for part in ("Groups", "Weights", "Trust", "Accuracy"):
            watched.goto(f"{address}/compare?run=one&with=two&part={part}")
            watched.get_by_text("What do two runs have in common").wait_for()
            settled(watched)
            nothing_ran(watched)
        watched.goto(f"{address}/compare?run=one&with=two&part=Groups")
        settled(watched)
        hover_all(watched, ".nf-tile:visible")  # the other parts are tables
        nothing_ran(watched)
        assert shows(watched, LABELS[0])
        for log in watched.get_by_role("button", name="Log").all():
            log.click()
            settled(watched)
            nothing_ran(watched)
            watched.keyboard.press("Escape")
        open_lists(watched)


def test_the_sweep_page(watched, tmp_path):
    workspace = Workspace(tmp_path / "workspace")
    for name, known in (("one", True), ("two", False)):
        of = hand_made_sweeps.evaluation(workspace, f"of-{name}", LABELS, {(LABELS[1], LABELS[0]): 30}, 40, known, root=LABELS[2])
        flags, failed = {LABELS[0]: ("layer1/0",)}, dict(zip(LABELS[2:5], LABELS[5:8], strict=True))
        marks = [Mark(tuple((label, "layer1/0") for label in LABELS[:7]), "direction", 0.9)]
        hand_made_sweeps.write(workspace, name, of, flags, failed, marks=marks)
    with serving(workspace.root) as address:
        for name in ("one", "two"):
            for target in (0, 2):
                watched.goto(f"{address}/sweep?sweep={name}&target={target}&only=failed&find={quote(LABELS[2][:6])}")
                watched.get_by_text("Which classes of this model").wait_for()
                settled(watched)
                nothing_ran(watched)
                assert shows(watched, LABELS[target])
        watched.get_by_text("Start another sweep").click()
        watched.get_by_text("Chosen ones").click()
        settled(watched)
        open_lists(watched)


@pytest.mark.parametrize("name", [name for name in (*CLASSES, *LABELS) if re.search("<(img|svg|script|a|iframe|style|math)", name)])
def test_each_name_does_harm_where_it_is_taken_for_markup(browser, name):
    """What the other tests look for is found: here a name is written into a page as it should never be."""
    tab = browser.new_page()
    tab.goto("data:text/html,<p>")
    tab.evaluate("name => { document.open(); document.write(`<body>${name.replace(/^\\S*?>(?=<)/, '')}`); document.close(); }", name)
    tab.wait_for_timeout(200)
    assert tab.evaluate(SUSPECTS)
    tab.close()


def test_what_the_address_says_is_shown_as_text(watched, hostile):
    workspace, run_id, _ = hostile
    with serving(workspace.root) as address:
        for name in ("", "circuit", "debug", "labels"):
            for evil in (LABELS[1], LABELS[2], LABELS[3]):
                keys = ("group", "edge", "route", "image", "images", "silence", "evaluation", "fix", "show", "report", "folder")
                words = "&".join(f"{key}={quote(evil)}" for key in keys)
                watched.goto(f"{address}/{name}?run={run_id}&{words}")
                settled(watched)
                nothing_ran(watched)
        watched.goto(f"{address}/circuit?run={quote(LABELS[1])}")
        settled(watched)
        nothing_ran(watched)


def opened_alone(tab, path: Path) -> None:
    """A file that was handed over, opened by the person who got it."""
    tab.goto(path.as_uri())
    tab.wait_for_timeout(500)
    nothing_ran(tab)


def formulas(content: bytes) -> list[str]:
    """Cells of a CSV file that a spreadsheet would compute."""
    cells = [cell for row in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")) for cell in row]
    return [cell for cell in cells if re.match(r"[=+\-@\t\r\n＝＋－＠]", cell) and not re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", cell)]


def exported(arguments: list[str], out: Path, workspace: Workspace) -> Path:
    """What the command line writes."""
    command = [sys.executable, "-m", "neurflow_engine", *arguments, "--out", str(out), "--workspace", str(workspace.root)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return out


@pytest.mark.parametrize("format", ["html", "circuit-html"])
def test_reports_that_are_handed_over(watched, hostile, tmp_path, format):
    workspace, run_id, _ = hostile
    path = exported(["export", run_id, "--format", format, "--device", "cpu"], tmp_path / "report.html", workspace)
    opened_alone(watched, path)
    text = watched.evaluate("() => document.body.innerText")
    assert CLASSES[TARGET] in text
    assert LABELS[0] in text


def test_the_graph_as_a_picture(watched, hostile, tmp_path):
    workspace, run_id, _ = hostile
    with serving(workspace.root) as address:
        watched.goto(f"{address}/circuit?run={run_id}")
        graph_frame(watched)
        with watched.expect_download() as download:
            watched.get_by_role("button", name="SVG", exact=True).click()
        path = Path(shutil.copy(download.value.path(), tmp_path / "graph.svg"))
    picture = ElementTree.parse(path)
    names = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert any(LABELS[0] in name for name in names)
    assert {element.tag.rpartition("}")[2] for element in picture.iter()} <= {"svg", "rect", "path", "title", "image", "text"}
    assert all(value.startswith("data:image/jpeg") for element in picture.iter() for key, value in element.items() if key.endswith("href"))
    watched.goto(path.as_uri())
    assert watched.evaluate("() => window.owned === undefined")


@pytest.mark.parametrize("format", ["csv", "ranking-csv", "fiftyone", "labels"])
def test_tables_that_are_handed_over_hold_no_formula(hostile, tmp_path, format):
    workspace, run_id, report_id = hostile
    group = next(iter(workspace.open_debug_report(report_id).groups))
    arguments = {
        "labels": ["labels", "export", run_id, "--format", "csv"],
        "csv": ["export", run_id, "--format", "csv"],
    }.get(format, ["export", run_id, "--format", format, "--groups", group])
    content = exported(arguments, tmp_path / "table.csv", workspace).read_bytes()
    assert b"7*191" in content  # the hostile names are in it
    assert formulas(content) == []
