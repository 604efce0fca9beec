"""The app as people start it, for tests with a browser, and what is awkward to reach in its pages."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import TimeoutError as PlaywrightTimeout

ROOT = Path(__file__).parents[1]
EVIL = "<img src=x onerror=\"document.title='owned'\"> ![x](http://leak.example/a.png) href"


@contextmanager
def serving(workspace: Path, *options: str, log: Path | None = None, **variables: str) -> Iterator[str]:
    """The app as people start it, on a free port, with further options and environment variables; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"NEURFLOW_WORKSPACE": str(workspace)} | variables
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port), *options]
    with open(log or os.devnull, "wb") as out:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health").close()
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(60)


def quiet(page) -> None:
    """Wait until the script of the page has run to its end."""
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()


def graph_frame(page):
    """The frame of the graph, once it is drawn."""
    page.wait_for_selector("iframe[title='Circuit graph']")
    for _ in range(600):
        frame = next((frame for frame in page.frames if frame.url == "about:srcdoc"), None)
        if frame and frame.evaluate("document.documentElement.dataset.drawn === 'yes'"):
            return frame
        page.wait_for_timeout(100)
    raise AssertionError("the graph was not drawn")


def click_group(page, group: str) -> None:
    """Click a node of the graph where it is on the screen."""
    page.mouse.click(*place_of_group(page, group))


def point_at_group(page, group: str):
    """Rest the mouse on a node of the graph until its tooltip shows; returns the tooltip."""
    for nudge in range(10):  # a tooltip comes after a motion on the node, and the page may have moved the graph just then
        x, y = place_of_group(page, group)
        page.mouse.move(x + nudge % 2, y)
        try:
            return graph_frame(page).wait_for_selector("div.vis-tooltip", timeout=3_000)
        except PlaywrightTimeout:
            continue
    raise AssertionError(f"no tooltip at {group}")


def place_of_group(page, group: str) -> tuple[float, float]:
    """Where a node of the graph is on the screen, once it stays there: the sidebar gets its width after the page is first drawn."""
    frame, before = graph_frame(page), None
    for _ in range(100):
        place = frame.evaluate("id => network.canvasToDOM(network.getPosition(id))", group)
        box = page.locator("iframe[title='Circuit graph']").bounding_box()
        here = box["x"] + place["x"], box["y"] + place["y"]
        if here == before:
            return here
        before = here
        page.wait_for_timeout(200)
    raise AssertionError(f"{group} does not stay where it is")
