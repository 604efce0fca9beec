"""Progress: stages are timed, shown, and stopped at their next step."""

import io
import json
import resource
import time

import pytest

from neurflow_engine.errors import WorkspaceError
from neurflow_engine.progress import Bars, Both, Cancelled, Events, Silent


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_finished_stages_are_timed_in_order_and_repeats_add_up():
    progress = Silent()
    for name in ("patches", "activations", "patches"):
        with progress.stage(name, total=1) as tick:
            time.sleep(0.02)
            tick.advance()
    assert list(progress.seconds) == ["patches", "activations"]
    assert progress.seconds["patches"] >= 0.04
    assert progress.seconds["activations"] >= 0.02


def test_a_stop_takes_effect_at_the_next_step_and_the_stage_does_not_count_as_finished():
    progress, steps = Silent(), []

    def work():
        with progress.stage("activations", total=10) as tick:
            for step in range(10):
                if step == 3:
                    progress.stop()
                steps.append(step)
                tick.advance()

    with pytest.raises(Cancelled, match="resume"):
        work()
    assert steps == [0, 1, 2, 3]
    assert progress.seconds == {}
    with pytest.raises(Cancelled):  # nor does another stage begin
        work()
    assert steps == [0, 1, 2, 3]


def test_events_tell_start_and_end_of_each_stage_and_how_it_ended_once(tmp_path):
    progress = Events(tmp_path / "events.jsonl")
    with progress.stage("activations", total=1000) as tick:
        for _ in range(1000):
            tick.advance()
    progress.finish("failed", "The disk is full.")
    progress.finish("done")
    first, *_, end, last = lines(tmp_path / "events.jsonl")
    assert (first["stage"], first["done"], first["total"]) == ("activations", 0, 1000)
    assert (end["stage"], end["done"], end["total"]) == ("activations", 1000, 1000)
    assert end["seconds"] == pytest.approx(progress.seconds["activations"], abs=0.001)
    assert (last["event"], last["message"]) == ("failed", "The disk is full.")
    assert first["time"] <= end["time"] <= last["time"]


def test_events_of_a_fast_stage_are_throttled(tmp_path):
    progress = Events(tmp_path / "events.jsonl")
    began = time.monotonic()
    with progress.stage("activations", total=None) as tick:
        while time.monotonic() - began < 0.6:
            tick.advance()
    dones = [event["done"] for event in lines(tmp_path / "events.jsonl")]
    assert 3 <= len(dones) <= 4  # start, one or two refreshes, end
    assert dones == sorted(dones)


def test_an_unwritable_event_file_is_one_sentence(tmp_path):
    with pytest.raises(WorkspaceError, match="cannot be written"), Events(tmp_path / "missing" / "events.jsonl").stage("a"):
        pass


def test_the_last_words_are_written_where_no_room_is_left_for_more(tmp_path):
    path = tmp_path / "events.jsonl"
    progress = Events(path)
    for name in ("patches", "activations", "circuit"):
        with progress.stage(name):
            pass
    before, written = resource.getrlimit(resource.RLIMIT_FSIZE), path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (written, before[1]))
    try:
        with pytest.raises(WorkspaceError, match="File too large"), progress.stage("thumbnails"):
            pass
        progress.finish("failed", "The disk is full.")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.stat().st_size == written
    last = path.read_text().splitlines()[-1]
    assert json.loads(last) | {"time": 0} == {"time": 0, "event": "failed", "message": "The disk is full."}


def test_bars_show_the_stage_its_steps_and_the_time_left():
    stream = io.StringIO()
    progress = Bars(stream)
    with progress.stage("activations", total=4) as tick:
        tick.advance(4)
    assert "activations" in stream.getvalue()
    assert "4/4" in stream.getvalue()
    assert "<" in stream.getvalue()  # tqdm writes elapsed<left


def test_both_feeds_every_part_and_is_stopped_by_any_of_them(tmp_path):
    stream = io.StringIO()
    events = Events(tmp_path / "events.jsonl")
    progress = Both(Bars(stream), events)
    with progress.stage("patches", total=2) as tick:
        tick.advance(2)
    events.stop()
    with pytest.raises(Cancelled), progress.stage("activations"):
        pass
    progress.finish("cancelled")
    assert "2/2" in stream.getvalue()
    assert [event.get("stage") or event["event"] for event in lines(tmp_path / "events.jsonl")] == ["patches", "patches", "cancelled"]
