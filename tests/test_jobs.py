"""Jobs: real processes that are watched, cancelled, killed and found again."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from neurflow_engine import jobs as jobs_module
from neurflow_engine import turns
from neurflow_engine.errors import JobError, WorkspaceError
from neurflow_engine.jobs import CANCELLED, DIED, DIED_WAITING, Job, Jobs, JobState

ROOT = Path(__file__).resolve().parents[1]
WORKER = (sys.executable, "-m", "tests.job_worker")


@pytest.fixture
def jobs(tmp_path):
    jobs = Jobs(tmp_path, WORKER)
    yield jobs
    for job in jobs.all():
        if job.active:
            os.killpg(pid_of(job), signal.SIGKILL)
            wait(jobs, job)


def pid_of(job: Job) -> int:
    """Of the job's worker, by the file that only its own arguments name."""
    events = str(job.folder / "events.jsonl")
    found = (one.pid for one in psutil.process_iter(["cmdline"]) if events in (one.info["cmdline"] or ()))
    return next(pid for pid in found if os.getpgid(pid) == pid)


def wait(jobs: Jobs, job: Job, until=lambda job: not job.active, seconds=20) -> Job:
    deadline = time.monotonic() + seconds
    while not until(job := jobs.get(job.id)):
        assert time.monotonic() < deadline, job
        time.sleep(0.02)
    return job


def counting(job: Job) -> bool:
    return job.stage == "activations" and job.done > 0


def test_a_job_runs_to_its_end_and_keeps_its_result_stages_and_log(jobs):
    job = jobs.start("count", "Count to ten", ["count", 10])
    assert job.active
    assert job.result() is None
    assert (job.kind, job.title, job.argv) == ("count", "Count to ten", ("count", "10"))
    job = wait(jobs, job)
    assert (job.state, job.message) == (JobState.DONE, None)
    assert job.result() == {"counted": 10, "folder": str(ROOT)}
    assert (job.stage, job.done, job.total) == ("activations", 10, 10)
    assert job.created <= job.ended <= datetime.now(UTC)
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
    assert again.active
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


def test_cancelling_also_ends_children_that_do_not_listen(jobs, monkeypatch):
    monkeypatch.setattr(jobs_module, "GRACE", 0.5)
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
    assert job.active
    assert jobs.start("count", "Count", ["count", 30]).id == job_id
    job = wait(jobs, job)
    assert job.state == JobState.DONE
    assert job.result()["counted"] == 30
    assert Jobs(tmp_path, WORKER).all() == [job]


def test_cancelling_a_job_leaves_the_others_alone(jobs):
    first, second = (wait(jobs, jobs.start("count", "Count", ["count", steps]), counting) for steps in (200, 201))
    jobs.cancel(first.id)
    assert wait(jobs, first).state == JobState.CANCELLED
    done = jobs.get(second.id).done
    assert wait(jobs, second, lambda job: job.done > done).state == JobState.RUNNING


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
    for act in (jobs.remove, jobs.dismiss):
        with pytest.raises(JobError, match=r"Second\) is still (queued|running); cancel it first"):
            act(second.id)
    with pytest.raises(JobError, match="There is no job"):
        jobs.get(first.id)


@pytest.mark.parametrize(
    "job_id", ["", "..", "../jobs", "/etc", "20260101-000000-00000000/../x", "20260101-000000-00000000\n", "20260101-000000-00000000"]
)
def test_an_unknown_or_crooked_id_is_refused(jobs, tmp_path, job_id):
    (tmp_path / "request.json").write_text("{}")
    for act in (jobs.get, jobs.cancel, jobs.resume, jobs.remove, jobs.dismiss):
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


def test_a_command_that_does_not_exist_fails_with_a_sentence(tmp_path):
    jobs = Jobs(tmp_path, [str(tmp_path / "missing")])
    job = wait(jobs, jobs.start("count", "Count", []))
    assert (job.state, job.message) == (JobState.FAILED, f"The worker {tmp_path / 'missing'} cannot be started: No such file or directory.")


def test_a_job_that_cannot_be_started_leaves_nothing_behind(tmp_path, monkeypatch):
    jobs = Jobs(tmp_path, WORKER)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    with pytest.raises(JobError, match="cannot be started"):
        jobs.start("count", "Count", ["count", 1])
    assert jobs.all() == []
    assert [path.name for path in jobs.folder.iterdir()] == [".lock"]


def test_what_somebody_has_seen_is_noted_for_everybody(jobs, tmp_path):
    job = wait(jobs, jobs.start("count", "Count", ["count", 1]))
    other = Jobs(tmp_path, WORKER)
    assert not other.get(job.id).dismissed
    jobs.dismiss(job.id)
    assert other.get(job.id).dismissed
    assert jobs.all() == other.all()


def test_an_unwritable_workspace_is_one_sentence(tmp_path):
    (tmp_path / "jobs").write_text("in the way")
    with pytest.raises(WorkspaceError, match=r"cannot be written: File exists; free space or choose another workspace\."):
        Jobs(tmp_path).start("count", "Count", [])


@pytest.fixture
def one_at_a_time(monkeypatch):
    monkeypatch.setenv(turns.ROOM, "1")


def states(jobs: Jobs, *started: Job) -> list[JobState]:
    return [jobs.get(job.id).state for job in started]


def began(jobs: Jobs, *started: Job) -> list[float]:
    return [turns.began(wait(jobs, job, seconds=60).folder) for job in started]


def test_jobs_wait_until_there_is_room_and_begin_in_the_order_in_which_they_came(jobs, one_at_a_time):
    first, second, third = (jobs.start("count", f"Count to {steps}", ["count", steps]) for steps in (20, 5, 3))
    wait(jobs, first, counting)
    assert states(jobs, first, second, third) == [JobState.RUNNING, JobState.QUEUED, JobState.QUEUED]
    waiting = jobs.get(second.id)
    assert (waiting.active, waiting.stage, waiting.seconds_left, waiting.ended) == (True, None, None, None)
    moments = began(jobs, first, second, third)
    assert moments == sorted(moments)
    assert jobs.get(first.id).ended.timestamp() <= moments[1]
    assert jobs.get(second.id).ended.timestamp() <= moments[2]
    assert jobs.get(third.id).seconds < jobs.get(third.id).ended.timestamp() - third.created.timestamp()  # waiting does not count


def test_as_many_jobs_run_at_once_as_are_expected_to_fit(jobs, monkeypatch):
    monkeypatch.setenv(turns.ROOM, "5000")
    first, second, large, small = (
        jobs.start("count", "Count", ["count", steps], memory_mb=memory) for steps, memory in ((40, 2000), (41, 2000), (3, 4000), (4, 500))
    )
    for job in (first, second):
        wait(jobs, job, counting)
    time.sleep(4 * turns._EVERY)
    # the small one would fit, but the large one came before it and would otherwise wait for ever
    assert states(jobs, first, second, large, small) == [JobState.RUNNING, JobState.RUNNING, JobState.QUEUED, JobState.QUEUED]
    moments = began(jobs, large, small)
    assert moments[0] <= moments[1]


def test_a_job_that_is_larger_than_the_machine_runs_alone(jobs, one_at_a_time):
    assert wait(jobs, jobs.start("count", "Count", ["count", 1], memory_mb=10**9)).state == JobState.DONE


def test_a_request_that_waits_already_is_the_same_job(jobs, one_at_a_time):
    jobs.start("count", "First", ["count", 200])
    second = jobs.start("count", "Second", ["count", 3])
    assert jobs.start("count", "Second", ["count", 3]).id == second.id
    assert len(jobs.all()) == 2


def test_a_waiting_job_is_cancelled_at_once_and_never_begins(jobs, one_at_a_time):
    first, second, third = (jobs.start("count", "Count", ["count", steps]) for steps in (200, 5, 3))
    wait(jobs, first, counting)
    jobs.cancel(second.id)
    second = wait(jobs, second, seconds=3)
    assert (second.state, second.message) == (JobState.CANCELLED, CANCELLED)
    jobs.cancel(first.id)
    assert wait(jobs, third).state == JobState.DONE
    assert turns.began(second.folder) is None


def test_the_queue_moves_on_when_a_worker_is_killed_also_one_that_waits(jobs, one_at_a_time):
    first, second, third = (jobs.start("count", "Count", ["count", steps]) for steps in (200, 201, 3))
    wait(jobs, first, counting)
    os.kill(pid_of(second), signal.SIGKILL)
    second = wait(jobs, second)
    assert (second.state, second.message) == (JobState.DIED, DIED_WAITING)
    os.kill(pid_of(first), signal.SIGKILL)
    assert wait(jobs, third).state == JobState.DONE
    assert wait(jobs, jobs.resume(second.id), counting).state == JobState.RUNNING


def test_the_queue_moves_on_after_its_server_was_killed(jobs, one_at_a_time, tmp_path):
    start = (
        "import os; from neurflow_engine.jobs import Jobs\n"
        f"jobs = Jobs({str(tmp_path)!r}, {WORKER!r})\n"
        "for steps in ('20', '5', '3'): print(jobs.start('count', 'Count', ['count', steps]).id, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    server = subprocess.run([sys.executable, "-c", start], cwd=ROOT, capture_output=True, text=True)
    assert server.returncode == -signal.SIGKILL
    started = [jobs.get(job_id) for job_id in server.stdout.split()]
    assert [job.state for job in started][1:] == [JobState.QUEUED, JobState.QUEUED]
    moments = began(jobs, *started)
    assert moments == sorted(moments)
    assert states(jobs, *started) == [JobState.DONE] * 3


def test_a_limit_that_is_no_number_is_said_to_whoever_starts_a_job(jobs, monkeypatch):
    monkeypatch.setenv(turns.ROOM, "8 GB")
    with pytest.raises(JobError, match="NEURFLOW_JOBS_MEMORY_MB is '8 GB'; expected a number of megabytes"):
        jobs.start("count", "Count", ["count", 1])
    assert jobs.all() == []


def test_without_a_limit_the_room_is_a_part_of_the_machine(monkeypatch):
    monkeypatch.delenv(turns.ROOM, raising=False)
    assert 0 < turns.room_mb() < psutil.virtual_memory().total / 2**20
