"""Labels: several people name groups in one database; nothing is lost and nobody overwrites anybody unseen."""

import csv
import io
import json
import re
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy

from neurflow_engine.errors import InputError, LabelConflictError, WorkspaceError
from neurflow_engine.labels import LabelState, LabelStore, checked_text, read_csv, read_json, to_csv, to_json

STORE = LabelStore  # of the fixture "store"
RUN, GROUP = "demo-1", "blocks.3/2"
EVIDENCE = {"patches": [["owl/1.png", 0, 0, 16, 16]], "score": {"f1": {"value": 0.75}}}

only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def one_sentence(error):
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert "Traceback" not in text
    return text


# one person


def test_a_group_that_nobody_named_has_no_label(store):
    assert store.get(RUN, GROUP) is None
    assert store.for_run(RUN) == {}
    assert store.history(RUN, GROUP) == []


def test_a_name_that_is_typed_is_in_force_and_can_be_approved(store):
    before = datetime.now(UTC)
    edited = store.edit(RUN, GROUP, "orange wing panel", "ana", 0)
    assert (edited.text, edited.state, edited.author, edited.version) == ("orange wing panel", LabelState.EDITED, "ana", 1)
    approved = store.decide(RUN, GROUP, "approved", "bob", 1)
    assert (approved.text, approved.state, approved.author, approved.version) == ("orange wing panel", "approved", "bob", 2)
    assert store.get(RUN, GROUP) == approved
    assert store.for_run(RUN) == {GROUP: approved}
    assert approved.updated.utcoffset() == timedelta(0)
    assert before <= edited.updated <= approved.updated <= datetime.now(UTC)


def test_a_proposal_is_in_force_only_once_it_is_approved(store):
    proposed = store.propose(RUN, GROUP, "date stamp", "model x")
    assert (proposed.text, proposed.proposed, proposed.proposer, proposed.state) == (None, "date stamp", "model x", "pending")
    approved = store.decide(RUN, GROUP, LabelState.APPROVED, "ana", 1)
    assert (approved.text, approved.proposer, approved.author) == ("date stamp", "model x", "ana")


def test_a_later_proposal_does_not_touch_the_name_in_force(store):
    store.edit(RUN, GROUP, "snow", "ana", 0)
    after = store.propose(RUN, GROUP, "ice", "model x")
    assert (after.text, after.state, after.proposed) == ("snow", "edited", "ice")


def test_the_same_proposal_again_changes_nothing_and_a_new_one_reopens_a_rejected_label(store):
    store.propose(RUN, GROUP, "ice", "model x")
    rejected = store.decide(RUN, GROUP, "rejected", "ana", 1)
    assert (rejected.text, rejected.proposed) == (None, "ice")
    assert store.propose(RUN, GROUP, "ice", "model x") == rejected
    reopened = store.propose(RUN, GROUP, "glass", "model x")
    assert (reopened.state, reopened.proposed, reopened.version) == ("pending", "glass", 3)


@pytest.mark.parametrize("state", ["rejected", "pending"])
def test_a_typed_name_that_loses_its_force_stays_on_the_table(store, state):
    store.propose(RUN, GROUP, "ice", "model x")
    store.edit(RUN, GROUP, "snow", "ana", 1)
    store.decide(RUN, GROUP, "approved", "bob", 2)
    after = store.decide(RUN, GROUP, state, "bob", 3)
    assert (after.text, after.proposed, after.proposer, after.state) == (None, "snow", "ana", state)
    assert store.decide(RUN, GROUP, "approved", "bob", 4).text == "snow"


def test_rejecting_an_approved_proposal_keeps_the_newer_proposal_on_the_table(store):
    store.propose(RUN, GROUP, "ice", "model x")
    store.decide(RUN, GROUP, "approved", "ana", 1)
    store.propose(RUN, GROUP, "glass", "model y")
    after = store.decide(RUN, GROUP, "rejected", "ana", 3)
    assert (after.text, after.proposed, after.proposer) == (None, "glass", "model y")


def test_a_decision_that_changes_nothing_is_no_new_version(store):
    edited = store.edit(RUN, GROUP, "snow", "ana", 0)
    assert store.edit(RUN, GROUP, " snow ", "ana", 1) == edited
    approved = store.decide(RUN, GROUP, "approved", "ana", 1)
    assert store.decide(RUN, GROUP, "approved", "bob", 2) == approved
    assert store.edit(RUN, GROUP, "snow", "bob", 2) == approved


def test_nothing_can_be_approved_where_there_is_no_name(store):
    with pytest.raises(InputError, match=r"blocks.3/2 has no name to approve"):
        store.decide(RUN, GROUP, "approved", "ana", 0)
    with pytest.raises(InputError, match="approved, rejected or pending, got 'edited'"):
        store.decide(RUN, GROUP, "edited", "ana", 0)
    assert store.get(RUN, GROUP) is None


def test_history_tells_who_did_what_when(store):
    store.propose(RUN, GROUP, "ice", "model x")
    store.edit(RUN, GROUP, "snow", "ana", 1)
    store.decide(RUN, GROUP, "approved", "bob", 2)
    history = store.history(RUN, GROUP)
    assert [(change.version, change.action, change.text, change.proposed, change.author) for change in history] == [
        (1, "proposed", None, "ice", "model x"),
        (2, "edited", "snow", "ice", "ana"),
        (3, "approved", "snow", "ice", "bob"),
    ]
    assert [change.state for change in history] == [LabelState.PENDING, LabelState.EDITED, LabelState.APPROVED]
    assert [change.time for change in history] == sorted(change.time for change in history)
    assert history[-1].time == store.get(RUN, GROUP).updated


def test_undo_walks_back_step_by_step_and_only_adds_to_history(store):
    store.propose(RUN, GROUP, "ice", "model x")
    store.edit(RUN, GROUP, "snow", "ana", 1)
    store.decide(RUN, GROUP, "approved", "ana", 2)
    seen = []
    for version in (3, 4, 5):
        label = store.undo(RUN, GROUP, "bob", version)
        seen.append((label.version, label.state, label.text, label.proposed))
    assert seen == [(4, "edited", "snow", "ice"), (5, "pending", None, "ice"), (6, "pending", None, None)]
    with pytest.raises(InputError, match="Nothing is left to undo"):
        store.undo(RUN, GROUP, "bob", 6)
    assert [change.action for change in store.history(RUN, GROUP)] == ["proposed", "edited", "approved", "undone", "undone", "undone"]


def test_a_change_after_an_undo_is_undone_to_what_the_undo_brought_back(store):
    store.edit(RUN, GROUP, "snow", "ana", 0)
    store.edit(RUN, GROUP, "ice", "ana", 1)
    assert store.undo(RUN, GROUP, "ana", 2).text == "snow"
    store.edit(RUN, GROUP, "glass", "ana", 3)
    assert store.undo(RUN, GROUP, "ana", 4).text == "snow"
    assert store.undo(RUN, GROUP, "ana", 5).text is None
    with pytest.raises(InputError, match="Nothing is left"):
        store.undo(RUN, GROUP, "ana", 6)


def test_nothing_to_undo_where_nothing_was_done(store):
    with pytest.raises(InputError, match="Nothing is left to undo"):
        store.undo(RUN, GROUP, "ana", 0)


def test_a_name_is_corrected_and_approved_in_one_change_that_one_undo_takes_back(store):
    store.propose(RUN, GROUP, "ice", "model x")
    fixed = store.decide(RUN, GROUP, "approved", "ana", 1, text=" snow ")
    assert (fixed.text, fixed.state, fixed.proposed, fixed.version) == ("snow", "approved", "ice", 2)
    assert store.history(RUN, GROUP)[-1].action == "fixed"
    assert store.undo(RUN, GROUP, "ana", 2).text is None
    assert store.decide(RUN, GROUP, "approved", "ana", 3, text="ice").text == "ice"
    assert store.history(RUN, GROUP)[-1].action == "approved"  # nothing was corrected
    assert store.decide(RUN, GROUP, "approved", "ana", 4, text="glass").text == "glass"
    after = store.decide(RUN, GROUP, "rejected", "bob", 5)
    assert (after.text, after.proposed, after.proposer) == (None, "glass", "ana")
    assert store.decide(RUN, "layer/9", "approved", "ana", 0, text="typed").text == "typed"
    with pytest.raises(InputError, match="Only a name that is approved"):
        store.decide(RUN, GROUP, "rejected", "ana", 6, text="glass")
    with pytest.raises(InputError, match="visible"):
        store.decide(RUN, GROUP, "approved", "ana", 6, text=" ")


def test_the_evidence_of_an_approved_name_is_frozen_until_the_name_loses_its_force(store):
    store.propose(RUN, GROUP, "ice", "model x")
    approved = store.decide(RUN, GROUP, "approved", "ana", 1, EVIDENCE)
    assert approved.evidence == store.get(RUN, GROUP).evidence == store.history(RUN, GROUP)[-1].evidence == EVIDENCE
    assert store.decide(RUN, GROUP, "approved", "bob", 2, {"score": None}) == approved
    assert store.propose(RUN, GROUP, "glass", "model y").evidence == EVIDENCE
    assert store.edit(RUN, GROUP, "snow", "ana", 3).evidence is None
    assert store.undo(RUN, GROUP, "ana", 4).evidence == EVIDENCE
    assert store.decide(RUN, GROUP, "rejected", "ana", 5).evidence is None
    assert store.edit(RUN, GROUP, "snow", "ana", 6, {"patches": (1, 2)}).evidence == {"patches": [1, 2]}


def test_labels_can_be_read_without_their_evidence(store):
    store.propose(RUN, GROUP, "ice", "model x")
    approved = store.decide(RUN, GROUP, "approved", "ana", 1, EVIDENCE)
    assert store.for_run(RUN, evidence=False) == {GROUP: replace(approved, evidence=None)}
    assert store.for_run(RUN) == {GROUP: approved}


def test_evidence_that_json_cannot_hold_is_refused_and_nothing_is_written(store):
    for evidence in ({"f1": float("nan")}, {"when": datetime.now(UTC)}):
        with pytest.raises(InputError, match="The evidence of a label cannot be kept as JSON"):
            store.edit(RUN, GROUP, "snow", "ana", 0, evidence)
    assert store.get(RUN, GROUP) is None


def test_many_are_approved_at_once_and_those_that_cannot_be_are_named(store):
    for number in range(4):
        store.propose(RUN, f"layer/{number}", f"name {number}", "model x")
    store.decide(RUN, "layer/2", "rejected", "bob", 1)
    seen = [("layer/0", 1), ("layer/1", 1), ("layer/2", 1), ("layer/9", 0)]
    n, problems = store.approve_many(RUN, seen, "ana", {"layer/0": EVIDENCE})
    assert n == 2
    assert "bob changed the label of group layer/2 to rejected without a name" in problems[0]
    assert "layer/9 has no name to approve" in problems[1]
    assert {group: (label.state, label.evidence) for group, label in store.for_run(RUN).items()} == {
        "layer/0": ("approved", EVIDENCE),
        "layer/1": ("approved", None),
        "layer/2": ("rejected", None),
        "layer/3": ("pending", None),
    }


# texts


@pytest.mark.parametrize(
    "text",
    [
        "<b>bold</b><script>alert(1)</script>",
        "[a](javascript:alert(1)) ![](x)",
        "{{ 7 * 7 }}",
        "'; DROP TABLE labels; --",
        "雪と氷",
        "שלג",
        "👩‍👩‍👧 ears",
        "a" * 120,
    ],
)
def test_markup_and_unusual_characters_are_kept_as_they_are(store, database, text):
    store.edit(RUN, GROUP, text, "José 🦜", 0)
    kept = LabelStore(database).get(RUN, GROUP)
    assert (kept.text, kept.author) == (text, "José 🦜")


def test_a_text_is_stripped_and_composed(store):
    assert store.edit(RUN, GROUP, "  cafe\u0301 \t", "ana", 0).text == "caf\u00e9"
    assert len(checked_text("e\u0301" * 120)) == 120  # counted as people see them


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "visible"),
        ("  \n ", "visible"),
        ("\u200b\u200d", "visible"),
        ("a" * 121, "121 characters, at most 120"),
        ("two\nlines", "control characters"),
        ("a\x00b", "control characters"),
        ("a\u2028b", "control characters"),
        ("a\ud800b", "control characters"),
    ],
)
def test_an_unusable_text_is_refused_and_nothing_is_written(store, text, why):
    with pytest.raises(InputError, match=why) as error:
        store.edit(RUN, GROUP, text, "ana", 0)
    one_sentence(error)
    with pytest.raises(InputError, match=why):
        store.propose(RUN, GROUP, text, "model x")
    with pytest.raises(InputError, match="The author"):
        store.edit(RUN, GROUP, "snow", text, 0)
    assert store.get(RUN, GROUP) is None


# several people


def test_a_change_on_an_old_version_is_refused_with_both_texts(store, database):
    ana, bob = store, LabelStore(database)
    ana.edit(RUN, GROUP, "snow", "ana", 0)
    seen_by_bob = bob.get(RUN, GROUP).version
    ana.edit(RUN, GROUP, "ice", "ana", seen_by_bob)
    with pytest.raises(LabelConflictError) as error:
        bob.edit(RUN, GROUP, "glass", "bob", seen_by_bob)
    sentence = one_sentence(error)
    assert error.value.theirs == ana.get(RUN, GROUP)
    for part in ("ana", "“ice”", "“glass”", "blocks.3/2", f"{ana.get(RUN, GROUP).updated:%Y-%m-%d %H:%M}"):
        assert part in sentence
    for late in (
        lambda: bob.decide(RUN, GROUP, "rejected", "bob", seen_by_bob),
        lambda: bob.undo(RUN, GROUP, "bob", seen_by_bob),
        lambda: bob.edit(RUN, GROUP, "ice", "bob", 0),
        lambda: bob.edit(RUN, GROUP, "glass", "bob", 7),
        lambda: bob.edit(RUN, "other/0", "glass", "bob", 7),
    ):
        with pytest.raises(LabelConflictError):
            late()
    assert [change.text for change in bob.history(RUN, GROUP)] == ["snow", "ice"]
    assert bob.edit(RUN, GROUP, "glass", "bob", 2).text == "glass"


def test_of_many_who_change_one_version_exactly_one_succeeds(store, database):
    stores = [store, LabelStore(database)]

    def attempt(number, version):
        try:
            return stores[number % 2].edit(RUN, GROUP, f"name {number} of {version}", f"person {number}", version)
        except LabelConflictError:
            return None

    with ThreadPoolExecutor(20) as pool:
        for version in range(5):
            winners = [label for label in pool.map(attempt, range(20), [version] * 20) if label]
            assert len(winners) == 1
            assert winners[0] == store.get(RUN, GROUP)
    assert [change.version for change in store.history(RUN, GROUP)] == [1, 2, 3, 4, 5]


def test_twenty_threads_deciding_a_thousand_labels_lose_nothing_and_history_is_complete(database):
    n_threads, n_contested, groups = 20, 200, [f"layer/{number}" for number in range(1000)]
    stores = [LabelStore(database) for _ in range(4)]

    def decide(worker):
        """Some labels are decided by two of the threads; who is told to be late looks at them and decides again."""
        mine, told = stores[worker % 4], 0
        for group in groups[(worker + 1) % n_threads : n_contested : n_threads] + groups[worker::n_threads]:
            version = 0
            while True:
                try:
                    mine.decide(RUN, group, "approved", f"person {worker}", version, EVIDENCE, f"{group} by {worker}")
                    break
                except LabelConflictError as conflict:
                    told += 1
                    version = conflict.theirs.version
        return told

    with ThreadPoolExecutor(n_threads) as pool:
        assert sum(pool.map(decide, range(n_threads))) >= n_contested
    rows = {row["group_id"]: row for row in LabelStore(database).export_rows([RUN])}
    assert sorted(rows) == sorted(groups)
    for number, group in enumerate(groups):
        workers = [number % n_threads, (number - 1) % n_threads][: 2 if number < n_contested else 1]
        names, history = [f"{group} by {worker}" for worker in workers], rows[group]["history"]
        assert [(change["version"], change["action"]) for change in history] == [(n + 1, "fixed") for n in range(len(workers))]
        assert sorted(change["text"] for change in history) == sorted(names)
        assert all(change["author"].split()[-1] == change["text"].split()[-1] for change in history)
        assert rows[group]["text"] == history[-1]["text"]
    labels = stores[0].for_run(RUN)
    assert {group: label.text for group, label in labels.items()} == {group: row["text"] for group, row in rows.items()}
    for store in stores:
        store.close()


def test_proposals_made_at_once_all_arrive(store):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.propose(RUN, GROUP, f"proposal {number}", "model x"), range(20)))
    assert {change.proposed for change in store.history(RUN, GROUP)} == {f"proposal {number}" for number in range(20)}
    assert store.get(RUN, GROUP).version == 20


def test_a_new_database_may_be_opened_by_many_at_once(database):
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: LabelStore(database), range(8)))
    stores[0].edit(RUN, GROUP, "snow", "ana", 0)
    assert all(store.get(RUN, GROUP).text == "snow" for store in stores)


def test_another_process_sees_every_label(store, database):
    store.edit(RUN, GROUP, "snow", "ana", 0)
    code = (
        "from neurflow_engine.labels import LabelStore; "
        f"print(LabelStore({database!r}).decide({RUN!r}, {GROUP!r}, 'approved', 'bob', 1).text)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "snow\n"
    assert store.get(RUN, GROUP).author == "bob"


def test_a_reopened_store_sees_everything(store, database):
    store.propose(RUN, GROUP, "ice", "model x")
    store.edit(RUN, GROUP, "snow", "ana", 1)
    before = (store.for_run(RUN), store.history(RUN, GROUP), store.export_rows())
    store.close()
    again = LabelStore(database)
    assert (again.for_run(RUN), again.history(RUN, GROUP), again.export_rows()) == before


# the database


def test_the_workspace_holds_the_database_unless_a_url_is_set(tmp_path, monkeypatch):
    monkeypatch.delenv("NEURFLOW_DATABASE_URL", raising=False)
    workspace = tmp_path / "odd ?name%20#1"
    LabelStore.for_workspace(workspace).edit(RUN, GROUP, "snow", "ana", 0)
    assert (workspace / "labels.sqlite").exists()
    monkeypatch.setenv("NEURFLOW_DATABASE_URL", f"sqlite:///{tmp_path / 'elsewhere.sqlite'}")
    assert LabelStore.for_workspace(workspace).get(RUN, GROUP) is None
    assert (tmp_path / "elsewhere.sqlite").exists()


@only_sqlite
def test_a_read_only_database_can_be_read_and_a_change_is_refused_in_one_sentence(store, tmp_path):
    store.edit(RUN, GROUP, "snow", "ana", 0)
    store.close()
    reader = LabelStore(f"sqlite:///file:{tmp_path / 'labels.sqlite'}?mode=ro&uri=true")
    assert reader.get(RUN, GROUP).text == "snow"
    with pytest.raises(WorkspaceError, match="readonly") as error:
        reader.edit(RUN, GROUP, "ice", "ana", 1)
    one_sentence(error)
    assert reader.get(RUN, GROUP).text == "snow"


@only_sqlite
def test_a_full_database_refuses_a_change_in_one_sentence_and_keeps_what_it_has(database):
    store = LabelStore(database)
    store.edit(RUN, GROUP, "snow", "ana", 0)
    store.close()
    # SQLite's own limit makes it report the same error as a full disk
    sqlalchemy.event.listen(store._engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 1"))

    def fill():
        for number in range(2000):
            store.edit(RUN, f"layer/{number}", "x" * 120, "ana", 0)

    with pytest.raises(WorkspaceError, match="full") as error:
        fill()
    one_sentence(error)
    whole = LabelStore(database)
    for group in whole.for_run(RUN):
        assert len(whole.history(RUN, group)) == 1  # never a label without its history
    assert whole.get(RUN, GROUP).text == "snow"


@only_sqlite
def test_a_corrupt_database_is_refused_in_one_sentence(tmp_path, database):
    (tmp_path / "labels.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(WorkspaceError, match="not a database") as error:
        LabelStore(database)
    one_sentence(error)


@pytest.mark.parametrize(
    "bad",
    [
        "sqlite:////nowhere/at/all/labels.sqlite",
        "no url at all",
        "nosuchdatabase://host/labels",
        "sqlite+nosuchdriver:///labels.sqlite",
        "postgresql://ana:secret@/labels?host=/nowhere",
    ],
)
def test_an_unreachable_database_or_a_bad_url_is_one_sentence(bad):
    with pytest.raises(WorkspaceError) as error:
        LabelStore(bad)
    assert "NEURFLOW_DATABASE_URL" in one_sentence(error)
    assert "secret" not in str(error.value)


def test_a_workspace_that_cannot_be_created_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv("NEURFLOW_DATABASE_URL", raising=False)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkspaceError, match="cannot be created") as error:
        LabelStore.for_workspace(tmp_path / "file" / "workspace")
    one_sentence(error)


@only_sqlite
def test_sqlite_keeps_a_write_ahead_log_and_checks_foreign_keys(store, tmp_path):
    store.edit(RUN, GROUP, "snow", "ana", 0)
    with sqlite3.connect(tmp_path / "labels.sqlite") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    orphan = sqlalchemy.text(
        "INSERT INTO label_changes VALUES ('r', 'g', 1, 'edited', 'edited', 'x', NULL, NULL, NULL, 'ana', '2026-01-01', NULL)"
    )
    with store._engine.begin() as connection, pytest.raises(sqlalchemy.exc.IntegrityError):
        connection.execute(orphan)


# exports


def test_exports_hold_the_chosen_runs_sorted_and_round_trip(store):
    texts = ["=1+1", "+x", "-x", "@x", "'quoted", "''=twice", 'comma, "quote"', "＝wide", "plain", "<b>"]
    for number, text in enumerate(texts):
        store.edit("run-b", f"layer/{number}", text, "=ana", 0)
    store.propose("run-a", "layer/0", "ice", "model x")
    store.edit("run-c", "layer/0", "not asked for", "ana", 0)
    rows = store.export_rows(["run-b", "run-a"])
    assert [row["run_id"] for row in rows] == ["run-a"] + ["run-b"] * len(texts)
    assert len(store.export_rows()) == len(rows) + 1
    assert store.export_rows([]) == []

    label = store.get("run-a", "layer/0")
    (change,) = store.history("run-a", "layer/0")
    history = [asdict(change) | {"state": "pending", "time": label.updated.isoformat()}]
    assert rows[0] == asdict(label) | {"state": "pending", "updated": label.updated.isoformat(), "history": history}
    assert json.loads(to_json(rows)) == rows
    assert "＝wide" in to_json(rows)

    table = list(csv.DictReader(io.StringIO(to_csv(rows), newline="")))
    for row in table:  # what a spreadsheet opens: no cell is a formula
        assert not any(cell.startswith(("=", "+", "-", "@", "＝")) for cell in row.values())
    plain = [{name: cell.removeprefix("'") or None for name, cell in row.items()} for row in table]
    expected = [row | {"version": str(row["version"])} for row in rows]
    assert [row | {"history": json.loads(row["history"])} for row in plain] == expected


def test_an_empty_export_still_has_its_header(store):
    assert to_csv(store.export_rows()).splitlines() == [
        "run_id,group_id,proposed,proposer,text,state,author,updated,version,evidence,history"
    ]
    assert json.loads(to_json([])) == []


# imports


@pytest.fixture
def lived_in(store):
    """Labels in every state, with an undo, evidence and texts that tables have trouble with."""
    store.propose("run-a", "layer/0", "ice", "model x")
    store.edit("run-a", "layer/0", "=1+1", "ana", 1)
    store.undo("run-a", "layer/0", "bob", 2)
    store.edit("run-a", "layer/1", 'comma, "quote"; semicolon', "'ana'", 0, EVIDENCE)
    store.decide("run-a", "layer/1", "approved", "bob", 1, EVIDENCE | {"prompt": "雪\nline two"})
    store.propose("run-b", "layer/0", "<script>alert(1)</script>", "model x")
    store.decide("run-b", "layer/0", "rejected", "ana", 1)
    store.edit("run-b", "layer/1", "'apostrophe", "ana", 0)
    store.carry("run-b", "layer/2", "star", LabelState.NEEDS_REVIEW, "ana", EVIDENCE | {"carried": {"overlap": 0.31}})
    return store


@pytest.fixture
def empty(tmp_path):
    store = LabelStore(f"sqlite:///{tmp_path / 'another.sqlite'}")
    yield store
    store.close()


@pytest.mark.parametrize(("write", "read"), [(to_csv, read_csv), (to_json, read_json)], ids=["csv", "json"])
def test_an_export_brought_into_an_empty_workspace_is_equal_in_everything(lived_in, empty, write, read):
    content = write(lived_in.export_rows())
    rows, problems = read(content.encode())
    assert problems == []
    assert empty.import_rows(rows, "importer") == (5, [])
    for run in ("run-a", "run-b"):
        assert empty.for_run(run) == lived_in.for_run(run)
        for group in lived_in.for_run(run):
            assert empty.history(run, group) == lived_in.history(run, group)
    assert write(empty.export_rows()) == content
    assert empty.undo("run-a", "layer/0", "ana", 3).text is None  # an undo still knows what it went back to
    assert [change.version for change in empty.history("run-a", "layer/0")] == [1, 2, 3, 4]
    assert empty.import_rows(rows, "importer") == (0, [])  # older than what is here


def test_an_export_of_one_run_brings_in_this_run_only(lived_in, empty):
    assert empty.import_rows(lived_in.export_rows(["run-b"]), "importer") == (3, [])
    assert empty.for_run("run-a") == {}


def test_a_later_export_brings_in_what_was_added_and_an_earlier_one_nothing(lived_in, empty):
    earlier = lived_in.export_rows()
    empty.import_rows(earlier, "importer")
    lived_in.decide("run-a", "layer/0", "approved", "cid", 3)
    assert empty.import_rows(lived_in.export_rows(), "importer") == (1, [])
    assert empty.get("run-a", "layer/0") == lived_in.get("run-a", "layer/0")
    assert lived_in.import_rows(earlier, "importer") == (0, [])
    assert lived_in.get("run-a", "layer/0").text == "ice"


def test_a_row_that_was_changed_by_hand_is_a_change_by_who_imports_it(lived_in, empty):
    rows = lived_in.export_rows(["run-a"])
    rows[1] |= {"text": "red stripe"}
    for store in (lived_in, empty):
        assert store.import_rows(rows, "cid")[1] == []
        label = store.get("run-a", "layer/1")
        assert (label.text, label.state, label.author, label.version, label.evidence) == ("red stripe", "approved", "cid", 3, None)
        assert [change.action for change in store.history("run-a", "layer/1")] == ["edited", "approved", "imported"]


def test_a_row_that_was_changed_by_hand_never_overwrites_what_somebody_decided_since(lived_in):
    rows = lived_in.export_rows(["run-a"])
    rows[1] |= {"text": "red stripe"}
    lived_in.edit("run-a", "layer/1", "blue stripe", "cid", 2)
    n, (problem,) = lived_in.import_rows(rows, "dan")
    assert n == 0
    for part in ("layer/1", "cid", "“blue stripe”", "“red stripe” (approved)", "version 2"):
        assert part in problem
    assert lived_in.get("run-a", "layer/1").text == "blue stripe"


def test_histories_that_went_different_ways_are_not_mixed(lived_in, empty):
    empty.import_rows(lived_in.export_rows(), "importer")
    empty.edit("run-a", "layer/0", "here", "ana", 3)
    lived_in.edit("run-a", "layer/0", "there", "bob", 3)
    n, (problem,) = empty.import_rows(lived_in.export_rows(), "importer")
    assert n == 0
    assert "“here”" in problem
    assert "“there”" in problem
    assert [change.author for change in empty.history("run-a", "layer/0")][-1] == "ana"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_of_ones_own_needs_two_ids_and_a_name(store, separator):
    lines = ["\ufeffrun_id,group_id,text,colour", "demo-1,layer/0,red star,blue", "demo-1,layer/1,,", "demo-1,layer/2,'=sum,"]
    rows, problems = read_csv("\r\n".join(lines).replace(",", separator).encode())
    assert problems == []
    assert store.import_rows(rows, "ana") == (2, [])
    assert {group: (label.text, label.state, label.author) for group, label in store.for_run(RUN).items()} == {
        "layer/0": ("red star", "edited", "ana"),
        "layer/2": ("=sum", "edited", "ana"),
    }
    rows[0]["text"] = "blue star"
    n, (problem,) = store.import_rows(rows, "bob")
    assert n == 0
    assert "“red star”" in problem
    assert store.import_rows([rows[0] | {"version": 1}], "bob") == (1, [])
    assert store.get(RUN, "layer/0").text == "blue star"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"run_id": ""}, "The run_id needs at least one visible character"),
        ({"group_id": 7}, "The group_id of a label is text, got 7"),
        ({"state": "aproved"}, "There is no state 'aproved'.* Did you mean approved"),
        ({"state": "pending"}, "A label that is pending has no text"),
        ({"text": None, "state": "approved"}, "A label that is approved has a text"),
        ({"text": "x" * 121}, "121 characters"),
        ({"text": ["x"]}, "The text of a label is text"),
        ({"proposed": "ice"}, "A proposal and its proposer come together"),
        ({"version": "two"}, "The version of a label is a whole number, got 'two'"),
        ({"evidence": "{torn"}, "The evidence of a label is a JSON object"),
        ({"history": "[torn"}, "The history of a label is a list of changes"),
        ({"history": [{"version": 2}]}, "Change 1 in the history"),
        ({"history": [{"version": 1, "state": "pending", "action": "edited", "author": "a", "time": "now"}]}, "has no time such as"),
        ({"history": [{"version": 1, "action": "edited", "author": "a", "time": "2026-01-01T12:00:00"}]}, "does not say its zone"),
        ({"history": [{"version": 1, "action": "edited", "time": "2026-01-01T12:00:00+00:00"}]}, "The author needs at least one"),
        ({"history": [{"version": 1, "restores": 1, "action": "x", "author": "a", "time": "2026-01-01T12:00:00Z"}]}, "which is not before"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@only_sqlite
def test_a_bad_row_is_named_and_left_out_and_the_others_go_in(store, bad, why):
    good = [{"run_id": RUN, "group_id": f"layer/{number}", "text": f"name {number}"} for number in range(3)]
    rows, (problem,) = read_json(json.dumps([good[0], good[1] | bad, good[2]]))
    assert problem.startswith("Row 2 (group ")
    assert re.search(why, problem)
    assert store.import_rows(rows, "ana") == (2, [])
    n, (problem,) = store.import_rows([good[1] | bad], "ana")  # rows need not come from a file
    assert n == 0
    assert re.search(why, problem)
    assert sorted(store.for_run(RUN)) == ["layer/0", "layer/2"]


def test_a_bad_cell_of_a_table_and_a_group_that_comes_twice_are_named():
    table = f"run_id,group_id,text,version,history\n{RUN},a,one,1,\n{RUN},b,two,x,\n{RUN},c,three,,[torn\n{RUN},a,four,,\n"
    rows, problems = read_csv(table)
    assert [row["group_id"] for row in rows] == ["a"]
    assert [problem.split(":")[0] for problem in problems] == [
        f"Row {n} (group '{g}' of run 'demo-1')" for n, g in ((2, "b"), (3, "c"), (4, "a"))
    ]
    assert "row 1 is about the same group" in problems[2]


@pytest.mark.parametrize(
    ("read", "content", "why"),
    [
        (read_json, b"[{", "no JSON"),
        (read_json, b"[" * 100_000, "no JSON"),
        (read_json, b"{}", "a JSON dict, expected a list"),
        (read_json, b"\xff\xfe\x00", "no text in UTF-8"),
        (read_csv, b"\xff\xfe\x00", "no text in UTF-8"),
        (read_csv, b"", "no column run_id and no column group_id"),
        (read_csv, b"run,group_id\nx,y\n", "no column run_id.*Did you mean"),
        (read_csv, b'run_id,group_id\n"torn', "no CSV"),
    ],
)
def test_a_file_that_is_no_export_is_refused_in_one_sentence(read, content, why):
    with pytest.raises(InputError, match=why):
        read(content)


@pytest.mark.parametrize("content", ["[1, null, {}]", '[{"run_id": null, "group_id": {}}]'])
def test_rows_that_are_no_labels_at_all_are_named(store, content):
    rows, problems = read_json(content)
    assert rows == []
    assert len(problems) == len(json.loads(content))
