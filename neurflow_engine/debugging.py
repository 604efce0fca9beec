"""Which groups mislead the model, and what silencing them does.

In: a finished run and images. Out: presence of every group in an image, predictions before and after silencing beside a matched random
control, and a report that ranks the groups by how far they are to blame for the wrong images.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import wilcoxon
from torch import Tensor

from neurflow_engine.activations import pooled_activations
from neurflow_engine.batching import BATCH, in_batches
from neurflow_engine.controls import interval, matched_neurons, spread
from neurflow_engine.errors import DataError, RunError, near_matches
from neurflow_engine.evaluation import classifier_of, evaluate
from neurflow_engine.files import read_json
from neurflow_engine.images import ImageBatches, cut_patches, left_out, match_classes, open_image, scan
from neurflow_engine.layers import examine
from neurflow_engine.progress import Progress, Silent
from neurflow_engine.records import LOGITS, ImageSet, NeuronGroup, Patch
from neurflow_engine.silencing import zeroed
from neurflow_engine.store import MANIFEST, SCHEMA, Run, Workspace, now
from neurflow_engine.tracing import Segment, edited, record

DRAWS = 20  # random neuron sets in a control
SIGNIFICANT = 0.05  # p-value, corrected for the number of groups
AFFORDABLE = -0.02  # change of clean accuracy that a misleading group may cost at most
EPSILON = 1e-6


@dataclass(frozen=True)
class TopClass:
    """One of the classes an image is most likely of."""

    index: int
    name: str
    probability: float  # 0..1


@dataclass(frozen=True)
class ControlClass:
    """A class's probability under the random control: mean and central 95 % of the draws."""

    index: int
    name: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ControlOutcome:
    """What matched random neuron sets do to one image."""

    classes: tuple[ControlClass, ...]  # those in the top 5 before or after silencing
    changed: float  # share of draws whose top-1 differs from before, 0..1


@dataclass(frozen=True)
class Silencing:
    """Top-5 classes of each image before and after silencing, and under the control."""

    before: tuple[tuple[TopClass, ...], ...]
    after: tuple[tuple[TopClass, ...], ...]
    control: tuple[ControlOutcome, ...]
    draws: int


@dataclass(frozen=True, eq=False)
class Inspection:
    """One image seen through the circuit."""

    top5: tuple[TopClass, ...]
    presence: dict[str, float]  # by group id, 0..1
    best_patch: dict[str, tuple[int, int, int, int]]  # by group id: left, top, right, bottom in ``pixels``
    pixels: np.ndarray  # (height, width, 3) of 0..255: the image as the model sees it


def presence(group: NeuronGroup, activations: np.ndarray) -> np.ndarray:
    """How strongly patches show a group, 0..1: geometric mean over its neurons of activation / mean activation in the group.

    exp(mean over neurons a of log(max(phi_a, 0) / (|mean activation of a in the group| + eps) + eps)), cut off at 1 (NeurFlow,
    section 4.3); the presence in an image is the largest over its patches.

    Args:
        activations: (n_patches, n_channels) of the group's layer.

    Returns:
        (n_patches,).
    """
    typical = np.abs(group.mean_activations) + EPSILON
    ratio = np.maximum(activations[:, list(group.neurons)], 0) / typical + EPSILON
    return np.minimum(np.exp(np.log(ratio).mean(1)), 1.0)


class Debugger:
    """A run with its model loaded, ready to look at images and to silence groups."""

    def __init__(self, run: Run, device: str = "auto"):
        """Raises RunError when the model is no longer the one that was analysed; ModelError when it cannot be loaded."""
        self.run = run
        self.circuit = run.circuit
        self.classifier = classifier_of(run, device)
        self._segments: dict[str, Segment] = {}
        self._transform = self.classifier.preprocessing.transform()

    @property
    def groups(self) -> tuple[NeuronGroup, ...]:
        """The groups that can be silenced: all but the logit's."""
        return tuple(group for group in self.circuit.groups if group.layer != LOGITS)

    def load(self, paths: Sequence[Path]) -> Tensor:
        """Preprocessed images, (n_images, channels, height, width), on the model's device; raises DataError."""
        images = [self._transform(open_image(path, self.classifier.preprocessing.in_chans)) for path in paths]
        return torch.stack(images).to(self.classifier.device)

    def inspect(self, path: Path) -> Inspection:
        """Top-5, and presence and best patch of every group in one image; raises DataError."""
        image = self.load([path])
        patches = self._patches(1)
        shown = self._presence(image, patches, Silent())
        best = {group: int(values.argmax()) for group, values in shown.items()}
        return Inspection(
            top5=self._top5(self._logits(image))[0],
            presence={group: float(values[best[group]]) for group, values in shown.items()},
            best_patch={group: patches[place].box for group, place in best.items()},
            pixels=self.classifier.preprocessing.to_pixels(image[0]),
        )

    def presence(self, images: Tensor, progress: Progress | None = None) -> dict[str, np.ndarray]:
        """Presence of every group in each image, by group id: (n_images,)."""
        patches = self._patches(len(images))
        of_image = np.array([patch.image for patch in patches])
        shown = self._presence(images, patches, progress or Silent())
        return {group: np.array([values[of_image == image].max() for image in range(len(images))]) for group, values in shown.items()}

    def silence(self, paths: Sequence[Path], group_ids: Sequence[str], draws: int = DRAWS, seed: int = 0) -> Silencing:
        """Silence groups (their neurons to zero, at every position of their layers) and predict again, beside a matched random control.

        Raises:
            RunError: a group does not exist; DataError: an image cannot be read.
        """
        self.neurons_of(group_ids)  # a wrong group shows before the images are read
        return self.silence_images(self.load(paths), group_ids, draws, seed)

    def silence_images(self, images: Tensor, group_ids: Sequence[str], draws: int = DRAWS, seed: int = 0) -> Silencing:
        """As ``silence``, for preprocessed images (n_images, channels, height, width)."""
        neurons = self.neurons_of(group_ids)
        images = images.to(self.classifier.device)
        before = self._logits(images)
        after = self.silenced_logits(images, neurons)
        controls = torch.stack([self.silenced_logits(images, drawn) for drawn in self._controls(neurons, draws, seed)])
        tops = self._top5(before), self._top5(after)
        probabilities = controls.softmax(2).numpy()
        outcomes = []
        for image in range(len(images)):
            indices = list(dict.fromkeys(top.index for side in tops for top in side[image]))
            classes = tuple(
                ControlClass(index, self.classifier.class_names[index], *interval(probabilities[:, image, index])) for index in indices
            )
            changed = float((probabilities[:, image].argmax(1) != tops[0][image][0].index).mean())
            outcomes.append(ControlOutcome(classes, changed))
        return Silencing(*tops, tuple(outcomes), draws)

    def silenced_logits(self, images: Tensor, neurons: Mapping[str, Sequence[int]]) -> Tensor:
        """Logits (n_images, n_classes) on the CPU when the neurons of the named layers are zero."""
        with ExitStack() as stack:
            for layer, indices in neurons.items():
                edit = lambda output, layer=layer, indices=indices: zeroed(self.run.layers[layer], output, indices)  # noqa: E731
                stack.enter_context(edited(self.classifier, layer, edit))
            return self._logits(images)

    def from_layer(self, layer: str) -> Segment:
        """The network above a layer: to silence at one layer without running what lies below it again."""
        if layer not in self._segments:
            channels, size = self.classifier.preprocessing.in_chans, self.classifier.preprocessing.input_size
            sample = torch.randn((3, channels, *size), generator=torch.Generator().manual_seed(0)).to(self.classifier.device)
            self._segments[layer] = Segment(self.classifier, layer, LOGITS, sample)
        return self._segments[layer]

    def mean_activations(self, layer: str) -> np.ndarray:
        """Mean activation of each neuron over the patches of the run, (n_channels,)."""
        return np.asarray(self.run.activations(layer)).mean(0)

    def _patches(self, n_images: int) -> tuple[Patch, ...]:
        return cut_patches(n_images, self.classifier.preprocessing.input_size, self.run.manifest["configuration"]["granularities"])

    def _presence(self, images: Tensor, patches: Sequence[Patch], progress: Progress) -> dict[str, np.ndarray]:
        """Presence of every group in each patch: (n_patches,)."""
        layers = [layer for name, layer in self.run.layers.items() if name != LOGITS]
        with progress.stage("presence", len(patches)) as tick:
            activations = pooled_activations(self.classifier, images, patches, layers, tick)
        return {group.id: presence(group, activations[group.layer]) for group in self.groups}

    def _logits(self, images: Tensor) -> Tensor:
        return torch.cat([record(self.classifier, batch, [LOGITS])[LOGITS].float().cpu() for batch in images.split(BATCH)])

    def _top5(self, logits: Tensor) -> tuple[tuple[TopClass, ...], ...]:
        values, indices = logits.softmax(1).topk(min(5, logits.shape[1]))
        names = self.classifier.class_names
        return tuple(
            tuple(TopClass(index, names[index], probability) for index, probability in zip(*row, strict=True))
            for row in zip(indices.tolist(), values.tolist(), strict=True)
        )

    def neurons_of(self, group_ids: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """The neurons of some groups, by layer; raises RunError with near matches when one of them cannot be silenced."""
        known = {group.id: group for group in self.groups}
        neurons: dict[str, set[int]] = {}
        for group_id in group_ids:
            if group_id not in known:
                raise RunError(
                    f"Run {self.run.id} has no group {group_id!r} that can be silenced.{near_matches(group_id, known)} "
                    f"Its groups are {', '.join(known)}."
                )
            neurons.setdefault(known[group_id].layer, set()).update(known[group_id].neurons)
        return {layer: tuple(sorted(indices)) for layer, indices in neurons.items()}

    def _controls(self, neurons: Mapping[str, Sequence[int]], draws: int, seed: int) -> Iterator[dict[str, tuple[int, ...]]]:
        by_layer = {layer: matched_neurons(own, self.mean_activations(layer), draws, seed) for layer, own in neurons.items()}
        return ({layer: sets[draw] for layer, sets in by_layer.items()} for draw in range(draws))


def find_misleading(
    run: Run,
    images_root: Path,
    workspace: Workspace,
    progress: Progress | None = None,
    device: str = "auto",
    workers: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict:
    """Rank the groups of a run by how far they mislead the model on a folder of images; a finished report is found, not repeated.

    Wrong images are those predicted as the target although they are of another class; clean images are those predicted right, of any
    class. For each group: how much more present it is on wrong than on clean images, the share of wrong images whose true class comes back
    once it is silenced beside the same for matched random neuron sets, a one-sided Wilcoxon signed-rank test on the wrong images of the
    gained margin (true logit minus target logit) against the mean of the control, corrected by Holm's method, and what it costs on the
    clean images. *Misleading*: corrected p below 0.05, recovered above the control's interval, more present on wrong images, and at most
    2 points of clean accuracy lost.

    Returns:
        The JSON of ``debug RUN --json`` (DESIGN.md), with "report", "run", "images_root", "created", "draws", "n_wrong", "n_clean".

    Raises:
        DataError: the folder's images or their true classes are not known.
    """
    progress = progress or Silent()
    debugger = Debugger(run, device)
    classifier = debugger.classifier
    image_set = match_classes(scan(images_root), classifier.class_names, classifier.class_names_source)
    key = json.dumps([SCHEMA, run.manifest["fingerprint"], image_set.fingerprint, draws, seed])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    folder = workspace.debug_folder(f"{run.id}-{fingerprint[:10]}")
    if not (folder / MANIFEST).is_file():
        channels, size = classifier.preprocessing.in_chans, classifier.preprocessing.input_size
        evaluation = evaluate(classifier, examine(classifier, (channels, *size)), image_set, workspace, progress, workers)
        known = evaluation.predictions.dropna(subset="true")
        if known.empty:
            raise DataError(
                f"No true class is known for the images in {images_root}, so wrong predictions cannot be told from right ones; "
                f"put them into folders named after classes ({', '.join(classifier.class_names[:5])}, ...)."
            )
        with workspace.draft(folder, fingerprint) as draft:
            if not draft.is_published:
                report = _report(debugger, evaluation.predictions, Path(image_set.root), progress, draws, seed)
                draft.publish({"report": folder.name, "run": run.id, "images_root": str(image_set.root), "created": now()} | report)
    return read_json(folder / MANIFEST)


def _report(debugger: Debugger, predictions, root: Path, progress: Progress, draws: int, seed: int) -> dict:
    target, groups = debugger.circuit.target_index, debugger.groups
    true = predictions["true"].fillna(-1).to_numpy(int)
    predicted = predictions["predicted"].to_numpy(int)
    paths = [root / path for path in predictions["path"]]
    wrong = np.flatnonzero((predicted == target) & (true != target) & (true >= 0))
    clean = np.flatnonzero(predicted == true)

    shown = {group.id: np.zeros(len(paths)) for group in groups}
    with progress.stage("presence", len(paths)) as tick:
        for batch in in_batches(range(len(paths)), BATCH):
            for group, values in debugger.presence(debugger.load([paths[row] for row in batch])).items():
                shown[group][list(batch)] = values
            tick.advance(len(batch))

    controls = {group.id: matched_neurons(group.neurons, debugger.mean_activations(group.layer), draws, seed) for group in groups}
    right_after = {group.id: np.zeros((1 + draws, len(paths)), bool) for group in groups}
    gain = {group.id: np.zeros((1 + draws, len(paths))) for group in groups}
    rows = np.concatenate([wrong, clean])
    with progress.stage("silencing", len(rows) * len(groups)) as tick:
        for batch in in_batches(rows, BATCH):
            images = debugger.load([paths[row] for row in batch])
            names = [name for name in debugger.run.layers if name != LOGITS]
            recorded = record(debugger.classifier, images, [*names, LOGITS])
            before = _margin(recorded[LOGITS].float().cpu().numpy(), true[batch], target)
            for layer in names:
                segment, shape = debugger.from_layer(layer), debugger.run.layers[layer]
                context = segment.context(images) if segment.needs_context else None
                for group in debugger.circuit.groups_of(layer):
                    for draw, neurons in enumerate([group.neurons, *controls[group.id]]):
                        # The control is only compared on wrong images; on clean ones the group alone is silenced.
                        if draw and not (predicted[batch] != true[batch]).any():
                            break
                        with torch.no_grad():
                            logits = segment(zeroed(shape, recorded[layer], neurons), context).float().cpu().numpy()
                        right_after[group.id][draw, batch] = logits.argmax(1) == true[batch]
                        gain[group.id][draw, batch] = _margin(logits, true[batch], target) - before
                    tick.advance(len(batch))

    p_values = _holm({group.id: _gain_p_value(gain[group.id][:, wrong]) for group in groups})
    entries = []
    for group in groups:
        recovered = right_after[group.id][:, wrong].mean(1) if len(wrong) else np.zeros(1 + draws)
        control = spread(recovered[1:])
        clean_change = float(right_after[group.id][0, clean].mean() - 1) if len(clean) else 0.0
        of_others = clean[true[clean] != target]
        excess = float(shown[group.id][wrong].mean() - shown[group.id][of_others].mean()) if len(wrong) and len(of_others) else 0.0
        usual = np.quantile(shown[group.id][wrong], 0.5) if len(wrong) else 1.0
        entries.append(
            {
                "id": group.id,
                "layer": group.layer,
                "misleading": bool(
                    p_values[group.id] < SIGNIFICANT and recovered[0] > control["high"] and excess > 0 and clean_change >= AFFORDABLE
                ),
                "score": float(recovered[0] - control["mean"] + min(clean_change, 0.0)),
                "p_value": p_values[group.id],
                "recovered": float(recovered[0]),
                "control_recovered": control,
                "clean_accuracy_change": clean_change,
                "false_alarm_rate": float((shown[group.id][of_others] >= usual).mean()) if len(of_others) else 0.0,
                "presence_excess": excess,
                "presence": [round(float(value), 4) for value in shown[group.id]],
            }
        )
    entries.sort(key=lambda entry: (-entry["misleading"], -entry["score"], entry["p_value"]))
    names = debugger.classifier.class_names
    return {
        "schema": SCHEMA,
        "draws": draws,
        "n_wrong": len(wrong),
        "n_clean": len(clean),
        "images": [
            {"path": row.path, "true": names[own] if own >= 0 else None, "predicted": names[row.predicted], "probability": row.probability}
            for row, own in zip(predictions.itertuples(), true, strict=True)
        ],
        "groups": entries,
    }


def _margin(logits: np.ndarray, true: np.ndarray, target: int) -> np.ndarray:
    """True logit minus target logit of each image."""
    return logits[np.arange(len(true)), true] - logits[:, target]


def _gain_p_value(gain: np.ndarray) -> float:
    """One-sided signed-rank test over images that a group gains more than the mean of its control; gain is (1 + draws, n_images)."""
    difference = gain[0] - gain[1:].mean(0) if gain.shape[1] else np.zeros(0)
    if len(difference) < 5 or not difference.any():
        return 1.0
    return float(wilcoxon(difference, alternative="greater").pvalue)


def _holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values corrected for their number (Holm 1979)."""
    corrected, largest = {}, 0.0
    for rank, (name, value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, value * (len(p_values) - rank)))
        corrected[name] = largest
    return corrected


def silence_folder(
    debugger: Debugger, image_set: ImageSet, group_ids: Sequence[str], progress: Progress, draws: int = DRAWS, seed: int = 0
) -> dict:
    """Silence groups for every image of a folder: the JSON of ``debug RUN --mask``, with before, after and control per image.

    Raises:
        RunError: a group does not exist; DataError: no file of the folder can be decoded.
    """
    debugger.neurons_of(group_ids)  # a wrong group shows before the images are read
    paths = [image.path for image in image_set.images]
    batches = ImageBatches(image_set.root, paths, debugger.classifier.preprocessing, batch_size=BATCH)
    before, after, control = [], [], []
    with progress.stage("silencing", len(paths)) as tick:
        for indices, images in batches:
            found = debugger.silence_images(images, group_ids, draws, seed)
            for index, *sides, outcome in zip(indices, found.before, found.after, found.control, strict=True):
                for rows, side in zip((before, after), sides, strict=True):
                    rows.append({"path": paths[index], "top5": [asdict(top) for top in side]})
                control.append({"path": paths[index], **asdict(outcome)})
            tick.advance(len(indices))
    skipped = left_out(image_set, batches, len(before))
    return {
        "schema": SCHEMA,
        "run": debugger.run.id,
        "silenced": list(group_ids),
        "skipped": skipped,
        "before": before,
        "after": after,
        "control": {"draws": draws, "images": control},
    }
