"""Sweeps on Ray: the same runs as here; workers, drivers and nodes that die. Where Ray is not installed, this file is not collected."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray
from browsing import ROOT
from ray.cluster_utils import Cluster

from neurflow_engine.executors import Died, Local, Needs, Ray
from neurflow_engine.store import Workspace
from neurflow_engine.sweep import sweep
from neurflow_engine.sweep_result import ClassState, Sweep, sweeps

pytestmark = pytest.mark.slow
NEEDS = Needs(cpus=1, gpus=0, memory_mb=100)


@pytest.fixture(scope="module")
def two_workers():
    """Of a cluster on this machine."""
    here = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": here}})
    yield
    ray.shutdown()


def killed_when_odd(task: int) -> int:
    if task % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def test_a_worker_that_dies_takes_its_own_task_along_and_no_other(two_workers):
    found = dict(Ray().outcomes(killed_when_odd, range(4), NEEDS, lambda: None))
    assert {task: type(outcome) for task, outcome in found.items()} == {0: int, 1: Died, 2: int, 3: Died}
    assert "WorkerCrashedError" in found[1].reason


def test_a_sweep_on_ray_makes_the_runs_that_one_here_makes(two_workers, demo_config, tmp_path):
    made = {}
    for name, executor in (("here", Local(1)), ("ray", Ray())):
        workspace = Workspace(tmp_path / name)
        found = sweep(demo_config, workspace, "sailboat,owl", 10, executor)
        assert {outcome.state for outcome in found.classes} == {ClassState.DONE}
        made[name] = {
            path.relative_to(workspace.root): path.read_bytes()
            for kind in ("runs", "debug")
            for path in (workspace.root / kind).rglob("*")
            if path.suffix in (".parquet", ".npy", ".safetensors")
        }
    assert made["here"].keys() == made["ray"].keys()
    assert [str(path) for path, content in made["here"].items() if content != made["ray"][path]] == []


@pytest.fixture
def cluster():
    """A head that runs no tasks, and a node that runs one at a time."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def started(demo_images: Path, workspace: Path, address: str) -> subprocess.Popen:
    """A sweep over three classes on a cluster, in a process of its own."""
    model = ROOT / "neurflow_engine" / "demo" / "model"
    command = [sys.executable, "-m", "neurflow_engine", "sweep", "--model", f"local-dir:{model}", "--data", str(demo_images)]
    command += ["--targets", "0,1,2", "--max-images", "8", "--draws", "5", "--depth", "2", "--workspace", str(workspace)]
    return subprocess.Popen([*command, "--executor", "ray", "--address", address], cwd=ROOT)


def ended(workspace: Path) -> dict[str, int]:
    """Files of the classes that have an outcome, with the time they were written."""
    return {path.name: path.stat().st_mtime_ns for path in workspace.glob(f"sweeps/*/{Sweep.CLASSES}/*.json")}


def wait_until(true: Callable[[], object], process: subprocess.Popen) -> None:
    until = time.monotonic() + 180
    while not true():
        assert process.poll() is None, "the sweep ended before"
        assert time.monotonic() < until
        time.sleep(0.05)


def is_complete(workspace: Path) -> bool:
    (found,) = sweeps(Workspace(workspace))
    names = [folder.name for folder in (workspace / "runs").iterdir() if folder.is_dir()]
    return found.is_finished and {outcome.state for outcome in found.classes} == {ClassState.DONE} and len(names) == len(found.classes) == 3


def test_a_driver_that_is_killed_leaves_what_was_finished_to_the_next(cluster, demo_images, tmp_path):
    first = started(demo_images, tmp_path, cluster.address)
    wait_until(lambda: ended(tmp_path), first)
    first.kill()
    first.wait()
    before = ended(tmp_path)
    assert 1 <= len(before) < 3
    assert started(demo_images, tmp_path, cluster.address).wait(300) == 0
    assert is_complete(tmp_path)
    assert ended(tmp_path).items() >= before.items()  # done once


def test_a_node_whose_agent_is_killed_costs_the_class_at_work_one_attempt(cluster, demo_images, tmp_path):
    driver = started(demo_images, tmp_path, cluster.address)
    wait_until(lambda: ended(tmp_path), driver)
    (node,) = cluster.worker_nodes
    (agent,) = node.all_processes["raylet"]
    psutil.Process(agent.process.pid).kill()
    cluster.add_node(num_cpus=1)
    assert driver.wait(300) == 0
    assert is_complete(tmp_path)
    (found,) = sweeps(Workspace(tmp_path))
    assert sorted(outcome.attempts for outcome in found.classes) in ([1, 1, 1], [1, 1, 2])  # the agent may have died between two classes
