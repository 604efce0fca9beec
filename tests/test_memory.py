"""Little memory or disk changes how large the batches are and what is computed again, never the circuit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neurflow_engine import demo
from neurflow_engine.config import ModelConfig
from neurflow_engine.pipeline import analyze
from neurflow_engine.store import Run, Workspace

ROOT = Path(__file__).resolve().parents[1]

# Analyses small images first, so that all libraries are loaded, then the ones asked for with so many MiB of address space left.
LIMITED = """
import json, resource, sys
from pathlib import Path
from neurflow_engine.batching import Capacity
from neurflow_engine.config import AnalysisConfig
from neurflow_engine.pipeline import analyze
from neurflow_engine.store import Workspace

config, workspace, room = AnalysisConfig.model_validate_json(sys.argv[1]), sys.argv[2], int(sys.argv[3])
small = config.model.model_copy(update={"input_size": (32, 32)})
analyze(config.model_copy(update={"model": small}), Workspace(f"{workspace}-small"))

shrink, halved = Capacity.shrink, []
def noted(capacity):
    halved.append(capacity.size)
    shrink(capacity)
Capacity.shrink = noted

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (room << 20), resource.RLIM_INFINITY))
run = analyze(config, Workspace(workspace), out=Path(f"{workspace}-out"))
print(json.dumps({"halved": halved, "folder": str(run.folder)}))
"""


def cores(run: Run) -> dict[tuple[str, int], set[int]]:
    return {(neuron.layer, neuron.index): set(neuron.core) for neuron in run.circuit.neurons}


def assert_same_circuit(run: Run, expected: Run) -> None:
    """The same but for the rounding of floats, which depends on how many images share a forward pass."""
    assert cores(run) == cores(expected)
    found, wanted = run.circuit, expected.circuit
    assert [(group.id, group.members, group.patches) for group in found.groups] == [
        (group.id, group.members, group.patches) for group in wanted.groups
    ]
    assert [(edge.source, edge.target) for edge in found.edges] == [(edge.source, edge.target) for edge in wanted.edges]
    np.testing.assert_allclose([edge.weight for edge in found.edges], [edge.weight for edge in wanted.edges], atol=1e-3)
    for layer in expected.layers:
        np.testing.assert_allclose(run.activations(layer), expected.activations(layer), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def exact_config(demo_config):
    """Fewer and smaller steps, and no rounding to bfloat16, which would magnify the smallest difference."""
    return demo_config.model_copy(
        update={"max_images": 3, "top_k": 6, "tau": 6, "granularities": (1.0, 0.5), "depth": 2, "precision": "float32"}
    )


@pytest.fixture(scope="module")
def exact_run(exact_config, demo_run, demo_workspace):
    return analyze(exact_config, demo_workspace)


@pytest.mark.parametrize("setting", [{"memory_mb": 256}, {"disk_mb": 0}], ids=lambda setting: "".join(setting))
def test_a_tight_setting_gives_the_same_circuit(setting, exact_config, exact_run, demo_workspace, tmp_path):
    out = tmp_path / "run"
    run = analyze(exact_config.model_copy(update=setting), Workspace(tmp_path / "workspace"), out)
    assert run.folder == out
    assert run.manifest["fingerprint"] == exact_run.manifest["fingerprint"]  # it is the same question
    assert_same_circuit(run, exact_run)


def test_what_the_disk_may_hold_is_kept_deepest_layer_first(exact_config, demo_workspace, exact_run, tmp_path, monkeypatch):
    """A setting that has room for the outputs of the deeper of two layers only."""
    import neurflow_engine.pipeline as pipeline

    kept = []
    survey = pipeline.survey

    def watched(probe, ids, activations, maps, capacity, tick):
        kept.append([layer.name for layer in maps])
        survey(probe, ids, activations, maps, capacity, tick)

    monkeypatch.setattr(pipeline, "survey", watched)
    deeper, shallower = (exact_run.layers[name] for name in exact_run.circuit.layers[1:])
    sizes = [3 * 59 * int(np.prod(layer.shape)) * 4 for layer in (deeper, shallower)]
    disk_mb = -(-sizes[0] // (1 << 20))
    assert sum(sizes) > disk_mb << 20
    changed = {"disk_mb": disk_mb, "granularities": (1.0, 0.5, 0.25)}
    analyze(exact_config.model_copy(update=changed), Workspace(tmp_path / "workspace"))
    assert kept == [[deeper.name]]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits its address space as Linux does")
def test_in_a_limited_address_space_it_ends_by_itself_with_smaller_batches_and_the_same_circuit(demo_config, demo_images, tmp_path):
    shutil.copytree(demo_images / demo.TARGET, tmp_path / "images" / demo.TARGET)
    model = ModelConfig(name=demo_config.model.name, input_size=(448, 448))
    settings = {"model": model, "data": tmp_path / "images", "max_images": 2, "top_k": 6, "tau": 4, "granularities": (1.0, 0.5), "depth": 2}
    config = demo_config.model_copy(update=settings)
    workspace = tmp_path / "workspace"
    expected = analyze(config, Workspace(workspace))
    for room in (250, 200, 170, 150):  # MiB; how much a batch of sixteen takes depends on the libraries' own buffers
        own = tmp_path / str(room)
        shutil.copytree(workspace, own)
        shutil.rmtree(own / "runs")
        command = [sys.executable, "-c", LIMITED, config.model_dump_json(), str(own), str(room)]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert process.returncode == 0, process.stderr
        told = json.loads(process.stdout)
        if told["halved"]:
            break
    assert told["halved"]
    assert cores(Run(Path(told["folder"]))) == cores(expected)
