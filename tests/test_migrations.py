"""Databases of older programs are upgraded with a backup, on SQLite and on PostgreSQL; those of newer ones are refused."""

import re
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime

import pytest
import sqlalchemy as sql

from neurflow_engine import migrations
from neurflow_engine.edits import EditStore
from neurflow_engine.errors import WorkspaceError
from neurflow_engine.labels import LabelStore
from neurflow_engine.proposals import ProposalStore
from neurflow_engine.verdicts import VerdictStore

STORES = (LabelStore, VerdictStore, ProposalStore, EditStore)
RUN = "demo-1"

# what the program of version 1 wrote, on SQLite word for word
LABELS_1 = """
CREATE TABLE labels (
    run_id VARCHAR NOT NULL, group_id VARCHAR NOT NULL, state VARCHAR(16) NOT NULL, text VARCHAR, proposed VARCHAR, proposer VARCHAR,
    author VARCHAR NOT NULL, updated DATETIME NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (run_id, group_id));
CREATE TABLE label_changes (
    run_id VARCHAR NOT NULL, group_id VARCHAR NOT NULL, version INTEGER NOT NULL, action VARCHAR NOT NULL, state VARCHAR(16) NOT NULL,
    text VARCHAR, proposed VARCHAR, proposer VARCHAR, author VARCHAR NOT NULL, time DATETIME NOT NULL, restores INTEGER,
    PRIMARY KEY (run_id, group_id, version), FOREIGN KEY(run_id, group_id) REFERENCES labels (run_id, group_id));
CREATE TABLE schema_version (version INTEGER NOT NULL, PRIMARY KEY (version));
INSERT INTO labels VALUES('demo-1','layer/0','pending',NULL,'ice','model x','bob','2026-11-23 13:55:52.584220',3);
INSERT INTO label_changes
    VALUES('demo-1','layer/0',1,'proposed','pending',NULL,'ice','model x','model x','2026-11-23 13:55:52.569046',NULL);
INSERT INTO label_changes VALUES('demo-1','layer/0',2,'edited','edited','snow','ice','model x','ana','2026-11-23 13:55:52.575466',NULL);
INSERT INTO label_changes VALUES('demo-1','layer/0',3,'undone','pending',NULL,'ice','model x','bob','2026-11-23 13:55:52.584220',1);
INSERT INTO schema_version VALUES(1);
"""
VERDICTS_1 = """
CREATE TABLE verdicts (
    run_id VARCHAR NOT NULL, report_id VARCHAR NOT NULL, group_id VARCHAR NOT NULL, judgement VARCHAR(16), note VARCHAR,
    author VARCHAR NOT NULL, updated DATETIME NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (run_id, report_id, group_id));
CREATE TABLE verdict_changes (
    run_id VARCHAR NOT NULL, report_id VARCHAR NOT NULL, group_id VARCHAR NOT NULL, version INTEGER NOT NULL, action VARCHAR NOT NULL,
    judgement VARCHAR(16), note VARCHAR, author VARCHAR NOT NULL, time DATETIME NOT NULL, restores INTEGER,
    PRIMARY KEY (run_id, report_id, group_id, version),
    FOREIGN KEY(run_id, report_id, group_id) REFERENCES verdicts (run_id, report_id, group_id));
CREATE TABLE verdict_schema_version (version INTEGER NOT NULL, PRIMARY KEY (version));
INSERT INTO verdicts VALUES('demo-1','','layer/0','core','why','ana','2026-11-23 13:55:52.612079',1);
INSERT INTO verdict_changes VALUES('demo-1','','layer/0',1,'given','core','why','ana','2026-11-23 13:55:52.612079',NULL);
INSERT INTO verdict_schema_version VALUES(1);
"""

only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def run(url, script):
    """Run statements as the program of version 1 would have: on PostgreSQL with its type of times, in UTC."""
    engine = sql.create_engine(url)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            script = re.sub(r"'(2026[^']*)'", r"'\1+00:00'", script.replace("DATETIME", "TIMESTAMP WITH TIME ZONE"))
        for statement in filter(str.strip, script.split(";")):
            connection.execute(sql.text(statement))
    engine.dispose()


def rows(url, query):
    engine = sql.create_engine(url)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(sql.text(query))]
    engine.dispose()
    return found


def schema(url):
    """Every table with its columns (name, type, whether it may be empty), keys and indices."""
    engine = sql.create_engine(url)
    seen = sql.inspect(engine)
    tables = {
        table: (
            sorted((column["name"], str(column["type"]), column["nullable"]) for column in seen.get_columns(table)),
            seen.get_pk_constraint(table)["constrained_columns"],
            [key["constrained_columns"] for key in seen.get_foreign_keys(table)],
            [index["column_names"] for index in seen.get_indexes(table)],
        )
        for table in seen.get_table_names()
    }
    engine.dispose()
    return tables


def open_and_close(*kinds, url):
    for kind in kinds:
        kind(url).close()


def check_what_was_said(url):
    with closing(LabelStore(url)) as labels, closing(VerdictStore(url)) as verdicts:
        label = labels.get(RUN, "layer/0")
        assert (label.proposed, label.state, label.version, label.evidence) == ("ice", "pending", 3, None)
        assert label.updated == datetime(2026, 11, 23, 13, 55, 52, 584220, UTC)
        assert [(change.action, change.text, change.restores) for change in labels.history(RUN, "layer/0")] == [
            ("proposed", None, None),
            ("edited", "snow", None),
            ("undone", None, 1),
        ]
        verdict = verdicts.get(RUN, "layer/0")
        assert (verdict.judgement, verdict.note, verdict.author) == ("core", "why", "ana")
        assert labels.decide(RUN, "layer/0", "approved", "cid", 3, {"patches": [1]}).evidence == {"patches": [1]}
        assert labels.undo(RUN, "layer/0", "cid", 4).evidence is None
        assert verdicts.give(RUN, "layer/0", "spurious", "cid", 1).version == 2


@pytest.mark.parametrize("first", STORES)
def test_an_old_database_keeps_all_that_was_said_and_takes_what_is_new(database, first):
    run(database, LABELS_1 + VERDICTS_1)
    open_and_close(first, url=database)
    check_what_was_said(database)
    assert rows(database, "SELECT version FROM schema_version ORDER BY version") == [(1,), (migrations.VERSION,)]


def test_an_upgraded_database_is_made_like_a_new_one(database, tmp_path):
    run(database, LABELS_1 + VERDICTS_1)
    open_and_close(*STORES, url=database)
    upgraded = {table: columns for table, columns in schema(database).items() if not table.endswith("_v1")}
    open_and_close(*STORES, url=f"sqlite:///{tmp_path / 'new.sqlite'}")
    new = schema(f"sqlite:///{tmp_path / 'new.sqlite'}")
    assert (
        set(upgraded)
        == set(new)
        == {
            "labels",
            "label_changes",
            "verdicts",
            "verdict_changes",
            "proposals",
            "label_scores",
            "edits",
            "edit_changes",
            "schema_version",
        }
    )
    if database.startswith("sqlite"):
        assert upgraded == new
    else:  # types have other names there
        assert {table: [column[0] for column in parts[0]] for table, parts in upgraded.items()} == {
            table: [column[0] for column in parts[0]] for table, parts in new.items()
        }


@pytest.mark.parametrize("said", [LABELS_1, VERDICTS_1], ids=["labels", "verdicts"])
def test_an_old_database_of_one_kind_is_upgraded_too(database, said):
    run(database, said)
    open_and_close(*STORES, url=database)
    with closing(LabelStore(database)) as labels, closing(VerdictStore(database)) as verdicts:
        assert (len(labels.for_run(RUN)), len(verdicts.for_run(RUN))) == ((1, 0) if said == LABELS_1 else (0, 1))
        labels.edit(RUN, "layer/7", "star", "ana", 0, {"patches": []})


@only_sqlite
def test_a_file_is_copied_before_it_is_upgraded_and_the_copy_is_never_overwritten(database, tmp_path):
    run(database, LABELS_1 + VERDICTS_1)
    before = list(sqlite3.connect(tmp_path / "labels.sqlite").iterdump())
    open_and_close(*STORES, url=database)
    backup = tmp_path / "labels.sqlite.v1.bak"
    assert list(sqlite3.connect(backup).iterdump()) == before
    # whoever goes back to the copy finds everything there, and a second upgrade leaves it alone
    for old in tmp_path.glob("labels.sqlite-*"):
        old.unlink()
    shutil.copy(backup, tmp_path / "labels.sqlite")
    run(database, "UPDATE labels SET proposed = 'glass'")
    open_and_close(*STORES, url=database)
    assert sorted(path.name for path in tmp_path.glob("*.bak")) == ["labels.sqlite.v1.2.bak", "labels.sqlite.v1.bak"]
    assert list(sqlite3.connect(backup).iterdump()) == before
    assert sqlite3.connect(tmp_path / "labels.sqlite.v1.2.bak").execute("SELECT proposed FROM labels").fetchall() == [("glass",)]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_tables_on_a_server_are_copied_before_they_are_upgraded_and_those_of_others_are_left_alone(database):
    run(database, LABELS_1 + VERDICTS_1 + "CREATE TABLE invoices (id INTEGER)")
    open_and_close(*STORES, url=database)
    assert {name for name in schema(database) if name.endswith("_v1")} == {
        "labels_v1", "label_changes_v1", "verdicts_v1", "verdict_changes_v1",
    }  # fmt: skip
    assert rows(database, "SELECT version, action, text FROM label_changes_v1 ORDER BY version") == [
        (1, "proposed", None),
        (2, "edited", "snow"),
        (3, "undone", None),
    ]
    check_what_was_said(database)


@only_sqlite
def test_a_file_is_not_upgraded_when_it_cannot_be_copied(database, tmp_path):
    run(database, LABELS_1)
    (tmp_path / "labels.sqlite.v1.bak.partial").mkdir()
    with pytest.raises(WorkspaceError, match=r"version 1 was not upgraded, because its backup .*labels.sqlite.v1.bak cannot be written"):
        LabelStore(database)
    assert rows(database, "SELECT version FROM schema_version") == [(1,)]
    (tmp_path / "labels.sqlite.v1.bak.partial").rmdir()
    with closing(LabelStore(database)) as store:
        assert store.get(RUN, "layer/0").proposed == "ice"


def test_an_upgrade_that_fails_half_way_leaves_the_old_database(database, monkeypatch):
    run(database, LABELS_1 + VERDICTS_1)

    def broken(connection):
        steps[2](connection)
        connection.execute(sql.text("ALTER TABLE no_such_table ADD COLUMN x INTEGER"))

    steps = dict(migrations.STEPS)
    monkeypatch.setitem(migrations.STEPS, 2, broken)
    before = schema(database)
    with pytest.raises(WorkspaceError, match="no_such_table"):
        LabelStore(database)
    assert schema(database) == before
    assert rows(database, "SELECT version FROM schema_version") == [(1,)]
    monkeypatch.undo()
    open_and_close(LabelStore, url=database)
    check_what_was_said(database)


def test_many_who_open_an_old_database_at_once_upgrade_it_once(database):
    run(database, LABELS_1 + VERDICTS_1)
    with ThreadPoolExecutor(9) as pool:
        stores = list(pool.map(lambda kind: kind(database), STORES * 3))
    for store in stores:
        store.close()
    assert rows(database, "SELECT version FROM schema_version ORDER BY version") == [(1,), (2,)]
    check_what_was_said(database)


def test_many_who_open_a_new_database_at_once_make_it_once(database):
    with ThreadPoolExecutor(9) as pool:
        stores = list(pool.map(lambda kind: kind(database), STORES * 3))
    for store in stores:
        store.close()
    assert rows(database, "SELECT version FROM schema_version") == [(migrations.VERSION,)]


@only_sqlite
def test_a_first_opening_that_was_interrupted_is_finished(database):
    run(database, "CREATE TABLE schema_version (version INTEGER NOT NULL, PRIMARY KEY (version))")
    open_and_close(*STORES, url=database)
    with closing(LabelStore(database)) as store:
        assert store.edit(RUN, "layer/0", "star", "ana", 0, {"patches": []}).version == 1


@pytest.mark.parametrize("kind", STORES)
def test_a_database_of_a_newer_program_is_refused_in_one_sentence_and_left_as_it_is(database, kind):
    open_and_close(LabelStore, url=database)
    run(database, "INSERT INTO schema_version VALUES (99)")
    before = schema(database)
    with pytest.raises(
        WorkspaceError, match=rf"schema version 99, this program knows {migrations.VERSION}; update the program\.$"
    ) as error:
        kind(database)
    assert "\n" not in str(error.value)
    assert schema(database) == before
