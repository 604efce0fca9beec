"""From figures to a verdict: which of a circuit's layers are to be trusted, and in plain sentences why not. Imports neither torch nor timm.

In: the figures of ``fidelity.py``, and the same of an untrained twin. Out: the figures with verdicts.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from neurflow_engine.errors import InputError
from neurflow_engine.store import Run, Workspace

LARGEST_GAP = 0.2  # median completeness gap of a layer that is trusted
CLEARLY = 2.0  # times the discernment of the untrained twin
BY_CHANCE = 0.01  # p-value up to which a class is told from others better than by chance

Doubt = tuple[bool | None, str]  # whether a test is passed (None: it cannot be made), and the sentence for when it is not


def judged(figures: Mapping, twin: Mapping) -> dict:
    """The figures of a circuit with a verdict on every layer and on the whole: {"trusted": true, false or null, "reasons": sentences}.

    Trusted is a layer whose core neurons matter more than matched random ones, to the class and to the concepts above, whose edges
    foretell effects, whose attributions add up, and whose core does clearly more than that of the untrained twin, in a network that has
    learned something. Null: nothing speaks against it, but something that would speak for it is missing.

    Args:
        figures: "layers", "discernment" and "precision".
        twin: the same of the untrained twin; without "discernment" where it could not be analysed.
    """
    network = _doubts_of_the_network(figures, twin)
    of_twin = {layer["layer"]: layer for layer in twin["layers"]}
    layers = [layer | {"verdict": _layer_verdict(layer, of_twin.get(layer["layer"]), network)} for layer in figures["layers"]]
    named = {answer: [layer["layer"] for layer in layers if layer["verdict"]["trusted"] is answer] for answer in (False, None)}
    doubts = [
        *network,
        (not named[False], f"Not to be trusted: {', '.join(named[False])}."),
        (None if named[None] else True, f"Cannot be judged: {', '.join(named[None])}."),
    ]
    praise = "The core and the edges of every layer stand their test against random neurons and an untrained twin."
    return {**figures, "layers": layers, "verdict": _verdict(doubts, praise)}


def discernment(logits: np.ndarray) -> float:
    """How differently a network answers to different patches: root mean square over classes of the standard deviation over patches.

    Args:
        logits: (n_patches, n_classes); what all classes share in a patch does not count.
    """
    centred = np.asarray(logits, float) - np.asarray(logits, float).mean(1, keepdims=True)
    return round(float(np.sqrt(centred.var(0).mean())), 4)


def precision(run: Run, workspace: Workspace) -> dict | None:
    """How often images predicted as the target are of that class, beside how often any image is: {"right", "of", "chance", "p_value"}.

    One-sided binomial test over all images of known class in the run's data folder. None where that says nothing: the evaluation is gone,
    no true class is known, or all images or none are of the target class.
    """
    from scipy.stats import binomtest

    try:
        predictions = workspace.open_evaluation(run.manifest["evaluation"]).predictions.dropna(subset="true")
    except InputError:
        return None
    target = run.circuit.target_index
    right = predictions.loc[predictions["predicted"] == target, "true"] == target
    chance = float((predictions["true"] == target).mean()) if len(predictions) else 0.0
    if not len(right) or chance in (0.0, 1.0):
        return None
    p_value = binomtest(int(right.sum()), len(right), chance, alternative="greater").pvalue
    return {"right": int(right.sum()), "of": len(right), "chance": round(chance, 4), "p_value": float(p_value)}


def _doubts_of_the_network(figures: Mapping, twin: Mapping) -> list[Doubt]:
    """Whether the network has learned anything at all: without that, no layer of it explains a class."""
    found, own, untrained = figures["precision"], figures["discernment"], twin.get("discernment")
    doubts: list[Doubt] = []
    if untrained is None:
        doubts.append((None, "There is no untrained twin to compare with."))
    else:
        sentence = (
            f"The network tells patches apart hardly better than an untrained one (its logits vary by {own:.3f}, "
            f"those of the twin by {untrained:.3f})."
        )
        doubts.append((own > CLEARLY * untrained, sentence))
    if found:
        sentence = (
            f"Images predicted as the class are of that class hardly more often than by chance ({found['right']} of {found['of']}; "
            f"{found['chance']:.0%} of all images are)."
        )
        doubts.append((found["p_value"] < BY_CHANCE, sentence))
    return doubts


def _layer_verdict(layer: Mapping, twin: Mapping | None, network: Sequence[Doubt]) -> dict:
    effect = layer["mask_random_margin"]["mean"] - layer["mask_core_margin"]  # on the margin, beyond what random neurons do
    loses_class = layer["mask_core"] < layer["mask_random"]["low"] or layer["mask_core_margin"] < layer["mask_random_margin"]["low"]
    doubts: list[Doubt] = [
        (loses_class, "Silencing the core neurons hurts the class no more than silencing random neurons."),
        (
            layer["overlap_core"] < layer["overlap_random"]["low"],
            "Concepts of the layer above survive the loss of their core as they survive the loss of random neurons.",
        ),
    ]
    intervals = [interval for interval in layer["edge_correlation_interval"].values() if interval]
    if intervals:
        foretold = sum(interval["low"] > 0 for interval in intervals)
        doubts.append((foretold * 2 > len(intervals), "Edge weights do not foretell what silencing neurons does."))
    else:
        doubts.append((None, "There are too few core neurons to test the edges."))
    if gap := layer["completeness_gap"]:
        doubts.append((gap["median"] < LARGEST_GAP, f"The attributions behind the edges do not add up (median gap {gap['median']:.2f})."))
    if twin:
        most = twin["mask_random_margin"]["high"] - twin["mask_core_margin"]
        sentence = (
            f"The core does not do clearly more for the class ({effect:.2f} logits beyond random neurons) than in an untrained twin (up to "
            f"{most:.2f})."
        )
        doubts.append((effect > max(0.0, most), sentence))
    return _verdict(
        [*doubts, *network],
        f"Silencing {layer['n_tested']} core neurons costs the class {effect:.2f} logits more than silencing random ones, concepts of the "
        f"layer above keep {layer['overlap_core']:.0%} of their patches instead of {layer['overlap_random']['mean']:.0%}, and edges "
        "foretell effects.",
    )


def _verdict(doubts: Sequence[Doubt], praise: str) -> dict:
    held = [passed for passed, _ in doubts]
    trusted = False if False in held else None if None in held else True
    return {"trusted": trusted, "reasons": [praise] if trusted else [sentence for passed, sentence in doubts if not passed]}
