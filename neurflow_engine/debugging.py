"""What silencing does to images, and which groups they show.

In: a finished run, images, and a debug report where there is one. Out: presence of every group in an image, predictions before and after
silencing, and the same for matched random silencers.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from neurflow_engine.activations import pooled_activations
from neurflow_engine.batching import BATCH, in_batches
from neurflow_engine.controls import interval
from neurflow_engine.errors import LayerError, RunError, near_matches
from neurflow_engine.evaluation import classifier_of
from neurflow_engine.images import ImageBatches, cut_patches, left_out, open_image
from neurflow_engine.layers import positions
from neurflow_engine.models import Classifier
from neurflow_engine.progress import Progress, Silent
from neurflow_engine.records import LOGITS, Filling, ImageSet, NeuronGroup, Patch, Silencer
from neurflow_engine.replay import Replay
from neurflow_engine.store import SCHEMA, DebugReport, Run
from neurflow_engine.tracing import record
from neurflow_engine.twins import random_twins

DRAWS = 20  # random silencers in the control of a single image
EPSILON = 1e-6
_HELD_BYTES = 512 << 20  # of what layers give for images that were looked at
_SHOWN = 19.0  # odds of the presence of a contrast group at its typical strength, 0.95; at the usual level the inverse, 0.05


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
    """What matched random silencers do to one image."""

    classes: tuple[ControlClass, ...]  # those in the top 5 before or after silencing
    changed: float  # share of draws whose top-1 differs from before, 0..1


@dataclass(frozen=True)
class Effect:
    """Top-5 classes of each image before and after silencing."""

    before: tuple[tuple[TopClass, ...], ...]
    after: tuple[tuple[TopClass, ...], ...]


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


def contrast_presence(scores: np.ndarray, usual: float, typical: float) -> np.ndarray:
    """How strongly images show a contrast group, 0..1: 0.05 at the usual level of right images, 0.95 where wrong ones typically are.

    A logistic curve between the two, so that no two strengths have the same presence.
    """
    return expit(2 * np.log(_SHOWN) * ((scores - usual) / max(typical - usual, EPSILON) - 0.5))


class Debugger:
    """A run with its model loaded, ready to look at images and to silence groups."""

    def __init__(self, run: Run, device: str = "auto", report: DebugReport | None = None):
        """With a report its contrast groups are there too, and each group is silenced in the way that the report recommends.

        Raises RunError when the model is no longer the one that was analysed; ModelError when it cannot be loaded.
        """
        self.run, self.report = run, report
        self.circuit = run.circuit
        self.classifier = classifier_of(run, device)
        self.layers = {name: layer for name, layer in run.layers.items() if name != LOGITS} | (report.layers if report else {})
        self.replay = Replay(self.classifier, self.layers)
        self._transform = self.classifier.preprocessing.transform()
        self._held: OrderedDict[tuple[Path, float], dict[str, Tensor]] = OrderedDict()
        self._order = run_order(self.classifier, list(self.layers))

    @property
    def groups(self) -> tuple[NeuronGroup, ...]:
        """The circuit's groups that can be silenced: all but the logit's."""
        return tuple(group for group in self.circuit.groups if group.layer != LOGITS)

    @property
    def contrast_groups(self) -> tuple[dict, ...]:
        """The groups that the report found beside the circuit, as it describes them."""
        return tuple(group for group in self.report.json["groups"] if group["kind"] == "contrast") if self.report else ()

    def load(self, paths: Sequence[Path]) -> Tensor:
        """Preprocessed images, (n_images, channels, height, width), on the model's device; raises DataError."""
        images = [self._transform(open_image(path, self.classifier.preprocessing.in_chans)) for path in paths]
        return torch.stack(images).to(self.classifier.device)

    def silencers(self, group_ids: Sequence[str]) -> tuple[Silencer, ...]:
        """What silences the groups: as the report recommends, without one the neurons of circuit groups to zero (together, per layer).

        The order in which the groups are named does not matter.

        Raises:
            RunError: a group does not exist.
        """
        known = {group.id: group for group in self.groups}
        reported = self.report.groups if self.report else {}
        zeros: dict[str, set[int]] = {}
        for group_id in group_ids:
            if group_id in reported:
                continue
            if group_id in known:
                zeros.setdefault(known[group_id].layer, set()).update(known[group_id].neurons)
            else:
                names = {**known, **reported}
                raise RunError(
                    f"Run {self.run.id} has no group {group_id!r} that can be silenced.{near_matches(group_id, names)} "
                    f"Its groups are {', '.join(names)}."
                )
        ordered = self.report.silenced_in_order(group_id for group_id in group_ids if group_id in reported) if self.report else ()
        together = (Filling(layer, tuple(sorted(neurons)), (0.0,) * len(neurons)) for layer, neurons in zeros.items())
        return (*(self.report.silencer(group_id) for group_id in ordered), *together)

    def inspect(self, path: Path) -> Inspection:
        """Top-5, and presence and best patch of every group in one image; raises DataError."""
        image = self.load([path])
        patches = self._patches(1)
        activations = self._activations(image, patches, Silent())
        shown = {group.id: presence(group, activations[group.layer]) for group in self.groups}
        best = {group: int(values.argmax()) for group, values in shown.items()}
        contrast = self._scores(self._outputs(path, image))
        whole = self._patches(1)[0].box
        return Inspection(
            top5=self._top5(self.logits(image))[0],
            presence={group: float(values[best[group]]) for group, values in shown.items()}
            | {name: float(presence) for name, (presence, _) in contrast.items()},
            best_patch={group: patches[place].box for group, place in best.items()}
            | {name: box or whole for name, (_, box) in contrast.items()},
            pixels=self.classifier.preprocessing.to_pixels(image[0]),
        )

    def presence(self, images: Tensor, progress: Progress | None = None) -> dict[str, np.ndarray]:
        """Presence of every circuit group in each image, by group id: (n_images,)."""
        patches = self._patches(len(images))
        by_image = np.argsort([patch.image for patch in patches], kind="stable")
        activations = self._activations(images, patches, progress or Silent())
        return self.presence_in({name: values[by_image].reshape(len(images), -1, values.shape[1]) for name, values in activations.items()})

    def presence_in(self, activations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Presence of every circuit group in each image, by group id: (n_images,).

        Args:
            activations: of all patches of each image, by layer of the circuit: (n_images, n_windows, n_channels).
        """
        return {
            group.id: np.array([presence(group, patches).max() for patches in activations[group.layer]]).reshape(-1)
            for group in self.groups
        }

    def logits(self, images: Tensor, silencers: Sequence[Silencer] = ()) -> Tensor:
        """Logits (n_images, n_classes) on the CPU of preprocessed images, with the silencers at work."""
        images = images.to(self.classifier.device)
        return torch.cat([self.replay.logits(batch, silencers).cpu() for batch in images.split(BATCH)])

    def prepare(self, layer: str) -> None:
        """Ready the network above a layer, so that the first silencer there answers as soon as the next ones.

        Takes some forward passes; nothing happens where it is ready, or where the network cannot be cut.
        """
        with suppress(LayerError):
            self.replay.segment(layer)

    def effect(self, paths: Sequence[Path], silencers: Sequence[Silencer]) -> Effect:
        """Predictions before and after; only what lies above the lowest silencer is computed for images that were looked at before.

        Raises:
            DataError: an image cannot be read.
        """
        before = torch.cat([self._outputs(path)[LOGITS] for path in paths]).cpu()
        after = torch.cat([self._from_lowest(batch, silencers) for batch in in_batches(paths, BATCH)])
        return Effect(self._top5(before), self._top5(after))

    def control(
        self, paths: Sequence[Path], silencers: Sequence[Silencer], draws: int = DRAWS, seed: int = 0
    ) -> tuple[ControlOutcome, ...]:
        """What matched random silencers do to each image; the classes are those in the top 5 before or after the given silencers."""
        effect = self.effect(paths, silencers)
        twins = [
            random_twins(silencer, self._sample(silencer.layer), self._shown(silencer.layer, paths), draws, seed) for silencer in silencers
        ]
        probabilities = torch.stack(
            [
                torch.cat([self._from_lowest(batch, [own[draw] for own in twins]) for batch in in_batches(paths, BATCH)])
                for draw in range(draws)
            ]
        )
        probabilities = probabilities.softmax(2).numpy()
        outcomes = []
        for image, (before, after) in enumerate(zip(effect.before, effect.after, strict=True)):
            indices = list(dict.fromkeys(top.index for top in (*before, *after)))
            classes = tuple(
                ControlClass(index, self.classifier.class_names[index], *interval(probabilities[:, image, index])) for index in indices
            )
            changed = float((probabilities[:, image].argmax(1) != before[0].index).mean())
            outcomes.append(ControlOutcome(classes, changed))
        return tuple(outcomes)

    def _from_lowest(self, paths: Sequence[Path], silencers: Sequence[Silencer]) -> Tensor:
        """Logits (n_images, n_classes) on the CPU, computed from the lowest silenced layer up."""
        if not silencers:
            return torch.cat([self._outputs(path)[LOGITS] for path in paths]).cpu()
        lowest = min((silencer.layer for silencer in silencers), key=self._order.index)
        outputs = torch.cat([self._outputs(path)[lowest] for path in paths])
        context = self.replay.segment(lowest).context(self.load(paths)) if self.replay.segment(lowest).needs_context else None
        return self.replay.logits_above(lowest, outputs, silencers, context).cpu()

    def _outputs(self, path: Path, image: Tensor | None = None) -> dict[str, Tensor]:
        """What every layer gives for an image, and its logits; kept for the images that were looked at last."""
        key = (path, path.stat().st_mtime if path.is_file() else 0.0)
        if key not in self._held:
            images = self.load([path]) if image is None else image
            self._held[key] = record(self.classifier, images, [*self.layers, LOGITS])
            size = sum(output.nbytes for output in self._held[key].values())
            while len(self._held) > max(1, _HELD_BYTES // max(1, size)):
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]

    def _sample(self, layer: str) -> np.ndarray:
        """Pooled activations, (n, n_channels), that random controls are drawn from: of right images; without a report, of the patches."""
        if self.report and layer in self.report.layers:
            return self.report.sample(layer)
        return np.asarray(self.run.activations(layer))

    def _shown(self, layer: str, paths: Sequence[Path]) -> np.ndarray:
        """Positions (n_images, n_positions, n_channels) of the first images."""
        outputs = torch.cat([self._outputs(path)[layer] for path in paths[:BATCH]])
        return positions(self.layers[layer], outputs).float().cpu().numpy()

    def _patches(self, n_images: int) -> tuple[Patch, ...]:
        return cut_patches(n_images, self.classifier.preprocessing.input_size, self.run.manifest["configuration"]["granularities"])

    def _activations(self, images: Tensor, patches: Sequence[Patch], progress: Progress) -> dict[str, np.ndarray]:
        """Of every neuron of the circuit's layers in each patch, by layer: (n_patches, n_channels)."""
        layers = [layer for name, layer in self.run.layers.items() if name != LOGITS]
        with progress.stage("presence", len(patches)) as tick:
            return pooled_activations(self.classifier, images, patches, layers, tick)

    def _scores(self, outputs: dict[str, Tensor]) -> dict[str, tuple[float, tuple[int, int, int, int] | None]]:
        """Presence of every contrast group in one image, and where it is strongest (None: everywhere)."""
        found = {}
        for group in self.contrast_groups:
            damping = self.report.silencer(group["id"])
            shown = positions(self.layers[damping.layer], outputs[damping.layer])[0].float().cpu().numpy() @ damping.filter
            box = (
                window_around(int(shown.argmax()), len(shown), self.classifier.preprocessing.input_size)
                if damping.scope != "image"
                else None
            )
            found[group["id"]] = float(contrast_presence(damping.of_images(shown), group["usual"], group["typical"])), box
        return found

    def _top5(self, logits: Tensor) -> tuple[tuple[TopClass, ...], ...]:
        values, indices = logits.softmax(1).topk(min(5, logits.shape[1]))
        names = self.classifier.class_names
        return tuple(
            tuple(TopClass(index, names[index], probability) for index, probability in zip(*row, strict=True))
            for row in zip(indices.tolist(), values.tolist(), strict=True)
        )


def run_order(classifier: Classifier, layers: Sequence[str]) -> list[str]:
    """The layers in the order in which the network runs them."""
    blank = torch.zeros((1, classifier.preprocessing.in_chans, *classifier.preprocessing.input_size), device=classifier.device)
    return list(record(classifier, blank, layers, keep=lambda name, output: None)) if layers else []


def window_around(position: int, n_positions: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A window of a third of the image around one position of a layer: left, top, right, bottom in pixels of the preprocessed image.

    Args:
        position: counted row by row in a grid of ``n_positions`` that has the proportions of the image.
        size: height and width of the image.
    """
    rows, columns = grid(n_positions, size)
    height, width = max(1, round(size[0] / 3)), max(1, round(size[1] / 3))
    top = round((position // columns + 0.5) / rows * size[0] - height / 2)
    left = round((position % columns + 0.5) / columns * size[1] - width / 2)
    top, left = min(max(0, top), size[0] - height), min(max(0, left), size[1] - width)
    return left, top, left + width, top + height


def grid(n_positions: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of ``n_positions`` places in an image of ``size`` (height, width): the divisors nearest to its proportions."""
    divisors = [rows for rows in range(1, n_positions + 1) if n_positions % rows == 0]
    rows = min(divisors, key=lambda rows: abs(np.log(rows * rows * size[1] / (n_positions * size[0]))))
    return rows, n_positions // rows


def silence_folder(
    debugger: Debugger, image_set: ImageSet, group_ids: Sequence[str], progress: Progress, draws: int = DRAWS, seed: int = 0
) -> dict:
    """Silence groups for every image of a folder: the JSON of ``debug RUN --mask``, with before, after and control per image.

    Raises:
        RunError: a group does not exist; DataError: no file of the folder can be decoded.
    """
    silencers = debugger.silencers(group_ids)  # a wrong group shows before the images are read
    paths = [image.path for image in image_set.images]
    batches = ImageBatches(image_set.root, paths, debugger.classifier.preprocessing, batch_size=BATCH)
    before, after, control = [], [], []
    with progress.stage("silencing", len(paths)) as tick:
        for indices, _ in batches:
            files = [Path(image_set.root) / paths[index] for index in indices]
            effect, outcomes = debugger.effect(files, silencers), debugger.control(files, silencers, draws, seed)
            for index, *sides, outcome in zip(indices, effect.before, effect.after, outcomes, strict=True):
                for rows, side in zip((before, after), sides, strict=True):
                    rows.append({"path": paths[index], "top5": [asdict(top) for top in side]})
                control.append({"path": paths[index], **asdict(outcome)})
            tick.advance(len(indices))
    return {
        "schema": SCHEMA,
        "run": debugger.run.id,
        "silenced": list(group_ids),
        "skipped": left_out(image_set, batches, len(before)),
        "before": before,
        "after": after,
        "control": {"draws": draws, "images": control},
    }
