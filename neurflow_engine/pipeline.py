"""The whole analysis on one screen: configuration in, run folder out.

Each stage saves what it made in a draft of the run; an interrupted analysis goes on after its last finished stage, and a finished one is
found instead of computed. The result depends on the configuration, the weights and the data alone, not on where or how fast it ran.
"""

import hashlib
import json
import math
import platform
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from neurflow_engine.activations import ProbePatches, forward_capacity, survey
from neurflow_engine.batching import budget, enough_memory, in_batches
from neurflow_engine.circuit import assembled, explained
from neurflow_engine.concepts import concept
from neurflow_engine.config import AnalysisConfig, ModelConfig
from neurflow_engine.core_neurons import is_close_call
from neurflow_engine.errors import DataError, LayerError, RunError
from neurflow_engine.evaluation import data_manifest, evaluate, model_manifest
from neurflow_engine.files import writing
from neurflow_engine.images import ImageBatches, cut_patches, match_classes, scan
from neurflow_engine.layer_step import Attributions, LayerStep, Pairs, native_bfloat16
from neurflow_engine.layers import Anatomy, examine
from neurflow_engine.models import Classifier, load_classifier
from neurflow_engine.progress import Progress, Silent
from neurflow_engine.records import ImageSet, Layer, Neuron, NeuronGroup, ProbeImage
from neurflow_engine.rows import Rows
from neurflow_engine.store import SCHEMA, Draft, Evaluation, Run, Workspace, now
from neurflow_engine.survey import Survey, find
from neurflow_engine.tracing import folded

METHOD = 2  # raised when the same configuration would give another circuit than before
_IMAGES = 4  # probe images decoded at once; their patches go through the network together
_COLUMNS = 128  # neurons whose activations on all patches are looked at together
_BFLOAT16 = 2**-7  # relative difference up to which bfloat16 (8 bits of precision) may confuse two sums
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
    mixed = config.precision == "mixed" and native_bfloat16(classifier.device)
    fingerprint = _fingerprint(config, subject, target, layers, mixed)
    run_id = f"{_slug(classifier.class_names[target])}-{fingerprint[:10]}"
    folder = Path(out).absolute() if out else workspace.run_folder(run_id)
    if _is_finished(workspace, folder, fingerprint):
        return Run(folder)
    evaluation = evaluate(classifier, subject.anatomy, subject.image_set, workspace, progress, config.workers)
    probe = probe_images(evaluation, target, config.max_images, config.seed)
    with workspace.draft(folder, fingerprint) as draft:
        if not _is_finished(workspace, folder, fingerprint):
            analysis = _Analysis(config, subject, target, layers, probe, mixed, draft, progress)
            shared = find(workspace, evaluation, [layer.name for layer in layers], config.granularities)
            with enough_memory():
                analysis.run(_known_activations(workspace, analysis.survey_key, layers), shared)
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
    """The stages of one run, top down; every stage is skipped when the draft has it already, and goes on where it was interrupted."""

    def __init__(
        self,
        config: AnalysisConfig,
        subject: Subject,
        target: int,
        layers: Sequence[Layer],
        probe: Sequence[ProbeImage],
        mixed: bool,
        draft: Draft,
        progress: Progress,
    ):
        self.config, self.target, self.layers, self.probe, self.draft, self.progress = config, target, layers, probe, draft, progress
        self.classifier = subject.classifier
        self.target_name = subject.classifier.class_names[target]
        self.root = subject.image_set.root
        self.mixed = mixed
        parts = [METHOD, self.classifier.fingerprint, subject.image_set.fingerprint, [image.path for image in probe], config.granularities]
        self.survey_key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self.room = budget(self.classifier.device, config.memory_mb)
        patches = cut_patches(len(probe), self.classifier.preprocessing.input_size, config.granularities)
        channels, size = self.classifier.preprocessing.in_chans, self.classifier.preprocessing.input_size
        self.patches = ProbePatches(self.classifier, draft.rows(f"{Draft.WORK}/images", (len(probe), channels, *size)), patches)
        self.groups: tuple[NeuronGroup, ...] = ()

    def run(self, known: Mapping[str, Path], shared: Survey | None) -> None:
        """``known``: activations of layers that another run found on the same patches, by layer; ``shared``: a survey of all layers."""
        channels, size = self.classifier.preprocessing.in_chans, self.classifier.preprocessing.input_size
        sample = torch.randn((2, channels, *size), generator=torch.Generator().manual_seed(0)).to(self.classifier.device)
        with folded(self.classifier, sample, intact=[layer.name for layer in self.layers]):
            self.stage("activations", len(self.patches), lambda tick: self.activations(tick, known, shared))
            to_explain = (self.target,)
            for upper, lower in zip(self.layers, (*self.layers[1:], None), strict=True):
                explain = lambda tick, upper=upper, lower=lower, indices=to_explain: self.explain(tick, upper, lower, indices)  # noqa: E731
                self.stage(upper.name, None, explain)
                neurons = self.draft.load_records(f"work/{upper.name}", Neuron)
                to_explain = tuple(sorted({index for neuron in neurons for index in neuron.core}))
                if lower and not to_explain:
                    raise LayerError(
                        f"No neuron of {lower.name} has any effect on the chosen neurons of {upper.name} (all attributions are 0), so the "
                        f"circuit ends there; choose other layers."
                    )
        self.stage("circuit", None, self.circuit)
        self.stage("thumbnails", None, self.thumbnails)
        self.groups = self.draft.load_records("groups", NeuronGroup)

    def stage(self, name: str, total: int | None, work: Callable) -> None:
        if self.draft.has(name):
            return
        began = time.monotonic()
        with self.progress.stage(name, total) as tick:
            work(tick)
        self.draft.finished(name, time.monotonic() - began)

    def activations(self, tick, known: Mapping[str, Path], shared: Survey | None) -> None:
        """Pooled activations of all layers on all patches, and the layers' whole outputs as far as the disk may hold them."""
        pooled_rows = {}
        for layer in self.layers:
            if layer.name in known:
                self.draft.adopt(f"activations/{layer.name}", known[layer.name])
                continue
            rows = self.draft.rows(f"activations/{layer.name}", (len(self.patches), layer.n_channels))
            if shared:
                found = shared.activations(layer.name, [image.path for image in self.probe])
                rows.write([patch for own in self.patches.of_images() for patch in own], found.reshape(-1, layer.n_channels))
            else:
                pooled_rows[layer] = rows
        kept = self.kept_maps() if pooled_rows else []
        for layer in self.layers[1:]:
            if layer not in kept:
                self.draft.drop(f"work/map-{layer.name}")  # an interrupted attempt, with other settings, may have begun it
        maps = {layer: self.draft.rows(f"work/map-{layer.name}", (len(self.patches), *layer.shape)) for layer in kept}
        batches = ImageBatches(
            self.root,
            [image.path for image in self.probe],
            self.classifier.preprocessing,
            batch_size=_IMAGES,
            workers=self.config.workers,
            start=self.draft.noted("activations"),
        )
        capacity = forward_capacity(self.classifier, self.room)
        of_images = self.patches.of_images()
        tick.advance(sum(len(ids) for ids in of_images[: batches.start]))
        for indices, images in batches:
            self.patches.images.write(indices, images.numpy())
            if pooled_rows:
                ids = [patch for image in indices for patch in of_images[image]]
                survey(self.patches, ids, pooled_rows, maps, capacity, tick)
            self.draft.note("activations", indices[-1] + 1)
        if batches.skipped:
            raise DataError(f"Image {batches.skipped[0].path} {batches.skipped[0].reason}, though it was evaluated before; start again.")

    def kept_maps(self) -> list[Layer]:
        """Layers whose whole outputs are kept until gradients start from them: deepest first, as many as the disk has room for."""
        if self.draft.noted("activations"):  # the first patches are done: what was not kept then is not whole
            return [layer for layer in self.layers[1:] if self.draft.holds(f"work/map-{layer.name}")]
        room = min(self.config.disk_mb << 20, shutil.disk_usage(self.draft.folder).free // 2)
        kept = []
        for layer in self.layers[1:]:
            room -= len(self.patches) * math.prod(layer.shape) * 4
            if room < 0:
                break
            kept.append(layer)
        return kept

    def explain(self, tick, upper: Layer, lower: Layer | None, indices: Sequence[int]) -> None:
        """Concepts, core neurons and semantic groups of the neurons ``indices`` of layer ``upper``."""
        activations = self.draft.open_rows(f"activations/{upper.name}")
        # The shallowest layer has nothing below it: its concepts are divided by the layer's own vectors.
        vectors = self.draft.open_rows(f"activations/{(lower or upper).name}")
        concepts: dict[int, tuple[int, ...]] = {}
        strength: dict[int, np.ndarray] = {}  # of each neuron on its concept
        for some in in_batches(indices, _COLUMNS):
            for index, column in zip(some, activations.columns(some).T, strict=True):
                concepts[index] = concept(column, self.config.top_k)
                strength[index] = column[list(concepts[index])]
        attributions = self.attribute(tick, upper, lower, concepts, activations) if lower else None
        neurons, representations = [], []
        for index, patches in concepts.items():
            own = attributions[index].of(index, patches) if attributions else None
            neuron, means = explained(upper.name, index, patches, strength[index], vectors.read(patches), own, self.config.tau)
            neurons.append(neuron)
            representations += means
        self.draft.save_records(f"work/{upper.name}", neurons)
        self.draft.save_array(f"work/{upper.name}", np.stack(representations))

    def attribute(
        self, tick, upper: Layer, lower: Layer, concepts: Mapping[int, Sequence[int]], activations: Rows
    ) -> Mapping[int, Attributions]:
        """Integrated gradients of each neuron on its concept: in bfloat16 where that is faster, corrected by float32 wherever the last core
        neuron and the first that is none are so close that bfloat16 could confuse them. By neuron, the table that holds its own."""
        maps = self.draft.open_rows(f"work/map-{lower.name}") if self.draft.holds(f"work/map-{lower.name}") else None
        step = LayerStep(self.patches, upper, lower, activations, maps, self.room)
        pairs = Pairs.of(concepts)
        table = self.table(f"work/attributions-{upper.name}", pairs, lower)
        tick.total = len(pairs.row_of)
        mixed = self.mixed and step.can_mix
        rule = step.rule(pairs, self.config.completeness, mixed)
        self.fill(tick, upper.name, step, table, pairs, rule, mixed)
        tables = dict.fromkeys(concepts, table)
        if mixed:
            close = [index for index, own in concepts.items() if is_close_call(table.of(index, own).channels, self.config.tau, _BFLOAT16)]
            again = Pairs.of({index: concepts[index] for index in close})
            tick.total += len(again.row_of)
            exact = self.table(f"work/exact-{upper.name}", again, lower)  # beside the other: the same calls are close after a restart
            self.correct(tick, f"{upper.name} again", step, table, exact, again, rule)
            tables |= dict.fromkeys(close, exact)
        return tables

    def table(self, name: str, pairs: Pairs, lower: Layer) -> Attributions:
        """On disk, for the attributions of these pairs to the neurons of ``lower``."""
        return Attributions(pairs, self.draft.rows(name, Attributions.shape(pairs, lower.n_channels)))

    def fill(self, tick, note: str, step: LayerStep, table: Attributions, pairs: Pairs, rule: tuple[int, float], mixed: bool) -> None:
        """Write the attributions of ``pairs`` into the table, from the patch on at which an interrupted analysis stopped."""
        done = self.draft.noted(note)
        tick.advance(pairs.count(pairs.patches[:done]))
        for batch, found in step.attributions(pairs, pairs.patches[done:], rule, mixed):
            table.write(pairs, batch, found)
            done += len(batch)
            self.draft.note(note, done)
            tick.advance(pairs.count(batch))

    def correct(
        self, tick, note: str, step: LayerStep, table: Attributions, exact: Attributions, pairs: Pairs, rule: tuple[int, float]
    ) -> None:
        """Write what ``table`` holds of ``pairs``, corrected by float32, into ``exact``; goes on as ``fill`` does."""
        done = self.draft.noted(note)
        tick.advance(pairs.count(pairs.patches[:done]))
        for batch, correction in step.corrections(pairs, pairs.patches[done:], rule):
            mixed = table.read(pairs, batch)
            exact.write(pairs, batch, replace(mixed, channels=mixed.channels + correction))
            done += len(batch)
            self.draft.note(note, done)
            tick.advance(pairs.count(batch))

    def circuit(self, tick) -> None:
        """Groups of all layers and the edges between them."""
        found = {
            layer.name: (self.draft.load_records(f"work/{layer.name}", Neuron), self.draft.load_array(f"work/{layer.name}"))
            for layer in self.layers
        }
        n_groups = self.config.min_groups, self.config.max_groups
        circuit = assembled(found, self.target_name, self.probe, self.patches.patches, lambda layer: n_groups)
        for name in ("images", "patches", "neurons", "groups", "edges"):
            self.draft.save_records(name, getattr(circuit, name))

    def thumbnails(self, tick) -> None:
        """JPEGs in true colours: all probe images, and the patches of all groups."""
        shown = sorted({patch for group in self.draft.load_records("groups", NeuronGroup) for patch in group.patches})
        tick.total = len(shown) + len(self.probe)
        to_pixels, folder = self.classifier.preprocessing.to_pixels, self.draft.folder / "thumbnails"
        height, width = self.classifier.preprocessing.input_size
        size = (_THUMBNAIL * height // max(height, width), _THUMBNAIL * width // max(height, width))
        with writing(folder):
            folder.mkdir(exist_ok=True)
            for number in range(len(self.probe)):
                image = torch.from_numpy(self.patches.images.read([number]))[0]
                Image.fromarray(to_pixels(image)).save(folder / f"image-{number}.jpg", quality=90)
                tick.advance()
            for patch in shown:
                pixels = to_pixels(self.patches.cropped([patch], size)[0])
                Image.fromarray(pixels).save(folder / f"patch-{patch}.jpg", quality=88)
                tick.advance()


def _known_activations(workspace: Workspace, survey_key: str, layers: Sequence[Layer]) -> dict[str, Path]:
    """Activations that a finished run of this machine found on the same patches of the same images, by layer: they need not be computed
    again."""
    found: dict[str, Path] = {}
    for folder, manifest in workspace.manifests("runs"):
        if manifest.get("schema") == SCHEMA and manifest.get("survey") == survey_key:
            run = Run(folder, manifest)
            files = {layer.name: run.activations_file(layer.name) for layer in layers if layer.name in run.layers}
            found |= {name: path for name, path in files.items() if path.is_file()}
    return found


def method_settings(config: AnalysisConfig) -> dict:
    """The settings that the result depends on."""
    return config.model_dump(include={"tau", "top_k", "max_images", "granularities", "min_groups", "max_groups", "completeness", "seed"})


def _fingerprint(config: AnalysisConfig, subject: Subject, target: int, layers: Sequence[Layer], mixed: bool) -> str:
    parts = [
        SCHEMA,
        METHOD,
        subject.classifier.fingerprint,
        subject.image_set.fingerprint,
        subject.classifier.class_names[target],
        target,
        [layer.name for layer in layers],
        method_settings(config),
        mixed,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _is_finished(workspace: Workspace, folder: Path, fingerprint: str) -> bool:
    if workspace.has(folder):
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
    with suppress(OSError):  # getrusage would count what the parent had taken before this process was its own
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / (1 << 10)
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
        "survey": analysis.survey_key,
        "target": {"index": analysis.target, "name": analysis.target_name},
        "layers": [asdict(layer) for layer in analysis.layers],
        "configuration": config.model_dump(mode="json", exclude={"model"}),
        "seeds": {"probe_images": config.seed},
        "packages": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "device": str(classifier.device),
        "precision": "bfloat16 gradients, float32 decisions" if analysis.mixed else "float32",
        "n_probe_images": len(analysis.probe),
        "n_groups": len(analysis.groups),
        "seconds": analysis.draft.seconds,
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
