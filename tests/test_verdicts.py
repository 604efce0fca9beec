"""Verdicts: what a person decided about a group is remembered, can be taken back, and is never overruled unseen."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from neurflow_engine.errors import InputError, VerdictConflictError
from neurflow_engine.labels import LabelStore
from neurflow_engine.verdicts import Judgement, VerdictStore

STORE = VerdictStore  # of the fixture "store"
RUN, GROUP, CONTRAST, REPORT = "demo-1", "blocks.3/2", "blocks.3/contrast-1", "demo-1-abc"


def test_a_group_that_nobody_judged_has_no_verdict(store):
    assert store.get(RUN, GROUP) is None
    assert store.for_run(RUN) == {}
    assert store.history(RUN, GROUP) == []


def test_a_verdict_is_remembered_with_author_time_and_note(store, database):
    before = datetime.now(UTC)
    given = store.give(RUN, GROUP, "spurious", "ana", 0, "  the cafe\u0301's stamp, not the dog ")
    assert (given.judgement, given.author, given.version) == (Judgement.SPURIOUS, "ana", 1)
    assert given.note == "the café's stamp, not the dog"
    assert given.updated.utcoffset() == timedelta(0)
    assert before <= given.updated <= datetime.now(UTC)
    again = VerdictStore(database)
    assert again.get(RUN, GROUP) == given
    assert again.for_run(RUN) == {GROUP: given}
    assert again.for_run("another run") == {}


def test_another_process_sees_a_verdict(store, database):
    store.give(RUN, GROUP, "core", "ana", 0)
    code = (
        "import sys; from neurflow_engine.verdicts import VerdictStore; "
        f"print(VerdictStore({database!r}).give({RUN!r}, {GROUP!r}, 'unclear', 'bob', 1).judgement, 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "unclear False\n"
    assert store.get(RUN, GROUP).author == "bob"


def test_history_tells_who_decided_what(store):
    store.give(RUN, GROUP, "unclear", "ana", 0, "too few images")
    store.give(RUN, GROUP, "spurious", "bob", 1)
    store.undo(RUN, GROUP, "bob", 2)
    assert [(change.version, change.action, change.judgement, change.note, change.author) for change in store.history(RUN, GROUP)] == [
        (1, "given", "unclear", "too few images", "ana"),
        (2, "given", "spurious", None, "bob"),
        (3, "undone", "unclear", "too few images", "bob"),
    ]


def test_the_same_verdict_again_changes_nothing_and_another_note_does(store):
    given = store.give(RUN, GROUP, "core", "ana", 0, "wings")
    assert store.give(RUN, GROUP, Judgement.CORE, "bob", 1, " wings ") == given
    assert store.give(RUN, GROUP, "core", "bob", 1, "").note is None
    assert len(store.history(RUN, GROUP)) == 2


def test_undo_walks_back_to_no_verdict_and_the_group_can_be_judged_again(store):
    store.give(RUN, GROUP, "core", "ana", 0)
    store.give(RUN, GROUP, "spurious", "ana", 1)
    assert store.undo(RUN, GROUP, "ana", 2).judgement == "core"
    assert store.undo(RUN, GROUP, "ana", 3).judgement is None
    with pytest.raises(InputError, match=r"Nothing is left to undo on the verdict of group blocks.3/2\."):
        store.undo(RUN, GROUP, "ana", 4)
    assert store.for_run(RUN)[GROUP].version == 4
    assert store.give(RUN, GROUP, "unclear", "ana", 4).judgement == "unclear"


def test_a_verdict_on_an_old_version_is_refused_with_both_verdicts(store, database):
    ana, bob = store, VerdictStore(database)
    ana.give(RUN, GROUP, "core", "ana", 0, "wings")
    for late in (
        lambda: bob.give(RUN, GROUP, "spurious", "bob", 0),
        lambda: bob.give(RUN, GROUP, "core", "bob", 0, "wings"),
        lambda: bob.undo(RUN, GROUP, "bob", 0),
        lambda: bob.give(RUN, "other/1", "spurious", "bob", 3),
    ):
        with pytest.raises(VerdictConflictError):
            late()
    with pytest.raises(VerdictConflictError) as error:
        bob.give(RUN, GROUP, "spurious", "bob", 0, "a stamp")
    for part in ("ana", "“core” (wings)", "“spurious” (a stamp)", GROUP, "version 1"):
        assert part in str(error.value)
    ana.undo(RUN, GROUP, "ana", 1)
    with pytest.raises(VerdictConflictError, match="ana took back the verdict on group"):
        bob.give(RUN, GROUP, "spurious", "bob", 1)
    assert [change.author for change in store.history(RUN, GROUP)] == ["ana", "ana"]


def test_of_many_who_judge_one_version_exactly_one_succeeds(store, database):
    stores = [store, VerdictStore(database)]

    def attempt(number):
        try:
            return stores[number % 2].give(RUN, GROUP, list(Judgement)[number % 3], f"person {number}", 0)
        except VerdictConflictError:
            return None

    with ThreadPoolExecutor(12) as pool:
        winners = [verdict for verdict in pool.map(attempt, range(12)) if verdict]
    assert winners == [store.get(RUN, GROUP)]
    assert len(store.history(RUN, GROUP)) == 1


def test_a_group_of_the_circuit_is_judged_once_for_all_reports_of_its_run(store):
    given = store.give(RUN, GROUP, "core", "ana", 0, report_id=REPORT)
    assert given.report_id == ""
    assert store.get(RUN, GROUP) == store.get(RUN, GROUP, "another report") == given
    assert store.for_run(RUN, "another report") == {GROUP: given}


def test_a_contrast_group_is_judged_within_its_report(store):
    here = store.give(RUN, CONTRAST, "spurious", "ana", 0, report_id=REPORT)
    there = store.give(RUN, CONTRAST, "core", "ana", 0, report_id="another report")
    assert store.for_run(RUN, REPORT) == {CONTRAST: here}
    assert store.for_run(RUN, "another report") == {CONTRAST: there}
    assert store.for_run(RUN) == {}
    store.undo(RUN, CONTRAST, "ana", 1, REPORT)
    assert [change.action for change in store.history(RUN, CONTRAST, REPORT)] == ["given", "undone"]
    assert [change.action for change in store.history(RUN, CONTRAST, "another report")] == ["given"]
    with pytest.raises(InputError, match=r"blocks.3/contrast-1 belongs to a debug report"):
        store.give(RUN, CONTRAST, "core", "ana", 0)


@pytest.mark.parametrize(
    ("judgement", "author", "note", "why"),
    [
        ("wrong", "ana", "", "core, spurious or unclear, got 'wrong'"),
        ("core", " ", "", "The author"),
        ("core", "ana", "two\nlines", "A note is one line"),
        ("core", "ana", "x" * 301, "A note has 301 characters, at most 300"),
    ],
)
def test_an_unusable_verdict_is_refused_and_nothing_is_written(store, judgement, author, note, why):
    with pytest.raises(InputError, match=why):
        store.give(RUN, GROUP, judgement, author, 0, note)
    assert store.get(RUN, GROUP) is None


def test_labels_and_verdicts_share_a_database_that_may_be_older_than_verdicts(tmp_path, monkeypatch):
    monkeypatch.delenv("NEURFLOW_DATABASE_URL", raising=False)
    labels = LabelStore.for_workspace(tmp_path)
    label = labels.edit(RUN, GROUP, "wings", "ana", 0)
    verdict = VerdictStore.for_workspace(tmp_path).give(RUN, GROUP, "core", "ana", 0)
    assert [path.name for path in tmp_path.glob("*.sqlite")] == ["labels.sqlite"]
    assert LabelStore.for_workspace(tmp_path).get(RUN, GROUP) == label
    assert VerdictStore.for_workspace(tmp_path).get(RUN, GROUP) == verdict
