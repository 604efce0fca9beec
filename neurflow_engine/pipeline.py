"""The whole analysis on one screen: configuration in, run folder out.

Each stage saves what it made in a draft of the run; an interrupted analysis goes on after its last finished stage, and a finished one is
found instead of computed. The result depends on the configuration, the weights and the data alone, not on where or how fast it ran.
"""

import hashlib
import json
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from neurflow_engine.activations import in_batches, patch_inputs, pooled_activations
from neurflow_engine.attribution import Attribution, integrated_gradients, joined, quadrature_rule
from neurflow_engine.concepts import SEMANTIC_GROUPS, clustered, concept
from neurflow_engine.config import AnalysisConfig, ModelConfig
from neurflow_engine.core_neurons import core_neurons, core_weights
from neurflow_engine.errors import DataError, LayerError, RunError
from neurflow_engine.evaluation import data_manifest, evaluate, model_manifest
from neurflow_engine.groups import edges_between, logit_group, neuron_groups, ranked
from neurflow_engine.images import ImageBatches, crop_patches, cut_patches, match_classes, scan
from neurflow_engine.layers import Anatomy, examine, pooled
from neurflow_engine.models import Classifier, load_classifier
from neurflow_engine.progress import Progress, Silent
from neurflow_engine.records import LOGITS, Edge, ImageSet, Layer, Neuron, NeuronGroup, ProbeImage, SemanticGroup
from neurflow_engine.store import MANIFEST, SCHEMA, Draft, Evaluation, Run, Workspace, now, writing
from neurflow_engine.tracing import Segment, record

METHOD = 1  # raised when the same configuration would give another circuit than before
_ATTRIBUTION_BATCH = 64  # scaled copies of patches in one forward pass of a segment
_TRIAL_PATCHES = 8  # on which the quadrature rule of a layer step is chosen
_THUMBNAIL = 96  # pixels, longer side
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow")


@dataclass(frozen=True, eq=False)
class Subject:
    """What is analysed: a classifier, where it can be cut, and a data folder seen with its classes."""

    classifier: Classifier
    anatomy: Anatomy
    image_set: ImageSet


def prepare(model: ModelConfig, data: Path, device: str = "auto") -> Subject:
    """Load the model and list the data; raises ModelError, DataError, LayerError."""
    image_set = scan(data)
    classifier = load_classifier(model, device, image_set.folders)
    image_set = match_classes(image_set, classifier.class_names, classifier.class_names_source)
    preprocessing = classifier.preprocessing
    return Subject(classifier, examine(classifier, (preprocessing.in_chans, *preprocessing.input_size)), image_set)


def analyze(config: AnalysisConfig, workspace: Workspace, out: Path | None = None, progress: Progress | None = None) -> Run:
    """Build the run that ``config`` asks for, go on with it where it was interrupted, or find it finished.

    Args:
        out: folder of the run; by default one in the workspace, named after the class and the run's fingerprint.

    Raises:
        InputError: anything about model, data, target, layers or workspace that cannot be used; Cancelled: on request.
    """
    progress = progress or Silent()
    subject = prepare(config.model, config.data, config.device)
    classifier = subject.classifier
    target = classifier.class_index(config.target)
    layers = subject.anatomy.chosen(config.layers, config.depth)
    fingerprint = _fingerprint(config, subject, target, layers)
    run_id = f"{_slug(classifier.class_names[target])}-{fingerprint[:10]}"
    folder = Path(out).absolute() if out else workspace.run_folder(run_id)
    if _is_finished(folder, fingerprint):
        return Run(folder)
    evaluation = evaluate(classifier, subject.anatomy, subject.image_set, workspace, progress, config.workers)
    probe = probe_images(evaluation, target, config.max_images, config.seed)
    with workspace.draft(folder, fingerprint) as draft:
        if not _is_finished(folder, fingerprint):
            analysis = _Analysis(config, subject, target, layers, probe, draft, progress)
            analysis.run()
            draft.publish(_manifest(config, subject, evaluation, analysis, run_id, fingerprint))
    return Run(folder)


def probe_images(evaluation: Evaluation, target: int, max_images: int, seed: int) -> tuple[ProbeImage, ...]:
    """Images predicted as the target, at most ``max_images``: a seeded sample where there are more, in order of path."""
    predicted = evaluation.predictions[evaluation.predictions["predicted"] == target]
    if predicted.empty:
        often = evaluation.predictions["predicted"].value_counts().index[:5]
        raise DataError(
            f"None of the {len(evaluation.predictions)} images is predicted as {evaluation.class_names[target]!r}, so there is nothing to "
            f"analyse; predicted most often: {', '.join(evaluation.class_names[index] for index in often)}."
        )
    if len(predicted) > max_images:
        chosen = np.random.default_rng(seed).choice(len(predicted), max_images, replace=False)
        predicted = predicted.iloc[np.sort(chosen)]
    return tuple(
        ProbeImage(number, row.path, None if pd.isna(row.true) else int(row.true), float(row.probability), float(row.logit))
        for number, row in enumerate(predicted.itertuples())
    )


class _Analysis:
    """The stages of one run, top down; every stage is skipped when the draft has it already."""

    def __init__(self, config, subject: Subject, target: int, layers: Sequence[Layer], probe: Sequence[ProbeImage], draft: Draft, progress):
        self.config, self.target, self.layers, self.probe, self.draft, self.progress = config, target, layers, probe, draft, progress
        self.classifier = subject.classifier
        self.root = subject.image_set.root
        self.patches = cut_patches(len(probe), self.classifier.preprocessing.input_size, config.granularities)
        self.groups: tuple[NeuronGroup, ...] = ()
        self._images: Tensor | None = None

    def run(self) -> None:
        self.stage("activations", len(self.patches), self.activations)
        to_explain = (self.target,)
        for upper, lower in zip(self.layers, (*self.layers[1:], None), strict=True):
            self.stage(
                upper.name, None, lambda tick, upper=upper, lower=lower, indices=to_explain: self.explain(tick, upper, lower, indices)
            )
            neurons = self.draft.load_records(f"work/{upper.name}", Neuron)
            to_explain = tuple(sorted({index for neuron in neurons for index in neuron.core}))
            if lower and not to_explain:
                raise LayerError(
                    f"No neuron of {lower.name} has any effect on the chosen neurons of {upper.name} (all attributions are 0), so the "
                    f"circuit ends there; choose other layers."
                )
        self.stage("circuit", len(self.layers), self.circuit)
        self.stage("thumbnails", None, self.thumbnails)
        self.groups = self.draft.load_records("groups", NeuronGroup)

    def stage(self, name: str, total: int | None, work: Callable) -> None:
        if self.draft.has(name):
            return
        began = time.monotonic()
        with self.progress.stage(name, total) as tick:
            work(tick)
        self.draft.finished(name, time.monotonic() - began)

    @property
    def images(self) -> Tensor:
        """The probe images, preprocessed: (n_images, channels, height, width); read once, when a stage needs them."""
        if self._images is None:
            batches = ImageBatches(
                self.root, [image.path for image in self.probe], self.classifier.preprocessing, workers=self.config.workers
            )
            self._images = torch.cat([images for _, images in batches])
            if batches.skipped:
                raise DataError(
                    f"Image {batches.skipped[0].path} {batches.skipped[0].reason}, though it was evaluated before; start again."
                )
        return self._images

    def activations(self, tick) -> None:
        for name, array in pooled_activations(self.classifier, self.images, self.patches, self.layers, tick).items():
            self.draft.save_array(f"activations/{name}", array)

    def explain(self, tick, upper: Layer, lower: Layer | None, indices: Sequence[int]) -> None:
        """Concepts, core neurons and semantic groups of the neurons ``indices`` of layer ``upper``."""
        activations = self.draft.load_array(f"activations/{upper.name}")
        concepts = {index: concept(activations[:, index], self.config.top_k) for index in indices}
        # The shallowest layer has nothing below it: its concepts are divided by the layer's own vectors.
        vectors = self.draft.load_array(f"activations/{(lower or upper).name}")
        attributions = self.attribute(tick, upper, lower, concepts) if lower else {}
        neurons, representations = [], []
        for index, patches in concepts.items():
            neuron, own = explained(upper.name, index, patches, activations[:, index], vectors, attributions.get(index), self.config.tau)
            neurons.append(neuron)
            representations += own
        self.draft.save_records(f"work/{upper.name}", neurons)
        self.draft.save_array(f"work/{upper.name}", np.stack(representations))

    def attribute(self, tick, upper: Layer, lower: Layer, concepts: dict[int, tuple[int, ...]]) -> dict[int, Attribution]:
        """Integrated gradients of each neuron on its concept, patches in the order of the concept.

        Each patch goes through the segment once for all neurons whose concept holds it; patches wanted by equally many go together.
        """
        sample = [self.patches[number % len(self.patches)] for number in range(3)]
        segment = Segment(self.classifier, lower.name, upper.name, patch_inputs(self.classifier, self.images, sample))
        wanted: dict[int, list[int]] = {}
        for index, patches in concepts.items():
            for patch in patches:
                wanted.setdefault(patch, []).append(index)
        order = sorted(wanted, key=lambda patch: (-len(wanted[patch]), patch))
        tick.total = sum(map(len, wanted.values()))

        def attributed(batch: Sequence[int], n_nodes: int, power: int) -> Attribution:
            inputs = patch_inputs(self.classifier, self.images, [self.patches[patch] for patch in batch])
            at_cut = record(self.classifier, inputs, [lower.name])[lower.name]
            context = segment.context(inputs) if segment.needs_context else None
            return integrated_gradients(
                lambda scaled: pooled(upper, segment.repeated(scaled, context, len(scaled) // len(batch))),
                at_cut, [wanted[patch] for patch in batch], lower.channel_axis, n_nodes, power,
            )  # fmt: skip

        trial = order[:: max(1, len(order) // _TRIAL_PATCHES)][:_TRIAL_PATCHES]
        rule = quadrature_rule(lambda *rule: attributed(trial, *rule).relative_gap, self.config.completeness)
        parts = []
        for batch in in_batches(order, max(1, _ATTRIBUTION_BATCH // rule[0])):
            parts.append(attributed(batch, *rule))
            tick.advance(sum(len(wanted[patch]) for patch in batch))
        everything = joined(parts)
        row_of = {pair: row for row, pair in enumerate((patch, index) for patch in order for index in wanted[patch])}
        return {index: everything.rows([row_of[patch, index] for patch in patches]) for index, patches in concepts.items()}

    def circuit(self, tick) -> None:
        """Groups of all layers, numbered by their importance for the layer above, and the edges between them."""
        groups: list[NeuronGroup] = []
        edges: list[Edge] = []
        neurons: list[Neuron] = []
        above: tuple[tuple[NeuronGroup, ...], tuple[Neuron, ...]] = ((), ())
        importance: dict[str, float] = {}
        for layer in self.layers:
            own = self.draft.load_records(f"work/{layer.name}", Neuron)
            if layer.name == LOGITS:
                found, importance = (logit_group(LOGITS, own[0]),), {f"{LOGITS}/0": 1.0}
            else:
                representations = self.draft.load_array(f"work/{layer.name}")
                found = neuron_groups(layer.name, own, representations, self.config.min_groups, self.config.max_groups)
                found, between, importance = ranked(layer.name, found, edges_between(found, own, *above), importance)
                edges += between
            groups += found
            neurons += own
            above = (found, own)
            tick.advance()
        for name, records in (
            ("images", self.probe),
            ("patches", self.patches),
            ("neurons", neurons),
            ("groups", groups),
            ("edges", edges),
        ):
            self.draft.save_records(name, records)

    def thumbnails(self, tick) -> None:
        """JPEGs in true colours: all probe images, and the patches of all groups."""
        shown = sorted({patch for group in self.draft.load_records("groups", NeuronGroup) for patch in group.patches})
        tick.total = len(shown) + len(self.probe)
        to_pixels, folder = self.classifier.preprocessing.to_pixels, self.draft.folder / "thumbnails"
        height, width = self.classifier.preprocessing.input_size
        size = (_THUMBNAIL * height // max(height, width), _THUMBNAIL * width // max(height, width))
        with writing(folder):
            folder.mkdir(exist_ok=True)
            for number, image in enumerate(self.images):
                Image.fromarray(to_pixels(image)).save(folder / f"image-{number}.jpg", quality=90)
                tick.advance()
            for patch in shown:
                pixels = to_pixels(crop_patches(self.images, [self.patches[patch]], size)[0])
                Image.fromarray(pixels).save(folder / f"patch-{patch}.jpg", quality=88)
                tick.advance()


def explained(
    layer: str,
    index: int,
    patches: tuple[int, ...],
    activation: np.ndarray,
    vectors: np.ndarray,
    attribution: Attribution | None,
    tau: int,
) -> tuple[Neuron, list[np.ndarray]]:
    """One neuron with its core neurons and semantic groups, and the representation of each semantic group.

    Args:
        patches: the concept of the neuron.
        activation: (n_patches,) of the neuron on all patches.
        vectors: (n_patches, n_features), pooled activations of the next lower layer, by which the concept is divided.
        attribution: one row per patch of the concept; None in the shallowest layer.
    """
    clustering = clustered(vectors[list(patches)], SEMANTIC_GROUPS)
    channels = attribution.channels.cpu().numpy() if attribution else None
    core = core_neurons(channels, tau) if attribution else ()
    semantic_groups, representations = [], []
    for number in range(clustering.n_clusters):
        rows = clustering.members(number)
        own = tuple(patches[row] for row in rows)
        semantic_groups.append(
            SemanticGroup(
                id=f"{layer}:{index}.{number}",
                layer=layer,
                neuron=index,
                patches=own,
                mean_activation=float(activation[list(own)].mean()),
                weights=core_weights(channels[rows], core) if attribution else (),
            )
        )
        representations.append(vectors[list(own)].mean(0))
    gap = attribution.relative_gap if attribution else None
    return Neuron(layer, index, patches, core, tuple(semantic_groups), clustering.silhouette, gap), representations


def _fingerprint(config: AnalysisConfig, subject: Subject, target: int, layers: Sequence[Layer]) -> str:
    settings = config.model_dump(
        include={"tau", "top_k", "max_images", "granularities", "min_groups", "max_groups", "completeness", "seed"}
    )
    parts = [
        SCHEMA,
        METHOD,
        subject.classifier.fingerprint,
        subject.image_set.fingerprint,
        subject.classifier.class_names[target],
        target,
        [layer.name for layer in layers],
        settings,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _is_finished(folder: Path, fingerprint: str) -> bool:
    if (folder / MANIFEST).is_file():
        if Run(folder).manifest["fingerprint"] == fingerprint:
            return True
        raise RunError(f"{folder} holds another finished run ({Run(folder).id}); choose another --out or delete it.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and is not a run; choose another --out.")
    return False


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.split(",")[0].casefold()).strip("-")[:40] or "class"


def peak_memory_mb() -> float:
    """Largest resident set of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _manifest(config: AnalysisConfig, subject: Subject, evaluation: Evaluation, analysis: _Analysis, run_id: str, fingerprint: str) -> dict:
    classifier = subject.classifier
    skipped = [asdict(file) for file in evaluation.skipped]
    return {
        "schema": SCHEMA,
        "run": run_id,
        "fingerprint": fingerprint,
        "created": now(),
        "model": model_manifest(classifier),
        "data": data_manifest(subject.image_set, len(evaluation.predictions), skipped),
        "evaluation": evaluation.id,
        "target": {"index": analysis.target, "name": classifier.class_names[analysis.target]},
        "layers": [asdict(layer) for layer in analysis.layers],
        "configuration": config.model_dump(mode="json", exclude={"model"}),
        "seeds": {"probe_images": config.seed},
        "packages": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "device": str(classifier.device),
        "n_probe_images": len(analysis.probe),
        "n_groups": len(analysis.groups),
        "seconds": analysis.draft.seconds,
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
