"""Backups: everything worth keeping arrives, of either kind of database; a damaged or manipulated archive leaves nothing behind."""

import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
from contextlib import closing

import hand_made_labels
import pytest

import neurflow_engine
from neurflow_engine import backup
from neurflow_engine.__main__ import main
from neurflow_engine.backup import back_up, restore
from neurflow_engine.edits import EditStore
from neurflow_engine.errors import InputError, WorkspaceError
from neurflow_engine.labels import LabelStore
from neurflow_engine.proposals import ProposalStore
from neurflow_engine.sql_store import GroupStore, SqlStore
from neurflow_engine.store import Workspace
from neurflow_engine.verdicts import VerdictStore


@pytest.fixture(scope="module")
def made(demo_run, misled_report, demo_workspace, tmp_path_factory):
    """A workspace with everything in it, and its backup."""
    workspace = Workspace(shutil.copytree(demo_workspace.root, tmp_path_factory.mktemp("made") / "workspace"))
    say_everything(workspace, demo_run)
    (workspace.root / "llm").mkdir(exist_ok=True)
    (workspace.root / "llm" / "ab12.json").write_text("{}")
    (workspace.root / "runs" / "half.partial").mkdir()
    (workspace.root / "runs" / "half.partial" / "manifest.json").write_text("{}")
    (workspace.root / "jobs" / "20260101-000000-00000000").mkdir(parents=True)
    (workspace.root / "uploads").mkdir()
    (workspace.root / "uploads" / "mine.png").write_bytes(b"private")
    file = workspace.root.parent / "backup.tar.gz"
    return workspace, file, back_up(workspace, file)


def say_everything(workspace: Workspace, run) -> None:
    hand_made_labels.write(run, workspace.root)
    with closing(LabelStore.for_workspace(workspace.root)) as labels:
        labels.edit(run.id, run.circuit.groups[1].id, "white star", "ana", labels.get(run.id, run.circuit.groups[1].id).version)
    with closing(VerdictStore.for_workspace(workspace.root)) as verdicts:
        verdicts.give(run.id, run.circuit.groups[1].id, "spurious", "bob", 0, "a sticker")
    with closing(EditStore.for_workspace(workspace.root)) as edits:
        edits.pin(run, run.circuit.groups[1].id, "cid", 0)


def said(workspace: Workspace, run) -> list:
    """Everything that was said about a run."""
    with (
        closing(LabelStore.for_workspace(workspace.root)) as labels,
        closing(VerdictStore.for_workspace(workspace.root)) as verdicts,
        closing(EditStore.for_workspace(workspace.root)) as edits,
        closing(ProposalStore.for_workspace(workspace.root)) as proposals,
    ):
        group = run.circuit.groups[1].id
        told = [labels.export_rows([run.id]), verdicts.for_run(run.id), verdicts.history(run.id, group), edits.of(run.id)]
        return [*told, edits.history(run.id), proposals.for_run(run.id), proposals.scores(run.id)]


def content(workspace: Workspace) -> dict[str, str]:
    """Hashes of all files of runs, evaluations and reports."""
    files = (path for kind in backup.KINDS for path in workspace.root.glob(f"{kind}/[!.]*/**/*") if path.is_file())
    return {
        str(path.relative_to(workspace.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if ".partial" not in str(path)
    }


@pytest.fixture
def target(tmp_path) -> Workspace:
    return Workspace(tmp_path / "elsewhere")


def test_what_is_restored_elsewhere_is_what_was_there(made, target, demo_run):
    workspace, file, told = made
    assert restore(file, target)["runs"] == told["runs"] == len(workspace.runs())
    assert content(target) == content(workspace) != {}
    assert said(target, demo_run) == said(workspace, demo_run)
    assert target.open_run(demo_run.id).circuit == demo_run.circuit
    assert target.debug_reports(demo_run.id)[0].groups
    assert (target.root / "llm" / "ab12.json").is_file()
    assert sorted(path.name for path in target.root.iterdir() if path.name not in backup.KINDS) == ["labels.sqlite", "llm"]


def test_jobs_uploads_and_what_is_unfinished_stay_out(made):
    with tarfile.open(made[1]) as archive:
        names = archive.getnames()
        assert not [name for name in names if re.search(r"partial|jobs|uploads|\.lock", name)]
        assert {(member.uname, member.gname) for member in archive} == {("", "")}


def test_every_kind_of_store_is_in_a_backup():
    def kinds(of: type) -> set[type]:
        return {of} | {kind for own in of.__subclasses__() for kind in kinds(own)}

    assert neurflow_engine
    assert kinds(SqlStore) - {SqlStore, GroupStore} == set(backup.STORES)


def test_a_server_s_database_is_backed_up_and_restored(postgres_server, database, made, target, demo_run, tmp_path, monkeypatch):
    """From and to either kind: the database of the target is ``database``."""
    restore(made[1], target)
    expected = said(target, demo_run)
    monkeypatch.setenv("NEURFLOW_DATABASE_URL", database)
    first = Workspace(tmp_path / "first")
    restore(made[1], first)
    assert said(first, demo_run) == expected
    back_up(first, tmp_path / "again.tar.gz")
    with closing(ProposalStore(database)) as proposals:  # numbers go on where they were
        one = next(iter(proposals.for_run(demo_run.id).values()))[0]
        proposals.add(one)
    with pytest.raises(WorkspaceError, match="holds labels already; restore into an empty one"):
        restore(tmp_path / "again.tar.gz", Workspace(tmp_path / "second"))
    monkeypatch.delenv("NEURFLOW_DATABASE_URL")
    third = Workspace(tmp_path / "third")
    restore(tmp_path / "again.tar.gz", third)
    assert said(third, demo_run) == expected


def test_a_folder_that_holds_a_workspace_is_left_alone(made, demo_run):
    before = content(made[0])
    with pytest.raises(WorkspaceError, match="holds a workspace already"):
        restore(made[1], made[0])
    assert content(made[0]) == before


def test_a_workspace_without_labels_and_one_without_anything(tmp_path, demo_run):
    bare = Workspace(tmp_path / "bare")
    shutil.copytree(demo_run.folder, bare.run_folder(demo_run.id))
    back_up(bare, tmp_path / "bare.tar.gz")
    assert not (bare.root / "labels.sqlite").exists()
    assert restore(tmp_path / "bare.tar.gz", Workspace(tmp_path / "again"))["runs"] == 1
    with pytest.raises(WorkspaceError, match="does not exist, so there is nothing to back up"):
        back_up(Workspace(tmp_path / "nothing"), tmp_path / "nothing.tar.gz")


# archives that are damaged or made by somebody else


def archived(path, *members: tuple[tarfile.TarInfo | str, bytes], index: bool = True):
    """An archive of these files, with an index that says so."""
    known = {}
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members:
            header = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            header.size = len(data)
            known[header.name] = [len(data), hashlib.sha256(data).hexdigest()]
            archive.addfile(header, io.BytesIO(data))
        if index:
            data = json.dumps({"schema": 1, "created": "2026-01-01", "files": known}).encode()
            header = tarfile.TarInfo("backup.json")
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, to
    return header


@pytest.mark.parametrize(
    "member",
    [
        "../escaped",
        "/tmp/escaped-from-a-backup",
        "runs/../../escaped",
        "runs/./x/manifest.json",
        "runs//x",
        "runs",
        "anything/else",
        "jobs/20260101-000000-00000000/request.json",
        "labels.sqlite-wal",
        "runs\\..\\..\\escaped",
        link("runs/x", "/etc"),
        link("runs/x", "../../..", tarfile.LNKTYPE),
        link("runs/x", "", tarfile.FIFOTYPE),
        link("runs/x", "", tarfile.CHRTYPE),
    ],
    ids=lambda member: member if isinstance(member, str) else f"type {member.type.decode()}",
)
def test_nothing_leaves_the_folder_whatever_an_archive_holds(tmp_path, target, member):
    file = archived(tmp_path / "evil.tar.gz", ("runs/good/manifest.json", b"{}"), (member, b""))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="which no backup does; nothing was restored"):
        restore(file, target)
    assert sorted(path for path in tmp_path.rglob("*") if path != target.root) == before
    assert list(target.root.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut off", "changed", "no archive", "no index", "other content", "twice", "other version"])
def test_a_damaged_archive_is_refused_in_one_sentence_and_leaves_nothing(made, tmp_path, target, damage):
    file = tmp_path / "damaged.tar.gz"
    data = made[1].read_bytes()
    manifest = ("runs/x/manifest.json", b"{}")
    if damage == "cut off":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        file.write_bytes(data[:5000] + bytes(64) + data[5064:])
    elif damage == "no archive":
        file.write_bytes(os.urandom(5000))
    elif damage == "no index":
        archived(file, manifest, index=False)
    elif damage == "other content":
        archived(file, manifest, ("backup.json", json.dumps({"schema": 1, "files": {manifest[0]: [2, "0" * 64]}}).encode()), index=False)
    elif damage == "twice":
        archived(file, manifest, manifest)
    else:
        archived(file, manifest, ("backup.json", json.dumps({"schema": 9, "files": {}}).encode()), index=False)
    with pytest.raises(InputError) as error:
        restore(file, target)
    assert "\n" not in str(error.value)
    assert list(target.root.iterdir()) == []


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path, target):
    header = tarfile.TarInfo("runs/x/array.npy")
    header.size = shutil.disk_usage(tmp_path).free * 2
    (tmp_path / "bomb.tar").write_bytes(header.tobuf() + bytes(10240))
    with pytest.raises(WorkspaceError, match=r"has no room for runs/x/array\.npy"):
        restore(tmp_path / "bomb.tar", target)
    assert list(target.root.iterdir()) == []


@pytest.mark.parametrize("database", ["trigger", "noise"])
def test_a_database_that_no_backup_holds_is_refused(tmp_path, target, database):
    path = tmp_path / "evil.sqlite"
    if database == "trigger":
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript("CREATE TABLE labels (a); CREATE TRIGGER t AFTER INSERT ON labels BEGIN DELETE FROM labels; END;")
    else:
        path.write_bytes(os.urandom(4096))
    file = archived(tmp_path / "evil.tar.gz", ("labels.sqlite", path.read_bytes()))
    with pytest.raises(InputError, match="damaged or holds triggers"):
        restore(file, target)
    assert list(target.root.iterdir()) == []


def test_the_commands_say_what_they_did_and_name_what_is_missing(made, tmp_path, capsys, monkeypatch):
    workspace, _, told = made
    out, elsewhere = str(tmp_path / "b.tar.gz"), str(tmp_path / "new")
    assert main(["backup", "--workspace", str(workspace.root), "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == told["files"]
    assert main(["restore", out, "--workspace", elsewhere, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "workspace": elsewhere, "runs": told["runs"], "files": told["files"]}
    assert main(["restore", str(tmp_path / "none.tar.gz"), "--workspace", str(tmp_path / "x")]) == 2
    assert "There is no file" in capsys.readouterr().err
    assert main(["backup", "--workspace", str(workspace.root), "--out", "/proc/b.tar.gz"]) == 2
    assert "/proc cannot be written" in capsys.readouterr().err
