"""What a model predicts on a data folder: the start of every analysis, computed once per model and data.

In: a classifier and an image set. Out: an ``Evaluation`` in the workspace.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neurflow_engine import per_image
from neurflow_engine.batching import BATCH, Capacity, fitting
from neurflow_engine.class_names import FOLDERS
from neurflow_engine.config import ModelConfig
from neurflow_engine.errors import DataError, RunError
from neurflow_engine.images import ImageBatches, left_out
from neurflow_engine.layers import Anatomy
from neurflow_engine.models import Classifier, load_classifier
from neurflow_engine.progress import Progress
from neurflow_engine.records import LOGITS, ImageSet
from neurflow_engine.speed import Speed, measure
from neurflow_engine.store import SCHEMA, Draft, Evaluation, Run, Workspace, now
from neurflow_engine.tracing import Place, record

_TOP = 5  # classes that are kept of a prediction
_DEEPEST = 12  # depths for which default layers are noted


def evaluate(
    classifier: Classifier, anatomy: Anatomy, image_set: ImageSet, workspace: Workspace, progress: Progress, workers: int | None = None
) -> Evaluation:
    """Predictions on all images of a set; a finished evaluation of the same model, classes and data is found, not repeated.

    Raises:
        DataError: no file of the set can be decoded.
    """
    key = "\n".join(["with speed", classifier.fingerprint, image_set.fingerprint, *classifier.class_names, image_set.label_rule])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    folder = workspace.evaluation_folder(fingerprint[:16])
    if not workspace.has(folder):
        with workspace.draft(folder, fingerprint, while_waiting=progress.check) as draft:
            if not draft.is_published:
                _build(draft, classifier, anatomy, image_set, progress, workers)
    return Evaluation(folder)


def _build(draft: Draft, classifier: Classifier, anatomy: Anatomy, image_set: ImageSet, progress: Progress, workers: int | None) -> None:
    table, skipped = _predictions(draft, classifier, image_set, progress, workers)
    draft.save_table("predictions", table)
    _, few = next(iter(ImageBatches(image_set.root, table["path"][:BATCH].tolist(), classifier.preprocessing, BATCH)))
    speed = measure(classifier, anatomy, few)
    draft.publish(
        {
            "schema": SCHEMA,
            "evaluation": draft.final.name,
            "created": now(),
            "model": model_manifest(classifier),
            "data": data_manifest(image_set, len(table), skipped),
            "speed": {name: value for name, value in asdict(speed).items() if name != "before"},
            "places": [_place(name, anatomy, speed) for name in anatomy.places],
            "default_layers": [anatomy.default(depth) for depth in range(1, _DEEPEST + 1)],
        }
    )


def _place(name: str, anatomy: Anatomy, speed: Speed) -> dict:
    """A layer as a manifest lists it, with the share (0..1) of a forward pass's time that lies before its output."""
    layer = anatomy.layers[name]
    share, is_stage = speed.before[Place.of(name).module], name in anatomy.stages
    return {"name": name, "n_channels": layer.n_channels, "shape": layer.shape, "stage": is_stage, "share": share}


def model_manifest(classifier: Classifier) -> dict:
    """What a manifest says of a classifier."""
    preprocessing = {name: getattr(classifier.preprocessing, name) for name in classifier.preprocessing.__dataclass_fields__}
    return {
        "name": classifier.name,
        "configuration": classifier.config.model_dump(mode="json"),
        "architecture": classifier.architecture,
        "checkpoint_sha256": classifier.checkpoint_sha256,
        "fingerprint": classifier.fingerprint,
        "class_names": classifier.class_names,
        "class_names_source": classifier.class_names_source,
        "preprocessing": preprocessing,
    }


def classifier_of(run: Run, device: str = "auto") -> Classifier:
    """The classifier that a run analysed, loaded again as its manifest describes it.

    Raises:
        RunError: its weights or settings have changed since; ModelError: it cannot be loaded.
    """
    described = run.manifest["model"]
    folders = tuple(described["class_names"]) if described["class_names_source"] == FOLDERS else ()
    classifier = load_classifier(ModelConfig(**described["configuration"]), device, folders)
    if classifier.fingerprint != described["fingerprint"]:
        raise RunError(
            f"Model {classifier.name} is not the one that run {run.id} analysed (its weights or settings changed); analyse it again."
        )
    return classifier


def data_manifest(image_set: ImageSet, n_images: int, skipped: list[dict]) -> dict:
    """What a manifest says of the data."""
    return {
        "root": str(Path(image_set.root).absolute()),
        "fingerprint": image_set.fingerprint,
        "n_images": n_images,
        "skipped": skipped,
        "label_rule": image_set.label_rule,
    }


def _logits(classifier: Classifier, images: Tensor) -> Tensor:
    return record(classifier, images.to(classifier.device), [LOGITS])[LOGITS].float().cpu()


def _predictions(
    draft: Draft, classifier: Classifier, image_set: ImageSet, progress: Progress, workers: int | None
) -> tuple[pd.DataFrame, list[dict]]:
    paths, few = [image.path for image in image_set.images], min(_TOP, classifier.n_classes)
    capacity = Capacity(classifier.device, BATCH, 1)

    def top(_: np.ndarray, images: Tensor) -> np.ndarray:
        logits = torch.cat([found for _, found in fitting(images, capacity, lambda some: _logits(classifier, some))])
        probable = logits.softmax(1).topk(few)
        return torch.cat([probable.indices, probable.values, logits.gather(1, probable.indices[:, :1])], 1).numpy()

    with progress.stage("evaluate", total=len(paths)) as tick:
        rows, known, batches = per_image.ask(draft, image_set.root, paths, classifier, 2 * few + 1, top, tick, workers)
    skipped = left_out(image_set, batches, len(known))
    if not np.isfinite(rows[:, -1]).all():
        raise DataError("The model gives logits that are not finite numbers on these images; its weights or preprocessing are broken.")
    classes, probabilities = rows[:, :few].astype(int), rows[:, few:-1].astype(float)
    table = {
        "path": [paths[index] for index in known],
        "true": pd.array([image_set.images[index].true for index in known], "Int64"),
        "predicted": classes[:, 0],
        "probability": probabilities[:, 0],
        "logit": rows[:, -1].astype(float),
        "top5": classes.tolist(),
        "top5_probability": probabilities.tolist(),
    }
    return pd.DataFrame(table), skipped
