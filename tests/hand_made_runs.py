"""Finished runs by hand, small enough to be compared on paper: one probe image per number, patches in quarters, no network behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from PIL import Image

from neurflow_engine.records import LOGITS, Circuit, Edge, Layer, Member, Neuron, NeuronGroup, Patch, ProbeImage, SemanticGroup
from neurflow_engine.store import SCHEMA, Run, Workspace, now

SIDE = 64  # pixels of an image
BOXES = ((0, 0, 64, 64), (0, 0, 32, 32), (32, 0, 64, 32), (0, 32, 32, 64), (32, 32, 64, 64))  # the whole image, and its quarters


def patch(image: int, box: int) -> int:
    """The id of a patch, by the places of its image and of its box."""
    return image * len(BOXES) + box


def write(
    workspace: Workspace,
    name: str,
    groups: Mapping[str, Sequence[Sequence[int]]],
    edges: Mapping[tuple[str, str], float] = {},
    images: Sequence[str] = tuple(f"cat/{number}.png" for number in range(20)),
    weights: str = "a" * 64,
    folder: str = "f" * 64,
    neurons: Mapping[str, Sequence[int]] = {},
) -> Run:
    """Put a run into a workspace.

    Args:
        groups: patch ids of the groups of every layer below the logits, deepest first.
        edges: weights by (source, target).
        weights, folder: fingerprints of model and data.
        neurons: of a group, by its id; by default one each.
    """
    probe = tuple(ProbeImage(number, path, 0, 0.9, 5.0) for number, path in enumerate(images))
    patches = tuple(Patch(patch(image.id, place), image.id, box) for image in probe for place, box in enumerate(BOXES))
    made, explained = [], []
    for layer, members in {LOGITS: [list(range(len(patches)))], **groups}.items():
        for number, own in enumerate(members):
            group = f"{layer}/{number}"
            indices = tuple(neurons.get(group, (number,)))
            parts = [SemanticGroup(f"{layer}:{index}.{number}", layer, index, tuple(own), 1.0, ()) for index in indices]
            made.append(
                NeuronGroup(
                    group, layer, tuple(Member(part.neuron, part.id) for part in parts), tuple(own), indices, (1.0,) * len(indices), 0.5
                )
            )
            explained += [Neuron(layer, part.neuron, part.patches, (), (part,), None, None) for part in parts]
    circuit = Circuit(
        0, "cat", (LOGITS, *groups), probe, patches, tuple(explained), tuple(made),
        tuple(Edge(source, target, weight, weight) for (source, target), weight in edges.items()),
    )  # fmt: skip
    layers = [Layer(layer, 1 if layer == LOGITS else 32, 1, (32, 4, 4)) for layer in circuit.layers]
    with workspace.draft(workspace.run_folder(name), name) as draft:
        for table in ("images", "patches", "neurons", "groups", "edges"):
            draft.save_records(table, getattr(circuit, table))
        thumbnails = draft.folder / "thumbnails"
        thumbnails.mkdir()
        for image in probe:
            Image.new("RGB", (8, 8), (40 * (image.id % 6), 90, 160)).save(thumbnails / f"image-{image.id}.jpg")
        for number in range(len(patches)):
            Image.new("RGB", (8, 8), (40 * (number % 6), 160, 90)).save(thumbnails / f"patch-{number}.jpg")
        draft.publish(
            {
                "schema": SCHEMA,
                "run": name,
                "fingerprint": name,
                "created": now(),
                "model": {
                    "name": "net", "fingerprint": weights, "checkpoint_sha256": weights, "class_names": ["cat", "dog"],
                    "preprocessing": {"input_size": [SIDE, SIDE]}, "configuration": {"name": "net"},
                },
                "data": {"root": "/nowhere", "fingerprint": folder},
                "evaluation": "none",
                "target": {"index": 0, "name": "cat"},
                "layers": [asdict(layer) for layer in layers],
                "configuration": {"device": "cpu"},
                "n_probe_images": len(probe),
                "n_groups": len(made),
                "seconds": {"circuit": 1.0},
                "peak_memory_mb": 1.0,
            }
        )  # fmt: skip
    return workspace.open_run(name)
