"""Is a circuit to be trusted? Every claim of a finished run measured in the network, beside matched random controls and an untrained twin.

In: a run. Out: a report (JSON) per layer, with a verdict and its reasons. Imports neither torch nor timm until something is measured.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurflow_engine.config import AnalysisConfig, ModelConfig
from neurflow_engine.controls import matched_neurons, spread
from neurflow_engine.errors import InputError
from neurflow_engine.files import read_json, write_json, writing
from neurflow_engine.progress import Progress, Silent
from neurflow_engine.records import LOGITS, Circuit, Neuron
from neurflow_engine.stability import stability
from neurflow_engine.store import MANIFEST, SCHEMA, Draft, Run, Workspace, now
from neurflow_engine.verdict import discernment, judged, precision

if TYPE_CHECKING:
    from neurflow_engine.knockouts import Knockouts, Step

METHOD = 2  # raised when the same run and settings would give other figures than before
DRAWS = 50  # random neuron sets in a control
MOST_IMAGES = 50  # probe images that are predicted again; a seeded choice where a run has more
MOST_NEURONS = 4  # neurons of an upper layer whose concepts are measured
NEXT_PATCHES, OTHER_PATCHES = 100, 50  # that compete with V_a for its places: those that come next, and random ones
SIZES = (1, 5, 10, 20, 50)  # of the sets of lower neurons by which edges are tested
PAIRS = 60  # pairs (upper neuron, set) per size, at least, where there are so many
FEWEST_PAIRS = 10  # for a correlation
REBUILDS = 10  # circuits from random halves of the probe images
TWIN_IMAGES = 10  # of the probe images, on which the untrained twin is analysed
_EFFECT_PATCHES = 10  # of V_a, on which single knock-outs are measured
_TRIALS, _ROUNDS = 8, 8  # swaps tried side by side, and how often, when a core is refined


EXPLANATIONS = {
    "mask": "Share of the probe images still predicted as the class when a layer's core neurons are set to zero, beside as many matched "
    "random neurons: lower is better (NeurFlow, Cao et al. 2025, sec. 4).",
    "keep": "Share of the probe images still predicted as the class when all other neurons of the layer are set to zero: higher is better "
    "(NeurFlow, Cao et al. 2025, sec. 4).",
    "mask_margin": "Mean change of the class's lead over the best other class, in logits, when the core neurons are set to zero: tells "
    "more than accuracy, which stays at 1 for long (after NeurFlow, Cao et al. 2025, sec. 4).",
    "keep_margin": "The same change when all neurons but the core are set to zero (after NeurFlow, Cao et al. 2025, sec. 4).",
    "mask_cumulative": "As above, with the core neurons of this layer and of all deeper ones set to zero together (NeurFlow, Cao et al. "
    "2025, sec. 4).",
    "keep_cumulative": "As above, with nothing but the core neurons left in this layer and in all deeper ones (NeurFlow, Cao et al. 2025, "
    "sec. 4).",
    "overlap": "Share of a neuron's strongest patches that stay its strongest when its core neurons are set to zero: lower is better, the "
    "exact core would make it smallest (NeurFlow, Cao et al. 2025, sec. 3.2 and 4).",
    "edge_correlation": "Correlation, over random sets of lower neurons, of the sum of their edge weights with the measured drop of the "
    "upper neuron when they are set to zero: 1 means that edges foretell effects (NeurFlow, Cao et al. 2025, sec. 4).",
    "completeness_gap": "How far the attributions behind the edges are from adding up to the neuron's activation: 0 is exact "
    "(Sundararajan et al. 2017).",
    "silhouette": "How distinct the neuron groups of a layer are, -1 to 1 (Rousseeuw 1987).",
    "stability": "How often a group or an edge returns when the circuit is rebuilt on random halves of the probe images, with "
    "the same numbers of groups (after Hennig 2007).",
    "twin": "The same measures on the same architecture with untrained weights: what a network shows that has learned nothing (Adebayo et "
    "al. 2018).",
    "discernment": "How differently the network answers to different patches: standard deviation of its logits over patches, to be "
    "compared with its untrained twin (after Adebayo et al. 2018).",
}  # by measure, one line each; pages and reports show them beside the figures


def mean_weights(neuron: Neuron, absolute: bool = False) -> dict[int, float]:
    """Weight of each core neuron over all of V_a: mean over the semantic groups by their numbers of patches.

    Args:
        absolute: of the absolute values, so that groups which pull in opposite directions do not cancel.
    """
    weights = np.array([group.weights for group in neuron.semantic_groups], float).reshape(len(neuron.semantic_groups), len(neuron.core))
    mean = np.average(np.abs(weights) if absolute else weights, axis=0, weights=[len(group.patches) for group in neuron.semantic_groups])
    return dict(zip(neuron.core, mean.tolist(), strict=True))


def core_by_importance(circuit: Circuit) -> dict[str, tuple[int, ...]]:
    """Core neurons of every layer below the logits (the union over the neurons above), most important first.

    Importance of a neuron: sum over the neurons above of |weight| times their importance; the class logit has 1.
    """
    ordered, importance = {}, {circuit.target_index: 1.0}
    for upper, lower in pairwise(circuit.layers):
        below: dict[int, float] = {}
        for neuron in (neuron for neuron in circuit.neurons if neuron.layer == upper):
            for index, weight in mean_weights(neuron, absolute=True).items():
                below[index] = below.get(index, 0.0) + weight * importance.get(neuron.index, 0.0)
        ordered[lower] = tuple(sorted(below, key=lambda index: (-below[index], index)))
        importance = below
    return ordered


def margins(logits: np.ndarray, target: int) -> np.ndarray:
    """Target logit minus the best other logit; positive where the target is predicted.

    Args:
        logits: (..., n_classes).

    Returns:
        (...).
    """
    others = np.delete(logits, target, -1)
    return logits[..., target] - (others.max(-1) if others.shape[-1] else 0)


def surviving_share(activations: np.ndarray, n_concept: int) -> np.ndarray:
    """Share of a concept V_a that is still among the strongest ``n_concept`` patches of a pool, 0..1.

    The quantity |V_a ∩ V_a(S)| that the exact core set minimises (NeurFlow, section 3.2), divided by k. Where patches tie for the last
    places, they count as if drawn by lot, so that a neuron that falls silent everywhere keeps no more than chance.

    Args:
        activations: (..., n_pool); the first ``n_concept`` patches are V_a.

    Returns:
        (...).
    """
    last = -np.sort(-activations, axis=-1)[..., n_concept - 1, None]
    above, tied = activations > last, activations == last
    places_left = n_concept - above.sum(-1)
    by_lot = tied[..., :n_concept].sum(-1) * places_left / tied.sum(-1)
    return (above[..., :n_concept].sum(-1) + by_lot) / n_concept


def correlation(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float, float] | None:
    """Pearson correlation with its percentile interval from 1,000 bootstrap samples; None where either is constant or pairs are few.

    Args:
        x, y: (n_pairs,).
    """
    if len(x) < FEWEST_PAIRS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    rows = np.random.default_rng(seed).integers(len(x), size=(1000, len(x)))
    drawn_x, drawn_y = x[rows] - x[rows].mean(1, keepdims=True), y[rows] - y[rows].mean(1, keepdims=True)
    spread_of = np.sqrt((drawn_x**2).sum(1) * (drawn_y**2).sum(1))
    drawn = (drawn_x * drawn_y).sum(1)[spread_of > 0] / spread_of[spread_of > 0]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(np.corrcoef(x, y)[0, 1]), float(low), float(high)


def random_sets(neurons: Sequence[int], size: int, wanted: int, generator: np.random.Generator) -> list[tuple[int, ...]]:
    """Up to ``wanted`` distinct random sets of ``size`` of the neurons; none where all neurons would be the only set."""
    if size >= len(neurons):
        return []
    if comb(len(neurons), size) <= wanted:
        return list(combinations(sorted(neurons), size))
    found: dict[tuple[int, ...], None] = {}
    while len(found) < wanted:
        found[tuple(sorted(generator.choice(neurons, size, replace=False).tolist()))] = None
    return list(found)


def refined(
    core: Sequence[int], effects: np.ndarray, losses: Callable[[Sequence[tuple[int, ...]]], Sequence[tuple[float, float]]]
) -> tuple[tuple[int, ...], int]:
    """Swap core neurons for others, as long as what is left of the concept gets less.

    Candidates are the neurons outside with the largest effect of their own, for the members with the smallest. The best of a few swaps
    is taken if it lowers the measured loss, so the result is never worse than the core it began with.

    Args:
        effects: (n_channels,), what silencing a neuron alone takes from the mean activation on V_a.
        losses: of several cores, lower is better.

    Returns:
        The core in its order, newcomers in the places of those they replace, and the number of swaps.
    """
    core, n_swaps = tuple(core), 0
    (best,) = losses([core])
    for _ in range(_ROUNDS):
        weakest = sorted(core, key=lambda index: effects[index])[:_TRIALS]
        strongest = [int(index) for index in np.argsort(-effects, kind="stable") if index not in core][:_TRIALS]
        pairs = sorted(((old, new) for old in weakest for new in strongest), key=lambda pair: effects[pair[0]] - effects[pair[1]])
        trials = [tuple(new if index == old else index for index in core) for old, new in pairs[:_TRIALS] if effects[new] > effects[old]]
        measured = losses(trials) if trials else []
        if not measured or min(measured) >= best:
            break
        best, core, n_swaps = min(measured), trials[measured.index(min(measured))], n_swaps + 1
    return core, n_swaps


class _Measurement:
    """All measures of one run; ``stage`` runs a named piece of work once and keeps its result in the draft."""

    def __init__(self, knockouts: "Knockouts", draws: int, seed: int, refine: bool, stage: Callable):
        self.knockouts, self.run, self.circuit = knockouts, knockouts.run, knockouts.run.circuit
        self.draws, self.seed, self.refine, self.stage = draws, seed, refine, stage
        self.images = _chosen([image.id for image in self.circuit.images], MOST_IMAGES, seed)
        self.tested: dict[str, tuple[int, ...]] = {}
        self.controls: dict[str, list[tuple[int, ...]]] = {}
        for layer, core in core_by_importance(self.circuit).items():
            self.tested[layer] = self.testable(layer, core)
            self.controls[layer] = matched_neurons(self.tested[layer], self.mean_activations(layer), draws, seed)

    def layers(self) -> list[dict]:
        """The figures of every layer below the logits, deepest first."""
        found = []
        for upper, lower in pairwise(self.circuit.layers):
            n_variants = 2 * (1 + self.draws) * len(self.images) * (1 if upper == LOGITS else 2)
            silencing = self.stage(f"silence {lower}", n_variants, lambda tick, lower=lower: self.silencing(lower, tick))
            concepts = self.stage(f"knock out {lower}", None, lambda tick, upper=upper, lower=lower: self.knocking_out(upper, lower, tick))
            found.append({"layer": lower} | silencing | concepts | self.quality(upper, lower))
        return found

    def testable(self, layer: str, core: Sequence[int]) -> tuple[int, ...]:
        """The first core neurons, at most a third of the layer: of more there would be no matched others."""
        return tuple(core[: max(1, self.run.layers[layer].n_channels // 3)])

    def mean_activations(self, layer: str) -> np.ndarray:
        return np.asarray(self.run.activations(layer)).mean(0)

    def silencing(self, layer: str, tick) -> dict:
        """What is left of the predictions when the layer's core neurons, or all others, are silenced."""
        order = self.circuit.layers[1:]
        upto = order[: order.index(layer) + 1]
        single = self._predictions((layer,), tick)
        together = self._predictions(upto, tick) if len(upto) > 1 else single
        figures = {"n_core": len(core_by_importance(self.circuit)[layer]), "n_tested": len(self.tested[layer])}
        figures |= {"n_channels": self.run.layers[layer].n_channels, "n_images": len(self.images)}
        for suffix, (hits, change) in (("", single), ("_cumulative", together)):
            for row, what in enumerate(("mask", "keep")):
                figures |= {f"{what}_core{suffix}": _rounded(hits[row, 0]), f"{what}_random{suffix}": _rounded(spread(hits[row, 1:]))}
                figures |= {f"{what}_core{suffix}_margin": _rounded(change[row, 0])}
                figures |= {f"{what}_random{suffix}_margin": _rounded(spread(change[row, 1:]))}
        return figures

    def _predictions(self, layers: Sequence[str], tick) -> tuple[np.ndarray, np.ndarray]:
        """Share of images still predicted as the target, and mean change of the margin: both (2, 1 + draws), masked and kept."""
        kept = {}
        for layer in layers:
            masks = np.ones((1 + self.draws, self.run.layers[layer].n_channels), bool)
            for row, neurons in enumerate([self.tested[layer], *self.controls[layer]]):
                masks[row, list(neurons)] = False
            kept[layer] = np.concatenate([masks, ~masks])
        target = self.circuit.target_index
        intact = margins(self.knockouts.logits(self.images), target)
        found = self.knockouts.silenced_logits(self.images, kept, tick, lambda logits: margins(logits, target))
        shape = (2, 1 + self.draws)
        return (found > 0).mean(1).reshape(shape), (found - intact).mean(1).reshape(shape)

    def knocking_out(self, upper: str, lower: str, tick) -> dict:
        """What is left of the concepts of some upper neurons without their core, and how well edges foretell what sets of neurons do."""
        from neurflow_engine.knockouts import Step

        step = Step(self.knockouts, upper, lower, tick)
        circuit_neurons = sorted(core_by_importance(self.circuit)[lower])
        explained = [neuron for neuron in self.circuit.neurons if neuron.layer == upper and neuron.core]
        chosen = _chosen(explained, MOST_NEURONS, self.seed)
        tick.total = len(chosen)
        shares, pairs, cores = [], {size: [] for size in SIZES}, []
        for number, neuron in enumerate(chosen):
            step.forget()
            generator = np.random.default_rng([self.seed, number])
            pool = self._pool(neuron, generator)
            shares.append(self._surviving(step, neuron, pool))
            for size, found in self._drops(step, neuron, circuit_neurons, len(chosen), generator).items():
                pairs[size] += found
            if self.refine:
                cores.append(self._refined(step, neuron, pool))
            tick.advance()
        share = np.mean(shares, axis=0)
        figures = {"n_neurons": len(chosen), "overlap_core": _rounded(share[0]), "overlap_random": _rounded(spread(share[1:]))}
        found = {size: correlation(*np.array(pairs[size]).reshape(-1, 2).T, self.seed) for size in SIZES}
        figures["edge_correlation"] = {str(size): value and _rounded(value[0]) for size, value in found.items()}
        figures["edge_correlation_interval"] = {
            str(size): value and {"low": _rounded(value[1]), "high": _rounded(value[2])} for size, value in found.items()
        }
        figures["edge_sets"] = {str(size): len(pairs[size]) for size in SIZES}
        if self.refine:
            figures["overlap_refined"] = _rounded(np.mean([core.pop("share") for core in cores]))
            figures["swaps"] = sum(core["swaps"] for core in cores)
            figures["refined"] = [{"layer": upper, **core} for core in cores]
        return figures

    def _pool(self, neuron: Neuron, generator: np.random.Generator) -> tuple[int, ...]:
        """V_a, the patches that come next, and a few others."""
        activations = np.asarray(self.run.activations(neuron.layer)[:, neuron.index])
        order = np.setdiff1d(np.argsort(-activations, kind="stable"), neuron.patches, assume_unique=True)
        following, rest = order[:NEXT_PATCHES], order[NEXT_PATCHES:]
        others = generator.choice(rest, min(OTHER_PATCHES, len(rest)), replace=False)
        return (*neuron.patches, *following.tolist(), *others.tolist())

    def _surviving(self, step: "Step", neuron: Neuron, pool: Sequence[int]) -> np.ndarray:
        """Share of V_a that survives without the core, and without each matched random set: (1 + draws,)."""
        core = self.testable(step.lower.name, neuron.core)
        sets = [core, *matched_neurons(core, self.mean_activations(step.lower.name), self.draws, self.seed)]
        return surviving_share(step.activations([neuron.index], pool, sets)[..., 0], len(neuron.patches))

    def _drops(self, step: "Step", neuron: Neuron, lower: Sequence[int], n_neurons: int, generator) -> dict[int, list[tuple[float, float]]]:
        """Pairs (sum of the neuron's weights over a random set, relative drop of its mean activation on V_a) by size of the set.

        A drop is relative to the neuron's usual drop (root mean square over the sets of this size): relative to the activation itself, one
        neuron that is hardly active even on V_a would drown all others.
        """
        weights = mean_weights(neuron)
        sets = {size: random_sets(lower, size, -(-PAIRS // n_neurons), generator) for size in SIZES}
        everything = [(), *(drawn for of_size in sets.values() for drawn in of_size)]
        means = step.activations([neuron.index], neuron.patches, everything)[..., 0].mean(1).astype(float)
        drops, found = iter(means[0] - means[1:]), {}
        for size, of_size in sets.items():
            own = np.array([next(drops) for _ in of_size])
            usual = np.sqrt((own**2).mean()) if len(own) else 1.0
            foretold = [sum(weights.get(index, 0.0) for index in drawn) for drawn in of_size]
            found[size] = list(zip(foretold, (own / (usual or 1.0)).tolist(), strict=True))
        return found

    def _refined(self, step: "Step", neuron: Neuron, pool: Sequence[int]) -> dict:
        n_concept = len(neuron.patches)
        sample = neuron.patches[:: max(1, n_concept // _EFFECT_PATCHES)][:_EFFECT_PATCHES]
        singles = [(), *((index,) for index in range(step.lower.n_channels))]
        means = step.activations([neuron.index], sample, singles)[..., 0].mean(1)

        def losses(cores: Sequence[tuple[int, ...]]) -> list[tuple[float, float]]:
            found = step.activations([neuron.index], pool, cores)[..., 0]
            return list(zip(surviving_share(found, n_concept).tolist(), found[:, :n_concept].mean(1).tolist(), strict=True))

        core, n_swaps = refined(self.testable(step.lower.name, neuron.core), means[0] - means[1:], losses)
        return {"neuron": neuron.index, "core": list(core), "swaps": n_swaps, "share": losses([core])[0][0]}

    def quality(self, upper: str, lower: str) -> dict:
        """What the run itself says of the step: how far the attributions are from adding up, and how distinct the groups are."""
        gaps = [neuron.completeness_gap for neuron in self.circuit.neurons if neuron.layer == upper and neuron.completeness_gap is not None]
        silhouettes = [group.silhouette for group in self.circuit.groups_of(lower) if group.silhouette is not None]
        return {
            "completeness_gap": {"median": _rounded(np.median(gaps)), "worst": _rounded(max(gaps))} if gaps else None,
            "silhouette": _rounded(np.mean(silhouettes)) if silhouettes else None,
        }


def check(
    run: Run,
    workspace: Workspace,
    progress: Progress | None = None,
    device: str = "auto",
    draws: int = DRAWS,
    seed: int = 0,
    refine: bool = False,
) -> dict:
    """Measure whether a run's circuit is to be trusted; a finished report is found, an interrupted one goes on after its last stage.

    Args:
        draws: random neuron sets in each control.
        refine: also swap core neurons by measured knock-outs, and tell how much better cores get.

    Returns:
        The JSON of ``fidelity RUN --json`` (DESIGN.md), with the keys of ``EXPLANATIONS`` per layer, "twin", "stability" and "verdict".

    Raises:
        RunError: the model is not the one that was analysed; DataError: a probe image is gone; InputError: ``draws`` is less than 2.
    """
    if draws < 2:
        raise InputError(f"{draws} random draws make no interval; give at least 2 ({DRAWS} by default).")
    progress = progress or Silent()
    key = json.dumps([SCHEMA, METHOD, run.manifest["fingerprint"], draws, seed, refine])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    folder = workspace.fidelity_folder(f"{run.id}-{fingerprint[:10]}")
    if not workspace.has(folder):
        with workspace.draft(folder, fingerprint) as draft:
            if not draft.is_published:
                report = _report(run, workspace, draft, progress, device, draws, seed, refine)
                draft.publish({"schema": SCHEMA, "report": folder.name, "run": run.id, "created": now()} | report)
    return read_json(folder / MANIFEST)


def _report(run: Run, workspace: Workspace, draft: Draft, progress: Progress, device: str, draws: int, seed: int, refine: bool) -> dict:
    def stage(name: str, total: int | None, work: Callable) -> dict:
        path = draft.folder / Draft.WORK / f"{name}.json"
        if not draft.has(name):
            began = time.monotonic()
            with progress.stage(name, total) as tick:
                write_json(path, work(tick))
            draft.finished(name, time.monotonic() - began)
        return read_json(path)

    figures = {"layers": _measured(run, device, draws, seed, refine, stage), "discernment": discernment(run.activations(LOGITS))}
    figures["precision"] = precision(run, workspace)
    returning = stage("stability", None, lambda tick: _stability(run, device, draft.folder / Draft.WORK / "rebuilt", seed, tick))
    twin = _twin(run, draft, progress, device, draws, seed, stage)
    settings = {"draws": draws, "seed": seed, "refine": refine}
    return settings | judged(figures, twin) | {"twin": twin, "stability": returning, "seconds": draft.seconds}


def _stability(run: Run, device: str, folder: Path, seed: int, tick) -> dict | None:
    """How often groups and edges return in circuits from random halves of the probe images; None where there are too few images."""
    from neurflow_engine.evaluation import classifier_of
    from neurflow_engine.rebuilding import halves, rebuilt

    parts = halves(len(run.circuit.images), REBUILDS, seed)
    return stability(run.circuit, rebuilt(run, classifier_of(run, device), parts, folder, tick)) if parts else None


def _measured(run: Run, device: str, draws: int, seed: int, refine: bool, stage: Callable) -> list[dict]:
    from neurflow_engine.evaluation import classifier_of
    from neurflow_engine.knockouts import Knockouts

    return _Measurement(Knockouts(run, classifier_of(run, device)), draws, seed, refine, stage).layers()


def _twin(run: Run, draft: Draft, progress: Progress, device: str, draws: int, seed: int, stage: Callable) -> dict:
    """The same figures of the same architecture with untrained weights, on some of the same images, for the class it predicts most often.

    Its run is built in a workspace of its own, which goes when the report is finished: nobody asked for that run.
    """
    own = Workspace(draft.folder / Draft.WORK / "twin")
    try:
        twin_run = _twin_run(run, own, progress, device, seed)
        layers = _measured(twin_run, device, draws, seed, False, lambda name, *work: stage(f"twin {name}", *work))
    except InputError as error:
        return {"layers": [], "verdict": {"trusted": None, "reasons": [f"The untrained twin cannot be analysed: {error}"]}}
    figures = {"layers": layers, "discernment": discernment(twin_run.activations(LOGITS)), "precision": None}
    described = {"target": twin_run.manifest["target"], "n_images": len(twin_run.circuit.images)}
    return described | judged(figures, figures)


def _twin_run(run: Run, workspace: Workspace, progress: Progress, device: str, seed: int) -> Run:
    from neurflow_engine.evaluation import evaluate
    from neurflow_engine.pipeline import analyze, prepare

    images = workspace.root / "images"
    with writing(images):
        images.mkdir(parents=True, exist_ok=True)
        for image in _chosen(run.circuit.images, TWIN_IMAGES, seed):
            shutil.copyfile(run.data_root / image.path, images / f"{image.id:05d}{Path(image.path).suffix}")
    configuration = run.manifest["model"]["configuration"]
    arguments = configuration["model_kwargs"] | {"num_classes": len(run.class_names)}  # a checkpoint may have said so, and is not read
    model = ModelConfig(**configuration | {"random_weights": True, "checkpoint": None, "model_kwargs": arguments})
    subject = prepare(model, images, device)
    names = subject.classifier.class_names
    predicted = evaluate(subject.classifier, subject.anatomy, subject.image_set, workspace, progress).predictions["predicted"]
    target = int(predicted.mode()[0])
    kept = AnalysisConfig.model_fields.keys() - {"model", "data", "target", "layers", "max_images", "device"}
    return analyze(
        AnalysisConfig(
            model=model,
            data=images,
            target=names[target] if names.count(names[target]) == 1 else str(target),
            layers=tuple(name for name in run.layers if name != LOGITS),
            max_images=TWIN_IMAGES,
            device=device,
            **{name: value for name, value in run.manifest["configuration"].items() if name in kept},
        ),
        workspace,
        None,
        progress,
    )


def _chosen(items: Sequence, most: int, seed: int) -> list:
    """All items, or a seeded choice of ``most`` of them in their order."""
    if len(items) <= most:
        return list(items)
    return [items[place] for place in sorted(np.random.default_rng(seed).choice(len(items), most, replace=False))]


def _rounded(value):
    """Numbers as they are written: four decimals."""
    return {key: _rounded(item) for key, item in value.items()} if isinstance(value, dict) else round(float(value), 4)
