"""Which groups mislead the model on a folder of images: found on one half of the images, reported on the other.

In: a finished run for the target class, images of known classes. Out: a ``DebugReport``: every group of the circuit, and contrast groups
found beside it, ranked by how far they are to blame for the wrong images, with the way to silence each.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from neurflow_engine import silencer_file
from neurflow_engine.batching import BATCH, in_batches
from neurflow_engine.cases import Cases, lower_logit, margin, outcome, price, selectivity, worth
from neurflow_engine.contrast import at_level, auc
from neurflow_engine.contrast_search import contrast_groups
from neurflow_engine.controls import spread
from neurflow_engine.debugging import Debugger, contrast_presence, run_order, window_around
from neurflow_engine.effort import CONTROL_IMAGES, DRAWS, FIRST_DRAWS, LAYERS, PRESENCE_IMAGES, RIGHT_PER_HALF, WRONG_PER_HALF
from neurflow_engine.errors import DataError
from neurflow_engine.evaluation import evaluate
from neurflow_engine.files import writing
from neurflow_engine.flagging import BY_CHANCE, WORTHWHILE, gain_p_value, is_beyond, judged
from neurflow_engine.images import absolute_folders, copies, match_classes, scan
from neurflow_engine.layers import Anatomy, examine, positions
from neurflow_engine.progress import Progress, Silent
from neurflow_engine.records import LOGITS, Damping, Filling, ImageSet, Layer, NeuronGroup, Silencer
from neurflow_engine.shares import holm, share_interval
from neurflow_engine.store import SCHEMA, DebugReport, Draft, Run, Workspace, now
from neurflow_engine.survey import Survey, find
from neurflow_engine.tracing import folded, record
from neurflow_engine.trials import Trials, pooled_outputs
from neurflow_engine.twins import random_twins

_OF_WRONG = (
    "recovered",
    "recovered_interval",
    "control_recovered",
    "as_good_at_random",
    "selectivity",
    "score",
)  # None where there are none
_NEARLY_ALL = 0.9  # of the wrong images
_USUAL = 0.9  # quantile of right images of other classes at which the damping of a group of the circuit begins
_PLACES = 8  # typical places of a contrast group that are shown
_PLACE_SIDE = 112  # pixels


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
    damped along its direction), and contrast groups are found in layers from early to late (``contrast_search.contrast_groups``). All
    figures come from the second half: the share of wrong images whose true class comes back, beside the same for matched random
    silencers; a one-sided Wilcoxon signed-rank test, image by image, of the gained margin (true logit minus target logit) against the
    median of the control (its tails are heavy: some random directions move an answer far), corrected by Holm's method for the number of
    groups; what silencing costs on clean images; how many of the random silencers are worth as much, their own cost deducted; and what
    tells a mark from a class that is called a little too often: what a lower logit of the class alone would do (``cases.lower_logit``),
    and whether silencing works on wrong images rather than on all that are called the class (``cases.selectivity``).

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
    if not workspace.has(folder):
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
                circuit = [name for name in run.layers if name != LOGITS]
                survey = find(workspace, evaluation, circuit, run.manifest["configuration"]["granularities"])
                search = _Search(debugger, anatomy, predictions, image_set, survey, draft, progress, draws, seed)
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
        survey: Survey | None,
        draft: Draft,
        progress: Progress,
        draws: int,
        seed: int,
    ):
        self.survey = survey
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
        per_class = max(1, 2 * RIGHT_PER_HALF // max(1, len(np.unique(self.true[clean]))))
        kinds = [random.permutation(wrong)[: 2 * WRONG_PER_HALF]]
        for index in np.unique(self.true[clean]):
            of_class = random.permutation(clean[self.true[clean] == index])
            kinds.append(of_class[: 2 * per_class if index == self.target else per_class])
        for rows in kinds:
            self.half[rows] = np.arange(len(rows)) % 2
        taken = np.flatnonzero(self.half >= 0)
        place = {row: number for number, row in enumerate(taken)}
        own = lambda rows, half: np.array([place[row] for row in rows if self.half[row] == half], int)  # noqa: E731
        self.chosen, self.reported = (Cases(own(self.wrong, half), own(self.clean, half), self.true[taken], self.target) for half in (0, 1))
        return taken

    # ------------------------------------------------------------ what silencing does

    def _circuit_candidates(self) -> list[Candidate]:
        """Each group of the circuit with the way of silencing it that does best on the first half."""
        found = []
        groups = self.debugger.groups
        with self.progress.stage("ways of silencing", len(groups)) as tick:
            for group in groups:
                silencers = self._ways_of(group)
                ways = {way: outcome(self.trials, [silencer], self.chosen) for way, silencer in silencers.items()}
                best = max(ways, key=lambda way: worth(ways[way]))
                found.append(Candidate(group.id, "circuit", best, silencers[best], len(group.neurons), ways))
                tick.advance()
        return found

    def _ways_of(self, group: NeuronGroup) -> dict[str, Silencer]:
        mean = np.zeros(self.layers[group.layer].n_channels)
        if len(self.chosen.right):
            mean = pooled_outputs(self.trials, group.layer, self.chosen.right).mean(0)
        ways: dict[str, Silencer] = {
            "zero": Filling(group.layer, group.neurons, (0.0,) * len(group.neurons)),
            "mean": Filling(group.layer, group.neurons, tuple(float(mean[neuron]) for neuron in group.neurons)),
        }
        if len(self.chosen.right_others):
            ways["damping"] = at_level(self.trials, self._along(group), self.chosen.right_others, _USUAL)
        return ways

    def _along(self, group: NeuronGroup) -> Damping:
        """A damping along the direction of a group of the circuit, of level 0."""
        along = np.zeros(self.layers[group.layer].n_channels, np.float32)
        along[list(group.neurons)] = group.direction
        return Damping(group.layer, along, along, 0.0, "position")

    # ------------------------------------------------------------ contrast groups

    def _contrast_candidates(self) -> list[Candidate]:
        """Directions beside the circuit, found on the first half."""
        found = []
        ceiling = self.ceiling["mean"] if self.ceiling else 1.0
        for number, damping in enumerate(contrast_groups(self.trials, self.chosen, ceiling, self.progress, self.seed), start=1):
            mass = np.sort(np.abs(damping.pattern * damping.filter))[::-1].cumsum()
            n_neurons = int(np.searchsorted(mass, 0.9 * mass[-1]) + 1)
            ways = {"damping": outcome(self.trials, [damping], self.chosen)}
            found.append(Candidate(f"{damping.layer}/contrast-{number}", "contrast", "damping", damping, n_neurons, ways))
        return found

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
            entry["beyond_ceiling"] = is_beyond(entry, self.ceiling)
            entry["confused_class"] = self.confused_class
            entry["misleading"], entry["reason"] = judged(entry, len(self.wrong), self.lower_logit)
        return sorted(entries, key=lambda pair: (not pair[1]["misleading"], -(pair[1]["score"] or 0.0), pair[1]["p_value"]))

    def _figures(self, candidate: Candidate) -> tuple[dict, np.ndarray]:
        """What one candidate does on the second half beside its control, and the margins gained, (1 + draws, n_images)."""
        wrong, right, true = self.reported.wrong, self.reported.right, self.reported.true
        if not len(wrong):
            untried = np.ones(len(right), bool)
            entry = dict.fromkeys(_OF_WRONG) | price(untried, self.reported) | {"clean_accuracy_interval": None, "draws": 0}
            return entry | self._strengths(candidate, untried), np.zeros((1, 0))
        logits = self.trials.intact.copy()
        for rows in (wrong, right):
            logits[rows] = self.trials.logits([candidate.silencer], rows)
        back, stays = (logits[rows].argmax(1) == true[rows] for rows in (wrong, right))
        few = wrong[:CONTROL_IMAGES]
        drawn, twins = self._control(candidate, few, float(back[: len(few)].mean()))
        recovered = (drawn.argmax(2) == true[few]).mean(1)
        margins = np.stack([margin(one, true[few], self.target) for one in (logits[few], *drawn)])
        cost = price(stays, self.reported)
        entry = cost | {
            "recovered": float(back.mean()),
            "recovered_interval": share_interval(int(back.sum()), len(back)),
            "control_recovered": spread(recovered),
            "as_good_at_random": self._as_good(worth(cost | {"recovered": float(back[: len(few)].mean())}), recovered, twins),
            "selectivity": selectivity(self.trials.intact, logits, self.reported),
            "score": worth(cost | {"recovered": float(back.mean())}) - float(recovered.mean()),
            "draws": len(twins),
            "clean_accuracy_interval": [value - 1 for value in share_interval(int(stays.sum()), len(stays))] if len(stays) else [0.0, 0.0],
        }
        return entry | self._strengths(candidate, stays), margins - margin(self.trials.intact[few], true[few], self.target)

    def _as_good(self, own: float, recovered: np.ndarray, twins: Sequence[Silencer]) -> float:
        """The share of random twins that are worth as much, 0..1, by what they bring back, (draws,), less the price that they have too.

        The price is looked at only where it decides: a twin cannot be worth more than it brings back.
        """
        contenders = np.flatnonzero(recovered >= own)
        if len(contenders) <= BY_CHANCE * len(twins):
            return len(contenders) / len(twins)
        true, right = self.reported.true, self.reported.right
        as_good = 0
        for number in contenders:
            stays = self.trials.logits([twins[number]], right).argmax(1) == true[right] if len(right) else np.ones(0, bool)
            as_good += worth(price(stays, self.reported) | {"recovered": float(recovered[number])}) >= own
        return as_good / len(twins)

    def _control(self, candidate: Candidate, rows: np.ndarray, recovered: float) -> tuple[np.ndarray, list[Silencer]]:
        """Matched random silencers and the logits under them, (draws, n_images, n_classes): few where the candidate does hardly more than
        they do in the mean."""
        sample = pooled_outputs(self.trials, candidate.silencer.layer, self.chosen.right)
        shown = np.concatenate([values for _, values in self.trials.positions(candidate.silencer.layer, rows[:BATCH])])
        twins = random_twins(candidate.silencer, sample, shown, self.draws, self.seed)
        first = min(FIRST_DRAWS, self.draws)
        drawn = self.trials.logits_of_many([[twin] for twin in twins[:first]], rows)
        mean = float((drawn.argmax(2) == self.reported.true[rows]).mean())
        if first < self.draws and recovered > mean + WORTHWHILE / 2:
            rest = self.trials.logits_of_many([[twin] for twin in twins[first:]], rows)
            drawn = np.concatenate([drawn, rest])
        return drawn, twins[: len(drawn)]

    def _strengths(self, candidate: Candidate, stays: np.ndarray) -> dict:
        """How much more of the group wrong images show than right ones of other classes, and how often it would raise a false alarm."""
        chosen, reported = self.chosen, self.reported
        along = candidate.silencer if candidate.kind == "contrast" else self._along(self.debugger.circuit.group[candidate.id])
        of = lambda rows: self.trials.scores(along, rows) if len(rows) else np.zeros(0)  # noqa: E731
        typical = float(np.median(of(chosen.wrong))) if len(chosen.wrong) else 1.0
        usual = float(np.median(of(chosen.right_others))) if len(chosen.right_others) else 0.0
        alarm = (usual + typical) / 2
        on_right = of(reported.right)
        return {
            "usual": usual,
            "typical": typical,
            "auc": auc(of(reported.wrong), of(reported.right_others)),
            # A false alarm: a right image that shows the group half as much as wrong ones typically do, and is lost with it.
            "false_alarm_rate": float(((on_right >= alarm) & ~stays).mean()) if len(reported.right) else 0.0,
        }

    # ------------------------------------------------------------ presence and pictures

    def _presences(self, found: Sequence[tuple[Candidate, dict]]) -> dict[str, np.ndarray]:
        """Presence of every group in every image of the folder, by group id; circuit groups from the survey if there is one, else where
        they are measured, and NaN elsewhere."""
        paths = self.predictions["path"].tolist()
        shown = {candidate.id: np.full(len(paths), np.nan) for candidate, _ in found}
        contrast = [(candidate, entry) for candidate, entry in found if candidate.kind == "contrast"]
        with self.progress.stage("presence", len(paths)) as tick:
            for batch in in_batches(range(len(paths)), BATCH):
                own, rows = [paths[row] for row in batch], np.array(batch)
                measured = self._measured[rows]
                images = self.debugger.load([self.root / path for path in own]) if contrast or measured.any() else None
                for group, values in self._contrast_presences(images, contrast).items():
                    shown[group][rows] = values
                if measured.any():
                    for group, values in self.debugger.presence(images[torch.from_numpy(measured)]).items():
                        shown[group][rows[measured]] = values
                if self.survey:
                    for group, values in self.debugger.presence_in(self._surveyed(own)).items():
                        shown[group][rows] = values
                tick.advance(len(batch))
        return shown

    @cached_property
    def _measured(self) -> np.ndarray:
        """In which images (n_images,) of the folder the circuit's groups are looked for; in none where the survey tells of all.

        Wrong images first, then those that groups are chosen or reported on, then others; which of them, chance decides.
        """
        later = np.where(self.half < 0, 2, 1)
        later[self.wrong] = 0
        order = np.random.default_rng(self.seed).permutation(len(later))
        order = order[np.argsort(later[order], kind="stable")]
        measured = np.zeros(len(later), bool)
        measured[order[:PRESENCE_IMAGES]] = self.survey is None
        return measured

    def _surveyed(self, paths: Sequence[str]) -> dict[str, np.ndarray]:
        """What the survey holds of some images, by layer of the circuit."""
        return {name: self.survey.activations(name, paths) for name in self.debugger.run.layers if name != LOGITS}

    def _contrast_presences(self, images: torch.Tensor | None, contrast: Sequence[tuple[Candidate, dict]]) -> dict[str, np.ndarray]:
        """Presence of the contrast groups in a few images, by group id: (n_images,)."""
        if not contrast:
            return {}
        names = list(dict.fromkeys(candidate.silencer.layer for candidate, _ in contrast))
        outputs = record(self.classifier, images, names)
        outputs = {name: positions(self.layers[name], output).float().cpu().numpy() for name, output in outputs.items()}
        shown = {}
        for candidate, entry in contrast:
            scores = candidate.silencer.of_images(outputs[candidate.silencer.layer] @ candidate.silencer.filter)
            shown[candidate.id] = contrast_presence(scores, entry["usual"], entry["typical"])
        return shown

    def _save(self, found: Sequence[tuple[Candidate, dict]]) -> None:
        """Silencers, samples for random controls, and pictures of the places that show a contrast group most."""
        named = {candidate.id: (self.layers[candidate.silencer.layer], candidate.silencer) for candidate, _ in found}
        silencer_file.write(self.draft.folder / DebugReport.SILENCERS, named, {"run": self.debugger.run.id})
        for layer in {layer.name for layer, _ in named.values()}:
            self.draft.save_array(f"samples/{layer}", pooled_outputs(self.trials, layer, self.chosen.right).astype(np.float32))
        for candidate, entry in found:
            entry["places"] = self._places(candidate) if candidate.kind == "contrast" else []

    def _places(self, candidate: Candidate) -> list[dict]:
        """Where wrong images show a contrast group most, strongest first; the pictures are written beside."""
        damping, wrong = candidate.silencer, np.r_[self.chosen.wrong, self.reported.wrong]
        size = self.classifier.preprocessing.input_size
        strongest = []
        for places, values in self.trials.positions(damping.layer, wrong):
            shown = values @ damping.filter
            for place, own in zip(places, shown, strict=True):
                strongest.append((float(damping.of_images(own)), int(wrong[place]), int(own.argmax()), len(own)))
        found = []
        folder = self.draft.folder / "places" / candidate.id
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for number, (_, row, position, n_positions) in enumerate(sorted(strongest, reverse=True)[:_PLACES]):
                box = window_around(position, n_positions, size) if damping.scope != "image" else (0, 0, size[1], size[0])
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
            "n_reported": len(self.reported.wrong),
            "ceiling": self.ceiling,
            "lower_logit": self.lower_logit,
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
        wrong, others = (presence[rows] for rows in (self.wrong, self.clean[self.true[self.clean] != self.target]))
        wrong, others = (values[~np.isnan(values)] for values in (wrong, others))
        excess = float(wrong.mean() - others.mean()) if len(wrong) and len(others) else 0.0
        alarm = 0.5 if candidate.kind == "contrast" else float(np.median(wrong)) if len(wrong) else 1.0
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
            "presence": [None if np.isnan(value) else round(float(value), 4) for value in presence],
        }

    @cached_property
    def confused_class(self) -> str | None:
        """The class that nearly all wrong images are of, where there is one."""
        if not len(self.wrong):
            return None
        classes, counts = np.unique(self.true[self.wrong], return_counts=True)
        return self.classifier.class_names[classes[counts.argmax()]] if counts.max() >= _NEARLY_ALL * counts.sum() else None

    @cached_property
    def lower_logit(self) -> dict[str, float] | None:
        """What a lower logit of the class would do on the second half; None without wrong images, or right ones of the class to pay for
        it."""
        return lower_logit(self.trials.intact, self.reported) if len(self.reported.wrong) and len(self.reported.right_target) else None

    @cached_property
    def ceiling(self) -> dict[str, float] | None:
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
