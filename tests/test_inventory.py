"""What lies in a workspace and what may go: nothing that is needed, labelled or being worked on is deleted unasked."""

import json
import os
import shutil
import sys
from datetime import UTC, datetime, timedelta

import pytest
from filelock import FileLock

from neurflow_engine import inventory
from neurflow_engine.__main__ import main
from neurflow_engine.edits import EditStore
from neurflow_engine.errors import InputError, RunError
from neurflow_engine.inventory import choose, delete, take
from neurflow_engine.jobs import Jobs
from neurflow_engine.labels import LabelStore
from neurflow_engine.store import Workspace
from neurflow_engine.verdicts import VerdictStore

DAY = timedelta(days=1)


def put(workspace, kind: str, name: str, days: float, size: int = 1000, **manifest) -> None:
    """A finished folder of this age."""
    folder = workspace.root / kind / name
    folder.mkdir(parents=True)
    created = (datetime.now(UTC) - days * DAY).isoformat()
    (folder / "manifest.json").write_text(json.dumps({"created": created} | manifest))
    (folder / "array.npy").write_bytes(bytes(size))


@pytest.fixture
def filled(workspace):
    """Three runs; the oldest two have a report and an evaluation each, and nothing needs the third evaluation."""
    for number, days in (("1", 30), ("2", 20), ("3", 0.5)):
        put(workspace, "runs", f"run-{number}", days, 5000, run=f"run-{number}", evaluation=f"eval-{number}")
    for number in ("1", "2"):
        put(workspace, "evaluations", f"eval-{number}", 30, data={"root": f"/data/{number}"})
        put(workspace, "debug", f"run-{number}-report", 10, run=f"run-{number}", images_root="/data/other")
        put(workspace, "previews", f"run-{number}-preview", 10, run=f"run-{number}")
    put(workspace, "evaluations", "eval-other", 30, data={"root": "/data/other"})
    put(workspace, "evaluations", "eval-alone", 30, data={"root": "/data/alone"})
    put(workspace, "fidelity", "of-a-run-that-is-gone", 30, run="run-0")
    (workspace.root / "runs" / "run-4.partial" / "work").mkdir(parents=True)
    (workspace.root / "uploads").mkdir()
    (workspace.root / "uploads" / "image.png").write_bytes(b"x" * 10)
    return workspace


def names(holdings) -> set[str]:
    return {holding.id for holding in holdings}


def test_every_thing_is_listed_with_its_size_and_what_it_belongs_to(filled):
    found = take(filled)
    assert [run.id for run in found.of("run")] == ["run-3", "run-2", "run-1"]
    assert 5000 < found.of("run")[0].bytes < 5300
    assert names(found.about("run-1")) == {"run-1-report", "run-1-preview"}
    assert found.about("run-3") == []
    assert 20_000 < found.bytes < 600_000
    assert found.free > 0


def test_a_file_that_two_runs_share_counts_once(filled):
    before = sum(run.bytes for run in take(filled).of("run"))
    os.link(filled.root / "runs/run-1/array.npy", filled.root / "runs/run-2/shared.npy")
    assert sum(run.bytes for run in take(filled).of("run")) == before


def test_orphans_are_what_no_run_needs(filled):
    assert names(take(filled).orphans()) == {"eval-alone", "of-a-run-that-is-gone", "run-4.partial", "image.png"}


def test_deleted_runs_take_their_reports_along_and_leave_their_evaluations_to_be_orphans(filled):
    choice = choose(take(filled), ["run-1"], orphans=True)
    assert names(choice.gone) == {"run-1", "run-1-report", "run-1-preview", "eval-1", *names(take(filled).orphans())}
    delete(choose(take(filled), ["run-1"]).gone)
    assert [run.id for run in take(filled).of("run")] == ["run-3", "run-2"]
    assert "eval-1" in names(take(filled).orphans())
    assert not (filled.root / "debug" / "run-1-report").exists()
    assert (filled.root / "debug" / "run-2-report").is_dir()


@pytest.mark.parametrize(
    ("rules", "gone"),
    [
        ({"older_than": 25 * DAY}, {"run-1"}),
        ({"older_than": DAY}, {"run-1", "run-2"}),
        ({"keep": 1}, {"run-1", "run-2"}),
        ({"keep": 2, "older_than": DAY}, {"run-1"}),
        ({"keep": 3}, set()),
        ({"keep": 0}, {"run-1", "run-2", "run-3"}),
    ],
)
def test_runs_go_by_age_and_number(filled, rules, gone):
    assert names(holding for holding in choose(take(filled), **rules).gone if holding.kind == "run") == gone


def test_of_orphans_only_those_of_the_age_go(filled):
    found = take(filled)
    assert names(choose(found, older_than=DAY, keep=9, orphans=True).gone) == {"eval-alone", "of-a-run-that-is-gone"}


@pytest.mark.parametrize("rules", [{}, {"runs": ["run-1"], "keep": 1}, {"runs": ["run-1"], "older_than": DAY}, {"labelled": True}])
def test_without_a_rule_or_with_two_nothing_is_chosen(filled, rules):
    with pytest.raises(InputError, match="Say what should go"):
        choose(take(filled), **rules)


def test_a_run_that_does_not_exist_is_named(filled):
    with pytest.raises(RunError, match=r"no run 'run-9'.*Did you mean run-3"):
        choose(take(filled), ["run-9"])


def decide(store, run: str) -> None:
    if isinstance(store, LabelStore):
        store.edit(run, "layer/1", "wings", "ana", 0)
    else:
        store.give(run, "layer/1", "core", "ana", 0)


@pytest.mark.parametrize("kind", [LabelStore, VerdictStore])
def test_what_people_decided_about_stays_unless_asked_for_and_the_decision_survives(filled, kind):
    store = kind.for_workspace(filled.root)
    decide(store, "run-1")
    choice = choose(take(filled), ["run-1", "run-2"])
    assert names(choice.gone) == {"run-2", "run-2-report", "run-2-preview"}
    assert "decided 1 thing about it" in choice.spared["run-1"]
    delete(choose(take(filled), ["run-1"], labelled=True).gone)
    assert not filled.run_folder("run-1").exists()
    assert store.for_run("run-1")
    store.close()


def test_proposals_that_nobody_looked_at_do_not_keep_a_run(filled):
    store = LabelStore.for_workspace(filled.root)
    store.propose("run-1", "layer/1", "wings", "model x")
    store.close()
    assert choose(take(filled), ["run-1"]).spared == {}


def test_edited_circuits_count_as_decisions(demo_run, workspace):
    store = EditStore.for_workspace(workspace.root)
    store.pin(demo_run, demo_run.circuit.groups[1].id, "ana", 0)
    store.close()
    assert inventory.decisions(workspace) == {demo_run.id: 1}


def test_what_a_job_works_on_stays_whatever_is_asked(filled):
    jobs = Jobs(filled.root, (sys.executable, "-c", "import time; time.sleep(60)"))
    job = jobs.start("debug", "Misleading groups", ["debug", "run-1", "--images", "photos"])
    try:
        choice = choose(take(filled), keep=2, orphans=True, labelled=True)
        assert "A job is at work on it" in choice.spared["run-1"]
        assert job.id not in names(choice.gone)
    finally:
        jobs.cancel(job.id)


def test_what_is_being_computed_at_this_moment_is_refused(filled):
    choice = choose(take(filled), ["run-2"])
    with FileLock(filled.root / "runs" / ".run-2.lock"):
        assert "run-2" in choose(take(filled), ["run-2"]).spared
        with pytest.raises(RunError, match="run-2 is being computed"):
            delete(choice.gone)
    assert filled.run_folder("run-2").is_dir()


def test_a_deletion_that_was_interrupted_leaves_remains_and_no_run(filled, monkeypatch):
    choice = choose(take(filled), ["run-3"])
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        delete(choice.gone)
    monkeypatch.undo()
    assert "run-3" not in names(take(filled).of("run"))
    assert "run-3" in names(take(filled).orphans())


class TestCommand:
    def test_a_dry_run_says_what_would_go_and_deletes_nothing(self, filled, capsys):
        assert main(["runs", "prune", "--older-than", "25", "--dry-run", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert not said["deleted"]
        assert {entry["id"] for entry in said["gone"]} == {"run-1", "run-1-report", "run-1-preview"}
        assert len(take(filled).of("run")) == 3
        assert main(["runs", "prune", "--older-than", "25", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == said | {"deleted": True}
        assert len(take(filled).of("run")) == 2

    def test_the_list_of_a_real_workspace(self, demo_run, misled_report, demo_workspace, tmp_path, capsys):
        copy = Workspace(shutil.copytree(demo_workspace.root, tmp_path / "copy"))
        assert main(["runs", "list", "--workspace", str(copy.root), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        run = next(run for run in said["runs"] if run["id"] == demo_run.id)
        assert misled_report.id in {report["id"] for report in run["reports"]}
        assert run["evaluation"] == demo_run.manifest["evaluation"]
        assert {orphan["kind"] for orphan in said["orphans"]} <= {"evaluation"}
        assert main(["runs", "list", "--workspace", str(copy.root)]) == 0
        assert demo_run.id in capsys.readouterr().out
        assert main(["runs", "prune", demo_run.id, "--labelled", "--workspace", str(copy.root)]) == 0
        assert demo_run.id not in {run.id for run in copy.runs()}
        assert copy.debug_reports(demo_run.id) == []

    @pytest.mark.parametrize(
        ("arguments", "why"),
        [
            (["prune"], "Say what should go"),
            (["prune", "../runs"], "There is no run '../runs'"),
            (["prune", "--older-than", "-1"], "expected a number of days, got '-1'"),
            (["prune", "--older-than", "nan"], "expected a number of days, got 'nan'"),
            (["prune", "--keep", "x"], "expected a number from 0, got 'x'"),
            (["list", "--keep", "1"], "these go with runs prune"),
        ],
    )
    def test_a_wrong_request_is_one_sentence(self, filled, capsys, arguments, why):
        assert main(["runs", *arguments]) == 2
        assert why in capsys.readouterr().err
        assert len(take(filled).of("run")) == 3
