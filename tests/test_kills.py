"""What is left after a kill, on a full disk, and while the database is locked: sentences, nothing lost, and a way on."""

import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import psutil
import pytest
from test_pages import opened

from benchmarks import kills
from neurflow_engine import demo, sql_store, turns
from neurflow_engine.circuit_json import as_json
from neurflow_engine.errors import JobError, WorkspaceError
from neurflow_engine.jobs import DIED, Job, Jobs, JobState
from neurflow_engine.labels import LabelStore
from neurflow_engine.pipeline import analyze
from neurflow_engine.store import Run, Workspace
from neurflow_engine.verdicts import VerdictStore

SMALL = {"max_images": 4, "top_k": 6, "tau": 8, "granularities": (1.0, 0.5)}


def command(images: Path, workspace: Path) -> list[str]:
    """The analysis of ``SMALL``."""
    flags = {"model": f"local-dir:{demo.MODEL_FOLDER}", "data": images, "target": demo.TARGET, "device": "cpu", "workspace": workspace}
    flags |= {"max-images": 4, "top-k": 6, "tau": 8, "granularities": "1,0.5"}
    return ["analyze", *(f"--{name}={value}" for name, value in flags.items())]


def wait(jobs: Jobs, job: Job, until=lambda job: not job.active) -> Job:
    deadline = time.monotonic() + 240
    while not until(job := jobs.get(job.id)):
        assert time.monotonic() < deadline, job
        time.sleep(0.02)
    return job


def kill(job: Job) -> None:
    """The worker, without warning."""
    for process in psutil.process_iter(["cmdline"]):
        if str(job.folder / turns.EVENTS) in (process.info["cmdline"] or ()):
            os.kill(process.pid, signal.SIGKILL)


def same(run: Run, other: Run) -> bool:
    return as_json(run) | {"seconds": 0, "peak_memory_mb": 0} == as_json(other) | {"seconds": 0, "peak_memory_mb": 0}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program has the database to itself."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@pytest.fixture
def named(demo_run, tmp_path, monkeypatch) -> Workspace:
    """A workspace with the demo's run, and a name and a verdict that somebody gave."""
    workspace = Workspace(tmp_path / "workspace")
    shutil.copytree(demo_run.folder, workspace.run_folder(demo_run.id))
    monkeypatch.setenv("NEURFLOW_WORKSPACE", str(workspace.root))
    monkeypatch.setattr(sql_store, "PATIENCE", 0.3)
    with closing(LabelStore.for_workspace(workspace.root)) as labels, closing(VerdictStore.for_workspace(workspace.root)) as verdicts:
        labels.edit(demo_run.id, "layer4/0", "sticker", "ana", 0)
        verdicts.give(demo_run.id, "layer4/0", "spurious", "ana", 0)
    return workspace


def said(workspace: Workspace, run: Run) -> tuple[str, int, str, int]:
    """The name and the verdict that are kept, with their versions."""
    with closing(LabelStore.for_workspace(workspace.root)) as labels, closing(VerdictStore.for_workspace(workspace.root)) as verdicts:
        label, verdict = labels.get(run.id, "layer4/0"), verdicts.get(run.id, "layer4/0")
    return label.text, label.version, verdict.judgement, verdict.version


class TestLockedDatabase:
    def test_pages_are_read_and_a_decision_is_refused_with_a_sentence_until_it_is_free(self, named, demo_run):
        app = opened("labels", run=demo_run.id, group="layer4/0")
        with locked(named.root / "labels.sqlite"):
            assert not opened("labels", run=demo_run.id, group="layer4/0").error
            app.button(key="reject_layer4/0").click().run()
            assert "is locked by another program for more than" in app.error[0].value
            assert "so nothing was changed; try again" in app.error[0].value
            assert said(named, demo_run) == ("sticker", 1, "spurious", 1)
        app.button(key="reject_layer4/0").click().run()
        assert not app.error
        with closing(LabelStore.for_workspace(named.root)) as labels:
            assert (labels.get(demo_run.id, "layer4/0").state, labels.get(demo_run.id, "layer4/0").version) == ("rejected", 2)

    @pytest.mark.slow
    def test_a_job_that_cannot_write_names_fails_with_a_sentence_and_is_resumed(self, named, demo_run):
        jobs = Jobs(named.root)
        arguments = ["label", demo_run.id, "--offline", "--no-score", "--groups", "layer4/1", "--workspace", str(named.root)]
        with locked(named.root / "labels.sqlite"):
            job = wait(jobs, jobs.start("label", "Labels", arguments))
        assert job.state == JobState.FAILED
        assert "is locked by another program" in job.message
        again = wait(jobs, jobs.resume(job.id))
        assert again.state == JobState.DONE, again.log()
        with closing(LabelStore.for_workspace(named.root)) as labels:
            assert labels.get(demo_run.id, "layer4/1").proposed
        assert said(named, demo_run) == ("sticker", 1, "spurious", 1)


def name_for_ever(labels: LabelStore, run: Run) -> None:
    for version in count(labels.get(run.id, "layer4/0").version):
        labels.edit(run.id, "layer4/0", f"name {version} " + "x" * 100, "ana", version)


class TestFullDisk:
    def test_nothing_starts_nothing_is_changed_and_what_was_said_is_still_there(self, disk, demo_run):
        workspace = Workspace(disk("size=400k"))
        with closing(LabelStore.for_workspace(workspace.root)) as labels:
            labels.edit(demo_run.id, "layer4/0", "sticker", "ana", 0)
            jobs = Jobs(workspace.root)
            jobs.folder.mkdir()
            with open(workspace.root / "filler", "wb") as filler, pytest.raises(OSError, match="No space left"):
                filler.write(bytes(500_000))
            with pytest.raises((JobError, WorkspaceError), match=r"No space left on device.*free space"):
                jobs.start("analyze", "Analyse", ["analyze"])
            assert jobs.all() == []
            with pytest.raises(WorkspaceError, match="check that it can be reached and written and has space left"):
                name_for_ever(labels, demo_run)
            kept = labels.get(demo_run.id, "layer4/0")
            (workspace.root / "filler").unlink()
            assert labels.edit(demo_run.id, "layer4/0", "star", "ana", kept.version).version == kept.version + 1
            assert len(labels.history(demo_run.id, "layer4/0")) == kept.version + 1

    @pytest.mark.slow
    def test_a_job_says_so_and_is_resumed_with_more_space_to_the_same_circuit(self, disk, demo_config, demo_images, tmp_path):
        undisturbed = analyze(demo_config.model_copy(update=SMALL), Workspace(tmp_path / "undisturbed"))
        folder = disk("size=300k")
        jobs = Jobs(folder)
        job = wait(jobs, jobs.start("analyze", "Analyse", command(demo_images, folder)))
        assert job.state == JobState.FAILED
        assert "No space left on device" in job.message
        assert "free space" in job.message
        assert Workspace(folder).runs() == []
        subprocess.run(["mount", "-o", "remount,size=40m", folder], check=True)
        again = wait(jobs, jobs.resume(job.id))
        assert again.state == JobState.DONE, again.log()
        assert same(Workspace(folder).open_run(again.result()["run"]), undisturbed)


@pytest.mark.slow
def test_a_killed_analysis_is_listed_as_dead_and_resumed_to_the_same_circuit(demo_config, demo_images, tmp_path):
    undisturbed = analyze(demo_config.model_copy(update=SMALL), Workspace(tmp_path / "undisturbed"))
    workspace = Workspace(tmp_path / "workspace")
    jobs = Jobs(workspace.root)
    job = jobs.start("analyze", "Analyse", command(demo_images, workspace.root))
    wait(jobs, job, lambda job: job.stage == "activations")
    kill(job)
    job = wait(jobs, job)
    assert (job.state, job.message) == (JobState.DIED, DIED)
    assert workspace.runs() == []
    assert workspace.evaluations()[0].accuracy is not None
    again = wait(jobs, jobs.resume(job.id))
    assert "evaluate" not in {stage.name for stage in again.stages}
    assert same(workspace.open_run(again.result()["run"]), undisturbed)


@pytest.mark.slow
def test_random_kills_of_the_app_its_workers_and_writers_lose_nothing(browser, tmp_path):
    tally = kills.torture(5, 0, tmp_path, browser)
    assert tally.problems == []
    assert tally.kills.total() == 5
    assert tally.finished == tally.same > 0
    assert tally.acknowledged["label"] > 0 < tally.acknowledged["verdict"]
    assert not tally.lost
