"""Every patch of every image of a folder through the network once, for all classes that are analysed and debugged on it later.

In: an evaluation, the layers and the sizes of windows. Out: a ``Survey`` in the workspace: pooled activations of all layers on all patches.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from neurflow_engine.activations import pooled_activations
from neurflow_engine.errors import DataError, RunError
from neurflow_engine.files import read_json
from neurflow_engine.images import ImageBatches, cut_patches
from neurflow_engine.models import Classifier
from neurflow_engine.progress import Progress, Silent
from neurflow_engine.records import Layer, Patch
from neurflow_engine.store import MANIFEST, SCHEMA, Draft, Evaluation, Workspace, now
from neurflow_engine.tracing import folded

_IMAGES = 8  # decoded at once; their patches go through the network together


class Survey:
    """Pooled activations of the patches of all images that were evaluated; images in the order of the evaluation's predictions."""

    def __init__(self, folder: Path, evaluation: Evaluation, manifest: dict | None = None):
        """``manifest``: where it is known. Raises RunError when the folder holds no whole survey of the evaluation."""
        self.folder = folder
        self.manifest = manifest or (read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {})
        if (self.manifest.get("schema"), self.manifest.get("evaluation")) != (SCHEMA, evaluation.id):
            raise RunError(f"{folder} holds no survey of evaluation {evaluation.id}.")
        self._paths = evaluation.predictions["path"]

    @cached_property
    def _place(self) -> dict[str, int]:
        return {path: number for number, path in enumerate(self._paths)}

    def holds(self, layers: Sequence[str], granularities: Sequence[float]) -> bool:
        """Whether it tells about all these layers, on windows of these sizes."""
        return set(layers) <= set(self.manifest["layers"]) and list(granularities) == self.manifest["granularities"]

    def activations(self, layer: str, paths: Sequence[str]) -> np.ndarray:
        """Of every neuron of a layer on all patches of some images: (n_images, n_windows, n_channels), float32.

        Windows are in the order in which ``cut_patches`` numbers those of one image.
        """
        rows = np.load(self.folder / "activations" / f"{layer}.npy", mmap_mode="r", allow_pickle=False)
        return np.asarray(rows[[self._place[path] for path in paths]])


def survey(
    classifier: Classifier,
    evaluation: Evaluation,
    root: Path | str,
    layers: Sequence[Layer],
    granularities: Sequence[float],
    workspace: Workspace,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Survey:
    """Make the survey of an evaluation, go on with it where it was interrupted, or find it.

    Args:
        root: where the evaluated images lie now.
        granularities: window side / image side, as in ``cut_patches``.

    Raises:
        DataError: an image that was evaluated can no longer be decoded.
    """
    progress = progress or Silent()
    names = [layer.name for layer in layers]
    if found := find(workspace, evaluation, names, granularities):
        return found
    key = json.dumps([SCHEMA, evaluation.id, names, list(granularities)])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    folder = workspace.survey_folder(fingerprint[:16])
    with workspace.draft(folder, fingerprint, while_waiting=progress.check) as draft:
        if not draft.is_published:
            _fill(draft, classifier, evaluation, root, layers, granularities, progress, workers)
            draft.publish(
                {
                    "schema": SCHEMA,
                    "survey": folder.name,
                    "created": now(),
                    "evaluation": evaluation.id,
                    "layers": names,
                    "granularities": list(granularities),
                    "n_images": len(evaluation.predictions),
                    "n_patches": len(evaluation.predictions) * len(_windows(classifier, 1, granularities)[0]),
                }
            )
    return Survey(folder, evaluation)


def find(workspace: Workspace, evaluation: Evaluation, layers: Sequence[str], granularities: Sequence[float]) -> Survey | None:
    """A finished survey of an evaluation that holds these layers and windows, where there is one."""
    for folder, manifest in sorted(workspace.manifests("surveys"), key=lambda found: found[0]):
        with suppress(RunError):  # of another evaluation
            found = Survey(folder, evaluation, manifest)
            if found.holds(layers, granularities) and workspace.has(folder):
                return found
    return None


def _windows(classifier: Classifier, n_images: int, granularities: Sequence[float]) -> list[list[Patch]]:
    """The patches of each image."""
    patches = cut_patches(n_images, classifier.preprocessing.input_size, granularities)
    return [[patch for patch in patches if patch.image == image] for image in range(n_images)]


def _fill(
    draft: Draft,
    classifier: Classifier,
    evaluation: Evaluation,
    root: Path | str,
    layers: Sequence[Layer],
    granularities: Sequence[float],
    progress: Progress,
    workers: int | None,
) -> None:
    paths, preprocessing = evaluation.predictions["path"].tolist(), classifier.preprocessing
    n_windows = len(_windows(classifier, 1, granularities)[0])
    rows = {layer.name: draft.rows(f"activations/{layer.name}", (len(paths), n_windows, layer.n_channels)) for layer in layers}
    shape = (2, preprocessing.in_chans, *preprocessing.input_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(classifier.device)
    done = draft.noted("survey")
    batches = ImageBatches(root, paths, preprocessing, _IMAGES, workers, start=done)
    with (
        progress.stage("survey of all patches", len(paths) * n_windows) as tick,
        folded(classifier, noise, intact=[layer.name for layer in layers]),
    ):
        tick.advance(done * n_windows)
        for indices, images in batches:
            patches = [patch for own in _windows(classifier, len(indices), granularities) for patch in own]
            found = pooled_activations(classifier, images, patches, layers, tick)
            for name, values in found.items():
                rows[name].write(indices, values.reshape(len(indices), n_windows, -1))
            draft.note("survey", indices[-1] + 1)
    if batches.skipped:
        raise DataError(f"Image {batches.skipped[0].path} {batches.skipped[0].reason}, though it was evaluated before; evaluate again.")
