"""Jobs: real processes that are watched, cancelled, killed and found again."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from neurflow_engine import jobs as jobs_module
from neurflow_engine.errors import JobError, WorkspaceError
from neurflow_engine.jobs import CANCELLED, DIED, Job, Jobs, JobState

ROOT = Path(__file__).resolve().parents[1]
WORKER = (sys.executable, "-m", "tests.job_worker")


@pytest.fixture
def jobs(tmp_path):
    jobs = Jobs(tmp_path, WORKER)
    yield jobs
    for job in jobs.all():
        if job.running:
            os.killpg(pid_of(job), signal.SIGKILL)
            wait(jobs, job)


def pid_of(job: Job) -> int:
    return json.loads((job.folder / "worker.json").read_text())["pid"]


def wait(jobs: Jobs, job: Job, until=lambda job: not job.running, seconds=20) -> Job:
    deadline = time.monotonic() + seconds
    while not until(job := jobs.get(job.id)):
        assert time.monotonic() < deadline, job
        time.sleep(0.02)
    return job


def counting(job: Job) -> bool:
    return job.stage == "activations" and job.done > 0


def test_a_job_runs_to_its_end_and_keeps_its_result_stages_and_log(jobs):
    job = jobs.start("count", "Count to ten", ["count", 10])
    assert job.running
    assert job.result() is None
    assert (job.kind, job.title, job.argv) == ("count", "Count to ten", ("count", "10"))
    job = wait(jobs, job)
    assert (job.state, job.message) == (JobState.DONE, None)
    assert job.result() == {"counted": 10, "folder": str(ROOT)}
    assert (job.stage, job.done, job.total) == ("activations", 10, 10)
    assert [stage.name for stage in job.stages] == ["patches", "activations"]
    assert 0.5 <= job.stages[1].seconds <= job.seconds < 20
    assert job.seconds_left is None
    assert job.log() == ""


def test_a_running_job_tells_its_stage_and_the_time_left(jobs):
    job = jobs.start("count", "Count", ["count", 200])  # 10 s
    job = wait(jobs, job, lambda job: job.done >= 20)
    assert (job.stage, job.total) == ("activations", 200)
    assert [stage.name for stage in job.stages] == ["patches"]
    assert 5 < job.seconds_left < 100
    assert jobs.get(job.id).seconds >= job.seconds > 0


def test_a_failed_job_says_why_in_one_sentence_and_keeps_its_log(jobs):
    job = wait(jobs, jobs.start("count", "Count", ["fail", 10]))
    assert (job.state, job.message) == (JobState.FAILED, "The disk is full.")
    assert job.log() == "no space left"
    assert job.result() is None
    assert [stage.name for stage in job.stages] == ["patches"]
    assert (job.stage, job.done) == ("activations", 0)


def test_a_worker_that_refuses_its_arguments_failed_with_its_own_words(jobs):
    job = jobs.start("count", "Count", ["nonsense", 10])
    job = wait(jobs, job, lambda job: job.state == JobState.FAILED)
    assert "invalid choice: 'nonsense'" in job.message
    assert "\n" not in job.message


def test_a_killed_worker_is_recognised_as_dead_and_can_be_resumed(jobs):
    job = wait(jobs, jobs.start("count", "Count", ["count", 200], key="mine"), counting)
    os.kill(pid_of(job), signal.SIGKILL)
    died = wait(jobs, job)
    assert (died.state, died.message) == (JobState.DIED, DIED)
    assert (died.stage, died.seconds_left) == ("activations", None)
    assert died.seconds == pytest.approx(jobs.get(job.id).seconds)  # its clock has stopped
    again = jobs.resume(job.id)
    assert again.id != job.id
    assert again.running
    assert (again.kind, again.title, again.argv, again.key) == (job.kind, job.title, job.argv, "mine")
    assert jobs.get(job.id).state == JobState.DIED
    assert jobs.resume(job.id).id == again.id  # twice is once


def test_cancelling_stops_the_worker_at_its_next_step(jobs):
    job = wait(jobs, jobs.start("count", "Count", ["count", 200]), counting)
    began = time.monotonic()
    jobs.cancel(job.id)
    assert time.monotonic() - began < 1
    job = wait(jobs, job)
    assert (job.state, job.message) == (JobState.CANCELLED, CANCELLED)
    assert json.loads((job.folder / "events.jsonl").read_text().splitlines()[-1])["event"] == "cancelled"
    assert jobs.cancel(job.id) == job  # a job that ended stays as it is


def test_a_worker_stopped_from_outside_is_cancelled_too(jobs):
    job = wait(jobs, jobs.start("count", "Count", ["count", 200]), counting)
    os.kill(pid_of(job), signal.SIGTERM)
    assert wait(jobs, job).state == JobState.CANCELLED


def test_a_worker_that_does_not_listen_is_ended_by_force(jobs, monkeypatch):
    monkeypatch.setattr(jobs_module, "GRACE", 0.5)
    job = wait(jobs, jobs.start("count", "Count", ["deaf", 400]), counting)
    stopping = jobs.cancel(job.id)
    assert (stopping.state, stopping.message) == (JobState.RUNNING, "Stopping.")
    job = wait(jobs, job)
    assert (job.state, job.message) == (JobState.CANCELLED, CANCELLED)


def test_cancelling_also_ends_children_that_do_not_listen(jobs):
    job = wait(jobs, jobs.start("count", "Count", ["children", 400]), counting)
    (child,) = psutil.Process(pid_of(job)).children()
    jobs.cancel(job.id)
    assert wait(jobs, job).state == JobState.CANCELLED
    child.wait(5)
    assert not child.is_running()


def test_two_requests_with_one_key_are_one_job_while_it_runs(jobs, tmp_path):
    others = Jobs(tmp_path, WORKER)
    with ThreadPoolExecutor(8) as pool:
        started = list(pool.map(lambda number: (jobs, others)[number % 2].start("count", "Count", ["count", 200]), range(8)))
    assert len({job.id for job in started}) == 1
    other = jobs.start("count", "Count", ["count", 201])
    assert other.id != started[0].id
    assert jobs.start("count", "Another", ["count", 9], key=other.key).id == other.id
    jobs.cancel(other.id)
    wait(jobs, other)
    assert jobs.start("count", "Count", ["count", 201]).id != other.id


def test_a_restarted_server_sees_the_running_job_and_its_end(jobs, tmp_path):
    start = (
        "import sys; from neurflow_engine.jobs import Jobs\n"
        f"job = Jobs({str(tmp_path)!r}, {WORKER!r}).start('count', 'Count', ['count', '30'])\n"
        "print(job.id)"
    )
    job_id = subprocess.run([sys.executable, "-c", start], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    job = jobs.get(job_id)  # the server that started it is gone
    assert job.running
    assert jobs.start("count", "Count", ["count", 30]).id == job_id
    job = wait(jobs, job)
    assert job.state == JobState.DONE
    assert job.result()["counted"] == 30
    assert Jobs(tmp_path, WORKER).all() == [job]


def test_a_server_killed_before_it_noted_the_worker_still_finds_it(jobs, tmp_path):
    job = wait(jobs, jobs.start("count", "Count", ["count", 200]), counting)
    (job.folder / "worker.json").rename(tmp_path / "worker.json")
    request = json.loads((job.folder / "request.json").read_text())
    (job.folder / "request.json").write_text(json.dumps(request | {"created": "2020-01-01T00:00:00+00:00"}))
    assert Jobs(tmp_path).get(job.id).running
    jobs.cancel(job.id)
    assert wait(jobs, job).state == JobState.CANCELLED


def test_a_process_id_that_was_used_again_is_not_taken_for_the_worker(jobs):
    job = wait(jobs, jobs.start("count", "Count", ["count", 200]), counting)
    os.kill(pid_of(job), signal.SIGKILL)
    wait(jobs, job)
    (job.folder / "worker.json").write_text(json.dumps({"pid": os.getpid()}))
    assert jobs.get(job.id).state == JobState.DIED
    jobs.cancel(job.id)  # and does not end this test


def test_a_torn_last_event_is_ignored(jobs):
    job = wait(jobs, jobs.start("count", "Count", ["count", 200]), counting)
    os.kill(pid_of(job), signal.SIGKILL)
    before = wait(jobs, job)
    with open(job.folder / "events.jsonl", "a") as events:
        events.write('{"time": 1, "stage": "activ')
    assert jobs.get(job.id) == before


def test_jobs_are_listed_newest_first_and_can_be_removed_once_they_ended(jobs):
    first = jobs.start("count", "First", ["count", 1])
    second = jobs.start("count", "Second", ["count", 200])
    assert [job.id for job in jobs.all()] == [second.id, first.id]
    wait(jobs, first)
    jobs.remove(first.id)
    assert [job.id for job in jobs.all()] == [second.id]
    with pytest.raises(JobError, match=r"Second\) still runs; cancel it first"):
        jobs.remove(second.id)
    with pytest.raises(JobError, match="There is no job"):
        jobs.get(first.id)


@pytest.mark.parametrize(
    "job_id", ["", "..", "../jobs", "/etc", "20260101-000000-00000000/../x", "20260101-000000-00000000\n", "20260101-000000-00000000"]
)
def test_an_unknown_or_crooked_id_is_refused(jobs, tmp_path, job_id):
    (tmp_path / "request.json").write_text("{}")
    for act in (jobs.get, jobs.cancel, jobs.resume, jobs.remove):
        with pytest.raises(JobError, match="There is no job"):
            act(job_id)
    assert (tmp_path / "request.json").exists()


def test_near_ids_are_named(jobs):
    job = jobs.start("count", "Count", ["count", 1])
    with pytest.raises(JobError, match=f"Did you mean {job.id}"):
        jobs.get(job.id[:-1] + "x")


def test_an_empty_workspace_has_no_jobs_and_is_not_written_to(tmp_path):
    assert Jobs(tmp_path / "new").all() == []
    assert not (tmp_path / "new").exists()


def test_a_worker_that_cannot_be_started_leaves_no_job(tmp_path):
    jobs = Jobs(tmp_path, [str(tmp_path / "missing")])
    with pytest.raises(JobError, match="cannot be started"):
        jobs.start("count", "Count", [])
    assert jobs.all() == []


def test_an_unwritable_workspace_is_one_sentence(tmp_path):
    (tmp_path / "jobs").write_text("in the way")
    with pytest.raises(WorkspaceError, match=r"cannot be written: File exists; free space or choose another workspace\."):
        Jobs(tmp_path).start("count", "Count", [])
