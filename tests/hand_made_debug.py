"""A debug report by hand, on the demo's images: for tests of what shows and uses reports, which need figures that they know."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from neurflow_engine import silencer_file
from neurflow_engine.records import Damping, Filling, Layer, Silencer
from neurflow_engine.store import SCHEMA, DebugReport, Run, Workspace

CONTRAST = "layer1/contrast-0"  # misleading, with two typical places; its direction is neuron 3 of a layer that the run did not analyse
CIRCUIT = "layer3/0"  # not misleading
USUAL, TYPICAL = 1.0, 2.0  # levels of the contrast group


def group(group_id: str, presence: list[float], **changed) -> dict:
    """A group's entry: one that misleads, silenced by damping, unless changed."""
    layer, _, number = group_id.rpartition("/")
    return {
        "id": group_id,
        "layer": layer,
        "kind": "contrast" if number.startswith("contrast") else "circuit",
        "silencing": "damping",
        "n_neurons": 64,
        "misleading": True,
        "reason": "It is far more present on wrong images, and silencing it brings most of them back.",
        "score": 0.69,
        "p_value": 0.00002,
        "recovered": 0.71,
        "recovered_interval": [0.64, 0.78],
        "control_recovered": {"mean": 0.02, "low": 0.0, "high": 0.05},
        "as_good_at_random": 0.0,
        "selectivity": 0.97,
        "draws": 200,
        "clean_accuracy_change": -0.002,
        "clean_accuracy_interval": [-0.008, 0.003],
        "target_recall_change": -0.01,
        "false_alarm_rate": 0.04,
        "presence_excess": 0.4,
        "auc": 0.94,
        "alarm_level": 0.5,
        "beyond_ceiling": False,
        "confused_class": None,
        "presence": presence,
        "ways": {},
    } | changed


def report(run: Run, images_root: Path, workspace: Workspace, name: str = "by-hand", **changed) -> DebugReport:
    """Put a report where the workspace looks for it: of each class the first image is taken for the target, the others are right.

    ``changed`` replaces entries of its JSON.
    """
    target = run.circuit.target_name
    paths = sorted(path.relative_to(images_root).as_posix() for path in images_root.rglob("*.png"))
    images = []
    for path in paths:
        true, wrong = path.split("/")[0], path.endswith("/000.png")
        half = "reported" if len(images) % 5 < 3 else "chosen"
        images.append({"path": path, "true": true, "predicted": target if wrong else true, "probability": 0.9, "half": half})
    wrong = [image for image in images if image["predicted"] != image["true"]]
    places = [{"path": image["path"], "box": [64, 0, 96, 32]} for image in wrong[:2]]
    strong = [0.9 if image in wrong else 0.1 for image in images]
    weak = np.linspace(0, 0.3, len(images)).round(4).tolist()
    entries = [
        group(CONTRAST, strong, places=places, usual=USUAL, typical=TYPICAL),
        group(CIRCUIT, weak, misleading=False, silencing="zero", n_neurons=7, recovered=0.03, recovered_interval=[0.01, 0.09], p_value=0.4,
              reason="Silencing it brings no more wrong images back than random neurons do."),
    ]  # fmt: skip
    folder = workspace.debug_folder(f"{run.id}-{name}")
    for number in range(len(places)):
        path = folder / "places" / CONTRAST / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (230, 0, 126)).save(path)
    own = run.circuit.group[CIRCUIT]
    layer, direction = Layer("layer1", 32, 1, (32, 32, 32)), np.eye(32, dtype=np.float32)[3]
    silencers = {
        CONTRAST: (layer, Damping(layer.name, direction, direction, USUAL, "position")),
        CIRCUIT: (run.layers[own.layer], Filling(own.layer, own.neurons, (0.0,) * len(own.neurons))),
    }
    silencer_file.write(folder / DebugReport.SILENCERS, silencers, {})
    for layer, _ in silencers.values():
        path = folder / "samples" / f"{layer.name}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.random.default_rng(0).random((20, layer.n_channels), np.float32))
    content = {
        "schema": SCHEMA,
        "method": DebugReport.METHOD,
        "report": folder.name,
        "run": run.id,
        "images_root": str(images_root),
        "created": "2026-01-02T03:04:05+00:00",
        "draws": 200,
        "seed": 0,
        "n_wrong": len(wrong),
        "n_clean": len(images) - len(wrong),
        "n_reported": sum(image["half"] == "reported" for image in wrong),
        "ceiling": {"mean": 0.84, "low": 0.79, "high": 0.88},
        "lower_logit": {"by": 0.5, "recovered": 0.05, "clean_accuracy_change": -0.001, "target_recall_change": -0.01},
        "images": images,
        "groups": entries,
    }
    (folder / "manifest.json").write_text(json.dumps(content | changed))
    return DebugReport(folder)


def filling_and_damping(run: Run) -> dict[str, tuple[Layer, Silencer]]:
    """What silences a circuit group and a contrast group of one layer, where the order matters: they have the same neurons."""
    layer, group = run.layers["layer3"], run.circuit.group["layer3/0"]
    direction = np.zeros(layer.n_channels, np.float32)
    direction[list(group.neurons)] = group.direction
    return {
        "layer3/0": (layer, Filling("layer3", group.neurons, (0.25,) * len(group.neurons))),
        "layer3/contrast-1": (layer, Damping("layer3", direction, direction, 0.5, "position")),
    }
