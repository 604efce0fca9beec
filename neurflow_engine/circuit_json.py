"""The circuit as JSON: the schema that other programs rely on (DESIGN.md). Imports neither torch nor timm.

In: a finished run and, where people named its groups, their labels. Out: one JSON-ready dictionary.
"""

from collections.abc import Mapping

from neurflow_engine.edits import Edits, edited, names
from neurflow_engine.records import Circuit, Neuron
from neurflow_engine.store import SCHEMA, Run


def as_json(run: Run, labels: Mapping[str, str] | None = None, edits: Edits | None = None) -> dict:
    """The whole circuit of a run.

    Args:
        labels: names in force by group id; groups without one have ``null``.
        edits: the circuit is as people arranged it, and "edits" says how; by default it is as computed.
    """
    if edits is None or not edits.changes_circuit:
        return _as_json(run, run.circuit, labels or {})
    return _as_json(run, edited(run.circuit, edits), names(run.circuit, edits, labels or {})) | {"edits": edits.as_json()}


def _as_json(run: Run, circuit: Circuit, labels: Mapping[str, str]) -> dict:
    model = run.manifest["model"]
    image = {image.id: image.path for image in circuit.images}
    return {
        "schema": SCHEMA,
        "run": run.id,
        "model": {"name": model["name"], "checkpoint_sha256": model["checkpoint_sha256"]},
        "target": {"index": circuit.target_index, "name": circuit.target_name},
        "layers": list(circuit.layers),
        "patches": [{"id": patch.id, "image": image[patch.image], "box": list(patch.box)} for patch in circuit.patches],
        "neurons": [_neuron(neuron) for neuron in circuit.neurons],
        "groups": [
            {
                "id": group.id,
                "layer": group.layer,
                "members": [{"neuron": member.neuron, "semantic_group": member.semantic_group} for member in group.members],
                "patches": list(group.patches),
                "label": labels.get(group.id),
            }
            for group in circuit.groups
        ],
        "edges": [
            {"source": edge.source, "target": edge.target, "weight": edge.weight, "raw_weight": edge.raw_weight} for edge in circuit.edges
        ],
        "seconds": run.manifest["seconds"],
        "peak_memory_mb": run.manifest["peak_memory_mb"],
    }


def _neuron(neuron: Neuron) -> dict:
    return {
        "layer": neuron.layer,
        "index": neuron.index,
        "patches": list(neuron.patches),
        "core": list(neuron.core),
        "semantic_groups": [
            {
                "id": group.id,
                "patches": list(group.patches),
                "mean_activation": group.mean_activation,
                "core": [{"index": index, "weight": weight} for index, weight in zip(neuron.core, group.weights, strict=True)],
            }
            for group in neuron.semantic_groups
        ],
    }
