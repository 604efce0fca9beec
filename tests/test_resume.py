"""Killed without warning while it analyses, the same command goes on after the last finished stage, to the same result."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from neurflow_engine import demo
from neurflow_engine.circuit_json import as_json
from neurflow_engine.pipeline import analyze
from neurflow_engine.progress import Silent
from neurflow_engine.store import Run, Workspace

ROOT = Path(__file__).resolve().parents[1]


def command(data: Path, workspace: Workspace) -> list[str]:
    """The analysis of ``demo_config`` as a command."""
    flags = {"model": f"local-dir:{demo.MODEL_FOLDER}", "data": data, "target": demo.TARGET, "max-images": 12, "top-k": 10, "device": "cpu",
             "workspace": workspace.root}  # fmt: skip
    return [sys.executable, "-m", "neurflow_engine", "analyze", "--json", *(f"--{name}={value}" for name, value in flags.items())]


def stages(partial: Path) -> list[str]:
    """Stages that are noted as finished."""
    try:
        return list(json.loads((partial / "stages.json").read_text())["seconds"])
    except FileNotFoundError:
        return []


def killed_after(stage: str | None, arguments: list[str], partial: Path) -> None:
    """Start the command and kill it as soon as a stage is noted as finished (None: as soon as there is anything of the run)."""
    killed_when(lambda: stage in stages(partial) if stage else partial.exists(), arguments)


def killed_when(moment: Callable[[], bool], arguments: list[str]) -> None:
    """Start the command and kill it at the moment."""
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 120
    while not moment():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Of every file: when it was written, and its bytes."""
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def result(run: Run) -> dict:
    return as_json(run) | {"seconds": None, "peak_memory_mb": None}


FILES = {  # what each stage leaves behind
    "activations": ["activations/logits.npy", "activations/layer4.npy", "activations/layer3.npy", "activations/layer2.npy"],
    "logits": ["work/logits.npy", "work/logits.parquet"],
    "layer4": ["work/layer4.npy", "work/layer4.parquet"],
    "layer3": ["work/layer3.npy", "work/layer3.parquet"],
}


@pytest.fixture
def evaluated(demo_run, demo_workspace, tmp_path):
    """A workspace that holds the evaluation of the demo, and no run."""
    workspace = Workspace(tmp_path / "workspace")
    source = demo_workspace.evaluation_folder(demo_run.manifest["evaluation"])
    shutil.copytree(source, workspace.evaluation_folder(source.name))
    return workspace


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param([None], id="before any stage", marks=pytest.mark.slow),
        pytest.param(["activations"], id="after the activations", marks=pytest.mark.slow),
        pytest.param(["logits", "layer3"], id="again and again"),
    ],
)
def test_killed_it_goes_on_after_the_last_finished_stage_to_the_same_result(moments, evaluated, demo_run, demo_images):
    folder = evaluated.run_folder(demo_run.id)
    partial = folder.with_name(f"{folder.name}.partial")
    arguments = command(demo_images, evaluated)
    kept: dict[str, tuple[int, bytes]] = {}
    for moment in moments:
        killed_after(moment, arguments, partial)
        assert not folder.exists()
        assert evaluated.runs() == []
        now = contents(partial)
        assert {name: now[name] for name in kept} == kept  # neither written again nor changed
        kept = {name: now[name] for stage in stages(partial) for name in FILES.get(stage, ())}
        assert moment is None or kept
    done = stages(partial)
    finished = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    bars = {line.split(":")[0].strip() for line in finished.stderr.replace("\r", "\n").splitlines() if ":" in line}
    assert bars == {"activations", *demo_run.circuit.layers, "circuit", "thumbnails"} - set(done)
    assert not partial.exists()
    run = evaluated.open_run(json.loads(finished.stdout)["run"])
    assert result(run) == result(demo_run)
    now = contents(run.folder)
    survivors = {name: value for name, value in kept.items() if not name.startswith("work/")}
    assert moments == [None] or survivors
    assert {name: now[name] for name in survivors} == survivors
    assert set(now) == set(contents(demo_run.folder))


# The command with a note after every batch, so that there is a middle to be killed in.
NOTING = """
import sys
from neurflow_engine import __main__, pipeline, store
store._NOTE_EVERY, pipeline._IMAGES = 0.0, 2
sys.exit(__main__.main(sys.argv[1:]))
"""


class Watched(Silent):
    """How far each stage was when it first moved."""

    def __init__(self):
        super().__init__()
        self.first: dict[str, int] = {}

    def _moved(self, stage):
        self.first.setdefault(stage.name, stage.done)


@pytest.mark.slow
def test_killed_inside_a_stage_it_goes_on_in_the_middle_of_it(evaluated, demo_run, demo_images, demo_config):
    folder = evaluated.run_folder(demo_run.id)
    partial = folder.with_name(f"{folder.name}.partial")
    arguments = [sys.executable, "-c", NOTING, *command(demo_images, evaluated)[3:]]
    for stage in ("activations", "layer4"):
        killed_when(lambda stage=stage: progress(partial).get(stage, 0) > 0, arguments)
        assert stage not in stages(partial)
    done = progress(partial)
    assert done["activations"] == 12
    watched = Watched()
    run = analyze(demo_config, evaluated, progress=watched)
    assert result(run) == result(demo_run)
    assert "activations" not in watched.first  # it was finished by the second process
    assert 0 < done["layer4"] < watched.first["layer4"]  # pairs of the patches that were done


def progress(partial: Path) -> dict[str, int]:
    """How far each stage is noted to be."""
    try:
        return json.loads((partial / "stages.json").read_text())["progress"]
    except FileNotFoundError:
        return {}
