"""Where tasks run: what becomes of tasks whose worker dies, of a stop, and of workers whose parent is gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from browsing import ROOT

from neurflow_engine.executors import Died, Local, Needs

NEEDS = Needs(cpus=1, gpus=0, memory_mb=100)


def double(task: tuple[int, str]) -> int:
    return 2 * task[0]


def killed_when_odd(task: tuple[int, str]) -> int:
    if task[0] % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return task[0]


def sleeping(task: tuple[int, str]) -> None:
    Path(task[1], f"{os.getpid()}").touch()
    time.sleep(600)


def unhampered() -> None:
    """A check that asks for no stop."""


def test_each_task_has_its_outcome():
    tasks = [(number, "") for number in range(5)]
    found = dict(Local(2).outcomes(double, tasks, NEEDS, unhampered))
    assert found == {task: 2 * task[0] for task in tasks}


def test_a_worker_that_dies_takes_its_own_task_along_and_no_other():
    tasks = [(number, "") for number in range(4)]
    found = dict(Local(2).outcomes(killed_when_odd, tasks, NEEDS, unhampered))
    assert {task: type(outcome) for task, outcome in found.items()} == {(0, ""): int, (1, ""): Died, (2, ""): int, (3, ""): Died}
    assert "killed or out of memory" in found[1, ""].reason


def test_a_stop_ends_the_workers_at_once(tmp_path):
    def stop_once_both_run():
        if len(list(tmp_path.iterdir())) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Local(2).outcomes(sleeping, [(1, str(tmp_path)), (2, str(tmp_path))], NEEDS, stop_once_both_run))
    assert not any(psutil.pid_exists(int(path.name)) for path in tmp_path.iterdir())


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    program = (
        "import sys; sys.path[:0] = ['tests', '.']\n"
        "from test_executors import NEEDS, sleeping, unhampered\n"
        "from neurflow_engine.executors import Local\n"
        f"if __name__ == '__main__': list(Local(1).outcomes(sleeping, [(1, {str(tmp_path)!r})], NEEDS, unhampered))\n"
    )
    file = tmp_path.with_name("parent.py")
    file.write_text(program)
    parent = subprocess.Popen([sys.executable, file], cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"})
    until = time.monotonic() + 60
    while not (at_work := [int(path.name) for path in tmp_path.iterdir()]):
        assert time.monotonic() < until
        assert parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 20
    while psutil.pid_exists(at_work[0]) and psutil.Process(at_work[0]).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "the worker outlives its parent"
        time.sleep(0.1)


def test_how_many_run_at_once_follows_processors_and_memory(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("NEURFLOW_JOBS_MEMORY_MB", "3000")
    assert Local().slots(Needs(cpus=2, gpus=0, memory_mb=500)) == 4
    assert Local().slots(Needs(cpus=1, gpus=0, memory_mb=1400)) == 2
    assert Local().slots(Needs(cpus=1, gpus=0, memory_mb=9000)) == 1
    assert Local().slots(Needs(cpus=1, gpus=1, memory_mb=100)) == 1
    assert Local(3).slots(Needs(cpus=8, gpus=1, memory_mb=100)) == 3
