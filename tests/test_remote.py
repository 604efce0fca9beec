"""A workspace that several machines share, on an S3-speaking server: nobody sees half of anything, and nothing is done twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import hand_made_runs
import hand_made_sweeps
import numpy as np
import pytest
import s3
from sharing import build, ended, machine
from streamlit.testing.v1 import AppTest
from test_pages import opened, written

from neurflow_engine import access, inventory, remote
from neurflow_engine.backup import back_up, restore
from neurflow_engine.errors import AccessError, RunError, WorkspaceError
from neurflow_engine.labels import LabelStore
from neurflow_engine.store import MANIFEST, Run, Workspace
from neurflow_engine.sweep_result import ClassState, names, open_sweep, sweeps, tell
from pages.ui import cached, commands

ROOT = Path(__file__).resolve().parents[1]
NOBODY = "postgresql://nobody@127.0.0.1:9/nothing"  # for what needs a database to be named, but never asks it


@pytest.fixture(scope="module")
def storage():
    """The server that all tests of this module share."""
    with s3.server() as running:
        yield running


@pytest.fixture
def shared(storage, tmp_path, monkeypatch, request) -> str:
    """The URL of an empty workspace, also the default one, for the machine ``here``."""
    for name, value in storage.environment.items():
        monkeypatch.setenv(name, value)
    url = storage.bucket(f"bucket-{abs(hash(request.node.nodeid)) % 10**12}")
    monkeypatch.setenv("NEURFLOW_WORKSPACE", url)
    monkeypatch.setenv("NEURFLOW_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("NEURFLOW_DATABASE_URL", NOBODY)
    yield url
    storage.before = lambda method, path: None


@pytest.fixture
def on(shared, tmp_path, monkeypatch) -> Callable[..., Workspace]:
    """The workspace as a machine of this name has it."""

    def seen(name: str, patience: float = 0.0) -> Workspace:
        with monkeypatch.context() as patch:
            patch.setenv("NEURFLOW_CACHE", str(tmp_path / name))
            return Workspace(shared, patience)

    return seen


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Run:
    """A whole run with tables, arrays and pictures, in a workspace of this machine alone."""
    groups = {"layer2": [[0, 1, 2], [5, 6]], "layer1": [[3, 8, 9], [10, 11]]}
    run = hand_made_runs.write(Workspace(tmp_path_factory.mktemp("source")), "source", groups)
    (run.folder / "activations").mkdir()
    for layer in run.circuit.layers:
        np.save(run.folder / "activations" / f"{layer}.npy", np.random.default_rng(0).normal(size=(500, 200)).astype(np.float32))
    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but its manifest."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != MANIFEST}


def read_fully(run: Run) -> int:
    """Read all tables and arrays of a run; the number of its groups."""
    for layer in run.layers:
        assert np.isfinite(run.activations(layer)).all()
    return len(run.circuit.groups)


class TestOtherMachines:
    def test_see_a_run_when_it_is_published_and_read_it_once(self, storage, shared, on, source):
        build(on("here"), "cats", source)
        there = on("there")
        assert [run.id for run in there.runs()] == ["cats"]
        assert not there.run_folder("cats").exists()  # a list needs no more than the manifests
        assert contents(there.run("cats").folder) == contents(source.folder)
        assert read_fully(there.run("cats")) == len(source.circuit.groups)
        with storage.counting() as asked:
            assert read_fully(there.run("cats")) == len(source.circuit.groups)
        assert [method for method, _ in asked] == ["HEAD"]  # whether it is still there
        patient = on("there", patience=60)
        patient.runs()
        time.sleep(0.2)
        with storage.counting() as asked:
            for _ in range(5):
                assert [run.id for run in patient.runs()] == ["cats"]
                read_fully(patient.run("cats"))
                patient.changed("runs")
        assert len(asked) <= 1  # the list, where the copy was too young to be told from news

    def test_lack_what_is_not_published_yet(self, shared, on, source):
        here = on("here")
        with here.draft(here.run_folder("cats"), "cats") as draft:
            draft.save_array("array", np.zeros(3))
            assert on("there").runs() == []
            with pytest.raises(RunError, match="There is no run 'cats' in s3://"):
                on("there").run("cats")

    def test_no_longer_have_what_one_of_them_deletes(self, storage, shared, on, source, monkeypatch):
        here, there = on("here"), on("there")
        for name in ("cats", "dogs"):
            build(here, name, source)
            there.run(name)
        monkeypatch.setattr(inventory, "decisions", lambda workspace: {})
        inventory.delete(inventory.choose(inventory.take(here), ["cats"]).gone, here.remote)
        assert [run.id for run in there.runs()] == ["dogs"]
        with pytest.raises(RunError, match="There is no run 'cats'"):
            there.run("cats")
        assert not there.run_folder("cats").exists()
        assert not any("cats" in key for key in storage.keys(shared.split("/")[2]))
        build(there, "cats", source)  # and it can be made again
        assert contents(here.run("cats").folder) == contents(source.folder)

    def test_tell_copies_from_what_is_shared(self, shared, on, source, monkeypatch):
        here, there = on("here"), on("there")
        build(here, "cats", source)
        there.run("cats")
        monkeypatch.setattr(inventory, "decisions", lambda workspace: {})
        found = inventory.take(there)
        (copy,), (run,) = found.of(inventory.COPY), found.of(inventory.RUN)
        assert copy.bytes > 0
        assert run.bytes > 0
        assert "on the shared storage; this machine keeps local copies of" in found.sentence
        assert copy not in found.orphans()
        inventory.delete(inventory.choose(found, copies=True).gone, there.remote)
        assert not there.run_folder("cats").exists()
        assert contents(there.run("cats").folder) == contents(source.folder)

    def test_watch_a_sweep_grow(self, shared, on):
        here, there = on("here"), on("there")
        evaluation = hand_made_sweeps.evaluation(here, "evaluation")
        made = hand_made_sweeps.write(here, "pets", evaluation, waiting=("owl", "fox"))
        tell(made, here)
        (seen,) = sweeps(there)
        assert (seen.n_ended, seen.is_finished) == (2, False)
        finished = hand_made_sweeps.write(here, "pets", evaluation, flags={"owl": ["layer1/0"]})
        tell(finished, here)
        seen = open_sweep(there, "pets")
        assert (seen.n_ended, seen.is_finished) == (4, True)
        assert seen.as_json() == finished.as_json()
        assert there.open_evaluation(seen.evaluation).predictions.equals(evaluation.predictions)
        here.remote.delete("sweeps", "pets")
        assert names(there) == []

    def test_have_what_a_folder_held_once_its_backup_is_restored_for_them_and_back(
        self, shared, on, source, tmp_path, postgres_database, monkeypatch
    ):
        monkeypatch.delenv("NEURFLOW_DATABASE_URL")
        folder, files = Workspace(tmp_path / "folder"), (tmp_path / "first.tar.gz", tmp_path / "second.tar.gz")
        build(folder, "cats", source)
        hand_made_sweeps.write(folder, "pets", hand_made_sweeps.evaluation(folder, "evaluation"))
        with closing(LabelStore.for_workspace(folder.address)) as labels:
            labels.edit("cats", "layer1/0", "whiskers", "ana", 0)
        back_up(folder, files[0])
        monkeypatch.setenv("NEURFLOW_DATABASE_URL", postgres_database)
        assert restore(files[0], on("here"))["runs"] == 1
        with pytest.raises(WorkspaceError, match="holds a workspace already"):
            restore(files[0], on("here"))
        assert back_up(on("there"), files[1])["runs"] == 1
        monkeypatch.delenv("NEURFLOW_DATABASE_URL")
        again = Workspace(tmp_path / "again")
        restore(files[1], again)
        assert contents(again.run("cats").folder) == contents(source.folder)
        assert open_sweep(again, "pets").as_json() == open_sweep(folder, "pets").as_json()
        with closing(LabelStore.for_workspace(again.address)) as labels:
            assert labels.get("cats", "layer1/0").text == "whiskers"


@pytest.mark.parametrize("protocol", ["s3", "file"])
def test_readers_never_see_half_of_a_run_while_others_publish_and_delete(protocol, shared, source, tmp_path, monkeypatch):
    """Two machines make and delete the same three runs as fast as they can; one reads all that is listed, and keeps no copy."""
    url = shared if protocol == "s3" else f"file://{tmp_path / 'disk'}"
    writers = [machine(tmp_path / f"writer-{first}", url, source, "build_and_delete", first, 5) for first in (0, 1)]
    monkeypatch.setenv("NEURFLOW_CACHE", str(tmp_path / "reader"))
    expected, there, opened_, gone = contents(source.folder), Workspace(url), 0, []
    while any(writer.poll() is None for writer in writers):
        for summary in there.runs():
            try:
                run = there.run(summary.id)
            except RunError as error:
                gone.append(str(error))
                continue
            assert contents(run.folder) == expected
            assert run.manifest == source.manifest | {"run": summary.id}
            read_fully(run)
            opened_ += 1
            there.remote.drop("runs", run.id)
    changes = [int(ended(writer)) for writer in writers]
    assert opened_ >= 5
    assert all(sentence.startswith("There is no run 'run-") for sentence in gone)
    assert min(changes) >= 5
    print(f"{sum(changes)} changes, {opened_} runs read whole, {len(gone)} were gone before they were read")


@pytest.mark.parametrize("spoilt", [3, 1000])
def test_on_a_disk_a_run_that_others_delete_at_the_moment_it_is_sent_is_sent_again(spoilt, source, tmp_path, monkeypatch):
    """Before an object has its name it is one more file of the folder, which deleting that folder takes along."""
    monkeypatch.setenv("NEURFLOW_CACHE", str(tmp_path / "here"))
    workspace, other = Workspace(f"file://{tmp_path / 'disk'}"), remote.Remote(f"file://{tmp_path / 'disk'}", tmp_path / "other")
    replace, sent = os.replace, []

    def too_late(unfinished: str | Path, path: str | Path) -> None:
        if str(path).endswith(".tar"):
            sent.append(path)
            if len(sent) <= spoilt:
                other.delete("runs", "cats")
        replace(unfinished, path)

    monkeypatch.setattr(os, "replace", too_late)
    if spoilt > 3:
        with pytest.raises(WorkspaceError, match=r"^Workspace file:///\S+ cannot be written: FileNotFoundError \(No such file"):
            build(workspace, "cats", source)
        return
    build(workspace, "cats", source)
    assert len(sent) == 4
    assert other.bring("runs", "cats")
    assert contents(tmp_path / "other" / "runs" / "cats") == contents(source.folder)


@pytest.mark.parametrize("moment", ["archive is sent", "entry is sent", "entry was answered"])
def test_a_writer_killed_while_it_publishes_leaves_nothing_half_and_the_next_ends_it(moment, storage, shared, on, source, tmp_path):
    bucket = shared.split("/")[2]
    reached, go_on = threading.Event(), threading.Event()
    word = {"archive is sent": "/archives/", "entry is sent": "/entries/", "entry was answered": "/entries/"}[moment]

    def hold(method: str, path: str) -> None:
        if method == "PUT" and word in path and bucket in path:
            reached.set()
            assert go_on.wait(60)

    if moment == "entry was answered":
        storage.after = hold
    else:
        storage.before = hold
    writer = machine(tmp_path / "here", shared, source, "build", "cats")
    try:
        assert reached.wait(60)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    finally:
        go_on.set()
        storage.before = storage.after = lambda method, path: None
    there, here = on("there"), on("here")
    for _ in range(20):  # what the server had got of it may still come to something
        for summary in there.runs():
            assert contents(there.run(summary.id).folder) == contents(source.folder)
        time.sleep(0.02)
    # an entry that the server had got in full before the writer died may count: what it tells of is there
    assert bool(there.runs()) in {"archive is sent": [False], "entry is sent": [False, True], "entry was answered": [True]}[moment]
    assert not (here.run_folder("cats") / MANIFEST).exists()
    ended(machine(tmp_path / "here", shared, source, "build", "cats"))
    assert contents(here.run_folder("cats")) == contents(source.folder)
    assert contents(there.run("cats").folder) == contents(source.folder)
    assert len([key for key in storage.keys(bucket) if key.startswith("archives/")]) == 1


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_any_storage_that_fsspec_speaks_will_do(protocol, source, tmp_path, monkeypatch):
    url = f"{protocol}://{tmp_path / 'storage'}"
    seen = {}
    for place in ("here", "there"):
        monkeypatch.setenv("NEURFLOW_CACHE", str(tmp_path / place))
        seen[place] = Workspace(url)
    here, there = seen.values()
    build(here, "cats", source)
    assert [run.id for run in there.runs()] == ["cats"]
    assert contents(there.run("cats").folder) == contents(source.folder)
    there.remote.delete("runs", "cats")
    assert here.runs() == []
    with pytest.raises(RunError, match="There is no run 'cats'"):
        here.run("cats")


def test_what_is_damaged_on_the_storage_is_refused(storage, shared, on, source):
    build(on("here"), "cats", source)
    bucket = shared.split("/")[2]
    (key,) = (key for key in storage.keys(bucket) if key.startswith("archives/"))
    content = storage.client().get_object(Bucket=bucket, Key=f"team/{key}")["Body"].read()
    storage.client().put_object(Bucket=bucket, Key=f"team/{key}", Body=content[: len(content) // 2])
    with pytest.raises(WorkspaceError, match="runs/cats is damaged"):
        on("there").run("cats")
    assert not on("there").run_folder("cats").exists()


class TestOneSentence:
    """Whatever is wrong with the storage; none holds a key or a traceback."""

    @pytest.fixture
    def said(self, shared, capfd, monkeypatch) -> Callable[..., str]:
        def command(url: str = shared, *, words: tuple[str, ...] = ("circuit", "cats"), **environment: str | None) -> str:
            own = {name: value for name, value in (os.environ | environment).items() if value is not None}
            done = subprocess.run(
                [sys.executable, "-m", "neurflow_engine", *words, "--workspace", url], cwd=ROOT, env=own, capture_output=True, text=True
            )
            assert done.returncode == 2, done.stderr
            assert not done.stdout
            assert len(done.stderr.strip().splitlines()) == 1
            assert s3.CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in done.stderr
            assert s3.CREDENTIALS["AWS_ACCESS_KEY_ID"] not in done.stderr
            return done.stderr

        return command

    def test_says_that_there_is_no_bucket(self, said):
        assert "no bucket 'nowhere-at-all' is there; make it first" in said("s3://nowhere-at-all/team")

    def test_says_that_the_storage_does_not_answer(self, said):
        assert "does not answer; check the network" in said(AWS_ENDPOINT_URL="http://127.0.0.1:9")

    def test_says_that_credentials_are_missing(self, said):
        nothing = dict.fromkeys((*s3.CREDENTIALS, "AWS_PROFILE")) | {"AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nowhere"}
        assert "no credentials, or none that are valid" in said(**nothing)

    def test_says_that_credentials_are_refused(self, said, shared, storage):
        storage.closed.add(shared.split("/")[2])
        assert "the storage refuses these credentials" in said()

    def test_says_so_at_once_when_a_page_asks_again(self, shared, on, storage):
        storage.closed.add(shared.split("/")[2])
        patient = on("here", patience=60)
        with pytest.raises(WorkspaceError, match="refuses these credentials"):
            patient.runs()
        with storage.counting() as asked:
            for _ in range(3):
                with pytest.raises(WorkspaceError, match="refuses these credentials"):
                    patient.runs()
        assert not asked
        storage.closed.clear()
        assert on("here").runs() == []

    def test_says_what_to_install(self, said):
        assert "needs gcsfs, which is not installed; install it with: pip install gcsfs" in said("gs://bucket/team")

    def test_says_that_a_protocol_is_unknown(self, said):
        assert "nothing is known about nosuch://" in said("nosuch://bucket/team")

    def test_never_repeats_a_password_of_an_address(self, said):
        secret = said("s3://key:hunter2@bucket/team")
        assert "holds a name or a password" in secret
        assert "hunter2" not in secret

    @pytest.mark.parametrize("database", [None, "sqlite:////tmp/labels.sqlite"])
    def test_says_that_labels_need_a_database_for_all(self, said, database):
        sentence = said(words=("runs", "list"), NEURFLOW_DATABASE_URL=database)
        assert "is shared by several machines, so its labels need a database that all of them reach" in sentence


class TestTheApp:
    @pytest.fixture
    def away(self, shared, on, demo_run, postgres_database, monkeypatch) -> Run:
        """The demo's run, on the storage alone."""
        monkeypatch.setenv("NEURFLOW_DATABASE_URL", postgres_database)
        build(on("elsewhere"), demo_run.id, demo_run)
        return demo_run

    def test_opens_a_run_that_lies_on_the_storage_alone_and_names_a_group_for_everybody(self, away, shared, storage):
        group = next(group.id for group in away.circuit.groups if group.layer != "logits")
        label = LabelStore.for_workspace(shared).edit(away.id, group, "white sail", "ana", 0)
        app = opened("circuit", run=away.id, group=group)
        assert not app.error
        assert away.id in written(app)
        assert label.text in written(app) + " ".join(text.value for text in app.text)
        assert contents(Workspace().run_folder(away.id)) == contents(away.folder)
        time.sleep(0.2)
        began = time.monotonic()
        with storage.counting() as asked:
            for page in ("labels", "circuit", "labels"):
                app.switch_page(f"pages/{page}.py").run()
                assert not app.error
        assert len(asked) <= 1 + (time.monotonic() - began) // 10  # one look in ten seconds, and nothing is read again
        assert not [path for _, path in asked if "archives" in path]

    @pytest.mark.parametrize("page", ["analyze", "debug", "compare", "sweep"])
    def test_opens_every_page(self, away, page):
        app = opened(page, run=away.id)
        assert not app.error
        assert away.id in written(app)

    def test_deletes_copies_at_a_click_and_runs_for_everybody(self, away, on):
        def dialog():
            from pages.ui import storage

            storage.contents()

        assert cached.run(away.id).folder.is_dir()
        app = AppTest.from_function(dialog, default_timeout=60).run()
        assert any("on the shared storage; this machine keeps local copies" in text.value for text in app.text)
        app.button(key="delete_copies").click().run()
        assert not app.exception
        assert not Workspace().run_folder(away.id).exists()
        assert contents(cached.run(away.id).folder) == contents(away.folder)
        app.session_state["stored_runs"] = {"selection": {"rows": [0], "columns": [], "cells": []}}
        app.run()
        (sure,) = (box for box in app.checkbox if box.key == f"sure_{away.id}")
        assert "for everybody" in sure.label
        sure.check().run()
        app.button(key=f"delete_{away.id}").click().run()
        assert not app.exception
        assert on("elsewhere").runs() == []

    def test_starts_jobs_on_the_shared_workspace(self, shared, monkeypatch, tmp_path):
        job = commands.demo()
        try:
            assert job.argv[-2:] == ("--workspace", shared)
            assert job.folder.is_relative_to(tmp_path / "here")
        finally:
            commands.cancel(job)
        while cached.jobs().get(job.id).active:
            time.sleep(0.05)

    def test_reads_images_of_its_own_mirror_and_nothing_else_there(self, shared, monkeypatch, tmp_path):
        monkeypatch.setenv("NEURFLOW_ROOTS", "")
        access.check_readable(Workspace().demo_folder / "images", "Folder")
        with pytest.raises(AccessError):
            access.check_readable(Workspace().root / "runs", "Folder")

    def test_says_in_one_sentence_that_labels_need_a_database(self, away, monkeypatch):
        monkeypatch.delenv("NEURFLOW_DATABASE_URL")
        app = opened("labels", run=away.id)
        assert "NEURFLOW\\_DATABASE\\_URL is not set" in " ".join(error.value for error in app.error)


def entries_put(storage: s3.S3, bucket: str) -> list[str]:
    """The entries that anybody wrote to a bucket, but for those of sweeps, which grow."""
    prefix = f"/{bucket}/team/entries/"
    put = [path.removeprefix(prefix) for method, path in storage.asked if method == "PUT" and path.startswith(prefix)]
    return [path for path in put if not path.startswith("sweeps/")]


@pytest.mark.slow
def test_a_sweep_killed_on_one_machine_goes_on_on_another_and_does_no_class_twice(
    storage, shared, on, demo_config, demo_run, postgres_database, monkeypatch, tmp_path
):
    monkeypatch.setenv("NEURFLOW_DATABASE_URL", postgres_database)
    flags = {"model": demo_config.model.name, "data": demo_config.data, "targets": "sailboat,owl,fish", "max-images": 12, "top-k": 10}
    flags |= {"device": "cpu", "draws": 10, "parallel": 1}
    command = [sys.executable, "-m", "neurflow_engine", "sweep", "--json", *(f"--{name}={value}" for name, value in flags.items())]

    def start(place: str) -> subprocess.Popen:
        own = os.environ | {"NEURFLOW_CACHE": str(tmp_path / place)}
        return subprocess.Popen(
            command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    first, watching = start("first"), on("watching")
    try:
        while not any(sweep.n_ended for sweep in sweeps(watching)):
            assert first.poll() is None, first.communicate()
            time.sleep(0.2)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    (seen,) = sweeps(watching)
    assert not seen.is_finished
    assert 1 <= seen.n_ended < 3
    (ended_before, *_) = (outcome for outcome in seen.classes if outcome.ended)
    LabelStore.for_workspace(shared).edit(ended_before.run, "layer4/0", "a name from the first machine", "ana", 0)

    second = start("second")
    out, words = second.communicate(timeout=300)
    assert second.returncode == 0, words
    made = json.loads(out)
    assert made["finished"]
    assert {outcome["state"] for outcome in made["classes"]} == {ClassState.DONE}
    put = entries_put(storage, shared.split("/")[2])
    assert sorted(path.split("/")[0] for path in put) == ["debug"] * 3 + ["evaluations"] + ["runs"] * 3 + ["surveys"]
    assert len(set(put)) == len(put)  # every class was analysed and debugged once, on one machine or the other
    by_name = {outcome["name"]: outcome for outcome in made["classes"]}
    before = {outcome["name"]: outcome for outcome in json.loads(json.dumps(seen.as_json()))["classes"]}
    assert by_name[ended_before.name] == before[ended_before.name]
    third = on("third")
    for outcome in made["classes"]:
        assert third.run(outcome["run"]).circuit.groups
        assert third.open_debug_report(outcome["report"]).groups
    own = third.run(by_name["sailboat"]["run"])
    assert own.manifest["fingerprint"] == demo_run.manifest["fingerprint"]  # of a workspace in a folder
    assert [group.patches for group in own.circuit.groups] == [group.patches for group in demo_run.circuit.groups]
    label = LabelStore.for_workspace(shared).get(ended_before.run, "layer4/0")
    assert label.text == "a name from the first machine"
