"""How long people wait for the app, in a real browser, on runs of 30, 100 and 300 groups with 2,000 images.

Cold start to the first page, page switches, the graph's drawing, a click to its panel, and silencing a group to the new top 5. From the
repository: ``python -m benchmarks.pages [--workspace DIR] [--repeats 5]``; a workspace that is given is kept, and used again. Prints one
Markdown table: the median of the repeats in seconds, the slowest of them, and what is aimed at.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from playwright.sync_api import Frame, Locator, Page, sync_playwright

from benchmarks.measuring import ROOT, table
from neurflow_engine.store import Run, Workspace
from tests import huge

SIZES = (30, 100, 300)
IMAGES = 2000
PAGES = ("Circuit", "Debug", "Labels", "Analyze")
GRAPH = "iframe[title='Circuit graph']"
PATIENCE = 120_000  # milliseconds

Row = tuple[str, str, float, float, str]


@contextmanager
def server(workspace: Path) -> Iterator[str]:
    """The app on a free port; yields its address at once, before it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    environment = os.environ | {"NEURFLOW_WORKSPACE": str(workspace)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def seconds(act: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def first_page(page: Page, address: str) -> None:
    """Open the app as soon as it answers, and wait for its first page."""
    while True:
        try:
            page.goto(address)
            break
        except Exception:  # nobody listens yet
            time.sleep(0.05)
    page.locator("h1", has_text="Analyze").wait_for(timeout=PATIENCE)


def switch(page: Page, name: str) -> None:
    """Follow a link of the navigation until the page is there and quiet."""
    page.get_by_test_id("stTopNavLink").filter(has_text=name).click()
    page.locator("h1", has_text=name).wait_for(timeout=PATIENCE)
    quiet(page)


def quiet(page: Page) -> None:
    """Wait until the page has nothing left to do."""
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for(timeout=PATIENCE)


def graph(page: Page) -> Frame:
    """The frame of the graph, once all of it is drawn."""
    page.wait_for_selector(GRAPH, timeout=PATIENCE)
    while True:
        frame = next((frame for frame in page.frames if frame.url == "about:srcdoc"), None)
        if frame and frame.evaluate("document.documentElement.dataset.drawn === 'yes'"):
            return frame
        page.wait_for_timeout(10)


def click(page: Page, frame: Frame, group: str) -> None:
    """Click a group until its panel is there."""
    place = frame.evaluate("id => network.canvasToDOM(network.getPosition(id))", group)
    box = page.locator(GRAPH).bounding_box()
    page.mouse.click(box["x"] + place["x"], box["y"] + place["y"])
    page.locator(".st-key-panel h2", has_text=group).wait_for(timeout=PATIENCE)


def row(what: str, on: str, times: Sequence[float], aim: str) -> Row:
    return what, on, round(median(times), 2), round(max(times), 2), aim


def of_start(page: Page, workspace: Path, repeats: int) -> list[Row]:
    """A server that was not running, to its first page."""
    times = []
    for _ in range(repeats):
        with server(workspace) as address:
            times.append(seconds(lambda address=address: first_page(page, address)))
    return [row("cold start to first page", "", times, "< 3")]


def of_switches(page: Page, address: str, run: Run, repeats: int) -> list[Row]:
    """From page to page, each seen once before."""
    page.goto(f"{address}/circuit?run={run.id}")
    graph(page)
    for name in PAGES:
        switch(page, name)
    times = {name: [] for name in PAGES}
    for _ in range(repeats):
        for name in PAGES:
            times[name].append(seconds(lambda name=name: switch(page, name)))
    return [row(f"warm switch to {name}", f"{len(run.circuit.groups)} groups", found, "< 0.7") for name, found in times.items()]


def of_graph(page: Page, address: str, run: Run, repeats: int) -> list[Row]:
    """From another page to the whole graph, and from a click in it to the panel."""
    count, size = len(run.circuit.groups), f"{len(run.circuit.groups)} groups"
    page.goto(f"{address}/?run={run.id}")
    page.locator("h1", has_text="Analyze").wait_for(timeout=PATIENCE)
    drawn = []
    for _ in range(repeats + 1):
        drawn.append(seconds(lambda: (page.goto(f"{address}/circuit?run={run.id}&limit={count}"), graph(page))))
    frame = graph(page)
    groups = [name for name in frame.evaluate("[...nodes.getIds()]") if not name.startswith(("row:", "logits"))]
    chosen = groups[:: max(1, len(groups) // (2 * repeats))][: 2 * repeats]
    clicks = [seconds(lambda group=group: click(page, frame, group)) for group in chosen]
    return [
        row("link to whole graph, pictures made anew", size, drawn[:1], "< 2"),
        row("link to whole graph", size, drawn[1:], "< 2"),
        row("click in the graph to panel", size, clicks, "< 0.4"),
    ]


def of_silencing(page: Page, address: str, run: Run, repeats: int) -> list[Row]:
    """From the click that silences a group to the new answers, once the page with the old ones is complete; each time another group."""
    one = next(image for image in run.circuit.images if image.true != run.circuit.target_index)
    switches = page.locator("[data-testid=stCheckbox]", has_text="silence").locator("label")
    flags = page.locator("[class*=st-key-flag_]").get_by_role("button", name="Silence", exact=True)
    rows = []
    for what, chosen, controls, aim in (
        ("silence to top 5", f"image={one.path}", switches, "< 1"),
        ("silence to top 5 of 100 images", f"images={','.join(map(str, range(100)))}", flags, "< 5"),
    ):
        page.goto(f"{address}/debug?run={run.id}&{chosen}")
        controls.first.wait_for(timeout=PATIENCE)
        quiet(page)
        times = []
        for number in range(min(repeats, controls.count())):
            times.append(seconds(lambda number=number, controls=controls: silence(page, controls.nth(number))))
            page.get_by_role("button", name="Silence nothing").click()
            page.wait_for_function("() => !location.search.includes('silence=')", timeout=PATIENCE)
            quiet(page)
        rows.append(row(what, f"{len(run.circuit.groups)} groups", times, aim))
    return rows


def silence(page: Page, control: Locator) -> None:
    """Silence a group, until the new answer is there."""
    control.click()
    page.wait_for_function("() => location.search.includes('silence=')", timeout=PATIENCE)
    page.locator(".st-key-answer .nf-answer").wait_for(timeout=PATIENCE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(arguments.workspace or folder)
        known = {run.n_groups: run.id for run in workspace.runs() if run.id.endswith(f"images-{IMAGES}-seed-0")}
        runs = {size: workspace.open_run(known[size]) if size in known else huge.write(workspace, size, IMAGES) for size in SIZES}
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"])
            page = browser.new_page(viewport={"width": 1440, "height": 1100})
            rows = of_start(page, workspace.root, arguments.repeats)
            with server(workspace.root) as address:
                first_page(page, address)
                rows += of_switches(page, address, runs[30], arguments.repeats)
                for size in SIZES:
                    rows += of_graph(page, address, runs[size], arguments.repeats)
                rows += of_silencing(page, address, runs[300], arguments.repeats)
            browser.close()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(table(("what", "run", "median s", "slowest s", "aim"), rows))


if __name__ == "__main__":
    main()
