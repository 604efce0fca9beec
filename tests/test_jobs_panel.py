"""The jobs panel beside every page: what it says of real jobs, and where it leads."""

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace

import psutil
import pytest
from browsing import serving
from streamlit.testing.v1 import AppTest
from test_pages import opened

from neurflow_engine import turns
from neurflow_engine.jobs import CANCELLED, DIED, Job, Jobs, JobState
from pages.ui import commands

PAGES = ("analyze", "circuit", "debug", "labels", "sweep")
KEYS = ("cancel", "open", "resume", "dismiss")


@pytest.fixture
def jobs(demo_run, analysed_demo, tmp_path, monkeypatch):
    """Jobs with a small worker, in a workspace with the demo's run."""
    workspace = tmp_path / "workspace"
    shutil.copytree(analysed_demo.root, workspace)
    monkeypatch.setenv("NEURFLOW_WORKSPACE", str(workspace))
    monkeypatch.setenv(turns.ROOM, "1")
    jobs = Jobs(workspace, (sys.executable, "-m", "tests.job_worker"))
    yield jobs
    for job in jobs.all():
        jobs.cancel(job.id)
        ended(jobs, job)


def ended(jobs: Jobs, job: Job, until=lambda job: not job.active) -> Job:
    deadline = time.monotonic() + 20
    while not until(job := jobs.get(job.id)):
        assert time.monotonic() < deadline, job
        time.sleep(0.02)
    return job


def cards(app: AppTest) -> list[str]:
    """What the panel says, one text for each job."""
    return [block.proto.body for block in app.sidebar.get("html") if "nf-job" in block.proto.body and "<style>" not in block.proto.body]


def buttons(app: AppTest) -> list[str]:
    """The panel's buttons, without the number of the job."""
    return [button.key.split("_")[0] for button in app.sidebar.button if button.key.split("_")[0] in KEYS]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_shows_what_runs_and_what_waits_in_order(jobs, page):
    first = jobs.start("analyze", "Analyse <b>owl</b>", ["count", 400])
    ended(jobs, first, lambda job: job.done > 20)
    for title in ("Second", "Third"):
        jobs.start("analyze", title, ["count", len(title)])
    app = opened(page)
    running, second, third = cards(app)
    assert "Analyse &lt;b&gt;owl&lt;/b&gt;" in running
    assert "activations" in running
    assert "of 400 · about" in running
    assert "waits until there is memory" in second
    assert "after" not in second
    assert "after 1 other in the queue" in third
    assert buttons(app) == ["cancel"] * 3


def test_a_waiting_job_is_cancelled_and_resumed_from_the_panel(jobs):
    ended(jobs, jobs.start("analyze", "First", ["count", 400]), lambda job: job.stage)
    waiting = jobs.start("analyze", "Second", ["count", 1])
    opened("labels").sidebar.button(key=f"cancel_{waiting.id}").click().run()
    ended(jobs, waiting)
    app = opened("labels")
    _, card = cards(app)
    assert CANCELLED in card
    app.sidebar.button(key=f"resume_{waiting.id}").click().run()
    again = jobs.all()[0]
    assert (again.title, again.state, again.argv) == ("Second", JobState.QUEUED, waiting.argv)
    assert [card.count("Second") for card in cards(app)] == [0, 1]  # the old one is not shown beside the new one


def test_a_failed_job_says_why_and_shows_its_log(jobs):
    job = ended(jobs, jobs.start("analyze", "Analyse owl", ["fail", 10]))
    app = opened("circuit")
    (card,) = cards(app)
    assert "The disk is full." in card
    assert buttons(app) == ["resume", "dismiss"]
    assert job.log() in [code.value for code in app.sidebar.code]


def test_a_killed_worker_is_noticed_at_once_and_can_be_resumed(jobs):
    job = ended(jobs, jobs.start("analyze", "Analyse owl", ["count", 400]), lambda job: job.done > 0)
    for process in psutil.process_iter(["cmdline"]):
        if str(job.folder / "events.jsonl") in (process.info["cmdline"] or ()):
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    app = opened("debug")
    (card,) = cards(app)
    assert DIED in card
    app.sidebar.button(key=f"resume_{job.id}").click().run()
    assert [one.active for one in jobs.all()] == [True, False]


def test_what_was_seen_is_hidden_for_everybody_and_stays_on_disk(jobs):
    job = ended(jobs, jobs.start("analyze", "Analyse owl", ["fail", 10]))
    opened("circuit").sidebar.button(key=f"dismiss_{job.id}").click().run()
    assert cards(opened("labels")) == []
    assert jobs.get(job.id).state == JobState.FAILED


RESULTS = {
    "evaluate": ({"evaluation": "EVALUATION"}, "analyze", {"evaluation": "EVALUATION"}),
    "analyze": ({"run": "RUN"}, "circuit", {"run": "RUN"}),
    "demo": ({"run": "RUN"}, "circuit", {"run": "RUN"}),
    "fidelity": ({"run": "RUN"}, "circuit", {"run": "RUN", "tab": "Trust"}),
    "debug": ({"run": "RUN", "images_root": "ROOT"}, "debug", {"run": "RUN", "evaluation": "EVALUATION"}),
    "preview": (
        {"run": "RUN", "images_root": "ROOT", "silenced": ["layer4/0", "layer3/1"]},
        "debug",
        {"run": "RUN", "evaluation": "EVALUATION", "fix": "layer4/0,layer3/1"},
    ),
    "label": ({"groups": 3}, "labels", {"run": "RUN", "view": "Proposals"}),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_the_result_of_a_job_has_an_address(jobs, demo_run, kind):
    result, page, address = RESULTS[kind]
    real = {"RUN": demo_run.id, "EVALUATION": demo_run.manifest["evaluation"], "ROOT": str(demo_run.data_root)}
    result = {name: real.get(value, value) if isinstance(value, str) else value for name, value in result.items()}
    job = ended(jobs, jobs.start(kind, "Done", ["count", 1, "--result", json.dumps(result)]))
    if kind == "label":  # its result does not name the run; its command does
        job = replace(job, argv=("label", demo_run.id))
    where, parameters = commands.address_of_result(job)
    assert where == page
    assert {name: value for name, value in parameters.items() if value} == {name: real.get(value, value) for name, value in address.items()}


def test_a_finished_job_is_opened_from_another_page_once_it_is_done(page, jobs, demo_run):
    with serving(jobs.folder.parent) as address:
        page.goto(f"{address}/labels?run={demo_run.id}")
        page.locator("h1", has_text="Labels").wait_for()
        # started by somebody else; a page that knows of no job looks every five seconds
        job = jobs.start("fidelity", "Check this", ["count", 160, "--result", json.dumps({"run": demo_run.id})])
        card = page.locator(f".st-key-job_{job.id}")
        card.get_by_text("of 160").wait_for()
        card.get_by_role("button", name="Open").click()
        page.wait_for_url("**/circuit?*tab=Trust*")
        assert f"run={demo_run.id}" in page.url
        card.get_by_role("button", name="Hide").click()
        card.wait_for(state="detached")


def test_a_result_that_cannot_be_read_is_one_sentence_and_the_rest_is_shown(jobs):
    job = ended(jobs, jobs.start("analyze", "Broken", ["count", 1]))
    (job.folder / "result.json").write_text('{"run": ')
    ended(jobs, jobs.start("analyze", "Other", ["fail", 4]))
    app = opened("circuit")
    assert len(cards(app)) == 2
    assert [f"result of job {job.id} cannot be read" in error.value.replace("\\", "") for error in app.sidebar.error] == [True]
