"""The circuit of a run once more, from parts of its probe images: to see what of it does not hang on a few of them.

In: a finished run, its model, and sets of its probe images. Out: one circuit per set. All sets go down the layers together, so that what
several of them ask of the network is computed once.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

import numpy as np
import torch

from neurflow_engine.activations import ProbePatches
from neurflow_engine.batching import budget, in_batches
from neurflow_engine.circuit import assembled, explained
from neurflow_engine.concepts import concept
from neurflow_engine.config import AnalysisConfig
from neurflow_engine.errors import DataError
from neurflow_engine.files import writing
from neurflow_engine.images import ImageBatches
from neurflow_engine.layer_step import Attributions, LayerStep, Pairs
from neurflow_engine.models import Classifier
from neurflow_engine.progress import Stage
from neurflow_engine.records import Circuit, Layer
from neurflow_engine.rows import Rows
from neurflow_engine.store import Run
from neurflow_engine.tracing import folded

_COLUMNS = 128  # neurons whose activations on all patches are looked at together
_FEWEST_PATCHES = 4  # in a concept


def halves(n_images: int, draws: int, seed: int) -> list[tuple[int, ...]]:
    """Random halves of ``n_images`` images, by index, ascending; none where a half would be a single image."""
    generator = np.random.default_rng(seed)
    size = n_images // 2
    return [tuple(sorted(generator.choice(n_images, size, replace=False).tolist())) for _ in range(draws)] if size > 1 else []


def rebuilt(run: Run, classifier: Classifier, image_sets: Sequence[Sequence[int]], folder: Path, tick: Stage) -> list[Circuit]:
    """The circuit from each set of probe images, by the run's own settings and with its numbers of groups; concepts are as large a part of
    the patches as in the run.

    Args:
        image_sets: indices of the run's probe images.
        folder: for arrays that are needed meanwhile.

    Raises:
        DataError: a probe image is gone.
    """
    layers = tuple(run.layers.values())
    probe = _probe(run, classifier, folder)
    channels, size = classifier.preprocessing.in_chans, classifier.preprocessing.input_size
    sample = torch.randn((2, channels, *size), generator=torch.Generator().manual_seed(0)).to(classifier.device)
    circuits: list[dict] = [{} for _ in image_sets]
    to_explain = [(run.circuit.target_index,) for _ in image_sets]
    with folded(classifier, sample, intact=[layer.name for layer in layers]):
        for upper, lower in zip(layers, (*layers[1:], None), strict=True):
            _explain(run, probe, upper, lower, image_sets, to_explain, circuits, folder, tick)
            to_explain = [tuple(sorted({core for neuron in circuit[upper.name][0] for core in neuron.core})) for circuit in circuits]
    name, images, patches = run.circuit.target_name, run.circuit.images, run.circuit.patches
    n_groups = {layer.name: (len(run.circuit.groups_of(layer.name)),) * 2 for layer in layers}
    return [assembled(found, name, images, patches, n_groups.get) for found in circuits if all(found.values())]


def _probe(run: Run, classifier: Classifier, folder: Path) -> ProbePatches:
    channels, size = classifier.preprocessing.in_chans, classifier.preprocessing.input_size
    paths = [image.path for image in run.circuit.images]
    with writing(folder):
        images = Rows.create(folder / "images.npy", (len(paths), channels, *size))
    batches = ImageBatches(run.data_root, paths, classifier.preprocessing)
    for indices, batch in batches:
        images.write(indices, batch.numpy())
    if batches.skipped:
        raise DataError(f"Image {batches.skipped[0].path} of run {run.id} {batches.skipped[0].reason}; put it back or analyse again.")
    return ProbePatches(classifier, images, run.circuit.patches)


def _explain(
    run: Run,
    probe: ProbePatches,
    upper: Layer,
    lower: Layer | None,
    image_sets: Sequence[Sequence[int]],
    to_explain: Sequence[Sequence[int]],
    circuits: Sequence[dict],
    folder: Path,
    tick: Stage,
) -> None:
    """Explain the neurons that each set asks for in ``upper`` and add them, with their representations, to the set's circuit."""
    settings = run.manifest["configuration"]
    activations = Rows(run.activations_file(upper.name))
    vectors = Rows(run.activations_file((lower or upper).name))
    of_image = np.array([patch.image for patch in probe.patches])
    among = [np.flatnonzero(np.isin(of_image, images)) for images in image_sets]
    concepts: list[dict[int, tuple[int, ...]]] = [{} for _ in image_sets]
    strength: list[dict[int, np.ndarray]] = [{} for _ in image_sets]
    for some in in_batches(sorted({index for indices in to_explain for index in indices}), _COLUMNS):
        columns = dict(zip(some, activations.columns(some).T, strict=True))
        for own, indices, patches, strong in zip(concepts, to_explain, among, strength, strict=True):
            top_k = max(_FEWEST_PATCHES, ceil(settings["top_k"] * len(patches) / len(probe)))
            for index in set(indices) & columns.keys():
                own[index] = tuple(patches[list(concept(columns[index][patches], top_k))].tolist())
                strong[index] = columns[index][list(own[index])]
    table = _attributed(run, probe, upper, lower, concepts, folder, tick) if lower else None
    for circuit, own, strong in zip(circuits, concepts, strength, strict=True):
        neurons, representations = [], []
        for index, patches in sorted(own.items()):
            found = table.of(index, patches) if table else None
            neuron, means = explained(upper.name, index, patches, strong[index], vectors.read(patches), found, settings["tau"])
            neurons.append(neuron)
            representations += means
        circuit[upper.name] = (tuple(neurons), np.stack(representations)) if neurons else None


def _attributed(
    run: Run,
    probe: ProbePatches,
    upper: Layer,
    lower: Layer,
    concepts: Sequence[Mapping[int, Sequence[int]]],
    folder: Path,
    tick: Stage,
) -> Attributions:
    """Attributions of every pair (neuron, patch) that any of the sets has among its concepts."""
    wanted: dict[int, set[int]] = {}
    for own in concepts:
        for index, patches in own.items():
            wanted.setdefault(index, set()).update(patches)
    pairs = Pairs.of({index: sorted(patches) for index, patches in sorted(wanted.items())})
    tick.total = (tick.total or 0) + len(pairs.row_of)
    room = budget(probe.classifier.device, AnalysisConfig.model_fields["memory_mb"].default)
    step = LayerStep(probe, upper, lower, Rows(run.activations_file(upper.name)), None, room)
    mixed = run.manifest["configuration"]["precision"] == "mixed" and step.can_mix
    with writing(folder):
        rows = Rows.create(folder / "attributions.npy", Attributions.shape(pairs, lower.n_channels))
    table = Attributions(pairs, rows)
    rule = step.rule(pairs, run.manifest["configuration"]["completeness"], mixed)
    for batch, found in step.attributions(pairs, pairs.patches, rule, mixed):
        table.write(pairs, batch, found)
        tick.advance(pairs.count(batch))
    return table
