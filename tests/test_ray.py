"""Sweeps on Ray: the same runs as here, and tasks whose worker dies. Where Ray is not installed, this file is not collected."""

import os
import signal

import pytest
import ray

from neurflow_engine.executors import Died, Local, Needs, Ray
from neurflow_engine.store import Workspace
from neurflow_engine.sweep import sweep
from neurflow_engine.sweep_result import ClassState

pytestmark = pytest.mark.slow
NEEDS = Needs(cpus=1, gpus=0, memory_mb=100)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Two workers on this machine."""
    here = os.pathsep.join((os.getcwd(), os.path.join(os.getcwd(), "tests")))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": here}})
    yield
    ray.shutdown()


def killed_when_odd(task: int) -> int:
    if task % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def test_a_worker_that_dies_takes_its_own_task_along_and_no_other():
    found = dict(Ray().outcomes(killed_when_odd, range(4), NEEDS, lambda: None))
    assert {task: type(outcome) for task, outcome in found.items()} == {0: int, 1: Died, 2: int, 3: Died}
    assert "WorkerCrashedError" in found[1].reason


def test_a_sweep_on_ray_makes_the_runs_that_one_here_makes(demo_config, tmp_path):
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
