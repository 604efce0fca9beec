"""Which groups mislead the model on a folder of images: found on one half of the images, reported on the other.

In: a finished run for the target class, images of known classes. Out: a ``DebugReport``: every group of the circuit, and contrast groups
found beside it, ranked by how far they are to blame for the wrong images, with the way to silence each.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.stats import binomtest, wilcoxon

from neurflow_engine import silencer_file
from neurflow_engine.batching import BATCH, in_batches
from neurflow_engine.contrast import SCOPES, at_level, auc, direction
from neurflow_engine.controls import random_twins, spread
from neurflow_engine.debugging import Debugger, contrast_presence, run_order, window_around
from neurflow_engine.errors import DataError, LayerError
from neurflow_engine.evaluation import evaluate
from neurflow_engine.files import writing
from neurflow_engine.images import absolute_folders, copies, match_classes, scan
from neurflow_engine.layers import Anatomy, examine, positions
from neurflow_engine.progress import Progress, Silent
from neurflow_engine.records import LOGITS, Damping, Filling, ImageSet, Layer, NeuronGroup, Silencer
from neurflow_engine.refinement import Lesson, refined
from neurflow_engine.store import MANIFEST, SCHEMA, DebugReport, Draft, Run, Workspace, now
from neurflow_engine.tracing import folded, record
from neurflow_engine.trials import Trials, pooled_outputs

DRAWS = 200  # random silencers in the control of a group that may be called misleading
FIRST_DRAWS = 20  # after which a group that does no more than they do is left alone
SIGNIFICANT = 0.05  # p-value, corrected for the number of groups
AFFORDABLE = 0.02  # clean accuracy that silencing a misleading group may cost at most
AFFORDABLE_IN_TARGET = 0.1  # likewise of the target class alone, and no more than a fifth of what comes back
CLEARLY_ABOVE = 0.8  # AUC of a misleading group, wrong images against right ones of other classes; some right ones carry the mark too
WORTHWHILE = 0.2  # of the wrong images, more than the control, that silencing a misleading group must bring back
ENOUGH_WRONG = 12  # wrong images, for a half of them to tell anything
LAYERS = 8  # that contrast groups are looked for in, about
ROUNDS = 2  # of looking for another contrast group in what the first leaves wrong
FINALISTS = 2  # layers and scopes that a first look at contrast groups finds most promising
COST = 10.0  # recovered images that one lost clean image outweighs in the score
_WRONG_PER_HALF, _RIGHT_PER_HALF, _CONTROL_IMAGES = 96, 192, 48
_USUAL = 0.9  # quantile of right images at which the damping of a group of the circuit begins
_LEVELS = (0.5, 0.9)  # likewise of a contrast group that is not refined
_REFINEMENTS = (
    (0.5, 0, 8.0),
    (0.5, 0, 25.0),
    (0.5, 8, 8.0),
    (0.5, 8, 25.0),
)  # that quantile, rank of the variation, weight of right images
_FIRST_STEPS, _STEPS = 15, 80  # of refining it
_PLACES = 8  # typical places of a contrast group that are shown
_PLACE_SIDE = 112  # pixels


@dataclass(frozen=True)
class Halves:
    """The images that figures come from, by their place in the trials: silencers are chosen on one half and reported on the other."""

    wrong: tuple[np.ndarray, np.ndarray]  # predicted as the target, of another class
    right: tuple[np.ndarray, np.ndarray]  # predicted right, of any class
    true: np.ndarray  # class of every image of the trials
    target: int

    def right_others(self, half: int) -> np.ndarray:
        """Right images of other classes than the target: what is usual."""
        return self.right[half][self.true[self.right[half]] != self.target]


@dataclass(frozen=True)
class _How:
    """How a contrast group is looked for."""

    layer: str
    scope: str  # of SCOPES
    steps: int  # of refinement
    quantile: float = 0.5  # of right images, at which the damping begins
    rank: int = 0  # of the variation
    leave_alone: float = 8.0  # weight of right images


@dataclass(frozen=True, eq=False)
class Candidate:
    """A group with a way to silence it, and what that does on the half it was chosen on."""

    id: str
    kind: str  # circuit or contrast
    way: str  # zero, mean or damping
    silencer: Silencer
    n_neurons: int
    ways: dict[str, dict[str, float]]


def find_misleading(
    run: Run,
    images_root: Path | Sequence[Path],
    workspace: Workspace,
    progress: Progress | None = None,
    device: str = "auto",
    workers: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> DebugReport:
    """Rank groups by how far they mislead the model on a folder of images, or several together; a finished report is found, not repeated.

    Wrong images are those predicted as the target although they are of another class; clean images are those predicted right, of any
    class. Both are divided into two halves. On the first, each group of the circuit gets its best way of being silenced (zero, mean or
    damped along its direction), and contrast groups are found in layers from early to late (``contrast.direction``, refined by
    ``refinement.refined``). All figures come from the second half: the share of wrong images whose true class comes back, beside the
    same for matched random silencers; a one-sided Wilcoxon signed-rank test, image by image, of the gained margin (true logit minus
    target logit) against the mean of the control, corrected by Holm's method for the number of groups; and what silencing costs on
    clean images.

    Returns:
        The report; its JSON is that of ``debug RUN --json`` (DESIGN.md).

    Raises:
        DataError: the folder's images or their true classes are not known.
    """
    progress = progress or Silent()
    debugger = Debugger(run, device)
    classifier = debugger.classifier
    image_set = match_classes(scan(images_root), classifier.class_names, classifier.class_names_source)
    key = json.dumps([SCHEMA, DebugReport.METHOD, run.manifest["fingerprint"], image_set.fingerprint, draws, seed])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    folder = workspace.debug_folder(f"{run.id}-{fingerprint[:10]}")
    if not (folder / MANIFEST).is_file():
        channels, size = classifier.preprocessing.in_chans, classifier.preprocessing.input_size
        anatomy = examine(classifier, (channels, *size))
        evaluation = evaluate(classifier, anatomy, image_set, workspace, progress, workers)
        predictions = evaluation.predictions
        if predictions["true"].isna().all():
            raise DataError(
                f"No true class is known for the images in {image_set.root}, so wrong predictions cannot be told from right ones; "
                f"put them into folders named after classes ({', '.join(classifier.class_names[:5])}, ...)."
            )
        with workspace.draft(folder, fingerprint) as draft, ExitStack() as stack:
            if not draft.is_published:
                search = _Search(debugger, anatomy, predictions, image_set, draft, progress, draws, seed)
                noise = torch.randn((2, channels, *size), generator=torch.Generator().manual_seed(0)).to(classifier.device)
                stack.enter_context(folded(classifier, noise, intact=tuple(search.layers)))
                report = search.report()
                about = {"report": folder.name, "run": run.id, "images_root": str(Path(image_set.root).absolute())}
                draft.publish(about | {"image_folders": absolute_folders(images_root), "created": now()} | report)
    return DebugReport(folder)


class _Search:
    """The steps of ``find_misleading`` and what they share."""

    def __init__(
        self,
        debugger: Debugger,
        anatomy: Anatomy,
        predictions: pd.DataFrame,
        image_set: ImageSet,
        draft: Draft,
        progress: Progress,
        draws: int,
        seed: int,
    ):
        self.debugger, self.classifier, self.draft, self.progress = debugger, debugger.classifier, draft, progress
        self.draws, self.seed, self.root, self.target = draws, seed, Path(image_set.root), debugger.circuit.target_index
        self.predictions = predictions
        self.true = predictions["true"].fillna(-1).to_numpy(int)
        self.predicted = predictions["predicted"].to_numpy(int)
        self.wrong = np.flatnonzero((self.predicted == self.target) & (self.true != self.target) & (self.true >= 0))
        self.clean = np.flatnonzero(self.predicted == self.true)
        self.half = np.full(len(predictions), -1)
        self.layers = self._layers(anatomy)

    def report(self) -> dict:
        """All of it, as JSON; silencers, samples and pictures of places go into the draft."""
        taken = self._divide()
        paths = [self.predictions["path"].iloc[row] for row in taken]
        self.trials = Trials.record(self.classifier, self.layers, self.root, paths, self.draft, self.progress)
        self.rows = taken
        candidates = [*self._circuit_candidates(), *self._contrast_candidates()]
        found = self._tested(candidates)
        shown = self._presences(found)
        self._save(found)
        return self._json(found, shown)

    def _layers(self, anatomy: Anatomy) -> dict[str, Layer]:
        """The layers of the circuit, and others from early to late in which contrast groups are looked for, in the order they run."""
        own = {name: layer for name, layer in self.debugger.run.layers.items() if name != LOGITS}
        spread_out = list(anatomy.stages)
        blocks = [name for name in anatomy.places if name not in spread_out]
        missing = LAYERS - len(spread_out)
        if missing > 0 and blocks:
            spread_out += [blocks[int(place)] for place in np.unique(np.linspace(0, len(blocks) - 1, missing).round())]
        elif missing < 0:
            spread_out = [spread_out[int(place)] for place in np.unique(np.linspace(0, len(spread_out) - 1, LAYERS).round())]
        spread_out += anatomy.entry
        chosen = own | {name: anatomy.layers[name] for name in spread_out if name not in own and name != LOGITS}
        return {name: chosen[name] for name in run_order(self.classifier, list(chosen))}

    def _divide(self) -> np.ndarray:
        """Deal wrong and right images of each class to the two halves, at most so many of each; returns the rows that are used.

        Of files with the same content only the first is dealt, or what a group was chosen on would also be reported on.
        """
        random = np.random.default_rng(self.seed)
        paths = self.predictions["path"].tolist()
        again = {path for others in copies(self.root, paths).values() for path in others}
        wrong, clean = (rows[[paths[row] not in again for row in rows]] for rows in (self.wrong, self.clean))
        per_class = max(1, 2 * _RIGHT_PER_HALF // max(1, len(np.unique(self.true[clean]))))
        kinds = [random.permutation(wrong)[: 2 * _WRONG_PER_HALF]]
        for index in np.unique(self.true[clean]):
            of_class = random.permutation(clean[self.true[clean] == index])
            kinds.append(of_class[: 2 * per_class if index == self.target else per_class])
        for rows in kinds:
            self.half[rows] = np.arange(len(rows)) % 2
        taken = np.flatnonzero(self.half >= 0)
        place = {row: number for number, row in enumerate(taken)}
        own = lambda rows, half: np.array([place[row] for row in rows if self.half[row] == half], int)  # noqa: E731
        self.halves = Halves(
            tuple(own(self.wrong, half) for half in (0, 1)), tuple(own(self.clean, half) for half in (0, 1)), self.true[taken], self.target
        )
        return taken

    # ------------------------------------------------------------ what silencing does

    def _outcome(self, silencers: Sequence[Silencer], half: int, tick=None) -> dict[str, float]:
        """What silencing does on one half: shares of wrong images that come back, and of right ones that are lost."""
        wrong, right = self.halves.wrong[half], self.halves.right[half]
        true, of_target = self.halves.true, self.halves.true[self.halves.right[half]] == self.target
        recovered = (self.trials.logits(silencers, wrong, tick).argmax(1) == true[wrong]).mean() if len(wrong) else 0.0
        if not recovered:  # nothing to gain, so the price does not matter
            return {"recovered": 0.0, "clean_accuracy_change": 0.0, "target_recall_change": 0.0}
        stays = self.trials.logits(silencers, right, tick).argmax(1) == true[right]
        return {
            "recovered": float(recovered),
            "clean_accuracy_change": float(stays.mean() - 1) if len(stays) else 0.0,
            "target_recall_change": float(stays[of_target].mean() - 1) if of_target.any() else 0.0,
        }

    def _circuit_candidates(self) -> list[Candidate]:
        """Each group of the circuit with the way of silencing it that does best on the first half."""
        found = []
        groups = self.debugger.groups
        with self.progress.stage("ways of silencing", len(groups)) as tick:
            for group in groups:
                silencers = self._ways_of(group)
                ways = {way: self._outcome([silencer], 0) for way, silencer in silencers.items()}
                best = max(ways, key=lambda way: worth(ways[way]))
                found.append(Candidate(group.id, "circuit", best, silencers[best], len(group.neurons), ways))
                tick.advance()
        return found

    def _ways_of(self, group: NeuronGroup) -> dict[str, Silencer]:
        right = self.halves.right[0]
        mean = pooled_outputs(self.trials, group.layer, right).mean(0) if len(right) else np.zeros(self.layers[group.layer].n_channels)
        ways: dict[str, Silencer] = {
            "zero": Filling(group.layer, group.neurons, (0.0,) * len(group.neurons)),
            "mean": Filling(group.layer, group.neurons, tuple(float(mean[neuron]) for neuron in group.neurons)),
        }
        others = self.halves.right_others(0)
        if len(others):
            along = np.zeros(self.layers[group.layer].n_channels, np.float32)
            along[list(group.neurons)] = group.direction
            ways["damping"] = at_level(self.trials, Damping(group.layer, along, along, 0.0, "position"), others, _USUAL)
        return ways

    # ------------------------------------------------------------ contrast groups

    def _contrast_candidates(self) -> list[Candidate]:
        """Directions beside the circuit: the best of all layers; then, where it leaves many images wrong, the best for those, and so on."""
        found: list[Candidate] = []
        left = self.halves.wrong[0]
        for number in range(ROUNDS):
            if len(left) < (2 * ENOUGH_WRONG if number else ENOUGH_WRONG // 2) or len(self.halves.right_others(0)) < ENOUGH_WRONG:
                break
            best = self._best_direction(left, number)
            if best is None:
                break
            found.append(best)
            stays_wrong = self.trials.logits([best.silencer], left).argmax(1) != self.halves.true[left]
            if stays_wrong.mean() > 0.9:
                break
            left = left[stays_wrong]
        return found

    def _best_direction(self, wrong: np.ndarray, number: int) -> Candidate | None:
        """The damping that undoes most of the wrong images of the first half at the least price, chosen by cross-validation within it.

        Every layer and scope gets a first look on one fold: as the contrast gives it, and after a few steps of refinement. The most
        promising ones, and the earliest layer, where a mark has not mixed with the rest yet but more steps are needed, are refined
        further in several ways on that fold; the best of all are measured on the other fold too.
        """
        right = self.halves.right[0]
        folds = [(wrong[np.arange(len(wrong)) % 2 == fold], right[np.arange(len(right)) % 2 == fold]) for fold in (0, 1)]
        layers = self._distinct_layers()
        options = [(layer, scope) for layer in layers for scope in SCOPES]
        n_steps = len(options) * _FIRST_STEPS + _STEPS * ((FINALISTS + 1) * len(_REFINEMENTS) + FINALISTS + 2)
        with self.progress.stage(f"contrast {number + 1}" if number else "contrast", n_steps) as tick:

            def crossed(how: _How, fold: int) -> float:
                damping = self._fitted(how, *folds[fold])
                tick.advance(how.steps)
                return self._value(damping, *folds[1 - fold]) if damping is not None else -np.inf

            plain = {how: crossed(how, 0) for option in options for how in (_How(*option, 0, quantile) for quantile in _LEVELS)}
            first = {option: crossed(_How(*option, _FIRST_STEPS), 0) for option in options}
            promising = sorted(first, key=first.get, reverse=True)[:FINALISTS]
            earliest = max((option for option in options if option[0] == layers[0]), key=first.get, default=None)
            # What costs more than everything that could come back is not worth more steps.
            finalists = [option for option in dict.fromkeys([*promising, earliest]) if option and first[option] > -1]
            values = plain | {how: crossed(how, 0) for option in finalists for how in (_How(*option, _STEPS, *way) for way in _REFINEMENTS)}
            best = [how for how in sorted(values, key=values.get, reverse=True)[: FINALISTS + 1] if values[how] > -np.inf]
            both = {how: (values[how] + crossed(how, 1)) / 2 for how in best}
            if not both or max(both.values()) <= 0:
                return None
            damping = self._fitted(max(both, key=both.get), wrong, right)
            tick.advance(_STEPS)
        if damping is None:
            return None
        mass = np.sort(np.abs(damping.pattern * damping.filter))[::-1].cumsum()
        n_neurons = int(np.searchsorted(mass, 0.9 * mass[-1]) + 1)
        group_id = f"{damping.layer}/contrast-{number + 1}"
        return Candidate(group_id, "contrast", "damping", damping, n_neurons, {"damping": self._outcome([damping], 0)})

    def _distinct_layers(self) -> list[str]:
        """The layers that differ in what they give and at which the network can be cut: a stage gives what its last block gives."""
        found: dict[bytes, str] = {}
        for layer in self.layers:
            with suppress(LayerError):
                self.trials.replay.segment(layer)
                found[self.trials.outputs[layer].read([0]).tobytes()] = layer
        return list(found.values())

    def _fitted(self, how: _How, wrong: np.ndarray, right: np.ndarray) -> Damping | None:
        """The direction in which wrong images differ from right ones of other classes, refined by what damping it does."""
        of_target = self.halves.true[right] == self.target
        others = right[~of_target]
        damping = direction(self.trials, how.layer, how.scope, wrong, others, self.seed)
        if damping is None:
            return None
        damping = at_level(self.trials, damping, others, how.quantile)
        lesson = Lesson(wrong, right[of_target], others, self.halves.true, how.leave_alone)
        return refined(self.trials, damping, lesson, how.steps, how.rank, self.seed) if how.steps else damping

    def _value(self, damping: Damping, wrong: np.ndarray, right: np.ndarray) -> float:
        """``worth`` of a damping on some images of the first half."""
        true = self.halves.true
        recovered = float((self.trials.logits([damping], wrong).argmax(1) == true[wrong]).mean())
        if not recovered:
            return 0.0
        stays, of_target = self.trials.logits([damping], right).argmax(1) == true[right], true[right] == self.target
        lost = [float(kept.mean() - 1) if len(kept) else 0.0 for kept in (stays, stays[of_target])]
        return worth({"recovered": recovered, "clean_accuracy_change": lost[0], "target_recall_change": lost[1]})

    # ------------------------------------------------------------ the test on the other half

    def _tested(self, candidates: Sequence[Candidate]) -> list[tuple[Candidate, dict]]:
        """Figures of each candidate on the second half, most misleading first."""
        gains = {}
        entries = []
        with self.progress.stage("controls", len(candidates)) as tick:
            for candidate in candidates:
                entry, gains[candidate.id] = self._figures(candidate)
                entries.append((candidate, entry))
                tick.advance()
        p_values = holm({name: gain_p_value(gain) for name, gain in gains.items()})
        for candidate, entry in entries:
            entry["p_value"] = p_values[candidate.id]
            entry["misleading"], entry["reason"] = judged(entry, len(self.wrong))
        return sorted(entries, key=lambda pair: (not pair[1]["misleading"], -(pair[1]["score"] or 0.0), pair[1]["p_value"]))

    def _figures(self, candidate: Candidate) -> tuple[dict, np.ndarray]:
        """What one candidate does on the second half beside its control, and the margins gained, (1 + draws, n_images)."""
        wrong, right, true = self.halves.wrong[1], self.halves.right[1], self.halves.true
        entry = {
            "silencing": candidate.way,
            "recovered": None,
            "recovered_interval": None,
            "control_recovered": None,
            "score": None,
            "draws": 0,
        }
        gain = np.zeros((1, 0))
        stays = np.ones(len(right), bool)
        if len(wrong):
            after = self.trials.logits([candidate.silencer], wrong)
            back = after.argmax(1) == true[wrong]
            stays = self.trials.logits([candidate.silencer], right).argmax(1) == true[right] if len(right) else stays
            few = wrong[:_CONTROL_IMAGES]
            drawn, draws = self._control(candidate, few, float(back[: len(few)].mean()))
            recovered = (drawn.argmax(2) == true[few]).mean(1)
            margins = np.stack([margin(logits, true[few], self.target) for logits in (after[: len(few)], *drawn)])
            gain = margins - margin(self.trials.intact[few], true[few], self.target)
            entry |= {
                "recovered": float(back.mean()),
                "recovered_interval": share_interval(int(back.sum()), len(back)),
                "control_recovered": spread(recovered),
                "draws": draws,
            }
        of_target = true[right] == self.target
        change = float(stays.mean() - 1) if len(stays) else 0.0
        target_change = float(stays[of_target].mean() - 1) if of_target.any() else 0.0
        interval = [value - 1 for value in share_interval(int(stays.sum()), len(stays))] if len(stays) else [0.0, 0.0]
        entry |= {"clean_accuracy_change": change, "clean_accuracy_interval": interval, "target_recall_change": target_change}
        if len(wrong):
            outcome = {key: entry[key] for key in ("recovered", "clean_accuracy_change", "target_recall_change")}
            entry["score"] = worth(outcome) - entry["control_recovered"]["mean"]
        entry |= self._strengths(candidate, stays)
        return entry, gain

    def _control(self, candidate: Candidate, rows: np.ndarray, recovered: float) -> tuple[np.ndarray, int]:
        """Logits under matched random silencers, (draws, n_images, n_classes): few where the candidate does no more than they do."""
        sample = pooled_outputs(self.trials, candidate.silencer.layer, self.halves.right[0])
        shown = np.concatenate([values for _, values in self.trials.positions(candidate.silencer.layer, rows[:BATCH])])
        twins = random_twins(candidate.silencer, sample, shown, self.draws, self.seed)
        first = min(FIRST_DRAWS, self.draws)
        drawn = self.trials.logits_of_many([[twin] for twin in twins[:first]], rows)
        high = spread((drawn.argmax(2) == self.halves.true[rows]).mean(1))["high"]  # what ``judged`` asks a group to surpass
        if first < self.draws and recovered > max(high, WORTHWHILE / 2):
            rest = self.trials.logits_of_many([[twin] for twin in twins[first:]], rows)
            drawn = np.concatenate([drawn, rest])
        return drawn, len(drawn)

    def _strengths(self, candidate: Candidate, stays: np.ndarray) -> dict:
        """How much more of the group wrong images show than right ones of other classes, and how often it would raise a false alarm."""
        wrong, right, others = self.halves.wrong, self.halves.right[1], [self.halves.right_others(half) for half in (0, 1)]
        along = self._direction_of(candidate)
        of = lambda rows: self.trials.scores(along, rows) if len(rows) else np.zeros(0)  # noqa: E731
        typical = float(np.median(of(wrong[0]))) if len(wrong[0]) else 1.0
        usual = float(np.median(of(others[0]))) if len(others[0]) else 0.0
        alarm = (usual + typical) / 2
        on_right = of(right)
        return {
            "usual": usual,
            "typical": typical,
            "auc": auc(of(wrong[1]), of(others[1])),
            # A false alarm: a right image that shows the group half as much as wrong ones typically do, and is lost with it.
            "false_alarm_rate": float(((on_right >= alarm) & ~stays).mean()) if len(right) else 0.0,
        }

    def _direction_of(self, candidate: Candidate) -> Damping:
        if isinstance(candidate.silencer, Damping):
            return candidate.silencer
        group = self.debugger.circuit.group[candidate.id]
        along = np.zeros(self.layers[group.layer].n_channels, np.float32)
        along[list(group.neurons)] = group.direction
        return Damping(group.layer, along, along, 0.0, "position")

    # ------------------------------------------------------------ presence and pictures

    def _presences(self, found: Sequence[tuple[Candidate, dict]]) -> dict[str, np.ndarray]:
        """Presence of every group in every image of the folder, by group id."""
        paths = [self.root / path for path in self.predictions["path"]]
        shown = {candidate.id: np.zeros(len(paths)) for candidate, _ in found}
        contrast = [(candidate, entry) for candidate, entry in found if candidate.kind == "contrast"]
        names = list(dict.fromkeys(candidate.silencer.layer for candidate, _ in contrast))
        with self.progress.stage("presence", len(paths)) as tick:
            for batch in in_batches(range(len(paths)), BATCH):
                images = self.debugger.load([paths[row] for row in batch])
                for group, values in self.debugger.presence(images).items():
                    shown[group][list(batch)] = values
                outputs = record(self.classifier, images, names) if names else {}
                outputs = {name: positions(self.layers[name], output).float().cpu().numpy() for name, output in outputs.items()}
                for candidate, entry in contrast:
                    values = outputs[candidate.silencer.layer] @ candidate.silencer.filter
                    scores = values.max(1) if candidate.silencer.scope == "position" else values.mean(1)
                    shown[candidate.id][list(batch)] = contrast_presence(scores, entry["usual"], entry["typical"])
                tick.advance(len(batch))
        return shown

    def _save(self, found: Sequence[tuple[Candidate, dict]]) -> None:
        """Silencers, samples for random controls, and pictures of the places that show a contrast group most."""
        named = {candidate.id: (self.layers[candidate.silencer.layer], candidate.silencer) for candidate, _ in found}
        silencer_file.write(self.draft.folder / DebugReport.SILENCERS, named, {"run": self.debugger.run.id})
        for layer in {layer.name for layer, _ in named.values()}:
            self.draft.save_array(f"samples/{layer}", pooled_outputs(self.trials, layer, self.halves.right[0]).astype(np.float32))
        for candidate, entry in found:
            entry["places"] = self._places(candidate) if candidate.kind == "contrast" else []

    def _places(self, candidate: Candidate) -> list[dict]:
        """Where wrong images show a contrast group most, strongest first; the pictures are written beside."""
        damping, wrong = candidate.silencer, np.concatenate(self.halves.wrong)
        size = self.classifier.preprocessing.input_size
        strongest = []
        for places, values in self.trials.positions(damping.layer, wrong):
            shown = values @ damping.filter
            for place, own in zip(places, shown, strict=True):
                strongest.append(
                    (float(own.max() if damping.scope == "position" else own.mean()), int(wrong[place]), int(own.argmax()), len(own))
                )
        found = []
        folder = self.draft.folder / "places" / candidate.id
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for number, (_, row, position, n_positions) in enumerate(sorted(strongest, reverse=True)[:_PLACES]):
                box = window_around(position, n_positions, size) if damping.scope == "position" else (0, 0, size[1], size[0])
                pixels = self.classifier.preprocessing.to_pixels(torch.from_numpy(self.trials.images.read([row])[0]))
                picture = Image.fromarray(pixels).crop(box).resize((_PLACE_SIDE, _PLACE_SIDE), Image.Resampling.BICUBIC)
                picture.save(folder / f"{number}.jpg", quality=88)
                found.append({"path": self.trials.paths[row], "box": list(box)})
        return found

    # ------------------------------------------------------------ JSON

    def _json(self, found: Sequence[tuple[Candidate, dict]], shown: Mapping[str, np.ndarray]) -> dict:
        names = self.classifier.class_names
        halves = {0: "chosen", 1: "reported", -1: None}
        return {
            "schema": SCHEMA,
            "method": DebugReport.METHOD,
            "draws": self.draws,
            "seed": self.seed,
            "n_wrong": len(self.wrong),
            "n_clean": len(self.clean),
            "n_reported": len(self.halves.wrong[1]),
            "ceiling": self._ceiling(),
            "images": [
                {
                    "path": row.path,
                    "true": names[own] if own >= 0 else None,
                    "predicted": names[row.predicted],
                    "probability": row.probability,
                    "half": halves[int(half)],
                }
                for row, own, half in zip(self.predictions.itertuples(), self.true, self.half, strict=True)
            ],
            "groups": [self._entry(candidate, entry, shown[candidate.id]) for candidate, entry in found],
        }

    def _entry(self, candidate: Candidate, entry: dict, presence: np.ndarray) -> dict:
        others = self.clean[self.true[self.clean] != self.target]
        excess = float(presence[self.wrong].mean() - presence[others].mean()) if len(self.wrong) and len(others) else 0.0
        alarm = 0.5 if candidate.kind == "contrast" else float(np.median(presence[self.wrong])) if len(self.wrong) else 1.0
        return {
            "id": candidate.id,
            "layer": candidate.silencer.layer,
            "kind": candidate.kind,
            "silencing": candidate.way,
            "n_neurons": candidate.n_neurons,
            **entry,
            "presence_excess": excess,
            "alarm_level": alarm,
            "ways": candidate.ways,
            "presence": [round(float(value), 4) for value in presence],
        }

    def _ceiling(self) -> dict[str, float] | None:
        """How many of the wrong images could come back at best: how often other images of their classes are predicted right.

        Images of these classes that are taken for the target are left out: they are what is to be mended.
        """
        if not len(self.wrong):
            return None
        shares, counts = [], []
        for index in self.true[self.wrong]:
            others = (self.true == index) & (self.predicted != self.target)
            shares.append(float((self.predicted[others] == index).mean()) if others.any() else 0.0)
            counts.append(int(others.sum()))
        mean = float(np.mean(shares))
        known = sum(dict(zip(self.true[self.wrong], counts, strict=True)).values())
        low, high = share_interval(round(mean * known), known) if known else (0.0, 1.0)
        return {"mean": mean, "low": low, "high": high}


def worth(outcome: Mapping[str, float]) -> float:
    """What silencing is worth: the share of wrong images that come back, less ``COST`` times the clean accuracy that it loses, less the
    recall that the target loses. 0 where nothing comes back."""
    gained = outcome["clean_accuracy_change"]
    return outcome["recovered"] + COST * min(0.0, gained) + min(0.0, outcome["target_recall_change"])


def judged(entry: Mapping, n_wrong: int) -> tuple[bool, str]:
    """Whether a group is misleading, and why or why not in one sentence."""
    if n_wrong < ENOUGH_WRONG or entry["recovered"] is None:
        return False, f"Only {n_wrong} images are wrongly taken for the class; at least {ENOUGH_WRONG} are needed to tell."
    control, recovered = entry["control_recovered"], entry["recovered"]
    lost = -entry["target_recall_change"]
    if recovered <= control["high"] or entry["p_value"] >= SIGNIFICANT:
        return False, "Silencing it brings back no more wrong images than silencing at random."
    if recovered - control["mean"] < WORTHWHILE:
        return (
            False,
            f"Silencing it brings back few of the wrong images ({recovered:.0%}; {WORTHWHILE:.0%} more than at random are asked for).",
        )
    if entry["auc"] < CLEARLY_ABOVE:
        return False, f"Wrong images do not show it clearly more than right ones do (AUC {entry['auc']:.2f}, {CLEARLY_ABOVE} is asked for)."
    if entry["clean_accuracy_change"] < -AFFORDABLE:
        return False, f"Silencing it costs {-entry['clean_accuracy_change']:.1%} of the clean accuracy: the model needs it."
    if lost > max(AFFORDABLE_IN_TARGET, 0.2 * recovered):
        return False, f"Silencing it loses {lost:.0%} of the class's own right images: it belongs to the class."
    return True, "Wrong images show it far more than right ones, silencing it brings their true class back, and costs little elsewhere."


def margin(logits: np.ndarray, true: np.ndarray, target: int) -> np.ndarray:
    """True logit minus target logit of each image."""
    return logits[np.arange(len(true)), true] - logits[:, target]


def gain_p_value(gain: np.ndarray) -> float:
    """One-sided signed-rank test over images that a group gains more than the mean of its control; gain is (1 + draws, n_images)."""
    difference = gain[0] - gain[1:].mean(0) if gain.shape[1] else np.zeros(0)
    if len(difference) < 5 or not difference.any():
        return 1.0
    return float(wilcoxon(difference, alternative="greater").pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values corrected for their number (Holm 1979)."""
    corrected, largest = {}, 0.0
    for rank, (name, value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, value * (len(p_values) - rank)))
        corrected[name] = largest
    return corrected


def share_interval(count: int, n: int) -> list[float]:
    """95 % interval of a share (Wilson 1927)."""
    interval = binomtest(count, n).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]
