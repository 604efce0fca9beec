"""A run as large as they get, without analysing anything: groups by the hundred, evaluation and debug report of thousands of images.

The model is the demo's and its predictions are real, so images can be looked into and groups silenced; what the neurons stand for is
made up, from a seed. From a shell: ``python -m tests.huge WORKSPACE [--groups 300] [--images 2000]`` prints the run's id.
"""

import argparse
import hashlib
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from neurflow_engine import demo, silencer_file
from neurflow_engine.circuit import assembled
from neurflow_engine.config import AnalysisConfig, ModelConfig
from neurflow_engine.evaluation import evaluate
from neurflow_engine.files import write_json
from neurflow_engine.images import cut_patches
from neurflow_engine.pipeline import prepare, probe_images
from neurflow_engine.progress import Silent
from neurflow_engine.records import LOGITS, Circuit, Damping, Filling, Layer, Neuron, SemanticGroup
from neurflow_engine.store import MANIFEST, SCHEMA, DebugReport, Evaluation, Run, Workspace, now
from tests.hand_made_debug import group

LAYERS = ("layer4", "layer3", "layer2", "layer1")
PARTS, SHARE, CORE = 5, 8, 12  # semantic groups of a neuron, patches of a semantic group, core neurons of a neuron below the logits
SIZE, THUMBNAIL = 128, 64  # pixels of an image's side and of a patch's thumbnail
CONTRAST, PLACES = 8, 6  # groups of the debug report that the circuit lacks, and typical places of each

_HARMLESS = {"score": 0.0, "recovered": 0.03, "recovered_interval": [0.01, 0.09], "p_value": 0.4, "reason": "Random neurons do as much."}


def write(workspace: Workspace, n_groups: int = 300, n_images: int = 2000, seed: int = 0) -> Run:
    """Put images, their evaluation, a run of exactly ``n_groups`` (20 to 600) and a debug report into a workspace.

    Takes about ten seconds for 2,000 images, which further runs share, and three for the rest.
    """
    root = workspace.root / f"images-{n_images}"
    write_images(root, n_images)
    config = AnalysisConfig(
        model=ModelConfig(name=f"local-dir:{demo.MODEL_FOLDER}"),
        data=root,
        target=demo.TARGET,
        layers=LAYERS,
        tau=128,
        top_k=PARTS * SHARE,
        max_images=40,
        max_groups=n_groups,
        seed=seed,
        device="cpu",
    )
    subject = prepare(config.model, config.data, config.device)
    evaluation = evaluate(subject.classifier, subject.anatomy, subject.image_set, workspace, Silent(), workers=0)
    layers = subject.anatomy.chosen(LAYERS, len(LAYERS))
    random = np.random.default_rng(seed)
    run = _write_run(workspace, config, evaluation, layers, _circuit(config, evaluation, layers, n_groups, random), random)
    _write_report(workspace, run, evaluation, random)
    return run


def write_images(root: Path, n_images: int) -> None:
    """An ImageFolder of the demo's classes: a few pictures in many tints, every third with the sticker that misleads the model."""
    if root.exists():
        return
    for place, name in enumerate(demo.CLASSES):
        (root / name).mkdir(parents=True)
        drawn = [np.asarray(demo.draw(name, number, mark=number % 3 == 0)[0], np.float32) for number in range(6)]
        for number in range(len(range(place, n_images, len(demo.CLASSES)))):
            tint = 1 - 0.3 * np.random.default_rng((place, number)).random(3, np.float32)
            Image.fromarray((drawn[number % 6] * tint).astype(np.uint8)).save(root / name / f"{number:04d}.jpg", quality=85)


def _circuit(
    config: AnalysisConfig, evaluation: Evaluation, layers: tuple[Layer, ...], n_groups: int, random: np.random.Generator
) -> Circuit:
    """Semantic groups around made-up centres, as many centres in each layer as it is to have groups; the engine groups and joins them."""
    target = evaluation.class_names.index(config.target)
    images = probe_images(evaluation, target, config.max_images, config.seed)
    patches = cut_patches(len(images), (SIZE, SIZE), config.granularities)
    wanted = {LOGITS: 1} | {layer: len(part) for layer, part in zip(LAYERS, np.array_split(range(n_groups - 1), len(LAYERS)), strict=True)}
    explained = {LOGITS: [target]}
    for layer in layers[1:]:
        count = min(layer.n_channels, max(PARTS, wanted[layer.name] // 2))
        explained[layer.name] = sorted(random.choice(layer.n_channels, count, replace=False).tolist())
    below = {upper: explained[lower] for upper, lower in pairwise(explained)} | {LAYERS[-1]: []}
    found = {}
    for layer, indices in explained.items():
        centres = max(wanted[layer], PARTS)
        pools = [random.permutation(len(patches))[: 3 * SHARE] for _ in range(centres)]
        neurons, vectors = [], []
        for place, index in enumerate(indices):
            core = below[layer] if layer == LOGITS else np.roll(below[layer], -place * CORE // 2)[:CORE].tolist()
            own = [(place * PARTS + part) % centres for part in range(PARTS)]
            neurons.append(_neuron(layer, index, core, [pools[centre] for centre in own], random))
            vectors += [np.eye(centres)[centre] + random.normal(0, 0.02, centres) for centre in own]
        found[layer] = neurons, np.stack(vectors)
    return assembled(found, config.target, images, patches, lambda layer: (wanted[layer], wanted[layer]))


def _neuron(layer: str, index: int, core: list[int], pools: list[np.ndarray], random: np.random.Generator) -> Neuron:
    """A neuron with a semantic group from each pool of patches; few of its core neurons carry most of the weight."""
    parts, taken = [], set()
    for number, pool in enumerate(pools):
        own = [patch for patch in random.permutation(pool).tolist() if patch not in taken][:SHARE]
        taken |= set(own)
        weights = random.pareto(0.8, len(core)) * random.choice([1, 1, 1, -1], len(core))
        shares = tuple((weights / np.abs(weights).sum()).tolist())
        parts.append(SemanticGroup(f"{layer}:{index}.{number}", layer, index, tuple(own), 2.0 - 0.2 * number, shares))
    return Neuron(layer, index, tuple(patch for part in parts for patch in part.patches), tuple(core), tuple(parts), 0.4, 0.03)


def _write_run(
    workspace: Workspace, config: AnalysisConfig, evaluation: Evaluation, layers: tuple[Layer, ...], circuit: Circuit, random
) -> Run:  # fmt: skip
    run_id = f"{config.target}-{len(circuit.groups)}-groups-of-{config.data.name}-seed-{config.seed}"
    fingerprint = hashlib.sha256(f"{run_id} {config.seed}".encode()).hexdigest()
    with workspace.draft(workspace.run_folder(run_id), fingerprint) as draft:
        for name in ("images", "patches", "neurons", "groups", "edges"):
            draft.save_records(name, getattr(circuit, name))
        for layer in layers:
            draft.save_array(f"activations/{layer.name}", _activations(circuit, layer, random))
        _write_thumbnails(draft.folder / "thumbnails", config.data, circuit)
        seconds = {"patches": 3.0, "activations": 60.0} | dict.fromkeys(circuit.layers, 120.0) | {"circuit": 4.0, "thumbnails": 5.0}
        draft.publish(
            {
                "schema": SCHEMA,
                "run": run_id,
                "fingerprint": fingerprint,
                "created": now(),
                "model": evaluation.manifest["model"],
                "data": evaluation.manifest["data"],
                "evaluation": evaluation.id,
                "survey": fingerprint,
                "target": {"index": circuit.target_index, "name": circuit.target_name},
                "layers": [asdict(layer) for layer in layers],
                "configuration": config.model_dump(mode="json", exclude={"model"}),
                "seeds": {"probe_images": config.seed},
                "packages": {},
                "device": config.device,
                "precision": "float32",
                "n_probe_images": len(circuit.images),
                "n_groups": len(circuit.groups),
                "seconds": seconds,
                "peak_memory_mb": 2000.0,
            }
        )
    return workspace.open_run(run_id)


def _activations(circuit: Circuit, layer: Layer, random: np.random.Generator) -> np.ndarray:
    """(n_patches, n_channels): low but on the patches of a neuron's concept, where they fall with its order."""
    values = random.gamma(1.0, 0.1, (len(circuit.patches), layer.n_channels)).clip(max=0.9).astype(np.float32)
    for neuron in circuit.neurons:
        if neuron.layer == layer.name:
            values[list(neuron.patches), neuron.index] = np.linspace(2, 1, len(neuron.patches))
    return values


def _write_thumbnails(folder: Path, root: Path, circuit: Circuit) -> None:
    folder.mkdir()
    pictures = [Image.open(root / image.path).convert("RGB") for image in circuit.images]
    for number, picture in enumerate(pictures):
        picture.save(folder / f"image-{number}.jpg", quality=90)
    for patch in {patch for own in circuit.groups for patch in own.patches}:
        image, box = circuit.patches[patch].image, circuit.patches[patch].box
        pictures[image].resize((THUMBNAIL, THUMBNAIL), box=box).save(folder / f"patch-{patch}.jpg", quality=88)


def _write_report(workspace: Workspace, run: Run, evaluation: Evaluation, random: np.random.Generator) -> None:
    """A debug report on all images of the evaluation: of every group of the circuit, and of a few that mislead."""
    frame, names = evaluation.predictions, evaluation.class_names
    wrong = (frame["predicted"] != frame["true"]).to_numpy()
    folder = workspace.debug_folder(f"{run.id}-by-hand")
    silencers, entries = {}, []
    for number in range(CONTRAST):
        name, layer = f"layer3/contrast-{number}", run.layers["layer3"]
        direction = np.eye(layer.n_channels, dtype=np.float32)[number]
        silencers[name] = layer, Damping(layer.name, direction, direction, 1.0, "position")
        presence = np.where(wrong, random.beta(5, 2, len(frame)), random.beta(2, 8, len(frame)))
        places = frame.loc[wrong, "path"].iloc[number * PLACES : (number + 1) * PLACES]
        for place, path in enumerate(places):
            picture = folder / "places" / name / f"{place}.jpg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.open(evaluation.data_root / path).crop((64, 0, 96, 32)).resize((THUMBNAIL, THUMBNAIL)).save(picture)
        shown = [{"path": path, "box": [64, 0, 96, 32]} for path in places]
        entries.append(group(name, presence.round(3).tolist(), places=shown, usual=1.0, typical=2.0, score=0.7 - 0.05 * number))
    for own in run.circuit.groups:
        if own.layer != LOGITS:
            silencers[own.id] = run.layers[own.layer], Filling(own.layer, own.neurons, (0.0,) * len(own.neurons))
            presence = random.beta(2, 8, len(frame)).round(3).tolist()
            entries.append(group(own.id, presence, misleading=False, silencing="zero", n_neurons=len(own.neurons), **_HARMLESS))
    silencer_file.write(folder / DebugReport.SILENCERS, silencers, {})
    (folder / "samples").mkdir()
    for layer in {layer.name: layer for layer, _ in silencers.values()}.values():
        np.save(folder / "samples" / f"{layer.name}.npy", random.gamma(1.0, 0.3, (60, layer.n_channels)).astype(np.float32))
    halves = random.permutation(np.arange(len(frame)) % 2)
    images = [
        {"path": row.path, "true": names[row.true], "predicted": names[row.predicted], "probability": row.probability,
         "half": "reported" if half else "chosen"}
        for row, half in zip(frame.itertuples(), halves, strict=True)
    ]  # fmt: skip
    write_json(
        folder / MANIFEST,
        {
            "schema": SCHEMA,
            "method": DebugReport.METHOD,
            "report": folder.name,
            "run": run.id,
            "images_root": str(evaluation.data_root),
            "created": now(),
            "draws": 200,
            "seed": 0,
            "n_wrong": int(wrong.sum()),
            "n_clean": int((~wrong).sum()),
            "n_reported": int((wrong & (halves == 1)).sum()),
            "ceiling": {"mean": 0.84, "low": 0.79, "high": 0.88},
            "lower_logit": {"by": 0.5, "recovered": 0.05, "clean_accuracy_change": -0.001, "target_recall_change": -0.01},
            "images": images,
            "groups": entries,
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--groups", type=int, default=300)
    parser.add_argument("--images", type=int, default=2000)
    arguments = parser.parse_args()
    print(write(Workspace(arguments.workspace), arguments.groups, arguments.images).id)
