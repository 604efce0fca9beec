"""The log: one line of JSON for each event, by many processes, bounded, and without a word of people or a secret."""

import json
import logging
import subprocess
import sys

import pytest

from neurflow_engine import logs
from neurflow_engine.errors import LabelConflictError

SECRET = "sk-very-secret-1234567890"


@pytest.fixture
def log(tmp_path):
    """The log of a workspace; afterwards nobody writes to it."""
    logs.begin(tmp_path)
    yield tmp_path / logs.FILE
    for handler in list(logging.getLogger("neurflow").handlers):
        logging.getLogger("neurflow").removeHandler(handler)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_event_is_one_line_with_its_ids(log):
    logs.event("job began", job="20260101-000000-0123abcd", kind="analyze", run="sailboat-1", seconds=1.23456)
    (line,) = lines(log)
    assert line["event"] == "job began"
    assert (line["job"], line["kind"], line["run"], line["seconds"]) == ("20260101-000000-0123abcd", "analyze", "sailboat-1", 1.235)
    assert line["level"] == "info"
    assert line["time"].endswith("+00:00")


def test_a_field_that_is_not_foreseen_is_refused(log):
    with pytest.raises(TypeError, match="no field author"):
        logs.event("label changed", run="x", author="ana")
    assert not log.exists()


def test_an_error_is_told_by_its_kind_and_place_but_not_in_its_words(log):
    try:
        raise LabelConflictError(f"ana wrote “white star” with {SECRET}")
    except LabelConflictError as error:
        logs.failure("page failed", error, page="labels")
        logging.getLogger("neurflow").exception("Lost %s", SECRET)
    text = log.read_text()
    assert SECRET not in text
    assert "white star" not in text
    first, second = lines(log)
    assert first["error"] == second["error"] == "LabelConflictError"
    assert first["where"][-1].startswith("test_logs.py:")
    assert first["level"] == "error"


def test_a_value_cannot_forge_a_line_or_bring_in_a_text(log):
    logs.event("opened", run='x"}\n{"event": "forged"}', page="p" * 5000)
    (line,) = lines(log)
    assert line["event"] == "opened"
    assert len(line["page"]) == 120
    assert 'forged"' not in log.read_text()


def test_beginning_twice_writes_every_event_once_and_another_workspace_gets_its_own(log, tmp_path):
    logs.begin(tmp_path)
    logs.event("once")
    assert len(lines(log)) == 1
    logs.begin(tmp_path / "other")
    logs.event("there")
    assert len(lines(log)) == 1
    assert len(lines(tmp_path / "other" / logs.FILE)) == 1


def test_a_server_says_it_on_stderr_too(tmp_path):
    code = f"from neurflow_engine import logs; logs.begin({str(tmp_path)!r}, also_stderr=True); logs.event('server began')"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(said.stderr)["event"] == "server began"
    assert said.stderr == (tmp_path / logs.FILE).read_text()


def test_full_files_are_set_aside_and_the_oldest_goes(log, monkeypatch):
    monkeypatch.setattr(logs, "LARGEST", 1000)
    for number in range(100):
        logs.event("tick", count=number)
    files = sorted(path.name for path in log.parent.glob("*.jsonl"))
    assert files == ["neurflow.1.jsonl", "neurflow.2.jsonl", "neurflow.3.jsonl", "neurflow.4.jsonl", "neurflow.jsonl"]
    assert all(path.stat().st_size <= 1000 for path in log.parent.glob("*.jsonl"))
    assert lines(log)[-1]["count"] == 99


def test_many_processes_write_whole_lines_while_files_are_set_aside(tmp_path):
    code = f"""
import sys
from neurflow_engine import logs
logs.LARGEST = 20_000
logs.begin({str(tmp_path)!r})
for number in range(100):
    logs.event("tick", count=number, kind=sys.argv[1])
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(number)]) for number in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    found = [line for path in (tmp_path / "logs").glob("*.jsonl") for line in lines(path)]
    assert {(line["kind"], line["count"]) for line in found} == {(str(kind), count) for kind in range(4) for count in range(100)}


def test_a_log_that_cannot_be_written_stops_nobody(tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    logs.begin(tmp_path)
    logs.event("unheard")
    assert (tmp_path / "logs").read_text() == "a file where the folder should be"
    for handler in list(logging.getLogger("neurflow").handlers):
        logging.getLogger("neurflow").removeHandler(handler)
